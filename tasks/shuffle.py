"""Shuffle: deal the samples of a whole generation to new shards, by range reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from reelmill.shards import gather, index, portion
from reelmill.shards.deal import Deal, Rule, Side
from reelmill.store import Store
from reelmill.store.model import Generation, Shard
from reelmill.tasks.contract import (
    MAX_COUNT,
    Gathered,
    Job,
    Output,
    Params,
    Runtime,
    Seed,
    Slot,
    Stage,
    generation_input,
)
from reelmill.units import Bytes, Share

DEFAULT_SAMPLES = 1000

OTHER_PART = "other_part"

PartName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


def _by_name(value: object) -> object:
    """``[train=90%, test=10%]``, as forms have it, as a mapping."""
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(item).partition("=") for item in value]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError("write parts as name=share, such as train=90%")
    names = [name.strip() for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("two parts have the same name")
    return {name: share for name, (_, _, share) in zip(names, pairs, strict=True)}


Splits = Annotated[
    dict[PartName, Share],
    BeforeValidator(_by_name),
    WithJsonSchema(
        {"type": "array", "items": {"type": "string", "examples": ["train=90%"]}},
        mode="validation",
    ),
]


class ShuffleParams(Params):
    """How large the new shards are, which of the possible orders, and which part of the samples."""

    samples_per_shard: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description=f"samples in a shard, give or take one; {DEFAULT_SAMPLES} if not set"
    )
    bytes_per_shard: Bytes | None = Field(
        None,
        description="instead of samples_per_shard: about this many bytes in a shard, the same in "
        "all as far as samples allow",
    )
    seed: Seed = Field(
        0, description="which order; 0 reads fastest, since shards are written in its order"
    )
    splits: Splits | None = Field(
        None,
        description="parts and their shares, 100% together, such as train=90%, val=5%, test=5%; "
        "the shards get the samples of one part",
    )
    part: PartName | None = Field(None, description="which of splits")
    split_by: portion.By = Field(
        "source",
        description="what lies on one side: source: all that derives from a row of the source, "
        "such as the clips of a video; sample: each sample for itself",
    )
    split_column: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None,
        description="instead of split_by: an index column of text or integers whose equal values "
        "lie on one side, such as a channel's name",
    )
    split_seed: Seed = Field(0, description="which of the possible splits")
    compact: Annotated[int, Field(ge=1, le=MAX_COUNT), Runtime] = Field(
        1, description="so many generations, from the first, are shuffled as if they were one"
    )

    def effective(self) -> dict[str, Any]:
        meant: dict[str, Any] = {}
        if self.bytes_per_shard is None and self.samples_per_shard is None:
            meant["samples_per_shard"] = DEFAULT_SAMPLES
        share = self.share
        if share is None:
            return meant | dict.fromkeys(("splits", "part", *_SPLITTING))
        # How others divide the rest among themselves is nothing to this part.
        meant |= {"splits": {"from": share[0], "to": share[1]}, "part": None}
        return meant if self.split_column is None else meant | {"split_by": None}

    @property
    def share(self) -> tuple[Decimal, Decimal] | None:
        """Where the part begins and ends, as shares of the whole."""
        if self.splits is None or self.part is None:
            return None
        return portion.split(self.splits, self.part)

    @model_validator(mode="after")
    def _one_size(self) -> ShuffleParams:
        if self.samples_per_shard is not None and self.bytes_per_shard is not None:
            raise ValueError("give samples_per_shard or bytes_per_shard, not both")
        if self.bytes_per_shard == 0:
            raise ValueError("bytes_per_shard must be more than 0")
        return self

    @model_validator(mode="after")
    def _whole_splits(self) -> ShuffleParams:
        if self.splits is None:
            fields = type(self).model_fields
            for name in ("part", *_SPLITTING):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name} needs splits, such as {{train: 90%, test: 10%}}")
            return self
        total = sum(map(Fraction, self.splits.values()), Fraction(0))
        if total != 1:
            raise ValueError(f"splits come to {float(total * 100):g}% instead of 100%")
        if self.part not in self.splits:
            raise ValueError(f"part must be one of splits: {', '.join(sorted(self.splits))}")
        if self.split_by != "source" and self.split_column is not None:
            raise ValueError("give split_by or split_column, not both")
        return self


_SPLITTING = ("split_by", "split_column", "split_seed")


class Shuffle(Stage[ShuffleParams]):
    """Across all shards of a generation. Samples keep their keys and their bytes.

    Samples of other parts of a split are rejects with the reason ``other_part``.
    """

    name = "shuffle"
    params = ShuffleParams
    scope = "generation"
    conserves = True
    intended = frozenset({OTHER_PART})
    memory = 500_000_000

    def plan(
        self, params: ShuffleParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        shards = inputs["source"]
        outputs = _outputs(params, shards)
        digest, data = generation_input(shards)
        balance = {} if params.bytes_per_shard is None else {"balance": "bytes"}
        return [
            Slot(
                shard_id=f"{first + output:05d}",
                inputs={"source": {"shards": digest}},
                documents={digest: data},
                slot={"output": output, "outputs": outputs, **balance},
            )
            for output in range(outputs)
        ]

    def outputs(self, params: ShuffleParams, inputs: Mapping[str, Sequence[Shard]]) -> int:
        return _outputs(params, inputs["source"])

    def merges(self, params: ShuffleParams) -> int:
        return params.compact

    def leaves_out(self, params: ShuffleParams) -> bool:
        return params.share is not None

    def schema(self, job: Job[ShuffleParams]) -> pa.Schema:
        return _deal_of(job).columns

    def make(self, job: Job[ShuffleParams]) -> Iterator[Output]:
        deal = _deal_of(job)
        samples, others, tars = deal.rows(int(job.action.slot["output"]))
        extents = gather.Extents.of(samples, tars)
        message = "belongs to another part"
        left_out = index.rejects(others["key"], OTHER_PART, message, deal.columns)
        rows = pa.concat_tables([gather.laid(samples), left_out])
        with gather.Gatherer(job.store, job.scratch) as gatherer:
            pieces = gatherer.stream(deal.tars, extents)
            yield Gathered(rows, _watched(job, pieces, extents))


def _watched(
    job: Job[ShuffleParams], pieces: Iterator[list[memoryview]], extents: gather.Extents
) -> Iterator[list[memoryview]]:
    """The pieces; whoever watches is told how many samples are done."""
    ends = np.cumsum(extents.sizes)
    size = 0
    for views in pieces:
        yield views
        size += sum(map(len, views))
        if job.watch is not None:
            job.watch(int(np.searchsorted(ends, size, side="right")), len(ends))


def _deal_of(job: Job[ShuffleParams]) -> Deal:
    digest = job.action.inputs["source"]["shards"]
    assert digest is not None
    params, slot, share = job.params, job.action.slot, job.params.share
    side = None
    if share is not None:
        within = portion.portion(*share)
        side = Side(within, params.split_by, params.split_column, params.split_seed)
    rule = Rule(int(slot["outputs"]), params.seed, "balance" in slot, side)
    return _deal(job.store, digest, rule)


# More than one, since the parts of a split are made side by side.
@functools.lru_cache(maxsize=4)
def _deal(store: Store, digest: str, rule: Rule) -> Deal:
    generation = Generation.model_validate_json(store.read_blob(digest, "json"))
    return Deal(store, generation.shards, rule)


def _outputs(params: ShuffleParams, shards: Sequence[Shard]) -> int:
    """How many shards there will be: a part is taken to have its share of samples and bytes."""
    samples = sum(shard.samples for shard in shards)
    share = params.share
    part = Fraction(1) if share is None else Fraction(share[1]) - Fraction(share[0])
    if params.bytes_per_shard is None:
        wanted = samples * part / (params.samples_per_shard or DEFAULT_SAMPLES)
    else:
        size = sum(shard.tar.size for shard in shards if shard.tar)
        wanted = size * part / params.bytes_per_shard
    return min(samples, max(1, math.ceil(wanted)))
