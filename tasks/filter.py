"""Filter: the samples that fulfil a condition on their columns, or of which a function says yes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from reelmill.errors import Rejected, StageError
from reelmill.shards import index
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader, stage_columns
from reelmill.store.model import Shard
from reelmill.tasks.contract import Job, Output, Params, Reject, Slot, Stage
from reelmill.tasks.own import (
    Address,
    Arguments,
    Caller,
    Function,
    OnError,
    field_names,
    matching,
    typed,
    with_documents,
    wrong,
)
from reelmill.tasks.taken import taken
from reelmill.where import MAX_TEXT, Condition

FILTERED: Final = "filtered"
"""Why a sample is left out that a filter was asked to leave out."""

_ALSO: Final = ("key", "size")
"""Columns of every index that a condition may name: a sample's key, and its bytes in the tar."""


class FilterParams(Params):
    """Which samples stay."""

    model_config = ConfigDict(serialize_by_alias=True)

    where: (
        Annotated[
            str,
            Field(min_length=1, max_length=MAX_TEXT, examples=["mean_motion > 0.5"]),
            AfterValidator(lambda text: Condition.parse(text).text),
        ]
        | None
    ) = Field(None, description="a condition on columns of the index, such as mean_motion > 0.5")
    function: Address | None = Field(
        None,
        description="a function that is given a sample and says true, false, or why it goes: "
        "module:function or ./file.py:function",
    )
    arguments: Arguments = Field(
        "{}", alias="with", description="arguments of the function by name, as JSON"
    )
    on_error: OnError = Field(
        "fail", description="where the function fails: fail, or reject the sample"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FilterParams:
        if self.where is None and self.function is None:
            raise ValueError("give where, or function, or both")
        if self.function is None and self.arguments != "{}":
            raise ValueError("with is for a function")
        if self.function is not None:
            self.function.refuse_arguments(self.arguments)
        return self

    def effective(self) -> dict[str, Any]:
        return {} if self.function else {"arguments": None, "on_error": None}


class Filter(Stage[FilterParams]):
    """Shards keep their IDs and samples their keys; a shard of which all stays keeps its tar.

    Only columns are looked at, unless a function reads fields. What stays is copied by range.
    """

    name = "filter"
    params = FilterParams
    conserves = True
    order = "input"
    intended = frozenset({FILTERED})
    memory = 250_000_000

    def plan(
        self, params: FilterParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        return with_documents(super().plan(params, inputs, first), params.function)

    def tools(self, params: FilterParams) -> dict[str, str]:
        return params.function.tools() if params.function else {}

    def needs(self, params: FilterParams) -> Mapping[str, float]:
        return params.function.needs() if params.function else {}

    def memory_of(self, params: FilterParams) -> int | None:
        return (params.function and params.function.declared.memory) or self.memory

    def schema(self, job: Job[FilterParams]) -> pa.Schema:
        return index.own_columns(job.reader("source").table.schema)

    def make(self, job: Job[FilterParams]) -> Iterator[Output]:
        reader = job.reader("source")
        rows = reader.rows()
        going = _excluded(job, reader, rows)
        if job.params.function is not None:
            _ask(job, job.params.function, reader, len(rows), going)
        staying = {row["key"]: stage_columns(row) for row in rows if row["key"] not in going}
        yield from taken(job, "source", rows, staying)
        for row in rows:
            if (reject := going.get(row["key"])) is not None:
                yield Reject(reject.key, reject.reason, reject.message, stage_columns(row))


def _ask(
    job: Job[FilterParams],
    function: Function,
    reader: ShardReader,
    total: int,
    going: dict[str, Reject],
) -> None:
    """Add to ``going`` those of the others that the function does not want."""

    def verdict(sample: InputSample, said: Any) -> None:
        if isinstance(said, str):
            raise Rejected(FILTERED, said)
        if not isinstance(said, bool | np.bool_):
            right = "a filter says true, false, or why it goes"
            raise wrong(function, sample.key, typed(said), right)
        if not said:
            raise Rejected(FILTERED, f"{function.name} says no")

    ready = function.ready(job.store, job.params.arguments)
    caller = Caller(function, ready, job.params.on_error, verdict)
    asked = set(reader.table["key"].to_pylist()) - going.keys()
    samples = reader.samples(matching(field_names(reader.table), function.declared.reads), asked)
    for done, (sample, answer) in enumerate(caller.results(samples), len(going) + 1):
        if isinstance(answer, Reject):
            going[sample.key] = answer
        if job.watch is not None:
            job.watch(done, total)


def _excluded(
    job: Job[FilterParams], reader: ShardReader, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Reject]:
    """The samples that do not fulfil the condition, by key."""
    if job.params.where is None:
        return {}
    condition = Condition.parse(job.params.where)
    columns = [n for n in reader.table.schema.names if n in _ALSO or n not in index.BASE.names]
    try:
        condition.refuse_unknown(columns)
        failures = ((row["key"], condition.failure(row)) for row in rows)
        return {key: Reject(key, FILTERED, said) for key, said in failures if said is not None}
    except ValueError as error:
        raise StageError(f"where: {error}") from None
