"""Stages that do next to nothing, so that what is around them can be measured."""

from __future__ import annotations

from collections.abc import Iterator

from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Sample, SampleStage, Stage


class Rows(Stage[Params]):
    """Each row of a table becomes a sample that holds its address."""

    name = "bench_rows"
    params = Params
    conserves = True

    def make(self, job: Job[Params]) -> Iterator[Output]:
        for row in job.reader("source").rows():
            yield Sample(row["key"], {"txt": row["url"].encode()})


class Pass(SampleStage[Params]):
    """Passes samples on."""

    name = "bench_pass"
    params = Params
    conserves = True

    def each(self, job: Job[Params], sample: InputSample) -> Iterator[Output]:
        yield Sample(sample.key, dict(sample.fields))
