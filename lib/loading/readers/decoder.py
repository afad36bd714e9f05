"""What a backend does: it opens a video and gives frames; all else is a reader's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from reelmill.errors import ReelmillError
from reelmill.loading.readers.look import Look
from reelmill.loading.readers.media import Form, Media

P = TypeVar("P")


class UnsupportedError(ReelmillError):
    """A video of which a backend cannot give every frame as it is: another one is to be used."""


@dataclass(frozen=True)
class Job:
    """What a decoder is opened for.

    Attributes:
        media: the video.
        look: what was found of it.
        device: of torch, on which frames shall lie.
        channels_last: whether a frame has the shape (H, W, C) or (C, H, W).
    """

    media: Media
    look: Look
    device: str
    channels_last: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a frame."""
        size = self.look.upright
        return (*size, 3) if self.channels_last else (3, *size)

    def unsupported(self, library: str, what: str) -> UnsupportedError:
        """The error that says what a library does with this video, or cannot do."""
        look = self.look
        return UnsupportedError(
            f"{library} {what} ({self.media.name}: {look.codec} in "
            f"{','.join(sorted(look.formats))}): open it with backend='pyav'"
        )


class Decoder(ABC, Generic[P]):
    """The frames of one video out of one library, for one user at a time.

    It is opened when it is made, which raises :class:`UnsupportedError` where the library does not
    give the frames of this video with their own numbers, and as
    :func:`~reelmill.media.probe.open_media` does. What frames are while they are not yet pixels in
    a tensor is its own affair.
    """

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        self.job = job
        self.takes = takes

    @abstractmethod
    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, P]]:
        """The frames with these numbers (ascending, each once), each found by seeking.

        Raises: Rejected ``undecodable`` where one of them cannot be decoded.
        """

    @abstractmethod
    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, P]]:
        """The same, with nothing decoded twice and nothing sought behind what was decoded: in one
        run from the first to the last. It may give others between, and holds none that it gave."""

    @abstractmethod
    def write(self, frame: P, target: Any) -> None:
        """Write the upright RGB of a frame into a uint8 tensor of the job's shape. A frame lives
        until the next one is asked for."""

    def batch(self, numbers: Sequence[int]) -> Any | None:
        """The frames that :meth:`sought` gives as one tensor, where the library itself makes one,
        decoding nothing twice; else None."""
        return None

    def close(self) -> None:
        """Let go of the file and of what decodes it."""
