"""Cut clips out of a video: by stream copy at keyframes, or frame-exact by encoding anew."""

from __future__ import annotations

import logging
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.ffmpeg import FfmpegError, run
from reelmill.media.probe import (
    FORMATS,
    MAX_PIXELS,
    PacketTable,
    audio_stream,
    demux,
    open_media,
    probe,
    read_packets,
    video_stream,
)
from reelmill.media.spans import Span

MAX_GROUP = 8
"""Most clips that one ffmpeg process encodes from one decode: each holds an encoder's memory."""

WORTH_A_SEEK = Fraction(2)
"""Seconds of decoding that a process of its own, with its own seek, must save."""

AUDIO_PREROLL = Fraction(1, 10)
"""Seconds decoded ahead of clips with audio: lossy audio needs a few packets to come right."""

RETRY_PREROLL = Fraction(10)
"""Seconds decoded ahead of a clip in its second attempt, for sources whose index misleads."""

_MAX_TICKS = 2**62

# FFmpeg's resampler and AAC encoder round otherwise with newer instructions: the ones that every
# x86-64 has give the same bytes on all of them, at some 5 % more CPU.
_CPU_FLAGS = ("-cpuflags", "sse2") if platform.machine() in ("x86_64", "AMD64") else ()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One clip, as it truly became: an MP4 file whose clock begins at 0.

    ``start`` and ``end`` are seconds on the source's clock: the pts of the first frame, and of the
    first frame behind the clip (or the end of the stream). ``wished_start`` and ``wished_end`` are
    what was asked for. ``start_frame`` counts the source's frames in presentation order, ``frames``
    the clip's own. ``width`` and ``height`` are pixels before ``rotation``, as in
    :class:`~reelmill.media.probe.VideoInfo`; ``size`` is in bytes.
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


@dataclass(frozen=True)
class CutFailure:
    """A span that became no clip. ``reason`` is ``no_frames``, ``no_keyframe``, ``container``,
    ``undecodable``, ``encode_failed`` or ``timeout``; ``message`` names no path."""

    wished_start: Fraction
    wished_end: Fraction
    reason: str
    message: str


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
        tables = read_packets(container, _streams(container, audio))
    copies: list[_Copy] = []
    outcomes: dict[int, Clip | CutFailure] = {}
    for plan in _plans(tables[0], spans, out_dir):
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


def encode_spans(
    source: Path,
    spans: Iterable[Span],
    out_dir: Path,
    *,
    codec: str = "libx264",
    crf: int = 18,
    preset: str = "veryfast",
    audio: bool = True,
    timeout_s: float,
) -> list[Clip | CutFailure]:
    """Cut ``spans`` (seconds on the source's clock) to the frame: all with ``start <= pts < end``.

    Frames are encoded anew with their own timing (variable rates stay variable), 8-bit 4:2:0 for
    every decoder's sake, upright (rotation is applied); an odd last row or column is cropped.
    Audio is cut by the same times and becomes AAC; a stream without a decoder is left out.
    Neighbouring spans share one decode. All codecs run on one thread and bit-exact, so that the
    bytes depend on source, spans and ffmpeg build alone. ``timeout_s`` bounds each process.

    One outcome per span, in order; clip ``i`` is ``out_dir/{i:06d}.mp4``. A clip that does not come
    out whole is tried once more alone. Of a damaged source, a clip has the frames that could be
    decoded, and says how many.

    Raises :class:`~reelmill.errors.Rejected` where the source itself cannot be used;
    :class:`~reelmill.errors.StageError` where the disk is full.
    """
    with open_media(source) as container:
        streams = _streams(container, audio)
        tables = read_packets(container, streams)
        job = _Encode(
            source,
            [stream.index for stream in streams],
            tables[0],
            tables[1] if len(tables) > 1 else None,
            {"vcodec": codec, "crf": crf, "preset": preset},
            timeout_s,
        )
    outcomes: dict[int, Clip | CutFailure] = {}
    plans: list[_Plan] = []
    for plan in _plans(job.video, spans, out_dir):
        if plan.first == plan.last:
            outcomes[plan.number] = plan.failure("no_frames", "the span holds no frame")
        else:
            plans.append(plan)
    for group in job.groups(plans):
        made = job.encode(group)
        for plan in group:
            outcome = made[plan.number]
            if isinstance(outcome, CutFailure) or outcome.start_frame != plan.first:
                outcome = job.encode([plan], RETRY_PREROLL)[plan.number]
            outcomes[plan.number] = outcome
    return [outcomes[number] for number in sorted(outcomes)]


@dataclass(frozen=True)
class _Plan:
    """A span, and the source's frames that it comes to: ``video.shown[first:last]``."""

    number: int
    span: Span
    path: Path
    video: PacketTable
    first: int
    last: int

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

    def failure(self, reason: str, message: str) -> CutFailure:
        if self.path.is_file():
            self.path.unlink()
        return CutFailure(*self.span, reason, message)

    def clip(self, *, check: bool) -> Clip | CutFailure:
        """The clip in the file that was written for the plan."""
        try:
            info = probe(self.path, check=check)
        except (Rejected, FileNotFoundError):
            info = None
        if info is None or not info.frames:
            return self.failure("undecodable", "no frame of the span can be decoded")
        # Where a damaged source gives its first frames late or not at all, so does the clip.
        start = self.start + info.start_pts * info.time_base
        pts = round(start / self.video.time_base)
        return Clip(
            path=self.path,
            start=start,
            end=self.end,
            start_frame=int(np.searchsorted(self.video.shown, pts)),
            frames=info.frames,
            wished_start=self.span[0],
            wished_end=self.span[1],
            codec=info.codec,
            width=info.width,
            height=info.height,
            rotation=info.rotation,
            fps=info.fps,
            audio=info.has_audio,
            size=info.size_bytes,
        )


def _streams(container: Any, audio: bool) -> list[Any]:
    """The video stream, and the audio that goes with it if that is wanted and there is any."""
    video = video_stream(container)
    sound = audio_stream(container, video) if audio else None
    return [video] if sound is None else [video, sound]


def _plans(video: PacketTable, spans: Iterable[Span], out_dir: Path) -> Iterator[_Plan]:
    for number, span in enumerate(spans):
        edges = [_clamp(ceil(edge / video.time_base)) for edge in span]
        first, last = (int(i) for i in np.searchsorted(video.shown, edges))
        path = out_dir.absolute() / f"{number:06d}.mp4"
        yield _Plan(number, span, path, video, first, max(first, last))


def _clamp(ticks: int) -> int:
    return max(-_MAX_TICKS, min(_MAX_TICKS, ticks))


# Stream copy


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

    plan: _Plan
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


def _snap(plan: _Plan, tables: Sequence[PacketTable], cover: bool) -> _Copy | None:
    """The copy between cut points that a span comes to; None where nothing is left of it."""
    video = plan.video
    points = video.cut_points
    if not len(points):
        return None
    edges = [_clamp(floor(edge / video.time_base)) for edge in plan.span]
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
    plan = _Plan(plan.number, plan.span, plan.path, video, first, first + len(shown))
    tracks = [_Track(video, begin, stop, plan.start_pts)]
    for audio in tables[1:]:
        edges = [_clamp(ceil(edge / audio.time_base)) for edge in (plan.start, plan.end)]
        begin, stop = (int(i) for i in np.searchsorted(audio.pts, edges))
        if begin < stop:
            tracks.append(_Track(audio, begin, stop, round(plan.start / audio.time_base)))
    return _Copy(plan, tracks)


def _write_copies(container: Any, copies: Sequence[_Copy], audio: bool) -> None:
    """All copies in one pass; spans that overlap share packets."""
    streams = _streams(container, audio)
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


# Exact cuts


@dataclass(frozen=True)
class _Encode:
    """Encoding of clips out of one source, whose streams have the container's ``indices``."""

    source: Path
    indices: list[int]
    video: PacketTable
    audio: PacketTable | None
    encoder: dict[str, Any]
    timeout_s: float

    def groups(self, plans: Iterable[_Plan]) -> Iterator[list[_Plan]]:
        """Plans that are worth a common decode, by start."""
        group: list[_Plan] = []
        end = Fraction(0)
        for plan in sorted(plans, key=lambda plan: (plan.first, plan.last)):
            seek = self._seek_point(plan, Fraction(0))
            far = seek is not None and seek - end > WORTH_A_SEEK
            if group and (far or len(group) == MAX_GROUP):
                yield group
                group = []
            end = max(end, plan.end) if group else plan.end
            group.append(plan)
        if group:
            yield group

    def encode(
        self, plans: Sequence[_Plan], preroll: Fraction = Fraction(0)
    ) -> dict[int, Clip | CutFailure]:
        """Encode ``plans`` (ordered by start) in one process, which begins to decode ``preroll``
        seconds ahead."""
        try:
            run(self._graph(plans, preroll), timeout_s=self.timeout_s)
        except FfmpegError as error:
            log.warning("%s", error)
            if error.timed_out:
                why = "timeout", f"encoding took more than {self.timeout_s:g} seconds"
            else:
                why = "encode_failed", "ffmpeg cannot encode the span"
            return {plan.number: plan.failure(*why) for plan in plans}
        return {plan.number: plan.clip(check=False) for plan in plans}

    def _graph(self, plans: Sequence[_Plan], preroll: Fraction) -> Any:
        heard = [plan for plan in plans if self._is_heard(plan)]
        options: dict[str, Any] = {
            "threads": 1,
            "max_pixels": MAX_PIXELS,
            "format_whitelist": FORMATS,
            "protocol_whitelist": "file",
        }
        seek = self._seek_point(plans[0], max(preroll, AUDIO_PREROLL if heard else Fraction(0)))
        if seek is not None:
            options |= {
                "ss": f"{ceil(seek * 1_000_000)}us",
                "seek_timestamp": 1,
                "noaccurate_seek": None,
            }
        source = ffmpeg.input(f"file:{self.source.absolute()}", **options)
        pictures = (
            source[str(self.indices[0])]
            .filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
            .filter_multi_output("split", len(plans))
        )
        sounds = (
            source[str(self.indices[1])].filter_multi_output("asplit", len(heard))
            if heard
            else None
        )
        outputs = []
        for place, plan in enumerate(plans):
            streams = [_trim(pictures[place], plan)]
            if sounds is not None and plan in heard:
                streams.append(_atrim(sounds[heard.index(plan)], plan))
            outputs.append(ffmpeg.output(*streams, str(plan.path), **self._output_options()))
        return ffmpeg.merge_outputs(*outputs).global_args(
            *("-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-copyts"),
            *("-filter_complex_threads", "1", "-max_error_rate", "1"),
            *_CPU_FLAGS,
        )

    def _output_options(self) -> dict[str, Any]:
        return self.encoder | {
            "acodec": "aac",
            "pix_fmt": "yuv420p",
            "threads": 1,
            "fps_mode": "passthrough",
            # The source's own clock: the default, one over the frame rate, rounds uneven frames.
            "enc_time_base:v": "filter",
            "flags:v": "+bitexact",
            "flags:a": "+bitexact",
            "fflags": "+bitexact",
            "movflags": "+faststart",
            "map_metadata": -1,
            "map_chapters": -1,
            "format": "mp4",
        }

    def _is_heard(self, plan: _Plan) -> bool:
        if self.audio is None:
            return False
        start, end = (edge / self.audio.time_base for edge in (plan.start, plan.end))
        begins, ends = self.audio.pts, self.audio.pts + self.audio.duration
        return bool(np.any((begins < _clamp(ceil(end))) & (ends > _clamp(floor(start)))))

    def _seek_point(self, plan: _Plan, preroll: Fraction) -> Fraction | None:
        """Seconds of the last keyframe at or before ``plan``, ``preroll`` seconds ahead; None
        where that is the first."""
        keyframes = np.sort(self.video.pts[self.video.keyframe])
        pts = floor((plan.start - preroll) / self.video.time_base)
        place = int(np.searchsorted(keyframes, pts, side="right")) - 1
        return int(keyframes[place]) * self.video.time_base if place > 0 else None


def _trim(stream: Any, plan: _Plan) -> Any:
    """The plan's pictures, by integer pts, on a clock that begins at 0."""
    span = {"start_pts": plan.start_pts}
    if plan.last < len(plan.video.shown):
        span["end_pts"] = plan.end_pts
    return stream.filter("trim", **span).filter("setpts", f"PTS-({plan.start_pts})")


def _atrim(stream: Any, plan: _Plan) -> Any:
    """The sound of the plan's pictures, on their clock."""
    start, end = (f"{round(edge * 1_000_000)}us" for edge in (plan.start, plan.end))
    origin = f"({plan.start.numerator}/{plan.start.denominator})/TB"
    return stream.filter("atrim", start=start, end=end).filter(
        "asetpts", f"max(0,round(PTS-{origin}))"
    )
