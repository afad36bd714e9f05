"""Where the scenes of a clip begin, for samples that must not span two of them."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field, model_validator

from reelmill.media.probe import Source, open_media, video_stream
from reelmill.media.scenes import (
    AnyDetector,
    Clock,
    ContentDetector,
    Detector,
    Finder,
    TransNetV2Detector,
    detect,
)
from reelmill.media.scenes.scores import clock_of
from reelmill.tasks.contract import Job, Params
from reelmill.tasks.scenes import scenes_of
from reelmill.tasks.tuples import Cuts, NoCuts

ONE_SCENE = "one_scene"
"""The name in a clip's ``json`` that says whether it lies within one scene."""


class CutParams(Params):
    """Whether samples may span scene cuts, and how these are found where they are not known."""

    cuts: Literal["auto", "ignore"] = Field(
        "auto",
        description="auto: no sample spans a scene cut; clips of stage split by scenes have none, "
        "a dataset in the role scenes tells them, and otherwise they are looked for; ignore: "
        "samples may span cuts",
    )
    detectors: tuple[AnyDetector, ...] = Field(
        (ContentDetector(),), description="what looks for cuts that are not known", min_length=1
    )

    @model_validator(mode="after")
    def _need_no_network(self) -> CutParams:
        if any(isinstance(one, TransNetV2Detector) for one in self.detectors):
            raise ValueError(
                "detector transnetv2 is for stage scores: give what stage scenes makes of that in "
                "the role scenes"
            )
        return self

    def effective(self) -> dict[str, Any]:
        return {} if self.minds_cuts else {"cuts": "ignore", "detectors": None}

    @property
    def minds_cuts(self) -> bool:
        """Whether it matters where scenes begin."""
        return self.cuts == "auto"

    def cut_tools(self) -> dict[str, str]:
        """The builds that where cuts are found depends on."""
        opencv = {"opencv-python-headless": version("opencv-python-headless")}
        return opencv if self.minds_cuts else {}


class KnownCuts:
    """Cuts at times that are known, in seconds on the clip's own clock, ascending."""

    def __init__(self, starts: Sequence[Fraction]) -> None:
        self._waiting = deque(starts)

    def see(self, number: int, frame: Any) -> tuple[Sequence[int], int]:
        time, passed = frame.pts * Fraction(frame.time_base), False
        while self._waiting and self._waiting[0] <= time:
            self._waiting.popleft()
            passed = True
        return ((number,) if passed else ()), number

    def finish(self) -> Sequence[int]:
        return ()


class FoundCuts:
    """Cuts that detectors find in the very frames that pass by."""

    def __init__(self, detectors: Sequence[Detector], clock: Clock) -> None:
        self._finder = Finder(detectors, clock)
        self._pts: deque[int] = deque()  # of the frames that may still turn out to begin a scene
        self._first = 0  # the number of the first of them

    def see(self, number: int, frame: Any) -> tuple[Sequence[int], int]:
        self._pts.append(frame.pts)
        found = self._numbers(self._finder.feed(frame, frame.pts))
        settled = self._finder.settled
        while settled is not None and self._pts and self._pts[0] <= settled:
            self._pts.popleft()
            self._first += 1
        return found, self._first - 1

    def finish(self) -> Sequence[int]:
        return self._numbers(self._finder.finish())

    def _numbers(self, cuts: Iterable[int]) -> list[int]:
        there = list(self._pts) if (cuts := sorted(set(cuts))) else []
        return [self._first + bisect_right(there, cut) - 1 for cut in cuts]


def scene_starts(job: Job[Any], key: str, about: Mapping[str, Any]) -> list[Fraction] | None:
    """Where the scenes of a clip begin, in seconds on its own clock, if that is known: by the role
    ``scenes``, or because its ``json`` says that it lies within one. None where it is not.

    Raises: Rejected as :func:`~reelmill.tasks.scenes.scenes_of` does.
    """
    if "scenes" in job.shards:
        return [start for start, _ in scenes_of(job.reader("scenes"), key)[1:]]
    return [] if about.get(ONE_SCENE) is True else None


def watched(params: CutParams, starts: Sequence[Fraction] | None, video: Source) -> Cuts:
    """What tells the cuts of a video of which all frames are decoded anyway; ``starts`` are the
    known ones."""
    if not params.minds_cuts:
        return NoCuts()
    if starts is not None:
        return KnownCuts(starts)
    with open_media(video) as container:
        clock = clock_of(video_stream(container))
    return FoundCuts(params.detectors, clock)


def looked_for(
    params: CutParams, starts: Sequence[Fraction] | None, video: Source
) -> Sequence[Fraction]:
    """The cuts of a video of which not all frames would be decoded: where they are not known, it is
    decoded for them."""
    if not params.minds_cuts:
        return []
    return [start for start, _ in detect(video, params.detectors)[1:]] if starts is None else starts
