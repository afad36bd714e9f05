"""What the pictures of a source are, by the first that decodes: what an output depends on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from reelmill.media.decode import pixel_shape
from reelmill.media.probe import demux, first_frame

# Numbers of ITU-T H.273.
_PQ, _HLG = 16, 18
_BT2020 = 9
_UNKNOWN = 2


def is_hdr(transfer: int) -> bool:
    """Whether a transfer characteristic, by the number of ITU-T H.273, is PQ's or HLG's."""
    return transfer in (_PQ, _HLG)


@dataclass(frozen=True)
class Picture:
    """Upright pictures of ``width`` × ``height`` pixels, each ``sar`` times as wide as it is high.

    ``transfer``, ``primaries`` and ``matrix`` are the numbers of ITU-T H.273; 2 is unknown.
    ``codec`` is FFmpeg's name. ``rotation`` is what brought them upright, in degrees as in
    :class:`~reelmill.media.probe.VideoInfo`; None where none decodes and the header alone tells.
    """

    width: int
    height: int
    sar: Fraction = Fraction(1)
    pix_fmt: str = "yuv420p"
    transfer: int = 2
    primaries: int = 2
    matrix: int = 2
    codec: str = "h264"
    rotation: int | None = None

    @classmethod
    def of(cls, frame: Any, sar: Fraction = Fraction(1), codec: str = "h264") -> Picture:
        """That of a decoded frame, whose pixels, as they are stored, have the shape ``sar``."""
        width, height = frame.width, frame.height
        if round(frame.rotation / 90) % 2:
            width, height, sar = height, width, 1 / sar
        return cls(
            *(width, height, sar, frame.format.name),
            transfer=int(frame.color_trc),
            primaries=int(frame.color_primaries),
            matrix=int(frame.colorspace),
            codec=codec,
            rotation=frame.rotation,
        )

    @property
    def is_hdr(self) -> bool:
        return is_hdr(self.transfer)

    @property
    def is_hlg(self) -> bool:
        return self.transfer == _HLG

    @property
    def is_wide_gamut(self) -> bool:
        """Whether colours are BT.2020's; those of HDR without a tag are."""
        return self.primaries == _BT2020 or (self.is_hdr and self.primaries == _UNKNOWN)

    @property
    def has_matrix(self) -> bool:
        return self.matrix != _UNKNOWN

    @property
    def is_rgb(self) -> bool:
        return av.VideoFormat(self.pix_fmt).is_rgb or self.pix_fmt == "pal8"

    @property
    def square(self) -> tuple[int, int]:
        """(width, height) in square pixels: the height stays."""
        width = self.width if self.sar == 1 else max(1, round(self.width * self.sar))
        return width, self.height


def picture_of(container: Any, stream: Any) -> Picture:
    """The pictures of ``stream``; by its header where no frame decodes. Moves the container on."""
    context = stream.codec_context
    codec = context.codec.canonical_name
    sar = pixel_shape(stream)
    frame = _frame_alone(container, stream) or first_frame(container, stream)
    if frame is None:
        known = context.pix_fmt or "yuv420p"
        return Picture(context.width, context.height, sar, known, codec=codec)
    return Picture.of(frame, sar, codec)


def _frame_alone(container: Any, stream: Any) -> Any | None:
    """The frame of the first packet, without those that a decoder waits for to get the order right;
    None if it needs others."""
    context = stream.codec_context
    with suppress(av.FFmpegError):
        for packet in demux(container, [stream]):
            frames = packet.decode() or context.decode(None)
            context.flush_buffers()
            return frames[0] if frames else None
    return None
