"""Frames: each clip becomes samples of N frames at a stride, as pictures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.errors import Rejected
from reelmill.media.decode import Resize, frames, resized, to_rgb, upright_size
from reelmill.media.images import encode_jpeg, encode_png
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import MAX_COUNT, Job, Output, Params, Sample, SampleStage, sample_json
from reelmill.tasks.media_fields import (
    OF_SOURCE,
    VIDEO,
    about_of,
    picture_field,
    texts_of,
    video_of,
)

if TYPE_CHECKING:
    from av import VideoFrame

Side = Annotated[int, Field(ge=2, le=16384)]


class FramesParams(Params):
    """Which frames belong together, and what becomes of them."""

    count: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="frames in a sample; 3 makes triplets"
    )
    stride: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        1, description="frames from one picture of a sample to the next"
    )
    step: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="frames from one sample's start to the next; without it none overlap"
    )
    max_samples: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="samples of one clip at most, from its start"
    )
    size: tuple[Side, Side] | None = Field(None, description="[width, height] to resize to")
    min_side: Side | None = Field(None, description="shrink so that the shorter side is this")
    max_side: Side | None = Field(None, description="shrink so that the longer side is this")
    format: Literal["jpg", "png"] = Field("jpg", description="jpg is small, png is lossless")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="of jpg")

    @model_validator(mode="after")
    def _one_size(self) -> FramesParams:
        if sum(side is not None for side in (self.size, self.min_side, self.max_side)) > 1:
            raise ValueError("give one of size, min_side and max_side")
        return self

    def effective(self) -> dict[str, Any]:
        return {
            "step": self.step or self.count * self.stride,
            "quality": self.quality if self.format == "jpg" else None,
        }

    @property
    def resize(self) -> Resize | None:
        if self.size is None and self.min_side is None and self.max_side is None:
            return None
        return Resize(size=self.size, min_side=self.min_side, max_side=self.max_side)


class Frames(SampleStage[FramesParams]):
    """A sample is keyed by its clip's key and its first frame's number: ``000010005_003_000012``.

    Its pictures are ``000000.image.jpg``, ``000001.image.jpg``, …; its ``json`` has the frames'
    numbers and their times in seconds, in the clip and in the source video.
    """

    name = "frames"
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
        last = (params.count - 1) * params.stride
        step = params.step or params.count * params.stride
        kept: dict[int, _Picture] = {}
        made = total = 0
        for number, frame in enumerate(frames(video_of(sample.fields))):
            total = number + 1
            if not _is_member(number, params, step):
                continue
            kept[number] = _picture(number, frame, params)
            start = made * step
            if number == start + last:
                chosen = [kept[start + i * params.stride] for i in range(params.count)]
                yield _sample(sample.key, chosen, about, params.format)
                made += 1
                if made == params.max_samples:
                    break
                kept = {n: picture for n, picture in kept.items() if n >= made * step}
        if not made:
            raise Rejected("too_short", f"{total} frames; a sample spans {last + 1}")


def _is_member(number: int, params: FramesParams, step: int) -> bool:
    """Whether a frame is part of any sample: only those are converted and encoded."""
    firsts = (number - i * params.stride for i in range(params.count))
    return any(first >= 0 and first % step == 0 for first in firsts)


@dataclass(frozen=True, slots=True)
class _Picture:
    number: int
    time: Fraction
    width: int
    height: int
    data: bytes


def _picture(number: int, frame: VideoFrame, params: FramesParams) -> _Picture:
    width, height = resized(*upright_size(frame), params.resize)
    rgb = to_rgb(frame, (width, height))
    data = encode_jpeg(rgb, params.quality) if params.format == "jpg" else encode_png(rgb)
    assert frame.pts is not None
    assert frame.time_base is not None
    return _Picture(number, frame.pts * Fraction(frame.time_base), width, height, data)


def _sample(clip: str, pictures: list[_Picture], about: Mapping[str, Any], ending: str) -> Sample:
    first = pictures[0]
    times = [round(float(picture.time), 6) for picture in pictures]
    key = f"{clip}_{first.number:06d}"
    start = about.get("start")
    offset = start if isinstance(start, int | float) and 0 <= start <= MAX_COUNT else 0
    value = {
        "key": key,
        "clip": clip,
        "source": texts_of(about.get("source"), ("key", *OF_SOURCE)),
        "frames": [picture.number for picture in pictures],
        "times": times,
        "source_times": [round(offset + time, 6) for time in times],
        "width": first.width,
        "height": first.height,
    }
    fields = {picture_field(place, ending): picture.data for place, picture in enumerate(pictures)}
    columns = {
        "clip": clip,
        "frame": first.number,
        "time": times[0],
        "width": first.width,
        "height": first.height,
    }
    return Sample(key, {**fields, "json": sample_json(value)}, columns)
