"""Running a build from a command: the check before, the server, the flow, the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from reelmill.errors import ReelmillError
from reelmill.flows import drive
from reelmill.flows.again import find_due, refuse_changed, retry, waiting
from reelmill.flows.derivation import Asked, refuse_misfit
from reelmill.flows.drive import Build, StoppedError, prepare
from reelmill.flows.exits import Interrupted
from reelmill.flows.profile import Profile, load_profile
from reelmill.flows.reading import shown
from reelmill.flows.report import (
    as_json,
    example_lines,
    hole_lines,
    reasons_text,
    reject_lines,
    table,
)
from reelmill.flows.save import Saving
from reelmill.flows.workers import refuse_unreachable
from reelmill.recipe import Recipe, load_recipe
from reelmill.rejects import Selection
from reelmill.store import Store
from reelmill.store.lease import lease
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source

FLUSH_SECONDS = 5

_PREFECT = {
    # Its own chatter would tear the progress table apart.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FLOW_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    # Each doubles a pause. A run waits for its server by itself, and shall not do so twice.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
}
"""What Prefect reads when it is imported, unless somebody has said otherwise."""

Report = Console | Callable[[Any], None]


@dataclass(frozen=True)
class Show:
    """What a command shows of a build.

    ``console`` gets progress and ``report`` the outcome: a console for the table, or a function
    for the JSON. ``events`` gets a JSON line for all that happens. Each may be absent.
    """

    console: Console | None = None
    report: Report | None = None
    events: TextIO | None = None


def run_build(
    recipe: str,
    *,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    profile: str = "local",
    workers: int | None = None,
    show: Show = Show(),
) -> Build:
    """Build a recipe and tell what came of it.

    Where all shards exist, no server, no cluster and no flow run are started.

    Raises:
        ReelmillError: something could not be made; the outcome was reported.
        Interrupted: the build was asked to stop.
    """
    where = load_profile(profile, workers)
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides)

    async def start() -> Any:
        from reelmill.flows.build import build_flow

        return await build_flow(
            recipe=recipe,
            only=list(only),
            overrides=list(overrides),
            profile=profile,
            workers=workers,
            return_state=True,
        )

    options = [*(f"--only={name}" for name in only), *(f"--set={text}" for text in overrides)]
    again = shlex.join(["reelmill", "build", recipe, *options])
    return _run(loaded, where, start, only=only, again=again, show=show)


def run_retry(
    recipe: str,
    dataset: str,
    selection: Selection,
    *,
    overrides: Sequence[str] = (),
    profile: str = "local",
    workers: int | None = None,
    show: Show = Show(),
) -> Build | None:
    """Fetch rejects of a dataset again and tell what came of it; as ``run_build``.

    It ends what a killed one had begun, as the next build of the recipe would. ``None`` if there is
    no such reject.

    Raises:
        ReelmillError: as ``run_build``, or the recipe would make all of the dataset anew.
        Interrupted: as ``run_build``.
    """
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides)
    where = load_profile(profile, workers)
    refuse_unreachable(where)
    store = Store.open(loaded.store)
    run = f"local-{secrets.token_hex(6)}"
    refuse_changed(loaded, store, dataset)
    with lease(store, run):
        chosen = retry(loaded, store, dataset, selection, run)
    before = waiting(loaded, store, dataset) - chosen.total()
    if not chosen and not before:
        return None
    if show.console is not None:
        if before:
            show.console.print(f"{before:,} of {dataset} were chosen before", markup=False)
        if chosen:
            what = f"{chosen.total():,} of {dataset} are fetched again: {reasons_text(chosen)}"
            show.console.print(what, markup=False)
    return run_build(
        recipe, only=[dataset], overrides=overrides, profile=profile, workers=workers, show=show
    )


def run_derive(
    store: Store,
    asked: Asked,
    *,
    saved_in: Path | None = None,
    profile: str = "local",
    workers: int | None = None,
    show: Show = Show(),
) -> Build:
    """Derive one dataset from versions and tell what came of it; as ``run_build``.

    Args:
        saved_in: the recipe that the dataset is appended to when it is made.
    """
    where = load_profile(profile, workers)
    loaded = asked.recipe(store.url)
    dataset = loaded.datasets[asked.name]
    refuse_misfit(loaded, store)
    saving = Saving(saved_in, asked, store) if saved_in else None
    if saving:
        saving.text()  # refused before anything is made

    async def start() -> Any:
        from reelmill.flows.derive import derive_flow

        values = dataset.params.model_dump(mode="json", exclude_unset=True, by_alias=True)
        return await derive_flow(
            parent=asked.parents[0],
            others=asked.parents[1:],
            name=asked.name,
            make={"stage": asked.stage, **values},
            store=loaded.store,
            max_rejects=dataset.max_rejects,
            max_holes=dataset.max_holes,
            profile=profile,
            workers=workers,
            return_state=True,
        )

    build = _run(loaded, where, start, again=shlex.join(asked.command), show=show)
    if saving:
        word = "now has" if saving.write() else "already had"
        if show.console is not None:
            show.console.print(f"{saved_in} {word} the dataset {asked.name}", markup=False)
    return build


def _run(
    recipe: Recipe,
    where: Profile,
    start: Callable[[], Coroutine[Any, Any, Any]],
    *,
    only: Sequence[str] = (),
    again: str,
    show: Show,
) -> Build:
    store = Store.open(recipe.store, create=True)
    run = f"local-{secrets.token_hex(6)}"
    with lease(store, run):
        with shown(show.console) as watch:
            build = prepare(recipe, store, only=only, run=run, watch=watch)
        if not build.missing and not find_due(recipe, store, build.names, run):
            drive.commit_versions(build, run)
            _announce(build)
            _tell(build, show.report)
            if problems := build.planner.problems():
                raise ReelmillError("; ".join(problems.values()))
            return build
    refuse_unreachable(where)
    try:
        build = _run_flow(start, show)
    except (KeyboardInterrupt, asyncio.CancelledError):
        message = "stopped at once; finished shards are kept"
        raise Interrupted(f"{message}. To go on: {again}", signal.SIGINT) from None
    _tell(build, show.report)
    if isinstance(build.error, StoppedError):
        raise Interrupted(f"{build.error}. To go on: {again}", build.error.number)
    if build.error is not None:
        raise build.error
    return build


def _announce(build: Build) -> None:
    """Send the events of versions that moved without a shard made, where there is a server."""
    if not any(progress.moved for progress in build.progress.values()):
        return
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        from reelmill.flows.events import Announcer

        for name in build.versions:
            Announcer().committed(build, name)
        _flush_prefect()


def _run_flow(start: Callable[[], Coroutine[Any, Any, Any]], show: Show) -> Build:
    for name, value in _PREFECT.items():
        os.environ.setdefault(name, value)
    # A log that does not reach Prefect's server is nothing for the screen either.
    logging.raiseExceptions = False
    from reelmill.flows.server import prefect_api

    console = show.console
    if console is not None:
        console.print("starting ...", markup=False)
    with prefect_api() as url:
        from reelmill.flows.build import watched_by
        from reelmill.flows.refresh import told_to
        from reelmill.flows.terminal import show_progress, write_events

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if console is not None:
            console.print(f"Prefect: {url.removesuffix('/api')}", markup=False)

        seen: list[Build] = []

        @contextlib.contextmanager
        def watch(build: Build) -> Iterator[None]:
            seen.append(build)
            with contextlib.ExitStack() as shown:
                if console is not None:
                    shown.enter_context(show_progress(console, build))
                if show.events is not None:
                    shown.enter_context(write_events(show.events, build))
                yield

        def tell(text: str) -> None:
            if console is not None:
                console.print(text, markup=False)

        async def run() -> Any:
            with watched_by(watch), told_to(tell):
                return await start()

        try:
            state = asyncio.run(run())
            outcome = asyncio.run(_outcome(state))
        except Exception as error:
            if not (seen and seen[0].over):
                raise
            # The build is over and its data is safe: only Prefect does not know.
            outcome = seen[0]
            if console is not None:
                console.print(_unrecorded(error), markup=False)
        finally:
            _flush_prefect()
    if seen and seen[0].over:
        return seen[0]
    if isinstance(outcome, BaseException):
        raise outcome
    raise ReelmillError(f"the flow run ended as {state.name}: {state.message}")


def _unrecorded(error: Exception) -> str:
    from prefect.exceptions import ObjectNotFound

    why = "has lost it" if isinstance(error, ObjectNotFound) else "does not answer"
    return f"Prefect has no record of how this run ended: its server {why}"


def _flush_prefect() -> None:
    """Let the last logs and events out while the server is still there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=FLUSH_SECONDS)
    EventsWorker.drain_all(timeout=FLUSH_SECONDS)


async def _outcome(state: Any) -> Any:
    data = state.data
    if isinstance(data, (Build, BaseException)):
        return data
    return await state.aresult(raise_on_failure=False)


def _tell(build: Build, report: Report | None) -> None:
    if report is None:
        return
    if not isinstance(report, Console):
        report(as_json(build))
        return
    report.print(table(build))
    for line in reject_lines(build):
        report.print(f"rejects of {line}", markup=False)
    for line in example_lines(build):
        report.print(f"such as {line}", markup=False)
    for line in hole_lines(build):
        report.print(f"could not be made: {line}", markup=False)
    made = sum(progress.made for progress in build.progress.values())
    have = sum(progress.have for progress in build.progress.values())
    if build.is_complete and not made:
        report.print(f"All {have:,} shards exist; nothing was made.")


@contextlib.contextmanager
def planning_store(url: str) -> Iterator[Store]:
    """The store at ``url`` for a plan, or an empty stand-in where none was made yet."""
    try:
        store = Store.open(url)
    except ReelmillError:
        if Store.is_at(url):
            raise
        with tempfile.TemporaryDirectory(prefix="reelmill-plan-") as folder:
            yield Store.open(folder, create=True)
        return
    yield store
