"""What a reader knows of a video before it decodes: its frames, their times, and how they lie."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.loading.readers.base import VideoMetadata
from reelmill.media.decode import frames, pixel_shape
from reelmill.media.packets import PacketTable, demux
from reelmill.media.probe import (
    Source,
    check_clear,
    first_frame,
    open_media,
    open_plain,
    video_stream,
)
from reelmill.media.shown import Shown, shown_by_decoding, shown_by_packets

_ROUNDED: Final = Fraction(1, 10**9)
"""Seconds by which a time may lie beside a tick and still mean it: floats cannot hold most."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one look at a video finds.

    ``width`` and ``height`` are of frames as they are stored, which are upright after so many
    ``turns`` of 90° counterclockwise; ``interlaced`` tells whether the first one is. ``formats``
    are FFmpeg's names of the container; ``stream`` is the number of the video stream in the file,
    ``place`` that among its video streams, and ``start`` the time at which it says that it begins,
    in ticks.
    """

    shown: Shown
    width: int
    height: int
    turns: int
    interlaced: bool
    codec: str
    formats: frozenset[str]
    stream: int
    place: int
    start: int

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of frames as they are given out."""
        size = self.height, self.width
        return size[::-1] if self.turns % 2 else size

    @property
    def metadata(self) -> VideoMetadata:
        there = self.shown
        height, width = self.upright
        base = there.time_base
        return VideoMetadata(
            num_frames=len(there),
            width=width,
            height=height,
            begin_seconds=_seconds(int(there.pts[0]), base),
            end_seconds=_seconds(there.end, base),
            average_fps=float(len(there) / there.seconds),
            codec=self.codec,
        )

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """When frames begin, and the last one ends, in ticks."""
        return np.append(self.shown.pts, self.shown.end)

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        """The numbers of the keyframes."""
        return np.flatnonzero(self.shown.keyframe).astype(np.int64)

    def times(self, numbers: list[int]) -> tuple[Any, Any]:
        """Two float64 arrays, in seconds: when these frames begin, and how long they are shown."""
        at = np.asarray(numbers, dtype=np.int64)
        base = self.shown.time_base
        over, under = float(base.numerator), float(base.denominator)
        begin, end = self._bounds[at], self._bounds[at + 1]
        return begin * over / under, (end - begin) * over / under

    def number_at(self, seconds: float) -> int:
        """The number of the frame that is shown at a time: of the last that begins then or before.

        Raises: IndexError where none is.
        """
        there, base = self.shown, self.shown.time_base
        if math.isfinite(seconds):
            exact = Fraction(seconds) / base
            nearest = round(exact)
            is_rounded = abs(exact - nearest) * base < _ROUNDED
            ticks = nearest if is_rounded else math.floor(exact)
            if there.pts[0] <= ticks < there.end:
                return int(np.searchsorted(there.pts, ticks, side="right")) - 1
        one = self.metadata
        raise IndexError(
            f"no frame is shown at {seconds} s: the video lasts from {one.begin_seconds:g} s to "
            f"{one.end_seconds:g} s"
        )

    def number_of(self, pts: int) -> int | None:
        """The number of the frame that begins at ``pts``; None where none does."""
        at = int(np.searchsorted(self.shown.pts, pts))
        return at if at < len(self) and self.shown.pts[at] == pts else None

    def key_before(self, number: int) -> int:
        """The number of the keyframe from which on all must be decoded to have a frame; 0, for the
        beginning of the file, where that is not told."""
        at = int(np.searchsorted(self._keys, number, side="right"))
        return int(self._keys[at - 1]) if self.shown.packets is not None and at else 0

    def pts_of(self, seconds: float) -> int:
        """The tick that is nearest to a time."""
        base = self.shown.time_base
        return round(seconds * base.denominator / base.numerator)


def _seconds(ticks: int, base: Fraction) -> float:
    return ticks * base.numerator / base.denominator


def look_at(source: Source) -> Look:
    """What a reader needs to know of ``source``. One frame is decoded, or all of them where the
    packets do not tell which are shown. Raises as :func:`~reelmill.media.shown.shown` does."""
    return _by_header(source) or _by_probing(source)


def _by_header(source: Source) -> Look | None:
    """The same of an MP4 file whose header tells all; None of others. FFmpeg opens a file by
    decoding the beginning of each stream, which takes longer than all else."""
    with suppress(Rejected), open_plain(source) as plain:
        if plain is not None:
            container, _ = plain
            stream = video_stream(container)
            there = shown_by_packets(source, container, stream)
            # Where no picture was moved, it takes a decoder to know whether some should have been.
            if there is not None and there.packets is not None and there.packets.is_reordered:
                frame = _keyframe(container, stream, there.packets)
                if frame is not None:
                    # What pixels are shaped like may be known by the decoder alone.
                    there = replace(there, shape=pixel_shape(stream))
                    return _look(container, stream, there, frame)
    return None


def _by_probing(source: Source) -> Look:
    with open_media(source) as container:
        stream = video_stream(container)
        there = shown_by_packets(source, container, stream)
        if there is None or there.packets is None:
            frame = next(frames(source), None)
        else:
            frame = _keyframe(container, stream, there.packets)
            if frame is None:
                # An edit list hides it: then one that is shown, which may need it all the same.
                container.seek(int(there.packets.dts[0]), stream=stream)
                frame = first_frame(container, stream)
        if frame is None:
            raise Rejected("undecodable", "no frame of the video can be decoded")
        there = there or shown_by_decoding(source, pixel_shape(stream))
        return _look(container, stream, there, frame)


def _keyframe(container: Any, stream: Any, table: PacketTable) -> Any | None:
    """The first frame alone, by which pictures are turned, without those that a decoder waits for
    to get the order right."""
    with suppress(av.FFmpegError, StopIteration):
        container.seek(int(table.dts[0]), stream=stream)
        packet = next(demux(container, [stream]))
        check_clear(packet)
        frame = next(chain(stream.decode(packet), stream.decode(None)))
        stream.codec_context.flush_buffers()
        return frame
    stream.codec_context.flush_buffers()
    return None


def _look(container: Any, stream: Any, there: Shown, frame: Any) -> Look:
    videos = [one.index for one in container.streams.video]
    return Look(
        shown=there,
        width=frame.width,
        height=frame.height,
        turns=round(frame.rotation / 90) % 4,
        interlaced=bool(frame.interlaced_frame),
        codec=stream.codec_context.codec.canonical_name,
        formats=frozenset(container.format.name.split(",")),
        stream=stream.index,
        place=videos.index(stream.index),
        start=stream.start_time or 0,
    )
