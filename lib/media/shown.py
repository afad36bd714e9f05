"""Which frames a video shows and when, and single ones of them without decoding all the others.

The frames that are had by seeking are those of decoding from the beginning: a seek goes to a
keyframe, and what comes out must be the frames that the packets promise. Where it is not, or the
packets cannot promise it, all is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.decode import frames, pixel_shape
from reelmill.media.packets import PacketTable, indexed_packets, read_packets
from reelmill.media.probe import Source, demux, open_media, video_stream
from reelmill.media.timing import check_stills, timing_of
from reelmill.media.torn import size_of

# One packet, one frame: VP8, for one, has packets that show nothing.
_WHOLE_PACKETS = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "prores"})

# Containers in which every packet has its pts.
_STAMPED = frozenset({"mov", "matroska", "mpegts"})

SPARSE = 0.8
"""Frames are sought where that decodes less than this share of the packets up to the last."""

HALF_MS = Fraction(1, 2000)


@dataclass(frozen=True, eq=False)
class Shown:
    """The frames of a video in the order they are shown: int64 ``pts``, strictly ascending, and
    ``keyframe``. ``end`` is where the last one ends; all in units of ``time_base`` seconds. Pixels
    have the ``shape`` that :func:`~reelmill.media.decode.pixel_shape` tells.
    ``packets`` are those it was read from, in decode order; None where frames had to be decoded."""

    time_base: Fraction
    pts: NDArray[np.int64]
    end: int
    keyframe: NDArray[np.bool_]
    shape: Fraction
    packets: PacketTable | None = None

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def seconds(self) -> Fraction:
        """From the first frame to the end of the last."""
        return (self.end - int(self.pts[0])) * self.time_base

    @property
    def slack(self) -> Fraction:
        """Seconds by which containers round the times of frames: half a tick, and no more than half
        a millisecond."""
        return min(self.time_base / 2, HALF_MS)

    def at(self, seconds: Fraction) -> int | None:
        """The number of the frame that is shown so long after the first one; None behind the last.

        One that is no more than ``slack`` ahead counts as shown.
        """
        if not 0 <= seconds < self.seconds:
            return None
        ticks = int(self.pts[0]) + (seconds + self.slack) // self.time_base
        return int(np.searchsorted(self.pts, ticks, side="right")) - 1

    def paced(self, fps: Fraction, most: int) -> NDArray[np.int64]:
        """The numbers of the frames that are shown at each multiple of 1/``fps`` from the first.

        Raises: Rejected ``too_many_frames`` for more than ``most``, and as
        :func:`~reelmill.media.timing.check_stills` does.
        """
        count = -(-self.seconds * fps // 1)
        if count > most:
            raise Rejected("too_many_frames", f"{count} at {fps} a second; {most} at most")
        self._check_stills()
        # (i / fps + slack) / time_base, as integers.
        step, shift = 1 / fps / self.time_base, self.slack / self.time_base
        under = step.denominator * shift.denominator
        over = step.numerator * shift.denominator
        more = shift.numerator * step.denominator
        ticks = [(i * over + more) // under for i in range(count)]
        first = int(self.pts[0])
        numbers = np.searchsorted(self.pts - first, np.array(ticks, dtype=np.int64), side="right")
        return numbers.astype(np.int64) - 1

    def _check_stills(self) -> None:
        """A frame for which a broken clock gives hours would come thousands of times."""
        if len(self) == 1:
            return
        last = int(self.pts[-1])
        steps = np.diff(self.pts)
        # Without the last one's own duration, too: where that is not told, it is the last step.
        check_stills(steps, (last - int(self.pts[0])) * self.time_base, self.time_base)
        check_stills(np.append(steps, self.end - last), self.seconds, self.time_base)


def shown(source: Source) -> Shown:
    """The frames that the best video stream of ``source`` shows.

    They are read from its packets, with nothing decoded, if those tell; otherwise all frames are
    decoded, as :func:`~reelmill.media.decode.frames` does it. Raises as that does.
    """
    with open_media(source) as container:
        stream = video_stream(container)
        found = shown_by_packets(source, container, stream)
        shape = pixel_shape(stream)
    return found or shown_by_decoding(source, shape)


def shown_by_packets(source: Source, container: Any, stream: Any) -> Shown | None:
    """What :func:`shown` finds with nothing decoded, in a ``container`` that is open on ``source``
    and stands at its beginning; None where all frames must be decoded. Leaves the container at the
    beginning if the header's index tells, and else at the end."""
    if not _tells(container, stream):
        return None
    table = _packets(source, container, stream)
    reorders = bool(stream.codec_context.has_b_frames)
    return _by_packets(table, pixel_shape(stream)) if _is_plain(table, reorders) else None


def frames_at(
    source: Source,
    there: Shown,
    numbers: Sequence[int],
    opened: tuple[Any, Any] | None = None,
    *,
    in_one_run: bool = False,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames with these ``numbers`` (ascending, each once) of what :func:`shown` found there.

    Args:
        opened: a container on ``source`` that stays open, and its video stream; these are used by
            one caller at a time, and may stand anywhere. Without, one is opened and closed.
        in_one_run: seek once, to what the first frame needs, and decode from there to the last.

    Raises: Rejected ``undecodable`` where one of them cannot be decoded.
    """
    missing = list(numbers)
    for number, frame in _sought(source, there, missing, opened, in_one_run):
        if number != missing[0]:
            break
        yield number, frame
        del missing[0]
    if not missing:
        return
    for frame in frames(source):
        number = missing[0]
        if frame.pts == there.pts[number]:
            yield number, frame
            del missing[0]
            if not missing:
                return
        elif frame.pts is not None and frame.pts > there.pts[number]:
            break
    raise Rejected("undecodable", f"frame {missing[0]} cannot be decoded")


def is_dense(there: Shown, numbers: Sequence[int]) -> bool:
    """Whether decoding on from the first of these frames (ascending) to the last is as good as
    seeking between them."""
    found = _groups(there, numbers)
    cost = sum(one.last - one.first + 1 for one in found)
    return bool(found) and cost >= SPARSE * (found[-1].last - found[0].first + 1)


class FrameRun:
    """Frames of what :func:`shown` found, one after the other, for one who asks again for those
    that follow: what was decoded on the way to some is not decoded again for the next.

    Args:
        opened: a container on the video, and its stream; nobody else uses them meanwhile.
        first: the number of the first frame that will be asked for.
    """

    def __init__(self, there: Shown, opened: tuple[Any, Any], first: int) -> None:
        self._there = there
        self._wanted: frozenset[int] = frozenset()
        self._last = first
        self._frames = self._decoded(*opened, first)

    def take(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames with these numbers: ascending, each once, all behind those that were taken
        before. It ends at what is not to be had."""
        self._wanted, self._last = frozenset(numbers), numbers[-1]
        for number in numbers:
            pair = next((pair for pair in self._frames if pair[0] >= number), None)
            if pair is None or pair[0] != number:
                return
            yield pair

    def _decoded(
        self, container: Any, stream: Any, first: int
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        there, groups = self._there, _groups(self._there, [first])
        if not groups:
            return
        assert there.packets is not None
        segment = _Segment(groups[0].first, len(there.packets) - 1, {})
        start = int(there.packets.pts[segment.first])
        decoded = _decoded(container, stream, there, segment, self._skips())
        with suppress(av.FFmpegError):
            for place, frame in enumerate(decoded):
                if _is_broken(frame, place):
                    return
                number = int(np.searchsorted(there.pts, frame.pts))
                if number < len(there) and there.pts[number] == frame.pts >= start:
                    frame.time_base = stream.time_base
                    yield number, frame

    def _skips(self) -> Callable[[int], bool]:
        """Whether a packet, by its place, is of a frame that nobody asks for any more."""
        assert self._there.packets is not None
        numbers = np.full(len(self._there.packets), -1, dtype=np.int64)
        numbers[_order(self._there.packets)] = np.arange(len(self._there))

        def skips(place: int) -> bool:
            number = int(numbers[place])
            return number <= self._last and number not in self._wanted

        return skips


def packets_at(
    container: Any, stream: Any, there: Shown, numbers: Sequence[int], *, in_one_run: bool = False
) -> Iterator[Iterator[Any]]:
    """The packets that the frames with these ``numbers`` (ascending, each once) need, as runs that
    each begin with a keyframe and hold nothing that is shown before it. Nothing where seeking
    cannot be relied upon. For arguments, see :func:`frames_at`."""
    segments = _groups(there, numbers)
    for segment in [_joined(segments)] if in_one_run and segments else segments:
        assert there.packets is not None
        start = int(there.packets.pts[segment.first])
        run = _packets_of(container, stream, there, segment)
        yield (packet for _, packet in run if packet.pts >= start)


def _tells(container: Any, stream: Any) -> bool:
    formats = set(container.format.name.split(","))
    return bool(formats & _STAMPED) and stream.codec_context.codec.canonical_name in _WHOLE_PACKETS


def _packets(source: Source, container: Any, stream: Any) -> PacketTable:
    found = None
    if isinstance(source, bytes):
        found = indexed_packets(io.BytesIO(source), len(source), stream)
    elif isinstance(source, str | PathLike):
        with Path(source).open("rb") as file:
            found = indexed_packets(file, size_of(file), stream)
    return found or read_packets(container, [stream])[0]


def _is_plain(table: PacketTable, reorders: bool) -> bool:
    """Whether each packet can be relied on to be a frame, shown at its own time. Times that ascend
    in decode order are some muxer's mistake where the codec ``reorders`` pictures."""
    with suppress(Rejected):
        begins = bool(table.keyframe[0]) and int(table.pts.min()) == int(table.pts[0])
        return (
            begins
            and (table.is_reordered or not reorders)
            and not table.unstamped
            and timing_of(table).is_ordered
        )
    return False


def _by_packets(table: PacketTable, shape: Fraction) -> Shown:
    order = _order(table)
    return Shown(
        table.time_base,
        table.pts[order],
        table.end_pts,
        table.keyframe[order],
        shape,
        packets=table,
    )


def _order(table: PacketTable) -> NDArray[np.int64]:
    """The packets of the shown frames, in the order these are shown."""
    there = np.flatnonzero(~table.hidden)
    return there[np.argsort(table.pts[there], kind="stable")]


def shown_by_decoding(source: Source, shape: Fraction) -> Shown:
    """What :func:`shown` finds by decoding all frames, whose pixels have this ``shape``."""
    pts: list[int] = []
    keys: list[bool] = []
    base, duration = Fraction(1), 0
    for frame in frames(source):
        assert frame.pts is not None
        assert frame.time_base is not None
        pts.append(frame.pts)
        keys.append(bool(frame.key_frame))
        base, duration = Fraction(frame.time_base), frame.duration or 0
    if not duration and len(pts) > 1:
        duration = pts[-1] - pts[-2]
    stamps = np.array(pts, dtype=np.int64)
    return Shown(base, stamps, pts[-1] + max(duration, 1), np.array(keys, dtype=np.bool_), shape)


@dataclass(frozen=True)
class _Segment:
    """Packets in decode order, from a keyframe to the last that the ``wanted`` frames need, which
    are numbers by place in that order."""

    first: int
    last: int
    wanted: Mapping[int, int]


def _segments(there: Shown, numbers: Sequence[int]) -> list[_Segment]:
    """How to get to frames by seeking; nothing where decoding from the beginning is as good."""
    found = _groups(there, numbers)
    cost = sum(one.last - one.first + 1 for one in found)
    return found if found and cost < SPARSE * (found[-1].last + 1) else []


def _groups(there: Shown, numbers: Sequence[int]) -> list[_Segment]:
    """The same at any cost; nothing where seeking cannot be relied upon."""
    table = there.packets
    if table is None or not numbers:
        return []
    places = _order(table)[np.asarray(numbers)]
    keys = np.flatnonzero(table.keyframe)
    at = np.searchsorted(keys, places, side="right") - 1
    # What is shown before a keyframe but decoded behind it may need what is decoded before that.
    is_leading = table.pts[keys[at]] > table.pts[places]
    at = np.where(is_leading, at - 1, at)
    if (at < 0).any() or (table.pts[keys[at]] > table.pts[places]).any():
        return []
    found = []
    rows = zip(keys[at].tolist(), places.tolist(), numbers, strict=True)
    for first, group in groupby(rows, key=lambda row: row[0]):
        wanted = {place: number for _, place, number in group}
        found.append(_Segment(first, max(wanted), wanted))
    return found


def _joined(segments: Sequence[_Segment]) -> _Segment:
    """All from the beginning of the first segment to the end of the last."""
    wanted = {place: number for one in segments for place, number in one.wanted.items()}
    return _Segment(segments[0].first, max(wanted), wanted)


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    with open_media(source) as container:
        yield container, video_stream(container)


def _sought(
    source: Source,
    there: Shown,
    numbers: Sequence[int],
    opened: tuple[Any, Any] | None = None,
    in_one_run: bool = False,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames by seeking, ascending; it ends at what is not to be had that way."""
    segments = _groups(there, numbers) if opened else _segments(there, numbers)
    if not segments:
        return
    if in_one_run:
        segments = [_joined(segments)]
    open_one: AbstractContextManager[tuple[Any, Any]]
    open_one = nullcontext(opened) if opened else _opened(source)
    with open_one as (container, stream), suppress(av.FFmpegError):
        for segment in segments:
            numbers_at = {int(there.pts[number]): number for number in segment.wanted.values()}
            skips = _not_in(segment.wanted)
            for place, frame in enumerate(_decoded(container, stream, there, segment, skips)):
                if _is_broken(frame, place):
                    return
                assert frame.pts is not None
                number = numbers_at.get(frame.pts)
                if number is not None:
                    frame.time_base = stream.time_base
                    yield number, frame


def _not_in(wanted: Mapping[int, int]) -> Callable[[int], bool]:
    return lambda place: place not in wanted


def _is_broken(frame: av.VideoFrame, place: int) -> bool:
    # Pictures that are refreshed bit by bit begin with no whole one.
    return bool(frame.is_corrupt) or (place == 0 and frame.pict_type != PictureType.I)


def _decoded(
    container: Any, stream: Any, there: Shown, segment: _Segment, skips: Callable[[int], bool]
) -> Iterator[av.VideoFrame]:
    """The frames of a segment, but for leading ones of its keyframe; and of the packets, by their
    places, that ``skips`` is true of, only what others refer to."""
    assert there.packets is not None
    context, start = stream.codec_context, int(there.packets.pts[segment.first])
    for place, packet in _packets_of(container, stream, there, segment):
        context.skip_frame = "NONREF" if skips(place) else "DEFAULT"
        yield from (frame for frame in context.decode(packet) if _is_behind(frame, start))
    yield from (frame for frame in context.decode(None) if _is_behind(frame, start))
    context.flush_buffers()


def _packets_of(
    container: Any, stream: Any, there: Shown, segment: _Segment
) -> Iterator[tuple[int, Any]]:
    """The packets of a segment, each with its place in decode order."""
    table = there.packets
    assert table is not None
    start = int(table.pts[segment.first])
    # Indices are ordered by the times of showing in Matroska, and of decoding in others.
    by_pts = "matroska" in container.format.name
    container.seek(start if by_pts else int(table.dts[segment.first]), stream=stream)
    stream.codec_context.flush_buffers()
    place = segment.first
    for packet in demux(container, [stream]):
        if not packet.size or (
            place == segment.first and not (packet.is_keyframe and packet.pts == start)
        ):
            continue
        yield place, packet
        if place == segment.last:
            break
        place += 1


def _is_behind(frame: av.VideoFrame, start: int) -> bool:
    return frame.pts is not None and frame.pts >= start
