"""Frames by PyAV, which is there with every install: the reference for all the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import av
import numpy as np

from reelmill.loading.readers.decoder import Decoder, Job
from reelmill.loading.readers.media import Form
from reelmill.media.decode import planes_of
from reelmill.media.probe import open_media, video_stream
from reelmill.media.shown import frames_at


class PyavDecoder(Decoder[av.VideoFrame]):
    """On one thread, with the pixels of :func:`~reelmill.media.decode.to_rgb`."""

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        super().__init__(job, takes)
        self._open = ExitStack()
        self._source = job.media.source()
        container = self._open.enter_context(open_media(self._source))
        self._opened = container, video_stream(container)

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        return frames_at(self._source, self.job.look.shown, numbers, self._opened)

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        there = self.job.look.shown
        return frames_at(self._source, there, numbers, self._opened, in_one_run=True)

    def write(self, frame: av.VideoFrame, target: Any) -> None:
        look = self.job.look
        # Scaled where frames grow or shrink on the way, so that all have the size of the first.
        green, blue, red = planes_of(frame, "gbrp", (look.width, look.height))
        write_planes((red, green, blue), look.turns, target.numpy(), self.job.channels_last)

    def close(self) -> None:
        self._open.close()


def write_planes(planes: Sequence[Any], turns: int, target: Any, channels_last: bool) -> None:
    """Write three uint8 planes, turned by 90° counterclockwise so often, into an array of shape
    (H, W, 3) or (3, H, W)."""
    turned = [np.rot90(plane, turns) for plane in planes]
    if channels_last:
        import cv2

        # Into the target itself: NumPy would take ten times as long.
        cv2.merge([np.ascontiguousarray(plane) for plane in turned], target)
    else:
        for row, plane in zip(target, turned, strict=True):
            row[...] = plane


def check(device: str) -> None:
    """PyAV comes with every install."""
