"""Prefect's UI as people see it: a real browser, a real server, real builds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reelmill
from reelmill.flows.derivation import derivable
from tests.runs.project import Project, let_pass
from tests.runs.serving import Serving, serving, until

pytest.importorskip("playwright", reason="Playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import Browser, expect

from tests.runs.browser import Ui, chromium, opened, running_browser

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="Chromium is not installed: apt-get install chromium"
)

FLOW = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 2}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
  triplets: {stage: frames, from: clips, max_side: 160, max_samples: 1}
  flow: {stage: flow, from: triplets}
"""

SLOW = """
store: ./slow-store
sources:
  urls: {{path: many.csv, rows_per_shard: 1}}
datasets:
  videos: {{stage: download, from: urls, allow_files: true}}
  broken: {{stage: trouble, from: videos, kind: raise, shard: "00001"}}
  clips: {{stage: split, from: videos, method: fixed, seconds: 4s, cut: copy}}
  slow: {{stage: trouble, from: clips, kind: gate, marker: "{gate}"}}
  unasked: {{stage: shuffle, from: clips}}
"""
"""Goes on when it is let, to be watched and cancelled; one shard of ``broken`` fails at once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    assert path is not None
    with running_browser(path) as it:
        yield it


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    browser: Browser,
    demo_media: Path,
    blank_prefect: Path,
) -> Iterator[Serving]:
    """``films``, which is small, and ``slow``, both served."""
    folder = tmp_path_factory.mktemp("ui")
    (folder / "slow.yaml").write_text(SLOW.format(gate=folder / "gate"))
    names = ("dunes", "pond", "court", "tiles", "city", "fields", "winter", "lights")
    addresses = [f"file://{demo_media}/{name}.mp4" for name in names]
    (folder / "many.csv").write_text("\n".join(["url", *addresses]) + "\n")
    with serving(folder, demo_media, blank_prefect, str(folder / "slow.yaml")) as it:
        yield it


@pytest.fixture(scope="module")
def beside(served: Serving, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder for builds from a terminal that report to the same server."""
    return Project(tmp_path_factory.mktemp("beside"), f"{served.url}/api")


@pytest.fixture(scope="module")
def finished(served: Serving, beside: Project, demo_media: Path) -> str:
    """The flow run of a finished build of all stages, with two rejects."""
    names = ("dunes.mp4", "pond.mp4", "damaged.mp4", "nowhere.mp4")
    beside.write(FLOW, [f"file://{demo_media}/{name}" for name in names])
    beside.recipe.rename(beside.folder / "flow.yaml")
    done = beside.run("build", "flow.yaml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    return newest(served, "flow")


@pytest.fixture
def ui(browser: Browser, served: Serving) -> Iterator[Ui]:
    with opened(browser, served.url) as it:
        yield it


def newest(served: Serving, name: str) -> str:
    """The ID of the newest flow run of a name, as soon as there is one."""

    def find() -> Any:
        body = {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"}
        return served.call("flow_runs/filter", body)

    return str(until(find, f"a flow run {name}")[0]["id"])


def test_the_ui_calls_its_own_server_and_nobody_else(
    ui: Ui, served: Serving, finished: str
) -> None:
    asked: list[str] = []
    ui.page.on("request", lambda request: asked.append(request.url))
    ui.page.goto("/")
    expect(ui.page.get_by_text("Task Runs", exact=True)).to_be_visible()
    ui.run(finished, "Logs")
    expect(ui.page.get_by_text("worker threads; Dask's dashboard")).to_be_visible()
    here = (served.url, "data:", "blob:", "ws:")
    assert [url for url in asked if not url.startswith(here)] == []
    assert any(url.startswith(f"{served.url}/api/") for url in asked)


def test_progress_and_table_of_a_finished_run(ui: Ui, finished: str) -> None:
    ui.run(finished, "Artifacts")
    for name, shards in (("videos", 2), ("clips", 2), ("triplets", 2), ("flow", 2)):
        expect(ui.card(f"progress-{name}")).to_contain_text(f"100 %: {shards} of {shards} shards")
    ui.artifact(finished, "progress-clips")
    expect(ui.page.get_by_text("Progress: 100%")).to_be_visible()
    ui.artifact(finished, "shards")
    headings = ui.page.get_by_role("columnheader").all_inner_texts()
    assert headings == [
        *("dataset", "shards", "time left", "made", "reused", "failed", "samples", "bytes"),
        *("shards a minute", "rejects"),
    ]
    cells = ui.page.get_by_role("row").filter(has_text="videos").get_by_role("cell")
    told = dict(zip(headings, cells.all_inner_texts(), strict=True))
    counts = {name: told[name] for name in ("made", "reused", "failed", "samples")}
    assert counts == {"made": "2", "reused": "0", "failed": "0", "samples": "2"}
    assert told["shards"] == "2 of 2"
    assert told["rejects"] == "1 file_not_found, 1 truncated"


def test_the_card_of_a_finished_run(ui: Ui, beside: Project, finished: str) -> None:
    ui.artifact(finished, "datasets")
    page = ui.page
    total = reelmill.open_version(str(beside.folder / "store"), "flow@latest").totals.samples
    row = page.get_by_role("row").filter(has_text="flow@")
    assert row.get_by_role("cell").all_inner_texts()[2:6] == ["2", "2", f"{total}", "0"]
    card = page.get_by_test_id("markdown-display")
    expect(card).to_contain_text("videos: 1 file_not_found, 1 truncated")
    expect(card).to_contain_text("Dask's dashboard, while it runs: http://127.0.0.1:")
    lineage = page.locator("svg[aria-roledescription^=flowchart]")
    for text in ("urls", "videos@", "clips@", "triplets@", "flow@", "download", f"{total} samples"):
        expect(lineage.get_by_text(text).first).to_be_visible()
    for name in ("videos", "clips", "triplets", "flow"):
        picture = page.get_by_role("img", name=name, exact=True)
        expect(picture).to_be_visible()
        assert picture.get_attribute("src").startswith("data:image/jpeg;base64,")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 900


def test_task_runs_are_named_and_tagged(ui: Ui, finished: str) -> None:
    ui.run(finished, "TaskRuns")
    for dataset, stage in (("clips", "split"), ("triplets", "frames")):
        for shard in ("00000", "00001"):
            name = ui.page.get_by_text(f"{stage}/{dataset}/{shard}", exact=True)
            line = ui.page.locator("[data-slot=card]").filter(has=name)
            expect(line.get_by_text("Completed")).to_be_visible()
            expect(line.get_by_text(stage, exact=True)).to_be_visible()
            expect(line.get_by_text(dataset, exact=True)).to_be_visible()


def test_a_form_derives_a_dataset(ui: Ui, served: Serving, beside: Project, finished: str) -> None:
    ui.form(f"derive/{served.store_name}")
    expect(ui.field("store")).to_have_value(str(served.project.folder / "store"))
    for text in ("a dataset with a tag or a digest", "frames in a sample; 3 makes triplets"):
        expect(ui.page.get_by_text(text)).to_be_visible()
    stages = list(derivable())
    broken: list[object] = []
    ui.page.on("pageerror", lambda error: broken.append(error))
    for stage in [*stages, "various"]:
        ui.page.get_by_role("tab", name=stage, exact=True).click()
        expect(ui.page.get_by_label("Select Stage", exact=True)).to_have_text(stage)
    expect(ui.page.get_by_role("tab", name="Pad").nth(1)).to_be_visible()
    assert broken == []
    # What one stage was asked for must not be sent to another.
    ui.page.get_by_role("tab", name="split").click()
    expect(ui.field("Timeout")).to_have_value("1h")
    ui.field("Max Seconds").fill("1m30s")
    ui.page.get_by_role("tab", name="frames").click()
    expect(ui.field("Count")).to_have_value("3")
    ui.field("parent").fill("clips@latest")
    ui.field("name").fill("pairs")
    ui.field("Count").fill("2")
    ui.field("Max Side").fill("64")
    ui.choose("Format", "png")
    expect(ui.field("max_rejects")).to_have_value("50%")
    ui.field("max_rejects").fill("12.5 %")
    ui.field("store").fill(str(beside.folder / "store"))
    run = ui.submitted()
    ui.run(run, "Logs")
    expect(ui.page.get_by_text("pairs from clips@latest").first).to_be_visible()
    ui.ends_as("Completed")
    pairs = reelmill.open_version(str(beside.folder / "store"), "pairs@latest")
    clips = reelmill.open_version(str(beside.folder / "store"), "clips@latest")
    assert pairs.ref.parents == {"source": str(clips)}
    assert {"000000.image.png", "000001.image.png"} <= set(pairs.manifest.fields)
    assert "000002.image.png" not in pairs.manifest.fields
    sample = next(iter(pairs.samples()))
    assert json.loads(sample.fields["json"])["width"] == 64
    # Its card leads to the run that made what it is made from.
    ui.artifact(run, "datasets")
    ui.page.get_by_role("link", name=str(clips)).click()
    expect(ui.page).to_have_url(re.compile(f"/runs/flow-run/{finished}"))
    expect(ui.page.get_by_text("flow", exact=True).first).to_be_visible()


def test_a_form_looks_after_a_store(
    ui: Ui, served: Serving, beside: Project, finished: str
) -> None:
    ui.form(f"maintain/{served.store_name}")
    expect(ui.page.get_by_text("read shards back: every byte against its digest")).to_be_visible()
    expect(ui.field("keep")).to_have_value("30d")
    ui.field("keep").fill("a while")
    ui.submit()
    expect(ui.complaint("'a while' does not match")).to_be_visible()
    ui.field("keep").fill("7d")
    expect(ui.complaint("'a while' does not match")).to_have_count(0)
    ui.field("store").fill(str(beside.folder / "store"))
    run = ui.submitted()
    ui.run(run, "Artifacts")
    ui.ends_as("Completed")
    ui.refreshed(ui.card("maintenance"))
    ui.artifact(run, "maintenance")
    expect(ui.page.get_by_test_id("markdown-display")).to_contain_text("flow@")


def test_what_cannot_be_is_refused(ui: Ui, served: Serving) -> None:
    ui.form(f"derive/{served.store_name}")
    ui.field("parent").fill("dreams@latest")
    ui.field("name").fill("frames")
    doomed = ui.submitted()

    before = len(served.call("flow_runs/filter"))
    ui.form(f"derive/{served.store_name}")
    ui.field("parent").fill("clips@latest")
    ui.field("name").fill("Bad name")
    ui.field("Count").fill("0")
    ui.submit()
    # Browsers check bounds themselves, before anything is sent.
    assert "1" in ui.field("Count").evaluate("input => input.validationMessage")
    ui.field("Count").fill("3")
    ui.submit()
    expect(ui.complaint("'Bad name' does not match")).to_be_visible()
    ui.page.get_by_role("tab", name="split").click()
    ui.field("name").fill("cuts")
    ui.field("Max Seconds").fill("8 parsecs")
    ui.submit()
    expect(ui.complaint("'8 parsecs' does not match")).to_be_visible()
    ui.field("Max Seconds").fill("8s")
    ui.field("max_rejects").fill("much")
    ui.submit()
    expect(ui.complaint("'much' does not match")).to_be_visible()
    expect(ui.complaint("'8 parsecs' does not match")).to_have_count(0)
    assert len(served.call("flow_runs/filter")) == before

    ui.run(doomed, "Details")
    ui.ends_as("Failed")
    ui.page.reload()
    expect(ui.page.get_by_text("there is no store at")).to_be_visible()


def test_a_failed_shard_says_why(ui: Ui, served: Serving) -> None:
    run = served.run("build/slow", only=["broken"])
    assert served.ended(run)["type"] == "FAILED"
    ui.run(run, "TaskRuns")
    ui.page.get_by_text("trouble/broken/00001", exact=True).click()
    reason = re.compile(
        "trouble/broken/00001 failed.*: RuntimeError: the moon is in the wrong phase"
    )
    expect(ui.page.get_by_text(reason).first).to_be_visible()
    ui.ends_as("Failed")


def test_a_form_starts_a_build_that_is_watched_and_cancelled(ui: Ui, served: Serving) -> None:
    shutil.rmtree(served.project.folder / "slow-store", ignore_errors=True)
    ui.form("build/slow")
    expect(ui.field("recipe")).to_have_value(str(served.project.folder / "slow.yaml"))
    expect(ui.page.get_by_text("datasets to build, with what they need")).to_be_visible()
    only = ui.page.locator("fieldset").filter(has_text="Add item").first
    for place, name in enumerate(("slow", "broken")):
        only.get_by_role("button", name="Add item").click()
        only.get_by_role("textbox").nth(place).fill(name)
    run = ui.submitted()
    gate = served.project.folder / "gate"
    shutil.rmtree(gate, ignore_errors=True)
    card = ui.card("progress-slow")
    ui.run(run, "Artifacts")
    for passed, told in ((2, "25 %: 2 of 8 shards"), (3, "62 %: 5 of 8 shards")):
        let_pass(gate, passed)
        ui.refreshed(card.filter(has_text=told))
    expect(ui.card("progress-broken")).to_be_visible()
    expect(ui.card("progress-unasked")).to_have_count(0)

    ui.run(run, "Logs")
    ui.cancel()
    ui.ends_as("Cancelled")
    assert re.fullmatch(r"stopped; \d+ finished shards are kept", served.state(run)["message"])
