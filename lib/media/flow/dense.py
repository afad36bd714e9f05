"""Dense optical flow between two gray pictures, by OpenCV on one thread of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.flow.fields import Flow
from reelmill.media.flow.plain import use_plain_opencv

MIN_SIDE = 32
"""The least width and height in pixels: OpenCV's DIS reads out of bounds in thinner pictures."""

Gray: TypeAlias = NDArray[np.uint8]


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
    architecture, whatever was computed before: see :func:`~.plain.use_plain_opencv`.

    Raises: Rejected ``too_small`` below MIN_SIDE; ValueError for two shapes.
    """
    if prev_gray.shape != next_gray.shape:
        raise ValueError(f"pictures of shapes {prev_gray.shape} and {next_gray.shape}")
    height, width = prev_gray.shape
    if min(width, height) < MIN_SIDE:
        raise Rejected("too_small", f"{width} x {height} pixels; flow needs {MIN_SIDE} a side")
    use_plain_opencv()
    return _METHODS[method](prev_gray, next_gray)
