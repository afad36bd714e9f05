"""PySceneDetect's content score on a card: the same integers as on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.media.gpu.colour import Planes, hsv_of, shrunk_bgr
from reelmill.media.gpu.modules import torch_module
from reelmill.media.gpu.nvdec import Nvdec, RefusedError
from reelmill.media.probe import Source

_SMALLEST = 256
"""PySceneDetect shrinks pictures so that their longer side comes to this, in pixels."""


@dataclass(frozen=True, eq=False)
class Content:
    """How much each frame of a video differs from the one before: int64 ``pts`` of the frames in
    units of ``time_base``, and float64 ``deltas`` of shape (N, 3), which are the mean differences
    of hue, saturation and value over all pixels, each from 0 to 255; 0 for the first frame."""

    time_base: Fraction
    pts: NDArray[np.int64]
    deltas: NDArray[np.float64]


def content(decoders: Nvdec, source: Source) -> Content:
    """The content of the best video stream of ``source``, decoded and scored on the card.

    Raises as :meth:`~reelmill.media.gpu.nvdec.Nvdec.decode` does, and
    :class:`~reelmill.media.gpu.nvdec.RefusedError` also for more than 8 bits, which swscale
    converts in a way of its own.
    """
    header = decoders.header(source)
    if header.stream.bits != 8:
        raise RefusedError(f"scores of {header.stream} are computed on the CPU")
    stamps: list[NDArray[np.int64]] = []

    def planes() -> Iterable[Planes]:
        with closing(decoders.decode(source)) as decoded:
            for one in decoded:
                stamps.append(one.pts)
                yield one.planes

    found = deltas(planes(), *scored_size(header.stream.width, header.stream.height))
    return Content(header.time_base, np.concatenate(stamps), found)


def scored_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the picture that PySceneDetect scores, as its ``SceneManager`` has it."""
    factor = max(max(width, height) / _SMALLEST, 1.0)
    return max(1, round(width / factor)), max(1, round(height / factor))


def deltas(batches: Iterable[Planes], width: int, height: int) -> NDArray[np.float64]:
    """The ``deltas`` of :class:`Content` for frames of 8 bits, scored at ``width`` x ``height``.

    Sums of differences are integers, and so is all that leads to them: the quotients are
    PySceneDetect's own numbers.
    """
    torch = torch_module()
    sums: list[NDArray[np.int64]] = []
    before: Any = None
    for planes in batches:
        hsv = hsv_of(shrunk_bgr(planes, width, height)).short()
        previous = torch.cat([hsv[:1] if before is None else before, hsv[:-1]])
        apart = (hsv - previous).abs().sum(dim=(1, 2), dtype=torch.int64)
        sums.append(apart.cpu().numpy())
        before = hsv[-1:]
    return np.concatenate(sums) / float(width * height)
