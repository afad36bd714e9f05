"""What a measure, a scorer and a detector are: the one contract of all ways to find cuts.

A **measure** says which columns of scores it gives. It starts a **scorer**, which is fed a video's
frames in presentation order and gives scores for them. A **detector** turns scores into cuts, and
never sees a frame: scores can be kept, and other thresholds be tried on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = tuple[float, ...]
"""One frame's scores: a value for each of a measure's columns."""


class Scorer(Protocol):
    """Scores one video. Frames come once each, in presentation order; rows leave in that order."""

    def feed(self, frame: Any) -> Sequence[Row]:
        """Take one frame (an ``av.VideoFrame``, or what its decoder gives); return the rows that
        are now final, oldest first: none, one or many."""

    def finish(self) -> Sequence[Row]:
        """The rows still owed, when no more frames come: in all, one row for each frame fed."""


class Measure(Protocol):
    """A kind of score. Hashable, so that detectors which need the same one share it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its scores, which say all that they depend on."""

    @property
    def lag(self) -> int:
        """How many further frames a frame's row may wait for; 0 where it is given at once."""

    def start(self) -> Scorer:
        """A scorer for one video."""


class Search(Protocol):
    """One detector at work on one video."""

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        """Take the next frame's pts and scores by column; return the pts of cuts now certain."""

    def finish(self) -> Sequence[int]:
        """The cuts that only the end of the video makes certain."""

    @property
    def settled(self) -> int | None:
        """No cut will come any more at or before this pts, beside those that were given: what is
        shown up to it can be encoded. None before the first frame that it is true of."""


class Detector(Protocol):
    """How scores become cuts: settings, without a state of their own. ``kind`` is what recipes call
    it; it ``skims`` where cuts can be found among some of the frames, each compared with the one
    before that was looked at."""

    @property
    def kind(self) -> str: ...
    @property
    def skims(self) -> bool: ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it needs to know of each frame."""

    def start(self, clock: Clock) -> Search:
        """A search through one video."""


@dataclass(frozen=True)
class Clock:
    """How a video tells time: pts in units of ``time_base`` seconds, from ``origin`` (its stream's
    start), at a nominal ``rate`` of frames a second."""

    time_base: Fraction
    rate: Fraction
    origin: int = 0

    def frames(self, ticks: int) -> int:
        """A length of time in frames at the nominal rate, as PySceneDetect counts them."""
        seconds = (max(ticks, 0) * self.time_base.numerator) / self.time_base.denominator
        return round(seconds * float(self.rate))

    @property
    def step(self) -> int:
        """One nominal frame, in ticks."""
        return round(1.0 / float(self.rate) / float(self.time_base))


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a whole video: int64 ``pts`` of its frames in presentation order, and float64
    ``columns`` of the same length. ``end`` is the pts behind its last frame."""

    clock: Clock
    pts: NDArray[np.int64]
    end: int
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pts)
