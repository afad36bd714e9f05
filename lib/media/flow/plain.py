"""OpenCV as it computes the same bits on every CPU of one architecture."""

from __future__ import annotations

import cv2


def use_plain_opencv() -> None:
    """Switch off OpenCV's threads and its kernels for newer CPUs, in this process. What has been
    computed before makes no difference then; DIS and Farneback lose no time by it."""
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    if cv2.useOptimized():
        cv2.setUseOptimized(False)
