"""What Prefect believes of runs, kept true: after a kill, an outage, or a word from the UI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, State, StateType, TaskRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from reelmill.errors import ReelmillError, StoreError
from reelmill.flows.server import PATIENCE
from reelmill.flows.shards import Outcomes
from reelmill.store import Store
from reelmill.store.lease import is_alive, leases
from reelmill.store.model import LeaseRecord
from reelmill.units import parse_seconds

PATIENCE_SECONDS = 300.0
"""How long a finished run waits for a Prefect server that went away, unless the environment says
otherwise."""

LAG_SECONDS = 10.0
"""How long a server's record of task runs may lag behind them."""

_PAGE = 200
_LIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)

log = logging.getLogger(__name__)

ServerError = (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound, OSError)
"""What a call to a Prefect server may fail with, the server being gone or having lost the run."""


async def cancel_is_asked(client: PrefectClient, flow_run: UUID) -> bool:
    """Whether somebody pressed Cancel, or set the run's state to the like."""
    state = (await client.read_flow_run(flow_run)).state
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


def is_away(error: Exception) -> bool:
    """Whether an error of Prefect's client means that the server is away, not that it refuses."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError | OSError)


async def server_answers() -> bool:
    """Whether the configured Prefect server answers now."""
    url = PREFECT_API_URL.value()
    try:
        async with httpx.AsyncClient(timeout=5) as client:
            return (await client.get(f"{url}/health")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def server_patience() -> float:
    """Seconds that a finished run waits for a Prefect server that went away.

    Raises:
        ReelmillError: the environment says something that is not a time.
    """
    told = os.environ.get(PATIENCE)
    try:
        return float(parse_seconds(told)) if told else PATIENCE_SECONDS
    except ValueError as error:
        raise ReelmillError(f"{PATIENCE}: {error}") from None


async def wait_for_server(
    patience: float = PATIENCE_SECONDS, stop: asyncio.Event | None = None
) -> bool:
    """Wait until the Prefect server answers, or until ``stop`` is set; whether it answers."""
    deadline = time.monotonic() + patience
    pause = 0.2
    while not await server_answers():
        if time.monotonic() > deadline or (stop is not None and stop.is_set()):
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 2.0)
    return True


async def settle_task_runs(client: PrefectClient, flow_run: UUID, outcomes: Outcomes) -> None:
    """Wait until the server knows of all task runs that they have ended, and tell it what became
    of those that it still takes for running.

    Task runs report by events, which a server takes in some time after they came; those sent while
    it was away may have been lost.
    """
    deadline = time.monotonic() + LAG_SECONDS
    while await _finished(client, flow_run) < len(outcomes):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    for one in await _unfinished(client, flow_run):
        kind, message = outcomes.get(one.id, (StateType.CRASHED, "never ended"))
        await _set_task_run(client, one, kind, message)


async def crash_dead_runs(store: Store) -> list[str]:
    """Mark the flow runs of a store's dead leases as crashed, with their task runs; the names of
    the flow runs that nobody had marked before.

    A flow whose process was killed cannot say so itself: Prefect would show it as running for ever.
    A lease is removed by a later call, which marks the task runs again: of the last ones the server
    may not have known yet.
    """
    marked = []
    async with get_client() as client:
        for name, record in leases(store):
            if is_alive(record) or (flow_run := _uuid(record.run)) is None:
                continue
            with contextlib.suppress(*ServerError):
                known = await client.read_flow_run(flow_run)
                state = await _crash_task_runs(client, flow_run, record)
                if known.state is not None and known.state.type in _LIVE:
                    await client.set_flow_run_state(flow_run, state, force=True)
                    marked.append(known.name)
                elif known.state is None or _age(known.state) > LAG_SECONDS:
                    with contextlib.suppress(StoreError):
                        store.backend.delete(name)
    return marked


def _age(state: State[Any]) -> float:
    return time.time() - float(state.timestamp.timestamp())


async def _crash_task_runs(
    client: PrefectClient, flow_run: UUID, record: LeaseRecord
) -> State[Any]:
    message = (
        f"its process ({record.pid} on {record.host}) died; what was finished is kept, "
        "and the next run goes on from there"
    )
    for one in await _unfinished(client, flow_run):
        await _set_task_run(client, one, StateType.CRASHED, message)
    return State(type=StateType.CRASHED, name="Crashed", message=message)


def _uuid(run: str) -> UUID | None:
    try:
        return UUID(run)
    except ValueError:
        return None


async def _finished(client: PrefectClient, flow_run: UUID) -> int:
    """How many task runs of a flow run have ended, as far as the server knows."""
    ended = {"state": {"type": {"any_": list(TERMINAL_STATES)}}}
    counted = {"flow_runs": {"id": {"any_": [str(flow_run)]}}, "task_runs": ended}
    answer = await client.request("POST", "/task_runs/count", json=counted)
    return int(answer.json())


async def _unfinished(client: PrefectClient, flow_run: UUID) -> list[TaskRun]:
    only = TaskRunFilter(state={"type": {"any_": list(_LIVE)}})
    within = FlowRunFilter(id={"any_": [flow_run]})
    found: list[TaskRun] = []
    while True:
        page = await client.read_task_runs(
            flow_run_filter=within, task_run_filter=only, limit=_PAGE, offset=len(found)
        )
        found += page
        if len(page) < _PAGE:
            return found


async def _set_task_run(client: PrefectClient, one: TaskRun, kind: StateType, message: str) -> None:
    state = State(type=kind, name=kind.value.capitalize(), message=message)
    await client.set_task_run_state(one.id, state, force=True)


@contextlib.contextmanager
def decoration() -> Iterator[None]:
    """What goes wrong with what Prefect shows must not change what becomes of the work."""
    try:
        yield
    except Exception as error:
        log.warning("Prefect could not be brought up to date: %s", error or type(error).__name__)
