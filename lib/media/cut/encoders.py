"""ffmpeg's options for each codec and container, with which equal pictures are equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reelmill.media.cut.output import Video

CONTAINERS: Mapping[str, Mapping[str, Any]] = {
    "mp4": {"format": "mp4", "movflags": "+faststart"},
    "mkv": {"format": "matroska", "cues_to_front": 1},
    "webm": {"format": "webm", "cues_to_front": 1},
}
"""The index comes first, so that readers of a stream can seek."""

SOUND_CODECS = {"aac": "aac", "opus": "libopus", "flac": "flac", "mp3": "libmp3lame"}

SOUND_OPTIONS: Mapping[str, Mapping[str, Any]] = {"flac": {"frame_size:a": 4608}}
"""By codec. FLAC takes the length of the first frame for that of its blocks, if it is not told one,
and refuses fewer than 16 samples: what may be left of a packet at the beginning of a clip."""

SOUND_FILES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "m4a": ("aac", {"format": "ipod", "movflags": "+faststart"}),
    "wav": ("pcm_s16le", {"format": "wav"}),
    "flac": ("flac", {"format": "flac", "sample_fmt": "s16", **SOUND_OPTIONS["flac"]}),
    "mp3": ("libmp3lame", {"format": "mp3", "id3v2_version": 0}),
}

TEXT_CODECS = {"mp4": "mov_text", "mkv": "srt", "webm": "webvtt"}


def video_options(video: Video) -> dict[str, Any]:
    """The encoder with its quality, its keyframes, and all that would let its bytes vary off.

    Encoders of the CPU run on one thread: with several, x264 and libvpx write other bytes, and
    clips are encoded beside each other anyway.
    """
    facts = video.facts
    options: dict[str, Any] = {"vcodec": facts.encoder}
    if video.bit_rate is not None:
        options["video_bitrate"] = video.bit_rate
    else:
        options |= _quality(video)
    if video.bframes is not None:
        options["bf"] = video.bframes
    if video.gop is not None:
        options |= {"g": video.gop, "keyint_min": video.gop}
    return options | _OWN[facts.encoder](video)


def _quality(video: Video) -> dict[str, Any]:
    crf = video.facts.crf if video.crf is None else video.crf
    if video.facts.on_gpu:
        return {"rc": "vbr", "cq": crf, "video_bitrate": 0}
    # libvpx takes the bit rate for a bound of the quality.
    return {"crf": crf} | ({"video_bitrate": 0} if video.facts.encoder == "libvpx-vp9" else {})


def _preset(video: Video) -> str:
    return video.preset or video.facts.preset


def _x264(video: Video) -> dict[str, Any]:
    scenes = {} if video.gop is None else {"sc_threshold": 0}
    return {"preset": _preset(video), "threads:v": 1, **scenes}


def _x265(video: Video) -> dict[str, Any]:
    # Its message with the encoder's options (info) names the CPU's instructions.
    params = "pools=none:frame-threads=1:wpp=0:info=0:log-level=none:open-gop=0"
    if video.gop is not None:
        params += ":scenecut=0"
    tag = {"tag:v": "hvc1"} if video.ending == "mp4" else {}
    return {"preset": _preset(video), "x265-params": params, **tag}


def _vpx(video: Video) -> dict[str, Any]:
    return {
        "deadline": "good",
        "cpu-used": _preset(video),
        "row-mt": 0,
        "tile-columns": 0,
        "threads:v": 1,
    }


def _svt(video: Video) -> dict[str, Any]:
    params = "lp=1" if video.gop is None else "lp=1:scd=0:irefresh-type=2"
    return {"preset": _preset(video), "svtav1-params": params}


def _nvenc(video: Video) -> dict[str, Any]:
    scenes = {} if video.gop is None else {"no-scenecut": 1, "forced-idr": 1}
    tag = {"tag:v": "hvc1"} if video.codec == "hevc_nvenc" and video.ending == "mp4" else {}
    return {"preset": _preset(video), **scenes, **tag}


_OWN = {
    "libx264": _x264,
    "libx265": _x265,
    "libvpx-vp9": _vpx,
    "libsvtav1": _svt,
    "h264_nvenc": _nvenc,
    "hevc_nvenc": _nvenc,
    "av1_nvenc": _nvenc,
}
