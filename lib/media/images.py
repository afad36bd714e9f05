"""JPEG and PNG pictures, to bytes and back."""

from __future__ import annotations

import struct
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


def encode_jpeg(rgb: NDArray[np.uint8], quality: int = 90, subsampling: str = "420") -> bytes:
    """Baseline JPEG of uint8 RGB (H, W, 3); ``quality`` 1 to 100, chroma ``subsampling`` 4:2:0.

    Uses the accurate integer DCT of libjpeg-turbo, whose result is the same on every CPU.
    """
    image = np.ascontiguousarray(rgb)
    if max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise Rejected("too_large", f"a JPEG has at most {MAX_JPEG_SIDE} pixels a side")
    return bytes(
        simplejpeg.encode_jpeg(image, quality, "RGB", colorsubsampling=subsampling, fastdct=False)
    )


def encode_png(image: NDArray[_PIXEL]) -> bytes:
    """PNG of uint8 or uint16 pixels: RGB (H, W, 3) or gray (H, W)."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return bytes(cv2.imencode(".png", pixels, _PNG)[1])


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of a JPEG or PNG, in stored orientation; 16-bit PNG is cut to 8 bits.

    Raises: Rejected ``undecodable``, also for a truncated file or more than MAX_PIXELS.
    """
    return _decode(data, "RGB", cv2.IMREAD_COLOR_RGB)


def decode_gray(data: bytes) -> NDArray[np.uint8]:
    """uint8 BT.601 luma (H, W) of a JPEG or PNG; of a JPEG its Y plane itself, with no conversion.

    Raises: Rejected as ``decode_image`` does.
    """
    return _decode(data, "GRAY", cv2.IMREAD_GRAYSCALE)


def decode_png(data: bytes, flags: int) -> NDArray[np.generic]:
    """A PNG as ``cv2.imdecode`` returns it. Raises: Rejected ``undecodable``."""
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise Rejected("undecodable", "not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    _check_size(width, height)
    image: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise Rejected("undecodable", "damaged PNG")
    return image


def _decode(data: bytes, colorspace: str, flags: int) -> NDArray[np.uint8]:
    if data[:3] != b"\xff\xd8\xff":
        return decode_png(data, flags | cv2.IMREAD_IGNORE_ORIENTATION).astype(np.uint8, copy=False)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError as error:
        raise Rejected("undecodable", f"damaged JPEG: {error}") from error
    return image[..., 0] if colorspace == "GRAY" else image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Rejected("undecodable", f"{width}x{height} pixels are more than {MAX_PIXELS}")
