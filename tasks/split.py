"""Split: each video becomes clips, at scene cuts, at fixed lengths or at given spans."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError, model_validator

from reelmill.errors import Rejected, StageError
from reelmill.media import spans
from reelmill.media.cut import Clip, CutFailure, Encoding, Variant, Video, cut_spans
from reelmill.media.cut.output import Crf, Preset, SoundChoice, VariantName, audio_of
from reelmill.media.decode import Device
from reelmill.media.ffmpeg import encoder_id, gpu_encoder_id
from reelmill.media.probe import VideoInfo, packet_table, ratio
from reelmill.media.scenes import AnyDetector, Detector, Kind, TransNetV2Detector, chosen, detect
from reelmill.media.subtitles import MAX_TRACKS, Cue, Script, parse_webvtt, tracks_of, webvtt
from reelmill.shards import tar
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
from reelmill.tasks.cuts import ONE_SCENE
from reelmill.tasks.media_fields import OF_SOURCE, about_of, caption_field, texts_of, video_of
from reelmill.tasks.scenes import scenes_of
from reelmill.tasks.scores import Weights, network_tools
from reelmill.units import Number, Seconds, format_seconds

_LONGEST = 64
"""Characters of a field of subtitles, at most."""

_VTT = re.compile(r"([A-Za-z0-9_-]+\.){0,3}vtt")


class SplitParams(Params):
    """Where to cut, and what clips become."""

    method: Literal["scenes", "fixed", "spans"] = Field(
        "scenes", description="at scene cuts, every so many seconds, or at the table's spans"
    )
    cut: Literal["auto", "exact", "smart", "copy"] = Field(
        "auto",
        description="auto: to the frame, copied where both ends are keyframes, else encoded anew; "
        "exact: all encoded anew; smart: only what lies before the first and behind the last "
        "keyframe of an H.264 clip is encoded; copy: as it is, fast, but only at keyframes, so "
        "that clips may begin earlier and be much longer than asked",
    )
    seconds: Annotated[Seconds, Field(gt=0)] | None = Field(
        None,
        description="length of a clip, for method 'fixed'; scenes and spans are divided into "
        "clips of it, if given",
    )
    stride: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="from one clip's start to the next; seconds, unless given"
    )
    overlap: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="what a clip shares with the next one, instead of stride"
    )
    remainder: Literal["keep", "drop", "merge"] = Field(
        "keep",
        description="what is left at the end, shorter than seconds: a clip of its own, if "
        "min_seconds allows; nothing; or part of the clip before it",
    )
    min_seconds: Seconds = Field(Decimal(1), description="shorter clips are dropped")
    max_seconds: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="longer clips are divided into equal parts"
    )
    max_clips: Annotated[int, Field(ge=1, le=spans.MAX_SPANS)] | None = Field(
        None, description="most clips of one video"
    )
    pick: Literal["first", "spread"] = Field(
        "first", description="which clips, if there are more: the first ones, or evenly spread ones"
    )
    detector: Kind = Field(
        "content", description="PySceneDetect's, or TransNetV2, for method 'scenes'"
    )
    threshold: Number | None = Field(None, description="the detector's threshold, if not its own")
    min_scene: Seconds = Field(
        Decimal("0.6"), description="the detector's shortest scene; shorter ones stay together"
    )
    detectors: tuple[AnyDetector, ...] = Field(
        (), description="several detectors, or one with more settings, in place of those above"
    )
    exact_scenes: bool = Field(
        True,
        description="false: look at keyframes and where cuts seem to be, for most cuts at a "
        "fraction of the work",
    )
    weights: Weights = None
    device: Device = Field(
        "cpu", description="cuda: videos are decoded, and scenes found, on an NVIDIA card"
    )
    video: Video | None = Field(
        None, description="codec, quality, keyframes, size, rate and container of the clips"
    )
    audio: SoundChoice = Field(True, description="keep the sound; or its codec, rate, …")
    subtitles: Literal["drop", "keep", "extract"] = Field(
        "drop",
        description="of the video and beside it, cut by time. keep: as tracks of the clip; "
        "extract: as fields such as en.vtt",
    )
    variants: Mapping[VariantName, Variant] = Field(
        {}, description="more outputs of each clip, by name: fields such as small.mp4"
    )
    crf: Crf | None = Field(
        None, description="short for video.crf: smaller is better and larger files"
    )
    preset: Preset | None = Field(None, description="short for video.preset: the encoder's effort")
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(3600), description="for the cutting of one video"
    )
    jobs: Annotated[int, Field(ge=1, le=256), Runtime] = Field(
        1,
        description="cores for one video: pieces that are searched for scenes, and processes that "
        "encode, at a time; several are for few and long videos, since each worker has one core",
    )

    @model_validator(mode="after")
    def _spans_fit_together(self) -> SplitParams:
        if self.method == "fixed" and self.seconds is None:
            raise ValueError("method 'fixed' needs seconds, the length of a clip")
        if self.seconds is None and (self.stride or self.overlap or self.remainder != "keep"):
            raise ValueError("stride, overlap and remainder need seconds, the length of a clip")
        if self.stride is not None and self.overlap is not None:
            raise ValueError("give stride or overlap, not both")
        if self.seconds is not None and self.overlap is not None and self.overlap >= self.seconds:
            raise ValueError("overlap must be less than seconds")
        if self.remainder == "merge" and (self.stride or 0) > (self.seconds or 0):
            raise ValueError("remainder 'merge' is for clips without gaps: stride is over seconds")
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ValueError("max_seconds is less than min_seconds")
        if self.seconds is not None and self.seconds < self.min_seconds:
            raise ValueError(
                f"seconds is less than min_seconds ({format_seconds(self.min_seconds)}), so that "
                "no clip would be left: give a min_seconds that is no more"
            )
        if self.method == "scenes":
            self._scenes_can_be_found()
        return self

    @model_validator(mode="after")
    def _output_fits_together(self) -> SplitParams:
        asked = self.video.model_fields_set if self.video else set()
        for name in ("crf", "preset"):
            if getattr(self, name) is not None and name in asked:
                raise ValueError(f"{name} is given twice: it is short for video.{name}")
        encoding = self.encoding
        is_asked = any(one is not None for one in (self.video, self.crf, self.preset))
        if self.cut == "copy" and (is_asked or not encoding.allows_copy):
            raise ValueError(
                "cut 'copy' leaves clips as they are: video, crf, preset, variants, subtitles "
                "'keep', and more of audio than true or false need cut 'auto' or 'exact'"
            )
        return self

    @property
    def encoding(self) -> Encoding:
        """What clips become, with what is short for it."""
        given = {} if self.video is None else self.video.model_dump(exclude_unset=True)
        short = {n: v for n in ("crf", "preset") if (v := getattr(self, n)) is not None}
        try:
            return Encoding(
                video=Video(**given, **short),
                audio=audio_of(self.audio),
                subtitles=self.subtitles == "keep",
                variants=self.variants,
            )
        except ValidationError as error:
            # One of the models' own lines, of which pydantic would make a paragraph.
            raise ValueError(str(error.errors()[0]["msg"]).partition(", ")[2]) from None

    def _scenes_can_be_found(self) -> None:
        detectors = self.search()
        if self.asks_network and self.weights is None:
            raise ValueError("detector transnetv2 needs weights: the path of the network's file")
        if self.weights is not None and not self.asks_network:
            raise ValueError("weights are for detector transnetv2, which is not asked for")
        if self.exact_scenes:
            return
        if needing := [one.kind for one in detectors if not one.skims]:
            raise ValueError(f"detector {' and '.join(needing)} needs exact_scenes: true")
        if self.device == "cuda":
            raise ValueError("device cuda looks at all frames: it needs exact_scenes: true")

    def search(self) -> tuple[Detector, ...]:
        """How scenes are found."""
        return chosen(self.detectors, self.detector, self.threshold, self.min_scene, self.weights)

    @property
    def asks_network(self) -> bool:
        """Whether TransNetV2 finds scenes."""
        return any(isinstance(one, TransNetV2Detector) for one in self.search())

    @property
    def on_card(self) -> bool:
        """Whether a worker must have an NVIDIA card."""
        is_decoded = self.method == "scenes" or self.cut != "copy"
        encoders = [video.facts for video, _ in self.encoding.outputs.values()]
        return (self.device == "cuda" and is_decoded) or (
            self.cut != "copy" and any(one.on_gpu for one in encoders)
        )

    @property
    def step(self) -> Decimal | None:
        """From one clip's start to the next, in seconds."""
        if self.seconds is None or self.overlap is None:
            return self.stride or self.seconds
        return self.seconds - self.overlap

    @property
    def shortest(self) -> Decimal:
        """Of the spans that can become a clip, in seconds."""
        whole = self.seconds if self.remainder == "drop" else None
        return max(self.min_seconds, whole or self.min_seconds)

    def effective(self) -> dict[str, Any]:
        meant: dict[str, Any] = {"stride": self.step, "overlap": None, "crf": None, "preset": None}
        if self.seconds is None:
            meant["remainder"] = None
        if self.max_clips is None:
            meant["pick"] = None
        if self.method != "scenes":
            meant |= {"detector": None, "threshold": None, "min_scene": None, "detectors": None}
            meant |= {"exact_scenes": None}
        else:
            meant |= {"detector": None, "threshold": None, "min_scene": None}
            meant |= {"detectors": self.search()}
        if self.device == "cpu" or (self.method != "scenes" and self.cut == "copy"):
            meant["device"] = None
        meant |= self.encoding.meant()
        if self.cut == "copy":
            meant |= {"video": None, "variants": None}
        return meant


class Split(SampleStage[SplitParams]):
    """Clips are keyed by their video's key and their number in it: ``000010005_003``.

    With an input in the role ``scenes``, what stage ``scenes`` made, videos are cut along that and
    none is searched.
    """

    name = "split"
    version = 5
    roles = ("source", "scenes")
    optional = ("scenes",)
    params = SplitParams
    memory = 1_000_000_000  # most of it the encoders', whose pixels a process bounds
    reads = None  # subtitles are in fields of any language
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
            pa.field("cut", pa.string()),
        ]
    )

    def tools(self, params: SplitParams) -> dict[str, str]:
        tools = {"av": version("av")}
        if params.cut != "copy":
            tools["ffmpeg"] = encoder_id()
            facts = [video.facts for video, _ in params.encoding.outputs.values()]
            tools |= {one.encoder: gpu_encoder_id(one.encoder) for one in facts if one.on_gpu}
        if params.method == "scenes":
            tools["opencv"] = version("opencv-python-headless")
            if params.asks_network and params.weights is not None:
                tools |= network_tools(params.weights)
        return tools

    def needs(self, params: SplitParams) -> Mapping[str, float]:
        return {"GPU": 1} if params.on_card else {}

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
        raise Rejected("no_clips", f"no span of {params.shortest} s or more to cut")
    out = folder / "clips"
    out.mkdir()
    texts = _texts(path, sample.fields) if params.subtitles == "extract" else {}
    captions = _captions(about)
    cut = cut_spans(
        path,
        wished,
        out,
        mode=params.cut,
        encoding=params.encoding,
        cover=params.method == "spans",
        timeout_s=float(params.timeout),
        jobs=params.jobs,
        device=params.device,
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
        elif any(file.stat().st_size > tar.MAX_MEMBER for file in _files(clip)):
            yield Reject(key, "too_large", "the clip does not fit into a tar: give max_seconds")
        else:
            yield _sample(key, sample.key, clip, about, captions, texts, _scene_fact(params, clip))
        if isinstance(clip, Clip):
            for made in _files(clip):
                made.unlink()


def _files(clip: Clip) -> list[Path]:
    return [clip.path, *clip.others.values()]


def _spans(
    job: Job[SplitParams], key: str, path: Path, about: Mapping[str, Any]
) -> list[spans.Span]:
    params = job.params
    if params.method == "scenes" and "scenes" in job.shards:
        found = scenes_of(job.reader("scenes"), key)
    elif params.method == "scenes":
        found = detect(
            path,
            params.search(),
            jobs=params.jobs,
            exact=params.exact_scenes,
            device=params.device,
        )
    elif params.method == "fixed":
        found = [_shown(path)]
    else:
        try:
            asked = [(span["start"], span["end"]) for span in about.get("spans", [])]
            found = spans.given(asked, *_shown(path))
        except (TypeError, KeyError, ValueError, OverflowError):
            raise Rejected(
                "bad_spans", "its json has no list of spans with start and end in seconds"
            ) from None
    if params.seconds is not None and params.step is not None:
        length, step = Fraction(params.seconds), Fraction(params.step)
        found = spans.windows(found, length, stride=step, remainder=params.remainder)
    longest = None if params.max_seconds is None else Fraction(params.max_seconds)
    bounded = spans.bound(found, Fraction(params.min_seconds), longest)
    return spans.few(bounded, params.max_clips, params.pick)


def _shown(path: Path) -> spans.Span:
    """From the first frame to the end of the last; containers often state another duration."""
    table = packet_table(path)
    if not len(table.shown):
        raise Rejected("no_frames", "the video has no frame to show")
    return int(table.shown[0]) * table.time_base, table.end_pts * table.time_base


def _texts(path: Path, fields: Mapping[str, bytes]) -> dict[str, Script]:
    """Subtitles by field: those that came with the video, and its own under what names are left.
    Fields of names so long that a clip's would not fit into a tar are left out."""
    texts = {
        name: Script(parse_webvtt(data))
        for name, data in fields.items()
        if len(name) <= _LONGEST and _VTT.fullmatch(name)
    }
    taken = {name.lower() for name in texts}
    own: dict[str, Script] = {}
    for track in tracks_of(path):
        language = (track.language or "und").lower()
        names = (f"{language}.vtt", *(f"{language}.{n}.vtt" for n in range(2, MAX_TRACKS + 1)))
        own[next(name for name in names if name not in own)] = track.script
    return {name: script for name, script in own.items() if name not in taken} | texts


def _captions(about: Mapping[str, Any]) -> dict[str, Script]:
    """Captions with times (``captions`` and ``subtitles`` of the json or of the table's row).
    Values that are no such list are left out."""
    found = {}
    table = about.get("table")
    for name in ("captions", "subtitles"):
        value = about.get(name, table.get(name) if isinstance(table, dict) else None)
        try:
            value = json.loads(value) if isinstance(value, str) else value
            found[name] = Script(
                Cue(spans.seconds(one["start"]), spans.seconds(one["end"]), _text(one["text"]))
                for one in value
            )
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError):
            continue
    return found


def _text(value: Any) -> str:
    """Raises ``ValueError`` where it is none: half of a surrogate pair."""
    text = str(value)
    text.encode()
    return text


def _in_clip(script: Script, clip: Clip) -> list[dict[str, Any]]:
    """The captions of a clip, on its clock."""
    return [
        {
            "start": round(float(cue.start), 6),
            "end": round(float(cue.end), 6),
            "text": cue.text,
        }
        for cue in script.cut(clip.start, clip.end)
    ]


def _scene_fact(params: SplitParams, clip: Clip) -> dict[str, bool]:
    """Whether a clip lies within one scene, where scenes are known: all do but copies, which may
    begin before what was wished."""
    if params.method != "scenes":
        return {}
    is_within = clip.wished_start <= clip.start and clip.end <= clip.wished_end
    return {ONE_SCENE: params.cut != "copy" or is_within}


def _about_variant(info: VideoInfo) -> dict[str, Any]:
    return {
        "frames": info.frames,
        "fps": round(float(info.fps), 6),
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
        "has_audio": info.has_audio,
    }


def _sample(
    key: str,
    source: str,
    clip: Clip,
    about: Mapping[str, Any],
    captions: Mapping[str, Script],
    texts: Mapping[str, Script],
    facts: Mapping[str, bool],
) -> Sample:
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
        "cut": clip.how,
    }
    value: dict[str, Any] = {
        "key": key,
        **columns,
        "source": {"key": source, **texts_of(about, OF_SOURCE)},
        "wished": {
            "start": round(float(clip.wished_start), 6),
            "end": round(float(clip.wished_end), 6),
        },
        "exact": {"start": ratio(clip.start), "end": ratio(clip.end)},
        **facts,
        **{name: _in_clip(script, clip) for name, script in captions.items()},
    }
    if clip.variants:
        value["variants"] = {name: _about_variant(info) for name, info in clip.variants.items()}
    fields: dict[str, bytes | Path] = {clip.ending: clip.path, **clip.others}
    cut = {name: script.cut(clip.start, clip.end) for name, script in texts.items()}
    fields |= {name: webvtt(cues) for name, cues in cut.items() if cues}
    fields["json"] = sample_json(value)
    return Sample(key, {**fields, **caption_field(about)}, columns)
