"""Frames by OpenCV's own FFmpeg."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import cv2

from reelmill.errors import StageError
from reelmill.loading.readers.decoder import Job
from reelmill.loading.readers.media import Form
from reelmill.loading.readers.walking import WalkingDecoder


class OpencvDecoder(WalkingDecoder):
    """OpenCV's capture, on one thread. It turns frames upright itself."""

    library = "OpenCV"

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        self._capture: Any = None
        if job.look.place:
            raise job.unsupported("OpenCV", "takes a file's first video, which is not the best one")
        if "avi" in job.look.formats:
            # Packets there have no times of frames, and it takes those of others that were decoded.
            raise job.unsupported("OpenCV", "does not tell the frames of this container apart")
        if job.look.interlaced:
            # It fails, says nothing, and hands out what its memory holds.
            raise job.unsupported("OpenCV", "does not convert interlaced pictures to RGB")
        super().__init__(job, takes)

    def begin(self, video: Any) -> None:
        self._capture = cv2.VideoCapture(video, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise self.unsupported("cannot open it")
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)

    def step(self) -> int | None:
        if not self._capture.grab():
            return None
        # It counts from when the stream begins.
        look = self.job.look
        return look.start + look.pts_of(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)

    def jump(self, seconds: float) -> None:
        look = self.job.look
        begin = float(look.start * look.shown.time_base)
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (seconds - begin))

    def write(self, frame: None, target: Any) -> None:
        is_there, picture = self._capture.retrieve()
        if not is_there:
            raise self.undecodable(self._at)
        if picture.shape != (*self.job.look.upright, 3):
            raise self.unsupported(f"gives frames of shape {picture.shape}")
        if self.job.channels_last:
            cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, target.numpy())
        else:
            for channel, row in enumerate(target.numpy()):
                cv2.extractChannel(picture, 2 - channel, row)

    def close(self) -> None:
        self._capture = None
        super().close()


def check(device: str) -> None:
    """Raise StageError where OpenCV was built without FFmpeg."""
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
        raise StageError(
            "OpenCV was built without FFmpeg on this host: pip install opencv-python-headless"
        )
