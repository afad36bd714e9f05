"""Stages of a plugin that misbehave on request. Loaded through an entry point, as users' are."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Runtime, Sample, SampleStage

GARBLED = "caf\udce9\n# owned\n\x1b[2J\0<img src=x> ![t](http://192.0.2.1/t.png) "
"""What no file, page or terminal should have to take."""


class TroubleParams(Params):
    kind: Annotated[Literal["none", "raise", "die", "once", "slow", "gate", "garble"], Runtime] = (
        "none"
    )
    shard: Annotated[str, Runtime] = ""
    marker: Annotated[str, Runtime] = ""
    seconds: Annotated[float, Runtime] = 0.2


class Trouble(SampleStage[TroubleParams]):
    """Passes samples on; the one whose key begins with ``shard`` gets into trouble."""

    name = "trouble"
    params = TroubleParams
    conserves = True

    def make(self, job: Job[TroubleParams]) -> Iterator[Output]:
        if job.params.kind == "gate":
            _pass(Path(job.params.marker))
        return super().make(job)

    def each(self, job: Job[TroubleParams], sample: InputSample) -> Iterator[Output]:
        params = job.params
        if params.kind == "slow":
            time.sleep(params.seconds)
        elif sample.key.startswith(params.shard):
            if params.kind == "raise":
                raise RuntimeError("the moon is in the wrong phase")
            if params.kind == "garble":
                raise ValueError(GARBLED)
            if params.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if params.kind == "once" and not Path(params.marker).exists():
                Path(params.marker).touch()
                raise OSError(5, "a passing fault")
        yield Sample(sample.key, dict(sample.fields))


def _pass(gate: Path) -> None:
    """Wait for one of the files in a folder, and take it away."""
    while True:
        for ticket in sorted(gate.glob("*")):
            with contextlib.suppress(FileNotFoundError):
                ticket.unlink()
                return
        time.sleep(0.05)


class Needy(Trouble):
    """Wants what no worker has."""

    name = "needy"
    resources: ClassVar[dict[str, float]] = {"MOON": 1}


class Crop(Params):
    """A part of each picture."""

    kind: Literal["crop"] = Field("crop", description="cut off what is outside")
    side: Annotated[int, Field(ge=1)] = Field(64, description="of the square that stays")


class Pad(Params):
    """Each picture in a frame."""

    kind: Literal["pad"] = Field("pad", description="put a border around")
    colour: str = Field("black", description="of the border")


T = TypeVar("T")

Fit = Annotated[Crop | Pad, Field(discriminator="kind")]


class Sides(Params, Generic[T]):
    """Parameters that several stages share."""

    width: T | None = Field(None, description="of what comes out")


class VariousParams(Sides[int]):
    """Parameters of every shape that a form must draw."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    function: str = Field("", description="what is called for each sample")
    given: dict[str, Any] = Field({}, alias="with", description="what it is given besides")
    table: dict[str, int] | None = Field(None, description="numbers by name")
    fields: tuple[str, ...] = Field((), description="what it reads")
    some: tuple[str, ...] | None = Field(None, description="what it reads instead")
    border: Pad | None = Field(None, description="around each")
    inner: Sides[int] = Field(Sides[int](width=8), description="of what is within")
    fit: Fit = Field(Crop(), description="how each gets its size")
    refit: Fit | None = Field(None, description="how each gets another size")
    steps: tuple[Fit, ...] = Field((), description="what is done in turn")
    level: int | Literal["auto"] = Field("auto", description="a number, or auto")


class Various(SampleStage[VariousParams]):
    """Passes samples on, whatever it is asked for."""

    name = "various"
    params = VariousParams
    roles = ("source", "more")
    optional = ("more",)
    conserves = True

    def each(self, job: Job[VariousParams], sample: InputSample) -> Iterator[Output]:
        yield Sample(sample.key, dict(sample.fields))
