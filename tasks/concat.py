"""Concat: several datasets as one. No byte of a tar is copied, unless keys must change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from reelmill.digest import order_hash
from reelmill.errors import StageError
from reelmill.shards import gather, index
from reelmill.shards.reader import stage_columns
from reelmill.shards.writer import SampleOrder
from reelmill.store import Store
from reelmill.store.model import Shard
from reelmill.tasks.contract import (
    Adopted,
    Job,
    Output,
    Params,
    Sample,
    Slot,
    Stage,
    digests,
    generation_input,
)

SOURCE: Final = "source"
_COLUMNS: Final = "columns"
_ALL: Final = "all"


class ConcatParams(Params):
    """What becomes of keys."""

    prefix: bool = Field(
        False,
        description="put each dataset's role before its keys, as in day-000010005: for datasets "
        "of different sources, whose keys are the same",
    )


class Concat(Stage[ConcatParams]):
    """The shards of all inputs, numbered through in their order, generation by generation.

    An index gets the columns of all inputs. Shards without a sample are left out.
    """

    name = "concat"
    params = ConcatParams
    roles = ()
    open = True
    uneven = True
    recalls = True
    scope = "generation"
    conserves = True
    memory = 250_000_000

    def order_of(self, job: Job[ConcatParams]) -> SampleOrder:
        return job.reader(SOURCE).order

    def prefix(self, params: ConcatParams, role: str) -> str:
        # All before a key's first _ tells the row of the source that it derives from.
        return f"{role.replace('_', '-')}-" if params.prefix else ""

    def plan(
        self, params: ConcatParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        slots = []
        for number, (role, shard) in enumerate(_taken(inputs)):
            slots.append(
                Slot(
                    shard_id=f"{first + number:05d}",
                    inputs={SOURCE: digests(shard)},
                    shards={SOURCE: shard},
                    slot={"prefix": self.prefix(params, role)} if params.prefix else {},
                )
            )
        return slots

    def recalling(
        self,
        params: ConcatParams,
        slots: Sequence[Slot],
        inputs: Sequence[Mapping[str, Sequence[Shard]]],
    ) -> list[Slot]:
        """All know the columns of all inputs. The worker of the first also looks whether a key is
        there twice."""
        absent = sorted(inputs[0].keys() - inputs[-1].keys())
        if absent and not params.prefix:
            raise StageError(
                f"{' and '.join(absent)} grew less often than the others, so they come from "
                "different sources, whose keys may be the same; say prefix: true"
            )
        if not slots:
            return []
        columns = _firsts(inputs)
        slots = [replace(one, inputs={**one.inputs, _COLUMNS: columns}) for one in slots]
        taken = [pair for generation in inputs for pair in _taken(generation)]
        digest, data = generation_input([shard for _, shard in taken])
        runs = groupby(self.prefix(params, role) for role, _ in taken)
        told = " ".join(f"{prefix}:{sum(1 for _ in run)}" for prefix, run in runs)
        checking = replace(
            slots[0],
            inputs={**slots[0].inputs, _ALL: {"shards": digest}},
            documents={digest: data},
            slot={**slots[0].slot, "prefixes": told} if params.prefix else slots[0].slot,
        )
        return [checking, *slots[1:]]

    def schema(self, job: Job[ConcatParams]) -> pa.Schema:
        return _schema(job)

    def make(self, job: Job[ConcatParams]) -> Iterator[Output]:
        if _ALL in job.action.inputs:
            _refuse_twice(job)
        shard, reader = job.shards[SOURCE], job.reader(SOURCE)
        assert shard.tar is not None
        if not job.params.prefix:
            yield Adopted(shard.tar, [index.as_row(r, stage_columns(r)) for r in reader.rows()])
            return
        prefix = str(job.action.slot["prefix"])
        for done, sample in enumerate(reader.samples(), 1):
            yield Sample(f"{prefix}{sample.key}", sample.fields, sample.columns)
            if job.watch is not None:
                job.watch(done, shard.samples)


def _taken(inputs: Mapping[str, Sequence[Shard]]) -> list[tuple[str, Shard]]:
    """The shards that are taken over, each with its role."""
    return [(role, one) for role, shards in inputs.items() for one in shards if one.samples]


def _firsts(inputs: Sequence[Mapping[str, Sequence[Shard]]]) -> dict[str, str | None]:
    """An index of each input, for its columns: all of a dataset's have the same."""
    found: dict[str, str | None] = {}
    for number, role in enumerate(inputs[0]):
        shards = (shard for generation in inputs for shard in generation.get(role, ()))
        first = next((shard for shard in shards if shard.samples), None)
        if first is not None:
            found[str(number)] = first.index.digest
    return found


def _schema(job: Job[ConcatParams]) -> pa.Schema:
    digests = job.action.inputs[_COLUMNS].values()
    schemas = [_columns(job.store, digest) for digest in dict.fromkeys(digests) if digest]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        types: dict[str, set[Any]] = {}
        for name, kind in ((f.name, f.type) for schema in schemas for f in schema):
            types.setdefault(name, set()).add(kind)
        name = next(n for n, kinds in types.items() if len(kinds) > 1)
        kinds = " and ".join(sorted(map(str, types[name])))
        raise StageError(
            f"the datasets have columns {name} of {kinds}, which are not one column"
        ) from None


def _columns(store: Store, digest: str) -> pa.Schema:
    return index.own_columns(index.decode(store.read_blob(digest, "parquet")).schema)


def _refuse_twice(job: Job[ConcatParams]) -> None:
    """Raise ``StageError`` if two samples, of all generations so far, have one key.

    Memory holds eight bytes for each sample.
    """
    pairs = list(zip(job.generation(_ALL).shards, _prefixes(job), strict=True))
    hashes = np.sort(np.concatenate([_hashes(job.store, *pair) for pair in pairs]))
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not twice:
        return
    keys = (key for pair in pairs for key in _keys(job.store, *pair))
    counts = Counter(key for key in keys if order_hash(key) in twice)
    found = sorted(key for key, count in counts.items() if count > 1)
    if found:
        raise StageError(
            f"keys are there more than once ({len(found)} of them, such as {found[0]}); say "
            "prefix: true, or leave them out of one of the datasets"
        )


def _prefixes(job: Job[ConcatParams]) -> list[str]:
    """What is put before the keys of each shard that is looked at."""
    told = str(job.action.slot.get("prefixes", ""))
    if not told:
        return [""] * len(job.generation(_ALL).shards)
    runs = (run.split(":") for run in told.split(" "))
    return [prefix for prefix, count in runs for _ in range(int(count))]


def _keys(store: Store, shard: Shard, prefix: str) -> list[str]:
    rows = gather.sample_rows(store.read_blob(shard.index.digest, "parquet"))
    return [f"{prefix}{key}" for key in rows["key"].to_pylist()]


def _hashes(store: Store, shard: Shard, prefix: str) -> Any:
    return gather.hashes(_keys(store, shard, prefix))
