"""One more dataset from a finished version: by command, by recipe, and what Prefect hears of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from reelmill.dataset import open_version
from reelmill.store import Store
from tests.runs.project import Project, wait_for

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  rows: {stage: rows, from: urls}
"""
PINNED = """
store: ./store
sources:
  old: {version: rows@v1}
datasets:
  mixed: {stage: shuffle, from: old, samples_per_shard: 2}
"""


@pytest.fixture
def built(project: Project) -> Project:
    project.write(RECIPE, [f"https://example.org/{n}.mp4" for n in range(4)])
    project.build_here()
    return project


def derive(project: Project, *arguments: str) -> Any:
    return project.run("derive", *arguments, "--store", "store", "--workers", "1")


async def _committed(url: str, name: str) -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
    from prefect.settings import PREFECT_API_URL, temporary_settings

    only = EventFilter(
        event=EventNameFilter(name=["reelmill.dataset.committed"]),
        resource=EventResourceFilter(id=[f"reelmill.dataset.{name}"]),
    )
    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            content = {"filter": only.model_dump(mode="json", exclude_unset=True)}
            answer = await client.request("POST", "/events/filter", json=content)
            events: list[dict[str, Any]] = answer.json()["events"]
            return events


def test_a_derived_dataset_is_what_a_recipe_on_the_same_version_makes(built: Project) -> None:
    store = Store.open(str(built.folder / "store"))
    parent = open_version(store, "rows")
    made = derive(built, "rows@latest", "mixed", "shuffle", "samples_per_shard=2", "--json-log")
    assert made.returncode == 0, made.stderr
    version = open_version(store, "mixed")
    assert version.ref.parents == {"source": str(parent)}
    assert sum(built.executed().values()) == 2 + 4
    events = [json.loads(line) for line in made.stderr.splitlines()]
    assert [event["event"] for event in events] == [
        "started",
        *["shard made"] * 2,
        "committed",
        "ended",
    ]
    assert events[-2]["version"] == version.digest

    assert built.run("tag", "rows", "v1", "--store", "store").returncode == 0
    (built.folder / "recipe.yaml").write_text(PINNED)
    assert built.build_here().versions == {"mixed": version.digest}
    assert open_version(store, "mixed").ref.parents == {"source": str(parent)}
    assert not built.executed()
    again = derive(built, "rows@v1", "mixed", "shuffle", "samples_per_shard=2")
    assert "All 2 shards exist; nothing was made." in again.stdout


def test_a_new_version_is_an_event_and_an_old_one_is_none(built: Project) -> None:
    def heard() -> list[dict[str, Any]]:
        return asyncio.run(_committed(built.prefect_url, "heard"))

    for size in ("2", "2", "4"):
        done = derive(built, "rows", "heard", "shuffle", f"samples_per_shard={size}")
        assert done.returncode == 0, done.stderr
    wait_for(lambda: len(heard()) >= 2)
    newest, oldest = heard()
    version = open_version(str(built.folder / "store"), "heard")
    told = newest["payload"]
    assert (told["name"], told["version"], told["label"]) == ("heard", version.digest, str(version))
    assert (told["shards"], told["samples"], told["rejects"]) == (1, 4, 0)
    assert told["parents"] == list(version.ref.parents.values())
    assert (oldest["payload"]["shards"], oldest["payload"]["samples"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("rows", "rows", "shuffle"), "give the new dataset another name than that of its parent"),
        (("rows", "x", "shufle"), "unknown stage shufle; did you mean shuffle?"),
        (("rows", "x", "shuffle", "seeds=1"), "unknown parameter of stage shuffle; did you mean"),
        (("rows", "x", "shuffle", "seed"), "write it as path=value"),
        (("rose", "x", "shuffle"), "no dataset 'rose' in"),
        (("rows@v9", "x", "shuffle"), "no version or tag 'v9' in dataset 'rows'"),
        (("rows", "x", "download"), "download cannot be derived from rows"),
        (("rows", "urls", "shuffle"), "made by ingest from a table; give the new one another name"),
        (("rows", "X y", "shuffle"), "a name begins with a letter a-z"),
    ],
)
def test_what_cannot_be_derived_is_said_in_one_line(
    built: Project, arguments: tuple[str, ...], line: str
) -> None:
    done = derive(built, *arguments)
    assert done.returncode == 1
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, built: Project) -> None:
    done = built.run("derive", "rows", "x", "shuffle", "--store", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "there is no store at" in done.stderr
    assert not (tmp_path / "none").exists()
