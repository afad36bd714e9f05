"""PySceneDetect's own scores, from the pictures it looks at: each is of a frame and the one before.

The columns bear the names of its statistics file. Every score is worked out by the same calls, on
the same integers, as in PySceneDetect 0.7.2, or by others that round nowhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reelmill.media.scenes.contract import Row, Scorer
from reelmill.media.scenes.pictures import Shrinker, View


class Pairwise(ABC):
    """A measure that looks at each picture once, and then compares what it saw in two."""

    lag: ClassVar[int] = 0

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]: ...

    @abstractmethod
    def look(self, view: View) -> Any:
        """What must be known of a picture to compare it with its neighbours."""

    @abstractmethod
    def change(self, before: Any, now: Any) -> Row:
        """The scores of a frame; ``before`` is None for the first one of a video."""

    def start(self) -> Scorer:
        return PairScorer([self])


@dataclass(frozen=True)
class Content(Pairwise):
    """Mean differences in hue, saturation and value of pixels, 0 to 255 (hue: 0 to 179)."""

    columns = ("delta_hue", "delta_sat", "delta_lum")

    def look(self, view: View) -> NDArray[np.uint8]:
        return view.hsv

    def change(self, before: Any, now: Any) -> Row:
        return (0.0, 0.0, 0.0) if before is None else _distance(before, now)[:3]


@dataclass(frozen=True)
class Edges(Pairwise):
    """Mean difference of the maps of edges, each thickened by a square of ``kernel_size`` pixels
    (None: by a size that goes with the picture's)."""

    kernel_size: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        size = "" if self.kernel_size is None else f" [kernel={self.kernel_size}]"
        return (f"delta_edges{size}",)

    def look(self, view: View) -> NDArray[np.uint8]:
        import cv2

        value = np.ascontiguousarray(view.hsv[:, :, 2])
        median = float(np.median(value))
        sigma = 1.0 / 3.0
        low = int(max(0, (1.0 - sigma) * median))
        high = int(min(255, (1.0 + sigma) * median))
        size = self.kernel_size or _kernel_size(value.shape[1], value.shape[0])
        kernel = np.ones((size, size), np.uint8)
        return np.asarray(cv2.dilate(cv2.Canny(value, low, high), kernel), np.uint8)

    def change(self, before: Any, now: Any) -> Row:
        return (0.0,) if before is None else _distance(before, now)[:1]


@dataclass(frozen=True)
class Brightness(Pairwise):
    """The mean of all pixels' red, green and blue, 0 to 255."""

    columns = ("average_rgb",)

    def look(self, view: View) -> float:
        import cv2

        return float(sum(cv2.sumElems(view.bgr)) / view.bgr.size)

    def change(self, before: Any, now: Any) -> Row:
        return (now,)


@dataclass(frozen=True)
class Hash(Pairwise):
    """The share of bits in which perceptual hashes differ: ``size`` squared bits, of pictures of
    ``size`` times ``lowpass`` pixels squared."""

    size: int = 8
    lowpass: int = 2

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"hash_dist [size={self.size} lowpass={self.lowpass}]",)

    def look(self, view: View) -> NDArray[np.bool_]:
        import cv2

        grey = cv2.cvtColor(view.bgr, cv2.COLOR_BGR2GRAY)
        side = self.size * self.lowpass
        square = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
        brightest = square.max() or np.uint8(1)
        waves = cv2.dct(np.asarray(np.float32(square) / brightest))[: self.size, : self.size]
        return np.asarray(waves > np.median(waves))

    def change(self, before: Any, now: Any) -> Row:
        if before is None:
            return (0.0,)
        return (int(np.count_nonzero(before != now)) / float(self.size * self.size),)


@dataclass(frozen=True)
class Histogram(Pairwise):
    """The correlation of the histograms of luma, of ``bins`` bins: 1 where they are alike."""

    bins: int = 128

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"hist_diff [bins={self.bins}]",)

    def look(self, view: View) -> NDArray[np.float32]:
        import cv2

        luma = np.ascontiguousarray(cv2.cvtColor(view.bgr, cv2.COLOR_BGR2YUV)[:, :, 0])
        counts = cv2.calcHist([luma], [0], None, [self.bins], [0, 256])
        return np.asarray(cv2.normalize(counts, counts).flatten(), np.float32)

    def change(self, before: Any, now: Any) -> Row:
        import cv2

        if before is None:
            return (1.0,)
        return (float(cv2.compareHist(before, now, cv2.HISTCMP_CORREL)),)


class PairScorer:
    """Several pairwise measures at work on one video: its frames are shrunk once for all."""

    lag = 0

    def __init__(self, measures: Sequence[Pairwise]) -> None:
        self.measures = tuple(measures)
        self.first: tuple[Any, ...] | None = None
        self.last: tuple[Any, ...] | None = None
        self._shrink: Shrinker | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the first frame, to which those of other sizes are scaled."""
        return None if self._shrink is None else self._shrink.size

    def feed(self, frame: Any) -> list[Row]:
        """Raises :class:`~reelmill.errors.Rejected` (``undecodable``) where the frame's colours
        cannot be converted."""
        if self._shrink is None:
            self._shrink = Shrinker(frame.width, frame.height)
        view = View(self._shrink(frame))
        seen = tuple(measure.look(view) for measure in self.measures)
        row = self.compare(self.last, seen)
        self.first, self.last = self.first or seen, seen
        return [row]

    def compare(self, before: tuple[Any, ...] | None, now: tuple[Any, ...]) -> Row:
        """The row of a frame from what was seen in it and in the one before."""
        others = before or (None,) * len(now)
        pairs = zip(self.measures, others, now, strict=True)
        return tuple(value for measure, b, n in pairs for value in measure.change(b, n))

    def finish(self) -> list[Row]:
        return []


def _distance(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> Row:
    import cv2

    # Sums of bytes are whole numbers, which doubles carry exactly.
    pixels = float(now.shape[0] * now.shape[1])
    return tuple(total / pixels for total in cv2.sumElems(cv2.absdiff(before, now)))


def _kernel_size(width: int, height: int) -> int:
    size = 4 + round(math.sqrt(width * height) / 192)
    return size + 1 if size % 2 == 0 else size
