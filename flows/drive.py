"""Driving a build: what is there already, what is missing, and having it made. No Prefect here."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from reelmill.dataset import open_version, uncounted
from reelmill.digest import SHORT, sha256
from reelmill.errors import NotFoundError, PoisonError, RecipeError, ReelmillError, told
from reelmill.recipe import Pinned, Recipe
from reelmill.shards import removed
from reelmill.store import Store
from reelmill.store.model import Blob, Lineage, Manifest, Ref, Result, Uncounted
from reelmill.store.store import now
from reelmill.tasks import get_stage
from reelmill.tasks.contract import Params
from reelmill.tasks.frame import Order
from reelmill.tasks.ingest import (
    Source,
    commit_grown,
    commit_ingest,
    ingest,
    ingest_action,
    open_source,
    same_table,
)
from reelmill.tasks.planner import Node, Planner, Todo

T = TypeVar("T")

LATEST = ("latest",)
GRACE_SECONDS = 10.0
"""How long a stopped build waits for the shards that are being made."""

AGAIN_SECONDS = 2.0
"""How often a build looks whether the shards are there that other runs are making."""

_FIRST = asyncio.FIRST_COMPLETED


class BuildFailedError(ReelmillError):
    """Shards or datasets that could not be made; what was made is kept."""


class StoppedError(ReelmillError):
    """The build was asked to stop, by signal ``number``; what was made is kept."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class TakenError(ReelmillError):
    """Another run is making the shard at the moment."""


class Stop(asyncio.Event):
    """Set when the build shall stop, by the signal that asked for it."""

    number: int = signal.SIGINT


async def or_stop(work: Awaitable[T], stop: asyncio.Event) -> asyncio.Future[T] | None:
    """Do ``work``: it, when it is done, or ``None`` if ``stop`` is set before; then it is left."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=_FIRST)
        return working if working.done() else None
    finally:
        stopped.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def for_each(
    work: Callable[[T], Awaitable[None]], items: Iterable[T], window: Callable[[], int]
) -> None:
    """Work on every item, on at most ``window()`` at a time."""
    active: set[asyncio.Future[None]] = set()
    try:
        for item in items:
            while len(active) >= window():
                _, active = await asyncio.wait(active, return_when=_FIRST)
            active.add(asyncio.ensure_future(work(item)))
        await asyncio.gather(*active)
    finally:
        for one in active:
            one.cancel()


@dataclass(slots=True)
class Progress:
    """How far a dataset is. ``expected`` is unknown until its input is; ``moved`` says whether the
    build gave the dataset another version than it had."""

    name: str
    stage: str
    expected: int | None = None
    made: int = 0
    reused: int = 0
    running: int = 0
    failed: int = 0
    samples: int = 0
    rejects: int = 0
    bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    version: str | None = None
    moved: bool = False
    started: float | None = None
    ended: float | None = None

    @property
    def have(self) -> int:
        return self.made + self.reused

    @property
    def seconds(self) -> float:
        """From the first shard's start to the last one's end, or to now."""
        if self.started is None:
            return 0.0
        return (self.ended or time.time()) - self.started

    @property
    def rate(self) -> float:
        """Shards made in a second."""
        return self.made / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> int | None:
        """Seconds that the rest will take at this rate; unknown before something was made."""
        if not self.rate or self.expected is None or self.have >= self.expected:
            return None
        return round((self.expected - self.have) / self.rate)

    def take(self, result: Result) -> None:
        """Count a shard's result in."""
        self.samples += result.samples
        self.rejects += result.rejects
        self.bytes += sum(blob.size for blob in (result.tar, result.index) if blob)
        for reason, count in result.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    def leave_out(self, left: Uncounted) -> None:
        """Take out of the count what no longer counts."""
        self.samples -= left.samples
        self.rejects -= sum(left.rejects.values())
        rest = {r: count - left.rejects.get(r, 0) for r, count in self.reasons.items()}
        self.reasons = {reason: count for reason, count in rest.items() if count}


@dataclass(frozen=True, slots=True)
class Grown:
    """What ingest found in a source's table.

    ``gone`` counts the rows of before that are no longer in it; they are ``dropped``, or kept.
    ``back`` counts those that had been dropped and are there again, ``retried`` the rejects that
    are rows once more.
    """

    name: str
    path: str
    rows: int
    new: int
    gone: int
    rejects: int
    dropped: bool = False
    back: int = 0
    retried: int = 0


Watch = Callable[[str, str, int], object]
"""Is told while a table is read, of which source: what is being done, and rows so far."""


class Listener(Protocol):
    """Is told what happens in a build, in its event loop: it must not wait for anything."""

    def shard_ended(
        self, build: Build, todo: Todo, seconds: float, outcome: Result | str, /
    ) -> None:
        """A shard was made, or could not be for the reason that ``outcome`` gives."""

    def committed(self, build: Build, name: str, /) -> None:
        """A dataset has its version."""


@dataclass(frozen=True, slots=True)
class _Running:
    todo: Todo
    started: float


@dataclass
class Build:
    """A build whose plan is made: what is known, and what is missing.

    ``labels`` name the versions of sources and of finished datasets: ``clips@3fa9c1d20b7e``;
    ``notes`` are for whoever watches, by what they are about; ``error`` is what a build that is
    ``over`` failed of. ``samples`` counts those of shards that are being made, by dataset and
    shard: how many input samples are done, and of how many; (0, 0) before it is heard of.
    """

    recipe: Recipe
    store: Store
    names: list[str]
    planner: Planner
    labels: dict[str, str]
    grown: list[Grown]
    missing: list[Todo]
    progress: dict[str, Progress]
    versions: dict[str, str] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    stopping: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    error: ReelmillError | None = None
    over: bool = False
    listeners: list[Listener] = field(default_factory=list)
    samples: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def hear(self, dataset: str, shard: str, done: int, total: int) -> None:
        """Take in how many input samples of a shard are done, if it is being made."""
        if (dataset, shard) in self.samples:
            self.samples[dataset, shard] = done, total

    def sampled(self, dataset: str) -> tuple[int, int]:
        """How many input samples of the shards that are being made are done, and of how many, of
        those that were heard of; (0, 0) where none was."""
        heard = [count for (name, _), count in self.samples.items() if name == dataset]
        return sum(done for done, _ in heard), sum(total for _, total in heard)

    @property
    def note(self) -> str:
        """What whoever watches should know now, in a line; mostly nothing."""
        return "; ".join(text for text in self.notes.values() if text)

    @property
    def is_complete(self) -> bool:
        """Whether every shard exists, so that only versions are left to commit."""
        return not self.missing and not self.planner.problems()


def prepare(
    recipe: Recipe,
    store: Store,
    *,
    only: Sequence[str] = (),
    run: str,
    write: bool = True,
    watch: Watch | None = None,
) -> Build:
    """Ingest the tables and find out which shards are there already.

    Args:
        only: datasets to build, with what they need; all of them if empty.
        write: put what ingest found into the store; a mere plan does not.
        watch: is told how far an ingest is, which for a long table takes minutes.

    Raises:
        ReelmillError: a table cannot be read, or the recipe does not fit the store.
    """
    names = recipe.select(only) if only else recipe.order()
    wanted = {parent for name in names for parent in recipe.datasets[name].inputs.values()}
    manifests: dict[str, Manifest] = {}
    labels: dict[str, str] = {}
    retried: dict[str, int] = {}
    grown = []
    for name, source in recipe.sources.items():
        if name not in wanted:
            continue
        if isinstance(source, Pinned):
            pinned = open_version(store, source.version)
            if write:
                store.claim_version(pinned.digest)
            manifests[name], labels[name] = pinned.manifest, str(pinned)
            retried[name] = _retried(pinned.manifest, lambda d: store.read_blob(d, "parquet"))
        else:
            manifests[name], version, growth = _ingest(recipe, store, name, run, write, watch)
            labels[name] = f"{name}@{version[:SHORT]}"
            retried[name] = growth.retried
            grown.append(growth)
    for name in names:
        if (ref := store.latest(name)) and ref.stage == "ingest":
            raise RecipeError(
                f"{name}: the store has a source of that name; give the dataset another one"
            )
    nodes = [_node(recipe, name) for name in names]
    planner = Planner(nodes, manifests, retried, partial(renamed, store, write))
    progress = {name: Progress(name, recipe.datasets[name].stage) for name in names}
    build = Build(recipe, store, names, planner, labels, grown, [], progress)
    build.missing = _settle(build, planner.start(), _Memory(store, names, claim=write))
    return build


def _retried(manifest: Manifest, read: Callable[[str], bytes]) -> int:
    tables = (removed.decode_table(read(blob.digest)) for blob in manifest.removed)
    return sum(table["reason"].to_pylist().count(removed.RETRIED) for table in tables)


def renamed(store: Store, write: bool, blob: Blob, prefix: str) -> Blob:
    """A blob of removed rows with ``prefix`` before their keys, put into the store to ``write``."""
    try:
        data = removed.renamed(store.read_blob(blob.digest, "parquet"), prefix)
    except NotFoundError:
        if write:
            raise
        # A plan does not put what an ingest made into the store, and only names the version by it.
        return blob
    if write:
        return store.put_blob(data, "parquet")
    return Blob(digest=sha256(data), size=len(data))


def _node(recipe: Recipe, name: str) -> Node:
    dataset = recipe.datasets[name]
    assert isinstance(dataset.params, Params)
    return Node(
        name=name,
        stage=get_stage(dataset.stage),
        params=dataset.params,
        parents=dataset.inputs,
        salt=dataset.salt,
        max_rejects=dataset.max_rejects,
        max_holes=dataset.max_holes,
    )


def _ingest(
    recipe: Recipe, store: Store, name: str, run: str, write: bool, watch: Watch | None = None
) -> tuple[Manifest, str, Grown]:
    source = recipe.sources[name]
    assert isinstance(source, Source)
    table = open_source(source)
    digest = table.digest()
    settled = source.settled(table)
    last = store.latest(name)
    if last and last.stage != "ingest":
        raise RecipeError(
            f"source {name}: the store has a dataset of that name; give the source another one"
        )
    before = store.record(last.action) if last and last.action else None
    # The same table again: whatever it grew from, there is nothing in it that is new.
    if last and before and same_table(ingest_action(settled, digest, None), before.action):
        totals = last.counted
        known = totals.samples + totals.rejects
        manifest = store.manifest(last.version)
        retried = _retried(manifest, lambda d: store.read_blob(d, "parquet"))
        growth = Grown(name, table.name, known, 0, 0, totals.rejects, retried=retried)
        return manifest, last.version, growth
    base = last.version if last else None
    action = ingest_action(settled, digest, base)
    started = time.time()
    found = ingest(
        source,
        store.manifest(base) if base else None,
        lambda digest: store.read_blob(digest, "parquet"),
        (lambda data: store.put_blob(data, "parquet")) if write else None,
        (lambda what, rows: watch(name, what, rows)) if watch else None,
        table,
    )
    if table.digest() != digest:
        raise RecipeError(
            f"source {name}: {table.name} changed while it was read; build again when it is whole"
        )
    if found.new and found.known and found.gone == found.known:
        raise RecipeError(
            f"source {name}: the store knows another table by that name, of which {table.name} "
            "holds not one row; give the source another name, or the recipe another store"
        )
    totals = found.manifest.totals()

    def read(digest: str) -> bytes:
        # A plan does not put what an ingest made into the store.
        if found.removed is not None and sha256(found.removed) == digest:
            return found.removed
        return store.read_blob(digest, "parquet")

    lost = uncounted(found.manifest, read, by_shard=True)
    growth = Grown(
        name=name,
        path=table.name,
        rows=found.rows,
        new=found.new,
        gone=found.gone,
        rejects=totals.rejects - (sum(lost.rejects.values()) if lost else 0),
        dropped=source.removed == "drop",
        back=found.back,
        retried=_retried(found.manifest, read),
    )
    if not write:
        return found.manifest, "", growth
    how: dict[str, str | int] = {"run": run, "started": int(started)}
    made = commit_ingest(store, action, found, how)
    assert made.manifest is not None
    version = made.manifest.digest
    if not commit_grown(store, name, action, version, base=base, totals=totals, lost=lost, run=run):
        return _ingest(recipe, store, name, run, write, watch)
    return found.manifest, version, growth


class _Memory:
    """Results of earlier builds. The lineage of the newest versions answers for most shards with
    one read a dataset; the store's action records answer for the rest."""

    def __init__(self, store: Store, names: Iterable[str], *, claim: bool = True) -> None:
        self._store = store
        self._claim = claim
        self._known: dict[str, Result] = {}
        for name in names:
            ref = store.latest(name)
            if ref and ref.lineage:
                try:
                    lineage = store.lineage(ref.lineage)
                except ReelmillError:
                    continue
                # What may turn out well another time is for its action record to answer, which a
                # build that failed over it has removed.
                self._known.update(
                    {
                        entry.action: entry.result
                        for entry in lineage.shards
                        if not any(may_pass(ref.stage, r) for r in entry.result.reasons)
                    }
                )

    def recall(self, todos: Sequence[Todo]) -> dict[str, Result]:
        keys = [todo.action.key for todo in todos]
        known = {key: self._known[key] for key in keys if key in self._known}
        found = self._store.intact(known) if known else {}
        rest = [key for key in keys if key not in known]
        return {**found, **(self._store.recall(rest, claim=self._claim) if rest else {})}


def may_pass(stage: str, reason: str) -> bool:
    """Whether a reject of a stage may turn out well another time."""
    try:
        return get_stage(stage).may_pass(reason)
    except KeyError:
        return False


def _settle(build: Build, todos: Sequence[Todo], memory: _Memory) -> list[Todo]:
    """Feed the planner with all that the store knows; what must be made."""
    missing = []
    while todos:
        found = memory.recall(todos)
        ready: list[Todo] = []
        for todo in todos:
            result = found.get(todo.action.key)
            if result is None or result.index is None:
                missing.append(todo)
            else:
                progress = build.progress[todo.dataset]
                progress.reused += 1
                progress.take(result)
                ready += build.planner.done(todo, result)
        todos = ready
    expected = build.planner.expected()
    for name, progress in build.progress.items():
        progress.expected = expected[name]
    return missing


def commit_versions(build: Build, run: str) -> list[str]:
    """Commit every dataset that became complete; their names."""
    committed = []
    for name, manifest, lineage in build.planner.finished():
        ref, moved = _commit(build, name, manifest, lineage, run)
        version = ref.version
        build.versions[name] = version
        build.labels[name] = f"{name}@{version[:SHORT]}"
        progress = build.progress[name]
        progress.version = version
        progress.moved = moved
        if ref.uncounted:
            progress.leave_out(ref.uncounted)
        progress.expected = progress.have
        committed.append(name)
    for key in set(build.planner.passing()) - build.forgotten:
        build.store.forget(key)
        build.forgotten.add(key)
    return committed


def _commit(
    build: Build, name: str, manifest: Manifest, lineage: Lineage, run: str
) -> tuple[Ref, bool]:
    dataset = build.recipe.datasets[name]
    before = build.store.latest(name)
    kept = {before.version, before.lineage or ""} if before else set()
    version = build.store.put_manifest(manifest, kept=kept)
    moved = before is None or before.version != version
    ref = Ref(
        event="commit",
        version=version,
        tags=LATEST,
        time=now(),
        run=run,
        stage=dataset.stage,
        parents={role: build.labels[parent] for role, parent in dataset.inputs.items()},
        lineage=build.store.put_blob(lineage.as_bytes(), "json", kept=kept).digest,
        totals=manifest.totals(),
        holes=build.planner.holes(name),
        uncounted=_uncounted(build, name, manifest)
        if before is None or moved
        else before.uncounted,
    )
    build.store.commit_ref(name, ref)
    return ref, moved


def _uncounted(build: Build, name: str, manifest: Manifest) -> Uncounted | None:
    if not manifest.removed:
        return None
    recipe = build.recipe
    # Those whose shards have the IDs of their tables' shards. Parents come before children.
    narrow = {one for one, source in recipe.sources.items() if isinstance(source, Source)}
    for one in build.names:
        dataset = recipe.datasets[one]
        scope = get_stage(dataset.stage).scope_of(dataset.params)
        if scope == "shard" and narrow.issuperset(dataset.inputs.values()):
            narrow.add(one)
    read = partial(build.store.read_blob, suffix="parquet")
    return uncounted(manifest, read, by_shard=name in narrow)


Submit = Callable[[Todo, str], Awaitable[str]]
"""Has an ``Order`` (JSON) executed somewhere; the ``Result`` (JSON)."""

HasFailed = Callable[[float], bool]
"""Whether the store has failed since a moment (seconds since the epoch). May wait for it."""


async def drive(
    build: Build,
    submit: Submit,
    *,
    window: Callable[[], int],
    run: str,
    stop: Stop,
    store_has_failed: HasFailed = lambda _since: False,
) -> None:
    """Make what is missing, with at most ``window()`` shards in flight, and commit the versions.

    Shards that fail do not hold up the others. Those that failed because the store did are made
    again. Shards deeper in the recipe go first, so that chains finish instead of all starting.
    What ``submit`` refuses by a ``TakenError`` is looked up, and submitted again, now and then.

    Raises:
        BuildFailedError: some shards or datasets could not be made.
        StoppedError: ``stop`` was set.
    """
    memory = _Memory(build.store, ())
    count = itertools.count()
    queue: list[tuple[int, int, int, Todo]] = []
    active: dict[asyncio.Task[str], _Running] = {}
    taken: list[Todo] = []
    look_again = 0.0
    attached: set[str] = set()

    def enqueue(todos: Iterable[Todo]) -> None:
        for todo in todos:
            heapq.heappush(queue, (-todo.depth, todo.generation, next(count), todo))

    def start(todo: Todo) -> None:
        key = todo.action.key
        if any(running.todo.action.key == key for running in active.values()):
            # Two datasets, one action: what the first one makes is there for the second.
            taken.append(todo)
            return
        progress = build.progress[todo.dataset]
        progress.started = progress.started or time.time()
        progress.running += 1
        build.samples[todo.dataset, todo.shard] = 0, 0
        order = order_of(build, todo, run)
        active[asyncio.ensure_future(submit(todo, order))] = _Running(todo, time.time())

    enqueue(build.missing)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while (queue or active or taken) and not stop.is_set():
            while queue and len(active) < window():
                todo = heapq.heappop(queue)[-1]
                await asyncio.to_thread(_attach, build.store, todo, attached)
                start(todo)
            patience = AGAIN_SECONDS if taken else None
            await asyncio.wait({stopped, *active}, timeout=patience, return_when=_FIRST)
            for task in [task for task in active if task.done()]:
                build.stopping = stop.is_set()
                running = active.pop(task)
                if _is_taken(task):
                    _leave(build, running.todo)
                    taken.append(running.todo)
                    continue
                if (
                    _has_failed(task)
                    and not build.stopping
                    and await asyncio.to_thread(store_has_failed, running.started)
                ):
                    _leave(build, running.todo)
                    enqueue([running.todo])
                    continue
                ready = _take(build, running, task)
                enqueue(await asyncio.to_thread(_settle, build, ready, memory))
                await commit(build, run)
            build.notes["others"] = _waiting(taken, active, queue)
            if taken and time.monotonic() >= look_again:
                look_again = time.monotonic() + AGAIN_SECONDS
                enqueue(await asyncio.to_thread(_settle, build, taken, memory))
                taken = []
                await commit(build, run)
        build.stopping = stop.is_set()
        if stop.is_set() and active:
            await _wind_down(build, active)
    finally:
        stopped.cancel()
        for task in active:
            task.cancel()
        await asyncio.gather(*active, return_exceptions=True)
        await commit(build, run)
    problems = build.planner.problems()
    if stop.is_set() and len(build.versions) < len(build.names):
        raise StoppedError(_kept(build, "stopped"), stop.number)
    if problems:
        raise BuildFailedError("; ".join(problems.values()))


async def commit(build: Build, run: str) -> None:
    """Commit every dataset that became complete, and tell the listeners."""
    for name in await asyncio.to_thread(commit_versions, build, run):
        for listener in build.listeners:
            listener.committed(build, name)


async def _wind_down(build: Build, active: dict[asyncio.Task[str], _Running]) -> None:
    done, _ = await asyncio.wait(active, timeout=GRACE_SECONDS)
    for task in done:
        running = active.pop(task)
        if not _is_taken(task):
            _take(build, running, task)


def _has_failed(task: asyncio.Task[str]) -> bool:
    return not task.cancelled() and task.exception() is not None


def _is_taken(task: asyncio.Task[str]) -> bool:
    return not task.cancelled() and isinstance(task.exception(), TakenError)


def _waiting(taken: Sequence[Todo], *ours: Collection[object]) -> str:
    if not taken or any(ours):
        return ""
    return f"waiting for {len(taken)} shards that other runs are making"


def _leave(build: Build, todo: Todo) -> None:
    """Count a shard no longer as one that is being made."""
    build.progress[todo.dataset].running -= 1
    del build.samples[todo.dataset, todo.shard]


def _take(build: Build, running: _Running, task: asyncio.Task[str]) -> list[Todo]:
    todo = running.todo
    progress = build.progress[todo.dataset]
    _leave(build, todo)
    progress.ended = time.time()
    seconds = progress.ended - running.started
    if task.cancelled() or task.exception():
        progress.failed += 1
        error = None if task.cancelled() else task.exception()
        message = told(error) if error else "cancelled"
        for listener in build.listeners:
            listener.shard_ended(build, todo, seconds, message)
        may_be_hole = error is not None and not build.stopping and _is_its_own(error)
        return build.planner.failed(todo, message, may_be_hole=may_be_hole)
    result = Result.model_validate_json(task.result())
    progress.made += 1
    progress.take(result)
    for listener in build.listeners:
        listener.shard_ended(build, todo, seconds, result)
    return build.planner.done(todo, result)


def _is_its_own(error: BaseException) -> bool:
    """Whether it is the shard that cannot be made: it kills its workers, or the stage's code fails
    of it. A cluster, a store or a disk that fails, or a worker with other tools, says nothing."""
    return isinstance(error, PoisonError) or not isinstance(error, ReelmillError | OSError)


def _attach(store: Store, todo: Todo, attached: set[str]) -> None:
    for digest, data in todo.slot.documents.items():
        if digest not in attached:
            store.put_blob(data, "json")
            attached.add(digest)


def order_of(build: Build, todo: Todo, run: str) -> str:
    """What a worker needs to make a shard: an ``Order``, as JSON."""
    dataset = build.recipe.datasets[todo.dataset]
    return Order(
        store=build.store.url,
        run=run,
        dataset=todo.dataset,
        shard=todo.shard,
        action=todo.action,
        params=dataset.params.model_dump(mode="json"),
        shards=dict(todo.slot.shards),
    ).model_dump_json()


def _kept(build: Build, word: str) -> str:
    have = sum(progress.have for progress in build.progress.values())
    return f"{word}; {have} finished shards are kept"
