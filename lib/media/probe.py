"""Open untrusted media, and say what is in it: one video stream, its packets, its first frame."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias

import av

from reelmill.errors import Rejected, one_line
from reelmill.media import mp4
from reelmill.media.colour import (
    HDR_TRANSFERS,
    matrix_name,
    primaries_name,
    range_name,
    transfer_name,
)
from reelmill.media.packets import PacketRows, indexed_packets, with_frames

# Known here, too, since whoever opens media has use for them.
from reelmill.media.packets import PacketTable as PacketTable
from reelmill.media.packets import cut_points as cut_points
from reelmill.media.packets import demux as demux
from reelmill.media.packets import read_packets as read_packets
from reelmill.media.torn import head_of, is_mp4, is_torn, size_of, why_not

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

_MATROSKA = "matroska,webm"
_STATES_DURATION = {_MATROSKA, "mov,mp4,m4a,3gp,3g2,mj2", "flv", "asf"}

FIRST_FRAME_PACKETS = 300
"""How many packets may fail before a stream counts as undecodable."""

_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo"}
"""What decoders make of so many channels, where a header says no more of them."""

_LEAN = {"codec_whitelist": "none", "probesize": "32"}
"""Options with which FFmpeg opens a file by its header alone."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its best video stream, and of the audio that goes with it.

    ``width`` and ``height`` are in pixels as stored, before ``rotation``: degrees counter-clockwise
    by which a player turns the picture, read from the first frame (0 where that was not decoded).
    ``sar`` is the shape of a pixel, such as ``4:3``; ``color_…`` are FFmpeg's names; both are None
    where untagged. ``fps`` is the average rate in frames a second, ``base_rate`` FFmpeg's guess at
    the lowest one in which all times are whole (its ``r_frame_rate``). ``duration`` is in seconds,
    ``start_pts`` in units of ``time_base``, bit rates in bits a second. ``frames`` is None where
    the container gives no count, ``bit_rate`` where it gives none of the video alone.
    """

    container: str
    codec: str
    profile: str | None
    pix_fmt: str | None
    color_range: str | None
    color_space: str | None
    color_primaries: str | None
    color_transfer: str | None
    width: int
    height: int
    sar: str | None
    rotation: int
    fps: Fraction
    base_rate: Fraction | None
    time_base: Fraction
    duration: Fraction
    frames: int | None
    start_pts: int
    size_bytes: int
    bit_rate: int | None
    container_bit_rate: int | None
    has_audio: bool
    audio_codec: str | None
    sample_rate: int | None
    channels: int | None
    channel_layout: str | None
    audio_bit_rate: int | None
    audio_streams: int
    subtitle_streams: int
    chapters: int

    @property
    def is_hdr(self) -> bool:
        """Whether its transfer function is one of high dynamic range."""
        return self.color_transfer in HDR_TRANSFERS

    def as_json(self) -> dict[str, object]:
        """Plain JSON values: ``fps`` and ``duration`` as numbers fit for filters and sorting,
        the exact ``frame_rate``, ``base_rate`` and ``time_base`` as ``"30000/1001"``."""
        return vars(self) | {
            "fps": round(float(self.fps), 6),
            "frame_rate": ratio(self.fps),
            "base_rate": self.base_rate and ratio(self.base_rate),
            "time_base": ratio(self.time_base),
            "duration": round(float(self.duration), 6),
        }


def ratio(value: Fraction) -> str:
    """A fraction as FFmpeg writes it: ``30000/1001``, and ``30/1``."""
    return f"{value.numerator}/{value.denominator}"


@dataclass(frozen=True)
class StreamInfo:
    """What the header says of one stream. ``codec`` is None where FFmpeg has no decoder for it,
    ``language`` where it is not told; ``is_cover`` is a picture of what is heard or seen."""

    index: int
    kind: str
    codec: str | None
    language: str | None
    is_default: bool
    is_cover: bool

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Examined:
    """All that one look at a file finds. ``table`` is None where packets were not asked for;
    ``by_index`` tells that it was read from the header's index and not from the packets."""

    info: VideoInfo
    streams: tuple[StreamInfo, ...]
    table: PacketTable | None
    by_index: bool = False


def probe(source: Source, *, check: bool = True) -> VideoInfo:
    """Say what is in ``source``, and that it is all there.

    With ``check``, the first frame is decoded and the end of the data is looked for, so that most
    of what a download can break is found (MPEG-TS tells nobody where it should end); without it,
    only the header is read.

    Raises :class:`~reelmill.errors.Rejected` with the reason ``empty``, ``not_video``,
    ``no_video_stream``, ``drm``, ``undecodable`` or ``truncated``; ``OSError`` where a path
    cannot be read.
    """
    return examine(source, check=check).info


def examine(source: Source, *, check: bool = True, packets: bool = False) -> Examined:
    """What :func:`probe` says, which streams there are, and with ``packets`` those of the video.

    Packets are read from the index of an MP4 file where that tells all, else from the whole file,
    in the same pass that decodes the first frame. Raises as :func:`probe` does.
    """
    with _binary(source) as file:
        size = size_of(file)
        if check and is_torn(file, size):
            raise Rejected("truncated", "the file ends before its own structure does")
        return (check and _quick(file, size, packets)) or _thorough(file, size, check, packets)


def _thorough(file: BinaryIO, size: int, check: bool, packets: bool = False) -> Examined:
    with _open(file) as container:
        stream = video_stream(container)
        sound = audio_stream(container, stream)
        table = indexed_packets(file, size, stream) if packets else None
        by_index = table is not None
        frame = None
        if check:
            if not _holds_index(size, stream, sound):
                raise Rejected("truncated", "the file ends before its last sample")
            if packets and table is None:
                frame, table = _frame_and_packets(container, stream)
            else:
                frame = first_frame(container, stream)
            if frame is None:
                raise Rejected(
                    "undecodable", "no frame can be decoded from the beginning of the video"
                )
            if _tail_is_missing(container, stream):
                raise Rejected("truncated", "the file ends before the duration it states")
        info = _info(container, stream, sound, frame, size)
        streams = _streams(container)
    if table is None and (packets or not info.duration):
        table = packet_table(file)
    if table is not None and not info.duration:
        length = (table.end_pts - int(table.shown[0])) * table.time_base
        info = replace(info, duration=length)
    return Examined(info, streams, table if packets else None, by_index)


def _quick(file: BinaryIO, size: int, packets: bool = False) -> Examined | None:
    """The same as :func:`_thorough` with its checks, for an MP4 file whose header tells all; None
    where that cannot be relied on, or something is wrong.

    FFmpeg opens a file by decoding the beginning of each stream, which takes longer than all else.
    """
    if head_of(file)[4:8] != b"ftyp":
        return None
    with suppress(Rejected), _open(file, _LEAN) as container:
        if not _is_plain(container):
            return None
        stream = video_stream(container)
        sound = audio_stream(container, stream)
        if not _has_whole_index(stream) or not _holds_index(size, stream, sound):
            return None
        table = indexed_packets(file, size, stream) if packets else None
        if packets and table is None:
            return None
        frame = _keyframe(container, stream)
        if frame is not None:
            if sound is not None and sound.channels > 2:
                # Which speakers they are for is known once the decoder has read its setup.
                sound.codec_context.open()
            info = _info(container, stream, sound, frame, size)
            return Examined(info, _streams(container), table, packets)
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


@contextmanager
def open_plain(source: Source) -> Iterator[tuple[Any, BinaryIO] | None]:
    """An MP4 file, opened by its header alone, and the file that it is read from; None where that
    header does not tell all that decoding would. Raises as :func:`open_media` does."""
    with _binary(source) as file:
        if head_of(file)[4:8] != b"ftyp":
            yield None
            return
        with _open(file, _LEAN) as container:
            yield (container, file) if _is_plain(container) else None


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
        return _info(container, stream, audio_stream(container, stream), None, size_of(file))


def packet_table(source: Source) -> PacketTable:
    """The best video stream's packets. Reads the whole source, decodes nothing.

    Raises as :func:`probe` does; ``undecodable`` also where the stream has no frames.
    """
    with open_media(source) as container:
        return read_packets(container, [video_stream(container)])[0]


def _frame_and_packets(container: Any, stream: Any) -> tuple[Any | None, PacketTable | None]:
    """What :func:`first_frame` and :func:`read_packets` find, in one pass; neither where too many
    packets do not decode."""
    rows, frame = PacketRows(), None
    for number, packet in enumerate(demux(container, [stream])):
        if packet.size:
            rows.add(packet)
        if frame is None:
            frame = _frame_of(packet)
            if frame is None and number == FIRST_FRAME_PACKETS:
                break
    if frame is None:
        return None, None
    return frame, with_frames(rows.table(Fraction(stream.time_base)))


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
    decoder is built in for its codec, its frames have no size or one beyond ``MAX_PIXELS``, or the
    header could not be read for any stream.
    """
    if not len(container.streams):
        raise Rejected("undecodable", "the file's header names no stream")
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
        raise Rejected("undecodable", "the video does not state a size that frames can have")
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


def _info(
    container: Any, stream: Any, sound: Any | None, frame: Any | None, size: int
) -> VideoInfo:
    context = stream.codec_context
    heard = sound.codec_context if sound else None
    streams = container.streams
    sar = stream.sample_aspect_ratio or context.sample_aspect_ratio
    return VideoInfo(
        container=container.format.name,
        codec=context.codec.canonical_name,
        profile=stream.profile,
        pix_fmt=context.pix_fmt,
        color_range=range_name(context.color_range),
        color_space=matrix_name(context.colorspace),
        color_primaries=primaries_name(context.color_primaries),
        color_transfer=transfer_name(context.color_trc),
        width=context.width,
        height=context.height,
        sar=f"{sar.numerator}:{sar.denominator}" if sar else None,
        rotation=frame.rotation if frame is not None else 0,
        fps=_rate(stream),
        base_rate=stream.base_rate or None,
        time_base=Fraction(stream.time_base),
        duration=_stated_duration(container, stream),
        frames=stream.frames or None,
        start_pts=stream.start_time or 0,
        size_bytes=size,
        bit_rate=context.bit_rate or None,
        container_bit_rate=container.bit_rate or None,
        has_audio=heard is not None,
        audio_codec=heard.codec.canonical_name if heard else None,
        sample_rate=heard.sample_rate if heard else None,
        channels=heard.channels if heard else None,
        channel_layout=_LAYOUTS.get(heard.layout.name, heard.layout.name) if heard else None,
        audio_bit_rate=heard.bit_rate or None if heard else None,
        audio_streams=len(streams.audio),
        subtitle_streams=len(streams.subtitles),
        chapters=len(container.chapters()),
    )


def _rate(stream: Any) -> Fraction:
    """Frames a second on average; 0 where FFmpeg cannot tell."""
    rate = Fraction(stream.average_rate or stream.guessed_rate or 0)
    # For raw DV, FFmpeg takes every tick of the clock for a frame.
    is_clock = bool(stream.base_rate) and stream.base_rate < rate == 1 / stream.time_base
    return Fraction(stream.base_rate) if is_clock else rate


def _streams(container: Any) -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(
            index=stream.index,
            kind=stream.type,
            codec=stream.codec_context.codec.canonical_name if stream.codec_context else None,
            language=None if stream.language in (None, "und") else one_line(stream.language),
            is_default=bool(stream.disposition & av.stream.Disposition.default),
            is_cover=_is_cover(stream),
        )
        for stream in container.streams
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
    size = size_of(file)
    if not size:
        raise Rejected("empty", "the file has no bytes")
    if is_mp4(file) and mp4.names_too_many(file, size):
        raise Rejected("undecodable", "the header names more samples than the file has bytes")
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
        raise why_not(file) from None
    with container:
        yield container


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
    start = Fraction(container.start_time or 0, av.time_base)
    # Matroska's muxers state when a file ends, the others how long it is.
    near_end = stated * 9 / 10 + (0 if container.format.name == _MATROSKA else start)
    near_end = max(start, near_end)
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
            return _frame_of(packet) or next(iter(stream.codec_context.decode(None)), None)
    return None


def first_frame(container: Any, stream: Any) -> Any | None:
    """The first frame of pictures or sound that decodes; ``None`` if too many packets do not."""
    for number, packet in enumerate(demux(container, [stream])):
        if (frame := _frame_of(packet)) is not None or number == FIRST_FRAME_PACKETS:
            return frame
    return None


def _frame_of(packet: Any) -> Any | None:
    """The first frame that comes out of the decoder after ``packet``, if it can read that."""
    check_clear(packet)
    with suppress(av.FFmpegError):
        return next(iter(packet.decode()), None)
    return None


def check_clear(packet: Any) -> None:
    """Raise Rejected ``drm`` where a packet is encrypted: what a decoder makes of it is noise."""
    if packet.size and packet.has_sidedata("encryption_info"):
        raise Rejected("drm", "the stream is encrypted and can only be read with its key")


def _stated_duration(container: Any, stream: Any) -> Fraction:
    """Seconds, by the header; 0 where it does not tell."""
    if (stream.duration or 0) > 0:
        return Fraction(stream.duration * Fraction(stream.time_base))
    return Fraction(max(container.duration or 0, 0), av.time_base)
