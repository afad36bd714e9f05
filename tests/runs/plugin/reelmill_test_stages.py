"""Stages of a plugin that misbehave on request. Loaded through an entry point, as users' are."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

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
