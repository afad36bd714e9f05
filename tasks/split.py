"""Split: each video becomes clips, at scene cuts, at fixed lengths or at given spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.errors import Rejected, StageError
from reelmill.media import spans
from reelmill.media.cut import Clip, CutFailure, Encoding, copy_spans, encode_spans
from reelmill.media.ffmpeg import encoder_id
from reelmill.media.probe import packet_table
from reelmill.media.scenes import AnyDetector, chosen, detect
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Runtime,
    Sample,
    SampleStage,
    sample_json,
)
from reelmill.tasks.media_fields import VIDEO, about_of, caption_field, texts_of, video_of
from reelmill.tasks.scenes import scenes_of
from reelmill.units import Number, Seconds


class SplitParams(Params):
    """Where to cut, and how."""

    method: Literal["scenes", "fixed", "spans"] = Field(
        "scenes", description="at scene cuts, every so many seconds, or at the table's spans"
    )
    cut: Literal["exact", "copy"] = Field(
        "exact",
        description="exact: to the frame, encoded anew; copy: as it is, fast, but only at "
        "keyframes, so that clips may begin earlier and be much longer than asked",
    )
    seconds: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="length of a clip, for method 'fixed'"
    )
    stride: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="from one clip's start to the next, for method 'fixed'"
    )
    min_seconds: Seconds = Field(Decimal(1), description="shorter clips are dropped")
    max_seconds: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="longer clips are divided into equal parts"
    )
    detector: Literal["content", "adaptive", "threshold", "hash", "histogram"] = Field(
        "content", description="PySceneDetect's detector, for method 'scenes'"
    )
    threshold: Number | None = Field(None, description="the detector's threshold, if not its own")
    min_scene: Seconds = Field(
        Decimal("0.6"), description="the detector's shortest scene; shorter ones stay together"
    )
    detectors: tuple[AnyDetector, ...] = Field(
        (), description="several detectors, or one with more settings, in place of those above"
    )
    audio: bool = Field(True, description="keep the sound")
    crf: Annotated[int, Field(ge=0, le=51)] = Field(
        18, description="x264's quality for exact cuts; smaller is better and larger files"
    )
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"
    ] = Field("veryfast", description="x264's effort for exact cuts")
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(3600), description="for the cutting of one video"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SplitParams:
        if self.method == "fixed" and self.seconds is None:
            raise ValueError("method 'fixed' needs seconds, the length of a clip")
        if self.method != "fixed" and (self.seconds or self.stride):
            raise ValueError("seconds and stride are for method 'fixed'")
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ValueError("max_seconds is less than min_seconds")
        chosen(self.detectors, self.detector, self.threshold, self.min_scene)
        return self

    def effective(self) -> dict[str, Any]:
        meant: dict[str, Any] = {}
        if self.method == "fixed":
            meant["stride"] = self.stride or self.seconds
        if self.method != "scenes":
            meant |= {"detector": None, "threshold": None, "min_scene": None, "detectors": None}
        elif self.detectors:
            meant |= {"detector": None, "threshold": None, "min_scene": None}
        if self.cut == "copy":
            meant |= {"crf": None, "preset": None}
        return meant


class Split(SampleStage[SplitParams]):
    """Clips are keyed by their video's key and their number in it: ``000010005_003``.

    With an input in the role ``scenes``, what stage ``scenes`` made, videos are cut along that and
    none is searched.
    """

    name = "split"
    version = 3
    roles = ("source", "scenes")
    optional = ("scenes",)
    params = SplitParams
    memory = 1_000_000_000  # most of it x264's
    reads = (*VIDEO, "json")
    columns = pa.schema(
        [
            pa.field("source", pa.string()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("start_frame", pa.int64()),
            pa.field("frames", pa.int64()),
            pa.field("fps", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("codec", pa.string()),
            pa.field("has_audio", pa.bool_()),
        ]
    )

    def tools(self, params: SplitParams) -> dict[str, str]:
        tools = {"av": version("av")}
        if params.cut == "exact":
            tools["ffmpeg"] = encoder_id()
        if params.method == "scenes":
            tools["opencv"] = version("opencv-python-headless")
        return tools

    def each(self, job: Job[SplitParams], sample: InputSample) -> Iterator[Output]:
        with TemporaryDirectory(dir=job.scratch) as folder:
            yield from _clips(job, sample, Path(folder))


def _clips(job: Job[SplitParams], sample: InputSample, folder: Path) -> Iterator[Output]:
    params = job.params
    about = about_of(sample.fields)
    path = folder / "source"
    path.write_bytes(video_of(sample.fields))
    wished = _spans(job, sample.key, path, about)
    if not wished:
        raise Rejected("no_clips", f"no span of {params.min_seconds} s or more to cut")
    out = folder / "clips"
    out.mkdir()
    if params.cut == "copy":
        cover = params.method == "spans"
        cut = copy_spans(path, wished, out, audio=params.audio, cover=cover)
    else:
        cut = encode_spans(
            path,
            wished,
            out,
            encoding=Encoding(crf=params.crf, preset=params.preset),
            audio=params.audio,
            timeout_s=float(params.timeout),
        )
    for number, clip in enumerate(cut):
        key = f"{sample.key}_{number:03d}"
        if isinstance(clip, CutFailure) and clip.reason == "timeout":
            raise StageError(
                f"cutting clip {key} took longer than {params.timeout} s; raise its timeout"
            )
        if isinstance(clip, CutFailure):
            columns = {
                "source": sample.key,
                "start": float(clip.wished_start),
                "end": float(clip.wished_end),
            }
            yield Reject(key, clip.reason, clip.message, columns)
        else:
            yield _sample(key, sample.key, clip, about)
            clip.path.unlink()


def _spans(
    job: Job[SplitParams], key: str, path: Path, about: Mapping[str, Any]
) -> list[spans.Span]:
    params = job.params
    if params.method == "scenes" and "scenes" in job.shards:
        found = scenes_of(job.reader("scenes"), key)
    elif params.method == "scenes":
        detectors = chosen(params.detectors, params.detector, params.threshold, params.min_scene)
        found = detect(path, detectors)
    elif params.method == "fixed":
        assert params.seconds is not None
        start, end = _shown(path)
        stride = None if params.stride is None else Fraction(params.stride)
        found = spans.fixed(start, end, Fraction(params.seconds), stride=stride)
    else:
        try:
            asked = [(span["start"], span["end"]) for span in about.get("spans", [])]
            found = spans.given(asked, *_shown(path))
        except (TypeError, KeyError, ValueError, OverflowError):
            raise Rejected(
                "bad_spans", "its json has no list of spans with start and end in seconds"
            ) from None
    longest = None if params.max_seconds is None else Fraction(params.max_seconds)
    return spans.bound(found, Fraction(params.min_seconds), longest)


def _shown(path: Path) -> spans.Span:
    """From the first frame to the end of the last; containers often state another duration."""
    table = packet_table(path)
    if not len(table.shown):
        raise Rejected("no_frames", "the video has no frame to show")
    return int(table.shown[0]) * table.time_base, table.end_pts * table.time_base


def _sample(key: str, source: str, clip: Clip, about: Mapping[str, Any]) -> Sample:
    columns = {
        "source": source,
        "start": round(float(clip.start), 6),
        "end": round(float(clip.end), 6),
        "start_frame": clip.start_frame,
        "frames": clip.frames,
        "fps": round(float(clip.fps), 6),
        "width": clip.width,
        "height": clip.height,
        "codec": clip.codec,
        "has_audio": clip.audio,
    }
    value = {
        "key": key,
        **columns,
        "source": {"key": source, **texts_of(about, ("url", "caption", "sha256"))},
        "wished": {
            "start": round(float(clip.wished_start), 6),
            "end": round(float(clip.wished_end), 6),
        },
    }
    fields: dict[str, bytes | Path] = {"mp4": clip.path, "json": sample_json(value)}
    return Sample(key, {**fields, **caption_field(about)}, columns)
