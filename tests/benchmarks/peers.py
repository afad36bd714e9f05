"""Other ways to have a recipe's shards made: ``python -m tests.benchmarks.peers HOW RECIPE``."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable

from reelmill.flows.cluster import Need, open_cluster
from reelmill.flows.profile import load_profile
from reelmill.tasks.frame import execute
from tests.benchmarks.projects import orders_of

WORKERS = 2
BATCH = 10


def dask(orders: list[str]) -> None:
    """On the same local cluster as a build's, with as many orders in flight."""

    async def submit_all() -> None:
        from distributed import Client

        async with (
            open_cluster(load_profile("local", WORKERS)) as cluster,
            Client(cluster.address, asynchronous=True) as client,
        ):
            slots = asyncio.Semaphore(2 * WORKERS)

            async def one(order: str) -> None:
                async with slots:
                    future = client.submit(execute, order, pure=False)
                    await future
                    future.release()

            await asyncio.gather(*(one(order) for order in orders))

    asyncio.run(submit_all())


def runner(orders: list[str]) -> None:
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


def threads(orders: list[str]) -> None:
    """As task runs on Prefect's thread runner, each of which waits for a Dask future."""
    from distributed import Client, LocalCluster
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):

        @task(name="shard", cache_policy=NO_CACHE, persist_result=False)
        def made(order: str) -> str:
            future = client.submit(execute, order, pure=False)
            answer: str = future.result()
            future.release()
            return answer

        @flow(
            name="peer",
            persist_result=False,
            task_runner=ThreadPoolTaskRunner(max_workers=2 * WORKERS),
        )
        def peer() -> None:
            for future in [made.submit(order) for order in orders]:
                future.result()

        peer()


def batches(orders: list[str]) -> None:
    """As task runs in the flow's process, each of which has ten shards made one after another."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    @task(name="batch", cache_policy=NO_CACHE, persist_result=False)
    async def made(submit: Callable[[str], Awaitable[None]], batch: list[str]) -> None:
        for order in batch:
            await submit(order)

    @flow(name="peer", persist_result=False)
    async def peer() -> None:
        async with open_cluster(load_profile("local", WORKERS)) as cluster:
            slots = asyncio.Semaphore(2 * WORKERS)
            numbers = itertools.count()

            async def submit(order: str) -> None:
                await cluster.run(execute, order, key=str(next(numbers)), need=Need("bench"))

            async def one(batch: list[str]) -> None:
                async with slots:
                    await made(submit, batch)

            each = [orders[first : first + BATCH] for first in range(0, len(orders), BATCH)]
            await asyncio.gather(*(one(batch) for batch in each))

    asyncio.run(peer())


HOW = {"dask": dask, "runner": runner, "threads": threads, "batches": batches}

if __name__ == "__main__":
    HOW[sys.argv[1]](orders_of(sys.argv[2]))
