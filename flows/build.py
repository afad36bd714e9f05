"""The flow that builds a recipe: one flow run per build, one task run per shard."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from reelmill.errors import ReelmillError
from reelmill.flows import again, at_worker, drive
from reelmill.flows.cards import Page
from reelmill.flows.cluster import Need, open_cluster
from reelmill.flows.drive import Build, Stop, StoppedError, prepare
from reelmill.flows.events import Announcer
from reelmill.flows.metrics import counted, follow
from reelmill.flows.prefect_state import crash_dead_runs, decoration
from reelmill.flows.profile import Profile, load_profile
from reelmill.flows.reading import told
from reelmill.flows.refresh import refresh
from reelmill.flows.served import served
from reelmill.flows.shards import visible_work
from reelmill.recipe import Recipe, load_recipe, recipe_name
from reelmill.rejects import Selection
from reelmill.store import Store
from reelmill.store.lease import lease
from reelmill.store.model import Result
from reelmill.store.patient import Patience
from reelmill.store.reserve import Reservations
from reelmill.tasks import Stages, get_stage
from reelmill.tasks.ingest import Source
from reelmill.tasks.planner import Todo

if TYPE_CHECKING:
    from prefect.logging.loggers import LoggingAdapter

T = TypeVar("T")

Watch = Callable[[Build], contextlib.AbstractContextManager[None]]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)

Profiled = Annotated[
    str, Field(min_length=1, examples=["local", "address", "/srv/my-cluster.yaml"])
]
Workers = (
    Annotated[int, Field(ge=1, le=10_000, title="number")]
    | Annotated[None, Field(title="one per core")]
)


@contextlib.contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Let ``watch`` (a context manager that gets the build) follow the builds of the body."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def _run_name() -> str:
    return recipe_name(flow_run.parameters["recipe"])


@flow(name="build", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
async def build_flow(
    recipe: Annotated[str, Field(min_length=1, examples=["/srv/films/recipe.yaml"])],
    only: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
    retry: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = (),
    profile: Profiled = "local",
    workers: Workers = None,
) -> Build | State[Any]:
    """Make every shard of a recipe that does not exist yet, and commit the versions.

    Args:
        recipe: path of the recipe file.
        only: datasets to build, with what they need; all of them if empty.
        overrides: changed values, such as clips.max_seconds=8.
        retry: reasons of rejected rows that are fetched again first, such as timeout or http_429;
            passing stands for all that may turn out well another time.
        profile: where the workers are: local, gpu, address, slurm, kubernetes, or the path of a
            YAML file.
        workers: worker processes of a local cluster, instead of one per core.
    """
    with served(), counted():
        where = load_profile(profile, workers)
        loaded = load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides)
        return await build_recipe(loaded, where, only=only, retry=retry)


async def build_recipe(
    recipe: Recipe, where: Profile, *, only: Sequence[str] = (), retry: Sequence[str] = ()
) -> State[Any]:
    """Build a recipe within a flow run; the state that the flow run ends with.

    Its data is the ``Build``, or the error that ended it.
    """
    logger = get_run_logger()
    assert flow_run.id is not None
    run = str(flow_run.id)
    store = await asyncio.to_thread(Store.open, recipe.store, create=True)
    with decoration():
        for name in await crash_dead_runs(store):
            logger.info("flow run %s had died without a word; it is marked as crashed", name)
    stop = Stop()
    with lease(store, run), stopping(stop):
        names = recipe.select(only) if only else recipe.order()
        if retry:
            for text in await asyncio.to_thread(_retry, recipe, store, names, retry, run):
                logger.info(text)
        if checks := await asyncio.to_thread(again.find_due, recipe, store, names, run):
            refreshed = await drive.or_stop(
                refresh(recipe, store, checks, where, run, logger), stop
            )
            if refreshed is None:
                error = StoppedError("stopped while known addresses were checked", stop.number)
                return Cancelled(message=str(error), data=error)
            refreshed.result()
        tell = told(logger.info)
        build = await asyncio.to_thread(prepare, recipe, store, only=only, run=run, watch=tell)
        logger.info(
            "%d shards are there, %d are ready to be made",
            sum(progress.have for progress in build.progress.values()),
            len(build.missing),
        )
        patience = Patience(float(where.patience), partial(_note, build), stop.is_set)
        build.store = patience.with_store(store)
        page = Page(build, flow_run.id, stop, logger)
        watch = _watch.get()
        with watch(build) if watch else contextlib.nullcontext():
            async with page.shown():
                try:
                    await _make(build, where, run, stop, patience, page, logger)
                except ReelmillError as error:
                    build.error = error
            build.over = True
    with decoration():
        await crash_dead_runs(store)
    return _state(build)


def _retry(
    recipe: Recipe, store: Store, names: Sequence[str], reasons: Sequence[str], run: str
) -> list[str]:
    """Let rejects of these reasons enter their tables once more; what to say of it."""
    lines = []
    for name in again.readers(recipe):
        if name in names and store.latest(name):
            chosen = again.retry(recipe, store, name, Selection(reasons), run)
            lines.append(f"{chosen.total()} rejects of {name} are fetched again")
    return lines


def _state(build: Build) -> State[Any]:
    if isinstance(build.error, StoppedError):
        return Cancelled(message=str(build.error), data=build.error)
    if build.error:
        return Failed(message=str(build.error), data=build.error)
    return Completed(message=_summary(build), data=build)


def _note(build: Build, text: str) -> None:
    build.notes["store"] = text


async def _make(
    build: Build,
    where: Profile,
    run: str,
    stop: Stop,
    patience: Patience,
    page: Page,
    logger: LoggingAdapter,
) -> None:
    build.listeners += [_Log(logger), Announcer()]
    follow(build)
    await drive.commit(build, run)
    needs = {
        name: _need(build, name)
        for name, progress in build.progress.items()
        if progress.have != progress.expected
    }
    if not needs:
        if problems := build.planner.problems():
            raise drive.BuildFailedError("; ".join(problems.values()))
        return
    reservations = Reservations(build.store, run)
    await asyncio.to_thread(reservations.sweep)
    async with (
        _unless_stopped(open_cluster(where, _most(build), list(needs.values())), stop) as cluster,
        visible_work(cluster, where, at_worker.make, run=run, outcomes=page.outcomes) as work,
    ):

        def hear(told: Mapping[str, Any]) -> None:
            # Other runs on the same cluster are heard, too.
            if told["run"] == run:
                build.hear(told["dataset"], told["shard"], told["done"], told["of"])

        cluster.listen(at_worker.SAMPLES, hear)
        page.dashboard = _dashboard(cluster.dashboard, where)
        logger.info("%d worker threads; Dask's dashboard: %s", cluster.capacity, page.dashboard)

        async def submit(todo: Todo, order: str) -> str:
            key = todo.action.key
            if not await asyncio.to_thread(reservations.take, key):
                raise drive.TakenError(f"{todo.label} is being made by another run")
            try:
                return await work(
                    todo.label,
                    order,
                    key=key,
                    need=needs[todo.dataset],
                    tags=(todo.dataset, todo.action.stage),
                    priority=todo.depth,
                )
            finally:
                await asyncio.to_thread(reservations.release, key)

        await drive.drive(
            build,
            submit,
            window=lambda: where.in_flight(cluster.capacity),
            run=run,
            stop=stop,
            store_has_failed=partial(patience.has_failed, build.store),
        )


@contextlib.asynccontextmanager
async def _unless_stopped(
    opening: contextlib.AbstractAsyncContextManager[T], stop: Stop
) -> AsyncIterator[T]:
    """``opening``, which may take an hour to open, given up when ``stop`` is set before it is."""
    entering = await drive.or_stop(opening.__aenter__(), stop)
    if entering is None:
        raise StoppedError("stopped before there were workers", stop.number)
    opened = entering.result()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(opening)
        yield opened


def _dashboard(link: str, where: Profile) -> str:
    scheduler_is_here = where.kind in ("local", "gpu", "slurm")
    if scheduler_is_here and importlib.util.find_spec("bokeh") is None:
        return f"{link} (empty without: pip install 'reelmill[dashboard]')"
    return link


class _Log:
    def __init__(self, logger: LoggingAdapter) -> None:
        self._logger = logger

    def shard_ended(
        self, _build: Build, todo: Todo, _seconds: float, outcome: Result | str
    ) -> None:
        if isinstance(outcome, str):
            self._logger.warning("%s failed: %s", todo.label, outcome)

    def committed(self, build: Build, name: str) -> None:
        progress = build.progress[name]
        label = build.labels[name]
        word = "committed %s" if progress.moved else "%s is as it was"
        self._logger.info(
            f"{word}: %d samples in %d shards", label, progress.samples, progress.have
        )
        for shard, message in build.planner.holes(name).items():
            self._logger.warning("%s is without shard %s: %s", label, shard, message)


def _need(build: Build, name: str) -> Need:
    dataset = build.recipe.datasets[name]
    stage = get_stage(dataset.stage)
    needed = stage.needs(dataset.params)
    return Need(
        label=f"{stage.name} ({name})", resources=needed, memory=stage.memory_of(dataset.params)
    )


def _most(build: Build) -> int | None:
    """Shards that can ever be in flight at once, where that is known: more workers would idle."""
    expected = [progress.expected for progress in build.progress.values()]
    known = [count for count in expected if count is not None]
    return max(known) if len(known) == len(expected) else None


@contextlib.contextmanager
def stopping(stop: Stop) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the build to stop, the second one ends it at once."""
    loop = asyncio.get_running_loop()
    here = asyncio.current_task()
    signalled = False

    def ask(number: int) -> None:
        nonlocal signalled
        if signalled and here is not None:
            here.cancel()
        signalled = True
        # Whoever cancels in the UI may be the one who sets it, and has a signal sent besides.
        if not stop.is_set():
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
    holes = sum(len(build.planner.holes(name)) for name in build.names)
    tail = f"; {holes} shards could not be made, which the recipe allows" if holes else ""
    return f"{made} shards made, {reused} were there already{tail}"
