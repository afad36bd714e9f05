"""Exactness: the numbers and timecodes burnt into frames are read back from clips, for every kind
of source and every way to cut; sound stays with the picture."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reelmill.media.cut import Clip, CutFailure, Mode, cut_spans
from reelmill.media.cut.plan import read_index
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import PacketTable, packet_table
from reelmill.media.spans import Span

from .media_samples import BLOCK, HEIGHT, WIDTH, make_video, number_of, picture, sample, x264

F = Fraction
MODES: tuple[Mode, ...] = ("copy", "auto", "exact", "smart")
TIME_BITS = 18
UNEVEN = [33 * i + 11 * (i % 3) + 200 * (i // 30) for i in range(90)]
_MADE = TemporaryDirectory(prefix="reelmill-exactness-")


@dataclass(frozen=True)
class Kind:
    """A kind of source: how it is made, and at what time each of its frames was stamped.

    ``hidden`` frames in front are not shown. ``auto`` and ``smart`` are the ways in which clips
    come to be in these modes.
    """

    make: Callable[[Path], Path]
    stamps: Sequence[Fraction]
    suffix: str = "mp4"
    hidden: int = 0
    auto: str = "copied encoded"
    smart: str = "copied encoded smart"


def stamped(stamps: Sequence[Fraction], number: int, scale: int = 1) -> NDArray[np.uint8]:
    """A picture with its number and, in three more rows of blocks, its time in milliseconds."""
    grey = picture(number)
    time = round(stamps[number] * 1000)
    for bit in range(TIME_BITS):
        top, left = (2 + bit // 6) * BLOCK, (bit % 6) * BLOCK
        grey[top : top + BLOCK, left : left + BLOCK] = 235 if time >> bit & 1 else 16
    return grey.repeat(scale, 0).repeat(scale, 1)


def _made(
    count: int = 60,
    rate: Fraction = F(30),
    *,
    first: int = 0,
    suffix: str = "mp4",
    auto: str = "copied encoded",
    smart: str = "copied encoded smart",
    **options: Any,
) -> Kind:
    stamps = [(first + i) / rate for i in range(count)]
    options.setdefault("options", x264())
    width, height = options.get("size", (WIDTH, HEIGHT))
    margin = ((0, height - HEIGHT), (0, width - WIDTH))
    return Kind(
        lambda path: make_video(
            path,
            count,
            pts=range(first, first + count),
            time_base=1 / rate,
            draw=lambda number: np.pad(stamped(stamps, number), margin),
            **options,
        ),
        stamps,
        suffix,
        auto=auto,
        smart=smart,
    )


def _uneven(path: Path) -> Path:
    return make_video(
        path,
        90,
        pts=UNEVEN,
        time_base=F(1, 1000),
        options=x264(),
        draw=lambda number: stamped([F(at, 1000) for at in UNEVEN], number),
    )


def _ffmpeg(*arguments: str | Path) -> None:
    command = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


def _edited(path: Path) -> Path:
    """Half a second is hidden by an edit list, as a copy with a seek writes it."""
    _ffmpeg("-ss", "0.5", "-i", source("closed GOP"), "-c", "copy", path)
    return path


def _talkative(path: Path) -> Path:
    """Two seconds of pictures and four of sound."""
    sound = path.with_suffix(".m4a")
    _ffmpeg("-f", "lavfi", "-i", "sine=440:duration=4", "-c:a", "aac", sound)
    _ffmpeg("-i", source("closed GOP"), "-i", sound, "-c", "copy", path)
    return path


def _grown(path: Path) -> Path:
    """Two streams end to end; the second one's frames are twice as wide and high."""
    stamps = [F(i, 30) for i in range(80)]
    for name, first, scale in (("small.ts", 0, 1), ("large.ts", 40, 2)):
        make_video(
            path.with_name(name),
            40,
            # The muxer moves times until no dts is negative: by two frames, for those that begin at 0.
            pts=range(first and first + 2, (first and first + 2) + 40),
            time_base=F(1, 30),
            size=(scale * WIDTH, scale * HEIGHT),
            options=x264(),
            draw=lambda number, first=first, scale=scale: stamped(stamps, first + number, scale),
        )
    path.write_bytes(b"".join(path.with_name(n).read_bytes() for n in ("small.ts", "large.ts")))
    return path


_TEN_BITS = {"pix_fmt": "yuv420p10le", "options": x264(more="profile=high10")}
_X265 = {"x265-params": "keyint=20:min-keyint=20:scenecut=0:open-gop=0:log-level=none"}
_EVEN = [F(i, 30) for i in range(80)]
KINDS = {
    "closed GOP": _made(),
    "no B-frames": _made(options=x264(bframes=0)),
    "open GOP": _made(options=x264(3, more="open-gop=1")),
    "variable rate": Kind(_uneven, [F(at, 1000) for at in UNEVEN], "mkv"),
    "late start": _made(first=45),
    "edit list": Kind(_edited, _EVEN[:60], hidden=15),
    "23.976": _made(rate=F(24000, 1001)),
    "29.97": _made(rate=F(30000, 1001)),
    "29.97 in Matroska": _made(rate=F(30000, 1001), suffix="mkv"),
    "10 bits": _made(**_TEN_BITS),
    "interlaced": _made(options=x264(more="tff=1")),
    "rotated": _made(rotation=90),
    "odd size": _made(size=(129, 97), pix_fmt="yuv444p"),
    "long sound": Kind(_talkative, _EVEN[:60]),
    "one keyframe": _made(options=x264(keyint=1000)),
    "transport stream": _made(suffix="ts"),
    "HEVC": _made(codec="libx265", options=_X265),
    "VP9": _made(codec="libvpx-vp9", options={"g": "20", "cpu-used": "8"}, suffix="webm"),
    "change of size": Kind(_grown, _EVEN, "ts"),
}


@cache
def source(kind: str) -> Path:
    one = KINDS[kind]
    return one.make(Path(_MADE.name) / f"{kind.replace(' ', '-')}.{one.suffix}")


def spans_of(table: PacketTable, ranges: Sequence[tuple[int, int]]) -> list[Span]:
    """Seconds from and to frames, in presentation order."""
    edges = [*table.shown.tolist(), table.end_pts]
    return [(edges[a] * table.time_base, edges[b] * table.time_base) for a, b in ranges]


def read_back(luma: NDArray[np.uint8]) -> tuple[int, int]:
    """The number and the time, in milliseconds, that a frame was stamped with."""
    luma = luma[:: 1 + luma.shape[0] // (2 * HEIGHT), :: 1 + luma.shape[1] // (2 * WIDTH)]
    time = 0
    for bit in range(TIME_BITS):
        top, left = (2 + bit // 6) * BLOCK, (bit % 6) * BLOCK
        time |= int(luma[top + 4 : top + 12, left + 4 : left + 12].mean() > 126) << bit
    return number_of(luma), time


def frames_of(path: Path, turned: int) -> list[tuple[Fraction, tuple[int, int]]]:
    """Time on the clip's own clock and what is read back, of every frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (
                frame.pts * frame.time_base,
                read_back(np.rot90(frame.reformat(format="gray").to_ndarray(), turned)),
            )
            for frame in container.decode(stream)
        ]


RANGES = ((7, 53), (20, 40), (0, 20), (33, 38), (40, 99), (5, 25), (0, 99))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_sources_own(kind: str, mode: Mode, tmp_path: Path) -> None:
    table, one = packet_table(source(kind)), KINDS[kind]
    ranges = [(a, min(b, len(table.shown))) for a, b in RANGES]
    spans = spans_of(table, ranges)
    outcomes = cut_spans(source(kind), spans, tmp_path, mode=mode, timeout_s=60)
    print("WAYS", kind, mode, [getattr(o, "how", None) for o in outcomes])
    for (a, b), made in zip(ranges, outcomes, strict=True):
        if isinstance(made, CutFailure):
            assert (mode, made.reason) in {("copy", "no_keyframe"), ("copy", "container")}
            continue
        if mode != "copy":
            assert (made.start_frame, made.frames) == (a, b - a)
        turned = -1 if kind == "rotated" and made.how == "encoded" else 0
        found = frames_of(made.path, turned)
        numbers = range(made.start_frame, made.start_frame + made.frames)
        assert [made.start + at for at, _ in found] == [
            table.shown[number] * table.time_base for number in numbers
        ]
        assert [read for _, read in found] == [
            (one.hidden + number, round(one.stamps[one.hidden + number] * 1000))
            for number in numbers
        ]
