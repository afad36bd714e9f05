"""Cut by stream copy, at keyframes.

Of an MP4 file whose index tells all, clips are made from that index and ranges of bytes; packets of
others go through FFmpeg. What is in a clip follows from what was copied: it is opened again, and
its first frame decoded, only where that could be wrong.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, floor
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.media.cut import nal
from reelmill.media.cut.boxes import Part, can_write, write_mp4
from reelmill.media.cut.plan import LATE, Clip, CutFailure, Index, Plan, average_rate, clamp
from reelmill.media.probe import PacketTable, demux

MAX_OPEN = 64
"""Most copies that are open at a time: each is a file and, with borders to encode, an encoder."""


@dataclass(frozen=True)
class Track:
    """The packets ``begin`` to ``stop`` of a table, on a clock that is 0 at ``origin``."""

    table: PacketTable
    begin: int
    stop: int
    origin: int

    @cached_property
    def dts(self) -> NDArray[np.int64]:
        return decoding_times(self.table.pts[self.begin : self.stop])

    def stamp(self, packet: Any, number: int) -> None:
        """Put packet ``number`` of the table on the track's clock."""
        packet.time_base = self.table.time_base
        packet.pts = int(self.table.pts[number]) - self.origin
        packet.dts = int(self.dts[number - self.begin]) - self.origin
        packet.duration = int(self.lengths[number - self.begin])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Durations in ticks: to the next frame where the container tells none, or MP4's list of
        edits would end before the last frame."""
        table = self.table
        told = table.duration[self.begin : self.stop]
        if told.all():
            return told
        pts = table.pts[self.begin : self.stop]
        edges = np.append(table.shown, table.end_pts)
        after = np.minimum(np.searchsorted(edges, pts, side="right"), len(edges) - 1)
        return np.where(told > 0, told, np.maximum(edges[after] - pts, 1))


def decoding_times(pts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The dts of packets in decode order, from their order alone: some containers give none, or
    break them, and MP4 needs them rising and never behind the pts."""
    order: NDArray[np.int64] = np.sort(pts)
    return order - int((order - pts).max())


@dataclass(eq=False)
class Copy:
    """A clip under copy; its file is open only from its first packet to its last.

    ``tracks`` are of its video and, if it has sound, its audio. ``failure`` is set where something
    went wrong, and then no more is written.
    """

    plan: Plan
    tracks: list[Track]
    failure: CutFailure | None = None
    _out: Any = None
    _streams: list[Any] = field(default_factory=list)
    _left: int = 0
    is_done: bool = False

    def write(self, packet: Any, place: int, number: int, sources: Sequence[Any]) -> None:
        """Take packet ``number`` of stream ``place``, opening and closing the file as needed."""
        if self.failure is not None:
            return
        try:
            if not self._left:
                self._left = sum(track.stop - track.begin for track in self.tracks)
                self._begin(sources)
            self._take(packet, place, number)
            self._left -= 1
            if not self._left:
                self._out.close()
                # With its buffers: there may be thousands of copies.
                self._out, self._streams, self.is_done = None, [], True
        except OSError:
            raise
        except (av.FFmpegError, ValueError):
            codecs = [s.codec_context.codec.canonical_name for s in sources[: len(self.tracks)]]
            self.fail(
                "container", f"MP4 cannot hold this {' with '.join(codecs)}: use `cut: exact`"
            )

    def fail(self, reason: str, message: str) -> None:
        """Give the clip up: nothing more is written, and no file of it is left."""
        if self.failure is not None:
            return
        if self._out is not None:
            with suppress(av.FFmpegError, ValueError):
                self._out.close()
        self.failure = self.plan.failure(reason, message)

    def _begin(self, sources: Sequence[Any]) -> None:
        options = {"movflags": "+faststart"}
        self._out = av.open(str(self.plan.path), "w", "mp4", container_options=options)
        self._out.flags |= av.container.Flags.bitexact.value
        for source, _ in zip(sources, self.tracks, strict=False):
            self._streams.append(self._out.add_stream_from_template(source, opaque=True))

    def _take(self, packet: Any, place: int, number: int) -> None:
        self.tracks[place].stamp(packet, number)
        packet.stream = self._streams[place]
        self._out.mux(packet)

    def outcome(self) -> Clip | CutFailure:
        made = self.failure or self.plan.clip("copied", check=True)
        if isinstance(made, CutFailure):
            return made
        # The container counts hidden frames too.
        frames = self.plan.last - self.plan.first
        return replace(
            made, frames=frames, fps=average_rate(frames, made.end - made.start, made.fps)
        )


def snapped(index: Index, plan: Plan, cover: bool) -> Copy | None:
    """The copy between cut points that a plan comes to; None where nothing is left of it.

    Either end of its span moves to the nearest cut point at or before it (the beginning of a closed
    GOP; the first one where there is none before), so that neighbours stay gap-free and disjoint;
    an end behind the last frame stays the end of the stream. With ``cover`` the end moves to the
    cut point at or after it instead.
    """
    video = plan.video
    points = video.cut_points
    if not len(points):
        return None
    edges = [clamp(floor(edge / video.time_base)) for edge in plan.span]
    at = np.searchsorted(video.pts[points], edges, side="right") - 1
    begin, stop = (int(points[max(i, 0)]) for i in at)
    if cover:
        after = int(np.searchsorted(video.pts[points], ceil(plan.span[1] / video.time_base)))
        stop = int(points[after]) if after < len(points) else len(video)
    if plan.last == len(video.shown):
        stop = len(video)
    shown = np.flatnonzero(~video.hidden[begin:stop])
    if not len(shown):
        return None
    # Hidden packets behind the last shown one would be seen in the clip.
    stop = begin + int(shown[-1]) + 1
    first = int(np.searchsorted(video.shown, video.pts[begin:stop][shown].min()))
    plan = replace(plan, first=first, last=first + len(shown))
    return Copy(plan, [Track(video, begin, stop, plan.start_pts), *audio_tracks(index, plan)])


def audio_tracks(index: Index, plan: Plan) -> list[Track]:
    """The audio packets that begin within a plan, if there are any."""
    if (audio := index.audio) is None:
        return []
    edges = [clamp(ceil(edge / audio.time_base)) for edge in (plan.start, plan.end)]
    begin, stop = (int(i) for i in np.searchsorted(audio.pts, edges))
    origin = round(plan.start / audio.time_base)
    return [Track(audio, begin, stop, origin)] if begin < stop else []


def write_copies(
    index: Index, copies: Sequence[Copy], timeout: Callable[[], float]
) -> dict[int, Clip | CutFailure]:
    """Write all ``copies`` in one pass over the source, and say what came of each plan's number;
    those that overlap share packets. More than ``MAX_OPEN`` that overlap take more passes.
    ``timeout`` tells how many seconds are left.

    Raises ``OSError`` where a clip cannot be written.
    """
    for copy in copies:
        if index.has_changed(copy.plan):
            copy.fail("container", "the parameters of the stream change: use `cut: exact`")
    made = _from_tables(index, copies, timeout) if index.laid else {}
    others = [copy for copy in copies if copy.plan.number not in made]
    left = others
    while going := [copy for copy in left if copy.failure is None]:
        with index.open() as (container, streams):
            left = _write(container, streams, going, timeout)
    return made | {copy.plan.number: copy.outcome() for copy in others}


def _from_tables(
    index: Index, copies: Sequence[Copy], timeout: Callable[[], float]
) -> dict[int, Clip | CutFailure]:
    """The clips that can be made without demuxing. Of those that surely begin with a frame, one is
    opened for what they all have in common."""
    made: dict[int, Clip | CutFailure] = {}
    known: Clip | None = None
    with index.source.open("rb") as file:
        for copy in copies:
            # Other kinds of copies put parts of their own together.
            parts = _parts(index, copy) if type(copy) is Copy and copy.failure is None else []
            if not parts or not can_write(parts):
                continue
            if timeout() <= 0:
                copy.fail(*LATE)
                continue
            size = write_mp4(copy.plan.path, file.fileno(), parts)
            if known is not None and _begins_whole(index, parts[0], file.fileno()):
                made[copy.plan.number] = _alike(copy, known, parts, size)
                continue
            outcome = made[copy.plan.number] = copy.outcome()
            if isinstance(outcome, Clip) and outcome == _alike(copy, outcome, parts, size):
                known = outcome
    return made


def _parts(index: Index, copy: Copy) -> list[Part]:
    return [
        Part(kind, track.table, laid, track.begin, track.stop, track.origin, track.dts)
        for kind, track, laid in zip(("video", "audio"), copy.tracks, index.laid, strict=False)
    ]


def _begins_whole(index: Index, video: Part, source: int) -> bool:
    if video.laid.format != b"avc1":
        return False
    first = os.pread(source, int(video.size[0]), int(video.offset[0]))
    return nal.is_readable(first, index.header)


def _alike(copy: Copy, known: Clip, parts: Sequence[Part], size: int) -> Clip:
    """What is in a clip whose stream is that of the one that is ``known``."""
    plan = copy.plan
    count = plan.last - plan.first
    return replace(
        known,
        path=plan.path,
        start=plan.start,
        end=plan.end,
        start_frame=plan.first,
        frames=count,
        wished_start=plan.span[0],
        wished_end=plan.span[1],
        fps=average_rate(count, plan.end - plan.start, known.fps),
        audio=len(parts) > 1,
        size=size,
    )


def _write(
    container: Any, streams: Sequence[Any], copies: Sequence[Copy], timeout: Callable[[], float]
) -> list[Copy]:
    """Write copies, and return those for which too many others were open when they began."""
    places = {stream.index: place for place, stream in enumerate(streams)}
    beginning: list[dict[int, list[Copy]]] = [defaultdict(list) for _ in streams]
    for copy in copies:
        for place, track in enumerate(copy.tracks):
            beginning[place][track.begin].append(copy)
    live: list[list[Copy]] = [[] for _ in streams]
    count = [0] * len(streams)
    left = sum(len(copy.tracks) for copy in copies)
    opened: set[Copy] = set()
    later: dict[Copy, None] = {}
    for packet in demux(container, list(streams)):
        if not packet.size:
            continue
        if timeout() <= 0:
            for copy in copies:
                if not copy.is_done:
                    copy.fail(*LATE)
            break
        place = places[packet.stream_index]
        number = count[place]
        count[place] += 1
        for copy in beginning[place].pop(number, []):
            if copy in opened or (copy not in later and len(opened) < MAX_OPEN):
                opened.add(copy)
                live[place].append(copy)
            else:
                later[copy] = None
                left -= 1
        for copy in live[place]:
            copy.write(packet, place, number, streams)
            if copy.is_done or copy.failure is not None:
                opened.discard(copy)
        going = [copy for copy in live[place] if number + 1 < copy.tracks[place].stop]
        left -= len(live[place]) - len(going)
        live[place] = going
        if not left:
            break
    return list(later)
