"""What a person sees of a build in Prefect."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs.project import COMMAND, Project, wait_for

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy, max_rejects: 100%}
"""


async def _seen(url: str, recipe: str) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            known = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
            runs = [run for run in known if run.parameters.get("recipe") == recipe]
            (run,) = runs
            only = FlowRunFilter(id={"any_": [run.id]})
            for _ in range(50):
                tasks = await client.read_task_runs(flow_run_filter=only)
                if len(tasks) == 4 and all(t.state and t.state.is_final() for t in tasks):
                    break
                await asyncio.sleep(0.2)
            artifacts = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id={"any_": [run.id]})
            )
            about = LogFilter(flow_run_id={"any_": [run.id]})
            logs = await client.read_logs(log_filter=about)
            return {"run": run, "tasks": tasks, "artifacts": artifacts, "logs": logs}


def test_a_build_is_one_flow_run_with_a_task_run_per_shard_and_its_artifacts(
    project: Project, demo_media: Path
) -> None:
    project.write(RECIPE, [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond")])
    project.recipe.rename(project.folder / "small.yaml")
    recipe = str(project.folder / "small.yaml")
    done = project.run("build", recipe, "--workers", "1")
    assert done.returncode == 0, done.stderr
    seen = asyncio.run(_seen(project.prefect_url, recipe))
    assert seen["run"].name == "small"
    assert seen["run"].state.name == "Completed"
    assert seen["run"].state.message == "4 shards made, 0 were there already"
    assert {task.name: set(task.tags) for task in seen["tasks"]} == {
        "download/videos/00000": {"videos", "download"},
        "download/videos/00001": {"videos", "download"},
        "split/clips/00000": {"clips", "split"},
        "split/clips/00001": {"clips", "split"},
    }
    assert {task.state.name for task in seen["tasks"]} == {"Completed"}
    artifacts = {artifact.key: artifact for artifact in seen["artifacts"]}
    assert set(artifacts) == {"progress-videos", "progress-clips", "shards", "datasets"}
    for name in ("videos", "clips"):
        assert float(artifacts[f"progress-{name}"].data) == 100.0
    rows = {row["dataset"]: row for row in json.loads(artifacts["shards"].data)}
    assert (rows["clips"]["shards"], rows["clips"]["made"]) == ("2 of 2", 2)
    card = artifacts["datasets"].data
    assert "| dataset | version | shards |" in card
    assert "| videos | [videos@" in card
    assert "  d_videos -->|split| d_clips" in card
    assert "![clips](data:image/jpeg;base64,/9j/" in card
    assert "Dask's dashboard, while it runs: http://127.0.0.1:" in card
    said = [log.message for log in seen["logs"]]
    assert any(line.startswith("committed clips@") for line in said)
    assert any("worker threads; Dask's dashboard: http://127.0.0.1:" in line for line in said)


def test_a_failed_build_is_a_failed_flow_run_that_says_why(
    project: Project, demo_media: Path
) -> None:
    project.write(
        RECIPE + "  t: {stage: trouble, from: videos, kind: raise}\n",
        [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond")],
    )
    recipe = str(project.recipe)
    done = project.run("build", recipe, "--only", "t", "--workers", "1")
    assert done.returncode == 1
    seen = asyncio.run(_seen(project.prefect_url, recipe))
    assert seen["run"].state.type.value == "FAILED"
    assert "RuntimeError: the moon is in the wrong phase" in seen["run"].state.message
    states = {task.name: task.state.type.value for task in seen["tasks"]}
    assert states["trouble/t/00000"] == "FAILED"
    assert states["download/videos/00000"] == "COMPLETED"


def test_a_missing_server_is_said_in_one_line(
    project: Project, demo_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Project(project.folder, "http://127.0.0.1:9/api")
    lost.write(RECIPE, [f"file://{demo_media}/dunes.mp4"])
    done = lost.run("build", "recipe.yaml")
    assert done.returncode == 1
    _, line = done.stderr.strip().splitlines()
    assert line.startswith("error: the Prefect server at http://127.0.0.1:9/api does not answer")
    assert os.environ.get("PREFECT_API_URL") is None


SLOW = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  rows: {stage: rows, from: urls}
  naps: {stage: trouble, from: rows, kind: slow, seconds: 3}
"""


def test_whatever_listens_during_a_build_listens_on_loopback_alone(
    project: Project, blank_prefect: Path
) -> None:
    project.write(SLOW, [f"https://example.org/{n}.mp4" for n in range(4)])
    alone = {k: v for k, v in project.environ.items() if k != "PREFECT_API_URL"}
    alone["PREFECT_HOME"] = str(shutil.copytree(blank_prefect, project.folder / "prefect"))
    command = [sys.executable, str(COMMAND), "build", str(project.recipe), "--workers", "2"]
    process = subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: project.trace.exists(), seconds=120)
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        listening = {
            connection.laddr.ip
            for member in family
            for connection in member.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        servers = [p for p in family if "reelmill.flows.server" in " ".join(p.cmdline())]
    finally:
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert listening == {"127.0.0.1"}
    assert len(servers) == 1, "only the build itself starts a Prefect server, no worker does"
    wait_for(lambda: not any(member.is_running() for member in family), seconds=30)


def test_prefects_own_dask_runner_makes_the_same_by_profile(
    project: Project, demo_media: Path
) -> None:
    project.write(RECIPE, [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond")])
    profile = project.folder / "profile.yaml"
    profile.write_text("kind: local\nworkers: 2\nrunner: prefect-dask\n")
    versions = project.build("--profile", str(profile))
    assert versions == dict(project.build_here().versions)
    seen = asyncio.run(_seen(project.prefect_url, str(project.recipe)))
    assert {task.name for task in seen["tasks"]} == {
        f"{stage}/0000{n}" for stage in ("download/videos", "split/clips") for n in range(2)
    }
    assert {task.state.name for task in seen["tasks"]} == {"Completed"}
