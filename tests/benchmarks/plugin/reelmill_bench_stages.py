"""Stages that do next to nothing, so that what is around them can be measured."""

from __future__ import annotations

import time
from collections.abc import Iterator

from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Sample, SampleStage, Stage
from reelmill.units import Seconds


class Rows(Stage[Params]):
    """Each row of a table becomes a sample that holds its address."""

    name = "bench_rows"
    params = Params
    takes = "rows"
    conserves = True

    def make(self, job: Job[Params]) -> Iterator[Output]:
        for row in job.reader("source").rows():
            yield Sample(row["key"], {"txt": row["url"].encode()})


class NapParams(Params):
    """How long a shard takes."""

    seconds: Seconds


class Nap(Rows):
    """Sleeps, so that it shows whether workers wait for work."""

    name = "bench_nap"
    params = NapParams

    def make(self, job: Job[Params]) -> Iterator[Output]:
        assert isinstance(job.params, NapParams)
        time.sleep(float(job.params.seconds))
        yield from super().make(job)


class Pass(SampleStage[Params]):
    """Passes samples on."""

    name = "bench_pass"
    params = Params
    conserves = True

    def each(self, job: Job[Params], sample: InputSample) -> Iterator[Output]:
        yield Sample(sample.key, dict(sample.fields))
