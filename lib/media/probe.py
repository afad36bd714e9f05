"""Open untrusted media, and say what is in it: one video stream, its packets, its first frame."""

from __future__ import annotations

import io
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""A path (never a URL), the bytes themselves, or a seekable binary file."""

FORMATS = (
    "mov,matroska,avi,flv,live_flv,mpegts,mpeg,asf,ogg,mxf,nut,rm,dv,wtv,ivf,gif,yuv4mpegpipe,"
    "mp3,aac,flac,wav"
)
"""Demuxers that may open a source. Playlists and other formats that name further files or URLs
(hls, dash, concat) are kept out; so are raw elementary streams, which have no timestamps."""

MAX_PIXELS = 2**26
"""Frames larger than this (in pixels) are refused, so that a small file cannot exhaust memory."""

_STATES_DURATION = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv", "asf"}

FIRST_FRAME_PACKETS = 300
"""How many packets may fail before a stream counts as undecodable."""

_LEAN = {"codec_whitelist": "none", "probesize": "32"}
"""Options with which FFmpeg opens a file by its header alone."""

_MAX_BOXES = 2**17
"""Of a file of a million empty boxes, no more are looked at."""

_CONTAINERS = (
    ("MP4", re.compile(rb".{4}(ftyp|moov|mdat|moof|free|skip|wide|sidx|styp)", re.DOTALL)),
    ("AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    ("Matroska", re.compile(rb"\x1a\x45\xdf\xa3")),
    ("FLV", re.compile(rb"FLV\x01")),
    ("Ogg", re.compile(rb"OggS")),
    ("ASF", re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
)
_OTHERS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89png", "a PNG image"),
    (b"%pdf", "a PDF document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"#extm3u", "a playlist"),
    (b"<mpd", "a DASH manifest"),
    (b"<?xml", "an XML document"),
    (b"{", "JSON"),
)


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its best video stream, and of the audio that goes with it.

    ``width`` and ``height`` are in pixels as stored, before ``rotation``: degrees counter-clockwise
    by which a player turns the picture, read from the first frame (0 where that was not decoded).
    ``fps`` is the average rate in frames a second, ``duration`` is in seconds, ``start_pts`` in
    units of ``time_base``. ``frames`` is None where the container gives no count.
    """

    container: str
    codec: str
    profile: str | None
    pix_fmt: str | None
    width: int
    height: int
    rotation: int
    fps: Fraction
    time_base: Fraction
    duration: Fraction
    frames: int | None
    start_pts: int
    size_bytes: int
    has_audio: bool
    audio_codec: str | None
    sample_rate: int | None
    channels: int | None

    def as_json(self) -> dict[str, object]:
        """Plain JSON values: ``fps`` and ``duration`` as numbers fit for filters and sorting,
        the exact ``frame_rate`` and ``time_base`` as ``"30000/1001"``."""
        return vars(self) | {
            "fps": round(float(self.fps), 6),
            "frame_rate": f"{self.fps.numerator}/{self.fps.denominator}",
            "time_base": f"{self.time_base.numerator}/{self.time_base.denominator}",
            "duration": round(float(self.duration), 6),
        }


@dataclass(frozen=True, eq=False)
class PacketTable:
    """One stream's packets in decode order, as arrays of one length: int64 ``pts``, ``dts`` and
    ``duration`` in units of ``time_base``; bool ``keyframe``, and ``hidden`` for packets that are
    decoded but, by the container's edit list, not shown."""

    time_base: Fraction
    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    duration: NDArray[np.int64]
    keyframe: NDArray[np.bool_]
    hidden: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def cut_points(self) -> NDArray[np.int64]:
        """Where the stream may be cut without decoding: see :func:`cut_points`."""
        return cut_points(self.pts, self.keyframe)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """The pts of the shown frames in presentation order, shape ``(frames,)``."""
        return np.sort(self.pts[~self.hidden])

    @cached_property
    def end_pts(self) -> int:
        """Where the last shown frame ends; its own pts where its duration is unknown."""
        ends = (self.pts + self.duration)[~self.hidden]
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


def probe(source: Source, *, check: bool = True) -> VideoInfo:
    """Say what is in ``source``, and that it is all there.

    With ``check``, the first frame is decoded and the end of the data is looked for, so that most
    of what a download can break is found (MPEG-TS tells nobody where it should end); without it,
    only the header is read.

    Raises :class:`~reelmill.errors.Rejected` with the reason ``empty``, ``not_video``,
    ``no_video_stream``, ``undecodable`` or ``truncated``; ``OSError`` where a path cannot be read.
    """
    with _binary(source) as file:
        size = _size(file)
        if check and _is_torn(file, size):
            raise Rejected("truncated", "the file ends before its own structure does")
        return (check and _quick(file, size)) or _thorough(file, size, check)


def _thorough(file: BinaryIO, size: int, check: bool) -> VideoInfo:
    with _open(file) as container:
        stream = video_stream(container)
        sound = audio_stream(container, stream)
        rotation = 0
        if check:
            if not _holds_index(size, stream, sound):
                raise Rejected("truncated", "the file ends before its last sample")
            rotation = _first_frame(container, stream).rotation
            if _tail_is_missing(container, stream):
                raise Rejected("truncated", "the file ends before the duration it states")
        info = _info(container, stream, sound, rotation, size)
    if not info.duration:
        table = packet_table(file)
        length = (table.end_pts - int(table.shown[0])) * table.time_base
        info = replace(info, duration=length)
    return info


def _quick(file: BinaryIO, size: int) -> VideoInfo | None:
    """The same as :func:`_thorough` with its checks, for an MP4 file whose header tells all; None
    where that cannot be relied on, or something is wrong.

    FFmpeg opens a file by decoding the beginning of each stream, which takes longer than all else.
    """
    if _head(file)[4:8] != b"ftyp":
        return None
    with suppress(Rejected), _open(file, _LEAN) as container:
        if not _is_plain(container):
            return None
        stream = video_stream(container)
        sound = audio_stream(container, stream)
        if not _has_whole_index(stream) or not _holds_index(size, stream, sound):
            return None
        frame = _keyframe(container, stream)
        if frame is not None:
            return _info(container, stream, sound, frame.rotation, size)
    return None


def _is_plain(container: Any) -> bool:
    """Whether the header of an MP4 file says of its streams what decoding them would."""
    videos, sounds = container.streams.video, container.streams.audio
    if (
        len(videos) != 1
        or len(sounds) > 1
        or not all(one.codec_context for one in (*videos, *sounds))
    ):
        return False
    return (
        videos[0].name in ("h264", "hevc")
        and bool(videos[0].average_rate and videos[0].duration)
        # Below that rate a decoder may find twice as much of it (spectral band replication).
        and all(one.name == "aac" and one.sample_rate > 24000 and one.channels for one in sounds)
    )


def read_header(source: Source) -> VideoInfo:
    """What the header of ``source`` says, true or not; a duration of 0 where it does not tell.

    Raises as :func:`probe` does, and ``no_video_stream`` also where there are several to choose
    from: which one is best may depend on what comes behind the header.
    """
    with _binary(source) as file, _open(file) as container:
        moving = [s for s in container.streams.video if not _is_cover(s)]
        if len(moving) > 1:
            raise Rejected("no_video_stream", "the file holds several videos")
        stream = video_stream(container)
        return _info(container, stream, audio_stream(container, stream), 0, _size(file))


def packet_table(source: Source) -> PacketTable:
    """The best video stream's packets. Reads the whole source, decodes nothing.

    Raises as :func:`probe` does; ``undecodable`` also where the stream has no frames.
    """
    with open_media(source) as container:
        return read_packets(container, [video_stream(container)])[0]


def read_packets(container: Any, streams: list[Any]) -> list[PacketTable]:
    """One table for each of the container's ``streams``, in one pass from where it stands.

    A missing pts or dts is filled in from the other, or from the packet before. Raises
    :class:`~reelmill.errors.Rejected` (``undecodable``) where the first stream shows no frame.
    """
    # Of hours of video there are a million packets: five machine words each, no objects.
    rows: dict[int, array[int]] = {s.index: array("q") for s in streams}
    for packet in demux(container, streams):
        if packet.size:
            found = rows[packet.stream_index]
            after = found[-4] + max(found[-3], 1) if found else 0
            dts = packet.dts if packet.dts is not None else packet.pts
            dts = after if dts is None else dts
            pts = dts if packet.pts is None else packet.pts
            found.extend((pts, dts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
    tables = []
    for stream in streams:
        columns = np.array(rows.pop(stream.index), dtype=np.int64).reshape(-1, 5).T.copy()
        times, flags = columns[:3], columns[3:].astype(bool)
        tables.append(PacketTable(Fraction(stream.time_base), *times, *flags))
    if tables[0].hidden.all():
        raise Rejected("undecodable", "the video stream has no frames")
    return tables


def demux(container: Any, streams: list[Any]) -> Iterator[Any]:
    """The packets of ``streams``, and an empty one of each at the end, to flush its decoder.

    Where demuxing fails the data end, for every reader alike: what came before can be used.
    """
    # PyAV stumbles (IndexError) behind the last packet if a stream has appeared since it opened.
    with suppress(av.FFmpegError, IndexError):
        yield from container.demux(streams)


@contextmanager
def open_media(source: Source) -> Iterator[Any]:
    """A PyAV input container on ``source``, opened for formats that hold their own data only.

    Raises :class:`~reelmill.errors.Rejected` (``empty``, ``not_video``, ``truncated``,
    ``undecodable``) where it is none; ``OSError`` where a path cannot be read.
    """
    with _binary(source) as file, _open(file) as container:
        yield container


def video_stream(container: Any) -> Any:
    """The container's best video stream, set to decode on one thread; cover art does not count.

    Raises :class:`~reelmill.errors.Rejected`: ``no_video_stream``, or ``undecodable`` where no
    decoder is built in for its codec or its frames have no size or one beyond ``MAX_PIXELS``.
    """
    best = container.streams.best("video")
    candidates = [best, *container.streams.video] if best is not None else []
    stream = next((s for s in candidates if not _is_cover(s)), None)
    if stream is None:
        held = "audio but no video" if container.streams.audio else "no video"
        raise Rejected("no_video_stream", f"the file holds {held}")
    context = stream.codec_context
    if context is None:
        raise Rejected("undecodable", "there is no decoder for the video's codec")
    if not context.width or not context.height:
        raise Rejected("undecodable", "the video does not tell the size of its frames")
    if context.width * context.height > MAX_PIXELS:
        raise Rejected("undecodable", f"frames of {context.width}x{context.height} are too large")
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type, context.thread_count = "NONE", 1
    return stream


def audio_stream(container: Any, video: Any) -> Any | None:
    """The best audio stream that goes with ``video``; None where there is none to decode."""
    stream = container.streams.best("audio", related=video)
    return stream if stream is not None and stream.codec_context is not None else None


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _info(container: Any, stream: Any, sound: Any | None, rotation: int, size: int) -> VideoInfo:
    context = stream.codec_context
    return VideoInfo(
        container=container.format.name,
        codec=context.codec.canonical_name,
        profile=stream.profile,
        pix_fmt=context.pix_fmt,
        width=context.width,
        height=context.height,
        rotation=rotation,
        fps=Fraction(stream.average_rate or stream.guessed_rate or 0),
        time_base=Fraction(stream.time_base),
        duration=_stated_duration(container, stream),
        frames=stream.frames or None,
        start_pts=stream.start_time or 0,
        size_bytes=size,
        has_audio=sound is not None,
        audio_codec=sound.codec_context.codec.canonical_name if sound else None,
        sample_rate=sound.codec_context.sample_rate if sound else None,
        channels=sound.codec_context.channels if sound else None,
    )


@contextmanager
def _binary(source: Source) -> Iterator[BinaryIO]:
    # FFmpeg is always given an open file and never a name: a name could be a protocol's.
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            yield file
    elif isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        source.seek(0)
        yield source


@contextmanager
def _open(file: BinaryIO, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Any]:
    if not _size(file):
        raise Rejected("empty", "the file has no bytes")
    options = {
        **more,
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_PIXELS),
    }
    file.seek(0)
    try:
        container = av.open(file, options=options, metadata_errors="replace")
    except av.FFmpegError:
        raise _why_not(file) from None
    with container:
        yield container


def _why_not(file: BinaryIO) -> Rejected:
    head = _head(file)
    name = next((name for name, magic in _CONTAINERS if magic.match(head)), None)
    if name == "MP4" and b"moov" not in _boxes(file, _size(file)):
        return Rejected("truncated", "an MP4 file without its index (no moov box)")
    if name is not None:
        if _is_torn(file, _size(file)):
            return Rejected("truncated", f"the {name} file ends within its header")
        return Rejected("undecodable", f"the header of the {name} file cannot be read")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype html" in text):
        return Rejected("not_video", "this is an HTML page")
    for magic, kind in _OTHERS:
        if text.startswith(magic):
            return Rejected("not_video", f"this is {kind}")
    if not any(head):
        return Rejected("not_video", "the first bytes are all zero")
    if head.isascii() and b"\0" not in head:
        return Rejected("not_video", "this is text")
    return Rejected("not_video", f"an unknown format that begins {head[:8].hex()}")


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(4096)


def _is_torn(file: BinaryIO, size: int) -> bool:
    """Whether the container's own structure points past the end of the file of ``size`` bytes."""
    head = _head(file)
    if head[:4] == b"RIFF":
        return _riff_end(file, size) > size
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segment_end(head) > size
    boxes = _boxes(file, size)
    # Torn media data still hold all samples if the index says so; fragments have no such index.
    vital = {b"moov", b"moof"} | ({b"mdat"} if b"moof" in boxes else set())
    return any(end > size for kind, end in boxes.items() if kind in vital)


def _boxes(file: BinaryIO, size: int) -> dict[bytes, int]:
    """The types of the top-level boxes of an MP4 file, each with the end of its last one."""
    boxes: dict[bytes, int] = {}
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > size:
            break
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:
            length = size - at
        if length < 8:
            break
        at += length
        boxes[header[4:8]] = at
    return boxes


def _riff_end(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        at += 8 + int.from_bytes(header[4:], "little")
    return at


def _segment_end(head: bytes) -> int:
    """Where Matroska's Segment ends; 0 where its length is left open (a live recording)."""
    length, width = _vint(head, 4)
    at = 4 + width + length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _vint(head, at + 4)
    is_open = length == (1 << 7 * width) - 1
    return 0 if is_open else at + 4 + width + length


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """EBML's variable-length integer at ``at``, and the bytes it takes (none: 0, 0)."""
    if at >= len(data) or not data[at]:
        return 0, 0
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width]) & ((1 << 7 * width) - 1)
    return value, width


def _holds_index(size: int, stream: Any, sound: Any | None) -> bool:
    """Whether a file of so many bytes holds the last samples of the header's index."""
    return max(map(_index_end, filter(None, (stream, sound)))) <= size


def _index_end(stream: Any) -> int:
    """Where the last samples of the header's index end, in bytes; 0 where it has none."""
    entries = stream.index_entries
    return max((e.pos + e.size for e in entries[max(0, len(entries) - 100) :]), default=0)


def _tail_is_missing(container: Any, stream: Any) -> bool:
    """Whether no packet is near the end that the header states: for containers whose structure
    does not tell (live Matroska, FLV, ASF, fragmented MP4). Leaves the container there."""
    stated = Fraction(container.duration or 0, av.time_base)
    if _has_whole_index(stream) or stated < 2 or container.format.name not in _STATES_DURATION:
        return False
    near_end = Fraction(container.start_time or 0, av.time_base) + stated * 9 / 10
    with suppress(av.FFmpegError):
        container.seek(int(near_end * av.time_base))
    for packet in demux(container, list(container.streams)):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if packet.size and stamp is not None:
            end = (stamp + (packet.duration or 0)) * Fraction(packet.time_base)
            if end >= near_end:
                return False
    return True


def _has_whole_index(stream: Any) -> bool:
    return bool(stream.frames) and len(stream.index_entries) >= stream.frames


def _keyframe(container: Any, stream: Any) -> Any | None:
    """The first packet's frame, without those that a decoder waits for to get the order right."""
    with suppress(av.FFmpegError):
        for packet in demux(container, [stream]):
            frames = packet.decode() or stream.codec_context.decode(None)
            return frames[0] if frames else None
    return None


def first_frame(container: Any, stream: Any) -> Any | None:
    """The first frame of pictures or sound that decodes; ``None`` if too many packets do not."""
    for number, packet in enumerate(demux(container, [stream])):
        with suppress(av.FFmpegError):
            for frame in packet.decode():
                return frame
        if number == FIRST_FRAME_PACKETS:
            break
    return None


def _first_frame(container: Any, stream: Any) -> Any:
    frame = first_frame(container, stream)
    if frame is None:
        raise Rejected("undecodable", "no frame can be decoded from the beginning of the video")
    return frame


def _stated_duration(container: Any, stream: Any) -> Fraction:
    """Seconds, by the header; 0 where it does not tell."""
    if (stream.duration or 0) > 0:
        return Fraction(stream.duration * Fraction(stream.time_base))
    return Fraction(max(container.duration or 0, 0), av.time_base)
