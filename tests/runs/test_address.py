"""A cluster that somebody else started: scheduler and workers from Dask's own commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.dask_processes import DaskProcesses
from tests.runs.project import PATHS, Project, wait_for

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
  needy: {stage: needy, from: clips}
"""


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    loopback = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    started = [subprocess.Popen([*dask, "--port", str(port), *loopback], **quiet)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    environ = {**os.environ, "PYTHONPATH": PATHS}
    for resources in ("MOON=1", "SUN=1"):
        command = [*worker, *loopback, "--resources", resources]
        started.append(subprocess.Popen(command, env=environ, **quiet))
    yield address
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(timeout=30)


def test_a_build_on_an_existing_cluster_places_needy_shards_where_they_can_run(
    project: Project, scheduler: str, demo_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(RECIPE, [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond", "court")])
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    time.sleep(2)
    versions = project.build("--profile", "address")
    assert all(versions.values())
    assert versions == dict(project.build_here().versions)


def test_a_build_that_waits_for_workers_can_be_stopped(project: Project) -> None:
    project.write(
        "store: ./store\nsources: {urls: {path: urls.csv}}\n"
        "datasets: {rows: {stage: rows, from: urls}}\n",
        ["https://rows.invalid/1.mp4"],
    )
    with DaskProcesses(project.folder) as dask:
        dask.scheduler()
        profile = project.folder / "cluster.yaml"
        profile.write_text(f"kind: address\naddress: {dask.address}\n")
        log = project.folder / "scheduler.log"
        process = project.start("build", "recipe.yaml", "--profile", "cluster.yaml")
        wait_for(lambda: "Receive client connection" in log.read_text())
        started = time.monotonic()
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopped before there were workers" in err
    assert time.monotonic() - started < 30


def test_a_scheduler_that_is_not_there_is_named(project: Project, demo_media: Path) -> None:
    project.write(RECIPE, [f"file://{demo_media}/dunes.mp4"])
    done = project.call("build", "recipe.yaml", "--profile", "address")
    assert done.returncode == 1
    assert "environment variable DASK_SCHEDULER_ADDRESS is not set" in done.stderr
    (project.folder / "far.yaml").write_text("kind: address\naddress: tcp://127.0.0.1:9\n")
    done = project.call("build", "recipe.yaml", "--profile", "far.yaml")
    assert done.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in done.stderr
