"""Pictures of a sample, decoded as webdataset's image decoders do; 16-bit depth; optical flow."""

from __future__ import annotations

import io
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reelmill.errors import Rejected
from reelmill.loading.containers import decode_npy
from reelmill.loading.fields import PASS, FieldDecoder, ending
from reelmill.loading.tensors import torch_module
from reelmill.media.flow import decode_flo, decode_kitti
from reelmill.media.images import MAX_PIXELS, decode_depth, decode_gray, decode_image

SPECS: Final = {
    "l8": ("numpy", "uint8", "l"),
    "rgb8": ("numpy", "uint8", "rgb"),
    "rgba8": ("numpy", "uint8", "rgba"),
    "l": ("numpy", "float", "l"),
    "rgb": ("numpy", "float", "rgb"),
    "rgba": ("numpy", "float", "rgba"),
    "torchl8": ("torch", "uint8", "l"),
    "torchrgb8": ("torch", "uint8", "rgb"),
    "torchrgba8": ("torch", "uint8", "rgba"),
    "torchl": ("torch", "float", "l"),
    "torchrgb": ("torch", "float", "rgb"),
    "torch": ("torch", "float", "rgb"),
    "torchrgba": ("torch", "float", "rgba"),
    "pill": ("pil", "", "l"),
    "pil": ("pil", "", "rgb"),
    "pilrgb": ("pil", "", "rgb"),
    "pilrgba": ("pil", "", "rgba"),
}
"""webdataset's names of what pictures become: container, elements, colours."""

# What Pillow may take bytes for. Among the others are formats that it runs a program for (EPS).
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000")
EXTENSIONS: Final = frozenset(
    [
        *("apng", "bmp", "dib", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    ]
)
"""Endings of pictures."""

_OURS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_FLOW: Final = frozenset({"flow", "flow_back"})
_FLO_UNKNOWN: Final = np.float32(1e9)
"""Pixels; Middlebury's mark of vectors that nobody knows is longer."""


class FlowField(NamedTuple):
    """Optical flow.

    Attributes:
        flow: float32 (2, H, W) in pixels, x then y; 0 where it is not valid. Of several fields
            (T, 2, H, W).
        valid: bool (H, W), or (T, H, W).
    """

    flow: Any
    valid: Any


class ImageDecoder(FieldDecoder):
    """Decodes pictures as ``webdataset.imagehandler(spec)`` does, to the same values.

    RGB is the same to the bit for JPEG, PNG and WebP; CMYK to 1. The gray of a JPEG is its Y plane
    and of other pictures OpenCV's: within 1 of Pillow's, but for colours beyond what RGB holds. Of
    16-bit pictures the upper eight bits are taken, where Pillow clips gray ones at 255.

    Raises:
        ValueError: there is no such ``spec``.
    """

    def __init__(self, spec: str) -> None:
        if spec not in SPECS:
            raise ValueError(f"{spec!r} is none of video, {', '.join(SPECS)}")
        self.spec = spec
        self.container, self._element, self._colours = SPECS[spec]

    def value(self, name: str, data: bytes) -> Any:
        """The picture, or PASS for a field that by its name is none.

        Raises:
            Rejected: ``undecodable``.
        """
        if ending(name) not in EXTENSIONS:
            return PASS
        pixels = self._pixels(data)
        if self.container == "pil":
            return Image.fromarray(pixels)
        if self.container == "torch":
            return as_tensor(self._scaled(planes(pixels)))
        return self._scaled(pixels)

    def _scaled(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        if self._element == "float":
            return pixels.astype(np.float32) / np.float32(255)
        return pixels

    def _pixels(self, data: bytes) -> NDArray[np.uint8]:
        if self._colours == "rgba" or not data.startswith(_OURS):
            return _by_pillow(data, self._colours.upper())
        return decode_gray(data) if self._colours == "l" else decode_image(data)


def _by_pillow(data: bytes, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected("undecodable", f"{width}x{height} pixels are more than {MAX_PIXELS}")
            return np.array(image.convert(mode))
    except Rejected:
        raise
    # Pillow's decoders raise whatever befits a damaged file: struct.error, IndexError, …
    except Exception as error:
        raise Rejected("undecodable", f"damaged picture: {error}") from error


def planes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) of pixels (H, W, C); gray (H, W) stays as it is."""
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels)
    height, width, count = pixels.shape
    out = np.empty((count, height, width), np.uint8)
    # Three times as fast as a copy of the transposed array.
    cv2.split(pixels, [*out])
    return out


def as_tensor(array: NDArray[Any]) -> Any:
    """A tensor that shares the array's memory."""
    return torch_module().from_numpy(array)


class Measured(FieldDecoder):
    """Decodes 16-bit depth to uint16 (H, W), as it is stored, and flow to a :class:`FlowField`.

    Depth is a ``…depth.png`` of 16-bit gray. Flow is a ``…flow.png`` or ``…flow_back.png`` of
    16-bit RGB (KITTI's), any ``.flo``, and a ``…flow.npy`` of floats (H, W, 2). What has such a
    name and is something else is left to others.

    Args:
        tensors: give tensors rather than arrays.
    """

    def __init__(self, tensors: bool) -> None:
        self._tensors = tensors

    def value(self, name: str, data: bytes) -> Any:
        found = _measured(name, data)
        if found is None:
            return PASS
        if not self._tensors:
            return found
        return FlowField(*map(as_tensor, found)) if isinstance(found, tuple) else as_tensor(found)


def _measured(name: str, data: bytes) -> NDArray[np.uint16] | FlowField | None:
    kind, end = ending(name.rpartition(".")[0]), ending(name)
    if end == "png" and kind == "depth":
        return decode_depth(data)
    if end == "png" and kind in _FLOW and data[24:26] == b"\x10\2":
        return _field(*decode_kitti(data))
    if end == "flo":
        flow = decode_flo(data)
        return _field(flow, np.abs(flow).max(axis=2) < _FLO_UNKNOWN)
    if end == "npy" and kind in _FLOW:
        array = decode_npy(data)
        if array.ndim == 3 and array.shape[2] == 2 and array.dtype.kind == "f":
            return _field(array, np.isfinite(array.sum(axis=2)))
    return None


def _field(flow: NDArray[Any], valid: NDArray[np.bool_]) -> FlowField:
    """Of flow (H, W, 2)."""
    # Each component by itself: NumPy is slow over an axis of length 2.
    out = np.zeros((2, *valid.shape), np.float32)
    for component in range(2):
        np.copyto(out[component], flow[..., component], where=valid, casting="same_kind")
    return FlowField(out, valid)
