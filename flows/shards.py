"""Visible work: a Prefect task run for each shard, whose work is done on a Dask worker.

Task runs live in the flow's own process and wait there for the worker: a visible task run costs a
few milliseconds so, nothing of Prefect is pickled, and no shard waits for Prefect's server. A
profile may ask for Prefect's own Dask runner instead, which has the task runs on the workers, at
several times the cost.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType, TaskRun, TaskRunPolicy
from prefect.context import FlowRunContext
from prefect.events import Event
from prefect.logging.loggers import task_run_logger
from prefect.states import AwaitingRetry, Cancelled, Completed, Failed, Retrying, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from reelmill.errors import PoisonError, StageError, told
from reelmill.flows.cluster import Cluster, Need
from reelmill.flows.profile import Profile

RETRIES = 1
RETRY_SECONDS = 2

_MOST_BLOCKED = 1024

_TASK = "shard"

Work = Callable[[str], str]
"""A function of an imported module: an order goes to the worker as text, a text comes back."""

Outcomes = dict[UUID, tuple[StateType, str]]
"""What became of each task run, and why, so that Prefect can be told again what it missed."""


class Submit(Protocol):
    """Has an order worked on, as a task run called ``label``; what the worker answers."""

    async def __call__(
        self,
        label: str,
        order: str,
        *,
        key: str,
        need: Need,
        tags: tuple[str, ...],
        priority: int = 0,
    ) -> str: ...


class _TaskRun:
    """A task run of this flow run, of which Prefect's server learns by events alone.

    Prefect's own engine asks the server whether a task run with tags may start: shards would wait
    for as long as the server is away. It also takes twice as long.
    """

    def __init__(self, label: str, tags: tuple[str, ...]) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.id = uuid4()
        self._run = TaskRun(
            id=self.id,
            name=label,
            flow_run_id=context.flow_run.id,
            flow_run_run_count=context.flow_run.run_count,
            task_key=_TASK,
            dynamic_key=str(self.id),
            tags=list(dict.fromkeys(tags)),
            empirical_policy=TaskRunPolicy(retries=RETRIES, retry_delay=RETRY_SECONDS),
        )
        self._told: Event | None = None

    def enter(self, state: State[Any]) -> None:
        """Say that the task run is in another state now."""
        run, before = self._run, self._run.state
        run.expected_start_time = run.expected_start_time or state.timestamp
        if before is not None and before.is_running():
            run.total_run_time += state.timestamp - before.timestamp
        if state.is_running():
            run.run_count += 1
            run.start_time = run.start_time or state.timestamp
        if state.is_final():
            run.end_time = state.timestamp
        run.state = state
        self._told = emit_task_run_state_change_event(run, before, state, follows=self._told)

    def warn(self, message: str, *args: object) -> None:
        """Write to the task run's log."""
        task_run_logger(self._run, task_name=_TASK).warning(message, *args)


@asynccontextmanager
async def visible_work(
    cluster: Cluster, profile: Profile, function: Work, *, run: str, outcomes: Outcomes
) -> AsyncIterator[Submit]:
    """Yield what has ``function`` called on the cluster's workers, one task run a call.

    Args:
        run: tells Dask's tasks from those of other runs on the same cluster.
        outcomes: is filled with what became of each task run.
    """
    if profile.runner == "prefect-dask":
        from prefect_dask import DaskTaskRunner

        logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)
        # Its calls block, so they get threads of their own: the scheduler may live in this loop.
        with ThreadPoolExecutor(_MOST_BLOCKED, "prefect-dask") as threads:
            runner = DaskTaskRunner(
                address=cluster.address, client_kwargs={"security": cluster.security}
            )
            runner.__enter__()
            try:
                yield _PrefectDask(runner, threads, function)
            finally:
                await asyncio.to_thread(runner.__exit__, None, None, None)
    else:
        yield _InFlow(cluster, function, run, outcomes)


class _InFlow:
    def __init__(self, cluster: Cluster, function: Work, run: str, outcomes: Outcomes) -> None:
        self._cluster = cluster
        self._function = function
        self._run = run
        self._outcomes = outcomes

    async def __call__(
        self,
        label: str,
        order: str,
        *,
        key: str,
        need: Need,
        tags: tuple[str, ...],
        priority: int = 0,
    ) -> str:
        shown = _TaskRun(label, tags)
        shown.enter(Running())
        try:
            answer = await self._try(shown, label, order, f"{label}-{key[:12]}", need, priority)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            self._end(shown, Cancelled() if cancelled else Failed(message=told(error)))
            raise
        self._end(shown, Completed())
        return answer

    async def _try(
        self, shown: _TaskRun, label: str, order: str, key: str, need: Need, priority: int
    ) -> str:
        avoid = None
        for attempt in itertools.count(1):
            name = f"{key}-{self._run}-{attempt}"
            try:
                answer: str = await self._cluster.run(
                    self._function, order, key=name, need=need, priority=priority, avoid=avoid
                )
            except Exception as error:
                # A worker whose disk is full is quick to fail, and so the first to be free again.
                avoid = getattr(error, "worker", None)
                shown.warn("%s failed on %s: %s", label, avoid or "a worker", told(error))
                # Another try of a shard that killed its workers would kill as many again.
                if attempt > RETRIES or isinstance(error, PoisonError):
                    raise
                again = datetime.now(UTC) + timedelta(seconds=RETRY_SECONDS)
                shown.enter(AwaitingRetry(scheduled_time=again, message=told(error)))
            else:
                return answer
            await asyncio.sleep(RETRY_SECONDS)
            shown.enter(Retrying())
        raise AssertionError("unreachable")

    def _end(self, shown: _TaskRun, state: State[Any]) -> None:
        shown.enter(state)
        self._outcomes[shown.id] = state.type, state.message or ""


class _PrefectDask:
    """Prefect's own runner: the task runs are on the workers, which talk to Prefect's server."""

    def __init__(self, runner: Any, threads: Executor, function: Work) -> None:
        self._runner = runner
        self._threads = threads
        self._task = task(
            function,
            name=_TASK,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=RETRY_SECONDS,
            log_prints=False,
        )

    async def __call__(
        self,
        label: str,
        order: str,
        *,
        key: str,
        need: Need,
        tags: tuple[str, ...],
        priority: int = 0,
    ) -> str:
        import dask

        def submit_and_wait() -> str:
            one = self._task.with_options(task_run_name=label, tags=tags)
            with dask.annotate(resources=dict(need.resources), priority=priority):
                answer: str = self._runner.submit(one, {"order": order}).result()
            return answer

        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, context.run, submit_and_wait
            )
        except Exception as error:
            raise StageError(told(error)) from error
