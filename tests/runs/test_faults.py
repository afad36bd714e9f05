"""What goes wrong on Prefect's side and in the store: nothing is lost, and the UI tells the truth.

Every test ends with the versions of a build that nothing disturbed, with no action made twice that
was committed, and with what Prefect shows of the runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from reelmill.flows.server import free_port, start_server, wait_until_up
from reelmill.tasks.frame import TRACE
from tests.runs.dask_processes import DaskProcesses, Wire, until
from tests.runs.project import Project
from tests.s3_server import STORM, Delay, Fault, Faults

SHARDS = 4
RECIPE = """
store: {store}
sources:
  urls: {{path: urls.csv, rows_per_shard: 1}}
datasets:
  rows: {{stage: rows, from: urls}}
  slow: {{stage: trouble, from: rows, kind: slow, seconds: {seconds}}}
  last: {{stage: {last}, from: slow{more}}}
"""


def start(project: Project, *more: str) -> subprocess.Popen[str]:
    return project.start("build", str(project.recipe), "--workers", "1", *more)


def write(
    project: Project,
    seconds: float = 0.0,
    *,
    store: str = "./store",
    last: str = "greedy",
    more: str = "",
    shards: int = SHARDS,
) -> Project:
    """A recipe of three datasets without media, whose shards take so many seconds."""
    table = [f"https://rows.invalid/{number}.mp4" for number in range(shards)]
    project.write(RECIPE.format(store=store, seconds=seconds, last=last, more=more), table)
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return dict(write(Project(tmp_path_factory.mktemp("undisturbed"), "")).build_here().versions)


@dataclass(frozen=True)
class Run:
    """What Prefect's UI shows of a flow run: its state, its task runs' states, its artifacts."""

    state: str
    message: str
    tasks: dict[str, list[str]]
    artifacts: set[str]

    @property
    def states(self) -> Counter[str]:
        return Counter(state for states in self.tasks.values() for state in states)


def runs(project: Project) -> list[Run]:
    """The flow runs of a project, oldest first, when Prefect has taken in all that it was told."""
    deadline = time.monotonic() + 20
    while True:
        found = [_run(project, run) for run in _flow_runs(project)]
        moving = {"Pending", "Running", "Cancelling", "AwaitingRetry", "Retrying"}
        if not any(moving & {one.state, *one.states} for one in found):
            return found
        assert time.monotonic() < deadline, f"Prefect still shows {found}"
        time.sleep(0.2)


def _flow_runs(project: Project) -> list[dict[str, Any]]:
    # Others have theirs on the same server, and it tells of no more than some hundred.
    found = _post(project, "flow_runs", {"sort": "START_TIME_DESC"})[::-1]
    return [run for run in found if run["parameters"].get("recipe") == str(project.recipe)]


def _run(project: Project, run: dict[str, Any]) -> Run:
    only = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks: dict[str, list[str]] = {}
    for task in _post(project, "task_runs", {**only, "sort": "EXPECTED_START_TIME_ASC"}):
        tasks.setdefault(task["name"], []).append(task["state"]["name"])
    artifacts = {artifact["key"] for artifact in _post(project, "artifacts", only)}
    state = run["state"]
    return Run(state["name"], state["message"] or "", tasks, artifacts)


def _post(project: Project, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{project.prefect_url}/{kind}/filter", json=body, timeout=20)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def card(project: Project) -> str:
    """The markdown of a project's only run."""
    (run,) = _flow_runs(project)
    only = {
        "flow_runs": {"id": {"any_": [run["id"]]}},
        "artifacts": {"type": {"any_": ["markdown"]}},
    }
    (artifact,) = _post(project, "artifacts", only)
    return str(artifact["data"])


ARTIFACTS = {"progress-rows", "progress-slow", "progress-last", "shards", "datasets"}


def assert_shown_as_completed(run: Run, shards: int = 3 * SHARDS) -> None:
    assert run.state == "Completed"
    assert run.states == {"Completed": shards}
    assert run.artifacts == ARTIFACTS


def wait_for(project: Project, process: subprocess.Popen[str], shards: int) -> None:
    """Wait until so many shards were made."""
    deadline = time.monotonic() + 90
    while not project.trace.exists() or len(project.trace.read_text().splitlines()) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(
    project: Project, undisturbed: dict[str, str], done: Counter[str], shards: int = 3 * SHARDS
) -> None:
    """Build again: only what is missing is made, and the versions are what they should be."""
    assert dict(project.build_here().versions) == undisturbed
    made = done + project.executed()
    assert set(made.values()) == {1}, "made twice"
    assert len(made) == shards


# The flow's process


def kill(project: Project, process: subprocess.Popen[str]) -> None:
    process.kill()


def cancel(project: Project, process: subprocess.Popen[str]) -> None:
    """Press Cancel in the UI."""
    set_state(project, "CANCELLING", force=False)


def set_cancelled(project: Project, process: subprocess.Popen[str]) -> None:
    """Set the state to Cancelled in the UI."""
    set_state(project, "CANCELLED", force=True)


def set_state(project: Project, state: str, *, force: bool) -> None:
    run = _flow_runs(project)[-1]["id"]
    answer = httpx.post(
        f"{project.prefect_url}/flow_runs/{run}/set_state",
        json={"state": {"type": state, "name": state.capitalize()}, "force": force},
    )
    assert answer.json()["status"] == "ACCEPT"


def terminate(project: Project, process: subprocess.Popen[str]) -> None:
    process.terminate()


def terminate_twice(project: Project, process: subprocess.Popen[str]) -> None:
    process.terminate()
    time.sleep(0.2)
    process.terminate()


def test_whatever_ends_the_flow_the_next_one_goes_on_and_prefect_shows_what_happened(
    project: Project, make_project: Callable[[], Project]
) -> None:
    shards = 32
    undisturbed = write(make_project(), shards=shards).build_here().versions
    write(project, 1.0, shards=shards)
    done: Counter[str] = Counter()
    ends: list[tuple[Callable[[Project, subprocess.Popen[str]], None], int]] = [
        (kill, -signal.SIGKILL),
        (cancel, 128 + signal.SIGINT),
        (terminate, 128 + signal.SIGTERM),
        (set_cancelled, 128 + signal.SIGINT),
        (terminate_twice, 128 + signal.SIGINT),
    ]
    for end, code in ends:
        process = start(project)
        wait_for(project, process, 2)
        end(project, process)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        done += project.executed()
    write(project, shards=shards)
    assert project.build("--workers", "1") == undisturbed
    finish(project, undisturbed, done + project.executed(), 3 * shards)
    killed, *stopped, last = runs(project)
    assert killed.state == "Crashed"
    assert "died; what was finished is kept" in killed.message
    assert {"Crashed"} <= set(killed.states) <= {"Completed", "Crashed"}
    assert [run.state for run in stopped] == ["Cancelled", "Cancelled", "Cancelled", "Crashed"]
    for run in stopped:
        assert set(run.states) <= {"Completed", "Cancelled"}
        assert run.artifacts == ARTIFACTS
    assert last.state == "Completed"
    assert set(last.states) == {"Completed"}
    assert last.artifacts == ARTIFACTS


# Prefect's server


@dataclass
class Server:
    """A Prefect server at one address, that can go away and come back."""

    home: Path
    blank: Path
    url: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.url = f"http://127.0.0.1:{free_port()}/api"
        self.wipe()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def is_there(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2].partition("/")[0])
        log = self.home / "server.log"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_HOME", str(self.home))
            # It ends with its standard input, and so never outlives the tests.
            self._process = start_server(port, log)
        wait_until_up(self._process, self.url, log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.blank, self.home)


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory, blank_prefect: Path) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("prefect") / "home", blank_prefect) as server:
        yield server


@pytest.fixture
def server(_server: Server) -> Server:
    if not _server.is_there:
        _server.start()
    return _server


@pytest.fixture
def apart(tmp_path: Path, server: Server) -> Project:
    return write(Project(tmp_path, server.url), 1.0)


def test_a_build_goes_on_while_the_server_is_away_and_reports_when_it_is_back(
    apart: Project, server: Server, undisturbed: dict[str, str]
) -> None:
    process = start(apart)
    wait_for(apart, process, 2)
    server.kill()
    # Nothing waits for the server: all the rest is made while it is away.
    wait_for(apart, process, 3 * SHARDS)
    time.sleep(2)
    assert process.poll() is None
    server.start()
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "ERROR" not in err
    assert "no record" not in err
    finish(apart, undisturbed, apart.executed())
    (run,) = runs(apart)
    assert_shown_as_completed(run)


def test_a_server_whose_database_is_wiped_costs_only_its_record(
    apart: Project, server: Server, undisturbed: dict[str, str]
) -> None:
    process = start(apart)
    wait_for(apart, process, 2)
    server.kill()
    server.wipe()
    server.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = [line for line in err.splitlines() if "no record" in line]
    assert told == ["Prefect has no record of how this run ended: its server has lost it"]
    assert "Traceback" not in err
    finish(apart, undisturbed, apart.executed())
    assert runs(apart) == []
    # The server took nothing that does not belong to a run of its own, and goes on to work.
    assert _post(apart, "task_runs", {}) == []


def test_a_server_that_is_gone_for_good_does_not_hold_up_a_finished_build(
    apart: Project, server: Server, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELMILL_SERVER_PATIENCE", "2s")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    process = start(apart)
    wait_for(apart, process, 2)
    server.kill()
    wait_for(apart, process, 3 * SHARDS)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = [line for line in err.splitlines() if "no record" in line]
    assert told == ["Prefect has no record of how this run ended: its server does not answer"]
    assert "Traceback" not in err
    assert "ERROR" not in err
    finish(apart, undisturbed, apart.executed())


def test_a_server_of_the_runs_own_that_is_killed_is_not_waited_for(
    tmp_path: Path,
    blank_prefect: Path,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(shutil.copytree(blank_prefect, tmp_path / "home")))
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    project = write(Project(tmp_path, ""), 0.5)
    process = start(project)
    wait_for(project, process, 2)
    (own,) = (
        child
        for child in psutil.Process(process.pid).children()
        if "reelmill.flows.server" in child.cmdline()
    )
    own.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Prefect has no record of how this run ended: its server does not answer" in err
    assert "Traceback" not in err
    finish(project, undisturbed, project.executed())


# A shard that kills


def test_a_poison_shard_is_left_out_where_the_recipe_allows_holes(
    project: Project, undisturbed: dict[str, str]
) -> None:
    # Another salt, since the same stage has made the same of the same already.
    other = ", salt: other, max_holes: 50%"
    write(project, last="trouble", more=f"{other}, kind: die, shard: '00001'")
    done = project.run("build", str(project.recipe), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "could not be made: last/00001: 4 workers died while making it" in done.stdout
    executed = project.executed()
    assert "trouble/last/00001" not in executed
    shown = project.call("show", "last", "--store", str(project.folder / "store"))
    assert "00001" in shown.stdout
    assert "workers died while making it" in shown.stdout
    (run,) = runs(project)
    assert run.state == "Completed"
    assert run.message.endswith("1 shards could not be made, which the recipe allows")
    assert run.tasks.pop("trouble/last/00001") == ["Failed"]
    assert set(run.states) == {"Completed"}
    assert "- last/00001: 4 workers died" in card(project)
    write(project, last="trouble", more=other)
    finish(project, undisturbed, executed)


def test_what_an_error_says_is_shown_as_it_is_and_breaks_nothing(
    project: Project, undisturbed: dict[str, str]
) -> None:
    more = ", salt: other, max_holes: 50%, kind: garble, shard: '00001'"
    write(project, last="trouble", more=more)
    done = project.run("build", str(project.recipe), "--workers", "1")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "could not be made" in line)
    assert r"ValueError: caf\udce9 # owned \x1b[2J\x00<img src=x>" in line
    assert len(line) < 600
    (run,) = runs(project)
    assert run.state == "Completed"
    assert run.tasks.pop("trouble/last/00001") == ["Failed"]
    assert set(run.states) == {"Completed"}
    assert run.artifacts == ARTIFACTS
    shown = card(project)
    assert r"\<img src=x\> \!\[t\]\(http" in shown
    assert "<img src=x>" not in shown


def test_a_shard_that_takes_too_much_memory_fails_alone(
    project: Project, undisturbed: dict[str, str]
) -> None:
    small = project.folder / "small.yaml"
    small.write_text("kind: local\nworkers: 1\nmemory: 400MB\n")
    write(project, more=", shard: '00001', bytes: 2000000000")
    done = project.run("build", str(project.recipe), "--profile", str(small))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: greedy/last/00001: 4 workers died while making it (out of mem")
    (run,) = runs(project)
    assert run.state == "Failed"
    assert "greedy/last/00001" in run.message
    assert run.tasks.pop("greedy/last/00001") == ["Failed"]
    assert run.states == {"Completed": 3 * SHARDS - 1}
    assert not (project.folder / "store" / "refs" / "last").exists()
    write(project)
    finish(project, undisturbed, project.executed())


# The store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a disk is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def remount(disk: Path, how: str) -> None:
    # It is refused for as long as somebody is writing.
    deadline = time.monotonic() + 30
    while subprocess.run(
        ["mount", "-o", f"remount,{how}", str(disk)], capture_output=True
    ).returncode:
        assert time.monotonic() < deadline


def test_a_store_that_is_read_only_for_a_while_is_waited_for(
    project: Project, disk: Path, undisturbed: dict[str, str]
) -> None:
    write(project, 0.5, store=str(disk / "store"))
    process = start(project)
    wait_for(project, process, 3)
    remount(disk, "ro")
    time.sleep(5)
    remount(disk, "rw")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    (run,) = runs(project)
    assert run.state == "Completed"
    assert {states[-1] for states in run.tasks.values()} == {"Completed"}
    assert run.states["Failed"] >= 1
    finish(project, undisturbed, project.executed())


def test_a_store_that_fails_and_then_is_unreachable_is_waited_for(
    project: Project, s3_url: str, s3_faults: Faults, undisturbed: dict[str, str]
) -> None:
    write(project, 0.5, store=s3_url)
    process = start(project)
    wait_for(project, process, 2)
    s3_faults.storm(0.3, seed=1, kinds=[*STORM, Delay(1.0)])
    time.sleep(2)
    s3_faults.storm(1.0, seed=2, kinds=[Fault.RESET_BEFORE])
    time.sleep(10)
    struck = s3_faults.struck()
    s3_faults.clear()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert struck[Fault.RESET_BEFORE] > 0
    assert len(struck) > 1
    (run,) = runs(project)
    assert_shown_as_completed(run)
    finish(project, undisturbed, project.executed())


def test_a_worker_whose_disk_is_full_leaves_its_shards_to_others(
    project: Project,
    disk: Path,
    s3_url: str,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One page is left: enough to be taken for a folder of temporary files.
    (disk / "full").write_bytes(bytes((10 << 20) - 4096))
    write(project, 0.2, store=s3_url)
    profile = project.folder / "cluster.yaml"
    with DaskProcesses(project.folder) as dask:
        profile.write_text(f"kind: address\naddress: {dask.address}\n")
        monkeypatch.setenv(TRACE, str(project.trace))
        dask.scheduler()
        dask.worker("healthy")
        with monkeypatch.context() as patch:
            patch.setenv("TMPDIR", str(disk))
            dask.worker("full")
        done = project.run("build", str(project.recipe), "--profile", str(profile))
    assert done.returncode == 0, done.stderr
    (run,) = runs(project)
    assert_shown_as_completed(run)
    (flow_run,) = _flow_runs(project)
    only = {"logs": {"flow_run_id": {"any_": [flow_run["id"]]}}}
    log = "\n".join(line["message"] for line in _post(project, "logs", only))
    assert "No space left on device" in log
    finish(project, undisturbed, project.executed())


# The cluster


def executions(project: Project) -> list[dict[str, Any]]:
    if not project.trace.exists():
        return []
    return [json.loads(line) for line in project.trace.read_text().splitlines()]


def assert_nothing_made_again(project: Project) -> None:
    """What one worker had committed, no other began to make. One that was cut off may have been at
    it still."""
    ends: dict[str, float] = {}
    for one in sorted(executions(project), key=lambda one: float(one["started"])):
        assert one["started"] < ends.get(one["label"], float("inf")), one["label"]
        ends.setdefault(one["label"], one["started"] + one["seconds"])


def test_workers_and_schedulers_come_and_go_under_a_build(
    project: Project, make_project: Callable[[], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = 16
    undisturbed = dict(write(make_project(), shards=shards).build_here().versions)
    write(project, 1.0, shards=shards)
    profile = project.folder / "cluster.yaml"
    monkeypatch.setenv(TRACE, str(project.trace))

    async def has_worked(worker: subprocess.Popen[bytes]) -> None:
        await until(lambda: any(one["pid"] == worker.pid for one in executions(project)), 90)

    async def disturb(dask: DaskProcesses) -> subprocess.Popen[str]:
        impatient = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}
        scheduler = dask.scheduler(**impatient)
        async with Wire(dask.port).open() as wire:
            far = dask.worker("far", "--no-nanny", to=f"tcp://127.0.0.1:{wire.port}")
            build = project.start("build", str(project.recipe), "--profile", str(profile))
            await has_worked(far)
            frozen = dask.worker("frozen", "--no-nanny")
            await has_worked(frozen)
            wire.cut()
            frozen.send_signal(signal.SIGSTOP)
            doomed = dask.worker("doomed", "--no-nanny")
            await has_worked(doomed)
            doomed.kill()
            late = dask.worker("late", "--no-nanny")
            await has_worked(late)
            scheduler.kill()
            dask.scheduler(**impatient)
            last = dask.worker("last", "--no-nanny")
            await has_worked(last)
            return build

    with DaskProcesses(project.folder) as dask:
        profile.write_text(f"kind: address\naddress: {dask.address}\n")
        build = asyncio.run(disturb(dask))
        _, err = build.communicate(timeout=120)
    assert build.returncode == 0, err
    assert "Traceback" not in err
    assert_nothing_made_again(project)
    (run,) = runs(project)
    assert_shown_as_completed(run, 3 * shards)
    finish(project, undisturbed, Counter(set(project.executed())), 3 * shards)


def test_a_scheduler_that_is_gone_makes_no_holes(
    project: Project, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, 1.0, more=", max_holes: 100%")
    project.recipe.write_text(project.recipe.read_text().replace("1.0}", "1.0, max_holes: 100%}"))
    profile = project.folder / "cluster.yaml"
    monkeypatch.setenv(TRACE, str(project.trace))
    with DaskProcesses(project.folder) as dask:
        profile.write_text(f"kind: address\naddress: {dask.address}\npatience: 2s\n")
        scheduler = dask.scheduler()
        dask.worker("one", "--no-nanny")
        process = project.start("build", str(project.recipe), "--profile", str(profile))
        wait_for(project, process, 3)
        scheduler.kill()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "went away and did not come back for 2s" in err.strip().splitlines()[-1]
    (run,) = runs(project)
    assert run.state == "Failed"
    refs = project.folder / "store" / "refs"
    assert not (refs / "slow").exists()
    assert not (refs / "last").exists()
    finish(project, undisturbed, project.executed())


# Several builds at once


def test_builds_at_the_same_time_leave_shards_to_each_other(
    project: Project, undisturbed: dict[str, str]
) -> None:
    write(project, 0.5)
    other = project.folder / "other.yaml"
    other.write_text(project.recipe.read_text().replace("  last:", "  more:"))
    recipes = [project.recipe, project.recipe, other, other]
    builds = [project.start("build", str(r), "--workers", "1", "--json") for r in recipes]
    for process in builds:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        versions = {name: told["version"] for name, told in json.loads(out)["datasets"].items()}
        assert list(versions.values()) == list(undisturbed.values())
    assert set(project.executed().values()) == {1}
    assert not list((project.folder / "store").glob("reapart/*"))
