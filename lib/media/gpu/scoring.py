"""Scores of whole videos on a card: NVDEC decodes, torch converts, shrinks and compares.

Measures of PySceneDetect's get the numbers that they have on the CPU: content and brightness are
worked out on the card, in integers; the others look at the card's small picture on the host, and
need none of its full frames. TransNetV2 runs on the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reelmill.media.gpu.colour import Planes, hsv_of, rgb_of, shrunk_bgr
from reelmill.media.gpu.modules import torch_module
from reelmill.media.gpu.nvdec import Nvdec, RefusedError, nvdec
from reelmill.media.gpu.transnet import HEIGHT, WIDTH, loaded
from reelmill.media.probe import Source, probe
from reelmill.media.scenes.contract import Clock, Measure, Scores
from reelmill.media.scenes.measures import Brightness, Content, PairScorer, Pairwise
from reelmill.media.scenes.pictures import View, small_size
from reelmill.media.scenes.transitions import Transitions


class Small:
    """The small pictures that PySceneDetect looks at, of a batch of 8-bit frames."""

    def __init__(self, planes: Planes) -> None:
        self._planes = planes

    @cached_property
    def bgr(self) -> Any:
        """A uint8 tensor of shape (N, height, width, 3)."""
        height, width = self._planes.y.shape[1:]
        return shrunk_bgr(self._planes, *small_size(width, height))

    @cached_property
    def views(self) -> list[View]:
        """The same on the host, for measures of the CPU."""
        return [View(picture) for picture in self.bgr.cpu().numpy()]


class Scorer(Protocol):
    """Scores one video on a card. Batches come in presentation order."""

    def feed(self, planes: Planes, small: Small) -> NDArray[Any]:
        """Take the next frames; return the rows that are now final, shape (N, columns)."""

    def finish(self) -> NDArray[Any]:
        """The rows still owed."""


def score(source: Source, measures: Sequence[Measure], decoders: Nvdec | None = None) -> Scores:
    """The scores of the best video stream of ``source``, as
    :func:`reelmill.media.scenes.score` gives them, those of TransNetV2 but for their last digits.

    Raises as :meth:`~reelmill.media.gpu.nvdec.Nvdec.decode` does, and
    :class:`~reelmill.media.gpu.nvdec.RefusedError` also where more than 8 bits are to be converted
    as swscale does it for PySceneDetect; and as
    :func:`~reelmill.media.gpu.devices.capabilities` where there is no card.
    """
    decoders = decoders or nvdec()
    header = decoders.header(source)
    asked = sorted(measures, key=lambda one: not isinstance(one, Pairwise))
    if header.stream.bits != 8 and any(isinstance(one, Pairwise) for one in asked):
        raise RefusedError(f"scores of {header.stream} are computed on the CPU")
    scorers = [_scorer(one, source) for one in asked]
    rows: list[list[NDArray[Any]]] = [[] for _ in scorers]
    pts: list[NDArray[np.int64]] = []
    end = 0
    with closing(decoders.decode(source)) as decoded:
        for batch in decoded:
            pts.append(batch.pts)
            end = batch.end
            small = Small(batch.planes)
            for scorer, found in zip(scorers, rows, strict=True):
                found.append(scorer.feed(batch.planes, small))
    for scorer, found in zip(scorers, rows, strict=True):
        found.append(scorer.finish())
    names = chain.from_iterable(one.columns for one in asked)
    values = np.concatenate([np.concatenate(found) for found in rows], axis=1, dtype=np.float64)
    columns = {name: values[:, place].copy() for place, name in enumerate(names)}
    clock = Clock(header.time_base, header.rate, header.start)
    return Scores(clock, np.concatenate(pts), end, columns)


def _scorer(measure: Measure, source: Source) -> Scorer:
    if isinstance(measure, Content):
        return Deltas()
    if isinstance(measure, Brightness):
        return _Means()
    if isinstance(measure, Pairwise):
        return _OnHost(measure)
    if isinstance(measure, Transitions):
        return _Watched(measure, probe(source).rotation // 90 % 4)
    raise RefusedError(f"scores of {', '.join(measure.columns)} are computed on the CPU")


_NONE = np.empty((0, 1))


class Deltas:
    """Mean differences of hue, saturation and value between a frame and the one before.

    Sums of differences are integers, and so is all that leads to them.
    """

    def __init__(self) -> None:
        self._before: Any = None

    def feed(self, planes: Planes, small: Small) -> NDArray[Any]:
        torch = torch_module()
        hsv = hsv_of(small.bgr).short()
        first = hsv[:1] if self._before is None else self._before
        self._before = hsv[-1:]
        apart = (hsv - torch.cat([first, hsv[:-1]])).abs().sum(dim=(1, 2), dtype=torch.int64)
        height, width = hsv.shape[1:3]
        sums: NDArray[Any] = apart.cpu().numpy()
        return sums / float(height * width)

    def finish(self) -> NDArray[Any]:
        return np.empty((0, 3))


class _Means:
    """The mean of all samples of blue, green and red."""

    def feed(self, planes: Planes, small: Small) -> NDArray[Any]:
        torch = torch_module()
        sums: NDArray[Any] = small.bgr.sum(dim=(1, 2, 3), dtype=torch.int64).cpu().numpy()
        return (sums / float(small.bgr[0].numel()))[:, None]

    def finish(self) -> NDArray[Any]:
        return _NONE


class _OnHost:
    """A measure of the CPU's, on the small pictures of the card."""

    def __init__(self, measure: Pairwise) -> None:
        self._pairs = PairScorer([measure])

    def feed(self, planes: Planes, small: Small) -> NDArray[Any]:
        return np.array([self._row(view) for view in small.views])

    def _row(self, view: View) -> tuple[float, ...]:
        seen = (self._pairs.measures[0].look(view),)
        before, self._pairs.last = self._pairs.last, seen
        return self._pairs.compare(before, seen)

    def finish(self) -> NDArray[Any]:
        return np.empty((0, len(self._pairs.measures[0].columns)))


class _Watched:
    """TransNetV2, on the device that the frames are on."""

    def __init__(self, measure: Transitions, turns: int) -> None:
        self._measure = measure
        self._turns = turns
        self._windows: Any = None

    def feed(self, planes: Planes, small: Small) -> NDArray[Any]:
        torch = torch_module()
        if self._windows is None:
            network = loaded(self._measure.path, str(planes.y.device.type))
            self._windows = network.start()
        size = (HEIGHT, WIDTH) if self._turns % 2 else (WIDTH, HEIGHT)
        pictures = torch.rot90(rgb_of(planes, *size), self._turns, dims=(1, 2))
        scores: NDArray[Any] = self._windows.feed(pictures)
        return scores[:, None]

    def finish(self) -> NDArray[Any]:
        scores: NDArray[Any] = self._windows.finish()
        return scores[:, None]
