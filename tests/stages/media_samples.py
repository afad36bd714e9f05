"""Small synthetic videos whose frames carry their own number, for tests of exact cutting."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from reelmill.media.ffmpeg import ffmpeg_exe

WIDTH, HEIGHT = 128, 96
BLOCK = 16
BITS = 12
KEYINT = 20

REAL = Path(__file__).parents[2].parent / "shared" / "media"
_MADE = TemporaryDirectory(prefix="reelmill-samples-")


def real_media() -> list[Path]:
    """Real camera clips beside the repository; empty where the folder is absent."""
    return sorted(p for p in REAL.glob("*.*") if p.suffix in {".mp4", ".avi", ".mkv"})


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Grey (height, width) picture: a moving texture, with ``number`` in blocks of black and white.

    Bit ``b`` is the 16x16 block at column ``b % 6``, row ``b // 6``, so that it survives any codec.
    """
    y, x = np.mgrid[0:height, 0:width]
    grey = (96 + 48 * np.sin((x + 3 * number) / 9) + 32 * np.cos((y - 2 * number) / 7)).astype(
        np.uint8
    )
    for bit in range(BITS):
        top, left = (bit // 6) * BLOCK, (bit % 6) * BLOCK
        grey[top : top + BLOCK, left : left + BLOCK] = 235 if number >> bit & 1 else 16
    return grey


def number_of(luma: NDArray[np.uint8], rows: int = BITS // 6) -> int:
    """The number that :func:`picture` wrote into ``rows`` of blocks, read from a (height, width)
    luma plane."""
    blocks = luma[: rows * BLOCK, : 6 * BLOCK].reshape(rows, BLOCK, 6, BLOCK)
    ones = blocks[:, 4:12, :, 4:12].mean(axis=(1, 3)) > 126
    return int(ones.ravel() @ (1 << np.arange(6 * rows)))


_reformatter = VideoReformatter()


def grey(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame's luma plane, of the full range; frames that follow each other share the tables that
    a conversion needs."""
    return _reformatter.reformat(frame, format="gray", threads=1).to_ndarray()


def make_video(
    path: Path,
    frames: int = 60,
    *,
    fps: int = 30,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    audio: str | None = None,
    onset: float = 0,
    rotation: int = 0,
    draw: Callable[[int], NDArray[np.uint8]] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write ``frames`` numbered frames; ``pts`` in ``time_base`` (default: every 1/fps from 0).

    ``audio`` names an encoder and adds a 440 Hz tone from ``onset`` seconds on, silence before.
    """
    width, height = size
    time_base = time_base or Fraction(1, fps)
    pts = pts if pts is not None else range(frames)
    with av.open(str(path), "w", container_options=container_options or {}) as out:
        out.flags |= av.container.Flags.bitexact.value
        video = out.add_stream(codec, rate=fps, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = time_base
        video.codec_context.thread_count = 1
        if rotation:
            video.set_display_rotation(rotation)
        sound = out.add_stream(audio, rate=48000) if audio else None
        tone = _tone(frames / fps, onset) if sound else iter(())
        offset = round(pts[0] * time_base * 48000)
        sent = 0
        for number, stamp in zip(range(frames), pts, strict=True):
            grey = draw(number) if draw else picture(number, width, height)
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, time_base
            out.mux(video.encode(frame))
            for samples in tone:
                samples.pts = offset + sent
                sent += samples.samples
                out.mux(sound.encode(samples))
                if Fraction(sent, 48000) > (stamp - pts[0]) * time_base:
                    break
        out.mux(video.encode(None))
        if sound:
            for samples in tone:
                samples.pts = offset + sent
                sent += samples.samples
                out.mux(sound.encode(samples))
            out.mux(sound.encode(None))
    return path


def _tone(seconds: float, onset: float = 0) -> Iterator[av.AudioFrame]:
    at = np.arange(round(48000 * seconds)) / 48000
    wave = np.where(at >= onset, 0.5 * np.sin(2 * np.pi * 440 * at), 0)
    for begin in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(
            wave[None, begin : begin + 1024].astype(np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        yield frame


def make_audio(path: Path, codec: str) -> Path:
    """One second of tone and no video."""
    with av.open(str(path), "w") as out:
        sound = out.add_stream(codec, rate=48000)
        for at, samples in enumerate(_tone(1)):
            samples.pts = at * 1024
            out.mux(sound.encode(samples))
        out.mux(sound.encode(None))
    return path


def x264(bframes: int = 2, keyint: int = KEYINT, more: str = "") -> dict[str, str]:
    """Options for a keyframe every ``keyint`` frames and no others."""
    fixed = f"keyint={keyint}:min-keyint={keyint}:scenecut=0:b-adapt=0:bframes={bframes}"
    return {"x264-params": f"{fixed}:{more}" if more else fixed}


def _ffmpeg(*args: str | Path) -> None:
    command = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, args)]
    subprocess.run(command, check=True)


def _hidden(path: Path) -> Path:
    _ffmpeg("-ss", "0.5", "-i", sample("plain.mp4"), "-c", "copy", path)
    return path


def _trimmed(path: Path) -> Path:
    """The silent sample with an edit list that ends after two of its three seconds."""
    data = bytearray(sample("silent.mp4").read_bytes())
    at = data.index(b"elst") + 12
    assert int.from_bytes(data[at : at + 4]) == 3000
    data[at : at + 4] = (2000).to_bytes(4)
    path.write_bytes(data)
    return path


def _delayed(path: Path) -> Path:
    source = sample("onset.mp4")
    sources = ("-i", source, "-itsoffset", "0.5", "-i", source, "-map", "0:v", "-map", "1:a")
    _ffmpeg(*sources, "-c", "copy", path)
    return path


def _grown(path: Path) -> Path:
    """Two transport streams end to end; the second one's frames are twice as wide and high."""
    large = make_video(path.with_name("large.ts"), 30, size=(2 * WIDTH, 2 * HEIGHT))
    path.write_bytes(sample("plain.ts").read_bytes() + large.read_bytes())
    return path


def _cover(path: Path) -> Path:
    cover = path.with_suffix(".jpg")
    _ffmpeg("-i", sample("plain.mp4"), "-frames:v", "1", "-update", "1", cover)
    sources = ("-i", sample("audio.m4a"), "-i", cover, "-map", "0", "-map", "1", "-c", "copy")
    _ffmpeg(*sources, "-disposition:v", "attached_pic", path)
    return path


def _two(path: Path) -> Path:
    first, second = sample("odd.mp4"), sample("scenes.mkv")
    sources = ("-i", first, "-i", second, "-map", "0:v", "-map", "1:v", "-c", "copy")
    _ffmpeg(*sources, "-disposition:v:0", "0", "-disposition:v:1", "default", path)
    return path


CUTS = (25, 47, 70)
"""Where the scenes of ``scenes.mkv`` begin, after the first; it has 90 frames."""

UNEVEN = [33 * i + 11 * (i % 3) + 200 * (i // 30) for i in range(90)]
"""Milliseconds of frames at a variable rate, with two pauses."""


def _scene(number: int) -> NDArray[np.uint8]:
    scene = sum(number >= cut for cut in CUTS)
    tiles = np.random.default_rng(scene).integers(16, 80, (6, 8), dtype=np.uint8)
    tiles += 150 * (scene % 2)
    return np.roll(tiles.repeat(32, 0).repeat(32, 1), number % 4, axis=1)


def _fade(number: int) -> NDArray[np.uint8]:
    # Two scenes, black between them around frame 45.
    return (_scene(0 if number < 45 else 89) * min(1.0, abs(number - 45) / 10)).astype(np.uint8)


_RECIPES: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": lambda p: make_video(p, 90, options=x264(), audio="aac"),
    "fast.mp4": lambda p: make_video(
        p, 90, options=x264(), audio="aac", container_options={"movflags": "faststart"}
    ),
    "silent.mp4": lambda p: make_video(p, 90, options=x264()),
    "open.mp4": lambda p: make_video(p, 90, options=x264(3, more="open-gop=1")),
    "uneven.mkv": lambda p: make_video(
        p, 90, pts=UNEVEN, time_base=Fraction(1, 1000), options=x264(), audio="aac"
    ),
    "late.mp4": lambda p: make_video(
        p, 60, pts=range(45, 105), options=x264(bframes=1), audio="aac"
    ),
    "plain.ts": lambda p: make_video(p, 90, options=x264(), audio="aac"),
    "plain.flv": lambda p: make_video(p, 90, options=x264(), audio="aac"),
    "plain.mkv": lambda p: make_video(p, 90, options=x264(), audio="aac"),
    "live.mkv": lambda p: make_video(p, 90, options=x264(), container_options={"live": "1"}),
    "fragmented.mp4": lambda p: make_video(
        p,
        90,
        options=x264(),
        audio="aac",
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    ),
    "plain.avi": lambda p: make_video(
        p, 90, codec="mpeg4", options={"bf": "2", "g": "20"}, audio="libmp3lame"
    ),
    "vp8.webm": lambda p: make_video(
        p, 90, codec="libvpx", options={"g": "20", "cpu-used": "8"}, audio="libopus"
    ),
    "vp9.webm": lambda p: make_video(
        p, 90, codec="libvpx-vp9", options={"g": "20", "cpu-used": "8"}, audio="libopus"
    ),
    "odd.mp4": lambda p: make_video(p, 30, size=(129, 97), pix_fmt="yuv444p"),
    "rotated.mp4": lambda p: make_video(p, 30, rotation=90),
    "onset.mp4": lambda p: make_video(p, 90, options=x264(), audio="aac", onset=1.5),
    "long.mp4": lambda p: make_video(p, 450, options=x264()),
    "scenes.mkv": lambda p: make_video(
        p, 90, pts=UNEVEN, time_base=Fraction(1, 1000), size=(256, 192), draw=_scene
    ),
    "fade.mkv": lambda p: make_video(
        p, 90, pts=UNEVEN, time_base=Fraction(1, 1000), size=(256, 192), draw=_fade
    ),
    "audio.m4a": lambda p: make_audio(p, "aac"),
    "audio.mp3": lambda p: make_audio(p, "libmp3lame"),
    "cover.m4a": _cover,
    "hidden.mp4": _hidden,
    "trimmed.mp4": _trimmed,
    "delayed.mkv": _delayed,
    "grown.ts": _grown,
    "two.mkv": _two,
}

NUMBERED = (
    "plain.mp4",
    "silent.mp4",
    "open.mp4",
    "uneven.mkv",
    "late.mp4",
    "plain.ts",
    "plain.flv",
    "plain.mkv",
    "fragmented.mp4",
    "plain.avi",
    "vp8.webm",
    "vp9.webm",
    "odd.mp4",
    "hidden.mp4",
    "trimmed.mp4",
)
"""Samples whose frames carry their numbers, one for each way in which containers differ."""


@cache
def sample(name: str) -> Path:
    """A sample by name, made once in a run of the tests."""
    return _RECIPES[name](Path(_MADE.name) / name)


@cache
def decoded(path: Path) -> list[tuple[int, NDArray[np.uint8]]]:
    """Every frame of the best video stream: (pts, planes as one array)."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [(frame.pts, frame.to_ndarray()) for frame in container.decode(stream)]


def numbers(path: Path) -> list[int]:
    """The number burnt into each frame, in presentation order."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [number_of(grey(frame)) for frame in container.decode(stream)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
