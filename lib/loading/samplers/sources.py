"""What clips are sampled from: a reader, a decoder of TorchCodec, a file, a shard's sample."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reelmill.errors import ReelmillError, Rejected
from reelmill.loading.readers import VideoReader, open_video
from reelmill.loading.readers.sources import video_fields
from reelmill.shards.reader import Sample


@contextmanager
def opened(source: Any, opening: Mapping[str, Any]) -> Iterator[Any]:
    """The reader, or decoder of TorchCodec, of ``source``. What is opened here is closed again.

    Args:
        opening: keywords of ``open_video``.

    Raises:
        ValueError: there are such keywords, and ``source`` is open already.
        ReelmillError: it is a sample with several videos, or with one that has been decoded.
        Rejected: ``no_video``, for a sample without one.
        And as ``open_video`` does.
    """
    if fields := fields_of(source):
        source = fields[video_field(fields)]
    if isinstance(source, VideoReader) or is_decoder(source):
        if opening:
            raise ValueError(
                f"{', '.join(opening)} say how to open a file, and this video is open already"
            )
        yield source
        return
    with open_video(source, **opening) as reader:
        yield reader


def is_decoder(thing: Any) -> bool:
    """Whether it is a ``torchcodec.decoders.VideoDecoder``. TorchCodec is not imported for that."""
    decoders = sys.modules.get("torchcodec.decoders")
    return decoders is not None and isinstance(thing, decoders.VideoDecoder)


def fields_of(source: Any) -> Mapping[str, Any]:
    """The fields of a sample, as Reelmill or as webdataset gives it; none of anything else."""
    if isinstance(source, Sample):
        return {"__key__": source.key, **source.fields}
    return source if isinstance(source, Mapping) else {}


def video_field(fields: Mapping[str, Any]) -> str:
    """The one field of a sample that holds a video. Raises as :func:`opened` does."""
    found = video_fields(name for name in fields if not name.startswith("__"))
    key = fields.get("__key__", "without a key")
    if not found:
        there = ", ".join(sorted(name for name in fields if not name.startswith("__")))
        raise Rejected("no_video", f"none of the fields of sample {key} is a video: {there}")
    if len(found) > 1:
        raise ReelmillError(
            f"sample {key} has several videos, {', '.join(found)}: give the value of one of them"
        )
    video = fields[found[0]]
    if isinstance(video, (bytes, bytearray, memoryview, VideoReader)) or is_decoder(video):
        return found[0]
    raise ReelmillError(
        f"field {found[0]} of sample {key} holds a {type(video).__name__}, not a video's bytes: "
        "sample clips before it is decoded"
    )
