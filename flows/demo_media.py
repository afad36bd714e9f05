"""A dozen short procedural videos, and a damaged one, to try Reelmill on with no network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from reelmill.flows import demo_scenes as draw


@dataclass(frozen=True)
class DemoVideo:
    """One video of the demonstration: where it is, what it shows and what it is there to try."""

    filename: str
    caption: str
    note: str
    scenes: int
    """Scenes between hard cuts; 0 for the damaged file."""


def make_demo_media(folder: Path) -> list[DemoVideo]:
    """Write the videos into ``folder``, the damaged one last, and describe them.

    The same files on every run of one machine; about 12 seconds of one core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # OpenCV's dispatched kernels round otherwise from one CPU to the next.
    cv2.setNumThreads(1)
    cv2.setUseOptimized(False)
    videos = [_make(film, folder, seed) for seed, film in enumerate(_FILMS)]
    whole = (folder / _FILMS[0].filename).read_bytes()
    (folder / "damaged.mp4").write_bytes(whole[: len(whole) * 2 // 5])
    damaged = DemoVideo("damaged.mp4", "the dunes, broken off", "cut at 40 %: its index is lost", 0)
    return [*videos, damaged]


def _x264() -> dict[str, str]:
    return {"preset": "veryfast", "crf": "21", "x264-params": "cpu-independent=1"}


@dataclass(frozen=True)
class _Film:
    """How one video is made: scenes, each with its length in seconds, and the encoder."""

    filename: str
    caption: str
    size: tuple[int, int]
    rate: Fraction
    scenes: tuple[tuple[draw.Painter, float], ...]
    note: str = "H.264"
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=_x264)
    sound: bool = False
    uneven: bool = False
    """A variable frame rate: every third frame stays twice as long."""


_NTSC = Fraction(30000, 1001)
_winter = partial(
    draw.dunes, sky="7ea3c4 b8d0e3 f1f5f9", sand="a9c1d6 86a5c2 e8f0f7", ball="2b2d42"
)
_mars = partial(draw.dunes, sky="1f1147 62275e c8553d", sand="7d2e3b 5c1f33 36132a", ball="ffd166")
_dawn = partial(draw.balloons, sky="35305f c06c84 f8b195 ffe5b9", land="6c5b7b 3f3a5a")
_rust = partial(draw.planet, land="3d1308 8a3b12 c9722e e9b872 f7e1b5", air="ff9b71")
_autumn = partial(
    draw.fields, colours="bb3e03 ca6702 ee9b00 9b2226 e9d8a6", pan=(-0.2, 0.2), spin=-0.2
)
_peacock = partial(
    draw.rosette, ground="caf0f8 90e0ef", petals="03045e 0077b6 00b4d8 90e0ef caf0f8 023e8a"
)
_orchid = partial(
    draw.rosette, ground="10002b 240046", petals="3c096c 7b2cbf c77dff ffc8dd ffafcc 5a189a"
)
_candy = partial(
    draw.court, sky="ff99c8 fcf6bd ffffff", floor="fff1e6 9d4edd", balls="06d6a0 ef476f 118ab2"
)

_FILMS = (
    _Film(
        "dunes.mp4",
        "a red disc rolls across dunes",
        (640, 360),
        Fraction(25),
        ((draw.dunes, 2.4), (draw.aurora, 2.0), (draw.balloons, 2.0)),
    ),
    _Film(
        "planets.mp4",
        "two planets turn, and a tunnel of fire between them",
        (640, 360),
        Fraction(24),
        ((draw.planet, 2.2), (draw.tunnel, 1.6), (_rust, 2.0)),
    ),
    _Film(
        "city.mp4",
        "a city at dusk, its lights out of focus, a chord beneath",
        (480, 270),
        Fraction(30),
        ((draw.city, 2.2), (draw.bokeh, 1.8), (_dawn, 1.6)),
        note="H.264 and AAC",
        sound=True,
    ),
    _Film(
        "pond.mp4",
        "koi swim under rain rings, then fields from above",
        (426, 240),
        _NTSC,
        ((draw.pond, 2.2), (draw.fields, 2.0), (draw.tiles, 1.6)),
    ),
    _Film(
        "tiles.mp4",
        "tiles turn, petals turn against them",
        (320, 240),
        Fraction(15),
        (
            (draw.tiles, 2.0),
            (draw.rosette, 2.0),
            (
                partial(draw.tiles, colours="14213d fca311 e5e5e5 ff6b6b", spin=-0.5, zoom=0.15),
                2.0,
            ),
            (partial(draw.bokeh, ground="240046 10002b"), 1.6),
        ),
    ),
    _Film(
        "lanterns.mp4",
        "upright: balloons at dawn, a city, an orchid",
        (360, 640),
        Fraction(30),
        ((_dawn, 1.6), (draw.city, 1.4), (_orchid, 1.5)),
        note="H.264, portrait",
    ),
    _Film(
        "fields.mp4",
        "fields from the air, a court of balls, a pond",
        (640, 360),
        _NTSC,
        ((draw.fields, 1.8), (draw.court, 1.6), (draw.pond, 1.6)),
    ),
    _Film(
        "tunnel.webm",
        "down a tunnel and out to the northern lights",
        (426, 240),
        Fraction(25),
        (
            (partial(draw.tunnel, colours="001219 005f73 0a9396 94d2bd e9d8a6"), 1.8),
            (draw.aurora, 1.6),
            (partial(draw.tunnel, colours="10002b 7b2cbf ff6d00 ffe5b4"), 1.6),
        ),
        note="VP9 in WebM",
        codec="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    ),
    _Film(
        "winter.mp4",
        "a wheel rolls through snow, here and on another planet",
        (480, 270),
        Fraction(24),
        (
            (partial(_winter, snow=110, speed=0.08), 2.2),
            (draw.planet, 1.6),
            (partial(_mars, snow=40), 1.8),
        ),
        note="HEVC",
        codec="libx265",
        options={
            "preset": "ultrafast",
            "crf": "24",
            "x265-params": "pools=none:frame-threads=1:wpp=0:log-level=error:info=0",
        },
    ),
    _Film(
        "court.mp4",
        "balls bounce over a chequered floor",
        (640, 360),
        Fraction(30),
        ((draw.court, 2.0), (_mars, 1.8), (_candy, 1.6)),
    ),
    _Film(
        "lights.mp4",
        "lights drift, petals turn and a city passes at an uneven pace",
        (480, 270),
        Fraction(30),
        (
            (partial(draw.bokeh, ground="00171f 003459", lights="00a8e8 90f1ef ffd6e0"), 1.8),
            (_peacock, 1.8),
            (draw.city, 1.6),
        ),
        note="H.264, variable frame rate",
        uneven=True,
    ),
    _Film(
        "meadow.mkv",
        "an autumn patchwork turns below, and koi by night",
        (426, 240),
        Fraction(25),
        (
            (_autumn, 2.0),
            (partial(draw.pond, water="03071e 0b1a3f 274690 b8c4ff"), 2.0),
            (draw.balloons, 1.4),
        ),
        note="H.264 in Matroska",
    ),
)


def _make(film: _Film, folder: Path, seed: int) -> DemoVideo:
    width, height = film.size
    with av.open(folder / film.filename, "w", options={"fflags": "bitexact"}) as output:
        video = output.add_stream(film.codec, film.rate, options=film.options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        sound = output.add_stream("aac", 44100, layout="mono") if film.sound else None
        for pts, picture in _pictures(film, seed):
            planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts, frame.time_base = pts, 1 / film.rate
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sound is not None:
            for block in _chord(sum(seconds for _, seconds in film.scenes)):
                output.mux(sound.encode(block))
            output.mux(sound.encode(None))
    note = f"{width}x{height}, {float(film.rate):.5g} fps, {film.note}"
    return DemoVideo(film.filename, film.caption, note, len(film.scenes))


def _pictures(film: _Film, seed: int) -> Iterator[tuple[int, draw.Picture]]:
    """(timestamp in frames, picture) of every frame."""
    start = 0
    for number, (painter, seconds) in enumerate(film.scenes):
        scene = painter(*film.size, np.random.default_rng([seed, number]))
        length = round(seconds * film.rate)
        for frame in range(length):
            if not film.uneven or frame % 4 != 3:
                yield start + frame, scene(frame / float(film.rate))
        start += length


def _chord(seconds: float) -> Iterator[av.AudioFrame]:
    """Three notes that swell and fade: mono, 44.1 kHz."""
    t = np.arange(int(seconds * 44100)) / 44100
    notes = sum(np.sin(draw.TAU * pitch * t) for pitch in (220.0, 277.18, 329.63))
    wave = (0.06 * (1 - np.cos(math.pi * t)) * notes).astype(np.float32)
    for start in range(0, len(wave), 1024):
        block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
        block.sample_rate, block.pts, block.time_base = 44100, start, Fraction(1, 44100)
        yield block
