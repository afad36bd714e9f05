"""The ffmpeg command that encodes clips: one decode, a branch for each clip and each output."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import ffmpeg

from reelmill.media.cut import tone
from reelmill.media.cut.encoders import (
    CONTAINERS,
    SOUND_CODECS,
    SOUND_FILES,
    SOUND_OPTIONS,
    TEXT_CODECS,
    video_options,
)
from reelmill.media.cut.output import Audio, Video
from reelmill.media.cut.picture import Picture
from reelmill.media.cut.plan import Plan
from reelmill.media.cut.rendering import Rendering, Texts, sound_ending
from reelmill.media.decode import Device as Device
from reelmill.media.probe import FORMATS, MAX_PIXELS
from reelmill.media.size import own

# FFmpeg's resampler, its AAC encoder and its decoders of the MPEG-4 kind round otherwise with newer
# instructions or none: those that every x86-64 has give the same bytes on all of them, at some 3 %
# more CPU.
_CPU_FLAGS = ("-cpuflags", "sse2") if platform.machine() in ("x86_64", "AMD64") else ()

# Codecs whose decoded pictures are specified to the bit.
_EXACT = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})

# ACCURATE_RND and BITEXACT keep swscale off the paths whose rounding depends on the CPU.
_SCALER = "bicubic+accurate_rnd+bitexact"

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def compose(
    source: Path,
    indices: Sequence[int],
    plans: Sequence[Plan],
    heard: Collection[int],
    rendering: Rendering,
    seek: Fraction | None,
    texts: Mapping[int, Sequence[Texts]],
    device: Device = "cpu",
) -> Any:
    """One process that writes the clips of ``plans`` (ordered by start) from one decode.

    ``indices`` are the container's of the video stream and, if any, the audio stream; ``heard`` are
    the numbers of the plans that have sound; decoding begins at the keyframe at ``seek`` seconds,
    or at the beginning; ``texts`` are by the numbers of plans, and a table of tones, if one is
    needed, is that of the first plan. The file of an output is called as its plan's, with an ending
    of its own. The ``device`` decodes what it can; its frames come to the host to be filtered.
    """
    options: dict[str, Any] = {
        "threads": 1,
        "max_pixels": MAX_PIXELS,
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
    }
    if device != "cpu":
        options["hwaccel"] = device
    if seek is not None:
        options |= {
            "ss": f"{ceil(seek * 1_000_000)}us",
            "seek_timestamp": 1,
            "noaccurate_seek": None,
        }
    media = ffmpeg.input(f"file:{source.absolute()}", **options)
    pictures = _parted(media[str(indices[0])], "split", len(plans))
    sounds = iter(_parted(media[str(indices[1])], "asplit", len(heard)) if heard else ())
    table = tone.table_of(plans[0])
    outputs: list[Any] = []
    for plan, seen in zip(plans, pictures, strict=True):
        sound = _atrim(next(sounds), plan) if plan.number in heard else None
        said = texts.get(plan.number, ())
        outputs += _outputs(plan, _trim(seen, plan), sound, rendering, said, table)
    return ffmpeg.merge_outputs(*outputs).global_args(
        *("-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-copyts"),
        *("-filter_complex_threads", "1", "-max_error_rate", "1"),
        *_cpu_flags(rendering.picture, bool(heard)),
    )


def _cpu_flags(picture: Picture, heard: bool) -> tuple[str, ...]:
    return () if picture.codec in _EXACT and not heard else _CPU_FLAGS


def _outputs(
    plan: Plan,
    seen: Any,
    sound: Any | None,
    rendering: Rendering,
    texts: Sequence[Texts],
    table: Path,
) -> Iterator[Any]:
    """All files of a clip, from its pictures and its sound on their own clock."""
    wanted = rendering.encoding.outputs
    pictures = iter(_parted(seen, "split", len(wanted)))
    uses = sum(audio.keep + (audio.extract is not None) for _, audio in wanted.values())
    sounds = iter(() if sound is None or not uses else _parted(sound, "asplit", uses))
    for ending, (video, audio) in wanted.items():
        streams = [_pictures(next(pictures), video, rendering.picture, table)]
        options = _clip_options(video)
        if sound is not None and audio.keep:
            streams.append(_resampled(next(sounds), audio))
            options |= _sound_options(audio, audio.codec_in(video.container or "mp4"))
        # The clip's texts go with the clip alone: variants are for pictures.
        if video is rendering.encoding.video:
            for number, text in enumerate(texts):
                streams.append(ffmpeg.input(f"file:{text.path}", format="webvtt")["s"])
                options["scodec"] = TEXT_CODECS[video.ending]
                options[f"metadata:s:s:{number}"] = f"language={text.language or 'und'}"
        yield ffmpeg.output(*streams, str(plan.file(ending)), **options)
        extracted = sound_ending(ending, audio)
        if sound is not None and extracted is not None:
            stream = _resampled(next(sounds), audio, from_zero=True)
            yield ffmpeg.output(stream, str(plan.file(extracted)), **_file_options(audio))


def _parted(stream: Any, kind: str, count: int) -> list[Any]:
    """``count`` copies of a stream."""
    if count == 1:
        return [stream]
    copies = stream.filter_multi_output(kind, count)
    return [copies[number] for number in range(count)]


_BITEXACT = {
    "fflags": "+bitexact",
    "map_metadata": -1,
    "map_chapters": -1,
    "threads": 1,
}


def _clip_options(video: Video) -> dict[str, Any]:
    return {
        **video_options(video),
        "fps_mode": "passthrough",
        # The source's own clock: the default, one over the frame rate, rounds uneven frames.
        "enc_time_base:v": "filter",
        "flags:v": "+bitexact",
        **_BITEXACT,
        **CONTAINERS[video.ending],
    }


def _sound_options(audio: Audio, codec: str) -> dict[str, Any]:
    options = {
        "acodec": SOUND_CODECS[codec],
        "flags:a": "+bitexact",
        **SOUND_OPTIONS.get(codec, {}),
    }
    return options if audio.bit_rate is None else {**options, "audio_bitrate": audio.bit_rate}


def _file_options(audio: Audio) -> dict[str, Any]:
    assert audio.extract is not None
    codec, options = SOUND_FILES[audio.extract]
    lossy = audio.extract in ("m4a", "mp3")
    rate = {"audio_bitrate": audio.bit_rate} if lossy and audio.bit_rate is not None else {}
    return {"acodec": codec, "flags:a": "+bitexact", **_BITEXACT, **rate, **options}


def _trim(stream: Any, plan: Plan) -> Any:
    """The plan's pictures, by integer pts, on a clock that begins at 0."""
    span = {"start_pts": plan.start_pts}
    if plan.last < len(plan.video.shown):
        span["end_pts"] = plan.end_pts
    return stream.filter("trim", **span).filter("setpts", f"PTS-({plan.start_pts})")


def _atrim(stream: Any, plan: Plan) -> Any:
    """The sound of the plan's pictures, on their clock."""
    start, end = (f"{round(edge * 1_000_000)}us" for edge in (plan.start, plan.end))
    origin = f"({plan.start.numerator}/{plan.start.denominator})/TB"
    return stream.filter("atrim", start=start, end=end).filter(
        "asetpts", f"max(0,round(PTS-{origin}))"
    )


def _resampled(stream: Any, audio: Audio, *, from_zero: bool = False) -> Any:
    """Sound at its rate and layout; ``from_zero``, silence stands where the clip has none, since
    files of sound have no times."""
    options: dict[str, Any] = {} if audio.rate is None else {"out_sample_rate": audio.rate}
    if from_zero:
        options |= {"async": 1, "first_pts": 0}
    if options:
        stream = stream.filter("aresample", **options)
    if audio.channels is not None:
        stream = stream.filter("aformat", channel_layouts=_LAYOUTS[audio.channels])
    return stream


def _pictures(stream: Any, video: Video, picture: Picture, table: Path) -> Any:
    """Pictures as an output asks for them; ``table`` is the file of tones, if one is needed.

    All filters begin anew with each clip: its bytes do not depend on what is decoded before it.
    """
    if video.deinterlace:
        stream = stream.filter("bwdif", mode="send_frame", deint="interlaced")
    if video.fps is not None:
        stream = _paced(stream, video.fps)
    stream = _sized(stream, video, picture)
    pix_fmt = video.ffmpeg_pix_fmt
    if picture.is_hdr and video.to_sdr:
        stream = _as_bt709(tone.to_sdr(stream, picture, table, _SCALER))
    elif picture.is_rgb:
        stream = _as_bt709(stream)
    elif picture.pix_fmt.replace("yuvj", "yuv") != pix_fmt:
        # Ahead of a format that differs, this is what converts it; matrix and range stay.
        stream = stream.filter("scale", flags=_SCALER)
    return stream.filter("format", pix_fmt)


def _paced(stream: Any, fps: str) -> Any:
    """A frame for each moment of the clip that is a multiple of 1/``fps``: the one that is shown
    then. Times that a container rounded to milliseconds count as what they were before."""
    stream = stream.filter("settb", "1/1000000").filter("setpts", "max(0,PTS-1000)")
    return stream.filter("fps", fps=fps, round="up")


def _as_bt709(stream: Any) -> Any:
    """RGB as YCbCr: it has no matrix to keep."""
    return stream.filter("scale", flags=_SCALER, out_color_matrix="bt709", out_range="tv")


def _sized(stream: Any, video: Video, picture: Picture) -> Any:
    fit = video.fit(picture)
    if fit.scaled == own(picture.width, picture.height, fit.grain).scaled:
        stream = stream.filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
    else:
        stream = stream.filter("scale", *fit.scaled, flags=_SCALER)
    if fit.cropped != fit.scaled:
        stream = stream.filter("crop", *fit.cropped, *fit.cropped_at)
    if fit.padded != fit.cropped:
        stream = stream.filter("pad", *fit.padded, *fit.padded_at)
    return stream.filter("setsar", 1) if video.square or video.size else stream
