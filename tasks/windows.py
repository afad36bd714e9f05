"""Windows: N neighbouring frames of a sequence become one sample, with all that they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count as counting
from itertools import groupby, islice, pairwise
from typing import Annotated, Any

from pydantic import Field, model_validator

from reelmill.digest import json_integer
from reelmill.errors import Rejected, ShardError, StageError
from reelmill.shards import tar
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import (
    Job,
    Output,
    Reject,
    Sample,
    Stage,
    sample_json,
)
from reelmill.tasks.media_fields import FRAME_COLUMNS
from reelmill.tasks.tuples import StepParams, Window

_NAME = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"
Chosen = Annotated[str, Field(pattern=rf"^{_NAME}(={_NAME})?$", max_length=160)]

_NEEDED = ("sequence", "frame", "time", "url", "width", "height")


class WindowsParams(StepParams):
    """Which frames belong together, and which of their fields."""

    across_gaps: bool = Field(
        False, description="let frames be neighbours although others are missing between them"
    )
    fields: tuple[Chosen, ...] = Field(
        (),
        description="take these fields only, such as [left.jpg], if need be under another name, as "
        "in [image.jpg=left.jpg]; without any, all",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> WindowsParams:
        if len(self.chosen) < len(self.fields):
            raise ValueError("fields names a field twice")
        return self

    @property
    def chosen(self) -> dict[str, str]:
        """The names that fields have in frames, by those they get; of no field, if all are taken
        as they are called."""
        pairs = (chosen.partition("=") for chosen in self.fields)
        return {ours: theirs or ours for ours, _, theirs in pairs}


class Windows(Stage[WindowsParams]):
    """A sample is keyed as its first frame is: ``000010000_000012``.

    Its fields are those of its frames behind their places in it, ``000000.image.jpg``,
    ``000000.depth.png``, ``000001.image.jpg``, …, byte for byte; its ``json`` has the frames'
    numbers, and their times in seconds where they are known.
    """

    name = "windows"
    params = WindowsParams
    memory = 300_000_000
    columns = FRAME_COLUMNS

    def make(self, job: Job[WindowsParams]) -> Iterator[Output]:
        reader = job.reader("source")
        rows = reader.rows()
        if rows and not set(_NEEDED) <= set(rows[0]):
            raise StageError("windows are made from a dataset of the stage sequences")
        places = [(_sequence(row["key"]), row["frame"]) for row in rows]
        if any(one >= other for one, other in pairwise(places)):
            raise StageError(
                f"the frames of shard {reader.shard.id} are not in order; make windows from the "
                "dataset of the stage sequences, before it is shuffled"
            )
        numbers = {
            sequence: [frame for _, frame in group]
            for sequence, group in groupby(places, lambda place: place[0])
        }
        samples = reader.samples(set(job.params.chosen.values()) or None)
        done = 0
        for sequence, group in groupby(samples, lambda sample: _sequence(sample.key)):
            yield from _windows(job.params, sequence, numbers[sequence], group)
            done += len(numbers[sequence])
            if job.watch is not None:
                job.watch(done, len(rows))


def _sequence(key: str) -> str:
    """The row of the source that a frame's key begins with."""
    return key.rpartition("_")[0]


def _windows(
    params: WindowsParams, sequence: str, numbers: Sequence[int], samples: Iterator[InputSample]
) -> Iterator[Output]:
    """The windows of one sequence, whose frames have ``numbers``.

    Memory holds the frames of the windows that are not complete.
    """
    given = 0
    for run in _runs(numbers, params.across_gaps):
        window: Window[InputSample] = Window(params.count, params.stride, counting(0, params.every))
        for place, sample in enumerate(islice(samples, run)):
            if window.wants(place):
                window.put(place, sample)
            for _, frames in window.take():
                yield _window(params, sequence, frames)
        given += window.given
    if not given:
        message = f"{len(numbers)} frames, no {params.reach + 1} of them in a row"
        yield Reject(sequence, "too_short", message)


def _runs(numbers: Sequence[int], across_gaps: bool) -> Iterator[int]:
    """Lengths of the runs of frames between which none is missing: those whose numbers are as far
    apart as the nearest of the sequence."""
    steps = [other - one for one, other in pairwise(numbers)]
    usual = min(steps, default=1)
    length = 1
    for step in steps:
        if step == usual or across_gaps:
            length += 1
        else:
            yield length
            length = 1
    yield length


def _window(params: WindowsParams, sequence: str, frames: Sequence[InputSample]) -> Output:
    first = frames[0]
    columns = {name: first.columns[name] for name in _NEEDED}
    fields: dict[str, bytes] = {}
    try:
        for place, frame in enumerate(frames):
            names = params.chosen or dict(zip(frame.fields, frame.fields, strict=True))
            if lacking := sorted(set(names.values()) - set(frame.fields)):
                raise Rejected("missing_field", f"a frame has no {', '.join(lacking)[:200]}")
            for name, theirs in names.items():
                ours = f"{place:06d}.{name}"
                tar.member_name(first.key, ours)
                fields[ours] = frame.fields[theirs]
        if not fields:
            raise Rejected("no_fields", "its frames have no fields")
    except Rejected as rejected:
        return Reject(first.key, rejected.reason, rejected.message, columns)
    except ShardError as error:
        return Reject(first.key, "unfit_field", str(error), columns)
    return Sample(first.key, {**fields, "json": _about(sequence, frames)}, columns)


def _about(sequence: str, frames: Sequence[InputSample]) -> bytes:
    first = frames[0].columns
    value: dict[str, Any] = {
        "key": frames[0].key,
        "source": _known({"key": sequence, "url": first["url"], "sequence": first["sequence"]}),
        "frames": [json_integer(frame.columns["frame"]) for frame in frames],
    }
    times = [frame.columns["time"] for frame in frames]
    if None not in times:
        value["times"] = times
    return sample_json(value | _known({name: first[name] for name in ("width", "height")}))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
