"""Running a build from a command: the check before, the server, the flow, the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

from reelmill.errors import ReelmillError
from reelmill.flows import drive
from reelmill.flows.drive import Build, StoppedError, prepare
from reelmill.flows.exits import Interrupted
from reelmill.flows.profile import load_profile
from reelmill.flows.report import as_json, reject_lines, table
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.store.lease import lease
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source

FLUSH_SECONDS = 5

Report = Console | Callable[[Any], None]


def run_build(
    recipe: str,
    *,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    profile: str = "local",
    workers: int | None = None,
    console: Console | None = None,
    report: Report | None = None,
) -> Build:
    """Build a recipe and tell what came of it.

    Where all shards exist, no server, no cluster and no flow run are started.

    Args:
        console: where progress goes; nowhere if ``None``.
        report: where the outcome goes: a console for the table, or a function for the JSON.

    Raises:
        ReelmillError: something could not be made; the outcome was reported.
        Interrupted: the build was asked to stop.
    """
    load_profile(profile, workers)
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides)
    store = Store.open(loaded.store, create=True)
    run = f"local-{secrets.token_hex(6)}"
    with lease(store, run):
        build = prepare(loaded, store, only=only, run=run)
        if not build.missing:
            drive.commit_versions(build, run)
            _tell(build, report)
            if problems := build.planner.problems():
                raise ReelmillError("; ".join(problems.values()))
            return build
    try:
        build, error = _run_flow(recipe, only, overrides, profile, workers, console)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise Interrupted(
            _go_on("stopped at once; finished shards are kept", recipe), signal.SIGINT
        ) from None
    _tell(build, report)
    if isinstance(error, StoppedError):
        raise Interrupted(_go_on(str(error), recipe), error.number)
    if error is not None:
        raise error
    return build


def _run_flow(
    recipe: str,
    only: Sequence[str],
    overrides: Sequence[str],
    profile: str,
    workers: int | None,
    console: Console | None,
) -> tuple[Build, ReelmillError | None]:
    # Read by Prefect when it is imported: its own chatter would tear the progress table apart.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_FLOW_RUNS_LEVEL", "CRITICAL")
    from reelmill.flows.server import prefect_api

    if console is not None:
        console.print("starting Prefect and Dask ...", markup=False)
    with prefect_api() as url:
        from reelmill.flows.build import build_flow, watched_by
        from reelmill.flows.terminal import show_progress

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if console is not None:
            console.print(f"Prefect: {url.removesuffix('/api')}", markup=False)

        seen: list[Build] = []

        @contextlib.contextmanager
        def watch(build: Build) -> Iterator[None]:
            seen.append(build)
            if console is None:
                yield
            else:
                with show_progress(console, build):
                    yield

        async def run() -> Any:
            with watched_by(watch):
                return await build_flow(
                    recipe=recipe,
                    only=list(only),
                    overrides=list(overrides),
                    profile=profile,
                    workers=workers,
                    return_state=True,
                )

        try:
            state = asyncio.run(run())
            outcome = asyncio.run(_outcome(state))
        finally:
            _flush_prefect()
    if isinstance(outcome, Build):
        return outcome, None
    if isinstance(outcome, ReelmillError) and seen:
        return seen[0], outcome
    if isinstance(outcome, BaseException):
        raise outcome
    raise ReelmillError(f"the flow run ended as {state.name}: {state.message}")


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


def _go_on(what: str, recipe: str) -> str:
    return f"{what}. To go on: reelmill build {recipe}"


def _tell(build: Build, report: Report | None) -> None:
    if report is None:
        return
    if not isinstance(report, Console):
        report(as_json(build))
        return
    report.print(table(build))
    for line in reject_lines(build):
        report.print(f"rejects of {line}", markup=False)
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
