"""Known addresses are looked at again: what changed is a new generation, and nothing else is."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reelmill.dataset import open_version
from reelmill.flows import again
from reelmill.flows.again import find_due, take_changed
from reelmill.flows.preview import spread
from reelmill.recipe import load_recipe
from reelmill.shards.removed import CHANGED, Removed
from reelmill.store import Store
from reelmill.store.model import Result
from reelmill.tasks import Stages
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source
from tests.runs.project import Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 2, refresh: if-changed}
datasets:
  videos: {stage: download, from: urls, allow_private: true}
"""

MONTH = 30 * 86400


@dataclass
class Site:
    """Videos by path, with an ETag each unless it is blind to them; and what was sent how often."""

    url: str = ""
    videos: dict[str, bytes] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)


@pytest.fixture
def site(demo_media: Path) -> Iterator[Site]:
    found = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = found.videos.get(self.path)
            etag = f'"{hash(data)}"'
            status = 404 if data is None else 200
            if data is not None and self.path not in found.blind:
                status = 304 if self.headers.get("If-None-Match") == etag else 200
            found.sent[self.path, status] += 1
            self.send_response(status)
            if self.path not in found.blind:
                self.send_header("ETag", etag)
            body = data if status == 200 and data else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    media = sorted(path for path in demo_media.glob("*.mp4") if path.name != "damaged.mp4")
    found.videos = {f"/{number}.mp4": media[number].read_bytes() for number in range(3)}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield found
        server.shutdown()


@pytest.fixture
def built(project: Project, site: Site) -> Project:
    project.write(RECIPE, [site.url + path for path in site.videos])
    project.build_here()
    project.executed()
    site.sent.clear()
    return project


def check(project: Project, *overrides: str) -> int:
    """Make the checks that are due, and act on them; how many there were."""
    recipe = load_recipe(project.recipe, stages=Stages(), source_model=Source, overrides=overrides)
    store = Store.open(recipe.store)
    due = find_due(recipe, store, ["videos"], "check")
    results = [
        (one, one.result or Result.model_validate_json(execute(one.order.model_dump_json())))
        for one in due
    ]
    take_changed(recipe, store, results, "check")
    return sum(one.result is None for one in due)


def test_what_did_not_change_is_not_sent_again(built: Project, site: Site) -> None:
    before = open_version(str(built.folder / "store"), "videos").digest
    assert check(built) == 2
    assert {status for _, status in site.sent} == {304}
    assert built.build_here().versions["videos"] == before
    assert built.executed() == {}


@pytest.mark.parametrize("is_blind", [False, True])
def test_changed_bytes_are_a_new_generation(built: Project, site: Site, is_blind: bool) -> None:
    """Whether the server gave a validator or the digest has to tell."""
    if is_blind:
        site.blind |= set(site.videos)
    store = Store.open(str(built.folder / "store"))
    before = open_version(store, "videos")
    old = {sample.columns["url"]: sample.columns["sha256"] for sample in before.samples()}
    site.videos["/1.mp4"] += bytes.fromhex("0000000866726565")  # an empty box of type free
    check(built)
    built.build_here()
    assert built.executed() == {"download/videos/00002": 1}
    after = open_version(store, "videos")
    assert after.manifest.generations[:-1] == before.manifest.generations
    new = {sample.columns["url"]: sample.columns["sha256"] for sample in after.samples()}
    assert {url for url in new if new[url] != old[url]} == {f"{site.url}/1.mp4"}
    assert new.keys() == old.keys()
    assert after.totals.samples == len(new)
    assert {one.key for one in spread(after, 9)} == {one.key for one in after.samples()}
    assert after.removed == {"000000001": Removed(CHANGED, "000020000")}
    assert {s.key: s.columns["sha256"] for s in before.samples()}["000000001"] == old[
        f"{site.url}/1.mp4"
    ]


def test_what_cannot_be_had_any_more_stays_as_it_is_known(built: Project, site: Site) -> None:
    store = Store.open(str(built.folder / "store"))
    before = open_version(store, "videos").digest
    del site.videos["/0.mp4"]
    check(built)
    assert built.build_here().versions["videos"] == before


def test_checks_are_made_once_a_period(
    built: Project, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = "sources.urls.refresh=after 30d"
    assert check(built, after) == 0
    clock = time.time()
    monkeypatch.setattr(again.time, "time", lambda: clock + MONTH + 60)
    site.videos["/2.mp4"] += bytes.fromhex("0000000866726565")
    assert check(built, after) == 2
    assert check(built, after) == 0
    assert len(open_version(str(built.folder / "store"), "urls").manifest.generations) == 2
    monkeypatch.setattr(again.time, "time", lambda: clock + 2 * MONTH + 60)
    assert check(built, after) == 2
    assert check(built, "sources.urls.refresh=never") == 0


def test_a_build_checks_first_and_says_so(built: Project, site: Site) -> None:
    site.videos["/1.mp4"] += bytes.fromhex("0000000866726565")
    planned = built.run("plan", str(built.recipe)).stdout
    assert "first it is asked whether the addresses of 2 shards changed" in planned
    assert "would make nothing but what changed at its address" in planned
    assert "asked" not in built.run("plan", str(built.recipe), "--set", "urls.refresh=never").stdout
    done = built.run("build", str(built.recipe))
    assert done.returncode == 0, done.stderr
    assert "asking whether the addresses of 2 shards changed" in done.stderr
    assert "addresses of urls that hold other bytes than before: 1" in done.stderr
    assert built.executed()["download/videos/00002"] == 1


def test_a_wrong_word_is_refused_in_a_line(built: Project) -> None:
    done = built.run("plan", str(built.recipe), "--set", "sources.urls.refresh=daily")
    assert done.returncode == 1
    assert "must be never, if-changed, or after a time such as 30d" in done.stderr
