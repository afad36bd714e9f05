"""Readers: the frames of one video by number or by time, whatever decodes them."""

from __future__ import annotations

import re
from typing import Final, get_args

from reelmill.loading.readers.base import Mode, OutputFormat, VideoMetadata, VideoReader
from reelmill.loading.readers.decoder import Job, UnsupportedError
from reelmill.loading.readers.look import look_at
from reelmill.loading.readers.reader import Reader
from reelmill.loading.readers.sources import VideoSource, media_of
from reelmill.loading.readers.table import (
    BACKENDS,
    Availability,
    Backend,
    BackendName,
    backends,
    candidates,
    first_that_opens,
)
from reelmill.loading.tensors import torch_module

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "UnsupportedError",
    "VideoMetadata",
    "VideoReader",
    "VideoSource",
    "backends",
    "open_video",
]

_DEVICE: Final = re.compile(r"cpu|cuda(:[0-9]+)?")


def open_video(
    source: VideoSource,
    backend: BackendName = "auto",
    device: str = "cpu",
    mode: Mode = "seek",
    output_format: OutputFormat = "TCHW",
) -> VideoReader:
    """Open a video, to read frames of it by number or by time.

    Args:
        source: a path, the bytes of a file, an open binary file, or a shard and a sample of it: see
            :data:`~reelmill.loading.readers.sources.VideoSource`.
        backend: what decodes. ``auto`` takes the best one that is installed and gives the frames of
            this video on ``device``; where it turns out to fail at a frame, the next one reads on.
            The reader's ``backend`` says which it is.
        device: where frames lie: ``cpu``, ``cuda`` or ``cuda:1``.
        mode: ``seek`` finds each frame; ``stream`` decodes all from the first to the last that are
            asked for, once, and keeps those.
        output_format: whether frames are (T, C, H, W) or (T, H, W, C).

    Raises:
        Rejected: the file cannot be used; see :func:`~reelmill.media.probe.open_media`.
        MissingDependencyError: the backend is not installed; the text gives the pip line.
        UnsupportedError: the backend does not give the frames of this video as they are.
        ReelmillError: there is no such backend, shard or sample, or no such device here.
        OSError: a path cannot be read.
    """
    for value, known in ((mode, Mode), (output_format, OutputFormat)):
        if value not in get_args(known):
            raise ValueError(f"{value!r} is none of {', '.join(get_args(known))}")
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"device {device!r} is none of cpu, cuda, cuda:0, cuda:1, …")
    device = "cuda:0" if device == "cuda" else device
    tried = candidates(backend, device)
    torch_module()
    media = media_of(source)
    job = Job(media, look_at(media.source()), device, channels_last=output_format == "THWC")
    chosen, decoder, others = first_that_opens(tried, job)
    return Reader(chosen, decoder, mode, output_format, others)
