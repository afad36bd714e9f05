"""Videos of a sample: readers of their frames, or some of the frames at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from reelmill.errors import Rejected
from reelmill.loading.fields import PASS, FieldDecoder, ending
from reelmill.loading.readers import open_video
from reelmill.loading.readers.base import Mode, OutputFormat
from reelmill.loading.readers.sources import VIDEO_ENDINGS
from reelmill.loading.readers.table import BackendName
from reelmill.loading.tensors import torch_module
from reelmill.media.probe import audio_stream, open_media, video_stream


class video(FieldDecoder):  # noqa: N801 - used as a function, as webdataset's handlers are
    """Decodes videos: ``decode(video(frames=16, every=2))``.

    Without ``frames`` and ``every`` a field becomes a :class:`VideoReader`, of which nothing is
    decoded yet; else a uint8 tensor of the frames that were asked for.

    Args:
        frames: so many, or those with these numbers (a list, a slice; negative from the end); all
            if ``every`` alone is given.
        every: by how much the numbers of neighbours differ; with a number of ``frames``, 1 if not
            given.
        start: the number of the first.
        backend, device, mode, output_format: as :func:`open_video` has them.

    Raises:
        ValueError: both numbers of frames and ``every`` are given.
    """

    def __init__(
        self,
        frames: int | Sequence[int] | slice | None = None,
        every: int | None = None,
        start: int = 0,
        *,
        backend: BackendName = "auto",
        device: str = "cpu",
        mode: Mode = "seek",
        output_format: OutputFormat = "TCHW",
    ) -> None:
        listed = frames is not None and not isinstance(frames, int)
        if listed and (every is not None or start):
            raise ValueError("numbers of frames say all: leave every and start out")
        if (isinstance(frames, int) and frames < 1) or (every is not None and every < 1):
            raise ValueError("frames and every are at least 1")
        if start < 0:
            raise ValueError("start counts from the beginning")
        self.frames = frames
        self.every = every
        self.start = start
        self._how: dict[str, Any] = {
            "backend": backend,
            "device": device,
            "mode": mode,
            "output_format": output_format,
        }

    def value(self, name: str, data: bytes) -> Any:
        """The reader or the frames, or PASS for a field that by its name is no video.

        Raises:
            Rejected, ReelmillError: it cannot be read; see :func:`open_video`.
            ValueError, IndexError: it has fewer frames.
        """
        if ending(name) not in VIDEO_ENDINGS:
            return PASS
        reader = open_video(data, **self._how)
        if self.frames is None and self.every is None:
            return reader
        with reader:
            return reader.read_frames(self._numbers(len(reader)))

    def _numbers(self, count: int) -> Sequence[int] | slice:
        if self.frames is not None and not isinstance(self.frames, int):
            return self.frames
        step = self.every or 1
        if self.frames is None:
            return range(self.start, count, step)
        stop = self.start + (self.frames - 1) * step + 1
        if stop > count:
            raise ValueError(
                f"{self.frames} frames from {self.start} on, {step} apart, need {stop}; it has "
                f"{count}"
            )
        return range(self.start, stop, step)


class VideoAndAudio(NamedTuple):
    """What torchvision's ``read_video`` returned.

    Attributes:
        video: uint8 tensor (T, H, W, C).
        audio: float32 tensor (channels, samples); (1, 0) where there is none.
        info: ``video_fps``, and ``audio_fps`` where there is sound.
    """

    video: Any
    audio: Any
    info: dict[str, float]


def torch_video(name: str, data: bytes) -> VideoAndAudio | None:
    """Decodes a whole video and its sound, as ``webdataset.torch_video`` does, which needs what
    torchvision has no more.

    Raises:
        Rejected: it cannot be read.
    """
    if ending(name) not in VIDEO_ENDINGS:
        return None
    with open_video(data, mode="stream", output_format="THWC") as reader:
        frames = reader.read_frames(slice(None))
        info = {"video_fps": reader.metadata.average_fps}
    samples, rate = _audio(data)
    if rate is not None:
        info["audio_fps"] = rate
    return VideoAndAudio(frames, torch_module().from_numpy(samples), info)


def _audio(data: bytes) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int | None]:
    """Samples between -1 and 1 (channels, samples), and how many a second."""
    with open_media(data) as container:
        stream = audio_stream(container, video_stream(container))
        if stream is None:
            return np.zeros((1, 0), np.float32), None
        resampler = av.AudioResampler(format="fltp")
        parts = []
        try:
            for frame in container.decode(stream):
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
            parts += [part.to_ndarray() for part in resampler.resample(None)]
        except av.FFmpegError as error:
            raise Rejected("undecodable", f"its sound: {error.strerror}") from error
        empty = np.zeros((stream.codec_context.channels, 0), np.float32)
        rate: int = stream.codec_context.sample_rate
    return np.concatenate([empty, *parts], axis=1), rate
