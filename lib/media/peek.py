"""Limits of videos, and a look at the first bytes of a file that is refused by them.

A download of two hours is not worth its bytes if nothing longer than ten minutes is wanted, and
the header says how long it is. What the header claims is only ever used to refuse: a file that
comes through is probed as a whole, and held to the same limits by what it really is.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, cast

import av
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reelmill.errors import Rejected
from reelmill.media.probe import VideoInfo, read_header
from reelmill.units import Number, Seconds, canonical, nearest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD_BYTES: Final = 256 << 10
"""The beginning that is looked at: it holds all headers but the indexes of long MP4 files."""

MAX_TAIL: Final = 16 << 20
"""Bytes of the largest index that is asked for: that of a day of video, and of anything absurd."""

_MAX_ZEROS: Final = 1 << 20
"""Bytes that are made up in place of those not there yet, until the file seems to end."""

_MAX_BOXES: Final = 1024
_LONG: Final = b"\0\0\0\1"
"""In place of a box's length: the true one follows in 64 bits."""

_FIRST_BOXES: Final = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof"}
)
_MP4: Final = "mov,mp4,m4a,3gp,3g2,mj2"
_TELLING: Final = frozenset({_MP4, "matroska,webm", "avi"})
"""Formats whose headers state the length and the size of the picture. Of others FFmpeg guesses
them from the data, and may guess otherwise when it has all."""

_Side = Annotated[int, Field(ge=1, le=65536)]


def _is_unset(value: object) -> bool:
    return value is None or value == ()


_UNSAID = Field(exclude_if=_is_unset)
"""Left out of action keys where it is not set, so that a limit may be added to these."""


class Limits(BaseModel):
    """Which videos are wanted. All that is not set is without a limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_duration: Annotated[
        Seconds | None, Field(description="the shortest video that is taken"), _UNSAID
    ] = None
    max_duration: Annotated[
        Annotated[Seconds, Field(gt=0)] | None,
        Field(description="the longest video that is taken"),
        _UNSAID,
    ] = None
    min_side: Annotated[
        _Side | None, Field(description="pixels that the shorter side has at least"), _UNSAID
    ] = None
    max_side: Annotated[
        _Side | None, Field(description="pixels that the longer side has at most"), _UNSAID
    ] = None
    max_fps: Annotated[
        Annotated[Number, Field(gt=0)] | None,
        Field(description="frames a second at most, on average"),
        _UNSAID,
    ] = None
    codecs: Annotated[
        tuple[str, ...],
        Field(description="such as h264, hevc, vp9, av1; any if empty"),
        _UNSAID,
    ] = ()

    @field_validator("codecs")
    @classmethod
    def _known(cls, codecs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({_codec(name) for name in codecs}))

    @model_validator(mode="after")
    def _leaves_any(self) -> Limits:
        for least, most in ((self.min_duration, self.max_duration), (self.min_side, self.max_side)):
            if least is not None and most is not None and least > most:
                raise ValueError(f"no video is between {least} and {most}: the minimum is larger")
        return self

    @property
    def are_set(self) -> bool:
        """Whether there is any."""
        return bool(self.model_dump())

    def inspector(self) -> Inspector | None:
        """What can refuse a file by its first bytes; None if no file can be refused."""
        return Inspector(self) if self.are_set else None

    def check(self, info: VideoInfo) -> None:
        """Raise ``Rejected`` if a video violates a limit: ``unwanted_codec``, ``low_resolution``,
        ``high_resolution``, ``too_short``, ``too_long`` or ``high_frame_rate``, in this order."""
        self._check_picture(info)
        self._check_duration(info.duration)
        self._check_fps(info.fps)

    def check_header(self, header: VideoInfo) -> None:
        """Raise what :func:`check` would raise for the whole file, as far as its header tells."""
        if header.container not in _TELLING:
            return
        self._check_picture(header)
        # An order that is broken off where something is not known gives the same reason later.
        if header.duration:
            self._check_duration(header.duration)
            if header.container == _MP4:
                self._check_fps(header.fps)

    def _check_picture(self, info: VideoInfo) -> None:
        if self.codecs and info.codec not in self.codecs:
            wanted = ", ".join(self.codecs)
            raise Rejected("unwanted_codec", f"the video is {info.codec}, not one of {wanted}")
        low, high = sorted((info.width, info.height))
        size = f"{info.width}x{info.height} pixels"
        if self.min_side is not None and low < self.min_side:
            limit = f"less than min_side ({self.min_side})"
            raise Rejected("low_resolution", f"the shorter side of {size} is {limit}")
        if self.max_side is not None and high > self.max_side:
            limit = f"more than max_side ({self.max_side})"
            raise Rejected("high_resolution", f"the longer side of {size} is {limit}")

    def _check_duration(self, duration: Fraction) -> None:
        if self.min_duration is not None and duration < Fraction(self.min_duration):
            limit = f"less than min_duration ({canonical(self.min_duration)} s)"
            raise Rejected("too_short", f"{float(duration):.3f} s, {limit}")
        if self.max_duration is not None and duration > Fraction(self.max_duration):
            limit = f"more than max_duration ({canonical(self.max_duration)} s)"
            raise Rejected("too_long", f"{float(duration):.3f} s, {limit}")

    def _check_fps(self, fps: Fraction) -> None:
        if self.max_fps is not None and fps > Fraction(self.max_fps):
            limit = f"more than max_fps ({canonical(self.max_fps)})"
            raise Rejected("high_frame_rate", f"{float(fps):.3f} frames a second, {limit}")


def _codec(name: str) -> str:
    known = av.codecs_available
    try:
        return str(av.Codec(name, "r").canonical_name)
    except (av.codec.codec.UnknownCodecError, ValueError):
        like = nearest(name, known)
        hint = f"; did you mean {like}?" if like else "; h264, hevc, vp9 and av1 are some"
        raise ValueError(f"unknown codec {name[:40]!r}{hint}") from None


@dataclass(slots=True)
class Inspector:
    """Refuses files that violate limits by what their headers say; lets all others come."""

    limits: Limits
    head_bytes: int = HEAD_BYTES

    def __call__(
        self, head: bytes, size: int | None, tail: tuple[int, bytes] | None
    ) -> tuple[int, int] | None:
        """Judge a file by its beginning.

        Args:
            head: the first ``head_bytes`` bytes, or all there are.
            size: of the whole file in bytes, if known.
            tail: the bytes that an earlier call asked for, and where they begin.

        Returns:
            the range of bytes (start, end) that tells more, such as the index at the end of an
            MP4 file; ``None`` if nothing can be known, or all is well.

        Raises:
            Rejected: the file violates a limit; with the reasons of :func:`Limits.check`.
        """
        parts = _Parts(head, size, tail)
        if head[4:8] in _FIRST_BOXES:
            moov = _find_moov(parts)
            if moov is None:
                return None
            data = parts.take(*moov)
            if data is None:
                return _wish(parts, *moov) if tail is None else None
            # Fragments come one after another, and none of them knows how many there are.
            if b"mvex" in data:
                return None
        elif size is None:
            # What FFmpeg makes of other formats may depend on where the file ends.
            return None
        try:
            header = read_header(cast(BinaryIO, parts))
        except Exception:
            # A stranger's bytes. What is wrong with them is for the full probe to say.
            return None
        self.limits.check_header(header)
        return None

    def judge(self, file: BinaryIO, size: int) -> None:
        """Judge a whole file, of ``size`` bytes, as if it were still arriving.

        A damaged file may be refused for other reasons by its header than by all of it. Which
        counts is then no matter of what the server could send early.

        Raises:
            Rejected: as above.
        """
        if size <= self.head_bytes:
            return
        head = file.read(self.head_bytes)
        if (wanted := self(head, size, None)) is not None:
            start, end = wanted
            file.seek(start)
            self(head, size, (start, file.read(end - start)))


def _find_moov(parts: _Parts) -> tuple[int, int] | None:
    """Where the index of an MP4 file lies: its first byte and the one behind its last.

    If it can only be in what is not there yet, all of that. None if there is none, if fragments
    come before it, or if the boxes make no sense.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        header = parts.take(at, at + 16) or parts.take(at, at + 8)
        if header is None or (header[:4] == _LONG and len(header) < 16):
            return (at, parts.size) if parts.is_sized else None
        length, least = int.from_bytes(header[:4]), 8
        if header[:4] == _LONG:
            length, least = int.from_bytes(header[8:16]), 16
        elif length == 0 and parts.is_sized:
            length = parts.size - at
        if length < least or header[4:8] == b"moof":
            return None
        if header[4:8] == b"moov":
            return at, at + length
        at += length
        if at >= parts.size:
            return None
    return None


def _wish(parts: _Parts, start: int, end: int) -> tuple[int, int] | None:
    start = max(start, parts.head_size)
    return (start, end) if start < end <= parts.size and end - start <= MAX_TAIL else None


class _Parts(io.RawIOBase):
    """A file of which the beginning and perhaps one other part are there; zeros stand for the rest.

    It pretends to end where too many zeros have been read.
    """

    def __init__(self, head: bytes, size: int | None, tail: tuple[int, bytes] | None) -> None:
        super().__init__()
        start, data = tail or (0, b"")
        self._known = ((0, memoryview(head)), (start, memoryview(data)))
        self.head_size = len(head)
        self.is_sized = size is not None
        self.size = max(len(head), start + len(data), size or 0)
        self._at = 0
        self._zeros = _MAX_ZEROS

    def take(self, start: int, end: int) -> bytes | None:
        """The bytes from ``start`` to ``end``; None if not all of them are there."""
        taken = bytearray()
        while start < end:
            piece = self._piece(start)[: end - start]
            if not piece:
                return None
            taken += piece
            start += len(piece)
        return bytes(taken)

    def _piece(self, at: int) -> memoryview:
        """What is there in one piece from ``at`` on; empty if nothing is."""
        for start, data in self._known:
            if start <= at < start + len(data):
                return data[at - start :]
        return memoryview(b"")

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")[: max(0, self.size - self._at)]
        piece = self._piece(self._at)[: len(into)]
        if into and not piece:
            ahead = min((s for s, _ in self._known if s > self._at), default=self.size)
            piece = memoryview(bytes(min(len(into), ahead - self._at, self._zeros)))
            self._zeros -= len(piece)
        into[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
