"""Looking after a store: the flow in Prefect, and the commands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reelmill.dataset import open_version
from reelmill.store import Store
from reelmill.store.lease import live_runs
from reelmill.store.model import LeaseRecord, blob_name
from tests.runs.project import Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy, max_rejects: 100%}
"""
LONG_AGO = 100 * 86400

_MAINTAIN = """
import asyncio, json, sys
from reelmill.flows.maintain import maintain_flow

if __name__ == "__main__":
    state = asyncio.run(maintain_flow(**json.loads(sys.argv[1]), workers=2, return_state=True))
    print(json.dumps({"type": state.type.value, "message": state.message}))
"""


def start(project: Project, **parameters: Any) -> subprocess.Popen[str]:
    """Start the flow in a process of its own."""
    given = json.dumps({"store": str(project.folder / "store"), **parameters})
    return subprocess.Popen(
        [sys.executable, "-c", _MAINTAIN, given],
        cwd=project.folder,
        env=project.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> dict[str, str]:
    """The state that the flow ended with."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    ended: dict[str, str] = json.loads(out.splitlines()[-1])
    return ended


def maintain(project: Project, **parameters: Any) -> dict[str, str]:
    """Run the flow; the state it ended with."""
    return end(start(project, **parameters))


async def _seen(url: str, store: str, count: int) -> dict[str, Any]:
    """What Prefect shows of the newest maintenance of a store, which had ``count`` task runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            runs = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
            run = next(one for one in runs if one.parameters.get("store") == store)
            only = FlowRunFilter(id={"any_": [run.id]})
            for _ in range(50):
                tasks = await client.read_task_runs(flow_run_filter=only)
                ended = [task for task in tasks if task.state and task.state.is_final()]
                if len(ended) == count:
                    break
                await asyncio.sleep(0.2)
            artifacts = await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id={"any_": [run.id]})
            )
            return {"run": run, "tasks": tasks, "artifacts": {one.type: one for one in artifacts}}


def seen(project: Project, count: int) -> dict[str, Any]:
    return asyncio.run(_seen(project.prefect_url, str(project.folder / "store"), count))


def grow_old(store: Store) -> None:
    """Let all that a local store holds be of long ago."""
    then = time.time() - LONG_AGO
    for entry in list(store.backend.list("refs/")):
        line = json.loads(store.backend.read(entry.name))
        line["time"] = "2020-01-01T00:00:00+00:00"
        store.backend.put(entry.name, json.dumps(line).encode())
    for entry in store.backend.list(""):
        os.utime(store.backend.locate(entry.name), (then, then))


def damage(store: Store) -> Path:
    """Change a byte of the first clip's shard; the tar."""
    (shard, _) = open_version(store, "clips").manifest.shards
    assert shard.tar is not None
    path = Path(store.backend.locate(blob_name(shard.tar.digest, "tar")))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(600)
        byte = file.read(1)
        file.seek(600)
        file.write(bytes([byte[0] ^ 1]))
    return path


@pytest.fixture
def small(project: Project, demo_media: Path) -> Project:
    """A project whose two videos are built; ``clips`` has two versions, one of them superseded."""
    project.write(RECIPE, [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond")])
    project.build_here("clips.seconds=3s")
    project.build_here()
    project.executed()
    return project


def test_maintenance_verifies_what_is_there_and_removes_what_is_of_no_use(small: Project) -> None:
    store = Store.open(str(small.folder / "store"))
    new, old = (ref.version for ref, _ in store.history("clips"))
    grow_old(store)
    ended = maintain(small, keep_versions=1, keep="7d")
    assert ended["type"] == "COMPLETED"
    assert ended["message"].startswith("6 shards verified; 1 versions collected, ")
    assert store.present([old, new]) == {new}
    found = seen(small, 6)
    assert found["run"].name == "maintain store"
    assert {task.name: (task.state.name, set(task.tags)) for task in found["tasks"]} == {
        f"verify/{name}/{shard}": ("Completed", {name, "verify"})
        for name in ("urls", "videos", "clips")
        for shard in ("00000", "00001")
    }
    card = found["artifacts"]["markdown"].data
    assert f"| clips@{new[:12]} | 2 |" in card
    assert f"- clips@{old[:12]}" in card
    assert "| tars | 2 |" in card
    assert "progress" in found["artifacts"]
    assert "table" not in found["artifacts"]
    # All that the recipe needs is still there.
    assert small.build_here().is_complete
    assert not small.executed()


def test_damage_fails_the_run_until_it_is_repaired_and_made_anew(small: Project) -> None:
    store = Store.open(str(small.folder / "store"))
    path = damage(store)
    ended = maintain(small, versions=["clips@latest"], collect=False)
    version = str(open_version(store, "clips"))
    assert ended["type"] == "FAILED"
    assert ended["message"].startswith(f"{version}/00000: damaged")
    found = seen(small, 2)
    assert found["run"].state.name == "Failed"
    assert {task.name for task in found["tasks"]} == {"verify/clips/00000", "verify/clips/00001"}
    rows = json.loads(found["artifacts"]["table"].data)
    assert {(row["version"], row["shard"], row["removed"]) for row in rows} == {
        (version, "00000", "no")
    }
    assert any("does not match its digest" in row["problem"] for row in rows)
    assert path.exists()

    ended = maintain(small, versions=["clips"], repair=True, collect=False)
    assert ended == {
        "type": "COMPLETED",
        "message": "2 shards verified; 1 damaged ones removed: build again to make them anew",
    }
    assert not path.exists()
    small.build_here()
    assert small.executed() == {"split/clips/00000": 1}
    assert maintain(small, collect=False)["message"] == "6 shards verified"


def test_a_maintenance_that_cannot_be_done_fails_in_one_line(
    small: Project, tmp_path: Path
) -> None:
    ended = maintain(small, versions=["none@latest"])
    assert ended["type"] == "FAILED"
    assert ended["message"].startswith("no dataset 'none'")
    now = int(time.time())
    record = LeaseRecord(run="collect-other", host="elsewhere", pid=7, started=now, beat=now)
    store = Store.open(str(small.folder / "store"))
    store.backend.put("leases/collect-other.json", record.as_bytes())
    ended = maintain(small, verify=False)
    assert ended["type"] == "FAILED"
    assert "is being collected by process 7 on elsewhere" in ended["message"]
    lost = maintain(small, store=str(tmp_path / "none"))
    assert lost["type"] == "FAILED"
    assert "there is no store at" in lost["message"]


def test_a_build_claims_what_it_finds_by_digest_and_no_more(small: Project) -> None:
    store = Store.open(str(small.folder / "store"))
    claims = len(list(store.backend.list("claims/")))
    assert small.build_here().is_complete
    assert len(list(store.backend.list("claims/"))) == claims
    # Back to what was made before: its shards by their action keys, its documents by their bytes.
    small.build_here("clips.seconds=3s")
    assert not small.executed()
    assert len(list(store.backend.list("claims/"))) == claims + 3
    done = small.call("plan", str(small.recipe), "--set", "clips.seconds=2s")
    assert "All shards exist" in done.stdout
    assert len(list(store.backend.list("claims/"))) == claims + 3


@pytest.mark.parametrize("how", ["signal", "Prefect"])
def test_a_maintenance_can_be_stopped(small: Project, how: str) -> None:
    store = Store.open(str(small.folder / "store"))
    now = int(time.time())
    # A collection gives runs on other hosts time to see it.
    record = LeaseRecord(run="there", host="elsewhere", pid=7, started=now, beat=now)
    store.backend.put("leases/there.json", record.as_bytes())
    process = start(small, verify=False)
    try:
        while not any(one.run.startswith("collect-") for one in live_runs(store)):
            assert process.poll() is None
            time.sleep(0.1)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            asyncio.run(_cancel(small.prefect_url, str(small.folder / "store")))
        assert end(process) == {
            "type": "CANCELLED",
            "message": "stopped; what was done stays done",
        }
    finally:
        process.kill()
        process.wait()
    assert [one.run for one in live_runs(store)] == ["there"]
    assert seen(small, 0)["run"].state.name == "Cancelled"


async def _cancel(url: str, store: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelling

    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            runs = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
            (run,) = [one for one in runs if one.parameters.get("store") == store]
            await client.set_flow_run_state(run.id, Cancelling())


def test_commands_collect_and_say_what_was_collected(small: Project) -> None:
    store = Store.open(str(small.folder / "store"))
    new, old = (ref.version[:12] for ref, _ in store.history("clips"))
    done = small.call("tag", f"clips@{old}", "v1")
    assert done.returncode == 0, done.stderr
    grow_old(store)
    assert "clips@" not in small.call("collect", "--keep-versions", "1").stdout
    assert all(store.present([ref.version]) for ref, _ in store.history("clips"))
    # The tag moves on, and the version is of no use any more.
    small.call("tag", f"clips@{new}", "v1")
    grow_old(store)
    planned = small.call("collect", "--keep-versions", "1", "--keep", "7d", "--dry-run")
    assert f"clips@{old} would be removed" in planned.stdout
    assert {line.split()[0] for line in planned.stdout.splitlines()[2:-1]} >= {"tars", "action"}
    assert f"clips@{old}" in small.call("show", f"clips@{old}").stdout
    done = small.call("collect", "--keep-versions", "1", "--keep", "7d", "--json")
    told = json.loads(done.stdout)
    assert (told["versions"], told["dry_run"]) == ([f"clips@{old}"], False)
    assert told["removed"]["tars"]["count"] == 2
    assert told["kept"]["bytes"] > 0

    lines = small.call("ls", "clips").stdout.splitlines()
    assert ["collected" in line for line in lines[1:]] == [False, True]
    listed = json.loads(small.call("ls", "clips", "--json").stdout)
    assert [one["collected"] for one in listed] == [False, True]
    for command in ("show", "urls", "verify"):
        done = small.call(command, f"clips@{old}")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: clips@{old} is no longer in {store.url}: it was")
    done = small.call("tag", f"clips@{old}", "v2")
    assert done.returncode == 1
    assert len(store.log("clips")) == 4


@pytest.mark.parametrize(
    ("keep", "message"),
    [("5m", "is too short to be safe; say 1h or more"), ("soon", "'soon' cannot be read")],
)
def test_a_time_that_is_not_safe_or_not_a_time_is_refused(
    project: Project, keep: str, message: str
) -> None:
    done = project.call("collect", "--store", str(project.folder), "--keep", keep)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --keep {keep}")
    assert message in done.stderr
