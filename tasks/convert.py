"""Convert: each video becomes one of another size, rate or codec, under its own key."""

from __future__ import annotations

import contextlib
import functools
import hashlib
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
from reelmill.media.cut import Clip, CutFailure, Encoding, Variant, Video, cut_spans
from reelmill.media.cut.output import Crf, Preset, SoundChoice, VariantName
from reelmill.media.cut.rendering import Rendering
from reelmill.media.decode import Device
from reelmill.media.describe import describe, look
from reelmill.media.subtitles import webvtt
from reelmill.shards import tar
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader
from reelmill.store import Store
from reelmill.store.model import Shard
from reelmill.tasks.columns import kept_columns
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Runtime,
    Sample,
    SampleStage,
    sample_json,
)
from reelmill.tasks.media_fields import (
    OF_SOURCE,
    VIDEO,
    VIDEO_COLUMNS,
    about_of,
    texts_of,
    video_columns,
    video_json,
    video_of,
)
from reelmill.tasks.split import (
    Subtitles,
    about_variant,
    captions_of,
    encoding_of,
    encoding_tools,
    in_clip,
    shown_span,
    texts_beside,
)
from reelmill.units import Seconds

COLUMNS = pa.schema(
    [
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        *VIDEO_COLUMNS,
        pa.field("converted", pa.string()),
    ]
)
"""What a download says of a video, and whether this one was ``copied`` or ``encoded``."""

_SAID = ("frames", "fps", "width", "height", "codec", "has_audio")
"""What the ``json`` of a clip says of its video beside ``video``."""


class ConvertParams(Params):
    """What videos become: as for clips in stage ``split``."""

    video: Video | None = Field(
        None, description="codec, quality, keyframes, size, rate or frames, and container"
    )
    audio: SoundChoice = Field(True, description="keep the sound; or its codec, rate, …")
    subtitles: Subtitles = Field(
        "drop",
        description="tracks of the video. keep: as tracks; extract: as fields such as en.vtt",
    )
    variants: Mapping[VariantName, Variant] = Field(
        {}, description="more outputs of each video, by name: fields such as small.mp4"
    )
    crf: Crf | None = Field(
        None, description="short for video.crf: smaller is better and larger files"
    )
    preset: Preset | None = Field(None, description="short for video.preset: the encoder's effort")
    encode: Literal["needed", "always"] = Field(
        "needed",
        description="needed: a video that is already as asked, whatever its quality, is copied",
    )
    device: Device = Field("cpu", description="cuda: decoded on an NVIDIA card")
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(3600), description="for one video"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ConvertParams:
        self.encoding  # noqa: B018 - raises where it does not
        return self

    @property
    def encoding(self) -> Encoding:
        return encoding_of(
            self.video, self.audio, self.subtitles, self.variants, crf=self.crf, preset=self.preset
        )

    @property
    def on_card(self) -> bool:
        """Whether a worker must have an NVIDIA card."""
        outputs = self.encoding.outputs.values()
        return self.device == "cuda" or any(video.facts.on_gpu for video, _ in outputs)

    def effective(self) -> dict[str, Any]:
        meant: dict[str, Any] = {"crf": None, "preset": None, **self.encoding.meant()}
        if self.device == "cpu":
            meant["device"] = None
        return meant


class Convert(SampleStage[ConvertParams]):
    """The new video takes the place of the old one; its clock begins at 0, and times in the
    ``json`` and in subtitles go with it. All other fields stay as they are."""

    name = "convert"
    params = ConvertParams
    conserves = True
    order = "input"
    memory = 600_000_000  # most of it an encoder's, for each output
    reads = None
    works_on = VIDEO

    def tools(self, params: ConvertParams) -> dict[str, str]:
        return {"av": version("av"), **encoding_tools(params.encoding)}

    def needs(self, params: ConvertParams) -> Mapping[str, float]:
        return {"GPU": 1} if params.on_card else {}

    def schema(self, job: Job[ConvertParams]) -> pa.Schema:
        table = job.reader("source").table.schema
        names = kept_columns(table, COLUMNS)
        kept = [table.field(its).with_name(ours) for its, ours in names.items()]
        return pa.schema([*kept, *COLUMNS])

    def each(self, job: Job[ConvertParams], sample: InputSample) -> Iterator[Output]:
        names = _carried(job.store, job.shards["source"])
        columns = {ours: sample.columns[its] for its, ours in names.items()}
        with TemporaryDirectory(dir=job.scratch) as folder:
            path = Path(folder) / "source"
            path.write_bytes(video_of(sample.fields))
            clip = _converted(job.params, sample.key, path)
            yield _sample(job.params, sample, path, clip, columns)


@functools.lru_cache(maxsize=2)
def _carried(store: Store, shard: Shard) -> dict[str, str]:
    """What the columns of a shard are called beside the stage's own."""
    return kept_columns(ShardReader(store, shard).table.schema, COLUMNS)


def _converted(params: ConvertParams, key: str, path: Path) -> Clip:
    encoding = params.encoding
    out = path.parent / "made"
    out.mkdir()
    (made,) = cut_spans(
        path,
        [shown_span(path)],
        out,
        mode="exact" if params.encode == "always" else "auto",
        encoding=encoding if params.encode == "always" else _needed(encoding, path),
        timeout_s=float(params.timeout),
        device=params.device,
    )
    if isinstance(made, Clip):
        if any(file.stat().st_size > tar.MAX_MEMBER for file in (made.path, *made.others.values())):
            raise Rejected("too_large", "the video does not fit into a tar")
        return made
    assert isinstance(made, CutFailure)
    if made.reason == "timeout":
        raise StageError(f"converting {key} took longer than {params.timeout} s; raise its timeout")
    raise Rejected(made.reason, made.message)


def _needed(encoding: Encoding, path: Path) -> Encoding:
    """An encoding without that which a video has already, so that nothing stands in the way of a
    copy but what would change. Of a damaged video, nothing is known for sure."""
    video, audio = encoding.video, encoding.audio
    try:
        found = describe(path)
    except Rejected:
        return encoding
    picture = Rendering.of(path, Encoding()).picture
    fit = video.fit(picture)
    seen: dict[str, Any] = {}
    own = {(picture.width, picture.height)}
    if picture.sar == 1 and {fit.scaled, fit.cropped, fit.padded} == own:
        seen |= {"size": None, "square": False}
    steps = {found.timing.shortest, found.timing.longest}
    if (
        video.fps is not None
        and found.timing.is_vfr is False
        and steps == {1 / Fraction(video.fps)}
    ):
        seen["fps"] = None
    if video.frames == found.timing.frames:
        seen["frames"] = None
    heard = {
        "codec": audio.codec == "aac" == found.video.audio_codec,
        "rate": audio.rate == found.video.sample_rate,
        "channels": audio.channels == found.video.channels,
    }
    return encoding.model_copy(
        update={
            "video": video.model_copy(update=seen),
            "audio": audio.model_copy(update={name: None for name, same in heard.items() if same}),
        }
    )


def _sample(
    params: ConvertParams, sample: InputSample, path: Path, clip: Clip, columns: dict[str, Any]
) -> Sample:
    info, timing = look(clip.path, packets=True)
    with clip.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    columns |= {
        **video_columns(info, timing),
        "sha256": digest,
        "bytes": clip.size,
        "converted": clip.how,
    }
    about = about_of(sample.fields)
    origin = {"key": sample.key, **texts_of(about, OF_SOURCE)}
    about = {
        "source": origin,
        **about,
        **(_moved(about, clip) if clip.start else {}),
        **{name: columns[name] for name in _SAID if name in about},
        "key": sample.key,
        "video": video_json(info, timing),
        **{name: columns[name] for name in ("sha256", "bytes", "converted")},
    }
    if clip.variants:
        about["variants"] = {name: about_variant(one) for name, one in clip.variants.items()}
    kept = {name: data for name, data in sample.fields.items() if name not in VIDEO}
    fields: dict[str, bytes | Path] = {**kept, **_texts(params, path, kept, clip)}
    fields |= {clip.ending: clip.path, **clip.others, "json": sample_json(about)}
    return Sample(sample.key, fields, columns)


def _texts(
    params: ConvertParams, path: Path, fields: Mapping[str, bytes], clip: Clip
) -> dict[str, bytes]:
    """Subtitles on the clock of the new video: those beside it, where that is another one, and its
    own, if they are asked for."""
    extracted = params.subtitles == "extract"
    if not extracted and not clip.start:
        return {}
    cut = {
        name: script.cut(clip.start, clip.end)
        for name, script in texts_beside(path, fields).items()
        if (clip.start if name in fields else extracted)
    }
    return {name: webvtt(cues) for name, cues in cut.items() if cues or name in fields}


def _moved(about: Mapping[str, Any], clip: Clip) -> dict[str, Any]:
    """Spans and captions of a ``json`` on the clock of the new video."""
    moved: dict[str, Any] = {
        name: in_clip(script, clip) for name, script in captions_of(about).items()
    }
    # What is no list of spans is none to stage split either.
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        moved["spans"] = [
            {**span, **{edge: _moment(span[edge], clip) for edge in ("start", "end")}}
            for span in about["spans"]
        ]
    return moved


def _moment(time: Any, clip: Clip) -> float:
    return round(float(max(Fraction(0), spans.seconds(time) - clip.start)), 6)
