"""Cut to the frame and copy what can be copied: only the partial GOPs at a clip's borders are
encoded anew.

H.264 only. Its slices name the parameter sets that they are coded with: the borders' have a number
of their own, and the header holds both the source's and theirs. Other codecs of the source are left
to :mod:`~reelmill.media.cut.encode`: x265 cannot number its sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import chain
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.cut import nal
from reelmill.media.cut.copy import Copy, Track, audio_tracks, decoding_times
from reelmill.media.cut.output import Encoding
from reelmill.media.cut.plan import Clip, CutFailure, Index, Plan
from reelmill.media.probe import MAX_PIXELS, demux, open_media, video_stream

_CHROMA = {"yuv420p": 1, "yuvj420p": 1, "yuv420p10le": 1, "yuv422p": 2, "yuv422p10le": 2}
"""Formats of pixels that x264 takes, and their chroma format's number."""

_PREFIX = 4
"""Bytes of length in front of each NAL unit in the files that are written."""


def joined(index: Index, plan: Plan, encoding: Encoding) -> Copy | None:
    """The clip whose middle, from its first cut point to its last, is copied; None where it has no
    middle."""
    video = plan.video
    points = video.cut_points
    ends = np.append(video.pts[points], video.end_pts)
    numbers = np.append(points, len(video))
    inside = np.flatnonzero((ends >= plan.start_pts) & (ends <= plan.end_pts))
    if plan.last < len(video.shown):
        inside = inside[inside < len(points)]
    if len(inside) < 2:
        return None
    head, tail = int(numbers[inside[0]]), int(numbers[inside[-1]])
    if video.hidden[head:tail].any():
        return None
    begin, stop = head, tail
    if video.pts[head] > plan.start_pts:
        before = np.flatnonzero(video.keyframe[:head] & (video.pts[:head] <= plan.start_pts))
        if not len(before):
            return None
        begin = int(before[-1])
    if tail < len(video):
        behind = np.flatnonzero(video.pts[tail:] < plan.end_pts)
        stop = tail + int(behind[-1]) + 1 if len(behind) else tail
    track = _JoinedTrack(video, begin, stop, plan.start_pts, plan, head, tail)
    return _Joined(plan, track, audio_tracks(index, plan), encoding)


@dataclass(frozen=True)
class _JoinedTrack(Track):
    """Packets of which those from ``head`` to ``tail`` are copied, and those before and behind
    are decoded for the frames of ``plan``."""

    plan: Plan
    head: int
    tail: int

    @property
    def head_pts(self) -> NDArray[np.int64]:
        return self.table.shown[self.plan.first : self._place(self.head)]

    @property
    def tail_pts(self) -> NDArray[np.int64]:
        return self.table.shown[self._place(self.tail) : self.plan.last]

    def _place(self, number: int) -> int:
        """How many frames are shown before packet ``number``, a cut point, or before the end."""
        table = self.table
        if number == len(table):
            return len(table.shown)
        return int(np.searchsorted(table.shown, table.pts[number]))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The pts of the clip's packets in the order of decoding: the borders have no B-frames."""
        return np.concatenate((self.head_pts, self.table.pts[self.head : self.tail], self.tail_pts))

    @cached_property
    def dts(self) -> NDArray[np.int64]:
        return decoding_times(self.order)

    def length_of(self, pts: int) -> int:
        """How long the frame at ``pts`` is shown."""
        shown = self.table.shown
        after = int(np.searchsorted(shown, pts, side="right"))
        return (int(shown[after]) if after < len(shown) else self.table.end_pts) - pts


class _Unfit(ValueError):  # noqa: N818 - an outcome of one clip
    """A clip that does not come out right in this way."""


class _Joined(Copy):
    """A clip of encoded borders around a copied middle, under way."""

    def __init__(
        self, plan: Plan, track: _JoinedTrack, sound: Sequence[Track], encoding: Encoding
    ) -> None:
        super().__init__(plan, [track, *sound])
        self._track = track
        self._encoding = encoding
        self._border: _Border | None = None
        self._sent = 0
        self._first_copied = b""

    def _begin(self, sources: Sequence[Any]) -> None:
        self._source = sources[0]
        context = self._source.codec_context
        header = bytes(context.extradata or b"")
        self._prefix = nal.prefix_of(header, "h264")
        sets = nal.parse_sets(header)
        self._own = next((number for number in range(1, 32) if number not in sets.ids), 0)
        if not self._own or context.pix_fmt not in _CHROMA:
            raise _Unfit("the borders cannot be encoded in the source's own format")
        borders = nal.parse_sets(self._new_border(self._track.head_pts).header)
        bits = context.format.components[0].bits
        super()._begin(sources)
        self._streams[0].codec_context.extradata = nal.compose_header(
            [sets, borders], _CHROMA[context.pix_fmt], bits
        )

    def _new_border(self, wanted: NDArray[np.int64]) -> _Border:
        return _Border(self._source, wanted, self._track.table.time_base, self._encoding, self._own)

    def _take(self, packet: Any, place: int, number: int) -> None:
        if place:
            super()._take(packet, place, number)
            return
        track = self._track
        packet.time_base = track.table.time_base
        packet.pts, packet.dts = int(track.table.pts[number]), int(track.table.dts[number])
        if track.head <= number < track.tail:
            if number == track.head:
                self._begin_middle(packet)
            self._send(self._framed(packet), bool(track.table.keyframe[number]))
        else:
            if self._border is None:
                wanted = track.head_pts if number < track.head else track.tail_pts
                self._border = self._new_border(wanted)
            for data, is_keyframe in self._border.feed(packet):
                self._send(data, is_keyframe)
        if number == track.stop - 1:
            self._end_border()

    def _begin_middle(self, packet: Any) -> None:
        self._end_border()
        if not nal.is_idr(bytes(packet), self._prefix):
            raise _Unfit("the copied part begins with no picture that stands for itself")
        decoder = _decoder(self._source)
        frames = [frame for one in (packet, None) for frame in _coded(decoder.decode, one)]
        if len(frames) != 1:
            raise _Unfit("the first picture to copy cannot be decoded")
        self._first_copied = _pixels(frames[0])

    def _end_border(self) -> None:
        if self._border is not None:
            for data, is_keyframe in self._border.finish():
                self._send(data, is_keyframe)
            self._border = None

    def _framed(self, packet: Any) -> bytes:
        data = bytes(packet)
        return data if self._prefix == _PREFIX else nal.framed(data, self._prefix)

    def _send(self, data: bytes, is_keyframe: bool) -> None:
        track = self._track
        packet = av.Packet(data)
        packet.time_base = track.table.time_base
        pts = int(track.order[self._sent])
        packet.pts, packet.dts = pts - track.origin, int(track.dts[self._sent]) - track.origin
        packet.duration = track.length_of(pts)
        packet.is_keyframe = is_keyframe
        packet.stream = self._streams[0]
        self._out.mux(packet)
        self._sent += 1

    def outcome(self) -> Clip | CutFailure:
        if self.failure is None:
            try:
                self._check()
            except (av.FFmpegError, ValueError, Rejected):
                self.fail("container", "its parts do not fit together")
        made = super().outcome()
        return made if isinstance(made, CutFailure) else replace(made, how="smart")

    def _check(self) -> None:
        """Decode what lies at the joints: both borders, and the first picture of the middle."""
        track = self._track
        head, count = len(track.head_pts), len(track.order)
        chosen = [*range(head + 1), *range(count - len(track.tail_pts), count)]
        found = []
        for time, frame in self._decoded(chosen):
            found.append(time + track.origin * track.table.time_base)
            if len(found) == head + 1 and _pixels(frame) != self._first_copied:
                raise _Unfit("a copied picture has changed")
        if found != [int(track.order[number]) * track.table.time_base for number in chosen]:
            raise _Unfit("frames are missing at a joint")

    def _decoded(self, chosen: Sequence[int]) -> Iterator[tuple[Fraction, Any]]:
        """The frames in the ``chosen`` packets of the clip, with their times in it."""
        with open_media(self.plan.path) as container:
            stream = video_stream(container)
            decoder = _decoder(stream, {"err_detect": "explode"})
            packets = (packet for packet in demux(container, [stream]) if packet.size)
            wanted = (packet for number, packet in enumerate(packets) if number in chosen)
            for packet in chain(wanted, [None]):
                for frame in decoder.decode(packet):
                    yield frame.pts * Fraction(stream.time_base), frame


class _Border:
    """The frames of ``wanted``, decoded from packets of ``source`` and encoded like it, with
    parameter sets that go by ``number``."""

    def __init__(
        self,
        source: Any,
        wanted: NDArray[np.int64],
        time_base: Fraction,
        encoding: Encoding,
        number: int,
    ) -> None:
        self._wanted = wanted.tolist()
        self._taken = 0
        self._time_base = time_base
        self._decoder = _decoder(source)
        self._encoder = _encoder(source, time_base, encoding, number)

    @property
    def header(self) -> bytes:
        return bytes(self._encoder.extradata)

    def feed(self, packet: Any | None) -> Iterator[tuple[bytes, bool]]:
        """The data of packets that come of one more of the source's, and whether each is a
        keyframe."""
        for frame in _coded(self._decoder.decode, packet):
            if self._is_wanted(frame):
                yield from _packets(_coded(self._encoder.encode, frame))

    def finish(self) -> Iterator[tuple[bytes, bool]]:
        yield from self.feed(None)
        yield from _packets(_coded(self._encoder.encode, None))
        if self._taken < len(self._wanted):
            raise _Unfit("frames of a border cannot be decoded")

    def _is_wanted(self, frame: Any) -> bool:
        if self._taken == len(self._wanted) or frame.pts != self._wanted[self._taken]:
            return False
        like = (self._encoder.width, self._encoder.height, self._encoder.pix_fmt)
        if (frame.width, frame.height, frame.format.name) != like:
            raise _Unfit("the size of frames changes")
        if frame.interlaced_frame or frame.is_corrupt:
            raise _Unfit("frames are interlaced or damaged")
        frame.time_base = self._time_base
        # Or x264 would give every frame the type that it had.
        frame.pict_type = PictureType.NONE
        self._taken += 1
        return True


def _packets(encoded: Sequence[Any]) -> Iterator[tuple[bytes, bool]]:
    for packet in encoded:
        yield nal.framed(bytes(packet), 0), packet.is_keyframe


def _decoder(source: Any, more: Mapping[str, str] = MappingProxyType({})) -> Any:
    context = av.CodecContext.create(source.codec_context.codec.name, "r")
    context.extradata = source.codec_context.extradata
    context.options = {"max_pixels": str(MAX_PIXELS), **more}
    context.thread_type, context.thread_count = "NONE", 1
    return context


def _encoder(source: Any, time_base: Fraction, encoding: Encoding, number: int) -> Any:
    """x264 on one thread, for pictures as in ``source``, with ``encoding``'s quality and effort."""
    like, video = source.codec_context, encoding.video.meant()
    context = av.CodecContext.create(video.facts.encoder, "w")
    context.width, context.height, context.pix_fmt = like.width, like.height, like.pix_fmt
    context.time_base, context.framerate = time_base, source.average_rate or source.guessed_rate
    if like.sample_aspect_ratio:
        context.sample_aspect_ratio = like.sample_aspect_ratio
    for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
        setattr(context, name, getattr(like, name))
    context.flags |= Flags.global_header | Flags.bitexact
    context.thread_type, context.thread_count = "NONE", 1
    # The borders have no B-frames: their order of decoding is known ahead.
    context.options = {
        "crf": str(video.crf),
        "preset": str(video.preset),
        "x264-params": f"sps-id={number}:bframes=0:keyint=infinite:scenecut=0",
    }
    _coded(context.open)
    return context


def _coded(call: Callable[..., Any], *arguments: Any) -> Any:
    """What ``call`` to a codec returns. Its errors, some of which PyAV takes for the system's, are
    the clip's."""
    try:
        return call(*arguments)
    except av.FFmpegError as error:
        raise _Unfit("a border cannot be decoded or encoded") from error


def _pixels(frame: Any) -> bytes:
    return sha256(frame.to_ndarray().tobytes()).digest()
