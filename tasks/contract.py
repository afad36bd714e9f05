"""What a stage is. A new one is a file beside this with a params model, a plan and a make."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from reelmill.digest import plain_json, sha256
from reelmill.errors import Rejected, StageError
from reelmill.recipe import Kind
from reelmill.shards import index
from reelmill.shards.index import Row
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader
from reelmill.shards.writer import Data, SampleOrder, Span
from reelmill.store import Store
from reelmill.store.model import Action, Blob, Generation, History, Shard

Scope = Literal["shard", "generation", "history"]

HISTORY = "history"
"""The role of the generations up to one, as an input of an action."""

MAX_COUNT = 2**53 - 1
"""The largest integer that canonical JSON carries: the bound of parameters that have no other."""

Seed = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Params(BaseModel):
    """Base of all parameter models: frozen, and closed to names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def effective(self) -> dict[str, Any]:
        """What parameters come to, so that those with one meaning have one action key: the values
        that stand for what was left out, and ``None`` for those that have no effect."""
        return {}


class Runtime:
    """Marks a parameter that cannot change a byte of the output: it stays out of action keys.

    ``timeout: Annotated[Seconds, Runtime] = Decimal(30)``
    """


P = TypeVar("P", bound=Params)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that a stage made. ``fields`` are bytes, or paths of files in the job's scratch.

    ``columns`` are the values of the stage's own index columns, and ``provenance`` those that say
    how it was had.
    """

    key: str
    fields: Mapping[str, Data]
    columns: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """A sample taken over verbatim from an input tar."""

    key: str
    span: Span
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample that was left out, and why; see ``reelmill.errors.Rejected``."""

    key: str
    reason: str
    message: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """A whole input tar, taken over as it lies: no byte of it is read or written.

    ``rows`` are those of its samples, with the places that its own index gives. There can be no
    other samples in the shard.
    """

    blob: Blob
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A whole shard at once, of samples taken over verbatim from input tars.

    ``rows`` is its index: the samples in their order, as they will lie, then rejects by key.
    ``data`` are the samples' bytes, in pieces that stand until the next is asked for. There can be
    no other samples or rejects in the shard.
    """

    rows: pa.Table
    data: Iterable[Sequence[memoryview]]


Output = Sample | Copied | Adopted | Gathered | Reject


@dataclass(frozen=True, slots=True)
class Slot:
    """One shard that a stage will make: what its action key holds beside the parameters.

    ``shards`` are the input shards by role, for the worker. What else ``inputs`` name, such as the
    list of a whole generation, are ``documents`` by their digests.
    """

    shard_id: str
    inputs: Mapping[str, Mapping[str, str | None]]
    shards: Mapping[str, Shard] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    slot: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job(Generic[P]):
    """An action in a worker's hands. ``watch``, if anybody does, is told how many input samples are
    done, and of how many."""

    store: Store
    action: Action
    params: P
    shards: Mapping[str, Shard]
    scratch: Path
    watch: Callable[[int, int], object] | None = None
    _readers: dict[str, ShardReader] = field(default_factory=dict, init=False, repr=False)

    def reader(self, role: str) -> ShardReader:
        """The input shard of a role; its index is read once for a job."""
        if role not in self._readers:
            self._readers[role] = ShardReader(self.store, self.shards[role])
        return self._readers[role]

    def generation(self, role: str) -> Generation:
        """The whole input generation of a role."""
        digest = self.action.inputs[role]["shards"]
        assert digest is not None
        return Generation.model_validate_json(self.store.read_blob(digest, "json"))

    def history(self) -> list[Generation]:
        """The generation of the input shard, last, and all before it."""
        digest = self.action.inputs[HISTORY]["generations"]
        assert digest is not None
        history = History.model_validate_json(self.store.read_blob(digest, "json"))
        blobs = (self.store.read_blob(one, "json") for one in history.generations)
        return [Generation.model_validate_json(blob) for blob in blobs]


class Stage(abc.ABC, Generic[P]):
    """A kind of work. ``plan`` is pure; ``make`` yields in any order, the frame does the rest.

    Attributes:
        name: the word for it in recipes.
        version: raised by whoever changes what the stage writes for equal inputs.
        params: the model of its parameters.
        roles: names of its inputs; a recipe's ``from`` fills them.
        optional: those of its roles, never the first, that a recipe may leave out; a job then has
            no shard for them.
        open: whether a recipe may fill further roles, and name them as it likes.
        uneven: whether its inputs may have grown unequally; those without a generation then have
            no part in it. Its output has as many as the input that has the most.
        recalls: whether its shards of one generation know the inputs of those before: then they
            are given to ``recalling``. Its scope is ``generation``.
        scope: ``shard`` if an output shard reads the input shards of the same ID, ``generation``
            if it reads all of them, ``history`` if it reads those of the same ID and besides knows
            all shards of its first role: those of its generation and of the generations before.
        conserves: every input sample comes out as exactly one sample or reject: those of the first
            role, or of all roles where it has none of its own.
        intended: reasons of rejects that a recipe asked for, such as a filter's: they do not count
            against ``max_rejects``.
        order: how samples lie in a shard: by keyed hash, so that a shuffle reads contiguous runs,
            or by key, where people read a shard from its beginning to its end; ``input``: as those
            in the shard of its first role do.
        columns: its own columns of the index.
        provenance: columns that say how samples and rejects were had: what may be different when
            an action is executed again, and so belongs to no version.
        takes: ``rows`` if it reads a table's rows, which have no tar, and ``samples`` if it reads
            what was made of them. The other kind is refused before anything starts.
        reads: the fields of its first role that it reads, or ``None`` for all of them.
        works_on: fields, or the ends of their names after a dot, of which it can use any: to derive
            from a version that has none of them is refused before anything starts. Those of
            ``reads`` beside ``json`` if it says none.
        resources: what a worker must have, as Dask resources, whatever the parameters.
        memory: bytes that a worker takes, with the programs it starts, while it makes one shard of
            typical input (videos of up to 1080p and 50 MB), if known. A build does not start on
            workers that all have less; larger input takes more.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    params: ClassVar[type[Params]]
    roles: ClassVar[tuple[str, ...]] = ("source",)
    optional: ClassVar[tuple[str, ...]] = ()
    open: ClassVar[bool] = False
    uneven: ClassVar[bool] = False
    recalls: ClassVar[bool] = False
    scope: ClassVar[Scope] = "shard"
    conserves: ClassVar[bool] = False
    intended: ClassVar[frozenset[str]] = frozenset()
    order: ClassVar[SampleOrder | Literal["input"]] = "hash"
    columns: ClassVar[pa.Schema] = pa.schema([])
    provenance: ClassVar[pa.Schema | None] = None
    takes: ClassVar[Kind] = "samples"
    reads: ClassVar[tuple[str, ...] | None] = None
    works_on: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Mapping[str, float]] = {}
    memory: ClassVar[int | None] = None

    def plan(self, params: P, inputs: Mapping[str, Sequence[Shard]], first: int) -> list[Slot]:
        """The shards to make of these inputs; equal arguments give equal plans.

        Args:
            inputs: by role, input shards with equal IDs (``scope`` is ``shard``), or all of a
                generation. What is before that (``history``) is added to what this returns.
            first: the number of the first shard, for a stage that numbers its own.
        """
        by_role = {role: {shard.id: shard for shard in shards} for role, shards in inputs.items()}
        ids = sorted(set.intersection(*(set(shards) for shards in by_role.values())))
        return [
            Slot(
                shard_id=shard_id,
                inputs={role: digests(shards[shard_id]) for role, shards in by_role.items()},
                shards={role: shards[shard_id] for role, shards in by_role.items()},
            )
            for shard_id in ids
        ]

    def recalling(
        self,
        params: P,
        slots: Sequence[Slot],
        inputs: Sequence[Mapping[str, Sequence[Shard]]],
    ) -> list[Slot]:
        """Planned slots, which know the inputs of all generations up to theirs, oldest first."""
        return list(slots)

    def outputs(self, params: P, inputs: Mapping[str, Sequence[Shard]]) -> int:
        """How many shards ``plan`` would make of these inputs, for an estimate."""
        return len(self.plan(params, inputs, 0))

    def tools(self, params: P) -> dict[str, str]:
        """The builds whose output the bytes depend on: part of the action key."""
        return {}

    def needs(self, params: P) -> Mapping[str, float]:
        """What a worker must have, as Dask resources, with these parameters."""
        return self.resources

    def takes_of(self, role: str) -> Collection[Kind]:
        """What may fill a role: what the stage ``takes``, if roles are alike."""
        return (self.takes,)

    def refuse_roles(self, params: P, roles: Collection[str]) -> None:
        """Raise ``StageError`` if parameters name inputs that are not there."""

    def scope_of(self, params: P) -> Scope:
        """The stage's ``scope`` with these parameters."""
        return self.scope

    def leaves_out(self, params: P) -> bool:
        """Whether a recipe asks to leave samples out, with these parameters."""
        return bool(self.intended)

    def memory_of(self, params: P) -> int | None:
        """The stage's ``memory`` with these parameters."""
        return self.memory

    def order_of(self, job: Job[P]) -> SampleOrder:
        """How the samples of a job's shard lie."""
        return job.reader(self.roles[0]).order if self.order == "input" else self.order

    def prefix(self, params: P, role: str) -> str:
        """What the stage puts before the keys of a role's samples, so that rows which no longer
        count are told by their new keys, too."""
        return ""

    def merges(self, params: P) -> int:
        """How many generations of its inputs, from the first, count as one: of a stage whose scope
        is ``generation``."""
        return 1

    def may_pass(self, reason: str) -> bool:
        """Whether a reject of this reason may turn out well another time (a host was down)."""
        return False

    def schema(self, job: Job[P]) -> pa.Schema:
        """The stage's index columns, where they depend on its input."""
        return self.columns

    @abc.abstractmethod
    def make(self, job: Job[P]) -> Iterator[Output]:
        """Make one shard. Raise ``StageError`` for what is not the data's fault."""


class SampleStage(Stage[P]):
    """A stage that works sample by sample; one sample's trouble is its own."""

    @abc.abstractmethod
    def each(self, job: Job[P], sample: InputSample) -> Iterator[Output]:
        """What one input sample becomes. Raise ``Rejected`` if it cannot be used."""

    def at_once(self, params: P) -> int:
        """How many samples a worker works on at once, each on a thread: more than one where what
        they wait for is no core, and their outputs are held in memory, not in files."""
        return 1

    def make(self, job: Job[P]) -> Iterator[Output]:
        total = job.shards[self.roles[0]].samples
        for done, outputs in enumerate(self._by_sample(job), 1):
            yield from outputs
            if job.watch is not None:
                job.watch(done, total)

    def _by_sample(self, job: Job[P]) -> Iterator[Iterable[Output]]:
        """What each input sample becomes, in order."""
        samples = job.reader(self.roles[0]).samples(self.reads)
        count = self.at_once(job.params)
        if count == 1:
            for sample in samples:
                yield self._outputs(job, sample)
            return
        with ThreadPoolExecutor(count) as pool:
            waiting: deque[Future[list[Output]]] = deque()
            try:
                for sample in samples:
                    waiting.append(pool.submit(lambda one: list(self._outputs(job, one)), sample))
                    if len(waiting) > count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _outputs(self, job: Job[P], sample: InputSample) -> Iterator[Output]:
        made = 0
        try:
            for output in self.each(job, sample):
                made += 1
                yield output
        except Rejected as rejected:
            made += 1
            yield Reject(sample.key, rejected.reason, rejected.message)
        if not made:
            raise StageError(
                f"stage {self.name} gave neither a sample nor a reject for {sample.key}; "
                "this is a fault in the stage"
            )


def carried_names(
    names: Iterable[str], taken: Collection[str], prefix: str = "table_"
) -> dict[str, str]:
    """What columns that are carried along are called beside others: their own names, or those
    behind as many prefixes as make them free."""
    names = list(names)
    carried: dict[str, str] = {}
    for name in names:
        free = name
        while free in taken or free in carried.values() or (free != name and free in names):
            free = f"{prefix}{free}"
        carried[name] = free
    return carried


def carried_columns(table: pa.Schema, own: Iterable[str]) -> dict[str, str]:
    """What the columns of an input's index, beside those that every index has, are called in one
    with a stage's ``own``."""
    return carried_names(index.own_columns(table).names, {*index.BASE.names, *own})


def label(stage: str, dataset: str, shard_id: str) -> str:
    """What people see of one shard's work: ``split/clips/00012``."""
    return f"{stage}/{dataset}/{shard_id}"


def digests(shard: Shard) -> dict[str, str | None]:
    """A shard as an input of an action: its content, never its name."""
    return {"tar": shard.tar.digest if shard.tar else None, "index": shard.index.digest}


def key_params(params: Params) -> dict[str, Any]:
    """The parameters that enter the action key, as JSON values with defaults filled in."""
    runtime = {
        name
        for name, info in type(params).model_fields.items()
        if any(mark is Runtime for mark in info.metadata)
    }
    meant = params.effective()
    unused = {name for name, value in meant.items() if value is None}
    given = params.model_copy(update={n: v for n, v in meant.items() if v is not None})
    values = given.model_dump(mode="json", exclude=runtime | unused)
    nested = {n: v for n, v in given if n in values and isinstance(v, Params)}
    return values | {name: key_params(value) for name, value in nested.items()}


def action_of(
    stage: Stage[Any], params: Params, slot: Slot, salt: str, tools: Mapping[str, str]
) -> Action:
    """The action that makes a slot."""
    return Action(
        stage=stage.name,
        version=stage.version,
        params=key_params(params),
        inputs={role: dict(digest) for role, digest in slot.inputs.items()},
        slot=dict(slot.slot),
        tools=dict(tools),
        salt=salt,
    )


def generation_input(shards: Sequence[Shard]) -> tuple[str, bytes]:
    """A whole generation as an input of an action: its digest, and the bytes it names."""
    data = Generation(shards=tuple(shards)).as_bytes()
    return sha256(data), data


def history_input(generations: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """A generation and all before it, oldest first, as an input of an action: its digest, and all
    documents that it leads to.

    Args:
        generations: what ``generation_input`` gives for each.
    """
    data = History(generations=tuple(generations)).as_bytes()
    return sha256(data), {**generations, sha256(data): data}


def sample_json(value: Mapping[str, Any]) -> bytes:
    """A sample's ``json`` field: RFC 8785 canonical, so that equal values are equal bytes."""
    return plain_json(value)
