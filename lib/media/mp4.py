"""The sample tables of an MP4 or MOV file: every packet's times without reading a packet.

A table that leaves room for doubt (fragments, several edits, groups of samples) is left to
FFmpeg, which reads the packets themselves.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reelmill.media.torn import top_boxes

Ints: TypeAlias = NDArray[np.int64]

MAX_INDEX = 16 << 20
"""Bytes of the largest index that is read: that of a day of video."""

_MAX_BOXES = 1024
"""In one box; no file has reason to hold more."""

_MOST_BOXES = 2**22
"""In a whole file: those of a fragment for each frame, through half a day."""

_PARENTS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"udta", b"cmov")
)
_DEPTH = 8
_OF_EACH = 0xF00
"""Flags of a ``trun``: it holds the duration, size, flags or offset of each of its samples."""

_LONGEST_STEP = 2**31 - 1
"""A longer step between two samples, in ticks, is a negative one that was written as positive."""

_UNITY = 0x00010000
_UPRIGHT = b"".join(n.to_bytes(4) for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
"""The matrix that turns nothing."""

_GROUPS = (b"rap ", b"sync")
"""Groups of samples from which FFmpeg makes further keyframes."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A track's samples in decode order, in ticks of ``timescale``, as its tables state them:
    before FFmpeg shifts them, so that what an edit list shows begins where that says.
    ``description`` is the content of the ``stsd`` box, which tells how they are coded; ``picture``
    are the matrix and the size at the end of the track's header."""

    timescale: int
    pts: Ints
    dts: Ints
    duration: Ints
    size: Ints
    keyframe: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    description: bytes
    picture: bytes

    @property
    def format(self) -> bytes | None:
        """The code of the samples' format, such as ``avc1``; None where there are several."""
        return self.description[12:16] if self.description[4:8] == b"\0\0\0\1" else None


class _Doubtful(Exception):  # noqa: N818 - no error: another way is taken
    """The tables do not tell everything, or contradict each other."""


def read_samples(file: BinaryIO, size: int, track: int) -> Samples | None:
    """What the index of a file of ``size`` bytes says of the track with the ID ``track``; None
    where that leaves room for doubt, or there is no such index."""
    try:
        moov = _moov(file, size)
        return _samples(moov, track) if moov is not None else None
    except (_Doubtful, IndexError, ValueError):
        # IndexError, ValueError: a box that is shorter than what it should hold.
        return None


def names_too_many(file: BinaryIO, size: int, limit: int | None = None) -> bool:
    """Whether a file of ``size`` bytes names more samples than it has bytes (or than ``limit``), or
    has boxes without end: FFmpeg would make an entry of its index, of 24 bytes, for each. A few
    bytes can name any number of samples of one size."""
    limit = size if limit is None else limit
    named, track = 0, _Named()
    try:
        for kind, start, end in _nested(file, 0, size, _DEPTH, iter(range(_MOST_BOXES))):
            if kind == b"trak":
                named, track = named + track.count, _Named()
            elif kind == b"cmvd" and names_too_many(*_unpacked(file, start, end), limit=size):
                return True
            elif kind in (b"hdlr", b"stsz", b"stts", b"trun"):
                file.seek(start)
                track.take(kind, file.read(min(16, end - start)).ljust(16, b"\0"))
    except _Doubtful:
        return True
    return named + track.count > limit


def _unpacked(file: BinaryIO, start: int, end: int) -> tuple[BinaryIO, int]:
    """What a compressed header holds, as a file, and its size. Raises ``_Doubtful`` where that is
    too large to be looked through, or broken."""
    file.seek(start + 4)
    packed = zlib.decompressobj()
    try:
        header = packed.decompress(file.read(min(end - start, MAX_INDEX)), MAX_INDEX)
    except zlib.error:
        raise _Doubtful from None
    if packed.unconsumed_tail:
        raise _Doubtful
    return io.BytesIO(header), len(header)


class _Named:
    """How many samples a track's tables, and fragments, name without a word of each."""

    def __init__(self) -> None:
        self._handlers: set[bytes] = set()
        self._steps: list[tuple[int, int]] = []
        self._of_table = self._of_fragments = 0

    def take(self, kind: bytes, content: bytes) -> None:
        """The first bytes of a box."""
        first, second = int.from_bytes(content[4:8]), int.from_bytes(content[8:12])
        if kind == b"hdlr":
            self._handlers.add(content[8:12])
        elif kind == b"stts":
            self._steps.append((first, int.from_bytes(content[12:16])))
        elif kind == b"stsz":
            self._of_table += second if first else 0
        elif not int.from_bytes(content[1:4]) & _OF_EACH:
            self._of_fragments += first

    @property
    def count(self) -> int:
        """Those that FFmpeg lists one by one: of sound with a tick for each sample (PCM, and what
        QuickTime counts as PCM) it lists chunks."""
        is_sound = b"soun" in self._handlers and b"vide" not in self._handlers
        is_chunked = is_sound and self._steps == [(1, 1)]
        return self._of_fragments + (0 if is_chunked else self._of_table)


def _nested(
    file: BinaryIO, start: int, stop: int, depth: int, budget: Iterator[int]
) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two places of a file, each before those in it: type, and its content's
    start and end."""
    at = start
    while at + 8 <= stop:
        if next(budget, None) is None:
            raise _Doubtful
        file.seek(at)
        header = file.read(16)
        length, begin = int.from_bytes(header[:4]), at + 8
        if length == 1:
            length, begin = int.from_bytes(header[8:16]), at + 16
        elif length == 0:
            length = stop - at
        if length < 8:
            return
        kind, end = header[4:8], min(at + length, stop)
        yield kind, begin, end
        if kind in _PARENTS and depth:
            yield from _nested(file, begin, end, depth - 1, budget)
        at += length


def _moov(file: BinaryIO, size: int) -> memoryview | None:
    for kind, start, end in top_boxes(file, size):
        if kind == b"moov":
            if end - start > MAX_INDEX or end > size:
                return None
            file.seek(start + 8)
            return memoryview(file.read(end - start - 8))
    return None


def _samples(moov: memoryview, track: int) -> Samples:
    top = _children(moov)
    if b"mvex" in top:
        raise _Doubtful
    movie_scale = _timescale(_only(top, b"mvhd"))
    parts = next((p for p in map(_children, top.get(b"trak", ())) if _is_track(p, track)), None)
    if parts is None:
        raise _Doubtful
    media = _children(_only(parts, b"mdia"))
    timescale = _timescale(_only(media, b"mdhd"))
    tables = _children(_only(_children(_only(media, b"minf")), b"stbl"))
    if b"stps" in tables or any(bytes(box[4:8]) in _GROUPS for box in tables.get(b"sbgp", ())):
        raise _Doubtful

    sizes = _sizes(_only(tables, b"stsz"))
    count = len(sizes)
    duration = _run_lengths(_only(tables, b"stts"), count)
    if duration.max(initial=0) > _LONGEST_STEP or not movie_scale or not count:
        raise _Doubtful
    offset = np.zeros(count, dtype=np.int64)
    if b"ctts" in tables:
        # FFmpeg takes offsets as signed whatever the version says, as many muxers mean them.
        offset = _run_lengths(_only(tables, b"ctts"), count).astype(np.int32).astype(np.int64)
    at = np.cumsum(duration) - duration
    pts = at + offset
    return Samples(
        timescale,
        pts=pts,
        # Decoding must come before showing, also where offsets are negative.
        dts=at - max(0, -int(offset.min())),
        duration=duration,
        size=sizes,
        keyframe=_keyframes(tables, count),
        hidden=_hidden(parts, pts, timescale, movie_scale),
        description=bytes(_only(tables, b"stsd")),
        picture=_picture(_only(parts, b"tkhd"), _only(top, b"mvhd")),
    )


def _children(data: memoryview) -> dict[bytes, list[memoryview]]:
    """The contents of the boxes that ``data`` consist of, by type."""
    found: dict[bytes, list[memoryview]] = {}
    for kind, content in _boxes(data):
        found.setdefault(kind, []).append(content)
    return found


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            return
        length = _u32(data, at)
        if length < 8 or at + length > len(data):
            raise _Doubtful
        yield bytes(data[at + 4 : at + 8]), data[at + 8 : at + length]
        at += length
    raise _Doubtful


def _only(boxes: dict[bytes, list[memoryview]], kind: bytes) -> memoryview:
    found = boxes.get(kind, [])
    if len(found) != 1 or not len(found[0]):
        raise _Doubtful
    return found[0]


def _is_track(parts: dict[bytes, list[memoryview]], track: int) -> bool:
    header = _only(parts, b"tkhd")
    return _u32(header, 20 if header[0] else 12) == track


def _picture(track: memoryview, movie: memoryview) -> bytes:
    """The matrix and the size in a track's header; empty where the movie turns pictures, too."""
    turned = movie[48:84] if movie[0] else movie[36:72]
    found = track[52:] if track[0] else track[40:]
    return bytes(found) if bytes(turned) == _UPRIGHT and len(found) == 44 else b""


def _timescale(header: memoryview) -> int:
    """Ticks a second, from a box whose times take 64 bits where its version is 1."""
    return _u32(header, 20 if header[0] else 12)


def _sizes(box: memoryview) -> Ints:
    each, count = _u32(box, 4), _u32(box, 8)
    if each:
        # So many samples of one size need not be in the file; no encoded video has such.
        raise _Doubtful
    sizes = _words(box, 12, count)
    if not sizes.all():
        # Samples without data are no packets.
        raise _Doubtful
    return sizes


def _run_lengths(box: memoryview, count: int) -> Ints:
    """The values of a table of (how often, value), as many as there are samples."""
    runs = _words(box, 8, 2 * _u32(box, 4)).reshape(-1, 2)
    if runs[:, 0].sum() != count:
        raise _Doubtful
    return np.repeat(runs[:, 1], runs[:, 0])


def _keyframes(tables: dict[bytes, list[memoryview]], count: int) -> NDArray[np.bool_]:
    if b"stss" not in tables:
        return np.ones(count, dtype=bool)
    box = _only(tables, b"stss")
    numbers = _words(box, 8, _u32(box, 4))
    if not len(numbers) or numbers[0] < 1 or numbers[-1] > count or (np.diff(numbers) < 1).any():
        raise _Doubtful
    keyframe = np.zeros(count, dtype=bool)
    keyframe[numbers - 1] = True
    return keyframe


def _hidden(
    parts: dict[bytes, list[memoryview]], pts: Ints, timescale: int, movie_scale: int
) -> NDArray[np.bool_]:
    """Which samples come before what the edit list shows. It may also begin with a pause."""
    if b"edts" not in parts:
        return np.zeros(len(pts), dtype=bool)
    edits = _edits(_only(_children(_only(parts, b"edts")), b"elst"))
    if len(edits) == 2 and edits[0][1] == -1:
        del edits[0]
    if len(edits) != 1:
        raise _Doubtful
    length, start, rate = edits[0]
    end = start + (length * timescale + movie_scale // 2) // movie_scale
    if start < 0 or rate != _UNITY or not length or int(pts.max()) >= end:
        raise _Doubtful
    return pts < start


def _edits(box: memoryview) -> list[tuple[int, int, int]]:
    """Entries of an edit list: length in ticks of the movie, start in those of the media, rate."""
    width, count = (8 if box[0] else 4), _u32(box, 4)
    if count > 2:
        raise _Doubtful
    edits = []
    for at in range(8, 8 + count * (2 * width + 4), 2 * width + 4):
        length = int.from_bytes(box[at : at + width])
        start = int.from_bytes(box[at + width : at + 2 * width], signed=True)
        edits.append((length, start, _u32(box, at + 2 * width)))
    return edits


def _u32(data: memoryview, at: int) -> int:
    if at + 4 > len(data):
        raise _Doubtful
    return int.from_bytes(data[at : at + 4])


def _words(box: memoryview, at: int, count: int) -> Ints:
    if at + 4 * count > len(box):
        raise _Doubtful
    return np.frombuffer(box, dtype=">u4", count=count, offset=at).astype(np.int64)
