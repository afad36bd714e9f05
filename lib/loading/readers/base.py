"""What every reader of video is, whatever decodes: the frames asked for, in the order asked."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex, TypeAlias

from reelmill.loading.readers.plan import Indices

Mode: TypeAlias = Literal["seek", "stream"]
"""``seek`` finds each frame; ``stream`` decodes the range that covers them once."""

OutputFormat: TypeAlias = Literal["TCHW", "THWC"]


@dataclass(frozen=True, slots=True)
class VideoMetadata:
    """What is known of a video before a frame is decoded.

    ``width`` and ``height`` are of the frames as they are given out, in pixels: upright.
    ``begin_seconds`` is when the first frame is shown, ``end_seconds`` when the last one ends;
    ``average_fps`` is the count of frames by the time between.
    """

    num_frames: int
    width: int
    height: int
    begin_seconds: float
    end_seconds: float
    average_fps: float
    codec: str


class VideoReader(ABC):
    """The frames of the best video stream of one file.

    Frames are those that are shown (an edit list may hide some), numbered from 0 in the order they
    are shown, upright, as 8-bit RGB.

    Attributes:
        backend: the name of what decodes, such as ``pyav``.
        device: where tensors lie: ``cpu``, ``cuda:0``.
        mode, output_format: as asked for.
        metadata: see :class:`VideoMetadata`.
    """

    backend: str
    device: str
    mode: Mode
    output_format: OutputFormat
    metadata: VideoMetadata

    def __len__(self) -> int:
        return self.metadata.num_frames

    @abstractmethod
    def read_frames(self, indices: Indices) -> Any:
        """The frames with these numbers, in the order asked, as one uint8 tensor (T, C, H, W), or
        (T, H, W, C) with ``output_format="THWC"``.

        Numbers may repeat, come in any order, and be negative, from the end; they may be those of a
        slice, a range, an array or a tensor.

        Raises:
            IndexError: there is no such frame.
            TypeError: an index is no whole number.
            Rejected: ``undecodable`` where one of them cannot be decoded.
        """

    @abstractmethod
    def read_frames_at(self, seconds: Sequence[float]) -> Any:
        """The frames that are shown at these times (in seconds, on the clock of ``metadata``), in
        the order asked, as :meth:`read_frames` gives them.

        Raises:
            IndexError: no frame is shown then.
        """

    @abstractmethod
    def times(self, indices: Indices) -> tuple[Any, Any]:
        """When frames begin and how long they are shown: two float64 tensors (T,), in seconds.
        Nothing is decoded. Raises as :meth:`read_frames` does."""

    @abstractmethod
    def indices_at(self, seconds: Sequence[float]) -> list[int]:
        """The numbers of the frames that are shown at these times; raises as
        :meth:`read_frames_at` does. Nothing is decoded."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file and of what decodes it, once a thread that reads has its frames.
        Harmless when called again."""

    async def read_frames_async(self, indices: Indices) -> Any:
        """As :meth:`read_frames`, in a thread: decoders let other threads run."""
        return await asyncio.to_thread(self.read_frames, indices)

    def __getitem__(self, key: SupportsIndex | Indices) -> Any:
        """The frame with one number, of shape (C, H, W) or (H, W, C), or those that
        :meth:`read_frames` gives for several."""
        if isinstance(key, SupportsIndex) and getattr(key, "ndim", 0) == 0:
            return self.read_frames([key])[0]  # type: ignore[list-item]
        return self.read_frames(key)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Each frame in turn."""
        for number in range(len(self)):
            yield self.read_frames([number])[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
