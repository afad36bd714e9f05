"""What Prometheus is told of runs, each of which is a process with an end of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from reelmill.errors import ReelmillError
from reelmill.flows.drive import Stop, drive, prepare
from reelmill.flows.metrics import FOLDER, Metrics, counted, follow, serve_metrics
from reelmill.flows.server import free_port
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source
from tests.runs.project import Project
from tests.runs.serving import RECIPE

TROUBLE = "  trouble: {stage: trouble, from: videos, kind: raise, shard: '00001'}\n"


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    return Metrics(folder)


@pytest.fixture
def project(tmp_path: Path, demo_media: Path) -> Project:
    made = Project(tmp_path, "")
    names = ("dunes.mp4", "pond.mp4", "missing.mp4")
    made.write(RECIPE + TROUBLE, [f"file://{demo_media}/{name}" for name in names])
    return made


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"reelmill_{name}", labels)


def build(project: Project, *only: str, stop: Stop | None = None) -> None:
    """A build as a served flow run does it, without Prefect and Dask."""
    loaded = load_recipe(project.recipe, stages=Stages(), source_model=Source)
    built = prepare(loaded, Store.open(loaded.store, create=True), only=only, run="here")
    follow(built)

    async def submit(_todo: object, order: str) -> str:
        return await asyncio.to_thread(execute, order)

    try:
        asyncio.run(drive(built, submit, window=lambda: 2, run="here", stop=stop or Stop()))
    except ReelmillError as error:
        built.error = error


def test_shards_samples_rejects_and_versions_are_counted(
    metrics: Metrics, project: Project
) -> None:
    with counted():
        build(project, "clips")
        assert value(metrics, "builds_running") == 1
        made = {"dataset": "videos", "stage": "download", "outcome": "made"}
        assert value(metrics, "shards_total", **made) == 3
        videos = {"dataset": "videos", "stage": "download"}
        assert value(metrics, "samples_total", **videos) == 2
        assert value(metrics, "rejects_total", reason="file_not_found", **videos) == 1
        sizes = [path.stat().st_size for path in (project.folder / "store/blobs").rglob("*.tar")]
        assert sum(sizes) < value(metrics, "bytes_total", **videos) + value(
            metrics, "bytes_total", dataset="clips", stage="split"
        )
        assert value(metrics, "shard_seconds_count", stage="split") == 3
        store = str(project.folder / "store")
        assert value(metrics, "dataset_samples", dataset="videos", store=store) == 2
        assert value(metrics, "builds_total", outcome="completed") == 0
    assert value(metrics, "builds_running") == 0
    assert value(metrics, "builds_total", outcome="completed") == 1
    assert value(metrics, "shards_total", **made) == 3
    with counted():
        build(project, "clips")
    assert value(metrics, "shards_total", **made) == 3
    assert value(metrics, "builds_total", outcome="completed") == 2


def test_outcomes_of_builds(metrics: Metrics, project: Project) -> None:
    with counted():
        build(project)
    failed = {"dataset": "trouble", "stage": "trouble", "outcome": "failed"}
    assert value(metrics, "shards_total", **failed) == 1
    assert value(metrics, "builds_total", outcome="failed") == 1
    with contextlib.suppress(ReelmillError), counted():
        project.recipe.write_text("nonsense")
        build(project)
    assert value(metrics, "builds_total", outcome="failed") == 2
    project.recipe.write_text(RECIPE.replace("store: ./store", "store: ./other"))
    stop = Stop()
    stop.set()
    with counted():
        build(project, stop=stop)
    assert value(metrics, "builds_total", outcome="stopped") == 1
    assert value(metrics, "builds_total", outcome="completed") == 0


KILLED = """
import sys
from reelmill.flows.metrics import _record, counted
with counted():
    _record.get().write("shard failed", dataset="clips", stage="split", seconds=1, error="")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_leaves_its_counts_and_nothing_else(metrics: Metrics) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    failed = {"dataset": "clips", "stage": "split", "outcome": "failed"}
    assert value(metrics, "shards_total", **failed) == 1
    assert value(metrics, "builds_running") == 1
    run.kill()
    run.communicate()
    assert value(metrics, "builds_running") == 0
    assert value(metrics, "builds_total", outcome="crashed") == 1
    assert value(metrics, "shards_total", **failed) == 1
    assert list(metrics._folder.iterdir()) == []


def test_damaged_and_lost_files_cost_their_own_counts_alone(metrics: Metrics) -> None:
    damaged, lost = metrics._folder / "a.jsonl", metrics._folder / "b.jsonl"
    ended = b'{"event": "ended", "outcome": "failed"}\n'
    with damaged.open("wb") as file:
        file.write(b'{"event": \n' + ended)
    with lost.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(ended)
        file.flush()
        assert value(metrics, "builds_total", outcome="failed") == 2
        lost.unlink()
    assert value(metrics, "builds_running") == 0
    assert value(metrics, "builds_total", outcome="failed") == 2
    assert list(metrics._folder.iterdir()) == []


def test_a_run_whose_folder_is_gone_runs(
    metrics: Metrics, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(project.folder / "absent"))
    with counted():
        build(project, "clips")
    assert (project.folder / "store" / "refs" / "clips").exists()


def test_prometheus_is_answered_on_loopback_alone(project: Project) -> None:
    build(project, "clips")
    port = free_port()
    with serve_metrics(str(port)) as metrics:
        metrics.know(Store.open(str(project.folder / "store")))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        store = f"{project.folder}/store"
        assert f'reelmill_dataset_samples{{dataset="videos",store="{store}"}} 2.0' in text
        listening = {
            one.laddr.ip
            for one in psutil.Process().net_connections()
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port
        }
        assert listening == {"127.0.0.1"}


def test_what_cannot_be_listened_at_is_said_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ReelmillError, match=f"at {port}: Address already in use"):
            serve_metrics(port).__enter__()
    for wrong in ("metrics", "localhost:", "70000"):
        with pytest.raises(ReelmillError, match=r"give a port, or HOST:PORT"):
            serve_metrics(wrong).__enter__()
