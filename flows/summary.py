"""What is in a video file, in lines for people."""

from __future__ import annotations

from reelmill.media.describe import MediaInfo
from reelmill.media.probe import StreamInfo, VideoInfo
from reelmill.media.timing import Timing
from reelmill.units import format_bytes

_EVENNESS = {None: "times repeat or go back", True: "variable rate", False: "constant rate"}


def summary(found: MediaInfo) -> dict[str, str]:
    """What there is to say, by what it is about."""
    video, timing = found.video, found.timing
    length = f"{float(video.duration):.3f} s"
    rows = {
        "file": f"{video.container}, {format_bytes(video.size_bytes)}, {length}"
        + _bits(video.container_bit_rate),
        "video": _picture(video) + _bits(video.bit_rate or timing.bit_rate),
        "colour": _colour(video),
        "frames": _frames(video, timing),
        "keyframes": f"{len(timing.keyframes):,} ({timing.closed_gops:,} of closed GOPs), "
        f"frames in the longest GOP: {timing.longest_gop:,}",
    }
    if video.has_audio:
        heard = f"{video.audio_codec}, {video.sample_rate} Hz, {video.channel_layout}"
        rows["audio"] = heard + _bits(video.audio_bit_rate)
    if len(found.streams) > 1 + video.has_audio:
        rows["streams"] = ", ".join(map(_stream, found.streams))
    if video.chapters:
        rows["chapters"] = f"{video.chapters:,}"
    return rows


def _picture(video: VideoInfo) -> str:
    codec = f"{video.codec} ({video.profile})" if video.profile else video.codec
    size = f"{codec}, {video.width}x{video.height}"
    if video.sar not in (None, "1:1"):
        size += f", pixels {video.sar}"
    return f"{size}, turned by {video.rotation}°" if video.rotation else size


def _colour(video: VideoInfo) -> str:
    names = (video.color_space, video.color_primaries, video.color_transfer)
    tags = "/".join(name or "?" for name in names) if any(names) else "no colour tags"
    told = f"{video.pix_fmt}, range {video.color_range or '?'}, {tags}"
    return f"{told} (HDR)" if video.is_hdr else told


def _frames(video: VideoInfo, timing: Timing) -> str:
    exact = f" ({video.fps})" if video.fps.denominator > 1 else ""
    told = f"{timing.frames:,}, {float(video.fps):.6g} a second{exact}, {_EVENNESS[timing.is_vfr]}"
    return f"{told}, {timing.hidden:,} more are hidden" if timing.hidden else told


def _stream(stream: StreamInfo) -> str:
    kind = "cover" if stream.is_cover else stream.kind
    language = f" ({stream.language})" if stream.language else ""
    return f"{kind} {stream.codec or '?'}{language}"


def _bits(rate: int | None) -> str:
    return f", {rate / 1000:,.0f} kbit/s" if rate else ""
