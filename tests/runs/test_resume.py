"""Killing everything, at any moment, loses nothing and makes nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reelmill.dataset import open_version
from reelmill.shards.verify import verify_shard
from tests.runs.project import Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_private: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
  shuffled: {stage: shuffle, from: clips, samples_per_shard: 4}
  slow: {stage: trouble, from: shuffled, kind: slow, seconds: 0.1}
  triplets: {stage: frames, from: slow, max_side: 160, max_samples: 2}
  flow: {stage: flow, from: triplets, preset: ultrafast}
"""

KILLS = 10


@pytest.fixture(scope="module")
def table(web: str, demo_media: Path) -> list[str]:
    listed = sorted(path.name for path in demo_media.glob("*.mp4") if path.name != "damaged.mp4")
    return [f"{web}/{name}" for name in listed[:8]]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, prefect_url: str, table: list[str]
) -> dict[str, str]:
    project = Project(tmp_path_factory.mktemp("undisturbed"), prefect_url)
    project.write(RECIPE, table)
    return dict(project.build_here().versions)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes in which Dask executes tasks, by what their command lines say."""
    found = []
    for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in task.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"multiprocessing" in command.read_bytes():
                found.append(int(child))
    return found


def wait_for_lines(project: Project, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if project.trace.exists() and len(project.trace.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)


def check(project: Project, undisturbed: dict[str, str]) -> None:
    assert project.build("--workers", "2") == undisturbed
    executed = project.executed()
    assert executed
    assert {label: n for label, n in executed.items() if n > 1} == {}, "made twice"
    store = str(project.folder / "store")
    for name in undisturbed:
        version = open_version(store, name)
        assert [p for s in version.manifest.shards for p in verify_shard(version.store, s)] == []
        keys = [sample.key for sample in version.samples(["json"])]
        assert len(keys) == len(set(keys)) == version.totals.samples
    assert list((project.folder / "store" / "tmp").iterdir()) == []


@pytest.mark.slow
def test_the_flow_process_killed_ten_times(
    project: Project, table: list[str], undisturbed: dict[str, str]
) -> None:
    chance = random.Random(20)
    project.write(RECIPE, table)
    seen = 0
    for _ in range(KILLS):
        process = project.start("build", "recipe.yaml", "--workers", "2")
        workers: list[int] = []
        # From the first moments of a run to well after it has made something more.
        if chance.random() < 0.7:
            wait_for_lines(project, process, seen + chance.randint(1, 4))
            workers = workers_of(process)
        time.sleep(chance.random())
        process.kill()
        process.communicate()
        seen = len(project.trace.read_text().splitlines()) if project.trace.exists() else 0
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "workers outlive the flow that started them"
            time.sleep(0.1)
    check(project, undisturbed)


@pytest.mark.slow
def test_worker_processes_killed_under_a_running_build(
    project: Project, table: list[str], undisturbed: dict[str, str]
) -> None:
    chance = random.Random(4)
    project.write(RECIPE, table)
    process = project.start("build", "recipe.yaml", "--workers", "2", "--json")
    killed = 0
    for lines in (1, 6, 14):
        wait_for_lines(project, process, lines)
        if process.poll() is None and (workers := workers_of(process)):
            os.kill(chance.choice(workers), signal.SIGKILL)
            killed += 1
    _, err = process.communicate(timeout=200)
    assert killed >= 2
    assert process.returncode == 0, err
    check(project, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(
    project: Project, table: list[str], undisturbed: dict[str, str], number: signal.Signals
) -> None:
    project.write(RECIPE, table)
    process = project.start("build", "recipe.yaml", "--workers", "2")
    wait_for_lines(project, process, 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped; ")
    assert last.endswith("finished shards are kept. To go on: reelmill build recipe.yaml")
    assert "Traceback" not in err
    check(project, undisturbed)


def test_a_fault_that_passes_is_tried_again(project: Project, table: list[str]) -> None:
    project.write(
        RECIPE.replace("kind: slow, seconds: 0.1", "kind: once, marker: m").replace(
            "marker: m", f"marker: {project.folder / 'marker'}"
        ),
        table[:2],
    )
    versions = project.build("--workers", "1")
    assert all(versions.values())


def test_a_poison_shard_is_reported_and_holds_up_no_other(
    project: Project, table: list[str]
) -> None:
    recipe = RECIPE.replace("from: shuffled, kind: slow, seconds: 0.1", "from: videos, kind: die")
    project.write(recipe.replace("kind: die", "kind: die, shard: '00001'"), table[:4])
    done = project.run("build", "recipe.yaml", "--workers", "2")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "trouble/slow/00001" in last
    assert "workers died while making it" in last
    assert "Traceback" not in done.stderr
    executed = project.executed()
    assert {label for label in executed if "/slow/" in label} == {
        "trouble/slow/00000",
        "trouble/slow/00002",
        "trouble/slow/00003",
    }
    assert not (project.folder / "store" / "refs" / "slow").exists()
    assert (project.folder / "store" / "refs" / "shuffled").exists()
