"""Serving recipes: deployments, their schedules and their runs, for people without a work pool."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    StateType,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, PREFECT_RUNNER_POLL_FREQUENCY
from prefect.states import Cancelled
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError
from rich.console import Console

from reelmill.errors import ReelmillError, told
from reelmill.flows.build import build_flow, stopping
from reelmill.flows.derive import derive_flow
from reelmill.flows.drive import GRACE_SECONDS, Stop, or_stop
from reelmill.flows.maintain import maintain_flow
from reelmill.flows.metrics import Metrics, serve_metrics
from reelmill.flows.prefect_state import crash_dead_runs, decoration, server_answers
from reelmill.flows.profile import load_profile
from reelmill.flows.served import PARENT
from reelmill.flows.server import prefect_api
from reelmill.recipe import load_recipe, recipe_name
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source
from reelmill.units import format_seconds

TAG = "reelmill"
"""What all deployments of Reelmill are tagged with, and so their runs."""

HEARTBEAT_SECONDS = 30
HOUSEKEEPING_SECONDS = 30.0

GOING_ON = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]

SHORTEST_EVERY = 10
"""Seconds between two builds by schedule."""

POLL_SECONDS = 5.0
"""How long a run that somebody asks for waits at most."""

STOP_SECONDS = GRACE_SECONDS + 15
"""How long runs may take to stop: for the shards that are being made, and to tell Prefect."""

PATIENCE = 120.0
"""How long a Prefect server of our own may not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What is served: recipes and stores, by the names of their deployments, and how.

    ``schedule`` says when the recipes are built, ``limit`` how many runs go on at a time.
    """

    recipes: dict[str, str]
    stores: dict[str, str]
    profile: str
    workers: int | None
    schedule: CronSchedule | IntervalSchedule | None
    limit: int


def run_serve(
    recipes: Sequence[str],
    *,
    store: str | None,
    every: timedelta | None,
    cron: str | None,
    profile: str,
    workers: int | None,
    metrics: str | None,
    port: int,
    limit: int,
    console: Console,
) -> None:
    """Serve recipes, and the stores that they write to, until SIGINT or SIGTERM.

    Args:
        store: one more store.
        every: how often the recipes are built, or
        cron: when, in UTC.
        metrics: where Prometheus finds metrics: a port of this machine, or a host and a port.
        port: where a Prefect server of our own listens, if none is configured.
        limit: how many runs go on at a time.

    Raises:
        ReelmillError: a recipe, the profile or the schedule cannot be used, a port is taken, or
            there is no Prefect server.
    """
    load_profile(profile, workers)
    if profile.endswith((".yaml", ".yml")):
        profile = str(Path(profile).absolute())
    schedule = _schedule(every, cron)
    served = Served(*_find(recipes, store), profile, workers, schedule, limit)
    shared = PREFECT_API_URL.value() is not None
    if store is not None and not Store.is_at(_absolute(store)):
        console.print(
            f"there is no store at {_absolute(store)} yet; a build makes one", markup=False
        )
    with contextlib.ExitStack() as stack:
        counting = stack.enter_context(serve_metrics(metrics)) if metrics else None
        url = stack.enter_context(prefect_api(port, schedules=True))
        console.print(f"Prefect: {url.removesuffix('/api')}", markup=False)
        asyncio.run(_serve(served, counting, console, patience=math.inf if shared else PATIENCE))


def _schedule(every: timedelta | None, cron: str | None) -> CronSchedule | IntervalSchedule | None:
    if every is not None and cron is not None:
        raise ReelmillError("give --every or --cron, not both")
    if every is not None and every.total_seconds() < SHORTEST_EVERY:
        given = format_seconds(Decimal(str(every.total_seconds())))
        raise ReelmillError(f"--every {given}: say {SHORTEST_EVERY}s or more")
    try:
        if cron is not None:
            return CronSchedule(cron=cron, timezone="UTC")
        return None if every is None else IntervalSchedule(interval=every)
    except ValidationError as error:
        wrong = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ReelmillError(f"--cron '{cron}': {wrong}") from None


def _find(recipes: Sequence[str], store: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """The absolute paths of recipes and the stores, by the names of their deployments."""
    found: dict[str, str] = {}
    stores = [] if store is None else [_absolute(store)]
    for recipe in recipes:
        path = Path(recipe).absolute()
        stores.append(load_recipe(path, stages=Stages(), source_model=Source).store)
        _add(found, _name(recipe_name(path)), str(path))
    if not stores:
        raise ReelmillError("nothing to serve: give a recipe, or a store with --store")
    named: dict[str, str] = {}
    for url in stores:
        _add(named, _name(*url.split("/")[-2:]), url)
    return found, named


def _absolute(store: str) -> str:
    return store if "://" in store else str(Path(store).absolute())


def _name(*parts: str) -> str:
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)))


def _add(found: dict[str, str], name: str, value: str) -> None:
    if found.setdefault(name, value) != value:
        raise ReelmillError(
            f"{value} and {found[name]} would both be served as '{name}'; rename one of them, or "
            "serve them on different Prefect servers"
        )


def deployments(served: Served) -> list[RunnerDeployment]:
    """A deployment for every recipe, and those for every store."""
    where = {"profile": served.profile, "workers": served.workers}
    return [
        *(
            # What the run in progress does not make, the one after it does.
            _deployment(
                build_flow,
                name,
                {"recipe": recipe, **where},
                ConcurrencyLimitStrategy.CANCEL_NEW,
                schedule=served.schedule,
            )
            for name, recipe in served.recipes.items()
        ),
        *(
            # Each one asks for something else.
            _deployment(
                derive_flow, name, {"store": store, **where}, ConcurrencyLimitStrategy.ENQUEUE
            )
            for name, store in served.stores.items()
        ),
        *(
            _deployment(
                maintain_flow, name, {"store": store, **where}, ConcurrencyLimitStrategy.CANCEL_NEW
            )
            for name, store in served.stores.items()
        ),
    ]


def _deployment(
    flow: Any,
    name: str,
    parameters: dict[str, Any],
    collision: ConcurrencyLimitStrategy,
    *,
    schedule: CronSchedule | IntervalSchedule | None = None,
) -> RunnerDeployment:
    deployment = RunnerDeployment.from_flow(
        flow,
        name,
        schedule=schedule,
        parameters=parameters,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=collision),
        tags=[TAG],
        paused=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    if schedule is None:
        # Such as somebody made in the UI are kept.
        deployment.model_fields_set.discard("schedules")
    return deployment


ZOMBIES = AutomationCore(
    name="Reelmill: a run without a heartbeat has crashed",
    description="Marks runs whose process died without a word. Made by `reelmill serve`.",
    trigger=EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.heartbeat"},
        expect={
            "prefect.flow-run.heartbeat",
            "prefect.flow-run.Completed",
            "prefect.flow-run.Failed",
            "prefect.flow-run.Cancelled",
            "prefect.flow-run.Crashed",
        },
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={
            "prefect.resource.id": f"prefect.tag.{TAG}",
            "prefect.resource.role": "tag",
        },
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=3 * HEARTBEAT_SECONDS),
    ),
    actions=[
        ChangeFlowRunState(
            state="CRASHED",
            message="no heartbeat for 90 seconds: its process died, or froze. What was finished is "
            "kept, and the next run goes on from there",
        )
    ],
)
"""An automation that marks runs as crashed whose heart stopped."""


async def _serve(
    served: Served, metrics: Metrics | None, console: Console, *, patience: float
) -> None:
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")
    stop = Stop()
    async with get_client() as client:
        service = _Service(served, client, metrics, patience)
        # The second signal cancels.
        with contextlib.suppress(asyncio.CancelledError), stopping(stop):
            await service.refuse_others()
            await service.count_versions()
            await service.run(stop, console)
    if service.is_lost:
        raise ReelmillError("the Prefect server that was started here is gone; start again")


class _Service:
    """Runs deployments by Prefect's runner, for weeks.

    The runner is Prefect's, but not its loop: that gives up, and kills its runs, when the server is
    away for some seconds. What is used of it is private; Prefect's version is pinned.
    """

    def __init__(
        self, served: Served, client: PrefectClient, metrics: Metrics | None, patience: float
    ) -> None:
        self._served = served
        self._client = client
        self._metrics = metrics
        self._patience = patience
        self._ids: list[UUID] = []
        self._due: list[UUID] = []
        self._is_worn = False
        self.is_lost = False

    async def refuse_others(self) -> None:
        """Raise if a deployment is there that belongs to somebody else."""
        for one in deployments(self._served):
            with contextlib.suppress(ObjectNotFound):
                there = await self._client.read_deployment_by_name(one.full_name)
                if owner := _owner(there, one.parameters):
                    raise ReelmillError(
                        f"the Prefect server has a deployment {one.full_name} of {owner}; remove "
                        f"it with 'prefect deployment delete {one.full_name}', or serve another "
                        "name: that of the recipe's file, or of the store"
                    )

    async def count_versions(self) -> None:
        """Tell the metrics of the versions that the stores have already."""
        if self._metrics:
            for url in self._served.stores.values():
                with decoration():
                    if await asyncio.to_thread(Store.is_at, url):
                        await asyncio.to_thread(self._metrics.know, Store.open(url))

    async def run(self, stop: asyncio.Event, console: Console) -> None:
        """Start the runs that are due, until ``stop`` is set, or the server is lost for good."""
        runner: Runner | None
        try:
            runner = await self._new_runner()
        except RuntimeError as error:
            raise ReelmillError(f"the Prefect server cannot be used: {told(error)}") from error
        if isinstance(self._served.schedule, IntervalSchedule):
            self._due = self._ids[: len(self._served.recipes)]
        for one in deployments(self._served):
            console.print(f"serving {one.full_name}", markup=False)
        console.print("Ctrl-C stops", markup=False)
        keeping = asyncio.ensure_future(self._keep_house())
        try:
            while runner:
                async with contextlib.AsyncExitStack() as stack:
                    stack.push_async_exit(runner)
                    await self._start_runs(runner, stop)
                    if stop.is_set() or self.is_lost:
                        console.print("stopping; again: at once", markup=False)
                        await self._stop_runs(runner)
                        break
                runner = await self._another_runner(stop)
        finally:
            keeping.cancel()
        if await server_answers():
            with decoration():
                # What is due while nobody serves is not made up for.
                for deployment in self._ids:
                    await self._client.pause_deployment(deployment)

    async def _new_runner(self) -> Runner:
        """Deploy, and make the automation that marks runs that died; a runner that is entered."""
        runner = Runner(
            name="reelmill",
            limit=self._served.limit,
            pause_on_shutdown=False,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            query_seconds=min(POLL_SECONDS, PREFECT_RUNNER_POLL_FREQUENCY.value()),
        )
        if not await self._client.read_automations_by_name(ZOMBIES.name):
            await self._client.create_automation(ZOMBIES)
        self._ids = [await runner.aadd_deployment(one) for one in deployments(self._served)]
        await runner.__aenter__()
        self._is_worn = False
        return runner

    async def _another_runner(self, stop: asyncio.Event) -> Runner | None:
        """A new runner, as soon as the server lets us deploy, unless ``stop`` is set before, or
        the server is lost."""
        began = time.monotonic()
        while not stop.is_set():
            try:
                return await self._new_runner()
            except Exception as error:
                log.warning("the Prefect server takes no deployments: %s", told(error))
                if time.monotonic() - began > self._patience:
                    self.is_lost = True
                    break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
        return None

    async def _start_runs(self, runner: Runner, stop: asyncio.Event) -> None:
        """Start runs until ``stop`` is set, the server is lost, or another runner is needed."""
        poller = runner._scheduled_run_poller
        answered = time.monotonic()
        while not stop.is_set():
            try:
                if asked := await or_stop(poller._get_and_submit_flow_runs(), stop):
                    asked.result()
            except Exception as error:
                # A proxy in front of a server that starts again may answer anything.
                if not self._is_worn:
                    log.warning("the Prefect server does not answer: %s", told(error))
                # What listens for cancelled runs has given up by then.
                self._is_worn = True
                if time.monotonic() - answered > self._patience:
                    self.is_lost = True
                    return
            else:
                answered = time.monotonic()
                if self._is_worn and not poller._submitting_flow_run_ids:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), runner.query_seconds)

    async def _stop_runs(self, runner: Runner) -> None:
        """Stop all runs, with a grace period; each tells Prefect itself how far it came."""
        # Runner.cancel_all() goes one by one, and calls cancelled what ends in the meantime.
        processes = runner._process_manager
        stopped = processes.flow_run_ids()
        for one in stopped:
            await runner._control_channel.signal(one, "cancel")
            if process := processes.get(one):
                with contextlib.suppress(ProcessLookupError):
                    process.graceful_kill()
        deadline = time.monotonic() + STOP_SECONDS
        while processes.flow_run_ids() and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        for one in processes.flow_run_ids():
            await processes.kill(one, force=True)
        if not await server_answers():
            return
        with decoration():
            for one in stopped:
                state = (await self._client.read_flow_run(one)).state
                if state is None or not state.is_final():
                    message = "stopped with `reelmill serve`"
                    await self._client.set_flow_run_state(
                        one, Cancelled(message=message), force=True
                    )

    async def _keep_house(self) -> None:
        """Keep what Prefect believes true, and count what runs have done."""
        while True:
            with decoration():
                await self._miss_deployments()
            for url in self._served.stores.values():
                with decoration():
                    # A store may take its time, and runs must not wait for it.
                    await asyncio.to_thread(asyncio.run, _tidy(url))
            with decoration():
                await self._build_first()
            if self._metrics:
                with decoration():
                    self._metrics.update()
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _miss_deployments(self) -> None:
        try:
            for one in self._ids:
                await self._client.read_deployment(one)
        except ObjectNotFound:
            log.warning("the Prefect server has lost the deployments; they are made again")
            self._is_worn = True

    async def _build_first(self) -> None:
        """Have each recipe built at the beginning: Prefect's intervals begin with a wait.

        Where a run of before seems to go on, wait for its end: it may be dead, and its place in
        the deployment be taken until that is known.
        """
        while self._due:
            on = await self._client.read_flow_runs(
                deployment_filter=DeploymentFilter(id={"any_": [self._due[-1]]}),
                flow_run_filter=FlowRunFilter(state={"type": {"any_": GOING_ON}}),
                limit=1,
            )
            if on:
                return
            await self._client.create_flow_run_from_deployment(self._due.pop())


def _owner(there: DeploymentResponse, parameters: dict[str, Any]) -> str | None:
    """Whose a deployment is, if it is not that of ``parameters``."""
    if there.work_pool_name:
        return f"the work pool {there.work_pool_name}"
    for key in ("recipe", "store"):
        if there.parameters.get(key) not in (None, parameters.get(key)):
            return str(there.parameters[key])
    return None


async def _tidy(url: str) -> None:
    if Store.is_at(url):
        for name in await crash_dead_runs(Store.open(url)):
            log.warning("flow run %s had died without a word; it is marked as crashed", name)
