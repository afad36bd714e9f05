"""Pictures as flow is estimated from them: luma or RGB, at the size that it is computed at."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from reelmill.media.decode import to_luma, to_rgb
from reelmill.media.flow.fields import check_size
from reelmill.media.flow.plain import use_plain_opencv
from reelmill.media.images import boxed, decode_gray, decode_image
from reelmill.media.pictures import PictureFormat, encode_bgr
from reelmill.media.size import Fit, Sizing


def from_frame(frame: VideoFrame, fit: Fit, colour: bool) -> NDArray[np.uint8]:
    """A decoded frame, upright, at the size that ``fit`` tells: uint8 RGB (H, W, 3) if ``colour``,
    and its luma (H, W) if not.

    Raises: Rejected ``too_large`` beyond what flow is estimated of, and as
    :func:`~reelmill.media.decode.to_rgb` does.
    """
    _check(fit)
    picture = to_rgb(frame, fit.scaled) if colour else to_luma(frame, fit.scaled)
    return boxed(picture, fit)


def from_image(data: bytes, sizing: Sizing[Any], colour: bool) -> NDArray[np.uint8]:
    """A JPEG or PNG, as :func:`from_frame` gives a frame; of a JPEG the luma is its Y plane.

    Raises: Rejected as that, and as :func:`~reelmill.media.images.decode_image` does.
    """
    picture = decode_image(data) if colour else decode_gray(data)
    fit = sizing.fit(picture.shape[1], picture.shape[0])
    _check(fit)
    return boxed(scaled(picture, *fit.scaled), fit)


def _check(fit: Fit) -> None:
    for width, height in (fit.scaled, fit.padded):
        check_size(width, height)


def scaled(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """``picture`` (H, W, …) at another size: the mean of what a pixel covers where it shrinks."""
    before_height, before_width = picture.shape[:2]
    if (before_width, before_height) == (width, height):
        return picture
    use_plain_opencv()
    shrinks = width <= before_width and height <= before_height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    result: NDArray[np.uint8] = cv2.resize(picture, (width, height), interpolation=method)
    return result


def on_host(picture: Any) -> NDArray[np.uint8]:
    """A picture that may be a tensor of a card's, as an array."""
    array: NDArray[np.uint8] = picture if isinstance(picture, np.ndarray) else picture.cpu().numpy()
    return array


def encode_rgb(rgb: NDArray[np.uint8], how: PictureFormat) -> bytes:
    """RGB that is no frame of PyAV's any more, as a picture of 8 bits."""
    return encode_bgr(np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8), how)
