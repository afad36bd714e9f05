"""What a video may be read from: a file, its bytes, or a sample of a shard."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from reelmill.dataset import Version
from reelmill.errors import NotFoundError, ReelmillError, Rejected
from reelmill.loading.fields import ending
from reelmill.loading.openers import ShardOpener
from reelmill.loading.readers.media import Media
from reelmill.loading.samples import shown
from reelmill.shards import index
from reelmill.shards.foreign import Part, read_groups
from reelmill.shards.reader import ShardReader

Shard: TypeAlias = str | os.PathLike[str] | ShardReader | tuple[Version, str]
"""A tar by its path or address, a shard's reader, or a version and a shard's ID."""

SampleName: TypeAlias = str | tuple[str, str]
"""A sample's key, or a key and the field that holds the video."""

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | tuple[Shard, SampleName]
"""A path, the bytes of a file, an open binary file, or a shard and a sample of it."""

VIDEO_ENDINGS: Final = frozenset(
    [
        *("mp4", "m4v", "mov", "webm", "mkv", "avi", "ts", "m2ts"),
        *("flv", "mpg", "mpeg", "ogv", "wmv", "mxf", "video"),
    ]
)
"""Endings of fields that hold a video."""


def video_fields(names: Iterable[str]) -> list[str]:
    """Those of some fields that by the ends of their names hold a video."""
    return [name for name in names if ending(name) in VIDEO_ENDINGS]


def media_of(source: VideoSource) -> Media:
    """The video that ``source`` names. That of a sample is read into memory.

    Raises:
        NotFoundError: there is no such shard, sample or field.
        StoreError: a tar cannot be reached.
        ReelmillError: it is no source of video, or a sample has no or several videos.
        Rejected: a tar that cannot be read; see :func:`~reelmill.shards.foreign.read_groups`.
    """
    if isinstance(source, tuple) and len(source) == 2:
        return _of_sample(*source)
    if isinstance(source, bytes | bytearray | memoryview):
        return Media(bytes(source), "the bytes given")
    if isinstance(source, io.BytesIO):
        return Media(source.getvalue(), "the bytes given")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if "://" in name:
            raise ReelmillError(
                f"{shown(name)} is an address: read it first, and give its bytes or an open file"
            )
        return Media(Path(name).absolute(), name)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return Media(source, f"file {getattr(source, 'name', '')}".rstrip())
    raise ReelmillError(
        f"{type(source).__name__} is no source of video: give a path, bytes, an open binary file, "
        "or a shard and a sample"
    )


def _of_sample(shard: Shard, sample: SampleName) -> Media:
    key, field = (sample, None) if isinstance(sample, str) else sample
    if isinstance(shard, str | os.PathLike):
        return _in_tar(os.fspath(shard), key, field)
    return _in_shard(_shard_reader(shard, key), key, field)


def _shard_reader(shard: ShardReader | tuple[Version, str], key: str) -> ShardReader:
    if isinstance(shard, ShardReader):
        return shard
    version, number = shard
    found = next((one for one in version.shards() if one.shard.id == number), None)
    if found is None:
        raise NotFoundError(f"{version} has no shard {number}")
    if not version.counts(key):
        raise NotFoundError(f"sample {key} was removed from {version}")
    return found


def _in_shard(shard: ShardReader, key: str, field: str | None) -> Media:
    """By the index: the bytes of one field are read, and nothing else."""
    where = f"shard {shard.shard.id}"
    row = next((row for row in shard.rows() if row["key"] == key), None)
    if row is None:
        raise NotFoundError(f"{where} has no sample {key}")
    names = [member.name for member in index.members(row["fields"])]
    field = _video_field(names, field, f"sample {key} of {where}")
    sample = next(shard.samples([field], [key]))
    return Media(sample.fields[field], f"{where}: {key}.{field}")


def _in_tar(tar: str, key: str, field: str | None) -> Media:
    """By the headers of the members before it."""
    where = shown(tar)
    with ShardOpener().seekable(tar) as file:
        size = file.seek(0, os.SEEK_END)
        group = next((one for one in read_groups(file, size) if one.key == key), None)
        if group is None:
            raise NotFoundError(f"{where} has no sample {key}")
        if group.problem is not None:
            raise Rejected("damaged", f"sample {key} of {where}: {group.problem}")
        parts: Mapping[str, Part] = group.parts
        field = _video_field(list(parts), field, f"sample {key} of {where}")
        file.seek(parts[field].offset)
        return Media(file.read(parts[field].size), f"{where}: {key}.{field}")


def _video_field(names: list[str], field: str | None, where: str) -> str:
    if field is not None:
        if field not in names:
            raise NotFoundError(f"{where} has no field {field}; it has {', '.join(names)}")
        return field
    videos = video_fields(names)
    if len(videos) != 1:
        what = "no video" if not videos else f"several videos ({', '.join(videos)})"
        raise ReelmillError(f"{where} has {what}: name a field of {', '.join(names)}")
    return videos[0]
