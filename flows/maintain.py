"""The flow that looks after a store: verifies what it holds, and removes what is of no use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from reelmill.dataset import Version, open_version
from reelmill.errors import ReelmillError, told
from reelmill.flows.build import Profiled, Workers, stopping
from reelmill.flows.cards import REFRESH_SECONDS
from reelmill.flows.cluster import Need, open_cluster
from reelmill.flows.derivation import Parent as Spec
from reelmill.flows.drive import Stop, StoppedError, for_each, or_stop
from reelmill.flows.prefect_state import (
    cancel_is_asked,
    crash_dead_runs,
    decoration,
    settle_task_runs,
)
from reelmill.flows.profile import Profile, load_profile
from reelmill.flows.report import plain
from reelmill.flows.served import served
from reelmill.flows.shards import Outcomes, visible_work
from reelmill.store import Store
from reelmill.store import collect as collecting
from reelmill.store.collect import KEEP, KEEP_VERSIONS, Collection, Keep, KeepVersions, Policy
from reelmill.store.lease import lease
from reelmill.store.model import Shard
from reelmill.tasks.contract import label
from reelmill.tasks.verify import Check, Checked, check
from reelmill.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from prefect.logging.loggers import LoggingAdapter

MOST_ROWS = 1000
"""Problems that the table of a run's page holds."""

_THIRTY_DAYS: dict[str, Any] = {"default": format_seconds(KEEP), "examples": ["30d", "7d", "12h"]}
"""The default as a person would write it."""


class DamageError(ReelmillError):
    """A store that holds damaged bytes, or bytes that could not be read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a shard of a version, or with a version where it is empty."""

    version: str
    shard: str
    text: str
    removed: bool

    @property
    def place(self) -> str:
        return f"{self.version}/{self.shard}" if self.shard else self.version


@dataclass
class Report:
    """What came of looking after a store. ``versions`` are those to be verified."""

    store: str
    versions: list[Version] = field(default_factory=list)
    shards: int = 0
    verified: int = 0
    problems: list[Problem] = field(default_factory=list)
    collection: Collection | None = None
    error: ReelmillError | None = None
    outcomes: Outcomes = field(default_factory=dict)

    @property
    def percentage(self) -> float:
        """How much of what is to be verified was."""
        return 100.0 * self.verified / self.shards if self.shards else 0.0

    @property
    def damage(self) -> DamageError | None:
        """What is wrong and was not removed."""
        places = list(dict.fromkeys(one.place for one in self.problems if not one.removed))
        if not places:
            return None
        named = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if places[3:] else "")
        return DamageError(
            f"{named}: damaged, lost or unreadable; see this run's table of problems, and run "
            "again with repair to have a build make the shards anew"
        )

    @property
    def summary(self) -> str:
        """What came of it, in a line."""
        removed = len({one.place for one in self.problems if one.removed})
        parts = [f"{self.verified} shards verified"] if self.versions else []
        if removed:
            parts.append(f"{removed} damaged ones removed: build again to make them anew")
        if self.collection:
            versions, size = len(self.collection.versions), self.collection.total.bytes
            parts.append(f"{versions} versions collected, {format_bytes(size)} freed")
        return "; ".join(parts) or "nothing to do"


def _run_name() -> str:
    store: str = flow_run.parameters["store"]
    return f"maintain {store.rstrip('/').rpartition('/')[2]}"


@flow(name="maintain", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
async def maintain_flow(
    store: Annotated[str, Field(min_length=1, examples=["/srv/films/store", "s3://films/store"])],
    verify: bool = True,
    versions: tuple[Spec, ...] = (),
    repair: bool = False,
    collect: bool = True,
    keep_versions: KeepVersions = KEEP_VERSIONS,
    keep: Annotated[Keep, Field(json_schema_extra=_THIRTY_DAYS)] = KEEP,
    profile: Profiled = "local",
    workers: Workers = None,
) -> State[Any]:
    """Look after a store: read back every byte, and remove what is of no use any more.

    Args:
        store: a folder or s3://bucket/prefix.
        verify: read shards back: every byte against its digest, every sample against its index.
        versions: which versions to verify, such as clips@v1; if empty, the latest of every dataset.
        repair: remove what is damaged, so that the next build makes it anew.
        collect: remove superseded versions, and whatever else no version needs any more. Tagged
            versions stay, and so does all that runs in progress need.
        keep_versions: how many of a dataset's newest versions stay.
        keep: how long something must have been of no use before it is removed, such as 30d.
        profile: where the workers are that verify: local, gpu, address, slurm, kubernetes, or the
            path of a YAML file.
        workers: worker processes of a local cluster, instead of one per core.
    """
    with served():
        where = load_profile(profile, workers)
        logger = get_run_logger()
        opened = await asyncio.to_thread(Store.open, store)
        report = Report(opened.url)
        with decoration():
            for name in await crash_dead_runs(opened):
                logger.info("flow run %s had died without a word; it is marked as crashed", name)
        stop = Stop()

        async def look_after() -> None:
            if verify:
                await _verify(opened, versions, repair, where, report, logger)
            if collect:
                policy = Policy(keep_versions=keep_versions, keep=keep)
                await _collect(opened, policy, report, logger)

        with lease(opened, str(flow_run.id)), stopping(stop):
            async with _followed(report, stop):
                try:
                    done = await or_stop(look_after(), stop)
                    if done is None:
                        raise StoppedError("stopped; what was done stays done", stop.number)
                    done.result()
                except ReelmillError as error:
                    report.error = error
        await _show(report)
    if isinstance(report.error, StoppedError):
        return Cancelled(message=str(report.error), data=report.error)
    failure = report.error or report.damage
    if failure:
        return Failed(message=str(failure), data=failure)
    return Completed(message=report.summary, data=report)


@dataclass(frozen=True, slots=True)
class _Item:
    version: Version
    shard: Shard


async def _verify(
    store: Store,
    specs: Sequence[str],
    repair: bool,
    where: Profile,
    report: Report,
    logger: LoggingAdapter,
) -> None:
    items = await asyncio.to_thread(_find, store, specs, report)
    logger.info("%d shards of %d versions to verify", len(items), len(report.versions))
    report.shards = len(items)
    if not items:
        return
    need = Need(label="verify")
    run = str(flow_run.id)
    async with (
        open_cluster(where, len(items), [need]) as cluster,
        visible_work(cluster, where, check, run=run, outcomes=report.outcomes) as work,
    ):
        logger.info("%d worker threads; Dask's dashboard: %s", cluster.capacity, cluster.dashboard)

        async def verify(item: _Item) -> None:
            name, shard = item.version.name, item.shard
            order = Check(store=store.url, shard=shard, repair=repair).model_dump_json()
            try:
                answer = await work(
                    label("verify", name, shard.id),
                    order,
                    key=shard.index.digest,
                    need=need,
                    tags=(name, "verify"),
                )
                checked = Checked.model_validate_json(answer)
            except Exception as error:
                checked = Checked(problems=(f"not verified: {told(error)}",), removed=False)
            report.verified += 1
            for text in checked.problems:
                problem = Problem(str(item.version), shard.id, text, checked.removed)
                report.problems.append(problem)
                logger.warning("%s: %s", problem.place, text)

        await for_each(verify, items, lambda: where.in_flight(cluster.capacity))


def _find(store: Store, specs: Sequence[str], report: Report) -> list[_Item]:
    """What is to be verified; shards that versions share once."""
    items: dict[tuple[str | None, str], _Item] = {}
    for spec in dict.fromkeys(specs or store.datasets()):
        version = open_version(store, spec)
        report.versions.append(version)
        try:
            shards = list(version.manifest.shards)
        except ReelmillError as error:
            report.problems.append(Problem(str(version), "", str(error), removed=False))
            continue
        for shard in shards:
            content = shard.tar.digest if shard.tar else None, shard.index.digest
            items.setdefault(content, _Item(version, shard))
    return list(items.values())


@contextlib.asynccontextmanager
async def _followed(report: Report, stop: Stop) -> AsyncIterator[None]:
    """Show how far it is while the body runs, and stop if somebody cancels the flow run."""
    following = asyncio.ensure_future(_follow(report, stop))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _follow(report: Report, stop: Stop) -> None:
    assert flow_run.id is not None
    artifact = None
    async with get_client() as client:
        while True:
            with decoration():
                if artifact:
                    await aupdate_progress_artifact(artifact, report.percentage)
                elif report.shards:
                    artifact = await acreate_progress_artifact(
                        report.percentage, key="progress-verify", description="shards verified"
                    )
                if await cancel_is_asked(client, flow_run.id):
                    stop.set()
            await asyncio.sleep(REFRESH_SECONDS if artifact else 1)


async def _collect(store: Store, policy: Policy, report: Report, logger: LoggingAdapter) -> None:
    told = time.monotonic()
    stopped = False

    def watch(found: Collection) -> None:
        nonlocal told
        if stopped:
            raise ReelmillError("stopped")
        if time.monotonic() - told > REFRESH_SECONDS:
            told = time.monotonic()
            size = format_bytes(found.total.bytes)
            logger.info("%d objects removed so far, %s", found.total.count, size)

    work = asyncio.ensure_future(asyncio.to_thread(collecting.collect, store, policy, watch))
    try:
        report.collection = await asyncio.shield(work)
    finally:
        # A thread cannot be cancelled.
        stopped = True
        await asyncio.gather(work, return_exceptions=True)
    for version in report.collection.versions:
        logger.info("%s was of no use any more and is removed", version)


async def _show(report: Report) -> None:
    """Put what came of it on the run's page."""
    rows = [
        {
            "version": problem.version,
            "shard": problem.shard,
            "problem": problem.text,
            "removed": "yes" if problem.removed else "no",
        }
        for problem in report.problems[:MOST_ROWS]
    ]
    with decoration():
        await acreate_markdown_artifact(
            maintenance_card(report), key="maintenance", description="what came of it"
        )
        if rows:
            await acreate_table_artifact(rows, key="problems", description="damaged or lost")
    with decoration():
        async with get_client() as client:
            assert flow_run.id is not None
            await settle_task_runs(client, flow_run.id, report.outcomes)


def maintenance_card(report: Report) -> str:
    """Markdown: what was verified, and what was removed."""
    parts = [f"Store: {plain(report.store)}"]
    if report.versions:
        parts += ["## Verified", _verified(report)]
    if report.collection:
        parts += ["## Collected", _collected(report.collection)]
    if report.error:
        parts += ["## Not finished", plain(str(report.error))]
    return "\n\n".join(parts)


def _verified(report: Report) -> str:
    lines = ["| version | shards | samples | bytes | damaged |", "| --- | --: | --: | --: | --: |"]
    for version in report.versions:
        totals = version.totals
        damaged = len({p.place for p in report.problems if p.version == str(version)})
        lines.append(
            f"| {version} | {totals.shards:,} | {totals.samples:,} "
            f"| {format_bytes(totals.bytes)} | {damaged or ''} |"
        )
    return "\n".join(lines)


def _collected(found: Collection) -> str:
    lines = ["| removed | objects | bytes |", "| --- | --: | --: |"]
    lines += [
        f"| {kind} | {tally.count:,} | {format_bytes(tally.bytes)} |"
        for kind, tally in found.removed.items()
        if tally.count
    ]
    lines.append(f"| **all** | {found.total.count:,} | {format_bytes(found.total.bytes)} |")
    stay = f"{format_bytes(found.kept.bytes)} in {found.kept.count:,} blobs stay."
    versions = [f"- {version}" for version in found.versions]
    return "\n\n".join(filter(None, ["\n".join(versions), "\n".join(lines), stay]))
