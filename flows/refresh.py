"""Known addresses are looked at again, where a source says so, before a recipe is built."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from reelmill.errors import told
from reelmill.flows.again import Due, take_changed
from reelmill.flows.cluster import Need, open_cluster
from reelmill.flows.drive import for_each
from reelmill.flows.profile import Profile
from reelmill.flows.shards import Outcomes, visible_work
from reelmill.recipe import Recipe
from reelmill.store import Store
from reelmill.store.model import Result
from reelmill.tasks import CHECK, get_stage
from reelmill.tasks.frame import execute

if TYPE_CHECKING:
    from prefect.logging.loggers import LoggingAdapter

Tell = Callable[[str], None]

_tell: ContextVar[Tell | None] = ContextVar("tell", default=None)


@contextlib.contextmanager
def told_to(tell: Tell) -> Iterator[None]:
    """Let ``tell`` get a line now and then about the refreshing in the body."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


async def refresh(
    recipe: Recipe,
    store: Store,
    checks: Sequence[Due],
    where: Profile,
    run: str,
    logger: LoggingAdapter,
) -> None:
    """Make the checks on the workers, and let the rows whose bytes changed enter their tables
    once more, as a new generation that the build goes on to fetch.

    A check that fails leaves its shard as it is known.
    """
    results = [(one, one.result) for one in checks if one.result]
    todo = [one for one in checks if not one.result]
    if todo:
        results += await _make(todo, where, run, logger)
    changed = await asyncio.to_thread(take_changed, recipe, store, results, run)
    for source, count in changed.items():
        _say(logger, f"addresses of {source} that hold other bytes than before: {count:,}")


async def _make(
    todo: Sequence[Due], where: Profile, run: str, logger: LoggingAdapter
) -> list[tuple[Due, Result]]:
    need = Need(label=CHECK, memory=get_stage(CHECK).memory)
    outcomes: Outcomes = {}
    made: list[tuple[Due, Result]] = []
    ended = 0
    _say(logger, f"asking whether the addresses of {len(todo):,} shards changed ...")
    async with (
        open_cluster(where, len(todo), [need]) as cluster,
        visible_work(cluster, where, execute, run=run, outcomes=outcomes) as work,
    ):

        async def check(one: Due) -> None:
            nonlocal ended
            try:
                answer = await work(
                    one.order.label,
                    one.order.model_dump_json(),
                    key=one.order.action.key,
                    need=need,
                    tags=(one.version.name, CHECK),
                )
            except Exception as error:
                logger.warning("%s failed: %s", one.order.label, told(error))
            else:
                made.append((one, Result.model_validate_json(answer)))
            ended += 1
            if ended % max(1, len(todo) // 10) == 0:
                _say(logger, f"{ended:,} of {len(todo):,} shards were asked about")

        await for_each(check, todo, lambda: where.in_flight(cluster.capacity))
    return made


def _say(logger: LoggingAdapter, text: str) -> None:
    logger.info(text)
    if tell := _tell.get():
        tell(text)
