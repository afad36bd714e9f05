"""OpenCV as it computes the same bits on every CPU of one architecture."""

from __future__ import annotations

import cv2


def use_plain_opencv() -> None:
    """Switch off OpenCV's threads and its kernels for newer CPUs. What has been computed before
    makes no difference then; DIS and Farneback lose no time by it.

    Part of that (the use of IPP) is each thread's own, and OpenCV does not tell: so it is said
    every time, at a microsecond, and not only where ``cv2.useOptimized`` is still true.
    """
    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
