"""Stages that look at samples and only add columns: the tar stays the one that it was."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from reelmill.errors import Rejected
from reelmill.shards import index
from reelmill.shards.gather import Gatherer
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import (
    Adopted,
    Copied,
    Job,
    Output,
    Params,
    Reject,
    Stage,
    carried_columns,
)

P = TypeVar("P", bound=Params)


class ColumnStage(Stage[P]):
    """What is found of each sample goes into ``columns`` beside those that its input has.

    A shard of which every sample can be used takes its input's tar over, and no byte of that is
    copied. From others, the samples that can be used are copied verbatim.

    Attributes:
        reads: the input fields it looks at.
    """

    conserves = True
    order = "input"
    reads: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def look(self, params: P, sample: InputSample) -> Mapping[str, Any]:
        """The values of ``columns`` for a sample. Raise ``Rejected`` if it cannot be used."""

    def schema(self, job: Job[P]) -> pa.Schema:
        table = job.reader(self.roles[0]).table.schema
        names = kept_columns(table, self.columns)
        kept = [table.field(its).with_name(ours) for its, ours in names.items()]
        return pa.schema([*kept, *self.columns])

    def make(self, job: Job[P]) -> Iterator[Output]:
        source = job.shards[self.roles[0]]
        if source.tar is None:
            return
        reader = job.reader(self.roles[0])
        names = kept_columns(reader.table.schema, self.columns)
        rows = reader.rows()
        columns = {row["key"]: {ours: row[its] for its, ours in names.items()} for row in rows}
        rejects: dict[str, Rejected] = {}
        for done, sample in enumerate(reader.samples(self.reads), 1):
            try:
                columns[sample.key].update(self.look(job.params, sample))
            except Rejected as rejected:
                rejects[sample.key] = rejected
            if job.watch is not None:
                job.watch(done, source.samples)
        if not rejects:
            yield Adopted(source.tar, [index.as_row(row, columns[row["key"]]) for row in rows])
            return
        kept = [row for row in rows if row["key"] not in rejects]
        with Gatherer(job.store, job.scratch) as gatherer:
            spans = gatherer.spans([(source, row) for row in kept])
            for row, span in zip(kept, spans, strict=True):
                yield Copied(row["key"], span, columns[row["key"]])
        for key, why in rejects.items():
            yield Reject(key, why.reason, why.message, columns[key])


def kept_columns(table: pa.Schema, own: pa.Schema) -> dict[str, str]:
    """What the columns of an input's index are called beside a stage's ``own``. One of the same
    name and type is what an earlier look found, and its place is taken."""
    names = carried_columns(table, own.names)
    return {name: ours for name, ours in names.items() if not _replaces(own, table.field(name))}


def _replaces(own: pa.Schema, field: pa.Field) -> bool:
    place = own.get_field_index(field.name)
    return place >= 0 and bool(own.field(place).type == field.type)
