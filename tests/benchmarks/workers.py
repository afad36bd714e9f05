"""What a worker takes before its first shard: time to start, memory, and imports of each stage.

Every worker is a process of Dask's own command, one at a time. It is timed from its
start until the scheduler knows it, and then has modules imported as its first task would. PSS is
memory that counts what processes share by its share.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from tests.benchmarks.harness import show
from tests.runs.dask_processes import DaskProcesses, kill
from tests.runs.project import PLUGIN

ROUNDS = 3
BARE, FRAME = "bare Dask worker", "reelmill.tasks.frame"
STAGES = ("download", "split", "shuffle", "frames", "flow")
HEAVY = ("cv2", "av", "pyarrow", "fsspec", "prefect", "torch")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker that has imported modules: seconds, and bytes."""

    start: float
    imports: float
    rss: int
    pss: int
    heavy: tuple[str, ...]


def run() -> None:
    sys.path.append(str(PLUGIN))
    subjects = {
        BARE: (),
        FRAME: (FRAME,),
        **{f"… and stage {name}": (FRAME, f"reelmill.tasks.{name}") for name in STAGES},
    }
    measured: dict[str, list[Loaded]] = {name: [] for name in subjects}
    with (
        tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made,
        DaskProcesses(Path(made)) as dask,
    ):
        dask.scheduler()
        for _ in range(ROUNDS):
            for name, modules in subjects.items():
                measured[name].append(asyncio.run(_worker(dask, modules)))
    _show(measured)


def _show(measured: dict[str, list[Loaded]]) -> None:
    def middle(name: str, field: str) -> float:
        return statistics.median(getattr(one, field) for one in measured[name])

    rows = [
        [
            name,
            f"{middle(name, 'start'):.2f}",
            f"{middle(name, 'imports'):.2f}",
            f"{middle(name, 'rss') / 1e6:.0f}",
            f"{middle(name, 'pss') / 1e6:.0f}",
            f"{middle(name, 'pss') / middle(BARE, 'pss'):.2f}",
            ", ".join(measured[name][0].heavy),
        ]
        for name in measured
    ]
    header = ["a worker with", "start s", "imports s", "RSS MB", "PSS MB", "PSS / bare", "has"]
    show("Workers before their first shard", header, rows)


async def _worker(dask: DaskProcesses, modules: tuple[str, ...]) -> Loaded:
    from reelmill_cluster_work import load

    async with Client(dask.address, asynchronous=True) as client:
        started = time.perf_counter()
        process = dask.worker("bench", "--no-nanny")
        try:
            await client.wait_for_workers(1)
            ready = time.perf_counter()
            seconds, rss, pss, heavy = await client.submit(load, modules, HEAVY, pure=False)
        finally:
            kill(process)
        while (await client.scheduler.identity())["workers"]:
            await asyncio.sleep(0.05)
    return Loaded(ready - started, seconds, rss, pss, heavy)
