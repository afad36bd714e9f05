"""The demonstration: the whole main job on videos that it makes and serves itself."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import io
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from reelmill.dataset import Version, open_version
from reelmill.errors import ReelmillError
from reelmill.flows.drive import prepare
from reelmill.flows.run import Show, planning_store, run_build
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source

PORT = 48_730
"""Where the videos of a new demonstration are served, if it is free: addresses are content."""

RECIPE = """\
# The demonstration's recipe. Change something and build again: only what depends on it is made.
store: {store}
sources:
  urls: {{path: urls.csv, caption: caption, rows_per_shard: 4}}
datasets:
  videos: {{stage: download, from: urls, allow_private: true}}
  clips: {{stage: split, from: videos, method: scenes, min_seconds: 500ms, max_seconds: 4s}}
  shuffled: {{stage: shuffle, from: clips, samples_per_shard: 12}}
  triplets: {{stage: frames, from: shuffled, count: 3, max_side: 320, max_samples: 6}}
  flow: {{stage: flow, from: triplets, method: dis}}
"""

SHEETS = {"clips": 18, "flow": 12}
"""Contact sheets that are drawn, and how many samples each shows."""


def run_demo(
    folder: Path, *, workers: int | None, store: str | None, out: Console, err: Console
) -> None:
    """Make the videos unless they are there, serve them, build the recipe, show the result."""
    media = folder / "media"
    table = folder / "urls.csv"
    videos = ensure_media(media, err)
    recipe = folder / "recipe.yaml"
    with _served(media, table) as address:
        if address is None:
            _refuse_to_fetch(str(recipe), _port(table))
        else:
            _write_if_new(table, table_of(address, videos))
            _write_if_new(recipe, RECIPE.format(store=store or "./store"))
        build = run_build(str(recipe), workers=workers, show=Show(console=err, report=out))
    for name, count in SHEETS.items():
        version = open_version(build.store, name)
        sheet = _sheet(folder, version, count)
        out.print(f"contact sheet of {name}: {sheet}", markup=False)
    out.print(f"\nOpen a shard in plain webdataset:\n  {one_liner(build.store)}", markup=False)


def one_liner(store: Store) -> str:
    """A command that opens the first shard of ``flow`` with no Reelmill in it."""
    first = open_version(store, "flow").urls()[0]
    code = (
        "import webdataset as wds; "
        f"print(sorted(next(iter(wds.WebDataset({first!r}, shardshuffle=False)))))"
    )
    return f"{sys.executable} -c {shlex.quote(code)}"


def ensure_media(folder: Path, err: Console) -> list[dict[str, Any]]:
    """Make the videos unless they are there; what ``make_demo_media`` says of them."""
    listing = folder / "videos.json"
    if not listing.exists():
        from reelmill.flows.demo_media import make_demo_media

        with err.status("making a dozen videos ..."):
            made = [asdict(video) for video in make_demo_media(folder)]
        # Written last: a list means that every file on it is whole.
        listing.write_text(json.dumps(made, indent=1), encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))
    return found


def table_of(address: str, videos: list[dict[str, Any]]) -> str:
    """The demonstration's table, as CSV: every video, and one that is not there."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("url", "caption"))
    writer.writerows((f"{address}/{v['filename']}", v["caption"]) for v in videos)
    writer.writerow((f"{address}/gone.mp4", "a video that is no longer there"))
    return table.getvalue()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def _served(media: Path, table: Path) -> Iterator[str | None]:
    """Serve a folder on loopback; yields the address, or ``None`` where the table names a port
    that is taken."""
    handler = functools.partial(_Handler, directory=str(media))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", _port(table)), handler)
    except OSError:
        if table.exists():
            yield None
            return
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _port(table: Path) -> int:
    """The port of the addresses in the table, if there is one: another would make them new."""
    if not table.exists():
        return PORT
    with table.open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file), {})
    return urlsplit(first.get("url", "")).port or PORT


def _refuse_to_fetch(recipe: str, port: int) -> None:
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source)
    with planning_store(loaded.store) as store:
        if prepare(loaded, store, run="demo", write=False).missing:
            raise ReelmillError(
                f"port {port}, at which the demonstration serves its videos, is taken; "
                "stop what listens there and run it again"
            )


def _sheet(folder: Path, version: Version, count: int) -> Path:
    path = folder / f"{version}.png"
    if not path.exists():
        from reelmill.flows.preview import draw_sheet

        path.write_bytes(draw_sheet(version, count))
    return path


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
