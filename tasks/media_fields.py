"""Which field of a sample holds its video, and what the fields of pictures are called."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reelmill.errors import Rejected

if TYPE_CHECKING:
    from reelmill.media.probe import VideoInfo
    from reelmill.media.sound import SoundInfo

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

VIDEO_COLUMNS = pa.schema(
    [
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("duration", pa.float64()),
        pa.field("has_audio", pa.bool_()),
    ]
)
"""Index columns of what a video is: pixels, frames per second, seconds."""

_PICTURE = re.compile(r"(\d{6})\.image\.(jpg|png)")


def video_field(container: str, codec: str) -> str:
    """The field for a video, from FFmpeg's names of its container and codec."""
    formats = container.split(",")
    if "matroska" in formats or "webm" in formats:
        return "webm" if codec in _WEBM else "mkv"
    return next((_BY_FORMAT[name] for name in formats if name in _BY_FORMAT), "video")


def video_columns(info: VideoInfo) -> dict[str, Any]:
    """The values of ``VIDEO_COLUMNS`` for a video."""
    return {
        "container": info.container,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "duration": float(info.duration),
        "has_audio": info.has_audio,
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
