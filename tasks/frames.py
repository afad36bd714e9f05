"""Frames: each clip becomes samples of N frames at a stride, as pictures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from reelmill.errors import Rejected
from reelmill.media.decode import frames, to_rgb, upright_size
from reelmill.media.images import boxed, encode_jpeg, encode_png
from reelmill.media.size import PictureSide, Sizing
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import MAX_COUNT, Job, Output, Sample, SampleStage, sample_json
from reelmill.tasks.media_fields import (
    OF_SOURCE,
    VIDEO,
    about_of,
    picture_field,
    texts_of,
    video_of,
)
from reelmill.tasks.tuples import NoCuts, TupleParams, Window, gathered

if TYPE_CHECKING:
    from av import VideoFrame


class FramesParams(TupleParams, Sizing[PictureSide]):
    """Which frames belong together, and what becomes of them."""

    format: Literal["jpg", "png"] = Field("jpg", description="jpg is small, png is lossless")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="of jpg")

    def effective(self) -> dict[str, Any]:
        return super().effective() | {"quality": self.quality if self.format == "jpg" else None}


class Frames(SampleStage[FramesParams]):
    """A sample is keyed by its clip's key and its first frame's number: ``000010005_003_000012``.

    Its pictures are ``000000.image.jpg``, ``000001.image.jpg``, …; its ``json`` has the frames'
    numbers and their times in seconds, in the clip and in the source video.
    """

    name = "frames"
    version = 2
    params = FramesParams
    memory = 350_000_000
    reads = (*VIDEO, "json")
    columns = pa.schema(
        [
            pa.field("clip", pa.string()),
            pa.field("frame", pa.int64()),
            pa.field("time", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
        ]
    )

    def tools(self, params: FramesParams) -> dict[str, str]:
        encoder = "simplejpeg" if params.format == "jpg" else "opencv-python-headless"
        return {"av": version("av"), encoder: version(encoder)}

    def each(self, job: Job[FramesParams], sample: InputSample) -> Iterator[Output]:
        params = job.params
        about = about_of(sample.fields)
        window: Window[_Picture] = params.window()
        seen = 0

        def picture(number: int, frame: VideoFrame) -> _Picture:
            return _picture(number, frame, params)

        def counted() -> Iterator[VideoFrame]:
            nonlocal seen
            for frame in frames(video_of(sample.fields)):
                seen += 1
                yield frame

        for _, chosen in gathered(counted(), window, NoCuts(), picture):
            yield _sample(sample.key, chosen, about, params.format)
        if not window.given:
            raise Rejected("too_short", f"{seen} frames; a sample spans {params.reach + 1}")


@dataclass(frozen=True, slots=True)
class _Picture:
    number: int
    time: Fraction
    width: int
    height: int
    data: bytes


def _picture(number: int, frame: VideoFrame, params: FramesParams) -> _Picture:
    fit = params.fit(*upright_size(frame))
    width, height = fit.padded
    rgb = boxed(to_rgb(frame, fit.scaled), fit)
    data = encode_jpeg(rgb, params.quality) if params.format == "jpg" else encode_png(rgb)
    assert frame.pts is not None
    assert frame.time_base is not None
    return _Picture(number, frame.pts * Fraction(frame.time_base), width, height, data)


def tuple_about(
    clip: str,
    frames: Sequence[tuple[int, Fraction]],
    size: tuple[int, int],
    about: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """The key of a sample of frames, and what its ``json`` says of them.

    Args:
        clip: the key of their clip, of which ``about`` is the ``json``.
        frames: number and time in seconds of each.
        size: (width, height) of the pictures.
    """
    times = [round(float(time), 6) for _, time in frames]
    key = f"{clip}_{frames[0][0]:06d}"
    start = about.get("start")
    offset = start if isinstance(start, int | float) and 0 <= start <= MAX_COUNT else 0
    return key, {
        "key": key,
        "clip": clip,
        "source": texts_of(about.get("source"), ("key", *OF_SOURCE)),
        "frames": [number for number, _ in frames],
        "times": times,
        "source_times": [round(offset + time, 6) for time in times],
        "width": size[0],
        "height": size[1],
    }


def _sample(clip: str, pictures: list[_Picture], about: Mapping[str, Any], ending: str) -> Sample:
    first = pictures[0]
    timed = [(picture.number, picture.time) for picture in pictures]
    key, value = tuple_about(clip, timed, (first.width, first.height), about)
    fields = {picture_field(place, ending): picture.data for place, picture in enumerate(pictures)}
    columns = {
        "clip": clip,
        "frame": first.number,
        "time": value["times"][0],
        "width": first.width,
        "height": first.height,
    }
    return Sample(key, {**fields, "json": sample_json(value)}, columns)
