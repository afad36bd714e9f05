"""Join: fields and columns of several datasets of the same ancestor, put together by key."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, get_args

import pyarrow as pa
from pydantic import BeforeValidator, ConfigDict, Field

from reelmill.errors import Rejected, ShardError, StageError
from reelmill.recipe import Kind
from reelmill.shards import index, tar
from reelmill.shards.index import Member
from reelmill.shards.lookup import Lookup, columns_of, with_ancestors
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import stage_columns
from reelmill.store.model import Shard
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Sample,
    Scope,
    Slot,
    Stage,
    carried_names,
    digests,
    generation_input,
    sample_json,
)
from reelmill.tasks.own import field_names, matching
from reelmill.tasks.taken import taken

SOURCE: Final = "source"
NO_PARTNER: Final = "no_partner"
"""Why a sample was left out that another dataset has nothing for."""

BAD_JSON: Final = "bad_json"
"""Why a sample was left out whose json cannot be put together."""

UNFIT_FIELD: Final = "unfit_field"
"""Why a sample was left out whose fields cannot be in one tar under the names that they get."""

JSON: Final = "json"
_READ: Final = 8 << 20
"""Bytes of partners' fields that are read at once."""


def _chosen(given: Any) -> Any:
    """``{flow: [a, b], captions: []}`` as ``[flow:a, flow:b, captions:]``."""
    if not isinstance(given, Mapping):
        return [given] if isinstance(given, str) else given
    chosen: list[Any] = []
    for role, patterns in given.items():
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(listed, list | tuple) or not all(isinstance(p, str) for p in listed):
            raise ValueError(f"{role} must be a list of fields")
        chosen += [f"{role}:{pattern}" for pattern in listed] or [f"{role}:"]
    return chosen


def _names(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class JoinParams(Params):
    """Which fields of which dataset, where they are looked for, and what if they are not there."""

    model_config = ConfigDict(serialize_by_alias=True)

    fields_of: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*:.*$", max_length=300)], ...],
        BeforeValidator(_chosen),
    ] = Field(
        (),
        alias="fields",
        description="fields to take of a role, by names or patterns, such as flow:*.flow.png; "
        "'captions:' alone takes its columns only; all fields of roles that are not named",
    )
    prefix: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="roles whose fields get the role's name in front: flow.mp4"
    )
    by: Literal["shard", "key"] = Field(
        "shard",
        description="look for a sample's partners in the shard of the same ID, or, where a dataset "
        "was shuffled, in all shards of the generation",
    )
    missing: Literal["reject", "keep", "fail"] = Field(
        "reject", description="what becomes of a sample for which another dataset has nothing"
    )

    def effective(self) -> dict[str, Any]:
        return {
            "fields_of": tuple(sorted(set(self.fields_of))),
            "prefix": tuple(sorted(set(self.prefix))),
        }

    def patterns(self, role: str) -> tuple[str, ...] | None:
        """The fields to take of a role; ``None`` for all of them."""
        mine = [text.partition(":")[2] for text in self.fields_of if text.startswith(f"{role}:")]
        return tuple(pattern for pattern in mine if pattern) if mine else None


class Join(Stage[JoinParams]):
    """Shards and keys are those of ``source``; its samples get what the others have for them.

    Another dataset has something for a sample if it has a sample of its key, or of one that it
    derives from: the captions of a clip are those of its triplets. Rows of a table have columns
    only.
    """

    name = "join"
    params = JoinParams
    roles = (SOURCE,)
    open = True
    conserves = True
    order = "input"
    memory = 300_000_000

    def takes_of(self, role: str) -> Collection[Kind]:
        return (self.takes,) if role == SOURCE else get_args(Kind)

    def refuse_roles(self, params: JoinParams, roles: Collection[str]) -> None:
        named = {text.partition(":")[0] for text in params.fields_of} | set(params.prefix)
        for role in sorted(named - set(roles)):
            raise StageError(f"join: no input is called {role}; there are {', '.join(roles)}")
        if SOURCE in named:
            raise StageError(
                "join: fields and prefix are for the other inputs; source keeps its own"
            )

    def scope_of(self, params: JoinParams) -> Scope:
        return "shard" if params.by == "shard" else "generation"

    def plan(
        self, params: JoinParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        if params.by == "shard":
            return super().plan(params, inputs, first)
        listed = {r: generation_input(shards) for r, shards in inputs.items() if r != SOURCE}
        others = {role: {"shards": digest} for role, (digest, _) in listed.items()}
        return [
            Slot(
                shard_id=shard.id,
                inputs={SOURCE: digests(shard), **others},
                shards={SOURCE: shard},
                documents=dict(listed.values()),
            )
            for shard in inputs[SOURCE]
        ]

    def schema(self, job: Job[JoinParams]) -> pa.Schema:
        return _columns(job)[0]

    def make(self, job: Job[JoinParams]) -> Iterator[Output]:
        reader = job.reader(SOURCE)
        rows = reader.rows()
        partners = _Partners(job, [row["key"] for row in rows])
        columns: dict[str, Mapping[str, Any]] = {}
        going: dict[str, Reject] = {}
        for row in rows:
            key = row["key"]
            columns[key] = partners.columns_for(key, stage_columns(row))
            if lacking := partners.lacking(key):
                going[key] = _without(job, key, lacking, columns[key])
        staying = {key: cells for key, cells in columns.items() if key not in going}
        yield from going.values()
        if not partners.have_fields:
            yield from taken(job, SOURCE, rows, staying)
            return
        partners.refuse_same(field_names(reader.table))
        done = len(going)
        for batch in partners.batches(reader.samples(None, staying)):
            for sample, more in zip(batch, partners.read(batch), strict=True):
                try:
                    yield Sample(sample.key, _put_together(sample, more), columns[sample.key])
                except Rejected as bad:
                    yield Reject(sample.key, bad.reason, bad.message, columns[sample.key])
            done += len(batch)
            if job.watch is not None:
                job.watch(done, len(rows))


def _without(
    job: Job[JoinParams], key: str, roles: Sequence[str], columns: Mapping[str, Any]
) -> Reject:
    what = f"nothing for it in {' and '.join(roles)}"
    if job.params.by == "shard":
        what += ", in the shard of the same ID; by: key looks in all"
    if job.params.missing == "fail":
        raise StageError(f"sample {key}: {what}")
    return Reject(key, NO_PARTNER, what, columns)


def _others(job: Job[JoinParams]) -> dict[str, Sequence[Shard]]:
    """The shards in which partners are looked for, by role."""
    roles = sorted(role for role in job.action.inputs if role != SOURCE)
    if job.params.by == "shard":
        return {role: [job.shards[role]] for role in roles}
    return {role: job.generation(role).shards for role in roles}


def _columns(job: Job[JoinParams]) -> tuple[pa.Schema, dict[str, dict[str, str]]]:
    """All columns, and what those of each role are called among them."""
    fields = list(index.own_columns(job.reader(SOURCE).table.schema))
    names: dict[str, dict[str, str]] = {}
    for role, shards in _others(job).items():
        theirs = columns_of(job.store, shards)
        taken = {*index.BASE.names, *(field.name for field in fields)}
        names[role] = carried_names(theirs.names, taken, f"{role}_")
        fields += [theirs.field(name).with_name(called) for name, called in names[role].items()]
    return pa.schema(fields), names


class _Partners:
    """What the other datasets have for the samples of a shard."""

    def __init__(self, job: Job[JoinParams], keys: Sequence[str]) -> None:
        self._params = job.params
        _, self._names = _columns(job)
        wanted = {one for key in keys for one in with_ancestors(key)}
        self._lookups = {
            role: Lookup(job.store, shards, wanted) for role, shards in _others(job).items()
        }
        found = {role: self._fields(role, keys) for role in self._lookups}
        self._wanted = {
            role: matching(names, job.params.patterns(role)) for role, names in found.items()
        }

    def _fields(self, role: str, keys: Sequence[str]) -> set[str]:
        lookup = self._lookups[role]
        nearest = {one for key in keys if (one := lookup.nearest(key)) is not None}
        return {member.name for one in nearest for member in lookup.members(one)}

    @property
    def have_fields(self) -> bool:
        """Whether samples get more than columns."""
        return any(self._wanted.values())

    def columns_for(self, key: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a sample, with those of its partners."""
        cells = dict(own)
        for role, lookup in self._lookups.items():
            partner = lookup.nearest(key)
            if partner is not None:
                row = lookup.row(partner)
                cells.update({name: row[its] for its, name in self._names[role].items()})
        return cells

    def lacking(self, key: str) -> list[str]:
        """The roles that have nothing for a sample, where that is not how it may be."""
        if self._params.missing == "keep":
            return []
        return [role for role, lookup in self._lookups.items() if lookup.nearest(key) is None]

    def refuse_same(self, own: Collection[str]) -> None:
        """Raise ``StageError`` if a field is in two of the datasets."""
        owner = dict.fromkeys(own, SOURCE)
        for role, names in self._wanted.items():
            for name in sorted(names):
                if name == JSON and role not in self._params.prefix:
                    continue
                called = self._called(role, name)
                if called in owner:
                    raise StageError(
                        f"{owner[called]} and {role} both have the field {called}; say which "
                        f"fields of {role} to take, as in fields: {{{role}: [txt]}}, or prefix: "
                        f"[{role}]"
                    )
                owner[called] = role

    def _called(self, role: str, name: str) -> str:
        return f"{role}.{name}" if role in self._params.prefix else name

    def batches(self, samples: Iterator[InputSample]) -> Iterator[list[InputSample]]:
        """Samples in portions whose partners fit into memory."""
        batch: list[InputSample] = []
        size = 0
        for sample in samples:
            batch.append(sample)
            size += sum(m.size for _, _, members in self._of(sample.key) for m in members)
            size += sum(map(len, sample.fields.values()))
            if size >= _READ:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _of(self, key: str) -> Iterator[tuple[str, str, list[Member]]]:
        """What there is for a sample: the role, the partner's key, and its fields to take."""
        for role, lookup in self._lookups.items():
            partner = lookup.nearest(key)
            if partner is not None:
                members = [m for m in lookup.members(partner) if m.name in self._wanted[role]]
                yield role, partner, members

    def read(self, batch: Sequence[InputSample]) -> Iterator[dict[str, dict[str, bytes]]]:
        """The fields that each sample gets, by role; ``json`` by that name, the others by those
        that they get."""
        wanted: dict[str, dict[str, list[Member]]] = {role: {} for role in self._lookups}
        for sample in batch:
            for role, partner, members in self._of(sample.key):
                wanted[role][partner] = members
        data = {role: self._lookups[role].read(some) for role, some in wanted.items()}
        for sample in batch:
            yield {
                role: {self._called(role, name): d for name, d in data[role][partner].items()}
                for role, partner, _ in self._of(sample.key)
            }


def _put_together(sample: InputSample, more: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """A sample's fields: each partner's ``json`` goes into its own, under the partner's role."""
    fields = dict(sample.fields)
    told = {role: found[JSON] for role, found in more.items() if JSON in found}
    for found in more.values():
        fields.update({name: data for name, data in found.items() if name != JSON})
    _refuse_unfit(sample.key, fields)
    if told:
        about = _object(fields.get(JSON, b"{}"), SOURCE)
        for role, data in told.items():
            if role in about:
                raise StageError(
                    f"the json of sample {sample.key} says something of {role} already; call that "
                    f"input otherwise, or leave its json out by fields: {{{role}: [...]}}"
                )
            about[role] = _object(data, role)
        try:
            fields[JSON] = sample_json(about)
        # Canonical JSON cannot hold all that can be read, such as an integer beyond 2**53.
        except (ValueError, RecursionError):
            raise Rejected(BAD_JSON, "its json holds what cannot be written again") from None
    return fields


def _refuse_unfit(key: str, names: Collection[str]) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise Rejected(UNFIT_FIELD, "two of its fields differ only in case")
    try:
        for name in names:
            tar.member_name(key, name)
    except ShardError as error:
        raise Rejected(UNFIT_FIELD, str(error)) from None


def _object(data: bytes, role: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Rejected(BAD_JSON, f"the json of {role} is no object")
    return value
