"""How far a shard is, from the stage that makes it to whoever waits for it."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reelmill.flows import at_worker, terminal
from reelmill.flows.cards import _inside
from reelmill.flows.drive import Build, Stop, drive, prepare
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source
from tests.runs.project import Project

RECIPE = """
store: ./store
sources: {urls: {path: urls.csv, rows_per_shard: 3}}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
"""


@pytest.fixture
def build(tmp_path: Path, demo_media: Path) -> Build:
    """Three videos, one of which is not there, and nothing made of them yet."""
    project = Project(tmp_path, "")
    names = ("dunes.mp4", "missing.mp4", "pond.mp4")
    project.write(RECIPE, [f"file://{demo_media}/{name}" for name in names])
    loaded = load_recipe(project.recipe, stages=Stages(), source_model=Source)
    return prepare(loaded, Store.open(loaded.store, create=True), run="here")


def _shown(build: Build) -> list[str]:
    """What a screen, a log and the page of the flow run say."""
    screen = io.StringIO()
    Console(file=screen, width=200).print(terminal._screen(build))
    brief = terminal._brief(build, build.progress["clips"])
    return [screen.getvalue(), brief, _inside(build, "clips")]


def test_samples_of_a_shard_are_counted_while_it_is_made(build: Build) -> None:
    seen: list[list[str]] = []
    fetched: list[tuple[int, int]] = []

    def watch(task: Order, done: int, total: int) -> None:
        if task.dataset == "videos":
            fetched.append((done, total))
            return
        build.hear(task.dataset, task.shard, done, total)
        build.hear(task.dataset, "00099", 5, 9)
        seen.append(_shown(build))

    async def submit(_todo: object, order: str) -> str:
        return await asyncio.to_thread(execute, order, watch)

    asyncio.run(drive(build, submit, window=lambda: 2, run="here", stop=Stop()))
    assert fetched == [(1, 3), (2, 3), (3, 3)], "one of which is a reject"
    assert len(seen) == 2
    for done, (screen, brief, page) in enumerate(seen, 1):
        assert f"1 running: {done} of 2 samples" in screen
        assert brief == f"clips 0/1 (+ {done}/2 samples)"
        assert page == f"; in those being made: {done} of 2 samples"
    screen, brief, page = _shown(build)
    assert "running" not in screen
    assert (brief, page) == ("clips 1/1", "")
    assert build.samples == {}


class _Worker:
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def log_event(self, topic: str, message: Any) -> None:
        self.events.append((topic, message))


@pytest.mark.parametrize(("seconds", "told"), [(0.0, [("videos", 3), ("clips", 2)]), (1e9, [])])
def test_a_worker_tells_now_and_then(
    build: Build, monkeypatch: pytest.MonkeyPatch, seconds: float, told: list[tuple[str, int]]
) -> None:
    worker = _Worker()
    monkeypatch.setattr("distributed.get_worker", lambda: worker)
    monkeypatch.setattr(at_worker, "TELL_SECONDS", seconds)
    made: list[str] = []

    async def submit(_todo: object, order: str) -> str:
        made.append(at_worker.make(order))
        return made[-1]

    asyncio.run(drive(build, submit, window=lambda: 1, run="here", stop=Stop()))
    about = {"run": "here", "shard": "00000"}
    assert worker.events == [
        (at_worker.SAMPLES, {**about, "dataset": dataset, "of": total, "done": done})
        for dataset, total in told
        for done in range(1, total + 1)
    ]
    assert len(made) == 2
