"""One long video on several cores: pieces between keyframes, decoded at the same time.

A piece begins at a keyframe, and holds the frames shown from there until the next piece's. Those
shown before a keyframe but decoded behind it (an open GOP) refer to frames on both sides: the piece
before goes on past that keyframe until it has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import av
import numpy as np

from reelmill.errors import Rejected
from reelmill.media.probe import PacketTable, Source, demux, open_media, read_packets, video_stream
from reelmill.media.scenes.contract import Clock, Measure
from reelmill.media.scenes.measures import Pairwise
from reelmill.media.scenes.scores import Piece, Scoring, clock_of, decoded

LEAST_FRAMES = 100
"""Shorter pieces are not worth a decoder of their own."""


@dataclass(frozen=True)
class _Range:
    """``frames`` frames with ``start <= pts < stop`` (None: to the end), which the ``packets`` give
    that begin with the keyframe of pts ``start``."""

    start: int
    stop: int | None
    packets: int
    frames: int


def in_ranges(
    source: Source, measures: Sequence[Measure], jobs: int
) -> tuple[Clock, list[Piece]] | None:
    """The pieces of a video, in order; None where it is better, or only possible, in one pass: the
    video is short, has no keyframes to begin at, a measure must see it whole, its pictures change
    in size, or it is damaged so that a decoder which begins in the middle does not find the same
    frames.
    """
    if jobs < 2 or not isinstance(source, str | bytes | PathLike):
        return None
    if not all(isinstance(one, Pairwise) for one in measures):
        return None
    with open_media(source) as container:
        stream = video_stream(container)
        clock = clock_of(stream)
        table = read_packets(container, [stream])[0]
    ranges = _parted(table, jobs)
    if len(ranges) < 2:
        return None
    with ThreadPoolExecutor(jobs) as pool:
        pieces = list(pool.map(lambda one: _piece(source, one, measures), ranges))
    found = [piece for piece in pieces if piece is not None]
    sizes = {piece.scoring.pairs.size for piece in found}
    return (clock, found) if len(found) == len(ranges) and len(sizes) == 1 else None


def _parted(table: PacketTable, jobs: int) -> list[_Range]:
    """At most ``jobs`` ranges of about the same length, which hold every frame once; none where
    the packets do not tell."""
    if table.hidden.any() or len(np.unique(table.pts)) < len(table):
        return []
    firsts = [0]
    for number in range(1, jobs):
        wished = max(len(table) * number // jobs, firsts[-1] + LEAST_FRAMES)
        behind = np.flatnonzero(table.keyframe[wished : len(table) - LEAST_FRAMES + 1])
        if len(behind):
            firsts.append(wished + int(behind[0]))
    starts = [int(table.pts[first]) for first in firsts]
    ranges = []
    for first, start, stop in zip(firsts, starts, [*starts[1:], None], strict=True):
        inside = table.pts >= start
        if stop is not None:
            inside &= table.pts < stop
        held = np.flatnonzero(inside)
        if held[0] < first:
            return []
        ranges.append(_Range(start, stop, int(held[-1]) + 1 - first, len(held)))
    return ranges if sum(one.frames for one in ranges) == len(table) else []


def _piece(source: Source, wanted: _Range, measures: Sequence[Measure]) -> Piece | None:
    """None where its frames are not those that were expected."""
    piece = Piece([], [], 0, Scoring(measures))
    end = 0
    try:
        with open_media(source) as container:
            stream = video_stream(container)
            for frame in _frames(container, stream, wanted):
                piece.pts.append(frame.pts)
                piece.rows.extend(piece.scoring.feed(frame))
                end = frame.pts + max(frame.duration or 0, 1)
    except (av.FFmpegError, Rejected):
        return None
    if len(piece.pts) != wanted.frames:
        return None
    return Piece(piece.pts, piece.rows, end, piece.scoring)


def _frames(container: Any, stream: Any, wanted: _Range) -> Iterator[Any]:
    for packet in _packets(container, stream, wanted):
        for frame in decoded(stream, packet):
            inside = frame.pts is not None and frame.pts >= wanted.start
            if inside and (wanted.stop is None or frame.pts < wanted.stop):
                yield frame


def _packets(container: Any, stream: Any, wanted: _Range) -> Iterator[Any]:
    """The range's packets, and None to flush the decoder."""
    container.seek(wanted.start, stream=stream)
    given = 0
    for packet in demux(container, [stream]):
        if packet.size and (given or (packet.pts == wanted.start and packet.is_keyframe)):
            yield packet
            given += 1
        if given == wanted.packets:
            break
    yield None
