"""What TransNetV2 makes of a frame and its neighbours, as a measure: frames in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from reelmill.errors import StageError
from reelmill.media.decode import to_rgb
from reelmill.media.scenes.contract import Row, Scorer


@dataclass(frozen=True)
class Transitions:
    """How likely a shot ends at a frame, 0 to 1, by the network whose weights are in a file.

    Raises, when it is started, as :class:`~reelmill.media.gpu.transnet.TransNetV2` does.
    """

    weights: str | None

    columns: ClassVar[tuple[str, ...]] = ("transnetv2",)
    lag: ClassVar[int] = 74  # transnet.LAG, which is not to be imported for it

    def start(self) -> Scorer:
        # Imported here: other detectors need no network.
        from reelmill.media.gpu.transnet import loaded

        return _Watched(loaded(self.path, "cpu").start())

    @property
    def path(self) -> Path:
        """Where the weights are. Raises :class:`~reelmill.errors.StageError` if that is unknown."""
        if self.weights is None:
            raise StageError("detector transnetv2 needs weights: the path of the network's file")
        return Path(self.weights)


class _Watched:
    def __init__(self, windows: Any) -> None:
        self._windows = windows

    def feed(self, frame: Any) -> Sequence[Row]:
        from reelmill.media.gpu.transnet import HEIGHT, WIDTH

        return _rows(self._windows.feed(to_rgb(frame, (WIDTH, HEIGHT))[None]))

    def finish(self) -> Sequence[Row]:
        return _rows(self._windows.finish())


def _rows(scores: Any) -> list[Row]:
    return [(score,) for score in scores.tolist()]
