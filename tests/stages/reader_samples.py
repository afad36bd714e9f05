"""What readers are compared on: a small video of each awkward kind, and how one is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.loading.readers import UnsupportedError, VideoReader
from reelmill.media.decode import frames, to_rgb

from .media_samples import make_video, number_of, sample, x264

_MADE = TemporaryDirectory(prefix="reelmill-readers-")

_X265 = {"x265-params": "log-level=0:keyint=20:min-keyint=20:scenecut=0:bframes=3"}


def _made(name: str, frames: int = 45, **options: object) -> Callable[[], Path]:
    @cache
    def make() -> Path:
        return make_video(Path(_MADE.name) / name, frames, **options)  # type: ignore[arg-type]

    return make


def _known(name: str) -> Callable[[], Path]:
    return lambda: sample(name)


KINDS: dict[str, Callable[[], Path]] = {
    "H.264 with B-frames": _known("silent.mp4"),
    "H.264 with open GOPs": _known("open.mp4"),
    "H.264 of 10 bits": _made("deep.mp4", options=x264(), pix_fmt="yuv420p10le"),
    "HEVC with open GOPs": _made("hevc.mp4", codec="libx265", options=_X265),
    "HEVC of 10 bits": _made("hevc10.mp4", codec="libx265", options=_X265, pix_fmt="yuv420p10le"),
    "VP8": _known("vp8.webm"),
    "VP9": _known("vp9.webm"),
    "AV1": _made("av1.mp4", codec="libsvtav1", options={"g": "20", "preset": "12", "crf": "20"}),
    "variable rate": _known("uneven.mkv"),
    "begins late": _known("late.mp4"),
    "rotated": _known("rotated.mp4"),
    "pixels of 4:3": _made("wide.mp4", options=x264(more="sar=4/3")),
    "odd size, 4:4:4": _known("odd.mp4"),
    "odd size, 4:2:0": _made(
        "odd.webm", codec="libvpx-vp9", options={"g": "20", "cpu-used": "8"}, size=(129, 97)
    ),
    "edit list, first frames hidden": _known("hidden.mp4"),
    "edit list, last frames hidden": _known("trimmed.mp4"),
    "fragmented MP4": _known("fragmented.mp4"),
    "several videos": _known("two.mkv"),
    "MPEG-TS": _known("plain.ts"),
    "FLV": _known("plain.flv"),
    "AVI, MPEG-4 with B-frames": _known("plain.avi"),
    "AVI, H.264": _made("h264.avi", options=x264(bframes=0)),
    "interlaced": _made("fields.mp4", options=x264(more="tff=1")),
}
"""Videos by what is awkward in them; their frames carry their numbers, but for those of the one
"several videos"."""

UNSUPPORTED = {
    "torchcodec": {"MPEG-TS", "FLV", "VP8", "AVI, MPEG-4 with B-frames", "AVI, H.264"},
    "opencv": {"AV1", "several videos", "AVI, MPEG-4 with B-frames", "AVI, H.264", "interlaced"},
}
"""What a backend refuses, or frames of which it cannot give: it must say so, and no more."""

MOST = 90
"""Frames of a video that are compared; those of the kinds have no more."""


@dataclass(frozen=True)
class Compared:
    """How frames of a reader differ from those of PyAV, in levels of 255; both 0 if not at all."""

    most: int
    mean: float

    def __str__(self) -> str:
        return "exact" if not self.most else f"{self.most} ({self.mean:.2f})"


@cache
def reference(path: Path) -> list[NDArray[np.uint8]]:
    """The first frames as upright RGB, decoded in order by PyAV."""
    return [to_rgb(frame) for frame in islice(frames(path), MOST)]


def picks(count: int) -> list[int]:
    """Numbers of frames in no order, near both sides of keyframes, and some more than once."""
    near = [19, 20, 21, 39, 40, 41, 18, 38, count // 2, count // 3, 1, 0, count - 1, count - 2]
    return [*(number for number in near if number < count), 0, count // 2]


def compared(reader: VideoReader, path: Path, numbers: list[int]) -> Compared:
    """Frames of ``reader`` beside those of PyAV."""
    pictures = pictures_of(reader, numbers)
    known = reference(path)
    most, total = 0, 0.0
    for picture, number in zip(pictures, numbers, strict=True):
        assert picture.shape == known[number].shape
        difference = np.abs(picture.astype(np.int16) - known[number])
        most, total = max(most, int(difference.max())), total + float(difference.mean())
    return Compared(most, total / len(numbers))


def pictures_of(reader: VideoReader, numbers: list[int]) -> list[NDArray[np.uint8]]:
    """Frames as arrays (H, W, 3)."""
    read = reader.read_frames(numbers)
    if reader.output_format == "TCHW":
        read = read.permute(0, 2, 3, 1)
    return list(read.cpu().numpy())


def burnt(pictures: list[NDArray[np.uint8]], turns: int = 0) -> list[int]:
    """The numbers that pictures carry, which were turned so often by 90° counterclockwise."""
    return [number_of(np.rot90(picture, -turns).mean(axis=2)) for picture in pictures]


REFUSALS = (UnsupportedError, Rejected)
