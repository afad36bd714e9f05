"""Decoding video with PyAV: upright RGB pictures with integer timestamps, one thread."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, Literal, TypeAlias, TypeVar, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.probe import Source, demux, open_media, video_stream

Device: TypeAlias = Literal["cpu", "cuda"]
"""What decodes."""

# How far ahead timestamps are sorted: enough for x264's usual pyramid of three B-frames.
_LOOKAHEAD = 4

# ACCURATE_RND and BITEXACT keep swscale off the paths whose rounding depends on the CPU;
# FULL_CHR_H_INT gives every output pixel its own chroma.
_INTERPOLATION = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)

# AVCOL_SPC_UNSPECIFIED and AVCOL_SPC_RESERVED.
_NO_MATRIX = (2, 3)

# And those that are BT.601's, AVCOL_SPC_BT470BG and AVCOL_SPC_SMPTE170M: the one of JPEG.
_JPEG_MATRIX = (*_NO_MATRIX, 5, 6)

# From the limited range of video to the full one of JPEG, to the nearest level.
_LEVELS = np.arange(256)
_FULL_LUMA = np.clip((510 * (_LEVELS - 16) + 219) // 438, 0, 255).astype(np.uint8)
_FULL_CHROMA = np.clip((510 * (_LEVELS - 128) + 224) // 448 + 128, 0, 255).astype(np.uint8)

P = TypeVar("P", bound=np.generic)


def frames(
    source: Source, opened: Callable[[Any], object] | None = None
) -> Generator[av.VideoFrame, None, None]:
    """Frames of the best video stream, as decoded, in presentation order. That stream is shown to
    ``opened`` before the first.

    Every frame has an integer ``pts`` in units of its ``time_base`` (seconds), strictly
    increasing: missing timestamps are filled in, and those a muxer wrote in coding order are put
    right. Damaged packets are skipped; a container that breaks off ends the stream. The same
    bytes give the same frames. Dropping or closing the generator closes the container.

    Raises, on the first ``next``: Rejected ``undecodable`` where no frame can be had, or as
    :func:`~reelmill.media.probe.open_media` does; OSError where ``source`` cannot be read.
    """
    with open_media(source) as container:
        stream = video_stream(container)
        if opened is not None:
            opened(stream)
        rate = stream.average_rate
        step = max(1, round(1 / (rate * stream.time_base))) if rate else 1
        empty = True
        for frame in _in_order(_decoded(container, stream), step):
            empty = False
            yield frame
    if empty:
        raise Rejected("undecodable", "no frame of the video can be decoded")


def pixel_shape(stream: Any) -> Fraction:
    """How much wider than high a pixel of a video stream is, as it is stored. 1 where that is not
    told, or told by a damaged file: within 1/16 and 16, no side comes to nothing."""
    shape = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return shape if Fraction(1, 16) <= shape <= 16 else Fraction(1)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(width, height) of ``frame`` in pixels after its display rotation."""
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)


def to_rgb(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Upright uint8 RGB of shape (H, W, 3), full range, C-contiguous.

    Scaled to ``size`` (width, height; of the upright picture) and converted in one swscale pass
    whose result does not depend on the CPU. The matrix and range are the stream's; untagged
    video is BT.601 limited range at any size, as in FFmpeg, so that a downscaled copy keeps its
    colours. Turns of 90° in the display matrix are applied. Transfer and primaries are not
    converted: HDR is not tone mapped.

    Raises: Rejected ``undecodable`` for a pixel format or colour matrix that swscale lacks.
    """
    green, blue, red = planes_of(frame, "gbrp", stored_size(frame, size))
    return upright(frame, _merged(red, green, blue))


def to_bgr16(
    frame: av.VideoFrame,
    size: tuple[int, int] | None = None,
    untagged: Colorspace = Colorspace.ITU601,
) -> NDArray[np.uint16]:
    """The same as uint16 blue, green and red: all that video of more than 8 bits tells. Where no
    matrix is told, it is ``untagged``."""
    green, blue, red = planes_of(frame, "gbrp16le", stored_size(frame, size), untagged)
    return upright(frame, _merged(blue, green, red))


def to_bgr(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The same as uint8 blue, green and red, which is OpenCV's order."""
    green, blue, red = planes_of(frame, "gbrp", stored_size(frame, size))
    return upright(frame, _merged(blue, green, red))


def to_jpeg_planes(
    frame: av.VideoFrame, size: tuple[int, int], subsampling: str
) -> list[NDArray[np.uint8]] | None:
    """Y, U and V as a JPEG of 4:``subsampling`` holds them (BT.601, full range), scaled to ``size``
    in one pass; None where the picture is to be turned, is of another matrix, or has an odd side
    (whose last chroma sample the encoder takes to lie over two pixels, and reads on): these must go
    by RGB. Raises: Rejected as ``to_rgb`` does.
    """
    if size[0] % 2 or size[1] % 2:
        return None
    name = frame.format.name
    is_yuv = name.startswith("yuv") and not name.startswith("yuva")
    if not is_yuv or frame.colorspace not in _JPEG_MATRIX or _quarter_turns(frame):
        return None
    if name.startswith("yuvj") or frame.color_range == ColorRange.JPEG:
        return planes_of(frame, f"yuvj{subsampling}p", size)
    # swscale widens the range too, but always rounds down: colours would shift by half a level.
    import cv2

    luma, *chroma = planes_of(frame, f"yuv{subsampling}p", size)
    return [cv2.LUT(luma, _FULL_LUMA), *(cv2.LUT(plane, _FULL_CHROMA) for plane in chroma)]


def planes_of(
    frame: av.VideoFrame,
    layout: str,
    size: tuple[int, int],
    untagged: Colorspace = Colorspace.ITU601,
) -> list[NDArray[Any]]:
    """The planes of a frame, not turned, converted to the pixel format ``layout`` (of RGB, or of
    YUV in BT.601: its own range with ``yuv``, full with ``yuvj``) and scaled to ``size``. Planar
    RGB takes swscale half the time that packed RGB does, and comes to the same."""
    ranges = {"yuv4": ColorRange.MPEG, "yuvj": ColorRange.JPEG}
    try:
        made = _scaler.reformatter.reformat(
            frame,
            *size,
            layout,
            src_colorspace=untagged if frame.colorspace in _NO_MATRIX else None,
            dst_colorspace=Colorspace.ITU601 if layout[:4] in ranges else None,
            dst_color_range=ranges.get(layout[:4]),
            interpolation=_INTERPOLATION,
            threads=1,
        )
    except av.FFmpegError as error:
        raise Rejected(
            "undecodable",
            f"cannot convert {frame.format.name}, colour matrix {frame.colorspace}, to RGB",
        ) from error
    kind: Any = "<u2" if layout.endswith("16le") else np.uint8
    return [
        np.frombuffer(cast(Any, plane), kind).reshape(plane.height, -1)[:, : plane.width]
        for plane in made.planes
    ]


def _merged(*planes: NDArray[P]) -> NDArray[P]:
    # Imported here, since whoever only cuts has no use for it; NumPy would take ten times as long.
    import cv2

    merged: NDArray[P] = cv2.merge(planes)
    return merged


def stored_size(frame: av.VideoFrame, size: tuple[int, int] | None) -> tuple[int, int]:
    """``size`` of the upright picture, or its own, as (width, height) before it is turned."""
    width, height = size or upright_size(frame)
    return (height, width) if _quarter_turns(frame) % 2 else (width, height)


def upright(frame: av.VideoFrame, picture: NDArray[P]) -> NDArray[P]:
    """A ``picture`` of the frame, turned as its display matrix says; C-contiguous."""
    return np.ascontiguousarray(np.rot90(picture, _quarter_turns(frame)))


def to_luma(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Upright uint8 luma of shape (H, W), full range, C-contiguous: the Y plane itself, scaled and
    stretched as :func:`to_rgb` does it, with no regard to chroma; of RGB, BT.601's.

    Raises: Rejected ``undecodable`` for a pixel format that swscale lacks.
    """
    try:
        luma = _luma_scaler.reformatter.reformat(
            frame, *stored_size(frame, size), "gray", interpolation=_INTERPOLATION, threads=1
        )
    except av.FFmpegError as error:
        raise Rejected("undecodable", f"cannot take the luma of {frame.format.name}") from error
    return upright(frame, cast(NDArray[np.uint8], luma.to_ndarray()))


class _Scaler(threading.local):
    """One swscale context a thread: setting up its filters costs as much as scaling a frame."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_scaler = _Scaler()
_luma_scaler = _Scaler()


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise turns of 90° that bring the frame upright, 0 to 3."""
    return int(round(frame.rotation / 90) % 4)


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    # Each look at it makes a fraction.
    time_base = stream.time_base
    for packet in chain(demux(container, [stream]), [None]):
        try:
            decoded = stream.decode(packet)
        except av.FFmpegError:
            decoded = []
        for frame in decoded:
            # PyAV leaves it out of frames that a demuxing error flushed.
            frame.time_base = time_base
            yield frame


def _in_order(decoded: Iterator[av.VideoFrame], step: int) -> Iterator[av.VideoFrame]:
    """The same frames, with timestamps that strictly increase; ``step`` ticks where none is known.

    Decoders put pictures in order by what the bitstream says, and pass on each packet's own
    timestamp. Where a muxer numbered packets in coding order, the pictures are right and their
    timestamps shuffled, within the reach of a B-frame pyramid: sorting timestamps alone mends it.
    """
    waiting: deque[av.VideoFrame] = deque()
    stamps: list[int] = []
    newest: int | None = None
    last: int | None = None

    def stamped() -> av.VideoFrame:
        nonlocal last
        frame, pts = waiting.popleft(), heapq.heappop(stamps)
        if last is not None and pts <= last:
            # A tick for a repeated timestamp; a frame for a clock that was set back.
            pts = last + (1 if pts == last else step)
        frame.pts = last = pts
        return frame

    for frame in decoded:
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None:
            pts = 0 if newest is None else newest + step
        newest = pts
        waiting.append(frame)
        heapq.heappush(stamps, pts)
        if len(waiting) > _LOOKAHEAD:
            yield stamped()
    while waiting:
        yield stamped()
