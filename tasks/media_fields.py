"""Which field of a sample holds its video, and what the fields of pictures are called."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from reelmill.errors import Rejected

if TYPE_CHECKING:
    from reelmill.media.probe import VideoInfo
    from reelmill.media.sound import SoundInfo
    from reelmill.media.timing import Timing

_BY_FORMAT = {
    "mov": "mp4",
    "mp4": "mp4",
    "avi": "avi",
    "mpegts": "ts",
    "flv": "flv",
    "mpeg": "mpg",
    "ogg": "ogv",
    "asf": "wmv",
}
_WEBM = frozenset({"vp8", "vp9", "av1"})

VIDEO = ("mp4", "webm", "mkv", "avi", "ts", "flv", "mpg", "ogv", "wmv", "video")
"""Fields that hold a video, by container; ``video`` for one that has no usual ending."""

FIRST_PICTURES = ("000000.image.jpg", "000000.image.png", "000000.image.webp")
"""What the first of a sample's pictures may be called; see ``picture_field``."""

_SOUND_BY_FORMAT = {
    "mov": "m4a",
    "mp4": "m4a",
    "matroska": "mka",
    "webm": "mka",
    "ogg": "ogg",
    "mp3": "mp3",
    "aac": "aac",
    "flac": "flac",
    "wav": "wav",
}

SOUND = (*dict.fromkeys(_SOUND_BY_FORMAT.values()), "audio")
"""Fields that hold sound alone, by container; ``audio`` for what has no usual ending."""

Look = Literal["packets", "header"]
"""How far a video is looked into: all of its packets, or its header and first frame only."""

VIDEO_COLUMNS = pa.schema(
    [
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("profile", pa.string()),
        pa.field("pix_fmt", pa.string()),
        pa.field("color_range", pa.string()),
        pa.field("color_space", pa.string()),
        pa.field("color_primaries", pa.string()),
        pa.field("color_transfer", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sar", pa.string()),
        pa.field("rotation", pa.int16()),
        pa.field("fps", pa.float64()),
        pa.field("vfr", pa.bool_()),
        pa.field("duration", pa.float64()),
        pa.field("frames", pa.int64()),
        pa.field("bit_rate", pa.int64()),
        pa.field("gop", pa.int64()),
        pa.field("keyframes", pa.list_(pa.float64())),
        pa.field("has_audio", pa.bool_()),
        pa.field("audio_codec", pa.string()),
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("channel_layout", pa.string()),
        pa.field("subtitles", pa.int32()),
    ]
)
"""Index columns of what a video is: pixels, frames per second, bits per second, hertz; ``gop`` is
the longest in frames; times are in seconds. What is not known is null. Keyframes are in seconds and
not in ticks, since that is what spans and other columns are in, and filters need no time base."""

FRAME_COLUMNS = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("sequence", pa.string()),
        pa.field("frame", pa.int64()),
        pa.field("time", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
"""Index columns of a frame of a sequence, or of the first of several: seconds and pixels."""

MAX_KEYFRAMES = 2**16
"""A longer list of keyframes is left out of the index."""

OF_SOURCE = ("url", "caption", "sha256")
"""What the ``json`` of whatever is made of a video says of it, where it is known."""

_RATIO = re.compile(r"-?[0-9]{1,19}/[1-9][0-9]{0,18}")

_MAX_START = 2**53 - 1

_PICTURE = re.compile(r"(\d{6})\.image\.(jpg|png|webp)")
_STILL = re.compile(r"(?:(\d{6})\.)?(?:([a-z0-9_.-]+)\.)?(?:jpg|jpeg|png|webp)")
_FLOW = re.compile(r"(\d{6})\.flow(?:_back)?\.(png|flo|npy)")


def video_field(container: str, codec: str) -> str:
    """The field for a video, from FFmpeg's names of its container and codec."""
    formats = container.split(",")
    if "matroska" in formats or "webm" in formats:
        return "webm" if codec in _WEBM else "mkv"
    return next((_BY_FORMAT[name] for name in formats if name in _BY_FORMAT), "video")


def video_columns(info: VideoInfo, timing: Timing | None) -> dict[str, Any]:
    """The values of ``VIDEO_COLUMNS`` for a video; ``timing`` is None where packets were not read.

    Keyframes are left out where every frame is one (``gop`` is 1 then), or there are too many."""
    columns: dict[str, Any] = {
        "container": info.container,
        "codec": info.codec,
        "profile": info.profile,
        "pix_fmt": info.pix_fmt,
        "color_range": info.color_range,
        "color_space": info.color_space,
        "color_primaries": info.color_primaries,
        "color_transfer": info.color_transfer,
        "width": info.width,
        "height": info.height,
        "sar": info.sar,
        "rotation": info.rotation,
        "fps": float(info.fps),
        "duration": float(info.duration),
        "frames": info.frames,
        "bit_rate": info.bit_rate,
        "has_audio": info.has_audio,
        "audio_codec": info.audio_codec,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
        "channel_layout": info.channel_layout,
        "subtitles": info.subtitle_streams,
    }
    if timing is not None:
        columns |= _counted(info, timing) | {"gop": timing.longest_gop}
        if not timing.is_all_intra and len(timing.keyframes) <= MAX_KEYFRAMES:
            columns["keyframes"] = timing.keyframe_seconds
    return columns


def video_json(info: VideoInfo, timing: Timing | None) -> dict[str, Any]:
    """What a sample's ``json`` says of a video: all that is known but the times of keyframes."""
    found = info.as_json()
    if timing is not None:
        found |= _counted(info, timing)
    # A stranger's header may state any number, and canonical JSON has none beyond 2**53.
    return {
        name: str(value) if isinstance(value, int) and abs(value) >= 2**53 else value
        for name, value in found.items()
        if value is not None
    }


def _counted(info: VideoInfo, timing: Timing) -> dict[str, Any]:
    """What packets tell better than the header."""
    return {
        "vfr": timing.is_vfr,
        "frames": timing.frames,
        "bit_rate": info.bit_rate or timing.bit_rate,
    }


def sound_field(container: str) -> str:
    """The field for sound alone, from FFmpeg's name of its container."""
    names = container.split(",")
    return next((_SOUND_BY_FORMAT[name] for name in names if name in _SOUND_BY_FORMAT), "audio")


def video_of(fields: Mapping[str, bytes]) -> bytes:
    """The video of a sample.

    Raises:
        Rejected: ``no_video``, if no field holds one.
    """
    for name in VIDEO:
        if name in fields:
            return fields[name]
    raise Rejected("no_video", f"none of its fields is a video: {', '.join(sorted(fields))}")


def sound_columns(info: SoundInfo) -> dict[str, Any]:
    """Those of ``VIDEO_COLUMNS`` that a file of sound alone has a value for."""
    return {
        "container": info.container,
        "codec": info.codec,
        "duration": float(info.duration),
        "has_audio": True,
        "audio_codec": info.codec,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
        "channel_layout": info.channel_layout,
    }


def about_of(fields: Mapping[str, bytes]) -> dict[str, Any]:
    """What a sample's ``json`` says of it: nothing, if it is no JSON object.

    Adopted samples have the ``json`` that somebody gave them, so any value may have any type. What
    canonical JSON cannot carry is null, integers beyond 2**53 are texts.
    """
    try:
        about = json.loads(
            fields.get("json", b"{}"),
            parse_constant=lambda _: None,
            parse_float=_finite,
            parse_int=_exact,
        )
        json.dumps(about, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def texts_of(about: Any, names: Iterable[str]) -> dict[str, str]:
    """Those of the named values that are texts; none if ``about`` is no object."""
    if not isinstance(about, dict):
        return {}
    return {name: text for name in names if isinstance(text := about.get(name), str)}


def start_of(about: Mapping[str, Any]) -> tuple[Fraction, bool]:
    """When in its source a clip begins, in seconds, and whether that is exact: what its ``json``
    says; exactly at 0 if it is no clip."""
    exact: Any = about.get("exact")
    start: Any = about.get("start")
    text = exact.get("start") if isinstance(exact, dict) else None
    if isinstance(text, str) and _RATIO.fullmatch(text):
        return Fraction(text), True
    if type(start) in (int, float) and 0 <= start <= _MAX_START:
        return Fraction(repr(start)), False
    return Fraction(0), start is None


def caption_field(about: Mapping[str, Any]) -> dict[str, bytes]:
    """The field ``txt`` of a sample with a caption, as readers of captioned videos expect it."""
    caption = texts_of(about, ["caption"]).get("caption")
    return {"txt": caption.encode()} if caption else {}


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _exact(text: str) -> int | str:
    return number if abs(number := int(text)) < 2**53 else text


def picture_field(number: int, ending: str) -> str:
    """The field of a sample's picture: ``000001.image.jpg``."""
    return f"{number:06d}.image.{ending}"


def pictures_of(fields: Iterable[str]) -> list[tuple[int, str]]:
    """The pictures of a sample as (number, field), in order."""
    found = [(match, field) for field in fields if (match := _PICTURE.fullmatch(field))]
    return sorted((int(match[1]), field) for match, field in found)


class Still(NamedTuple):
    """A field that is a picture of any kind: ``000001.depth.png`` is number 1 and ``depth``; both
    are None where a name has none."""

    number: int | None
    what: str | None
    field: str


def stills_of(fields: Iterable[str]) -> list[Still]:
    """Whatever people can look at in a sample, in the order of numbers, images first; no flow."""
    found = [
        Still(int(match[1]) if match[1] else None, match[2], field)
        for field in fields
        if (match := _STILL.fullmatch(field)) and match[2] not in ("flow", "flow_back")
    ]
    return sorted(found, key=lambda s: (s.number or 0, s.what != "image", s.what or "", s.field))


def flow_field(number: int, ending: str, back: bool = False) -> str:
    """The field of flow that begins at a picture: ``000000.flow.png`` leads on from it, and
    ``000001.flow_back.png`` back."""
    return f"{number:06d}.flow{'_back' if back else ''}.{ending}"


def mask_field(number: int, back: bool = False) -> str:
    """The field that says where flow of that number leads to nothing: ``000000.occluded.png``."""
    return f"{number:06d}.occluded{'_back' if back else ''}.png"


def flows_of(fields: Iterable[str]) -> list[tuple[int, str]]:
    """The flow of a sample as (number of the picture that it begins at, field), in order."""
    found = [(match, field) for field in fields if (match := _FLOW.fullmatch(field))]
    return sorted((int(match[1]), field) for match, field in found)
