"""Frames by a torchvision of the releases that read video."""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from reelmill.errors import StageError
from reelmill.loading.readers.walking import WalkingDecoder
from reelmill.media.gpu.modules import first_lines


class TorchvisionDecoder(WalkingDecoder):
    """``torchvision.io.VideoReader``, in whichever way it is set up to decode on the CPU.

    It does not turn frames; that is done here.
    """

    library = "torchvision"
    _reader: Any = None
    _frame: Any = None

    def begin(self, video: Any) -> None:
        reader = importlib.import_module("torchvision.io").VideoReader
        try:
            self._reader = reader(video, f"video:{self.job.look.place}")
        except Exception as error:  # each of its own backends has errors of its own
            raise self.unsupported(f"cannot open it ({first_lines(error)})") from error

    def step(self) -> int | None:
        try:
            given = next(self._reader)
        except Exception:  # StopIteration, or what cannot be decoded
            return None
        self._frame = given["data"]
        return self.job.look.pts_of(given["pts"])

    def jump(self, seconds: float) -> None:
        self._reader.seek(seconds, keyframes_only=True)

    def write(self, frame: None, target: Any) -> None:
        look = self.job.look
        shape = tuple(self._frame.shape)
        if shape != (3, look.height, look.width):
            raise self.unsupported(f"gives frames of shape {shape}")
        turned = self._frame.rot90(look.turns, dims=(1, 2))
        target.copy_(turned.permute(1, 2, 0) if self.job.channels_last else turned)

    def close(self) -> None:
        self._reader = self._frame = None
        super().close()


def check(device: str) -> None:
    """Raise StageError where the torchvision that is there reads no video, or cannot be used."""
    try:
        reads = hasattr(importlib.import_module("torchvision.io"), "VideoReader")
    except (ImportError, OSError, RuntimeError) as error:
        if _has_file("torchvision/io/video_reader.py"):
            raise StageError(
                f"torchvision does not fit the torch that is installed ({first_lines(error)}); "
                "install both anew, from one index"
            ) from error
        reads = False
    if not reads:
        raise StageError(
            "the torchvision that is installed reads no video any more, as its releases once did: "
            "take backend='torchcodec' or backend='pyav'"
        )


def _has_file(name: str) -> bool:
    """Whether torchvision was installed with a file of this name, which tells without importing."""
    with suppress(PackageNotFoundError):
        return any(str(one) == name for one in distribution("torchvision").files or ())
    return False
