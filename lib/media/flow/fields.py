"""What is done with a field of flow once it is known: occlusions, other sizes, how much moves."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.flow.plain import use_plain_opencv
from reelmill.media.images import encode_png

Flow: TypeAlias = NDArray[np.float32]
"""(H, W, 2) in pixels: x right, then y down."""

Mask: TypeAlias = NDArray[np.bool_]

MAX_PIXELS = 2**26
"""The largest field that is estimated or stored, which is the largest frame of a video that is
decoded. Dense inverse search takes 24 bytes a pixel, and a few bytes can claim many pixels."""

RELATIVE, ABSOLUTE = np.float32(0.01), np.float32(0.5)
"""By how much there and back may miss: a part of the squares of both lengths, and pixels squared.

Sundaram, Brox and Keutzer, "Dense Point Trajectories by GPU-Accelerated Large Displacement Optical
Flow" (ECCV 2010), equation 5; Meister, Hur and Roth, "UnFlow" (AAAI 2018), take the same."""

_MOTION_STEP, _LONGEST = np.float32(1024), np.float32(2**20)

# Few enough rows that a CPU keeps them at hand.
_ROWS = 64

_EVERY = 4


def occluded(there: Flow, back: Flow) -> Mask:
    """(H, W), true for the pixels that ``there`` leads to nothing that ``back`` leads home from.

    ``there`` leads from one picture to another and ``back`` from that one to the first. Such pixels
    are hidden in the other picture, or have left it, or their flow is wrong; see RELATIVE. ``back``
    is read between its pixels by bilinear interpolation, in steps of 1/32 pixel.
    """
    use_plain_opencv()
    height, width = there.shape[:2]
    u, v = cv2.split(there)
    x = u + np.arange(width, dtype=np.float32)
    y = v + np.arange(height, dtype=np.float32)[:, None]
    home_u, home_v = cv2.split(cv2.remap(back, x, y, cv2.INTER_LINEAR))
    bound = _squares(u, v)
    bound += _squares(home_u, home_v)
    bound *= RELATIVE
    bound += ABSOLUTE
    home_u += u
    home_v += v
    # Numbers that are not finite compare as false: they lead nowhere.
    visible: Mask = _squares(home_u, home_v) < bound
    for place, last in ((x, width - 1), (y, height - 1)):
        visible &= place >= 0
        visible &= place <= last
    return ~visible


def check_size(width: int, height: int) -> None:
    """Raise Rejected ``too_large`` beyond MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise Rejected(
            "too_large",
            f"flow of {width}x{height} pixels is more than {MAX_PIXELS}; max_side helps",
        )


def _squares(u: Flow, v: Flow) -> Flow:
    squares: Flow = u * u
    squares += v * v
    return squares


def encode_mask(mask: Mask) -> bytes:
    """8-bit gray PNG, 255 where true and 0 elsewhere, as the occlusions of MPI Sintel are."""
    return encode_png(mask.view(np.uint8) * np.uint8(255))


def rescaled(flow: Flow, width: int, height: int) -> Flow:
    """``flow`` of pictures of another size: its vectors grow and shrink with it, in x and y.

    Each new vector is the mean of those whose area it takes, or lies between its neighbours.

    Raises: Rejected ``too_large`` beyond MAX_PIXELS.
    """
    before_height, before_width = flow.shape[:2]
    if (before_width, before_height) == (width, height):
        return flow
    check_size(width, height)
    use_plain_opencv()
    shrinks = width <= before_width and height <= before_height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled: Flow = cv2.resize(flow, (width, height), interpolation=method)
    scaled *= np.array([width / before_width, height / before_height], np.float32)
    return scaled


def rescaled_mask(mask: Mask, width: int, height: int) -> Mask:
    """``mask`` at another size; each pixel is as the one that lies under its middle."""
    before_height, before_width = mask.shape
    rows = (2 * np.arange(height) + 1) * before_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * before_width // (2 * width)
    return mask[np.ix_(rows, columns)]


def mean_motion(flow: Flow) -> tuple[float, float]:
    """(mean, greatest) length of its vectors in pixels, to 1/1024: the same on every CPU.

    Of every fourth row, from the first: the neighbours of a vector say what it says, and lengths of
    all would cost a tenth of what DIS does. Vectors that are not finite count as 0, and none as
    longer than 2^20 pixels.
    """
    total, longest = 0.0, 0.0
    some = flow[::_EVERY]
    for start in range(0, len(some), _ROWS):
        products = np.square(some[start : start + _ROWS])
        lengths = np.sqrt(products[..., 0] + products[..., 1])
        if not lengths.max() <= _LONGEST:
            lengths = np.nan_to_num(lengths, nan=0, posinf=0)
            np.minimum(lengths, _LONGEST, out=lengths)
        # Sums of whole numbers do not depend on their order, which is the CPU's.
        lengths *= _MOTION_STEP
        np.rint(lengths, out=lengths)
        total += float(lengths.sum(dtype=np.float64))
        longest = max(longest, float(lengths.max()))
    scale = float(_MOTION_STEP)
    return total / scale / (some.size // 2), longest / scale
