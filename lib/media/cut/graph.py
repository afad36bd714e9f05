"""The ffmpeg command that encodes clips: one decode, a branch for each clip."""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import ffmpeg

from reelmill.media.cut.plan import Plan
from reelmill.media.probe import FORMATS, MAX_PIXELS

# FFmpeg's resampler and AAC encoder round otherwise with newer instructions: the ones that every
# x86-64 has give the same bytes on all of them, at some 5 % more CPU.
_CPU_FLAGS = ("-cpuflags", "sse2") if platform.machine() in ("x86_64", "AMD64") else ()


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded: x264's constant rate factor, and its preset.

    ``allows_copy`` is whether packets of a source of the same kind may stand for an encode.
    """

    codec: str = "libx264"
    crf: int = 18
    preset: str = "veryfast"
    allows_copy: bool = True


def compose(
    source: Path,
    indices: Sequence[int],
    plans: Sequence[Plan],
    heard: Collection[int],
    encoding: Encoding,
    seek: Fraction | None,
) -> Any:
    """One process that writes the clips of ``plans`` (ordered by start) from one decode.

    ``indices`` are the container's of the video stream and, if any, the audio stream; ``heard`` are
    the numbers of the plans that have sound; decoding begins at the keyframe at ``seek`` seconds,
    or at the beginning.
    """
    options: dict[str, Any] = {
        "threads": 1,
        "max_pixels": MAX_PIXELS,
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
    }
    if seek is not None:
        options |= {
            "ss": f"{ceil(seek * 1_000_000)}us",
            "seek_timestamp": 1,
            "noaccurate_seek": None,
        }
    media = ffmpeg.input(f"file:{source.absolute()}", **options)
    pictures = (
        media[str(indices[0])]
        .filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
        .filter_multi_output("split", len(plans))
    )
    sounds = media[str(indices[1])].filter_multi_output("asplit", len(heard)) if heard else None
    outputs = []
    place = 0
    for number, plan in enumerate(plans):
        streams = [_trim(pictures[number], plan)]
        if sounds is not None and plan.number in heard:
            streams.append(_atrim(sounds[place], plan))
            place += 1
        outputs.append(ffmpeg.output(*streams, str(plan.path), **_output_options(encoding)))
    return ffmpeg.merge_outputs(*outputs).global_args(
        *("-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-copyts"),
        *("-filter_complex_threads", "1", "-max_error_rate", "1"),
        *_CPU_FLAGS,
    )


def _output_options(encoding: Encoding) -> dict[str, Any]:
    return {
        "vcodec": encoding.codec,
        "crf": encoding.crf,
        "preset": encoding.preset,
        "acodec": "aac",
        "pix_fmt": "yuv420p",
        "threads": 1,
        "fps_mode": "passthrough",
        # The source's own clock: the default, one over the frame rate, rounds uneven frames.
        "enc_time_base:v": "filter",
        "flags:v": "+bitexact",
        "flags:a": "+bitexact",
        "fflags": "+bitexact",
        "movflags": "+faststart",
        "map_metadata": -1,
        "map_chapters": -1,
        "format": "mp4",
    }


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
