"""Exactness: the numbers and timecodes burnt into frames are read back from clips, for every kind
of source and every way to cut; sound stays with the picture."""

from __future__ import annotations

import os
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

from reelmill.media.cut import Clip, CutFailure, Encoding, Mode, Video, cut_spans, encode, smart
from reelmill.media.cut.plan import read_index
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import PacketTable, packet_table
from reelmill.media.spans import Span

from .media_samples import BLOCK, HEIGHT, WIDTH, grey, make_video, number_of, picture, sha256, x264

F = Fraction
THIRTY = F(30)
MODES: tuple[Mode, ...] = ("copy", "auto", "exact", "smart")
TIME_BITS = 18
UNEVEN = [33 * i + 11 * (i % 3) + 200 * (i // 30) for i in range(90)]
_MADE = TemporaryDirectory(prefix="reelmill-exactness-")


@dataclass(frozen=True)
class Kind:
    """A kind of source: how it is made, and at what time each of its frames was stamped.

    ``hidden`` frames in front are not shown. ``auto`` and ``smart`` tell, in these modes, for each
    of ``RANGES`` whether its clip is copied (c), encoded (e) or smart (s).
    """

    make: Callable[[Path], Path]
    stamps: Sequence[Fraction]
    suffix: str = "mp4"
    hidden: int = 0
    auto: str = "eccecec"
    smart: str = "sccecec"


def stamped(stamps: Sequence[Fraction], number: int, scale: int = 1) -> NDArray[np.uint8]:
    """A picture with its number and, in three more rows of blocks, its time in milliseconds."""
    drawn = picture(number)
    time = round(stamps[number] * 1000)
    for bit in range(TIME_BITS):
        top, left = (2 + bit // 6) * BLOCK, (bit % 6) * BLOCK
        drawn[top : top + BLOCK, left : left + BLOCK] = 235 if time >> bit & 1 else 16
    return drawn.repeat(scale, 0).repeat(scale, 1)


def _made(
    count: int = 60,
    rate: Fraction = THIRTY,
    *,
    first: int = 0,
    suffix: str = "mp4",
    auto: str = "eccecec",
    smart: str = "sccecec",
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
            # The muxer moves times that begin at 0 by two frames, until no dts is negative.
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
_NONE = "eeeeeee"
_WHOLE = {"auto": "eeeeeec", "smart": "eeeeeec"}
KINDS = {
    "closed GOP": _made(),
    "no B-frames": _made(options=x264(bframes=0)),
    "open GOP": _made(options=x264(3, more="open-gop=1"), **_WHOLE),
    "variable rate": Kind(_uneven, [F(at, 1000) for at in UNEVEN], "mkv"),
    "late start": _made(first=45),
    "edit list": Kind(_edited, _EVEN[:60], hidden=15, auto="eeeeece", smart="seeeecs"),
    "23.976": _made(rate=F(24000, 1001)),
    "29.97": _made(rate=F(30000, 1001)),
    "29.97 in Matroska": _made(rate=F(30000, 1001), suffix="mkv"),
    "10 bits": _made(**_TEN_BITS, auto=_NONE),
    "interlaced": _made(options=x264(more="tff=1"), smart="eccecec"),
    "rotated": _made(rotation=90, auto=_NONE),
    "odd size": _made(size=(129, 97), pix_fmt="yuv444p", auto=_NONE, smart="eccecec"),
    "long sound": Kind(_talkative, _EVEN[:60]),
    "one keyframe": _made(options=x264(keyint=1000), **_WHOLE),
    "transport stream": _made(suffix="ts"),
    "HEVC": _made(codec="libx265", options=_X265, auto=_NONE, smart="eccecec"),
    "VP9": _made(
        codec="libvpx-vp9",
        options={"g": "20", "cpu-used": "8"},
        suffix="webm",
        auto=_NONE,
        smart="eccecec",
    ),
    "gradual refresh": _made(options=x264(0, more="intra-refresh=1"), **_WHOLE),
    "variable rate in a transport stream": Kind(_uneven, [F(at, 1000) for at in UNEVEN], "ts"),
    "no last duration": _made(suffix="flv"),
    "change of size": Kind(_grown, _EVEN, "ts", auto="ecceeee", smart="ecceeee"),
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
    return number_of(luma), number_of(luma[2 * BLOCK :], TIME_BITS // 6)


def frames_of(path: Path, turned: int) -> list[tuple[Fraction, tuple[int, int]]]:
    """Time on the clip's own clock and what is read back, of every frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (frame.pts * frame.time_base, read_back(np.rot90(grey(frame), turned)))
            for frame in container.decode(stream)
        ]


def clips_of(outcomes: list[Clip | CutFailure]) -> list[Clip]:
    clips = [made for made in outcomes if isinstance(made, Clip)]
    assert len(clips) == len(outcomes), outcomes
    return clips


RANGES = ((7, 53), (20, 40), (0, 20), (33, 38), (40, 99), (5, 25), (0, 99))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_sources_own(kind: str, mode: Mode, tmp_path: Path) -> None:
    table, one = packet_table(source(kind)), KINDS[kind]
    ranges = [(a, min(b, len(table.shown))) for a, b in RANGES]
    spans = spans_of(table, ranges)
    outcomes = cut_spans(source(kind), spans, tmp_path, mode=mode, timeout_s=60)
    ways = {"auto": one.auto, "smart": one.smart, "exact": "e" * len(ranges)}
    if mode != "copy":
        assert "".join(clip.how[0] for clip in clips_of(outcomes)) == ways[mode]
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


# Sound


@cache
def _flash(suffix: str) -> Path:
    """The picture turns bright with frame 45, and the sound begins."""
    stamps = [F(i, 30) for i in range(90)]
    return make_video(
        Path(_MADE.name) / f"flash.{suffix}",
        90,
        options=x264(),
        audio="aac",
        onset=1.5,
        draw=lambda number: stamped(stamps, number) // (1 if number >= 45 else 8),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_flash_and_its_click_stay_together(suffix: str, mode: Mode, tmp_path: Path) -> None:
    path = _flash(suffix)
    spans = spans_of(packet_table(path), [(20, 80), (7, 73), (0, 60), (40, 90), (44, 50)])
    made = cut_spans(path, spans, tmp_path, mode=mode, timeout_s=60)
    clips = [clip for clip in made if isinstance(clip, Clip)]
    assert len(clips) == (4 if mode == "copy" else 5)
    apart = _flash_time(path) - _click_time(path)
    assert abs(apart) < 1 / 30
    for clip in clips:
        assert abs(_flash_time(clip.path) - _click_time(clip.path) - apart) < 1 / 30


def _flash_time(path: Path) -> float:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if grey(frame).mean() > 40:
                return float(frame.time)
    raise AssertionError("no flash")


def _click_time(path: Path) -> float:
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(axis=0) > 0.1)
            if len(loud):
                return float(frame.time) + float(loud[0]) / frame.sample_rate
    raise AssertionError("no click")


def test_sound_that_outlasts_the_picture_ends_with_it(tmp_path: Path) -> None:
    path = source("long sound")
    for mode in MODES:
        spans = spans_of(packet_table(path), [(20, 40), (40, 60)])
        for clip in clips_of(cut_spans(path, spans, tmp_path, mode=mode, timeout_s=60)):
            sound = read_index(clip.path, True).audio
            assert sound is not None
            assert abs(sound.end_pts * sound.time_base - (clip.end - clip.start)) < F(1, 20)


# What is copied


def packets_of(path: Path) -> list[tuple[int, bytes]]:
    with av.open(str(path)) as container:
        return [(p.stream_index, bytes(p)) for p in container.demux() if p.size]


@pytest.mark.parametrize("mode", ["auto", "smart", "copy"])
def test_copied_packets_are_the_sources_bit_for_bit(mode: Mode, tmp_path: Path) -> None:
    path = _flash("mp4")
    table = packet_table(path)
    (clip,) = clips_of(
        cut_spans(path, spans_of(table, [(20, 60)]), tmp_path, mode=mode, timeout_s=60)
    )
    assert clip.how == "copied"
    ours, theirs = packets_of(clip.path), packets_of(path)
    assert [data for place, data in ours if place == 0] == [
        data for place, data in theirs if place == 0
    ][20:60]
    sound = [data for place, data in ours if place == 1]
    everything = [data for place, data in theirs if place == 1]
    assert sound in [everything[at : at + len(sound)] for at in range(len(everything))]
    assert len(sound) > 50


def test_an_encoding_that_wants_no_copy_gets_none(tmp_path: Path) -> None:
    path = source("closed GOP")
    spans = spans_of(packet_table(path), [(20, 40), (7, 53)])
    for mode in ("auto", "smart"):
        made = cut_spans(
            path,
            spans,
            tmp_path,
            mode=mode,  # type: ignore[arg-type]
            encoding=Encoding(video=Video(gop=12)),
            timeout_s=60,
        )
        assert [clip.how for clip in clips_of(made)] == ["encoded"] * 2


SMART = [kind for kind, one in KINDS.items() if one.smart.startswith("s")]


@pytest.mark.parametrize("kind", SMART)
def test_smart_clips_hold_the_sources_pixels_between_their_borders(
    kind: str, tmp_path: Path
) -> None:
    path = source(kind)
    table = packet_table(path)
    made = cut_spans(path, spans_of(table, [(7, 45)]), tmp_path, mode="smart", timeout_s=60)
    (clip,) = clips_of(made)
    assert clip.how == "smart"
    theirs, ours = _pictures(path)[7:45], _pictures(clip.path)
    same = [np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    edges = [*table.pts[table.cut_points], table.end_pts]
    inside = [
        at for at in (int(np.searchsorted(table.shown, pts)) for pts in edges) if 7 <= at <= 45
    ]
    assert all(same[inside[0] - 7 : inside[-1] - 7])
    assert sum(same) == inside[-1] - inside[0]
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 2 * 2 ** (8 * (a.itemsize - 1) // 4)


def _pictures(path: Path) -> list[NDArray[Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", [kind for kind in SMART if kind not in {"10 bits", "rotated"}])
def test_other_readers_see_the_same_frames_in_smart_clips(kind: str, tmp_path: Path) -> None:
    path, one = source(kind), KINDS[kind]
    spans = spans_of(packet_table(path), [(7, 43)])
    (clip,) = clips_of(cut_spans(path, spans, tmp_path, mode="smart", timeout_s=60))
    video = cv2.VideoCapture(str(clip.path))
    found = []
    while (frame := video.read())[0]:
        found.append(number_of(cv2.cvtColor(frame[1], cv2.COLOR_BGR2GRAY)))
    assert found == list(range(one.hidden + 7, one.hidden + 43))
    # A seek into the copied part, and one into the border behind it. OpenCV seeks by even rates.
    for at in () if kind.startswith("variable rate") else (20, 34):
        video.set(cv2.CAP_PROP_POS_FRAMES, at)
        luma = cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY)
        assert number_of(luma) == one.hidden + 7 + at


def test_what_does_not_fit_together_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        smart, "_pixels", lambda frame: frame.to_ndarray().tobytes() + os.urandom(4)
    )
    path = source("closed GOP")
    spans = spans_of(packet_table(path), [(7, 53)])
    (clip,) = clips_of(cut_spans(path, spans, tmp_path, mode="smart", timeout_s=60))
    assert clip.how == "encoded"
    assert [read[0] for _, read in frames_of(clip.path, 0)] == list(range(7, 53))


# What is damaged or changes


def _headless(path: Path) -> Path:
    """The first keyframe is missing: what depends on it cannot be decoded."""
    with av.open(str(source("closed GOP"))) as from_, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(from_.streams.video[0], opaque=True)
        for number, packet in enumerate(from_.demux(video=0)):
            if packet.size and number:
                packet.stream = stream
                out.mux(packet)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_without_a_first_keyframe_clips_have_what_can_be_decoded(
    mode: Mode, tmp_path: Path
) -> None:
    path = _headless(tmp_path / "headless.mkv")
    spans = spans_of(packet_table(path), [(5, 15), (10, 30), (19, 39), (25, 45)])
    made = cut_spans(path, spans, tmp_path, mode=mode, timeout_s=60)
    for outcome in made:
        if isinstance(outcome, Clip):
            read = [number for _, (number, _) in frames_of(outcome.path, 0)]
            # The table begins with frame 1.
            first = outcome.start_frame + 1
            assert read == list(range(first, first + outcome.frames))
            assert first >= 20
    if mode != "copy":
        assert [type(outcome) for outcome in made] == [CutFailure, Clip, Clip, Clip]
        assert [outcome.reason for outcome in made[:1] if isinstance(outcome, CutFailure)] == [
            "undecodable"
        ]


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_across_a_change_of_size_has_the_size_it_begins_with(
    mode: Mode, tmp_path: Path
) -> None:
    path = source("change of size")
    spans = spans_of(packet_table(path), [(0, 40), (20, 60), (40, 80)])
    made = cut_spans(path, spans, tmp_path, mode=mode, timeout_s=60)
    if mode == "copy":
        assert [getattr(one, "reason", None) for one in made] == [None, "container", "container"]
        return
    sizes = [(WIDTH, HEIGHT), (WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)]
    assert [(clip.width, clip.height) for clip in clips_of(made)] == sizes


# The same bytes


@pytest.mark.parametrize("mode", MODES)
def test_bytes_do_not_depend_on_how_many_processes_run(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MAX_GROUP", 2)
    path = _flash("mp4")
    spans = spans_of(packet_table(path), [(a, a + 17) for a in range(0, 70, 7)])
    made = []
    for jobs in (1, 3):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        outcomes = cut_spans(path, spans, folder, mode=mode, jobs=jobs, timeout_s=60)
        made.append([sha256(one.path) if isinstance(one, Clip) else one for one in outcomes])
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["closed GOP", "open GOP", "variable rate", "change of size"])
def test_bytes_do_not_depend_on_which_clips_share_a_process(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(kind)
    spans = spans_of(packet_table(path), [(a, a + 10) for a in range(0, 46, 5)])
    made = []
    for most in (2, 3, 32):
        monkeypatch.setattr(encode, "MAX_GROUP", most)
        folder = tmp_path / str(most)
        folder.mkdir()
        clips = clips_of(cut_spans(path, spans, folder, mode="exact", timeout_s=60))
        made.append([sha256(clip.path) for clip in clips])
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("mode", MODES)
def test_progress_counts_every_frame(mode: Mode, tmp_path: Path) -> None:
    path = source("closed GOP")
    spans = spans_of(packet_table(path), [(0, 20), (7, 53), (33, 38)])
    told: list[tuple[int, int]] = []
    made = cut_spans(
        path,
        spans,
        tmp_path,
        mode=mode,
        timeout_s=60,
        progress=lambda done, frames: told.append((done, frames)),
    )
    assert told == sorted(told)
    if mode != "copy":
        assert told[-1] == (71, 71)
    assert len(clips_of(made[:1])) == 1
