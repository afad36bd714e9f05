"""Make the pictures of Prefect's UI anew: ``python -m tests.runs.screenshots``.

Builds the demonstration's videos with `reelmill serve` and takes what a browser shows of it.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect
from rich.console import Console

from reelmill.flows.demo import ensure_media, table_of
from reelmill.flows.server import free_port
from tests.runs.browser import HEIGHT, WIDTH, Ui, chromium, opened, running_browser
from tests.runs.project import Project
from tests.runs.serving import Serving, until

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = 255

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, caption: caption, rows_per_shard: 1}
datasets:
  videos:   {stage: download, from: urls, allow_files: true}
  clips:    {stage: split, from: videos, method: scenes, preset: ultrafast}
  triplets: {stage: frames, from: clips, count: 3, stride: 4, max_side: 320, max_samples: 2}
  flow:     {stage: flow, from: triplets}
"""


class _Films(Project):
    """A project that knows nothing of the stages that tests bring along."""

    @property
    def environ(self) -> dict[str, str]:
        return {name: v for name, v in super().environ.items() if name != "PYTHONPATH"}


def main() -> None:
    path = chromium()
    if path is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="films-") as name:
        folder = Path(name)
        videos = ensure_media(folder / "media", Console(quiet=True))
        (folder / "urls.csv").write_text(table_of(f"file://{folder / 'media'}", videos))
        (folder / "films.yaml").write_text(RECIPE)
        served = Serving(_Films(folder, ""), free_port())
        served.start()
        try:
            with running_browser(path) as browser, opened(browser, served.url) as ui:
                _run(ui, served)
                _form(ui, served)
        finally:
            served.stop()


def _run(ui: Ui, served: Serving) -> None:
    run = served.run("build/films")
    flow = ui.card("progress-flow")

    def is_half_done() -> bool:
        ui.run(run, "Artifacts")
        ui.refreshed(flow.filter(has_text="%"))
        share = re.search(r"(\d+) %", flow.inner_text())
        return share is not None and int(share[1]) >= 30

    until(is_half_done, "progress")
    _save(ui, "ui-progress.png", 1050)
    assert served.ended(run)["type"] == "COMPLETED"
    ui.artifact(run, "datasets")
    expect(ui.page.get_by_role("img", name="flow", exact=True)).to_be_visible()
    expect(ui.page.locator("svg[aria-roledescription^=flowchart]")).to_be_visible()
    _save(ui, "ui-run.png", 2250)


def _form(ui: Ui, served: Serving) -> None:
    ui.form(f"derive/{served.store_name}")
    ui.field("parent").fill("clips@latest")
    ui.field("name").fill("pairs")
    ui.field("Count").fill("2")
    ui.field("Max Side").fill("640")
    ui.page.evaluate("scrollTo(0, 0)")
    _save(ui, "ui-form.png", 1360)


def _save(ui: Ui, name: str, height: int) -> None:
    """The top of a page, in few colours."""
    ui.page.set_viewport_size({"width": WIDTH, "height": height})
    ui.page.wait_for_load_state("networkidle")
    for picture in ui.page.get_by_role("img").all():
        picture.evaluate("image => image.decode?.()")
    with Image.open(io.BytesIO(ui.page.screenshot(animations="disabled"))) as shot:
        few = shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(IMAGES / name, optimize=True)
    ui.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
