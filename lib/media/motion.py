"""How much moves in a video, and how it looks: a few numbers from one decode, to filter by."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.decode import frames
from reelmill.media.flow import MIN_SIDE, Flow, FlowMethod, Gray, flow
from reelmill.media.probe import Source

SIDE: Final = 256
"""Pixels of the longer side of the small picture of a frame that all but sharpness is of."""

SHARP_SIDE: Final = 640
"""Pixels of the longer side at which sharpness is judged: what lies between them depends on it."""

GAP: Final = Fraction(1, 10)
"""Seconds that the two frames of a pair lie apart, at least. Animation draws a picture for every
second or third frame, and films at 24 a second come in videos of 30: neighbours may be equal."""

STILL: Final = Fraction(1, 100)
"""Diagonals a second below which a pixel stands still."""

CHANGE: Final = Fraction(1, 2)
AROUND: Final = 9
"""Mean difference of luma, in a square of so many pixels of the small picture, below which nothing
has moved in its middle: flow spreads from edges over even surfaces, and sees it in faint noise."""

BLACK_PIXEL: Final = 25
"""Luma up to which a pixel is black: a tenth of the range, as FFmpeg's ``blackdetect`` has it."""

BLACK_SHARE: Final = Fraction(98, 100)
"""Share of black pixels from which a picture is black, as ``blackdetect`` has it."""

BRIGHT_PIXEL: Final = 250
"""Luma from which a pixel has lost its detail to the light: 98 % of the range."""

NOISE: Final = Fraction(1, 1000)
"""Mean difference of luma, as a share of its range, up to which two pictures are the same: the
-60 dB of FFmpeg's ``freezedetect``."""

FREEZE: Final = Fraction(1, 2)
"""Seconds from which a picture that stays the same is frozen. ``freezedetect`` waits for 2, which
is most of a clip."""

BORDER: Final = 24
"""Mean luma up to which a row or a column is a black bar: the limit of FFmpeg's ``cropdetect``."""

CUT_LEAST: Final = 15
CUT_RATIO: Final = 3
CUT_WINDOW: Final = 2
"""What parts a cut from motion: a mean difference of luma of so much, which is so many times that
of as many frames on either side. PySceneDetect's ``AdaptiveDetector`` by default, on luma alone."""

# As in reelmill.media.decode: results that do not depend on the CPU.
_SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

_STEPS: Final = 2**20
"""Parts of a diagonal to which motion is rounded, so that it is added up in whole numbers."""

_LEVELS: Final = np.arange(256, dtype=np.int64)
_SQUARES: Final = _LEVELS**2
_DIGITS: Final = 4


@dataclass(frozen=True)
class Motion:
    """What one video is like. ``luma`` and its like are shares of the range from black to white,
    whatever range and depth the video stores; shares of time count a frame for as long as it is
    shown.

    Attributes:
        motion: how far a pixel moves in a second on average, in diagonals of the picture: the same
            for a smaller copy, for one turned upright and for one of another rate. None where no
            two frames of a scene can be compared.
        motion_max: the same of the pair of frames in which most moves.
        static: share of pixels that move by less than ``STILL``, or around which nothing changes;
            None as for ``motion``.
        luma: the mean, and of the darkest and of the brightest frame.
        contrast: standard deviation of luma within a frame.
        sharpness: variance of the Laplacian of luma from 0 to 255; the less, the more blurred.
        black: share of time in which the picture is black.
        overexposed: share of pixels that are white, or next to it.
        frozen: share of time in stretches of ``FREEZE`` or longer in which the picture stays.
        repeated: share of frames that repeat the one before.
        border: share of the picture that is bars at its edges, black all the time.
        cuts: how often the picture changes at once.
    """

    motion: float | None
    motion_max: float | None
    static: float | None
    luma: float
    luma_min: float
    luma_max: float
    contrast: float
    sharpness: float
    black: float
    overexposed: float
    frozen: float
    repeated: float
    border: float
    cuts: int


def measure(source: Source, rate: Fraction = Fraction(4)) -> Motion:
    """What the best video stream is like. Every frame is decoded and looked at small; motion and
    sharpness are those of ``rate`` pairs of frames a second, at most one for each ``GAP``.

    The same bytes give the same numbers on every CPU of one architecture. Memory does not grow with
    the video but for 24 bytes a frame.

    Motion is that of dense inverse search, OpenCV's ultrafast preset, between pictures of ``SIDE``
    pixels. Contrast is RMS contrast (Peli, "Contrast in complex images", JOSA A 1990), sharpness as
    in Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000, at
    ``SHARP_SIDE`` pixels.

    Raises as :func:`~reelmill.media.decode.frames` does, and
    :class:`~reelmill.errors.Rejected` (``undecodable``) where frames have no luma.
    """
    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
    with closing(frames(source)) as decoded:
        first = next(decoded)
        meter = _Meter(first, rate)
        meter.feed(first)
        for frame in decoded:
            meter.feed(frame)
    return meter.result()


class _Meter:
    """The measuring of one video, of whose frames one after the other is fed."""

    def __init__(self, first: av.VideoFrame, rate: Fraction) -> None:
        assert first.time_base is not None
        self._tick = Fraction(first.time_base)
        self._small = _Shrinker(first, SIDE)
        self._looks = _Looks(self._small.pixels, self._tick)
        self._pairs = _Pairs(first, rate, self._tick, self._small)

    def feed(self, frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        small = self._small(frame)
        self._looks.feed(frame.pts, small)
        self._pairs.feed(frame, small)

    def result(self) -> Motion:
        self._looks.finish()
        cuts = self._looks.cuts()
        speeds, still = self._pairs.finish(cuts)
        count = len(speeds)
        return Motion(
            motion=_rounded(sum(speeds) / count) if count else None,
            motion_max=_rounded(max(speeds)) if count else None,
            static=_rounded(still / count) if count else None,
            sharpness=round(float(self._pairs.sharpness), 1),
            cuts=len(cuts),
            **self._looks.shares(),
        )


class _Shrinker:
    """Makes frames small pictures of luma from 0 to 255, whose longer side has ``side`` pixels and
    whose shorter one is enough for flow; all of the size that the first frame comes to."""

    def __init__(self, first: av.VideoFrame, side: int) -> None:
        longer = max(first.width, first.height)
        sides = (first.width, first.height)
        self.size = tuple(max(MIN_SIDE, round(one * side / longer)) for one in sides)
        self.pixels = self.size[0] * self.size[1]
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Gray:
        width, height = self.size
        try:
            # To swscale, gray has the full range, whatever range its source has.
            gray = self._reformatter.reformat(
                frame, width, height, "gray", interpolation=_SCALING, threads=1
            ).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise Rejected("undecodable", f"{frame.format.name} has no luma to look at") from error
        return np.ascontiguousarray(gray, np.uint8)


class _Looks:
    """What single frames look like, and what each has in common with those before it."""

    def __init__(self, pixels: int, tick: Fraction) -> None:
        self._pixels = pixels
        self._tick = tick
        # Whole numbers, as what they are compared with is: fractions take ten times as long.
        self._same = math.floor(NOISE * 255 * pixels)
        self._blackest = math.ceil(BLACK_SHARE * pixels)
        self._stamps = array("q")
        self._sums = array("q")  # of luma
        self._changes = array("q")  # sums of differences from the frame before
        self._shown = self._squares = self._black = self._bright = self._frozen = 0
        self._waiting = (0, 0, 0)
        self._before: Gray | None = None
        self._held: tuple[int, Gray] | None = None
        self._brightest: Gray | None = None

    def feed(self, pts: int, small: Gray) -> None:
        if self._brightest is None:
            self._brightest = small.copy()
        else:
            np.maximum(self._brightest, small, out=self._brightest)
            self._count(pts - self._stamps[-1])
        self._changes.append(_difference(self._before, small))
        self._hold(pts, small)
        # Floats, but of whole numbers, and three times as fast as numpy's.
        counts = cv2.calcHist([small], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        dark = int(counts[: BLACK_PIXEL + 1].sum())
        bright = int(counts[BRIGHT_PIXEL:].sum())
        total, squares = int(counts @ _LEVELS), int(counts @ _SQUARES)
        self._waiting = (squares * self._pixels - total**2, dark, bright)
        self._stamps.append(pts)
        self._sums.append(total)
        self._before = small

    def finish(self) -> None:
        """The last frame is shown for as long as the one before it."""
        last = self._stamps[-1] - self._stamps[-2] if len(self._stamps) > 1 else 1
        self._count(last)
        self._let_go(self._stamps[-1] + last)

    def _count(self, ticks: int) -> None:
        """Add the frame that was fed last, which is shown for ``ticks``."""
        squares, dark, bright = self._waiting
        self._shown += ticks
        self._squares += ticks * squares
        self._bright += ticks * bright
        self._black += ticks if dark >= self._blackest else 0

    def _hold(self, pts: int, small: Gray) -> None:
        # Each is compared with the first of its stretch, so that slow changes are none that stays.
        if self._held is None:
            self._held = pts, small
        elif _difference(self._held[1], small) > self._same:
            self._let_go(pts)
            self._held = pts, small

    def _let_go(self, pts: int) -> None:
        assert self._held is not None
        ticks = pts - self._held[0]
        self._frozen += ticks if ticks * self._tick >= FREEZE else 0

    def cuts(self) -> list[int]:
        """The numbers of the frames that begin something else."""
        changes, found = self._changes, []
        for number in range(1, len(changes)):
            if changes[number] < CUT_LEAST * self._pixels:
                continue
            begin = max(1, number - CUT_WINDOW)
            around = changes[begin:number] + changes[number + 1 : number + 1 + CUT_WINDOW]
            if changes[number] * len(around) >= CUT_RATIO * sum(around):
                found.append(number)
        return found

    def shares(self) -> dict[str, float]:
        assert self._brightest is not None
        shown, pixels = self._shown, self._pixels
        lasting = np.diff(np.frombuffer(self._stamps, np.int64)).tolist()
        lasting.append(shown - sum(lasting))
        luma = sum(ticks * total for ticks, total in zip(lasting, self._sums, strict=True))
        whole = 255 * pixels
        repeats = sum(change <= self._same for change in self._changes[1:])
        return {
            "luma": _rounded(Fraction(luma, shown * whole)),
            "luma_min": _rounded(Fraction(min(self._sums), whole)),
            "luma_max": _rounded(Fraction(max(self._sums), whole)),
            "contrast": round(math.sqrt(Fraction(self._squares, shown * whole**2)), _DIGITS),
            "black": _rounded(Fraction(self._black, shown)),
            "overexposed": _rounded(Fraction(self._bright, shown * pixels)),
            "frozen": _rounded(Fraction(self._frozen, shown)),
            "repeated": _rounded(Fraction(repeats, len(self._sums))),
            "border": _rounded(_border(self._brightest)),
        }


@dataclass(frozen=True)
class _Pair:
    """Two frames by their numbers: how far pixels moved from one to the other, in diagonals a
    second, and the share of pixels that stood still."""

    first: int
    second: int
    speed: Fraction
    still: Fraction


class _Pairs:
    """Pairs of frames, ``rate`` a second, and what moves from one to the other."""

    def __init__(
        self, first: av.VideoFrame, rate: Fraction, tick: Fraction, small: _Shrinker
    ) -> None:
        assert first.pts is not None
        self._begin, self._tick, self._pace = first.pts, tick, rate * tick
        self._gap = math.ceil(GAP / tick)
        diagonal = math.hypot(first.width, first.height)
        # What a pixel of the small picture is of the diagonal, across and down.
        self._scale = (
            np.float32(first.width / small.size[0] / diagonal),
            np.float32(first.height / small.size[1] / diagonal),
        )
        self._sharp = _Shrinker(first, SHARP_SIDE)
        self._number = -1
        self._due = 0
        self._open: tuple[int, int, Gray] | None = None
        self._last: tuple[int, int, Gray] | None = None
        self._made: list[_Pair] = []
        self._blurs: list[Fraction] = []

    def feed(self, frame: av.VideoFrame, small: Gray) -> None:
        assert frame.pts is not None
        self._number += 1
        self._last = now = self._number, frame.pts, small
        if self._open is not None and frame.pts - self._open[1] >= self._gap:
            self._made.append(self._pair(self._open, now))
            self._open = None
        passed = frame.pts - self._begin
        if self._open is None and passed >= self._due:
            self._due = math.ceil((math.floor(passed * self._pace) + 1) / self._pace)
            self._open = now
            self._blurs.append(_variance(self._sharp(frame)))

    def finish(self, cuts: list[int]) -> tuple[list[Fraction], Fraction]:
        """The speeds of all pairs without a cut between them, and their shares of what is still
        together. A video that is shorter than a pair is one."""
        begun, last = self._open, self._last
        if not self._made and begun is not None and last is not None and begun[0] < last[0]:
            self._made.append(self._pair(begun, last))
        whole = [
            pair
            for pair in self._made
            if bisect_right(cuts, pair.first) == bisect_right(cuts, pair.second)
        ]
        return [pair.speed for pair in whole], sum((pair.still for pair in whole), Fraction(0))

    @property
    def sharpness(self) -> Fraction:
        return sum(self._blurs, Fraction(0)) / len(self._blurs)

    def _pair(self, first: tuple[int, int, Gray], second: tuple[int, int, Gray]) -> _Pair:
        seconds = (second[1] - first[1]) * self._tick
        steps = self._steps(flow(first[2], second[2], FlowMethod.DIS_ULTRAFAST))
        steps[~_changed(first[2], second[2])] = 0
        still = int(np.count_nonzero(steps < math.ceil(STILL * seconds * _STEPS)))
        speed = Fraction(int(steps.sum()), steps.size * _STEPS) / seconds
        return _Pair(first[0], second[0], speed, Fraction(still, steps.size))

    def _steps(self, moved: Flow) -> NDArray[np.int64]:
        # Products and roots are rounded alike by every CPU; sums of them are not, but of integers.
        across, down = moved[..., 0] * self._scale[0], moved[..., 1] * self._scale[1]
        length = np.sqrt(across * across + down * down)
        steps: NDArray[np.int64] = np.rint(length * np.float32(_STEPS)).astype(np.int64)
        return steps


def _difference(before: Gray | None, now: Gray) -> int:
    """The sum of the differences of all pixels; 0 if there is nothing to compare with."""
    return 0 if before is None else int(cv2.norm(before, now, cv2.NORM_L1))


def _changed(before: Gray, now: Gray) -> NDArray[np.bool_]:
    """Around which pixels there is any change to be seen."""
    square = (AROUND, AROUND)
    sums = cv2.boxFilter(cv2.absdiff(before, now), cv2.CV_16U, square, normalize=False)
    return np.asarray(sums >= math.ceil(CHANGE * AROUND**2))


def _variance(picture: Gray) -> Fraction:
    """The variance of the Laplacian."""
    edges = cv2.Laplacian(picture, cv2.CV_16S).ravel().astype(np.int64)
    total, squares = int(edges.sum()), int(edges @ edges)
    return Fraction(squares * edges.size - total**2, edges.size**2)


def _border(brightest: Gray) -> Fraction:
    """The share of a picture outside of what is ever brighter than a bar."""
    inside = 1
    for axis in (0, 1):
        lines = np.flatnonzero(brightest.sum(axis=axis) > BORDER * brightest.shape[axis])
        inside *= int(lines[-1] - lines[0]) + 1 if len(lines) else 0
    return 1 - Fraction(inside, brightest.size)


def _rounded(value: Any) -> float:
    return round(float(value), _DIGITS)
