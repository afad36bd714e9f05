"""Sample: a share of a dataset, or so many of each generation, chosen by a keyed hash."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.shards import gather, index
from reelmill.shards.portion import PLACES, By, places, portion, together
from reelmill.shards.reader import stage_columns
from reelmill.store import Store
from reelmill.store.model import Generation, Shard
from reelmill.tasks.contract import (
    MAX_COUNT,
    Job,
    Output,
    Params,
    Reject,
    Scope,
    Seed,
    Slot,
    Stage,
    digests,
    generation_input,
)
from reelmill.tasks.taken import taken
from reelmill.units import Share, canonical

NOT_SAMPLED: Final = "not_sampled"
"""Why a sample is left out that a sample of the dataset was not to hold."""


class SampleParams(Params):
    """How much is taken, and what stays together."""

    share: Annotated[Share, Field(gt=0)] | None = Field(
        None, description="the share of the dataset to take, such as 10%"
    )
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="instead of share: how many to take of each generation"
    )
    by: By = Field(
        "sample",
        description="sample chooses each sample by itself, source all that comes of one row of the "
        "source or none; count counts what is chosen",
    )
    seed: Seed = Field(0, description="which of the possible choices")

    @model_validator(mode="after")
    def _one_size(self) -> SampleParams:
        if (self.share is None) == (self.count is None):
            raise ValueError("give share or count")
        return self


class PickSamples(Stage[SampleParams]):
    """Shards keep their IDs, and samples their keys and bytes.

    A larger share or count holds all that a smaller one of the same seed does. With a count, a
    shard depends on the keys of its whole generation.
    """

    name = "sample"
    params = SampleParams
    conserves = True
    order = "input"
    intended = frozenset({NOT_SAMPLED})
    memory = 250_000_000

    def scope_of(self, params: SampleParams) -> Scope:
        return "shard" if params.count is None else "generation"

    def plan(
        self, params: SampleParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        if params.count is None:
            return super().plan(params, inputs, first)
        digest, data = generation_input(inputs["source"])
        return [
            Slot(
                shard_id=shard.id,
                inputs={"source": digests(shard), "generation": {"shards": digest}},
                shards={"source": shard},
                documents={digest: data},
            )
            for shard in inputs["source"]
        ]

    def schema(self, job: Job[SampleParams]) -> pa.Schema:
        return index.own_columns(job.reader("source").table.schema)

    def make(self, job: Job[SampleParams]) -> Iterator[Output]:
        params = job.params
        rows = job.reader("source").rows()
        found = _places([row["key"] for row in rows], params.by, params.seed)
        if params.count is None:
            assert params.share is not None
            chosen = portion(Decimal(0), params.share).holds(found)
            said = f"is not below {canonical(params.share)}"
        else:
            digest = job.action.inputs["generation"]["shards"]
            assert digest is not None
            chosen = found <= _last(job.store, digest, params.count, params.by, params.seed)
            said = f"is not among the lowest {params.count}"
        columns = {row["key"]: stage_columns(row) for row in rows}
        keys = [row["key"] for row in rows]
        staying = {key: columns[key] for key, stays in zip(keys, chosen, strict=True) if stays}
        yield from taken(job, "source", rows, staying)
        for key, place in zip(keys, found, strict=True):
            if key not in staying:
                message = f"its place, {int(place) / PLACES:.9f} of 1, {said}"
                yield Reject(key, NOT_SAMPLED, message, columns[key])


def _places(keys: Sequence[str], by: By, seed: int) -> npt.NDArray[np.uint64]:
    return places(together(keys, by), "sample", seed)


@functools.lru_cache(maxsize=4)
def _last(store: Store, digest: str, count: int, by: By, seed: int) -> Any:
    """The last place that is chosen of a generation. Memory holds as many places as are chosen,
    and one index."""
    generation = Generation.model_validate_json(store.read_blob(digest, "json"))
    lowest = np.empty(0, np.uint64)
    for shard in generation.shards:
        rows = gather.sample_rows(store.read_blob(shard.index.digest, "parquet"))
        more = _places(rows["key"].to_pylist(), by, seed)
        lowest = np.unique(np.concatenate([lowest, more]))[:count]
    return lowest[-1] if len(lowest) else np.uint64(0)
