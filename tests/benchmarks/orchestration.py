"""What a task run per shard costs around the shard, against other designs.

Every subject has the same orders executed: shards of one tiny sample, whose making is measured by
itself. Each is run with few and with many shards; the difference of the two holds no start-up. CPU
is that of all processes: flow or client, scheduler, workers, and the Prefect server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from reelmill.flows.server import own_server
from reelmill.tasks.frame import execute
from tests.benchmarks.harness import Cost, Costs, measure, show
from tests.benchmarks.peers import BATCH, WORKERS
from tests.benchmarks.projects import PLUGIN, orders_of, plan, use_plugin, write_project

COMMAND = Path(sysconfig.get_path("scripts"), "reelmill")
FEW, MANY = 30, 230
FEW_PREFECT, MANY_PREFECT = 10, 70
ROUNDS = 2
SETTLE_SECONDS = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")

FLOW, DASK, BARE = "reelmill build", "bare Dask", "in a loop"
BY_PROFILE = "reelmill build, runner: prefect-dask"
RUNNER, THREADS = "Prefect's DaskTaskRunner", "Prefect's thread runner over Dask"
BATCHES = f"a task run for {BATCH} shards"

SIZES = {
    FLOW: (FEW, MANY),
    DASK: (FEW, MANY),
    BATCHES: (FEW, MANY),
    THREADS: (FEW, MANY),
    RUNNER: (FEW_PREFECT, MANY_PREFECT),
    BY_PROFILE: (FEW_PREFECT, MANY_PREFECT),
}


def run() -> None:
    use_plugin()
    bare: list[Cost] = []
    costs: dict[str, list[Cost]] = {name: [] for name in SIZES}
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as home, prefect(home) as environ:
        for _ in range(ROUNDS):
            for name, (few, many) in SIZES.items():
                less, more = (_one(name, shards, environ) for shards in (few, many))
                costs[name].append((more - less).per(many - few))
            bare.append(_bare(MANY))
    _show({name: Costs.of(of_one) for name, of_one in {**costs, BARE: bare}.items()})


def _show(costs: Mapping[str, Costs]) -> None:
    work = costs[BARE].median
    ours = costs[FLOW].median - work
    rows = []
    for name, cost in costs.items():
        one, around = cost.median, cost.median - work
        row = [f"{one.cpu * 1000:.1f}", f"{one.wall * 1000:.1f}"]
        row += (
            ["", ""]
            if name == BARE
            else [f"{around.cpu * 1000:.1f}", f"{ours.cpu / around.cpu:.2f}"]
        )
        rows.append([name, *row])
    header = ["per shard", "CPU ms", "wall ms", "CPU ms around the work", "ours / it"]
    show("Orchestration of shards that hold one tiny sample", header, rows)


@contextmanager
def prefect(home: str) -> Iterator[dict[str, str]]:
    """A Prefect server with an empty database; yields the environment of its clients."""
    with mock.patch.dict(os.environ, {"PREFECT_HOME": home}), own_server() as url:
        yield {
            **os.environ,
            "PREFECT_API_URL": url,
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join([str(PLUGIN), str(Path.cwd())]),
        }


def _one(name: str, shards: int, environ: Mapping[str, str]) -> Cost:
    """One run in a process of its own, on a fresh store whose table is ingested already."""
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        recipe = write_project(Path(made), shards, 1)
        assert len(plan(recipe).missing) == shards
        commands = {
            FLOW: [str(COMMAND), "build", str(recipe), "--json"],
            BY_PROFILE: [str(COMMAND), "build", str(recipe), "--json", "--profile", _profile(made)],
            **{
                name: ["-m", "tests.benchmarks.peers", how, str(recipe)]
                for name, how in {
                    DASK: "dask",
                    BATCHES: "batches",
                    THREADS: "threads",
                    RUNNER: "runner",
                }.items()
            },
        }
        command = [sys.executable, *commands[name]]
        before = children_cpu()
        cost = measure(lambda: _run(command, environ))
        # The server goes on taking in events for a moment.
        time.sleep(SETTLE_SECONDS)
        server = children_cpu() - before
        assert plan(recipe).is_complete
        return Cost(cost.cpu + server, cost.wall)


def _profile(folder: str) -> str:
    path = Path(folder, "profile.yaml")
    path.write_text(f"kind: local\nworkers: {WORKERS}\nrunner: prefect-dask\n")
    return str(path)


def _bare(shards: int) -> Cost:
    """A shard made in this process, without anything around it."""
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        orders = orders_of(str(write_project(Path(made), shards, 1)))
        return measure(lambda: [execute(order) for order in orders]).per(shards)


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def children_cpu() -> float:
    """CPU-seconds of the living children of this process and what they have waited for."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / _TICKS
