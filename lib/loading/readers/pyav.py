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
from reelmill.media.shown import FrameRun, frames_at, is_dense


class PyavDecoder(Decoder[av.VideoFrame]):
    """On one thread, with the pixels of :func:`~reelmill.media.decode.to_rgb`."""

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        super().__init__(job, takes)
        self._open = ExitStack()
        self._source = job.media.source()
        container = self._open.enter_context(open_media(self._source))
        self._opened = container, video_stream(container)
        self._last: int | None = None
        self._run: FrameRun | None = None

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        return self._frames(numbers, in_one_run=False)

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        return self._frames(numbers, in_one_run=True)

    def _frames(
        self, numbers: Sequence[int], in_one_run: bool
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        there, taken = self.job.look.shown, 0
        follows = self._follows(numbers) and (in_one_run or is_dense(there, numbers))
        self._last = numbers[-1]
        if not follows:
            self._run = None
        else:
            self._run = self._run or FrameRun(there, self._opened, numbers[0])
            for pair in self._run.take(numbers):
                yield pair
                taken += 1
            if taken == len(numbers):
                return
            self._run = None
        rest = numbers[taken:]
        yield from frames_at(self._source, there, rest, self._opened, in_one_run=in_one_run)

    def _follows(self, numbers: Sequence[int]) -> bool:
        """Whether these go on where the last ones ended. Only then it is decoded on and on, for
        which a decoder must be given a few packets more than the last frame needs."""
        if self._last is None or numbers[0] <= self._last:
            return False
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        is_near = numbers[0] - self._last <= step
        return is_near or self.job.look.key_before(numbers[0]) <= self._last

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
