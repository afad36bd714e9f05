"""Write an MP4 file of samples that lie in another, by tables alone: no sample is looked at.

The samples keep the order in which they lie, so that most of a clip is a single read. The index
comes first, as players over HTTP want it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np

from reelmill.media.mp4 import Ints
from reelmill.media.packets import Laid, PacketTable

_BLOCK = 4 << 20
"""Bytes that are read at a time."""

_LARGEST = 2**31
"""Bytes, and ticks, that the 32-bit fields of an index may hold: room is left for the index."""

_MATRIX = b"".join(n.to_bytes(4) for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
_UND = (0x55C4).to_bytes(2)
"""The language "undetermined", in 5 bits a letter."""

_HANDLERS = {
    "video": (b"vide", b"VideoHandler", (b"vmhd", b"\0\0\0\1" + bytes(8))),
    "audio": (b"soun", b"SoundHandler", (b"smhd", bytes(8))),
}


@dataclass(frozen=True)
class Part:
    """Packets ``begin`` to ``stop`` of a stream, on a clock that is 0 at ``origin``; ``dts`` are
    those of the packets, on the stream's own clock. ``kind`` is ``video`` or ``audio``."""

    kind: str
    table: PacketTable
    laid: Laid
    begin: int
    stop: int
    origin: int
    dts: Ints

    @cached_property
    def pts(self) -> Ints:
        return self.table.pts[self.begin : self.stop]

    @property
    def offset(self) -> Ints:
        return self.laid.offset[self.begin : self.stop]

    @property
    def size(self) -> Ints:
        return self.laid.size[self.begin : self.stop]

    @cached_property
    def steps(self) -> Ints:
        """What passes from each packet's dts to the next one's."""
        steps = self.table.duration[self.begin : self.stop].copy()
        np.subtract(self.dts[1:], self.dts[:-1], out=steps[:-1])
        return steps

    @cached_property
    def length(self) -> int:
        """Ticks from the beginning of the clip's clock to the end of the last packet."""
        ends = self.pts + np.maximum(self.table.duration[self.begin : self.stop], 1)
        return int(ends.max()) - self.origin


def can_write(parts: Sequence[Part]) -> bool:
    """Whether an index of these parts is a plain one: times that rise, and all of it in 32 bits."""
    if sum(int(part.size.sum()) for part in parts) >= _LARGEST:
        return False
    scale = max(part.laid.timescale for part in parts)
    return all(
        (part.steps[:-1] > 0).all()
        and part.steps[-1] >= 0
        and int(part.dts[-1] - part.dts[0]) < _LARGEST
        and 0 < part.length * scale // part.laid.timescale < _LARGEST
        and int((part.pts - part.dts).max()) < _LARGEST
        for part in parts
    )


def write_mp4(path: Path, source: int, parts: Sequence[Part]) -> int:
    """Write the samples of ``parts`` (video first), which lie in the open file ``source``, and say
    how many bytes the file has. Raises ``OSError`` where that cannot be written or read."""
    offset = np.concatenate([part.offset for part in parts])
    order = np.argsort(offset)
    offset = offset[order]
    size = np.concatenate([part.size for part in parts])[order]
    owner = np.repeat(np.arange(len(parts)), [part.stop - part.begin for part in parts])[order]
    head = _head(parts, size, owner)
    # Neighbours lie as far from where they would if all were one run.
    runs, _ = _runs(offset - (np.cumsum(size) - size))
    lengths = np.add.reduceat(size, runs)
    with path.open("wb", buffering=0) as file:
        waiting, held = [head], len(head)
        for data in _read(source, offset[runs].tolist(), lengths.tolist()):
            waiting.append(data)
            held += len(data)
            if held >= _BLOCK:
                _write(file.fileno(), b"".join(waiting))
                waiting, held = [], 0
        _write(file.fileno(), b"".join(waiting))
    return len(head) + int(size.sum())


def _read(source: int, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[bytes]:
    for begin, length in zip(offsets, lengths, strict=True):
        for at in range(begin, begin + length, _BLOCK):
            wanted = min(_BLOCK, begin + length - at)
            data = os.pread(source, wanted, at)
            if len(data) < wanted:
                raise OSError("the source has become shorter while it was read")
            yield data


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _head(parts: Sequence[Part], size: Ints, owner: Ints) -> bytes:
    """All that comes before the samples, which have these sizes and parts in the file's order."""
    brands = _box(b"ftyp", b"isom", (0x200).to_bytes(4), b"isomiso2avc1mp41")
    # A chunk is a run of one part's samples.
    firsts, owners = _runs(owner)
    counts = _lengths(firsts, len(owner))
    places = (np.cumsum(size) - size)[firsts]
    scale = parts[-1].laid.timescale
    tracks, chunks = [], []
    for number, part in enumerate(parts):
        own = owners == number
        chunks.append(places[own])
        tables = _tables(part, counts[own]) + _full(b"stco", _words(chunks[-1][:, None]))
        tracks.append(_track(number + 1, part, tables, scale))
    movie = _movie_header(parts, scale)
    begin = len(brands) + 8 + len(movie) + sum(map(len, tracks)) + 8
    # Where chunks lie is known only now; a track's box ends with that.
    placed = [
        track[: -4 * len(at)] + (at + begin).astype(">u4").tobytes()
        for track, at in zip(tracks, chunks, strict=True)
    ]
    mdat = (8 + int(size.sum())).to_bytes(4) + b"mdat"
    return brands + _box(b"moov", movie, *placed) + mdat


def _movie_header(parts: Sequence[Part], scale: int) -> bytes:
    length = max(_scaled(part.length, part, scale) for part in parts)
    fields = bytes(8) + scale.to_bytes(4) + length.to_bytes(4)
    sound = (1 << 16).to_bytes(4) + (1 << 8).to_bytes(2)
    return _full(b"mvhd", fields, sound, bytes(10), _MATRIX, bytes(24), (9).to_bytes(4))


def _track(number: int, part: Part, tables: bytes, scale: int) -> bytes:
    handler, name, header = _HANDLERS[part.kind]
    length = _scaled(part.length, part, scale).to_bytes(4)
    volume = (0x100 if part.kind == "audio" else 0).to_bytes(2)
    shown = bytes(8) + number.to_bytes(4) + bytes(4) + length + bytes(12) + volume + bytes(2)
    media = bytes(8) + part.laid.timescale.to_bytes(4) + int(part.steps.sum()).to_bytes(4)
    here = _full(b"dref", (1).to_bytes(4), _box(b"url ", b"\0\0\0\1"))
    return _box(
        b"trak",
        _box(b"tkhd", b"\0\0\0\3", shown, part.laid.picture),
        _box(b"edts", _full(b"elst", _edits(part, scale))),
        _box(
            b"mdia",
            _full(b"mdhd", media, _UND, bytes(2)),
            _full(b"hdlr", bytes(4), handler, bytes(12), name, b"\0"),
            _box(b"minf", _box(*header), _box(b"dinf", here), _box(b"stbl", tables)),
        ),
    )


def _edits(part: Part, scale: int) -> bytes:
    """That the part begins with its first packet to be shown, and when: sound may begin late."""
    first = max(int(part.pts.min()), part.origin)
    late = (first - part.origin) * scale // part.laid.timescale
    length = _scaled(part.length - (first - part.origin), part, scale)
    rate = (1 << 16).to_bytes(4)
    edits = [length.to_bytes(4) + (first - int(part.dts[0])).to_bytes(4) + rate]
    if late:
        edits.insert(0, late.to_bytes(4) + b"\xff" * 4 + rate)
    return len(edits).to_bytes(4) + b"".join(edits)


def _scaled(ticks: int, part: Part, scale: int) -> int:
    """Ticks of the movie for those of a part, rounded up so that its last frame is within."""
    return ceil(ticks * scale / part.laid.timescale)


def _tables(part: Part, counts: Ints) -> bytes:
    """The contents of a ``stbl`` box, but for where chunks lie; these hold so many samples."""
    offsets = part.pts - part.dts
    keyframes = np.flatnonzero(part.table.keyframe[part.begin : part.stop])
    firsts, each = _runs(counts)
    chunks = _columns(firsts + 1, each, np.ones_like(each))
    boxes = [_box(b"stsd", part.laid.description), _lasting(b"stts", part.steps)]
    if part.kind == "video" and len(keyframes) < part.stop - part.begin:
        boxes.append(_full(b"stss", _words(keyframes[:, None] + 1)))
    if offsets.any():
        boxes.append(_lasting(b"ctts", offsets))
    boxes.append(_full(b"stsc", _words(chunks)))
    boxes.append(_full(b"stsz", bytes(4), _words(part.size[:, None])))
    return b"".join(boxes)


def _lasting(kind: bytes, values: Ints) -> bytes:
    """A table of (how often, value)."""
    firsts, each = _runs(values)
    return _full(kind, _words(_columns(_lengths(firsts, len(values)), each)))


def _runs(values: Ints) -> tuple[Ints, Ints]:
    """Where runs of equal values begin, and the values."""
    begins = np.empty(len(values), dtype=bool)
    begins[0] = True
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    firsts = begins.nonzero()[0]
    return firsts, values[firsts]


def _lengths(firsts: Ints, count: int) -> Ints:
    """How long the runs are that begin at ``firsts`` among ``count`` values."""
    lengths = np.empty_like(firsts)
    np.subtract(firsts[1:], firsts[:-1], out=lengths[:-1])
    lengths[-1] = count - firsts[-1]
    return lengths


def _columns(*columns: Ints) -> Ints:
    rows = np.empty((len(columns[0]), len(columns)), dtype=np.int64)
    for place, column in enumerate(columns):
        rows[:, place] = column
    return rows


def _words(rows: Ints) -> bytes:
    return len(rows).to_bytes(4) + rows.astype(">u4").tobytes()


def _full(kind: bytes, *parts: bytes) -> bytes:
    """A box of version 0 without flags."""
    return _box(kind, bytes(4), *parts)


def _box(kind: bytes, *parts: bytes) -> bytes:
    return (8 + sum(map(len, parts))).to_bytes(4) + kind + b"".join(parts)
