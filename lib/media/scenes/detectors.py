"""PySceneDetect's detectors, with the parameters, names and defaults of its own command.

They read scores and never a frame, so another threshold costs no decoding. Where the command takes
a length of time it counts nominal frames, and so do these: at 25 frames a second, 0.6 s are 15.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from reelmill.media.scenes.contract import Clock, Measure, Scores, Search
from reelmill.media.scenes.measures import Brightness, Content, Edges, Hash, Histogram
from reelmill.media.scenes.transitions import Transitions
from reelmill.units import Number, Seconds

_LEVEL = Field(ge=0, le=255)
_SHARE = Field(ge=0, le=1)


class _Detector(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    skims: ClassVar[bool] = True

    min_scene: Seconds = Field(
        default=Decimal("0.6"), description="shortest scene, rounded to nominal frames of the video"
    )
    min_frames: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, description="shortest scene in nominal frames, in place of min_scene"
    )

    @property
    @abstractmethod
    def measures(self) -> tuple[Measure, ...]: ...

    @abstractmethod
    def start(self, clock: Clock) -> Search: ...

    @abstractmethod
    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        """What it compares, one value for each frame, and the threshold: for people to see."""

    def _least(self, clock: Clock) -> int:
        """Nominal frames of the shortest scene."""
        return _in_frames(self.min_scene, clock) if self.min_frames is None else self.min_frames


class _Weighted(_Detector):
    weights: tuple[Number, Number, Number, Number] = Field(
        default=(Decimal(1), Decimal(1), Decimal(1), Decimal(0)),
        description="of the changes in hue, saturation, brightness and edges",
    )
    luma_only: bool = Field(
        default=False, description="look at brightness alone, whatever the weights"
    )
    kernel_size: Annotated[int, Field(ge=3, le=999)] | None = Field(
        default=None,
        description="odd size in pixels by which edges are thickened; None: by the picture's",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Any:
        if self.kernel_size is not None and self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")
        if not any(self.weights):
            raise ValueError("one of the weights must not be 0")
        return self

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Content(), Edges(self.kernel_size)) if self._weigh()[3] > 0 else (Content(),)

    def score(self, row: Mapping[str, Any]) -> Any:
        """A frame's ``content_val``, the weighted mean of its changes; or those of all frames, from
        arrays."""
        weights = self._weigh()
        total: Any = 0.0
        for column, weight in zip(self._columns(), weights, strict=True):
            total += (row[column] if column else 0.0) * weight
        return total / sum(abs(weight) for weight in weights)

    def _weigh(self) -> tuple[float, ...]:
        return (0.0, 0.0, 1.0, 0.0) if self.luma_only else tuple(map(float, self.weights))

    def _columns(self) -> tuple[str | None, ...]:
        edges = Edges(self.kernel_size).columns if self._weigh()[3] > 0 else (None,)
        return (*Content().columns, *edges)


class ContentDetector(_Weighted):
    """Cuts where the picture changes by more than ``threshold``."""

    kind: Literal["content"] = "content"
    threshold: Annotated[Number, _LEVEL] = Decimal(27)
    filter_mode: Literal["merge", "suppress"] = Field(
        default="merge",
        description="merge: one cut for several in a shortest scene; suppress: the first",
    )

    def start(self, clock: Clock) -> Search:
        return _FlashFilter(self, clock)

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        return self.score(scores.columns), float(self.threshold)


class AdaptiveDetector(_Weighted):
    """Cuts where the picture changes ``threshold`` times as much as around it."""

    skims = False
    kind: Literal["adaptive"] = "adaptive"
    threshold: Annotated[Number, _LEVEL] = Decimal(3)
    min_content_val: Annotated[Number, _LEVEL] = Field(
        default=Decimal(15), description="a cut changes the picture at least as much"
    )
    window_width: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=2, description="frames before and after, whose mean a frame is compared with"
    )

    def start(self, clock: Clock) -> Search:
        return _Rolling(self, clock)

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        changes, width = self.score(scores.columns), self.window_width
        window = np.ones(2 * width + 1) / (2 * width)
        window[width] = 0
        around = np.convolve(changes, window, "same") if len(changes) > 2 * width else changes
        ratios = np.where(changes < float(self.min_content_val), 0, changes)
        return np.minimum(ratios / np.maximum(around, 1e-5), 255), float(self.threshold)


class ThresholdDetector(_Detector):
    """Cuts in the middle of fades: where pictures are darker than ``threshold``, or brighter."""

    skims = False
    kind: Literal["threshold"] = "threshold"
    threshold: Annotated[Number, _LEVEL] = Field(
        default=Decimal(12), description="mean of red, green and blue; only its whole part counts"
    )
    fade_bias: Annotated[Number, Field(ge=-1, le=1)] = Field(
        default=Decimal(0),
        description="where to cut: -1 as it fades out, 0 halfway, 1 as it fades in",
    )
    add_final_scene: bool = Field(
        default=True, description="cut also where the video ends faded out"
    )
    method: Literal["floor", "ceiling"] = Field(
        default="floor", description="faded out is what is darker (floor) or brighter (ceiling)"
    )
    min_out: Seconds = Field(
        default=Decimal("0.1"), description="shorter fades are none, rounded to nominal frames"
    )

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Brightness(),)

    def start(self, clock: Clock) -> Search:
        return _Fades(self, clock)

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        return scores.columns[Brightness().columns[0]], float(int(self.threshold))


class HashDetector(_Detector):
    """Cuts where more than a share of the bits of a perceptual hash change."""

    kind: Literal["hash"] = "hash"
    threshold: Annotated[Number, _SHARE] = Decimal("0.35")
    size: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="bits of a hash, squared"
    )
    lowpass: Annotated[int, Field(ge=1, le=256)] = Field(
        default=2, description="keep this part of the frequencies: 2 for a half, 4 for a quarter"
    )

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Hash(self.size, self.lowpass),)

    def start(self, clock: Clock) -> Search:
        return _Jumps(self, clock, float(self.threshold))

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        return scores.columns[self.measures[0].columns[0]], float(self.threshold)


class HistogramDetector(_Detector):
    """Cuts where the histogram of luma changes by more than ``threshold``."""

    kind: Literal["histogram"] = "histogram"
    threshold: Annotated[Number, _SHARE] = Decimal("0.2")
    bins: Annotated[int, Field(ge=1, le=256)] = 128

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Histogram(self.bins),)

    def start(self, clock: Clock) -> Search:
        # The less two histograms correlate, the more the picture has changed.
        return _Jumps(self, clock, max(0.0, min(1.0, 1.0 - float(self.threshold))), below=True)

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        return 1.0 - scores.columns[self.measures[0].columns[0]], float(self.threshold)


class TransNetV2Detector(_Detector):
    """Cuts behind transitions that a network sees, hard and soft ones alike."""

    skims = False
    kind: Literal["transnetv2"] = "transnetv2"
    threshold: Annotated[Number, _SHARE] = Decimal("0.5")
    _weights: str | None = PrivateAttr(None)

    def bound(self, weights: str | None) -> TransNetV2Detector:
        """The same with the file of the network's weights, without which no frame can be scored:
        its path means nothing elsewhere, and so is none of a detector's settings."""
        copy = self.model_copy()
        copy._weights = weights
        return copy

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Transitions(self._weights),)

    def start(self, clock: Clock) -> Search:
        return _Ends(self, clock)

    def curve(self, scores: Scores) -> tuple[NDArray[np.float64], float]:
        return scores.columns[Transitions.columns[0]], float(self.threshold)


Detector: TypeAlias = (
    ContentDetector
    | AdaptiveDetector
    | ThresholdDetector
    | HashDetector
    | HistogramDetector
    | TransNetV2Detector
)

KINDS: dict[str, type[Detector]] = {
    "content": ContentDetector,
    "adaptive": AdaptiveDetector,
    "threshold": ThresholdDetector,
    "hash": HashDetector,
    "histogram": HistogramDetector,
    "transnetv2": TransNetV2Detector,
}


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Kind: TypeAlias = Literal["content", "adaptive", "threshold", "hash", "histogram", "transnetv2"]
"""The keys of ``KINDS``."""

AnyDetector = Annotated[
    Annotated[Detector, Field(discriminator="kind")],
    BeforeValidator(_named, json_schema_input_type=str | dict[str, Any]),
]
"""A detector as a recipe writes it: ``content``, or ``{kind: adaptive, threshold: 2.5}``."""


def chosen(
    detectors: Sequence[Detector],
    kind: str,
    threshold: Decimal | None,
    min_scene: Decimal,
    weights: str | None = None,
) -> tuple[Detector, ...]:
    """Detectors by the long form, if there are any, or the one of the short form: its kind, its
    threshold (None: its own) and its shortest scene in seconds; ``weights`` is the path of those
    of TransNetV2, which only scoring needs.

    Raises ``ValueError`` where both forms are given, and pydantic's where the threshold is out of
    the detector's bounds.
    """
    if detectors and (kind, threshold, min_scene) != ("content", None, Decimal("0.6")):
        raise ValueError("with detectors, give threshold and min_scene to each one within them")
    if not detectors:
        given = {} if threshold is None else {"threshold": threshold}
        detectors = (KINDS[kind].model_validate({"min_scene": min_scene, **given}),)
    return tuple(
        one.bound(weights) if isinstance(one, TransNetV2Detector) else one for one in detectors
    )


class _FlashFilter:
    """PySceneDetect's filter of flashes behind a content detector."""

    def __init__(self, detector: ContentDetector, clock: Clock) -> None:
        self._score = detector.score
        self._threshold = float(detector.threshold)
        self._merges = detector.filter_mode == "merge"
        self._clock, self._least = clock, detector._least(clock)
        self._last_above: int | None = None
        self._merge_start: int | None = None
        self._has_cut = False
        self.settled: int | None = None

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        above = self._score(row) >= self._threshold
        if self._last_above is None:
            self._last_above = pts
        if self._least <= 0:
            cuts = [pts] if above else []
        elif self._merges:
            cuts = self._merged(pts, above)
        else:
            cuts = self._suppressed(pts, above)
        # What is being merged becomes a cut at its last frame, once it is long enough to be one.
        may_cut = self._merge_start is not None and self._is_long(
            self._merge_start, self._last_above
        )
        self.settled = self._last_above - 1 if may_cut else pts
        return cuts

    def finish(self) -> Sequence[int]:
        return ()

    def _suppressed(self, pts: int, above: bool) -> list[int]:
        if not (above and self._is_long(self._last_above, pts)):
            return []
        self._last_above = pts
        return [pts]

    def _merged(self, pts: int, above: bool) -> list[int]:
        is_long = self._is_long(self._last_above, pts)
        if above:
            self._last_above = pts
        if self._merge_start is not None:
            if is_long and not above and self._is_long(self._merge_start, self._last_above):
                self._merge_start = None
                assert self._last_above is not None
                return [self._last_above]
        elif above and is_long:
            self._has_cut = True
            return [pts]
        elif above and self._has_cut:
            self._merge_start = pts
        return []

    def _is_long(self, start: int | None, end: int | None) -> bool:
        assert start is not None
        assert end is not None
        return self._clock.frames(end - start) >= self._least


class _Spaced:
    """What searches have in common that count the shortest scene from their last cut."""

    def __init__(self, detector: _Detector, clock: Clock) -> None:
        self._clock, self._least = clock, detector._least(clock)
        self._last_cut: int | None = None
        self.settled: int | None = None

    def finish(self) -> Sequence[int]:
        return ()

    def _is_scene(self, pts: int) -> bool:
        assert self._last_cut is not None
        return self._clock.frames(pts - self._last_cut) >= self._least


class _Rolling(_Spaced):
    """Compares each frame's score with the mean of those around it."""

    def __init__(self, detector: AdaptiveDetector, clock: Clock) -> None:
        super().__init__(detector, clock)
        self._score = detector.score
        self._threshold = float(detector.threshold)
        self._least_change = float(detector.min_content_val)
        self._width = detector.window_width
        self._window: deque[tuple[int, float]] = deque(maxlen=2 * self._width + 1)

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        if self._last_cut is None:
            self._last_cut = pts
        self._window.append((pts, self._score(row)))
        if len(self._window) <= 2 * self._width:
            return ()
        at, score = self._window[self._width]
        self.settled = at
        if not self._stands_out(score) or not self._is_scene(at):
            return ()
        self._last_cut = at
        return (at,)

    def _stands_out(self, score: float) -> bool:
        others = [score for i, (_, score) in enumerate(self._window) if i != self._width]
        mean = sum(others) / (2.0 * self._width)
        ratio = 0.0
        if abs(mean) >= 0.00001:
            ratio = min(score / mean, 255.0)
        elif score >= self._least_change:
            ratio = 255.0
        return ratio >= self._threshold and score >= self._least_change


class _Jumps(_Spaced):
    """Cuts wherever a score reaches a threshold, unless the scene would be too short."""

    def __init__(
        self,
        detector: HashDetector | HistogramDetector,
        clock: Clock,
        threshold: float,
        *,
        below: bool = False,
    ) -> None:
        super().__init__(detector, clock)
        (self._column,) = detector.measures[0].columns
        self._threshold, self._below = threshold, below

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        self.settled = pts
        if self._last_cut is None:
            self._last_cut = pts
            return ()
        score = row[self._column]
        reached = score <= self._threshold if self._below else score >= self._threshold
        if not reached or not self._is_scene(pts):
            return ()
        self._last_cut = pts
        return (pts,)


class _Ends(_Spaced):
    """Cuts at the first frame behind each run of scores above a threshold."""

    def __init__(self, detector: TransNetV2Detector, clock: Clock) -> None:
        super().__init__(detector, clock)
        (self._column,) = Transitions.columns
        self._threshold = float(detector.threshold)
        self._is_transition = False

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        self.settled = pts
        if self._last_cut is None:
            self._last_cut = pts
        was, self._is_transition = self._is_transition, row[self._column] > self._threshold
        has_ended = was and not self._is_transition
        if not has_ended or not self._is_scene(pts):
            return ()
        self._last_cut = pts
        return (pts,)


class _Fades(_Spaced):
    """Waits for pictures to fade out, and cuts between there and where they fade in again."""

    def __init__(self, detector: ThresholdDetector, clock: Clock) -> None:
        super().__init__(detector, clock)
        (self._column,) = Brightness().columns
        self._threshold = int(detector.threshold)
        self._is_floor = detector.method == "floor"
        self._share = (1.0 + float(detector.fade_bias)) / 2.0
        self._adds_final = detector.add_final_scene
        self._least_out = _in_frames(detector.min_out, clock)
        self._last_pts = 0
        self._out: list[int] = []  # pts of the frames since it faded out, if it did

    def push(self, pts: int, row: Mapping[str, float]) -> Sequence[int]:
        dark = row[self._column] < self._threshold
        is_out = dark if self._is_floor else not dark
        if self._last_cut is None:
            self._last_cut = pts
        self._last_pts = pts
        cuts: tuple[int, ...] = ()
        if self._out:
            self._out.append(pts)
            if not is_out:
                cuts = self._faded_in(pts)
                self._out = []
        elif is_out:
            self._out = [pts]
        self.settled = self._out[0] - 1 if self._out else pts
        return cuts

    def finish(self) -> Sequence[int]:
        if not (self._out and self._adds_final) or not self._is_scene(self._last_pts):
            return ()
        end = self._last_pts + self._clock.step
        return (self._out[0],) if self._is_fade(end) else ()

    def _faded_in(self, pts: int) -> tuple[int, ...]:
        if not (self._is_scene(pts) and self._is_fade(pts)):
            return ()
        self._last_cut = pts
        # PySceneDetect counts in nominal frames here; the cut is at the frame nearest to that.
        number, end = (self._clock.frames(at - self._clock.origin) for at in (self._out[0], pts))
        number += round((end - number) * self._share)
        wished = self._clock.origin + number / self._clock.rate / self._clock.time_base
        right = min(bisect_left(self._out, wished), len(self._out) - 1)
        near = self._out[max(right - 1, 0) : right + 1]
        return (min(near, key=lambda at: (abs(at - wished), at)),)

    def _is_fade(self, end: int) -> bool:
        return self._clock.frames(end - self._out[0]) >= self._least_out


def _in_frames(length: Decimal, clock: Clock) -> int:
    return round(float(length) * float(clock.rate))
