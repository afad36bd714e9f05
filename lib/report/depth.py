"""Depth as a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def depth_picture(depth: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3) of depth (H, W) in any unit: what is near is bright.

    Shades part the 2nd from the 98th percentile of what is known; 0, which stands for what is not,
    is black.
    """
    known = depth > 0
    if not known.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    near, far = np.percentile(depth[known], (2, 98))
    share = np.clip((far - depth.astype(np.float32)) / max(far - near, 1), 0, 1)
    grey = np.where(known, 40 + 215 * share, 0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
