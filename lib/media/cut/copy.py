"""Cut by stream copy, at keyframes: nothing is decoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.media.cut.plan import Clip, CutFailure, Plan, clamp, plans_of, streams_of
from reelmill.media.probe import PacketTable, demux, open_media, read_packets
from reelmill.media.spans import Span


def copy_spans(
    source: Path, spans: Iterable[Span], out_dir: Path, *, audio: bool = True, cover: bool = False
) -> list[Clip | CutFailure]:
    """Cut ``spans`` (seconds on the source's clock) without decoding: exact copies, roughly placed.

    Either end of a span moves to the nearest cut point at or before it (the beginning of a closed
    GOP; the first one where there is none before), so that neighbours stay gap-free and disjoint;
    an end behind the last frame stays the end of the stream. With ``cover`` the end moves to the
    cut point at or after it instead: every clip then holds all of its span, and neighbours may
    overlap. Rotation is kept as it is stored.
    One outcome per span, in order; clip ``i`` is ``out_dir/{i:06d}.mp4``, the same bytes every
    time. The source is read twice: for its index, and once for all clips.

    Raises :class:`~reelmill.errors.Rejected` where the source itself cannot be used; ``OSError``
    where a clip cannot be written.
    """
    with open_media(source) as container:
        tables = read_packets(container, streams_of(container, audio))
    copies: list[_Copy] = []
    outcomes: dict[int, Clip | CutFailure] = {}
    for plan in plans_of(tables[0], spans, out_dir):
        if plan.first == plan.last:
            outcomes[plan.number] = plan.failure("no_frames", "the span holds no frame")
        elif (copy := _snap(plan, tables, cover)) is None:
            outcomes[plan.number] = plan.failure(
                "no_keyframe", "no keyframe parts it from its neighbour: use `cut: exact`"
            )
        else:
            copies.append(copy)
    if copies:
        with open_media(source) as container:
            _write_copies(container, copies, audio)
    outcomes |= {copy.plan.number: copy.outcome() for copy in copies}
    return [outcomes[number] for number in sorted(outcomes)]


@dataclass(frozen=True)
class _Track:
    """The packets ``begin`` to ``stop`` of a table, on a clock that is 0 at ``origin``."""

    table: PacketTable
    begin: int
    stop: int
    origin: int

    @cached_property
    def dts(self) -> NDArray[np.int64]:
        """Decoding times from the order alone: some containers give none, or break them, and MP4
        needs them rising and never behind the pts."""
        pts = self.table.pts[self.begin : self.stop]
        order = np.sort(pts)
        return order - int((order - pts).max())

    def stamp(self, packet: Any, index: int) -> None:
        packet.time_base = self.table.time_base
        packet.pts = int(self.table.pts[index]) - self.origin
        packet.dts = int(self.dts[index - self.begin]) - self.origin
        packet.duration = int(self.table.duration[index])


@dataclass(eq=False)
class _Copy:
    """A clip under copy; its file is open only from its first packet to its last."""

    plan: Plan
    tracks: list[_Track]
    failure: CutFailure | None = None
    _out: Any = None
    _streams: list[Any] = field(default_factory=list)
    _left: int = 0

    def write(self, packet: Any, place: int, index: int, sources: Sequence[Any]) -> None:
        """Write packet ``index`` of stream ``place``, opening and closing the file as needed."""
        if self.failure is not None:
            return
        try:
            if self._out is None:
                self._open(sources)
            self.tracks[place].stamp(packet, index)
            packet.stream = self._streams[place]
            self._out.mux(packet)
            self._left -= 1
            if not self._left:
                self._out.close()
        except OSError:
            raise
        except (av.FFmpegError, ValueError):
            with suppress(av.FFmpegError, ValueError):
                self._out.close()
            codecs = [s.codec_context.codec.canonical_name for s in sources[: len(self.tracks)]]
            self.failure = self.plan.failure(
                "container", f"MP4 cannot hold this {' with '.join(codecs)}: use `cut: exact`"
            )

    def _open(self, sources: Sequence[Any]) -> None:
        self._left = sum(track.stop - track.begin for track in self.tracks)
        options = {"movflags": "+faststart"}
        self._out = av.open(str(self.plan.path), "w", "mp4", container_options=options)
        self._out.flags |= av.container.Flags.bitexact.value
        for source, _ in zip(sources, self.tracks, strict=False):
            self._streams.append(self._out.add_stream_from_template(source, opaque=True))

    def outcome(self) -> Clip | CutFailure:
        made = self.failure or self.plan.clip(check=True)
        if isinstance(made, CutFailure):
            return made
        # The container counts hidden frames too.
        return replace(made, frames=self.plan.last - self.plan.first)


def _snap(plan: Plan, tables: Sequence[PacketTable], cover: bool) -> _Copy | None:
    """The copy between cut points that a span comes to; None where nothing is left of it."""
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
    plan = Plan(plan.number, plan.span, plan.path, video, first, first + len(shown))
    tracks = [_Track(video, begin, stop, plan.start_pts)]
    for audio in tables[1:]:
        edges = [clamp(ceil(edge / audio.time_base)) for edge in (plan.start, plan.end)]
        begin, stop = (int(i) for i in np.searchsorted(audio.pts, edges))
        if begin < stop:
            tracks.append(_Track(audio, begin, stop, round(plan.start / audio.time_base)))
    return _Copy(plan, tracks)


def _write_copies(container: Any, copies: Sequence[_Copy], audio: bool) -> None:
    """All copies in one pass; spans that overlap share packets."""
    streams = streams_of(container, audio)
    places = {stream.index: place for place, stream in enumerate(streams)}
    beginning: list[dict[int, list[_Copy]]] = [defaultdict(list) for _ in streams]
    for copy in copies:
        for place, track in enumerate(copy.tracks):
            beginning[place][track.begin].append(copy)
    live: list[list[_Copy]] = [[] for _ in streams]
    count = [0] * len(streams)
    left = sum(len(copy.tracks) for copy in copies)
    for packet in demux(container, streams):
        if not packet.size:
            continue
        place = places[packet.stream_index]
        index = count[place]
        count[place] += 1
        live[place] += beginning[place].pop(index, [])
        for copy in live[place]:
            copy.write(packet, place, index, streams)
        going = [copy for copy in live[place] if index + 1 < copy.tracks[place].stop]
        left -= len(live[place]) - len(going)
        live[place] = going
        if not left:
            break
