"""The flow that builds a recipe: one flow run per build, one task run per shard.

Task runs live in the flow's own process and wait for futures of the Dask workers, which do the
work: a visible task run costs a few milliseconds so, and nothing of Prefect is pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from reelmill.errors import ReelmillError, StageError
from reelmill.flows import drive
from reelmill.flows.cards import shown_in_prefect
from reelmill.flows.drive import Build, Stop, StoppedError, prepare
from reelmill.flows.profile import check_resources, dask_client, load_profile
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.store.lease import lease
from reelmill.tasks import Stages, get_stage
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source
from reelmill.tasks.planner import Todo

RETRIES = 1
RETRY_SECONDS = 2

Watch = Callable[[Build], contextlib.AbstractContextManager[None]]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextlib.contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Let ``watch`` (a context manager that gets the build) follow the builds of the body."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


class PoisonError(StageError):
    """A shard under which workers died."""


async def _may_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    # Another try of a shard that killed its workers would kill as many again.
    return not isinstance(state.data, PoisonError) and "PoisonError" not in str(state.message)


@task(
    name="shard",
    task_run_name="{label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_pass,
    log_prints=False,
)
async def make_shard(label: str, work: Callable[[], Awaitable[str]]) -> str:
    """One shard: hand the order to a worker and wait for its result."""
    return await work()


@cache
def _tagged(dataset: str, stage: str) -> Task[Any, Any]:
    return make_shard.with_options(tags=[dataset, stage])


def _run_name() -> str:
    return Path(flow_run.parameters["recipe"]).stem


@flow(name="build", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
async def build_flow(
    recipe: str,
    only: list[str] | None = None,
    overrides: list[str] | None = None,
    profile: str = "local",
    workers: int | None = None,
) -> Build | State[Any]:
    """Make every shard of a recipe that does not exist yet, and commit the versions.

    Args:
        recipe: path of the recipe file.
        only: datasets to build, with what they need; all of them if empty.
        overrides: changed values, such as `clips.max_seconds=8`.
        profile: where the workers are: a name, or the path of a YAML file.
        workers: worker processes of a local cluster, instead of one per core.
    """
    logger = get_run_logger()
    run = str(flow_run.id)
    where = load_profile(profile, workers)
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides or ())
    store = await asyncio.to_thread(Store.open, loaded.store, create=True)
    stop = Stop()
    with lease(store, run), _stopping(stop):
        build = await asyncio.to_thread(prepare, loaded, store, only=only or (), run=run)
        logger.info(
            "%d shards are there, %d are ready to be made",
            sum(progress.have for progress in build.progress.values()),
            len(build.missing),
        )
        await asyncio.to_thread(drive.commit_versions, build, run)
        watch = _watch.get()
        outcome: State[Any] | None = None
        async with shown_in_prefect(build):
            try:
                with watch(build) if watch else contextlib.nullcontext():
                    await _make(build, where, run, stop)
            except StoppedError as error:
                outcome = Cancelled(message=str(error), data=error)
            except ReelmillError as error:
                outcome = Failed(message=str(error), data=error)
    return outcome or Completed(message=_summary(build), data=build)


async def _make(build: Build, profile: Any, run: str, stop: Stop) -> None:
    needs = [
        (name, get_stage(progress.stage).resources)
        for name, progress in build.progress.items()
        if progress.have != progress.expected
    ]
    async with dask_client(profile, _most(build)) as client:
        threads = await check_resources(client, needs)
        logger = get_run_logger()
        logger.info("%d worker threads; Dask's dashboard: %s", threads, client.dashboard_link)

        async def submit(todo: Todo, order: str) -> str:
            attempts = 0

            async def work() -> str:
                nonlocal attempts
                attempts += 1
                return await _on_worker(client, todo, order, f"{run}-{attempts}")

            result: str = await _tagged(todo.dataset, todo.action.stage)(todo.label, work)
            return result

        await drive.drive(build, submit, window=profile.window or 2 * threads, run=run, stop=stop)


async def _on_worker(client: Any, todo: Todo, order: str, attempt: str) -> str:
    from distributed.scheduler import KilledWorker

    resources = get_stage(todo.action.stage).resources
    future = client.submit(
        execute,
        order,
        key=f"{todo.label}-{todo.action.key[:12]}-{attempt}",
        pure=False,
        resources=dict(resources) or None,
        priority=todo.depth,
    )
    try:
        answer: str = await future
    except KilledWorker as error:
        raise PoisonError(
            f"{error.allowed_failures + 1} workers died while making it (out of memory, or a "
            "crash); nothing of it was committed"
        ) from None
    finally:
        # An unreleased future keeps its result on a worker, and would have it made again if that
        # worker died.
        future.release()
    return answer


def _most(build: Build) -> int | None:
    """Shards that can ever be in flight at once, where that is known: more workers would idle."""
    expected = [progress.expected for progress in build.progress.values()]
    known = [count for count in expected if count is not None]
    return max(known) if len(known) == len(expected) else None


@contextlib.contextmanager
def _stopping(stop: Stop) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the build to stop, the second one ends it at once."""
    loop = asyncio.get_running_loop()
    here = asyncio.current_task()

    def ask(number: int) -> None:
        if stop.is_set() and here is not None:
            here.cancel()
        stop.number = number
        stop.set()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may handle signals; elsewhere whoever runs the flow does.
        with contextlib.suppress(RuntimeError, ValueError):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, ask, number)
            handled.append((number, before))
    try:
        yield
    finally:
        for number, before in handled:
            loop.remove_signal_handler(number)
            signal.signal(number, before)


def _summary(build: Build) -> str:
    made = sum(progress.made for progress in build.progress.values())
    reused = sum(progress.reused for progress in build.progress.values())
    return f"{made} shards made, {reused} were there already"
