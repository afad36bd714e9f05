"""What is to be cut, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.cut import nal
from reelmill.media.packets import Laid, laid_packets
from reelmill.media.probe import (
    PacketTable,
    VideoInfo,
    audio_stream,
    open_media,
    open_plain,
    packet_table,
    probe,
    read_packets,
    video_stream,
)
from reelmill.media.spans import Span

How: TypeAlias = Literal["copied", "encoded", "smart"]

LATE = ("timeout", "the time for cutting the video was over")
"""The reason and the message of clips that were not made in time."""

_MAX_TICKS = 2**62

_FORMATS = (b"avc1", b"hvc1", b"hev1", b"mp4a")
"""Formats whose description may stand in another file as it is."""

_APART = 1.0
"""Seconds by which packets of several streams that lie side by side may differ."""

_PLACE = ("offset", "size")


@dataclass(frozen=True)
class Clip:
    """One clip, as it truly became: a file (``ending``: mp4, mkv or webm) whose clock begins at 0.

    ``start`` and ``end`` are seconds on the source's clock: the pts of the first frame, and of the
    first frame behind the clip (or the end of the stream). ``wished_start`` and ``wished_end`` are
    what was asked for. ``start_frame`` counts the source's frames in presentation order, ``frames``
    the clip's own. ``width`` and ``height`` are pixels before ``rotation``, as in
    :class:`~reelmill.media.probe.VideoInfo`; ``fps`` is frames a second on average, ``size`` in
    bytes. ``how`` tells whether its pictures were ``copied`` or ``encoded``, or both (``smart``).
    ``others`` are the files of its variants and extracted sound by the ends of their names
    (``small.mp4``, ``wav``), ``variants`` what the variants are, by name.
    """

    path: Path
    start: Fraction
    end: Fraction
    start_frame: int
    frames: int
    wished_start: Fraction
    wished_end: Fraction
    codec: str
    width: int
    height: int
    rotation: int
    fps: Fraction
    audio: bool
    size: int
    how: How
    others: Mapping[str, Path] = field(default_factory=dict)
    variants: Mapping[str, VideoInfo] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        return self.path.suffix[1:]


@dataclass(frozen=True)
class CutFailure:
    """A span that became no clip. ``reason`` is ``no_frames``, ``no_keyframe``, ``container``,
    ``undecodable``, ``timestamps``, ``too_short``, ``encode_failed`` or ``timeout``; ``message``
    names no path."""

    wished_start: Fraction
    wished_end: Fraction
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """A span, and the source's frames that it comes to: ``video.shown[first:last]``."""

    number: int
    span: Span
    path: Path
    video: PacketTable
    first: int
    last: int

    @property
    def frames(self) -> int:
        """How many of the source's frames it has."""
        return self.last - self.first

    @property
    def start_pts(self) -> int:
        return int(self.video.shown[self.first])

    @property
    def end_pts(self) -> int:
        shown = self.video.shown
        return int(shown[self.last]) if self.last < len(shown) else self.video.end_pts

    @property
    def start(self) -> Fraction:
        return self.start_pts * self.video.time_base

    @property
    def end(self) -> Fraction:
        return self.end_pts * self.video.time_base

    @property
    def length(self) -> Fraction:
        """In seconds."""
        return self.end - self.start

    def file(self, ending: str) -> Path:
        """A file of the plan: called as its clip, with an ending of its own."""
        return self.path.with_suffix(f".{ending}")

    def failure(self, reason: str, message: str) -> CutFailure:
        for path in self.path.parent.glob(f"{self.path.stem}.*"):
            if path.is_file():
                path.unlink()
        return CutFailure(*self.span, reason, message)

    def clip(self, how: How, *, check: bool) -> Clip | CutFailure:
        """The clip in the file that was written for the plan, in the way that ``how`` names."""
        info = made(self.path, check=check)
        if info is None:
            return self.failure("undecodable", "no frame of the span can be decoded")
        # Where a damaged source gives its first frames late or not at all, so does the clip.
        start = self.start + info.start_pts * info.time_base
        pts = round(start / self.video.time_base)
        return Clip(
            path=self.path,
            start=start,
            end=self.end,
            start_frame=int(np.searchsorted(self.video.shown, pts)),
            frames=info.frames or 0,
            wished_start=self.span[0],
            wished_end=self.span[1],
            codec=info.codec,
            width=info.width,
            height=info.height,
            rotation=info.rotation,
            fps=average_rate(info.frames or 0, self.end - start, info.fps),
            audio=info.has_audio,
            size=info.size_bytes,
            how=how,
        )


def made(path: Path, *, check: bool) -> VideoInfo | None:
    """What is in a file that was written for a plan; None where no frame is."""
    try:
        info = probe(path, check=check)
        if info.frames is None:
            # Matroska states no count.
            table = packet_table(path)
            first = int(table.shown[0]) if len(table.shown) else 0
            info = replace(info, frames=len(table.shown), start_pts=first)
    except (Rejected, FileNotFoundError):
        return None
    return info if info.frames else None


def average_rate(frames: int, seconds: Fraction, stated: Fraction) -> Fraction:
    """Frames a second of a file that shows ``seconds`` of its source; what it has ``stated`` where
    those are none. MP4 states the rate in coding order, which B-frames of a variable rate make
    another one."""
    return frames / seconds if seconds > 0 else stated


@dataclass(frozen=True)
class Index:
    """What a source holds, read once for every way to cut it: the tables of the packets of its
    video stream and, if any is wanted, its audio stream, which are the container's ``indices`` and
    have FFmpeg's names of their ``codecs``; frames of ``width`` by ``height`` pixels. ``changes``
    are the pts from which on a decoder of H.264 or HEVC needs other parameters than the header's,
    or than before: streams joined end to end may have several sizes. ``laid`` tells where the
    packets lie, if the source is an MP4 file that can be copied from by its index; ``header`` is
    the video's."""

    source: Path
    indices: Sequence[int]
    codecs: list[str]
    tables: Sequence[PacketTable]
    width: int
    height: int
    changes: NDArray[np.int64]
    laid: Sequence[Laid] = ()
    header: bytes = b""

    @property
    def video(self) -> PacketTable:
        return self.tables[0]

    @property
    def audio(self) -> PacketTable | None:
        return self.tables[1] if len(self.tables) > 1 else None

    def part(self, plan: Plan) -> int:
        """How many changes of parameters there are up to a plan's first frame."""
        return int(np.searchsorted(self.changes, plan.start_pts, side="right"))

    def has_changed(self, plan: Plan) -> bool:
        """Whether one header cannot serve all of a plan's frames."""
        return bool(np.any(self.changes < plan.end_pts))

    @contextmanager
    def open(self) -> Iterator[tuple[Any, list[Any]]]:
        """The source's container, and its streams in the order of the tables."""
        with open_media(self.source) as container:
            yield container, streams_of(container, len(self.tables) > 1)


def read_index(source: Path, audio: bool) -> Index:
    """Read the index of an MP4 file, and its keyframes; of others, the whole source. Nothing is
    decoded.

    Raises :class:`~reelmill.errors.Rejected` where it cannot be used.
    """
    return _from_tables(source, audio) or _from_packets(source, audio)


def _from_packets(source: Path, audio: bool) -> Index:
    with open_media(source) as container:
        streams = streams_of(container, audio)
        watch = _Watch(container, streams[0])
        tables = read_packets(watch, streams)
        return _index(source, streams, tables, watch)


def _from_tables(source: Path, audio: bool) -> Index | None:
    """None where the file's own index leaves room for doubt."""
    with suppress(Rejected), open_plain(source) as opened:
        if opened is None:
            return None
        container, file = opened
        size = os.fstat(file.fileno()).st_size
        streams = streams_of(container, audio)
        found = [laid_packets(file, size, stream) for stream in streams]
        told = [one for one in found if one is not None]
        if len(told) < len(found) or not _can_copy(told, size):
            return None
        video, laid = told[0]
        watch = _Watch(container, streams[0])
        for number in np.flatnonzero(video.keyframe).tolist():
            data = os.pread(file.fileno(), int(laid.size[number]), int(laid.offset[number]))
            watch.see(number, data)
        tables = [table for table, _ in told]
        index = _index(source, streams, tables, watch)
        return replace(index, laid=[one for _, one in told])
    return None


def _index(
    source: Path, streams: Sequence[Any], tables: Sequence[PacketTable], watch: _Watch
) -> Index:
    # Nothing can be cut there, nor decoding begin.
    tables[0].keyframe[watch.refreshing] = False
    context = streams[0].codec_context
    return Index(
        source,
        [stream.index for stream in streams],
        [stream.codec_context.codec.canonical_name for stream in streams],
        tables,
        context.width,
        context.height,
        np.sort(tables[0].pts[watch.changes]),
        header=bytes(context.extradata or b""),
    )


def _can_copy(found: Sequence[tuple[PacketTable, Laid]], size: int) -> bool:
    """Whether the packets lie, each for itself, in a file of so many bytes, in the order in which
    they are decoded, and those of a moment near each other."""
    tables, laid = zip(*found, strict=True)
    if any(one.format not in _FORMATS or not one.picture for one in laid):
        return False
    if any((np.diff(one.offset) <= 0).any() for one in laid):
        return False
    offset, length = (np.concatenate([getattr(one, of) for one in laid]) for of in _PLACE)
    seconds = np.concatenate([one.dts.astype(np.float64) * float(one.time_base) for one in tables])
    order = np.argsort(offset)
    ends = (offset + length)[order]
    behind = np.maximum.accumulate(seconds[order]) - seconds[order]
    return bool(
        offset.min() > 0
        and (offset[order][1:] >= ends[:-1]).all()
        and ends[-1] <= size
        and behind.max() <= _APART
    )


class _Watch:
    """A container whose packets are looked at as they are read: which of the video ``stream``'s,
    by their numbers, bring other parameters than those in force, and which are ``refreshing``:
    called keyframes, but part of a refresh that takes several pictures."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        self._header = bytes(context.extradata or b"")
        self._in_force: object = ()
        self.changes: list[int] = []
        self.refreshing: list[int] = []

    def demux(self, streams: list[Any]) -> Iterator[Any]:
        number = 0
        for packet in self._container.demux(streams):
            if packet.size and packet.stream_index == self._stream.index:
                if packet.has_sidedata("new_extradata"):
                    sent = bytes(packet.get_sidedata("new_extradata"))
                    self._take(number, () if sent == self._header else sent)
                elif packet.is_keyframe:
                    self._take(number, self._others(packet))
                if packet.is_keyframe and not self._stands_alone(packet):
                    self.refreshing.append(number)
                number += 1
            yield packet

    def see(self, number: int, packet: Any) -> None:
        """Look at a keyframe, which is packet ``number``."""
        self._take(number, self._others(packet))
        if not self._stands_alone(packet):
            self.refreshing.append(number)

    def _take(self, number: int, found: object) -> None:
        if found is not None and found != self._in_force:
            self.changes.append(number)
            self._in_force = found

    def _others(self, packet: Any) -> object:
        """The parameters that come with a packet and are not the header's; None for none."""
        if not self._header or self._codec not in ("h264", "hevc"):
            return None
        with suppress(ValueError):
            sets = list(nal.sequence_sets(bytes(packet), self._header, self._codec))
            return tuple(unit for unit in sets if unit not in self._header) if sets else None
        return None

    def _stands_alone(self, packet: Any) -> bool:
        if self._codec == "h264" and self._header:
            with suppress(ValueError):
                prefix = nal.prefix_of(self._header, self._codec)
                return nal.begins_intra(bytes(packet), prefix)
        return True


def streams_of(container: Any, audio: bool) -> list[Any]:
    """The video stream, and the audio that goes with it if that is wanted and there is any."""
    video = video_stream(container)
    sound = audio_stream(container, video) if audio else None
    return [video] if sound is None else [video, sound]


def plans_of(
    video: PacketTable, spans: Iterable[Span], out_dir: Path, ending: str = "mp4"
) -> Iterator[Plan]:
    for number, span in enumerate(spans):
        edges = [clamp(ceil(edge / video.time_base)) for edge in span]
        first, last = (int(i) for i in np.searchsorted(video.shown, edges))
        path = out_dir.absolute() / f"{number:06d}.{ending}"
        yield Plan(number, span, path, video, first, max(first, last))


def clamp(ticks: int) -> int:
    return max(-_MAX_TICKS, min(_MAX_TICKS, ticks))
