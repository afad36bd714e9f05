"""Which field of a sample holds its video, and what the fields of pictures are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from reelmill.errors import Rejected

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

_PICTURE = re.compile(r"(\d{6})\.image\.(jpg|png)")


def video_field(container: str, codec: str) -> str:
    """The field for a video, from FFmpeg's names of its container and codec."""
    formats = container.split(",")
    if "matroska" in formats or "webm" in formats:
        return "webm" if codec in _WEBM else "mkv"
    return next((_BY_FORMAT[name] for name in formats if name in _BY_FORMAT), "video")


def video_of(fields: Mapping[str, bytes]) -> bytes:
    """The video of a sample.

    Raises:
        Rejected: ``no_video``, if no field holds one.
    """
    for name in VIDEO:
        if name in fields:
            return fields[name]
    raise Rejected("no_video", f"none of its fields is a video: {', '.join(sorted(fields))}")


def picture_field(number: int, ending: str) -> str:
    """The field of a sample's picture: ``000001.image.jpg``."""
    return f"{number:06d}.image.{ending}"


def pictures_of(fields: Iterable[str]) -> list[tuple[int, str]]:
    """The pictures of a sample as (number, field), in order."""
    found = [(match, field) for field in fields if (match := _PICTURE.fullmatch(field))]
    return sorted((int(match[1]), field) for match, field in found)
