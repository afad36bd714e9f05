"""Other ways to have a recipe's shards made: ``python -m tests.benchmarks.peers HOW RECIPE``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from reelmill.flows.drive import order_of
from reelmill.flows.profile import dask_client, load_profile
from reelmill.tasks.frame import execute
from tests.benchmarks.projects import plan

WORKERS = 2


def orders_of(recipe: str) -> list[str]:
    """What is missing of a recipe, as workers get it."""
    planned = plan(Path(recipe))
    return [str(order_of(planned, todo, "bench")) for todo in planned.missing]


def dask(orders: list[str]) -> None:
    """On the same local cluster as a build's, with as many orders in flight."""

    async def submit_all() -> None:
        async with dask_client(load_profile("local", WORKERS)) as client:
            slots = asyncio.Semaphore(2 * WORKERS)

            async def one(order: str) -> None:
                async with slots:
                    future = client.submit(execute, order, pure=False)
                    await future
                    future.release()

            await asyncio.gather(*(one(order) for order in orders))

    asyncio.run(submit_all())


def prefect(orders: list[str]) -> None:
    """As task runs of Prefect on its own Dask runner."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect_dask import DaskTaskRunner

    cluster = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    made = task(name="shard", cache_policy=NO_CACHE, persist_result=False)(execute)

    @flow(name="peer", persist_result=False, task_runner=DaskTaskRunner(cluster_kwargs=cluster))
    def peer() -> None:
        for future in [made.submit(order) for order in orders]:
            future.result()

    peer()


if __name__ == "__main__":
    how = {"dask": dask, "prefect": prefect}[sys.argv[1]]
    how(orders_of(sys.argv[2]))
