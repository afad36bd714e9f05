"""Frames by TorchCodec, on the CPU or on a card."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Final

import numpy as np

from reelmill.errors import Rejected, StageError
from reelmill.loading.readers.decoder import Decoder, Job, UnsupportedError
from reelmill.loading.readers.media import Form
from reelmill.loading.tensors import need_card
from reelmill.media.gpu.modules import first_lines

FORMATS: Final = frozenset({"mov", "matroska"})
"""Containers, by FFmpeg's names, whose packets all have the times of their frames. TorchCodec seeks
by these: in MPEG-TS it misses frames at the end, in AVI some of those between."""

_ERRORS: Final = (RuntimeError, IndexError, ValueError)


class TorchcodecDecoder(Decoder[Any]):
    """TorchCodec's decoder in its exact mode, on one thread.

    It numbers frames by the times of their packets, as Reelmill does. That the two mean the same is
    seen when it is opened, and of each frame by its time. Its pixels come from a quicker
    conversion: at edges of saturated colours they differ from PyAV's.
    """

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        super().__init__(job, takes)
        look = job.look
        if not look.formats & FORMATS:
            raise self._unsupported("does not tell the frames of this container apart")
        if look.shown.packets is None:
            raise self._unsupported("is not given video whose packets do not tell its frames")
        if not job.media.begins_as(look.formats):
            raise self._unsupported("is not given a file that begins with something else")
        self._open = ExitStack()
        try:
            self._decoder = self._opened()
            size = self._decoder.metadata.height, self._decoder.metadata.width
            if len(self._decoder) != len(look):
                raise self._unsupported(f"finds {len(self._decoder)} frames of {len(look)}")
            if size not in (look.upright, (look.height, look.width)):
                raise self._unsupported("finds frames of another size")
        except BaseException:
            self._open.close()
            raise

    def _opened(self) -> Any:
        from torchcodec.decoders import VideoDecoder

        job = self.job
        try:
            return VideoDecoder(
                job.media.given_as(self.takes, self._open),
                stream_index=job.look.stream,
                dimension_order="NHWC" if job.channels_last else "NCHW",
                num_ffmpeg_threads=1,
                device=job.device,
                seek_mode="exact",
            )
        except _ERRORS as error:
            raise self._unsupported(f"cannot open it ({first_lines(error)})") from error

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for number in numbers:
            with self._decoding(number):
                frame = self._decoder.get_frame_at(number)
            self._check([number], np.array([frame.pts_seconds]), frame.data.shape)
            yield number, frame.data

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        # Asked in this order it decodes nothing twice, and seeks where that leaves out whole GOPs.
        return self.sought(numbers)

    def batch(self, numbers: Sequence[int]) -> Any | None:
        with self._decoding(numbers[0], numbers[-1]):
            made = self._decoder.get_frames_at(list(numbers))
        self._check(list(numbers), made.pts_seconds.numpy(), made.data.shape[1:])
        return made.data

    def write(self, frame: Any, target: Any) -> None:
        target.copy_(frame)

    def close(self) -> None:
        self._decoder = None
        self._open.close()

    @contextmanager
    def _decoding(self, first: int, last: int | None = None) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            which = (
                f"frame {first}" if last in (None, first) else f"one of frames {first} to {last}"
            )
            raise Rejected(
                "undecodable",
                f"TorchCodec cannot decode {which} ({first_lines(error)}); backend='pyav' may",
            ) from error

    def _unsupported(self, what: str) -> UnsupportedError:
        return self.job.unsupported("TorchCodec", what)

    def _check(self, numbers: list[int], seconds: Any, shape: Any) -> None:
        """Raise where these are not the frames that were asked for."""
        told = self.job.look.times(numbers)[0]
        wrong = np.abs(seconds - told) > float(self.job.look.shown.slack)
        if wrong.any():
            number = numbers[int(wrong.argmax())]
            raise self._unsupported(f"gives another frame for frame {number}")
        if tuple(shape) != self.job.shape:
            raise self._unsupported(f"gives frames of shape {tuple(shape)}")


def check(device: str) -> None:
    """Raise StageError where TorchCodec is there and cannot be used."""
    try:
        import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        raise StageError(
            f"TorchCodec cannot be loaded ({first_lines(error)}); it needs FFmpeg's shared "
            "libraries, a package of the system (apt-get install ffmpeg), and the torch that it "
            "was built for"
        ) from error
    if device.startswith("cuda"):
        need_card(device)
