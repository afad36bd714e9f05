"""Stages that need no media, so that a build of them is quick, and one that eats memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Runtime, Sample, SampleStage, Stage


class Rows(Stage[Params]):
    """Each row of a table becomes a sample that holds its address."""

    name = "rows"
    params = Params
    takes = "rows"
    conserves = True

    def make(self, job: Job[Params]) -> Iterator[Output]:
        for row in job.reader("source").rows():
            yield Sample(row["key"], {"txt": row["url"].encode()})


class GreedyParams(Params):
    shard: Annotated[str, Runtime] = ""
    bytes: Annotated[int, Runtime] = 0


class Greedy(SampleStage[GreedyParams]):
    """Passes samples on, and holds ``bytes`` for the one whose key begins with ``shard``."""

    name = "greedy"
    params = GreedyParams
    conserves = True

    def each(self, job: Job[GreedyParams], sample: InputSample) -> Iterator[Output]:
        held = []
        if job.params.shard and sample.key.startswith(job.params.shard):
            while sum(map(len, held)) < job.params.bytes:
                held.append(b"\x01" * (32 << 20))
        yield Sample(sample.key, dict(sample.fields))
