"""Optical flow as colour: the hue is the direction, the saturation the speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def flow_picture(flow: NDArray[np.float32], max_px: float | None = None) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of a flow field (H, W, 2) in pixels, x right and y down.

    The colour wheel of the Middlebury benchmark (Baker et al., "A Database and Evaluation
    Methodology for Optical Flow", IJCV 2011; ``colorcode.cpp``): white stands still, and the
    full colour is a motion of ``max_px`` pixels, darker beyond it. Without ``max_px`` that is
    the 99th percentile of the speeds, at least 1 pixel, so that one wild vector does not bleach
    the picture and noise does not colour it. Vectors that are not finite are black.
    """
    known: NDArray[np.bool_] = np.all(np.isfinite(flow), axis=-1, keepdims=True)
    u, v = np.moveaxis(np.where(known, flow, np.float32(0)), -1, 0)
    speed = np.hypot(u, v)
    if max_px is None:
        max_px = max(1.0, float(np.percentile(speed, 99))) if speed.size else 1.0
    radius = (speed / np.float32(max_px))[..., None]

    hue = (np.arctan2(-v, -u) / np.float32(np.pi) + 1) / 2 * (len(_WHEEL) - 1)
    below = np.minimum(hue.astype(np.intp), len(_WHEEL) - 1)
    share = (hue - below)[..., None]
    colour = (1 - share) * _WHEEL[below] + share * _WHEEL[(below + 1) % len(_WHEEL)]
    colour = np.where(radius <= 1, 1 - radius * (1 - colour), 0.75 * colour)
    picture: NDArray[np.uint8] = (255 * colour * known).astype(np.uint8)
    return picture


def _wheel() -> NDArray[np.float32]:
    """The 55 hues, (55, 3) in 0 to 1: red, yellow, green, cyan, blue, magenta and back to red."""
    # Steps of each arc, and the channel that rises or falls along it. The arcs are uneven because
    # the eye tells more shades apart between red and yellow than between yellow and green.
    arcs = ((15, 1, 1), (6, 0, -1), (4, 2, 1), (11, 1, -1), (13, 0, 1), (6, 2, -1))
    wheel = np.zeros((sum(steps for steps, *_ in arcs), 3), np.float32)
    colour = np.array([255, 0, 0], np.float32)
    row = 0
    for steps, channel, sign in arcs:
        wheel[row : row + steps] = colour
        wheel[row : row + steps, channel] += sign * np.floor(255 * np.arange(steps) / steps)
        colour[channel] += sign * 255
        row += steps
    return wheel / np.float32(255)


_WHEEL = _wheel()
