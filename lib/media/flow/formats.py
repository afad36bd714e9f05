"""Formats that flow is stored in, to bytes and back: KITTI's PNG, Middlebury's .flo, NumPy's."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Literal, TypeAlias

import cv2
import deflate
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.flow.fields import Flow, Mask
from reelmill.media.images import MAX_PIXELS, decode_png

Format: TypeAlias = Literal["kitti", "flo", "npy"]

ENDINGS: dict[Format, str] = {"kitti": "png", "flo": "flo", "npy": "npy"}
"""What the names of files in a format end in."""

_FLO = b"PIEH"
_FLO_HEADER = 12

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_PACKING = 1
"""libdeflate's level. On flow it takes a third of the time of zlib's quickest, and less space; two
levels more save 7 % of that for up to 60 % more time."""


def encode(flow: Flow, form: Format) -> bytes:
    """``flow`` in a format."""
    return {"kitti": encode_kitti, "flo": encode_flo, "npy": encode_npy}[form](flow)


def decode(data: bytes, ending: str) -> Flow:
    """Flow by what the name of its file ends in; 0 where KITTI's is not valid.

    Raises: Rejected ``undecodable``.
    """
    if ending == "png":
        return decode_kitti(data)[0]
    return decode_flo(data) if ending == "flo" else decode_npy(data)


def encode_kitti(flow: Flow) -> bytes:
    """16-bit RGB PNG of the KITTI development kit, to the nearest 1/64 pixel.

    R = 64 u + 2^15, G = 64 v + 2^15, B = 1 where valid. Displacements outside [-512, 512) pixels
    are clipped, those not finite become 0, and both are marked invalid (Menze and Geiger, "Object
    Scene Flow for Autonomous Vehicles", CVPR 2015; ``flow_write.m``).
    """
    with np.errstate(over="ignore"):
        steps = flow * np.float32(64)
    np.rint(steps, out=steps)
    steps += np.float32(32768)
    image = np.empty((*flow.shape[:2], 3), np.uint16)
    if steps.size and not (steps.min() >= 0 and steps.max() <= 65535):
        _clip(steps, image[..., 2])
    else:
        image[..., 2] = 1
    # Each component by itself: NumPy is slow over an axis of length 2.
    image[..., 0] = steps[..., 0]
    image[..., 1] = steps[..., 1]
    return _png(image)


def _png(rgb: NDArray[np.uint16]) -> bytes:
    """PNG (ISO/IEC 15948) of pixels (H, W, 3): of each byte, what it differs by from that above.

    OpenCV's, by libpng and zlib, takes about twice as long. libdeflate packs to the same
    bytes on every CPU.
    """
    height, width = rgb.shape[:2]
    samples = rgb.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + samples.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = samples[0]
    np.subtract(samples[1:], samples[:-1], out=rows[1:, 1:])
    header = struct.pack(">II5B", width, height, 16, 2, 0, 0, 0)
    return b"".join(
        [
            _PNG_SIGNATURE,
            *_chunk(b"IHDR", header),
            *_chunk(b"IDAT", deflate.zlib_compress(rows, _PACKING)),
            *_chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, body: bytes | bytearray) -> tuple[bytes, bytes, bytes | bytearray, bytes]:
    check = zlib.crc32(body, zlib.crc32(kind))
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", check)


def _clip(steps: Flow, valid: NDArray[np.uint16]) -> None:
    """Bring ``steps`` between 0 and 65535, and say in ``valid`` where they were."""
    finite = np.isfinite(steps).all(axis=2)
    inside = (steps >= 0) & (steps <= 65535)
    valid[:] = inside.all(axis=2)
    steps[~finite] = 32768
    np.clip(steps, 0, 65535, out=steps)


def decode_kitti(data: bytes) -> tuple[Flow, Mask]:
    """(flow, valid): float32 (H, W, 2) in pixels, 0 where not valid, and bool (H, W).

    As ``flow_read.m`` of the KITTI development kit. Raises: Rejected ``undecodable``.
    """
    image = decode_png(data, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise Rejected("undecodable", "not a 16-bit RGB PNG")
    blue, green, red = np.moveaxis(image.astype(np.float32), 2, 0)
    valid: Mask = blue > 0
    steps = np.stack([red, green], axis=2) - np.float32(32768)
    return np.where(valid[..., None], steps / np.float32(64), np.float32(0)), valid


def encode_flo(flow: Flow) -> bytes:
    """.flo of Middlebury: "PIEH", width and height as int32, then float32 u and v of each pixel in
    turn, all little-endian: nothing of the flow is lost.

    Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011).
    """
    height, width = flow.shape[:2]
    header = _FLO + np.array([width, height], "<i4").tobytes()
    return b"".join([header, np.ascontiguousarray(flow, dtype="<f4").data])


def decode_flo(data: bytes) -> Flow:
    """float32 (H, W, 2) in pixels of a .flo file. Raises: Rejected ``undecodable``."""
    if len(data) < _FLO_HEADER or data[:4] != _FLO:
        raise Rejected("undecodable", "not a .flo file")
    width, height = (int(n) for n in np.frombuffer(data, "<i4", 2, offset=4))
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise Rejected("undecodable", f"a .flo file of {width}x{height} pixels")
    if len(data) != _FLO_HEADER + 8 * width * height:
        raise Rejected("undecodable", f"{len(data)} bytes do not hold {width}x{height} vectors")
    flow = np.frombuffer(data, "<f4", offset=_FLO_HEADER).reshape(height, width, 2)
    return flow.astype(np.float32)


def encode_npy(flow: Flow) -> bytes:
    """.npy, version 1.0, of float16 little-endian (H, W, 2): within 1/64 pixel up to 64 pixels."""
    buffer = io.BytesIO()
    array = np.ascontiguousarray(flow, dtype="<f2")
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> Flow:
    """float32 (H, W, 2) in pixels of a float16 .npy; never unpickles.

    Raises: Rejected ``undecodable``.
    """
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.dtype("<f2") or fortran or len(shape) != 3 or shape[2] != 2:
            raise ValueError(f"{dtype} {shape} where flow is float16 (H, W, 2)")
        if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"{len(data)} bytes do not hold {shape}")
        flow = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
    except ValueError as error:
        raise Rejected("undecodable", f"damaged .npy: {error}") from error
    return flow.astype(np.float32)
