"""JPEG, PNG and WebP pictures, to bytes and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.size import Fit

MAX_PIXELS = 1 << 27
"""The largest picture that is decoded: a few bytes can claim 65535x65535 pixels."""

MAX_JPEG_SIDE = 65500
"""Pixels; libjpeg's limit."""

MAX_WEBP_SIDE = 16383
"""Pixels; the format's limit."""

_PIXEL = TypeVar("_PIXEL", np.uint8, np.uint16)

# Level 3 writes KITTI flow three times as fast as level 6, at 118 % of its size.
_PNG = (
    cv2.IMWRITE_PNG_COMPRESSION,
    3,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FAST_FILTERS,
)


def boxed(picture: NDArray[_PIXEL], fit: Fit) -> NDArray[_PIXEL]:
    """A picture (H, W, …) that was scaled as ``fit`` says, cropped and padded with zeros too."""
    if fit.cropped != fit.scaled:
        (x, y), (width, height) = fit.cropped_at, fit.cropped
        picture = picture[y : y + height, x : x + width]
    if fit.padded == fit.cropped:
        return picture
    (x, y), (width, height) = fit.padded_at, fit.cropped
    padded = np.zeros((*fit.padded[::-1], *picture.shape[2:]), picture.dtype)
    padded[y : y + height, x : x + width] = picture
    return padded


def encode_jpeg(
    rgb: NDArray[np.uint8], quality: int = 90, subsampling: str = "420", order: str = "RGB"
) -> bytes:
    """Baseline JPEG of uint8 RGB (H, W, 3), or BGR by ``order``; ``quality`` 1 to 100, chroma
    ``subsampling`` 4:2:0.

    Uses the accurate integer DCT of libjpeg-turbo, whose result is the same on every CPU.
    """
    image = np.ascontiguousarray(rgb)
    _check_side("a JPEG", image, MAX_JPEG_SIDE)
    return bytes(
        simplejpeg.encode_jpeg(image, quality, order, colorsubsampling=subsampling, fastdct=False)
    )


def encode_jpeg_planes(planes: Sequence[NDArray[np.uint8]], quality: int = 90) -> bytes:
    """The same of Y, U and V in BT.601 and full range; their sizes tell the chroma subsampling."""
    _check_side("a JPEG", planes[0], MAX_JPEG_SIDE)
    y, u, v = (np.ascontiguousarray(plane) for plane in planes)
    return bytes(simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality, fastdct=False))


def encode_png(image: NDArray[_PIXEL]) -> bytes:
    """PNG of uint8 or uint16 pixels: RGB (H, W, 3) or gray (H, W)."""
    return encode_bgr_png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)


def encode_bgr_png(image: NDArray[_PIXEL]) -> bytes:
    """The same of pixels in OpenCV's order: blue, green, red."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image), _PNG)[1])


def encode_webp(bgr: NDArray[np.uint8], quality: int | None) -> bytes:
    """WebP of uint8 blue, green, red (H, W, 3): lossy of ``quality`` 1 to 100, or lossless (None).

    Raises: Rejected ``too_large`` beyond MAX_WEBP_SIDE.
    """
    _check_side("a WebP", bgr, MAX_WEBP_SIDE)
    # OpenCV takes what is above 100 for lossless.
    options = (cv2.IMWRITE_WEBP_QUALITY, 101 if quality is None else quality)
    return bytes(cv2.imencode(".webp", np.ascontiguousarray(bgr), options)[1])


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of a JPEG, PNG or WebP, as it is stored; 16-bit PNG is cut to 8 bits.

    Raises: Rejected ``undecodable``, also for a truncated file or more than MAX_PIXELS.
    """
    return _decode(data, "RGB", cv2.IMREAD_COLOR_RGB)


def decode_gray(data: bytes) -> NDArray[np.uint8]:
    """uint8 BT.601 luma (H, W) of a JPEG, PNG or WebP; of a JPEG its Y plane, with no conversion.

    Raises: Rejected as ``decode_image`` does.
    """
    return _decode(data, "GRAY", cv2.IMREAD_GRAYSCALE)


def decode_png(data: bytes, flags: int) -> NDArray[np.generic]:
    """A PNG as ``cv2.imdecode`` returns it. Raises: Rejected ``undecodable``."""
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise Rejected("undecodable", "not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    return _by_opencv(data, flags, (width, height), "PNG")


def decode_depth(data: bytes) -> NDArray[np.uint16] | None:
    """A PNG of 16-bit gray (H, W), as depth comes; None for any other picture.

    Raises: Rejected ``undecodable``.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != b"\x10\0":
        return None
    return decode_png(data, cv2.IMREAD_UNCHANGED).astype(np.uint16, copy=False)


def _decode(data: bytes, colorspace: str, flags: int) -> NDArray[np.uint8]:
    stored = flags | cv2.IMREAD_IGNORE_ORIENTATION
    if _is_webp(data):
        return _by_opencv(data, stored, _webp_size(data), "WebP").astype(np.uint8, copy=False)
    if data[:3] != b"\xff\xd8\xff":
        return decode_png(data, stored).astype(np.uint8, copy=False)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError as error:
        raise Rejected("undecodable", f"damaged JPEG: {error}") from error
    return image[..., 0] if colorspace == "GRAY" else image


def _by_opencv(data: bytes, flags: int, size: tuple[int, int], kind: str) -> NDArray[np.generic]:
    _check_size(*size)
    image: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise Rejected("undecodable", f"damaged {kind}")
    return image


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the header of the first chunk (RFC 9649)."""
    head = data[12:30].ljust(18, b"\0")
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[:4] == b"VP8X":
        return (
            int.from_bytes(head[12:15], "little") + 1,
            int.from_bytes(head[15:18], "little") + 1,
        )
    width, height = struct.unpack("<HH", head[14:18])
    return width & 0x3FFF, height & 0x3FFF


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Rejected("undecodable", f"{width}x{height} pixels are more than {MAX_PIXELS}")


def _check_side(what: str, image: NDArray[np.uint8], most: int) -> None:
    if max(image.shape[:2]) > most:
        raise Rejected("too_large", f"{what} has at most {most} pixels a side")


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG or PNG as its header has it; None if it has none."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return (width, height) if 0 < width < 1 << 31 and 0 < height < 1 << 31 else None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return width, height
