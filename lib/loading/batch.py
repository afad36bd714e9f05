"""Frames with their times, as samplers return them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, repr=False)
class FrameBatch:
    """Some frames, or clips of frames, and when they are shown; shaped as TorchCodec's is.

    Attributes:
        data: uint8 tensor of shape (N, C, H, W) or (N, H, W, C); of clips one more at the front.
        pts_seconds: float64 tensor on the CPU, shape ``data.shape[:-3]``: when each frame begins.
        duration_seconds: likewise, how long each is shown.

    Indexing, by whatever indexes the leading axes of a tensor, and iterating give batches of the
    same type; ``len`` is that of the first axis.

    Raises:
        ValueError: the shapes do not fit.
    """

    data: Any
    pts_seconds: Any
    duration_seconds: Any

    def __post_init__(self) -> None:
        leading = tuple(self.data.shape[:-3])
        times = tuple(self.pts_seconds.shape), tuple(self.duration_seconds.shape)
        if self.data.ndim < 3 or times != (leading, leading):
            raise ValueError(
                f"frames of shape {tuple(self.data.shape)} need times of shape {leading}, "
                f"not {times[0]} and {times[1]}"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Any) -> FrameBatch:
        return FrameBatch(self.data[key], self.pts_seconds[key], self.duration_seconds[key])

    def __iter__(self) -> Iterator[FrameBatch]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"FrameBatch(data={tuple(self.data.shape)}, pts_seconds={self.pts_seconds}, "
            f"duration_seconds={self.duration_seconds})"
        )
