"""Libraries that stand at a frame, go on to the next, and seek by guess: told where they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Final

from reelmill.errors import Rejected
from reelmill.loading.readers.decoder import Decoder, Job, UnsupportedError
from reelmill.loading.readers.media import Form

_BACK: Final = (0, 1, 4, 16)
"""Seconds before a keyframe at which it is looked for; then from the beginning of the file."""


class WalkingDecoder(Decoder[None]):
    """A library whose own numbers of frames are not to be relied on, nor where its seeks arrive.

    But it tells the time of each frame: by that every frame is known, and a seek is judged. What
    is decoded behind a keyframe, or from any place before it, is what it should be. A frame that is
    given out is the one that it stands at.
    """

    library: ClassVar[str]

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        super().__init__(job, takes)
        if not job.media.begins_as(job.look.formats):
            raise self.unsupported("is not given a file that begins with something else")
        self.open_until_close = ExitStack()
        self._at: int | None = None
        try:
            self._begin()
            if self._at != 0:
                raise self.unsupported("does not begin with the first frame")
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def begin(self, video: Any) -> None:
        """Open the file, given in one of the forms that the library takes, or open it again."""

    @abstractmethod
    def step(self) -> int | None:
        """Go on to the next frame, and tell its pts; None at the end, or where there is none."""

    @abstractmethod
    def jump(self, seconds: float) -> None:
        """Go to the last keyframe up to a time, so far as the library finds it; the next frame is
        behind the next step. The time is one of ``look.times``."""

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, None]]:
        for number in numbers:
            self._go_to(number, self.job.look.key_before(number))
            yield number, None

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, None]]:
        key = self.job.look.key_before(numbers[0])
        for number in range(numbers[0], numbers[-1] + 1):
            self._go_to(number, key)
            yield number, None

    def close(self) -> None:
        self.open_until_close.close()

    def unsupported(self, what: str) -> UnsupportedError:
        """What the library does with this video, or cannot do, as an error."""
        return self.job.unsupported(self.library, what)

    def undecodable(self, number: int | None) -> Rejected:
        """That a frame cannot be had this way."""
        return Rejected(
            "undecodable", f"{self.library} cannot decode frame {number}; backend='pyav' may"
        )

    def _go_to(self, number: int, key: int) -> None:
        """Stand at a frame, for which all must be decoded from ``key`` on."""
        if self._at is None or not key <= self._at <= number:
            self._seek(key)
        while self._at is not None and self._at < number:
            self._step()
        if self._at != number:
            self._at = None
            raise self.undecodable(number)

    def _seek(self, key: int) -> None:
        """Stand at a keyframe, or at a frame before it."""
        look = self.job.look
        [begin] = look.times([key])[0].tolist()
        for back in _BACK:
            if key == 0 or begin - back <= look.metadata.begin_seconds:
                break
            self.jump(begin - back)
            self._step()
            if self._at is not None and self._at <= key:
                return
        self._begin()

    def _begin(self) -> None:
        """Stand at the first frame."""
        self.open_until_close.close()
        self.begin(self.job.media.given_as(self.takes, self.open_until_close))
        self._step()

    def _step(self) -> None:
        """Stand at the next frame of the video; at None where there is none."""
        self._at = None
        while self._at is None and (pts := self.step()) is not None:
            self._at = self.job.look.number_of(pts)
