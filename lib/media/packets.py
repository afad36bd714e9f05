"""The packets of a stream: their times, by the index of an MP4 file or by demuxing."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media import mp4
from reelmill.media.torn import head_of

MAX_PACKETS = 2**24
"""A stream of more packets is refused: it is none of a video, and its table would not fit."""

_LAST_TICK = 2**63 - 1


@dataclass(frozen=True, eq=False)
class PacketTable:
    """One stream's packets in decode order, as arrays of one length: int64 ``pts``, ``dts`` and
    ``duration`` in units of ``time_base``; bool ``keyframe``, and ``hidden`` for packets that are
    decoded but, by the container's edit list, not shown. ``unstamped`` packets had neither pts nor
    dts; all together have ``size_bytes``."""

    time_base: Fraction
    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    duration: NDArray[np.int64]
    keyframe: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    unstamped: int
    size_bytes: int

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def cut_points(self) -> NDArray[np.int64]:
        """Where the stream may be cut without decoding: see :func:`cut_points`."""
        return cut_points(self.pts, self.keyframe)

    @property
    def is_reordered(self) -> bool:
        """Whether some are shown in another order than they are decoded in."""
        return bool((np.diff(self.pts) < 0).any())

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """The pts of the shown frames in presentation order, shape ``(frames,)``."""
        return np.sort(self.pts[~self.hidden])

    @cached_property
    def end_pts(self) -> int:
        """Where the last shown frame ends; a tick behind its pts where its duration is unknown, so
        that it lies before the end."""
        ends = (self.pts + np.maximum(self.duration, 1))[~self.hidden]
        return int(ends.max()) if len(ends) else 0


def cut_points(pts: NDArray[np.int64], keyframe: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices, in decode order, of keyframes that part a stream into two independent halves.

    At such an index every earlier packet is shown before the keyframe, and every later one at or
    after it: the keyframe begins a closed GOP. A keyframe with leading pictures (open GOP) is none.
    """
    if not len(pts):
        return np.empty(0, dtype=np.int64)
    before = np.concatenate(([np.iinfo(np.int64).min], np.maximum.accumulate(pts)[:-1]))
    after = np.minimum.accumulate(pts[::-1])[::-1]
    return np.flatnonzero(keyframe & (before < pts) & (after == pts)).astype(np.int64)


def read_packets(container: Any, streams: list[Any]) -> list[PacketTable]:
    """One table for each of the container's ``streams``, in one pass from where it stands.

    A missing pts or dts is filled in from the other, or from the packet before. Raises
    :class:`~reelmill.errors.Rejected` (``undecodable``) where the first stream shows no frame.
    """
    rows = {stream.index: PacketRows() for stream in streams}
    for packet in demux(container, streams):
        if packet.size:
            rows[packet.stream_index].add(packet)
    tables = [rows.pop(one.index).table(Fraction(one.time_base)) for one in streams]
    return [with_frames(tables[0]), *tables[1:]]


def with_frames(table: PacketTable) -> PacketTable:
    """The same table. Raises Rejected ``undecodable`` where it shows no frame."""
    if table.hidden.all():
        raise Rejected("undecodable", "the video stream has no frames")
    return table


class PacketRows:
    """The packets of one stream, gathered one by one as they are read."""

    def __init__(self) -> None:
        self.times = array("q")
        self.flags = bytearray()
        self.unstamped = 0
        self.size_bytes = 0
        self._next = 0

    def add(self, packet: Any) -> None:
        """Take a packet that has data. A missing pts or dts is filled in from the other, or from
        the packet before. Raises Rejected ``undecodable`` beyond ``MAX_PACKETS``."""
        pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
        if dts is None:
            self.unstamped += pts is None
            dts = self._next if pts is None else pts
        if len(self.flags) == MAX_PACKETS:
            raise Rejected("undecodable", f"the stream has more than {MAX_PACKETS} packets")
        self._next = min(dts + max(duration, 1), _LAST_TICK)
        self.times.extend((dts if pts is None else pts, dts, duration))
        self.flags.append(packet.is_keyframe | packet.is_discard << 1)
        self.size_bytes += packet.size

    def table(self, time_base: Fraction) -> PacketTable:
        """All packets so far."""
        pts, dts, duration = np.array(self.times, dtype=np.int64).reshape(-1, 3).T.copy()
        flags = np.frombuffer(bytes(self.flags), dtype=np.uint8)
        return PacketTable(
            time_base,
            pts,
            dts,
            duration,
            keyframe=(flags & 1).astype(bool),
            hidden=(flags & 2).astype(bool),
            unstamped=self.unstamped,
            size_bytes=self.size_bytes,
        )


def demux(container: Any, streams: list[Any]) -> Iterator[Any]:
    """The packets of ``streams``, and an empty one of each at the end, to flush its decoder.

    Where demuxing fails the data end, for every reader alike: what came before can be used.
    """
    # PyAV stumbles (IndexError) behind the last packet if a stream has appeared since it opened.
    with suppress(av.FFmpegError, IndexError):
        yield from container.demux(streams)


@dataclass(frozen=True, eq=False)
class Laid:
    """Where an MP4 file holds the packets of a table: int64 ``offset`` and ``size`` in bytes; and
    what its index says of them as a whole: see :class:`~reelmill.media.mp4.Samples`."""

    timescale: int
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    format: bytes | None
    description: bytes
    picture: bytes


def indexed_packets(file: BinaryIO, size: int, stream: Any) -> PacketTable | None:
    """The packets of a stream by the index of an MP4 file; None where it does not tell them all,
    or FFmpeg makes something else of it. Leaves ``file``, which FFmpeg reads, where it was."""
    found = laid_packets(file, size, stream)
    return None if found is None else found[0]


def laid_packets(file: BinaryIO, size: int, stream: Any) -> tuple[PacketTable, Laid] | None:
    """The same, and where they lie."""
    at = file.tell()
    try:
        return _from_index(file, size, stream)
    finally:
        file.seek(at)


def _from_index(file: BinaryIO, size: int, stream: Any) -> tuple[PacketTable, Laid] | None:
    entries = stream.index_entries
    if not len(entries) or head_of(file)[4:8] != b"ftyp":
        return None
    found = mp4.read_samples(file, size, stream.id)
    if found is None or len(entries) != len(found.pts) or found.hidden.all():
        return None
    base = Fraction(stream.time_base)
    # What edit lists, and offsets between decoding and showing, shift all times by.
    shift = entries[0].timestamp - int(found.dts[0])
    # One number after the other: tuples of them would take ten times the memory of the table.
    told = (n for e in entries for n in (e.timestamp, e.size, e.flags & 3, e.pos))
    said = np.fromiter(told, np.int64, 4 * len(entries)).reshape(-1, 4)
    ours = np.stack((found.dts + shift, found.size, found.keyframe + 2 * found.hidden), axis=1)
    if base != Fraction(1, found.timescale) or not np.array_equal(said[:, :3], ours):
        return None
    table = PacketTable(
        base,
        found.pts + shift,
        found.dts + shift,
        found.duration,
        found.keyframe,
        found.hidden,
        unstamped=0,
        size_bytes=int(found.size.sum()),
    )
    laid = Laid(
        found.timescale,
        said[:, 3].copy(),
        found.size,
        found.format,
        found.description,
        found.picture,
    )
    return table, laid
