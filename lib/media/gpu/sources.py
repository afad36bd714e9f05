"""Where frames come from, on any device: one interface, and what to do where a card cannot."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from reelmill.media.cut.picture import Picture
from reelmill.media.decode import Device, frames, pixel_shape, to_rgb
from reelmill.media.gpu.colour import rgb_of
from reelmill.media.gpu.modules import torch_module
from reelmill.media.gpu.nvdec import BATCH, Nvdec, RefusedError, nvdec
from reelmill.media.probe import Source, open_media, probe, video_stream
from reelmill.media.size import Fit, Sizing

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames in presentation order: int64 ``pts`` in units of ``time_base`` seconds, strictly
    increasing, and upright uint8 RGB of full range, shape (N, H, W, 3): a NumPy array where they
    were decoded on the CPU, a tensor on the card where NVDEC decoded them."""

    pts: NDArray[np.int64]
    time_base: Fraction
    rgb: Any

    def __len__(self) -> int:
        return len(self.pts)


class FrameSource(Protocol):
    """Decodes videos on one device. It may be used from several threads at once."""

    @property
    def device(self) -> Device: ...

    def frames(
        self, source: Source, size: tuple[int, int] | None = None, batch: int = BATCH
    ) -> Generator[Batch, None, None]:
        """Batches of at most ``batch`` frames of the best video stream, scaled to ``size`` (width,
        height; of the upright picture). Closing the iterator gives its decoder back.

        Raises as :func:`~reelmill.media.decode.frames` does where the file cannot be used, and
        :class:`~reelmill.media.gpu.nvdec.RefusedError`, at any time, where this device cannot
        decode it whole: see :func:`on_device`.
        """


class CpuFrames:
    """Frames that libavcodec decodes and swscale converts, on one thread."""

    device: Device = "cpu"

    def frames(
        self, source: Source, size: tuple[int, int] | None = None, batch: int = BATCH
    ) -> Generator[Batch, None, None]:
        """As :meth:`FrameSource.frames` says; nothing is refused."""
        pts: list[int] = []
        pictures: list[NDArray[np.uint8]] = []
        time_base = Fraction(1)
        with closing(frames(source)) as decoded:
            for frame in decoded:
                picture = to_rgb(frame, size)
                if len(pts) == batch or (pictures and picture.shape != pictures[0].shape):
                    yield _batch(pts, time_base, pictures)
                    pts, pictures = [], []
                time_base = Fraction(frame.time_base)
                pts.append(frame.pts)
                pictures.append(picture)
        yield _batch(pts, time_base, pictures)


def _batch(pts: list[int], time_base: Fraction, pictures: list[NDArray[np.uint8]]) -> Batch:
    return Batch(np.array(pts, dtype=np.int64), time_base, np.stack(pictures))


class CudaFrames:
    """Frames that NVDEC decodes and torch converts and scales, on the card.

    They differ from those of :class:`CpuFrames` as :func:`~reelmill.media.gpu.colour.rgb_of` says.
    """

    device: Device = "cuda"

    def __init__(self, decoders: Nvdec | None = None) -> None:
        self._decoders = decoders or nvdec()

    def frames(
        self, source: Source, size: tuple[int, int] | None = None, batch: int = BATCH
    ) -> Generator[Batch, None, None]:
        """As :meth:`FrameSource.frames` says."""
        torch = torch_module()
        what = self._decoders.header(source).stream
        turns = probe(source).rotation // 90 % 4
        width, height = size or (what.width, what.height)[:: -1 if turns % 2 else 1]
        if turns % 2:
            width, height = height, width
        with closing(self._decoders.decode(source, batch)) as decoded:
            for one in decoded:
                rgb = torch.rot90(rgb_of(one.planes, width, height), turns, dims=(1, 2))
                yield Batch(one.pts, one.time_base, rgb.contiguous())


def frame_source(device: Device) -> FrameSource:
    """The decoder of a device.

    Raises for ``cuda`` as :func:`~reelmill.media.gpu.devices.capabilities` does, where there is no
    card or a package is missing.
    """
    return CudaFrames() if device == "cuda" else CpuFrames()


@dataclass(frozen=True, eq=False)
class CardPicture:
    """One frame: its ``pts`` in units of ``time_base`` seconds, and upright uint8 RGB of full
    range, shape (H, W, 3): a tensor, on the card if NVDEC decoded it."""

    pts: int
    time_base: Fraction
    rgb: Any


def pictures_on_card(source: Source, sizing: Sizing[Any]) -> Generator[CardPicture, None, None]:
    """All frames of ``source``, at the size that ``sizing`` gives the first, decoded by NVDEC, or
    by the CPU what NVDEC cannot decode whole: it is asked beforehand, by decoding all of it once,
    which takes little beside what is done with the pictures, and no memory.

    Raises as :meth:`FrameSource.frames` does where the file cannot be used.
    """
    torch = torch_module()
    fit = sizing.fit(*_size(source, sizing.is_given))
    device = on_device("cuda", lambda: _decoded_whole(source), lambda: "cpu")
    with closing(frame_source(device).frames(source, fit.scaled)) as batches:
        for batch in batches:
            pictures = _boxed(torch, torch.as_tensor(batch.rgb), fit)
            for pts, rgb in zip(batch.pts.tolist(), pictures, strict=True):
                yield CardPicture(pts, batch.time_base, rgb)


def _size(source: Source, square: bool) -> tuple[int, int]:
    """(width, height) of the upright pictures, in ``square`` pixels or in their own."""
    with open_media(source) as container:
        shape = pixel_shape(video_stream(container))
    info = probe(source)
    picture = Picture(info.width, info.height, shape)
    if info.rotation // 90 % 2:
        picture = Picture(info.height, info.width, 1 / shape)
    return picture.square if square else (picture.width, picture.height)


def _decoded_whole(source: Source) -> Device:
    with closing(nvdec().decode(source)) as batches:
        for _ in batches:
            pass
    return "cuda"


def _boxed(torch: Any, pictures: Any, fit: Fit) -> Any:
    """As :func:`~reelmill.media.images.boxed`, of a batch of pictures."""
    if fit.cropped != fit.scaled:
        (x, y), (width, height) = fit.cropped_at, fit.cropped
        pictures = pictures[:, y : y + height, x : x + width]
    if fit.padded == fit.cropped:
        return pictures
    (x, y), (width, height) = fit.padded_at, fit.cropped
    right, below = fit.padded[0] - width - x, fit.padded[1] - height - y
    return torch.nn.functional.pad(pictures, (0, 0, x, right, y, below))


def on_device(device: Device, on_cuda: Callable[[], T], on_cpu: Callable[[], T]) -> T:
    """What ``on_cuda`` returns, or ``on_cpu`` where the device is that or NVDEC refuses the video.

    The first refusal of a kind is logged in this process. Whatever ``on_cuda`` made of a video that
    was refused midway is thrown away, so that a result is never half of each.
    """
    if device == "cuda":
        try:
            return on_cuda()
        except RefusedError as error:
            _log_once(str(error))
    return on_cpu()


_logged: set[str] = set()
_lock = threading.Lock()


def _log_once(kind: str) -> None:
    with _lock:
        is_new = kind not in _logged
        _logged.add(kind)
    if is_new:
        log.warning("%s: the CPU decodes such videos", kind)
