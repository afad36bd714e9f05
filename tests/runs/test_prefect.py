"""What a person sees of a build in Prefect."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.runs.project import Project

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
    from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            runs = [r for r in await client.read_flow_runs() if r.parameters["recipe"] == recipe]
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
            return {"run": run, "tasks": tasks, "artifacts": artifacts}


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
    artifacts = {artifact.type: artifact for artifact in seen["artifacts"]}
    assert float(artifacts["progress"].data) == 100.0
    rows = {row["dataset"]: row for row in json.loads(artifacts["table"].data)}
    assert (rows["clips"]["shards"], rows["clips"]["made"]) == ("2 of 2", 2)
    card = artifacts["markdown"].data
    assert "| dataset | version | shards |" in card
    assert "| videos | videos@" in card
    assert "  d_videos -->|split| d_clips" in card
    assert "![clips](data:image/jpeg;base64,/9j/" in card


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
