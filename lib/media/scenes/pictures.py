"""The small picture of a frame that PySceneDetect looks at, bit for bit, with less work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from math import floor
from typing import Any, TypeAlias

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from reelmill.errors import Rejected

BGR: TypeAlias = NDArray[np.uint8]
"""A picture of shape (height, width, 3): blue, green, red."""

LEAST_WIDTH = 256
"""Pixels of the longer side of a picture that PySceneDetect shrinks frames to."""

_CHROMA = {"yuv420p": (2, 2), "yuvj420p": (2, 2), "yuv422p": (2, 1), "yuvj422p": (2, 1)}
"""Luma samples for each chroma sample, across and down, of formats whose pixels swscale converts
to BGR one by one: what becomes of one depends on nothing around it."""

_Way: TypeAlias = Callable[[Any], BGR]


class View:
    """What measures look at: one frame's small picture, and what several of them make of it."""

    def __init__(self, bgr: BGR) -> None:
        self.bgr = bgr

    @cached_property
    def hsv(self) -> NDArray[np.uint8]:
        """Hue, saturation and value, shape (height, width, 3)."""
        import cv2

        return np.asarray(cv2.cvtColor(self.bgr, cv2.COLOR_BGR2HSV))


def small_size(width: int, height: int) -> tuple[int, int]:
    """The size to which PySceneDetect shrinks frames of this one: (width, height)."""
    longer = max(width, height)
    if longer < LEAST_WIDTH:
        return width, height
    factor = longer / float(LEAST_WIDTH)
    return max(1, round(width / factor)), max(1, round(height / factor))


class Shrinker:
    """Shrinks the frames of one video, of ``width`` by ``height`` pixels, to BGR pictures of
    :func:`small_size`: the frame as PyAV converts it to ``bgr24``, resized bilinearly by OpenCV.

    Where that resizing picks single pixels (an odd factor in both directions: 1280×720 by 5), or
    the mean of four, only those are converted; where it passes over whole rows otherwise (1920×1080
    by 7.5), only the others are. That it comes to the same is tried out on noise,
    once for each kind of frame; where it does not, the long way is taken.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._kind: tuple[Any, ...] | None = None
        self._way: _Way = _Whole(width, height)

    def __call__(self, frame: Any) -> BGR:
        """Raises :class:`~reelmill.errors.Rejected` (``undecodable``) where the frame's colours
        cannot be converted."""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._kind, self._way = kind, self._choose(kind)
        try:
            return self._way(frame)
        except (av.FFmpegError, ValueError) as error:
            raise Rejected("undecodable", "its colours cannot be converted to RGB") from error

    def _choose(self, kind: tuple[Any, ...]) -> _Way:
        way = _shorter(kind) if kind[:2] == self.size else None
        if way is not None and _comes_to_the_same(kind):
            return way
        return _Whole(*self.size)


class _Whole:
    """Converts the whole frame. A frame of another size is scaled to the video's."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._small = small_size(width, height)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> BGR:
        import cv2

        width, height = self._size
        whole = self._reformatter.reformat(frame, width, height, "bgr24", threads=1)
        bgr = _plane(whole, 0)[:, : 3 * width].reshape(height, width, 3)
        if self._small == self._size:
            return np.ascontiguousarray(bgr)
        return np.asarray(cv2.resize(bgr, self._small, interpolation=cv2.INTER_LINEAR))


class _Sampled:
    """Converts the pixels that the resizing would read, and no others.

    They are laid out in a frame of their own, each with a chroma sample of its own: where chroma
    is subsampled, the first of each block of luma samples is used, and the others stay unread.
    """

    def __init__(
        self, kind: tuple[Any, ...], steps: tuple[int, int], chroma: tuple[int, int]
    ) -> None:
        width, height, name, colorspace, color_range = kind
        columns, rows = _read(width, steps[0]), _read(height, steps[1])
        self._small = (width // steps[0], height // steps[1])
        self._picked = (len(columns), len(rows))
        self._block = chroma
        luma = (_strides(rows), _strides(columns))
        chromas = (_strides(rows // chroma[1]), _strides(columns // chroma[0]))
        self._picks = (luma, chromas, chromas)
        self._frame = av.VideoFrame(len(columns) * chroma[0], len(rows) * chroma[1], name)
        self._frame.colorspace, self._frame.color_range = colorspace, color_range
        for plane in self._frame.planes:
            np.frombuffer(plane, np.uint8)[:] = 128
        across, down = self._picked
        planes = [_plane(self._frame, number) for number in range(3)]
        self._room = [plane[:down, :across] for plane in planes]
        self._room[0] = planes[0][:: chroma[1], :: chroma[0]][:down, :across]
        self._reformatter = VideoReformatter()

    @classmethod
    def fitting(cls, kind: tuple[Any, ...]) -> _Sampled | None:
        """None for frames that cannot be sampled."""
        width, height, name = kind[:3]
        small = small_size(width, height)
        steps = (width // small[0], height // small[1])
        chroma = _CHROMA.get(name)
        exact = (small[0] * steps[0], small[1] * steps[1]) == (width, height)
        if chroma is None or not exact or min(*steps, *small) < 2 or (steps[0] - steps[1]) % 2:
            return None
        return cls(kind, steps, chroma)

    def __call__(self, frame: Any) -> BGR:
        import cv2

        across, down = self._picked
        right, below = self._block
        for number, (rows, columns) in enumerate(self._picks):
            plane, room = _plane(frame, number), self._room[number]
            for top, row in enumerate(rows):
                for left, column in enumerate(columns):
                    room[top :: len(rows), left :: len(columns)] = plane[row, column]
        width, height = across * right, down * below
        blocks = self._reformatter.reformat(self._frame, width, height, "bgr24", threads=1)
        bgr = _plane(blocks, 0)[:, : 3 * width].reshape(height, width, 3)
        picked = cv2.resize(bgr, (across, down), interpolation=cv2.INTER_NEAREST)
        if self._picked == self._small:
            return np.asarray(picked)
        return np.asarray(cv2.resize(picked, self._small, interpolation=cv2.INTER_LINEAR))


class _Rows:
    """Converts the rows that the resizing would read, and few others.

    They are laid closer together in a frame of their own, so that resizing that frame, by a factor
    that is smaller by a multiple of four, reads them with the same weights. They are moved in pairs
    that share a row of chroma.
    """

    def __init__(self, kind: tuple[Any, ...], step: Fraction, pairs: Sequence[int]) -> None:
        width, height, name, colorspace, color_range = kind
        self._small = small_size(width, height)
        self._pairs = pairs
        self._apart = int(2 * step)
        down = self._small[1] // 4 * 2 * len(pairs)
        self._frame = av.VideoFrame(width, down, name)
        self._frame.colorspace, self._frame.color_range = colorspace, color_range
        self._widths = (width, (width + 1) // 2, (width + 1) // 2)
        self._room = [_plane(self._frame, number) for number in range(3)]
        for room in self._room:
            room[:] = 128
        self._reformatter = VideoReformatter()

    @classmethod
    def fitting(cls, kind: tuple[Any, ...]) -> _Rows | None:
        """None for frames of which nearly all rows are read, or that do not fit the pattern."""
        width, height, name = kind[:3]
        small = small_size(width, height)
        step = Fraction(height, small[1])
        if _CHROMA.get(name) != (2, 2) or step.denominator > 2 or small[1] % 4:
            return None
        for closer in range(int(step - 2) // 4 * 4, 0, -4):
            if (pairs := _pairs_read(step, step - closer)) is not None:
                return cls(kind, step, pairs)
        return None

    def __call__(self, frame: Any) -> BGR:
        import cv2

        width, down = self._frame.width, self._frame.height
        for number, (room, across) in enumerate(zip(self._room, self._widths, strict=True)):
            plane, rows = _plane(frame, number), 1 if number else 2
            for place, pair in enumerate(self._pairs):
                for row in range(rows):
                    moved = plane[rows * pair + row :: rows * self._apart, :across]
                    room[rows * place + row :: rows * len(self._pairs), :across] = moved
        close = self._reformatter.reformat(self._frame, width, down, "bgr24", threads=1)
        bgr = _plane(close, 0)[:, : 3 * width].reshape(down, width, 3)
        return np.asarray(cv2.resize(bgr, self._small, interpolation=cv2.INTER_LINEAR))


def _pairs_read(step: Fraction, closer: Fraction) -> list[int] | None:
    """For each pair of rows that four rows of a picture reduced by ``closer`` come of, the pair of
    one reduced by ``step`` that is to stand there; None where two would have to. Where none is
    needed, any will do."""
    found: dict[int, int] = {}
    for row in range(4):
        middle = Fraction(2 * row + 1, 2)
        read, laid = (floor(middle * by - Fraction(1, 2)) for by in (step, closer))
        for tap in range(2):
            if found.setdefault((laid + tap) // 2, (read + tap) // 2) != (read + tap) // 2:
                return None
    return [found.get(pair, 0) for pair in range(int(2 * closer))]


def _shorter(kind: tuple[Any, ...]) -> _Way | None:
    """A way that converts less than whole frames, if one may fit this kind."""
    return _Sampled.fitting(kind) or _Rows.fitting(kind)


def _read(length: int, step: int) -> NDArray[np.intp]:
    """What bilinear resizing by a whole ``step`` reads of a row or column: the middle sample of
    each step, or the two about the middle."""
    taps = 1 if step % 2 else 2
    middles = np.arange(step // 2 - taps + 1, length, step)
    return (middles[:, None] + np.arange(taps)).ravel()


def _strides(places: NDArray[np.intp]) -> list[slice]:
    """Ascending places in two interleaved runs of even strides, or in one if that is enough: slices
    copy many times faster than places do. Those that bilinear resizing reads always fit."""
    runs = [places] if len(np.unique(np.diff(places))) < 2 else [places[::2], places[1::2]]
    return [slice(int(run[0]), int(run[-1]) + 1, int(run[1] - run[0])) for run in runs]


def _plane(frame: Any, number: int) -> NDArray[np.uint8]:
    """A plane as it lies in memory, shape (rows, bytes of a row), padding included."""
    plane = frame.planes[number]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]


@lru_cache(maxsize=64)
def _comes_to_the_same(kind: tuple[Any, ...]) -> bool:
    """Whether the shorter way gives the same picture as the long one, tried out on noise."""
    width, height, name, colorspace, color_range = kind
    frame = av.VideoFrame(width, height, name)
    frame.colorspace, frame.color_range = colorspace, color_range
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        values = np.frombuffer(plane, np.uint8)
        values[:] = noise.integers(0, 256, values.shape, dtype=np.uint8)
    way = _shorter(kind)
    return way is not None and np.array_equal(way(frame), _Whole(width, height)(frame))
