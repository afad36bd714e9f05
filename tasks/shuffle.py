"""Shuffle: deal the samples of a whole generation to new shards, by range reads."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.digest import order_hash
from reelmill.errors import StageError
from reelmill.shards import gather, index
from reelmill.shards.reader import stage_columns
from reelmill.store import Store
from reelmill.store.model import Generation, Shard
from reelmill.tasks.contract import (
    MAX_COUNT,
    Copied,
    Job,
    Output,
    Params,
    Slot,
    Stage,
    generation_input,
)
from reelmill.units import Bytes

DEFAULT_SAMPLES = 1000

_KEPT_BYTES = 256 << 20
"""Up to this size a worker process keeps a generation's indexes, rather than read them again."""


class ShuffleParams(Params):
    """How large the new shards are, and which of the possible orders."""

    samples_per_shard: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description=f"samples in a shard, give or take one; {DEFAULT_SAMPLES} if not set"
    )
    bytes_per_shard: Bytes | None = Field(
        None, description="instead of samples_per_shard: about this many bytes in a shard"
    )
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        0, description="which order; 0 reads fastest, since shards are written in its order"
    )

    def effective(self) -> dict[str, Any]:
        if self.bytes_per_shard is None and self.samples_per_shard is None:
            return {"samples_per_shard": DEFAULT_SAMPLES}
        return {}

    @model_validator(mode="after")
    def _one_size(self) -> ShuffleParams:
        if self.samples_per_shard is not None and self.bytes_per_shard is not None:
            raise ValueError("give samples_per_shard or bytes_per_shard, not both")
        if self.bytes_per_shard == 0:
            raise ValueError("bytes_per_shard must be more than 0")
        return self


class Shuffle(Stage[ShuffleParams]):
    """Across all shards of a generation. Samples keep their keys and their bytes."""

    name = "shuffle"
    params = ShuffleParams
    scope = "generation"
    conserves = True
    memory = 250_000_000

    def plan(
        self, params: ShuffleParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        shards = inputs["source"]
        outputs = _outputs(params, shards)
        digest, data = generation_input(shards)
        return [
            Slot(
                shard_id=f"{first + output:05d}",
                inputs={"source": {"shards": digest}},
                documents={digest: data},
                slot={"output": output, "outputs": outputs},
            )
            for output in range(outputs)
        ]

    def schema(self, job: Job[ShuffleParams]) -> pa.Schema:
        return _layout(job.store, _generation_digest(job), *_deal(job)).columns

    def make(self, job: Job[ShuffleParams]) -> Iterator[Output]:
        plan = _layout(job.store, _generation_digest(job), *_deal(job))
        wanted = plan.rows(job.store, int(job.action.slot["output"]))
        with gather.Gatherer(job.store, job.scratch) as gatherer:
            spans = gatherer.spans(wanted)
            for (_, row), span in zip(wanted, spans, strict=True):
                yield Copied(str(row["key"]), span, stage_columns(row))


class _Plan:
    """The layout of one generation, worked out once per worker process."""

    def __init__(self, store: Store, digest: str, outputs: int, seed: int) -> None:
        generation = Generation.model_validate_json(store.read_blob(digest, "json"))
        self.shards = [shard for shard in generation.shards if shard.samples]
        tables = [self._rows(store, shard) for shard in self.shards]
        if any(not table.schema.equals(tables[0].schema) for table in tables):
            raise StageError("the input's shards have indexes with different columns")
        own = [field for field in tables[0].schema if field.name not in index.BASE.names]
        self.columns = pa.schema(own)
        small = sum(table.nbytes for table in tables) <= _KEPT_BYTES
        self._tables = tables if small else None
        self._layout = gather.layout([t["key"].to_pylist() for t in tables], outputs, seed)

    def rows(self, store: Store, output: int) -> list[tuple[Shard, dict[str, object]]]:
        """The (shard, index row) of each sample of an output shard, in the order of shards."""
        wanted: list[tuple[Shard, dict[str, object]]] = []
        for place, shard in enumerate(self.shards):
            picked = self._layout.rows(place, output)
            if len(picked):
                table = self._tables[place] if self._tables else self._rows(store, shard)
                rows = table.take(pa.array(picked)).to_pylist()
                wanted += [(shard, row) for row in rows]
        return sorted(wanted, key=_place)

    @staticmethod
    def _rows(store: Store, shard: Shard) -> pa.Table:
        return gather.sample_rows(store.read_blob(shard.index.digest, "parquet"))


def _place(pair: tuple[Shard, dict[str, object]]) -> tuple[int, str]:
    key = str(pair[1]["key"])
    return order_hash(key), key


@functools.lru_cache(maxsize=1)
def _layout(store: Store, digest: str, outputs: int, seed: int) -> _Plan:
    return _Plan(store, digest, outputs, seed)


def _deal(job: Job[ShuffleParams]) -> tuple[int, int]:
    return int(job.action.slot["outputs"]), job.params.seed


def _generation_digest(job: Job[ShuffleParams]) -> str:
    digest = job.action.inputs["source"]["shards"]
    assert digest is not None
    return digest


def _outputs(params: ShuffleParams, shards: Sequence[Shard]) -> int:
    samples = sum(shard.samples for shard in shards)
    if params.bytes_per_shard is None:
        return -(-samples // (params.samples_per_shard or DEFAULT_SAMPLES))
    size = sum(shard.tar.size for shard in shards if shard.tar)
    return min(samples, -(-size // params.bytes_per_shard))
