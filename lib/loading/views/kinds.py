"""What a field holds, as far as its name tells: other libraries go by the extension, too."""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["video", "image", "audio", "json", "text", "integer", "array", "arrays", "bytes"]

_EXTENSIONS: Final[dict[Kind, str]] = {
    "video": "mp4 mkv webm mov avi mpg mpeg m4v ts",
    "image": "jpg jpeg png webp bmp gif tif tiff ppm pgm pbm",
    "audio": "flac wav mp3 ogg opus m4a",
    "json": "json jsn",
    "text": "txt text transcript",
    "integer": "cls cls2 index inx id",
    "array": "npy",
    "arrays": "npz",
}

_KINDS: Final[dict[str, Kind]] = {
    extension: kind for kind, names in _EXTENSIONS.items() for extension in names.split()
}

_MEDIA_TYPES: Final = {
    "avi": "video/x-msvideo",
    "flac": "audio/flac",
    "gif": "image/gif",
    "jpg": "image/jpeg",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "mkv": "video/matroska",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mpg": "video/mpeg",
    "tif": "image/tiff",
    "ts": "video/mp2t",
    "wav": "audio/wav",
}
"""Where it is not the kind and the extension."""


def extension_of(field: str) -> str:
    """The last extension of a field, as it is written: ``jpg`` of ``000000.image.jpg``."""
    return field.rpartition(".")[2]


def kind_of(field: str) -> Kind:
    """What a field holds, by its last extension in whatever case."""
    return _KINDS.get(extension_of(field).lower(), "bytes")


def media_type(extension: str) -> str:
    """The media type of a file with an extension."""
    name = extension.lower()
    kind = _KINDS.get(name, "bytes")
    if kind == "json":
        return "application/json"
    if kind in ("text", "integer"):
        return "text/plain"
    if kind in ("video", "image", "audio"):
        return _MEDIA_TYPES.get(name, f"{kind}/{name}")
    return "application/octet-stream"
