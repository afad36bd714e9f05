"""Dense optical flow between two gray pictures, and the formats it is stored in."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from enum import StrEnum
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.images import decode_png, encode_png

MIN_SIDE = 32
"""The least width and height in pixels: OpenCV's DIS reads out of bounds in thinner pictures."""

Gray = NDArray[np.uint8]
Flow = NDArray[np.float32]


class FlowMethod(StrEnum):
    """An optical flow algorithm, from fastest to most accurate but for Farneback, the classic.

    DIS: Kroeger, Timofte, Dai and Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV
    2016, in OpenCV's presets. Farneback: "Two-Frame Motion Estimation Based on Polynomial
    Expansion", SCIA 2003, with the parameters of OpenCV's tutorial.
    """

    DIS_ULTRAFAST = "dis-ultrafast"
    DIS_FAST = "dis-fast"
    DIS_MEDIUM = "dis-medium"
    FARNEBACK = "farneback"


def _dis(preset: int, prev_gray: Gray, next_gray: Gray) -> Flow:
    # A new object each time, at 0.1 ms: a small picture changes the scales and patch size of the
    # object for good, so that a reused one would give flow that depends on what it saw before.
    flow: Flow = cv2.DISOpticalFlow.create(preset).calc(prev_gray, next_gray, None)
    return flow


def _farneback(prev_gray: Gray, next_gray: Gray) -> Flow:
    flow: Flow = cv2.calcOpticalFlowFarneback(
        prev_gray,
        next_gray,
        None,
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return flow


_METHODS: dict[FlowMethod, Callable[[Gray, Gray], Flow]] = {
    FlowMethod.DIS_ULTRAFAST: partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
    FlowMethod.DIS_FAST: partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    FlowMethod.DIS_MEDIUM: partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    FlowMethod.FARNEBACK: _farneback,
}


def flow(prev_gray: Gray, next_gray: Gray, method: FlowMethod = FlowMethod.DIS_FAST) -> Flow:
    """float32 (H, W, 2): how far each pixel of ``prev_gray`` moves to be in ``next_gray``.

    In pixels, x right and y down: ``next[y + v, x + u]`` shows what ``prev[y, x]`` did. Both
    pictures are uint8 (H, W) of one shape. The result is the same bits on every CPU of one
    architecture; to that end OpenCV's threads and CPU dispatch are switched off in the process,
    which costs DIS and Farneback no time.

    Raises: Rejected ``too_small`` below MIN_SIDE; ValueError for two shapes.
    """
    if prev_gray.shape != next_gray.shape:
        raise ValueError(f"pictures of shapes {prev_gray.shape} and {next_gray.shape}")
    height, width = prev_gray.shape
    if min(width, height) < MIN_SIDE:
        raise Rejected("too_small", f"{width} x {height} pixels; flow needs {MIN_SIDE} a side")
    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
    return _METHODS[method](prev_gray, next_gray)


def encode_kitti(flow: Flow) -> bytes:
    """16-bit RGB PNG of the KITTI development kit, to the nearest 1/64 pixel.

    R = 64 u + 2^15, G = 64 v + 2^15, B = 1 where valid. Displacements outside [-512, 512) pixels
    are clipped, those not finite become 0, and both are marked invalid (Menze and Geiger, "Object
    Scene Flow for Autonomous Vehicles", CVPR 2015; ``flow_write.m``).
    """
    # Each component by itself: a reduction over an axis of length 2 takes longer than DIS.
    known: NDArray[np.bool_] = np.isfinite(flow[..., 0]) & np.isfinite(flow[..., 1])
    bounded = np.clip(np.where(known[..., None], flow, 0), -1024, 1024)
    steps = np.rint(bounded * 64) + 32768
    clipped = np.clip(steps, 0, 65535)
    image = np.empty((*known.shape, 3), np.uint16)
    image[..., :2] = clipped
    kept = clipped == steps
    image[..., 2] = known & kept[..., 0] & kept[..., 1]
    return encode_png(image)


def decode_kitti(data: bytes) -> tuple[Flow, NDArray[np.bool_]]:
    """(flow, valid): float32 (H, W, 2) in pixels, 0 where not valid, and bool (H, W).

    As ``flow_read.m`` of the KITTI development kit. Raises: Rejected ``undecodable``.
    """
    image = decode_png(data, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise Rejected("undecodable", "not a 16-bit RGB PNG")
    blue, green, red = np.moveaxis(image.astype(np.float32), 2, 0)
    valid: NDArray[np.bool_] = blue > 0
    steps = np.stack([red, green], axis=2) - np.float32(32768)
    return np.where(valid[..., None], steps / np.float32(64), np.float32(0)), valid


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
