"""What estimates flow: one interface for methods of the CPU, of networks and of NVIDIA's cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from reelmill.media.decode import Device
from reelmill.media.flow.dense import FlowMethod, flow
from reelmill.media.flow.fields import Flow

Method: TypeAlias = Literal["dis", "farneback", "raft", "nvof"]

PRESETS: dict[Method, tuple[str, ...]] = {
    "dis": ("fast", "ultrafast", "medium"),
    "farneback": (),
    "raft": ("large", "small"),
    "nvof": ("slow", "medium", "fast"),
}
"""What each method may be told to be, the default first."""

RAFT_BATCH = 8
"""Pairs that RAFT looks at together, if nothing else is asked for."""


class Estimator(Protocol):
    """Estimates flow from the first picture of each pair to the second.

    Attributes:
        colour: whether it takes uint8 RGB of shape (H, W, 3), full range, or gray of shape (H, W).
        at_once: pairs that it is best given together; the last of a video may be fewer.
    """

    @property
    def colour(self) -> bool: ...

    @property
    def at_once(self) -> int: ...

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> list[Flow]:
        """float32 (H, W, 2) for each pair, whose pictures are all of one shape: NumPy's arrays, or
        tensors of the estimator's device. Raises: Rejected ``too_small``."""


@dataclass(frozen=True)
class Dense:
    """OpenCV's methods, pair by pair, on the CPU."""

    method: FlowMethod
    colour: bool = False
    at_once: int = 1

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> list[Flow]:
        return [flow(first, second, self.method) for first, second in pairs]


def estimator(
    method: Method,
    preset: str | None = None,
    *,
    weights: Path | None = None,
    device: Device = "cuda",
    batch: int = RAFT_BATCH,
) -> Estimator:
    """The estimator of a method, in one of its ``PRESETS``.

    The others are of RAFT: its ``weights`` (those of the hub if None), where it computes, and how
    many pairs at once. Raises as :func:`~reelmill.media.gpu.raft.loaded` and
    :func:`~reelmill.media.gpu.nvof.loaded` do.
    """
    if method == "farneback":
        return Dense(FlowMethod.FARNEBACK)
    preset = preset or PRESETS[method][0]
    if method == "dis":
        return Dense(FlowMethod(f"dis-{preset}"))
    # Imported here: those of the CPU need neither torch nor a card.
    if method == "raft":
        from reelmill.media.gpu import raft

        return raft.loaded(preset, weights, device, batch)
    from reelmill.media.gpu import nvof

    return nvof.loaded(preset)
