"""What clips become: the models that recipes hold, each with its codec's own bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)

from reelmill.media.cut.picture import Picture
from reelmill.media.size import Fit, Size, own
from reelmill.units import parse_number

Codec: TypeAlias = Literal["h264", "hevc", "vp9", "av1", "h264_nvenc", "hevc_nvenc", "av1_nvenc"]
Container: TypeAlias = Literal["mp4", "mkv", "webm"]
PixelFormat: TypeAlias = Literal[
    "yuv420p", "yuv422p", "yuv444p", "yuv420p10", "yuv422p10", "yuv444p10"
]
Sound: TypeAlias = Literal["m4a", "wav", "flac", "mp3"]

_PRESETS_X26X = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow"),
)
_PRESETS_NVENC = tuple(f"p{number}" for number in range(1, 8))
_PLANAR = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10", "yuv422p10", "yuv444p10")
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


MAX_FILLED = 2**20
"""Frames up to which a clip of few frames is filled: those of ten hours at 30 a second."""

MAX_SILENCE = 48 * 3600
"""Seconds of the longest clip whose sound is extracted, from its beginning to its end."""


@dataclass(frozen=True)
class CodecFacts:
    """An encoder of ffmpeg's, its bounds, and what stands for what is left out."""

    encoder: str
    crf: int
    worst_crf: int
    preset: str
    presets: tuple[str, ...]
    pix_fmts: tuple[str, ...] = _PLANAR
    bframes: bool = False
    webm: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.encoder.endswith("_nvenc")


CODECS: dict[str, CodecFacts] = {
    "h264": CodecFacts("libx264", 18, 51, "veryfast", _PRESETS_X26X, bframes=True),
    "hevc": CodecFacts("libx265", 20, 51, "veryfast", _PRESETS_X26X, bframes=True),
    "vp9": CodecFacts("libvpx-vp9", 28, 63, "4", tuple(map(str, range(9))), webm=True),
    "av1": CodecFacts(
        *("libsvtav1", 26, 63, "8", tuple(map(str, range(14)))),
        pix_fmts=("yuv420p", "yuv420p10"),
        webm=True,
    ),
    "h264_nvenc": CodecFacts(
        *("h264_nvenc", 20, 51, "p4", _PRESETS_NVENC, ("yuv420p", "yuv444p")), bframes=True
    ),
    "hevc_nvenc": CodecFacts(
        *("hevc_nvenc", 22, 51, "p4", _PRESETS_NVENC, ("yuv420p", "yuv420p10", "yuv444p")),
        bframes=True,
    ),
    "av1_nvenc": CodecFacts(
        *("av1_nvenc", 28, 63, "p4", _PRESETS_NVENC, ("yuv420p", "yuv420p10")), webm=True
    ),
}

_SOUND_CODECS: Mapping[str, tuple[str, ...]] = {
    "mp4": ("aac", "opus", "flac", "mp3"),
    "mkv": ("aac", "opus", "flac", "mp3"),
    "webm": ("opus",),
}

_BITS = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kM]?)")


def _bits(value: object) -> object:
    """Bits a second: a number, or text such as ``800k`` and ``2.5M``."""
    if not isinstance(value, str):
        return value
    found = _BITS.fullmatch(value.strip())
    if not found:
        raise ValueError(f"{value[:80]!r} cannot be read; write a bit rate such as 800k or 2.5M")
    bits = Fraction(found[1]) * {"": 1, "k": 1000, "M": 1_000_000}[found[2]]
    if bits.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number of bits a second")
    return int(bits)


def _rate(value: object) -> str:
    """Frames a second as one spelling of an exact fraction: ``25``, ``30000/1001``."""
    try:
        over, slash, under = value.partition("/") if isinstance(value, str) else (value, "", "")
        rate = Fraction(parse_number(over))
        if slash:
            rate /= Fraction(parse_number(under))
    except (ValueError, ZeroDivisionError):
        shown = repr(value)[:80]
        raise ValueError(f"{shown} is no frame rate; write 25, 23.976 or 30000/1001") from None
    if not 0 < rate <= 1000:
        raise ValueError(f"a frame rate of {value} is not between 0 and 1000")
    if max(rate.numerator, rate.denominator) >= 2**31:
        raise ValueError(f"a frame rate of {value} has too many digits")
    return str(rate)


BitRate = Annotated[
    int,
    BeforeValidator(_bits),
    Field(ge=1000, le=10**9),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*[0-9.]+[kM]?\s*$", "examples": ["2M", "96k"]},
        mode="validation",
    ),
]
"""Bits a second."""

Rate = Annotated[str, BeforeValidator(_rate)]
"""Frames a second, exactly: text such as ``25`` or ``30000/1001``."""

Crf = Annotated[int, Field(ge=0, le=63)]
"""Constant quality; codecs have bounds of their own within these."""

Preset = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Video(_Model):
    """How the pictures of a clip are encoded."""

    codec: Codec | None = Field(
        default=None, description="h264 unless given; those of NVENC need a GPU that has it"
    )
    crf: Crf | None = Field(
        default=None, description="constant quality: smaller is better and larger files"
    )
    bit_rate: BitRate | None = Field(
        default=None, description="bits a second on average instead of crf"
    )
    preset: Preset | None = Field(
        default=None, description="the encoder's effort, by its own name for it"
    )
    gop: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="every n-th frame is a keyframe, for random access; the encoder's choice",
    )
    bframes: Annotated[int, Field(ge=0, le=16)] | None = Field(
        default=None, description="B-frames in a row at most; 0 makes random access cheaper"
    )
    pix_fmt: PixelFormat | None = Field(default=None, description="yuv420p unless given")
    container: Container | None = Field(default=None, description="mp4 unless given")
    size: Size | None = Field(
        default=None, description="scaled, cropped or padded; as it is if not given"
    )
    square: bool = Field(
        default=False, description="make pixels that are not square so; size does it too"
    )
    fps: Rate | None = Field(
        default=None,
        description="frames a second; frames are repeated or left out. As they come if not given",
    )
    hdr: Literal["auto", "keep", "sdr"] = Field(
        default="auto",
        description="sdr: HDR is tone mapped to BT.709; auto: where the output has 8 bits",
    )
    deinterlace: bool = Field(
        default=False, description="deinterlace the frames that are interlaced"
    )

    @model_validator(mode="after")
    def _codec_can(self) -> Self:
        codec, facts = self.codec or "h264", self.facts
        if self.crf is not None and self.bit_rate is not None:
            raise ValueError("give crf or bit_rate, not both")
        if self.crf is not None and self.crf > facts.worst_crf:
            raise ValueError(f"crf is 0 to {facts.worst_crf} for {codec}")
        if self.preset is not None and self.preset not in facts.presets:
            raise ValueError(f"{codec} has no preset {self.preset}: {', '.join(facts.presets)}")
        if self.bframes is not None and not facts.bframes:
            raise ValueError(f"{codec} has no bframes to set")
        if self.pix_fmt is not None and self.pix_fmt not in facts.pix_fmts:
            raise ValueError(f"{codec} has no {self.pix_fmt}: {', '.join(facts.pix_fmts)}")
        if self.container == "webm" and not facts.webm:
            raise ValueError(f"webm holds vp9 and av1, not {codec}: use mp4 or mkv")
        if self.hdr == "keep" and self.bits == 8:
            raise ValueError("HDR in 8 bits shows bands: give a pix_fmt of 10 bits, or hdr: sdr")
        return self

    @property
    def facts(self) -> CodecFacts:
        return CODECS[self.codec or "h264"]

    @property
    def format(self) -> str:
        """FFmpeg's name of the codec, whoever encodes."""
        return (self.codec or "h264").removesuffix("_nvenc")

    @property
    def bits(self) -> int:
        """Of a sample of the output."""
        return 10 if (self.pix_fmt or "").endswith("10") else 8

    @property
    def ffmpeg_pix_fmt(self) -> str:
        return (self.pix_fmt or "yuv420p").replace("p10", "p10le")

    @property
    def ending(self) -> str:
        return self.container or "mp4"

    @property
    def to_sdr(self) -> bool:
        """Whether HDR is tone mapped."""
        return self.hdr == "sdr" or (self.hdr == "auto" and self.bits == 8)

    def meant(self) -> Self:
        """The same with what is left out filled in, but for what the encoder itself decides."""
        facts = self.facts
        return self.model_copy(
            update={
                "codec": self.codec or "h264",
                "crf": facts.crf if self.crf is None and self.bit_rate is None else self.crf,
                "preset": self.preset or facts.preset,
                "pix_fmt": self.pix_fmt or "yuv420p",
                "container": self.ending,
                "square": self.square or self.size is not None,
                "hdr": "sdr" if self.to_sdr else "keep",
            }
        )

    def fit(self, picture: Picture) -> Fit:
        """How ``picture`` comes to its size; sides are even, by a row or column less if need be."""
        if not (self.square or self.size):
            return own(picture.width, picture.height, Size.grain)
        if self.size is not None:
            return self.size.fit(*picture.square)
        return own(*picture.square, Size.grain)


class Audio(_Model):
    """What becomes of the sound of a clip."""

    keep: bool = Field(default=True, description="in the clip")
    codec: Literal["aac", "opus", "flac", "mp3"] | None = Field(
        default=None, description="in the clip; aac unless given, opus in webm"
    )
    bit_rate: BitRate | None = Field(
        default=None, description="bits a second; the encoder's own if none"
    )
    rate: Annotated[int, Field(ge=8000, le=192000)] | None = Field(
        default=None, description="samples a second; the source's if not given"
    )
    channels: Literal[1, 2, 6, 8] | None = Field(
        default=None, description="mono, stereo, 5.1 or 7.1; the source's if not given"
    )
    extract: Sound | None = Field(default=None, description="a field of its own, of this kind")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.codec is not None and not self.keep:
            raise ValueError("codec is for sound in the clip, which keep: false leaves out")
        kinds = {self.codec, self.extract}
        for kind, rates in (("opus", _OPUS_RATES), ("mp3", _MP3_RATES)):
            if kind in kinds and self.rate is not None and self.rate not in rates:
                shown = ", ".join(map(str, rates))
                raise ValueError(f"{kind} has no rate {self.rate}: {shown}")
        if "mp3" in kinds and self.channels in (6, 8):
            raise ValueError("mp3 has at most 2 channels")
        if self.bit_rate is not None and not self._is_lossy:
            raise ValueError("bit_rate is for aac, opus and mp3")
        return self

    @property
    def _is_lossy(self) -> bool:
        return self.extract in ("m4a", "mp3") or (self.keep and self.codec != "flac")

    @property
    def is_heard(self) -> bool:
        """Whether the source's sound is needed at all."""
        return self.keep or self.extract is not None

    def codec_in(self, container: Container) -> str:
        """The codec of the sound in a clip.

        Raises ``ValueError`` where the container cannot hold what is asked for.
        """
        can = _SOUND_CODECS[container]
        if self.codec is not None and self.codec not in can:
            raise ValueError(f"{container} cannot hold {self.codec}: use {' or '.join(can)}")
        return self.codec or can[0]

    def meant(self, container: Container) -> Self:
        """The same with what is left out filled in."""
        if not self.is_heard:
            return type(self)(keep=False)
        codec = self.codec_in(container) if self.keep else None
        return self.model_copy(update={"codec": codec})


SoundChoice = Annotated[
    Annotated[bool, Tag("kept")] | Annotated[Audio, Tag("how")],
    Discriminator(lambda value: "kept" if isinstance(value, bool) else "how"),
]
"""``true``, ``false``, or how; told apart by type, so that one error is said once."""


def audio_of(value: bool | Audio) -> Audio:
    """Sound as it is asked for, ``true`` and ``false`` included."""
    return Audio(keep=value) if isinstance(value, bool) else value


class Variant(Video):
    """One more output of each clip, from the same decode; nothing is taken over from the first."""

    audio: SoundChoice = Field(default=True, description="keep the sound, or how")

    @model_validator(mode="after")
    def _container_can(self) -> Self:
        audio_of(self.audio).codec_in(cast(Container, self.ending))
        return self

    @property
    def sound(self) -> Audio:
        return audio_of(self.audio)

    def meant(self) -> Self:
        sound = self.sound.meant(cast(Container, self.ending))
        return super().meant().model_copy(update={"audio": sound})


VariantName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Encoding(_Model):
    """All that one clip becomes: itself, its variants, and their sound and texts."""

    video: Video = Video()
    audio: Audio = Audio()
    subtitles: bool = False
    variants: Mapping[VariantName, Variant] = {}

    @model_validator(mode="after")
    def _container_can(self) -> Self:
        self.audio.codec_in(cast(Container, self.video.ending))
        return self

    @property
    def outputs(self) -> dict[str, tuple[Video, Audio]]:
        """Every output by the end of its files' names, the clip itself first: ``mp4``,
        ``small.mp4``."""
        made: dict[str, tuple[Video, Audio]] = {self.video.ending: (self.video, self.audio)}
        for name, variant in sorted(self.variants.items()):
            made[f"{name}.{variant.ending}"] = (variant, variant.sound)
        return made

    @property
    def is_heard(self) -> bool:
        """Whether the source's sound is needed at all."""
        return any(audio.is_heard for _, audio in self.outputs.values())

    def fills_too_much(self, seconds: Fraction, frames: int) -> bool:
        """Whether so many frames of the source, which claim to be shown that long, would become
        more than any video has reason for: where frames are repeated up to a rate, or sound that is
        extracted is filled with silence."""
        outputs = self.outputs.values()
        rates = [Fraction(video.fps) for video, _ in outputs if video.fps is not None]
        most = max(MAX_FILLED, 100 * frames)
        return any(seconds * rate > most for rate in rates) or (
            seconds > MAX_SILENCE and any(audio.extract is not None for _, audio in outputs)
        )

    @property
    def allows_copy(self) -> bool:
        """Whether packets of a source that is of the same kind may stand as they are."""
        video, audio = self.video, self.audio
        asked = (video.bit_rate, video.gop, video.bframes, video.size, video.fps)
        heard = (audio.codec, audio.rate, audio.channels, audio.extract, audio.bit_rate)
        return (
            all(one is None for one in (*asked, *heard))
            and video.ending == "mp4"
            and not (video.square or video.deinterlace or self.subtitles or self.variants)
        )

    @property
    def allows_joining(self) -> bool:
        """Whether parts of a clip may be encoded by x264 in the format of a source of H.264."""
        video = self.video
        return self.allows_copy and video.facts.encoder == "libx264" and video.pix_fmt is None

    def meant(self) -> dict[str, Any]:
        """What goes into an action key."""
        return {
            "video": self.video.meant(),
            "audio": self.audio.meant(cast(Container, self.video.ending)),
            "variants": {name: variant.meant() for name, variant in self.variants.items()} or None,
        }
