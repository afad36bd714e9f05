"""Cutting: exact to the frame when encoded, bit-exact when copied, the same bytes every time."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reelmill.errors import MissingDependencyError, Rejected, StageError
from reelmill.media.cut import Clip, CutFailure, Encoding, Video, copy, cut_spans, encoders
from reelmill.media.cut import encode as module
from reelmill.media.cut.output import CODECS
from reelmill.media.ffmpeg import FfmpegError, encoder_id, ffmpeg_exe, run, run_each
from reelmill.media.probe import PacketTable, packet_table, probe
from reelmill.media.scenes import ContentDetector, detect
from reelmill.media.spans import Span, bound, fixed

from .media_samples import (
    HEIGHT,
    KEYINT,
    NUMBERED,
    WIDTH,
    decoded,
    make_video,
    numbers,
    real_media,
    sample,
    sha256,
)

F = Fraction
LIMIT = 60.0


def _encode(source: Path, spans: list[Span], out: Path, **options: Any) -> list[Clip | CutFailure]:
    return cut_spans(source, spans, out, **{"mode": "exact", "timeout_s": LIMIT, **options})


def _copy(source: Path, spans: list[Span], out: Path, **options: Any) -> list[Clip | CutFailure]:
    return cut_spans(source, spans, out, **{"mode": "copy", "timeout_s": LIMIT, **options})


def _clips(outcomes: list[Clip | CutFailure]) -> list[Clip]:
    clips = [outcome for outcome in outcomes if isinstance(outcome, Clip)]
    assert len(clips) == len(outcomes), outcomes
    return clips


def _whole(table: PacketTable) -> Span:
    return int(table.shown[0]) * table.time_base, table.end_pts * table.time_base


def _times(path: Path) -> list[Fraction]:
    """The time of every frame, in seconds from the file's own zero."""
    table = packet_table(path)
    return [pts * table.time_base for pts, _ in decoded(path)]


# Exact cuts


@pytest.mark.parametrize("name", NUMBERED)
def test_exact_clips_have_exactly_their_frames(name: str, tmp_path: Path) -> None:
    source = sample(name)
    table = packet_table(source)
    start, end = _whole(table)
    spans = [*fixed(start, end, F(7, 10)), (start + F(1, 3), start + F(4, 5)), (end - F(1, 2), end)]
    offset = numbers(source)[0]
    for span, clip in zip(spans, _clips(_encode(source, spans, tmp_path)), strict=True):
        stamps = [int(pts) * table.time_base for pts in table.shown]
        inside = [i for i, stamp in enumerate(stamps) if span[0] <= stamp < span[1]]
        first, last = inside[0], inside[-1]
        assert numbers(clip.path) == [offset + i for i in inside]
        assert _times(clip.path) == [stamps[i] - stamps[first] for i in inside]
        assert (clip.start_frame, clip.frames) == (first, len(inside))
        assert (clip.wished_start, clip.wished_end) == span
        assert clip.start == stamps[first]
        assert clip.end == (stamps[last + 1] if last + 1 < len(stamps) else end)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 3200), st.integers(0, 900)).map(
            lambda at: (F(at[0], 1000), F(at[0] + at[1], 1000))
        ),
        max_size=5,
    )
)
def test_any_spans_come_out_exact(tmp_path: Path, spans: list[Span]) -> None:
    source = sample("uneven.mkv")
    table = packet_table(source)
    outcomes = _encode(source, spans, tmp_path, audio=False)
    for (start, end), outcome in zip(spans, outcomes, strict=True):
        inside = [i for i, pts in enumerate(table.shown.tolist()) if start <= F(pts, 1000) < end]
        if inside:
            assert isinstance(outcome, Clip)
            assert numbers(outcome.path) == inside
        else:
            assert isinstance(outcome, CutFailure)
            assert outcome.reason == "no_frames"


def test_scenes_are_cut_without_losing_a_frame(tmp_path: Path) -> None:
    source = sample("scenes.mkv")
    clips = _clips(_encode(source, detect(source, [ContentDetector()]), tmp_path))
    assert [clip.start_frame for clip in clips] == [0, 25, 47, 70]
    assert sum(clip.frames for clip in clips) == 90


def test_clips_are_upright_even_sized_and_eight_bit(tmp_path: Path) -> None:
    rotated, odd = sample("rotated.mp4"), sample("odd.mp4")
    clip = _clips(_encode(rotated, [(F(0), F(1))], tmp_path))[0]
    assert (clip.width, clip.height, clip.rotation) == (96, 128, 0)
    clip = _clips(_encode(odd, [(F(0), F(1))], tmp_path))[0]
    assert (clip.width, clip.height, probe(clip.path).pix_fmt) == (128, 96, "yuv420p")


def test_encoder_runs_on_one_thread(tmp_path: Path) -> None:
    clip = _clips(_encode(sample("silent.mp4"), [(F(0), F(1))], tmp_path))[0]
    # x264 writes its settings into the stream.
    assert b" threads=1 " in clip.path.read_bytes()


def test_picture_survives_encoding(tmp_path: Path) -> None:
    source = sample("silent.mp4")
    clip = _clips(_encode(source, [(F(1), F(2))], tmp_path))[0]
    for (_, ours), (_, theirs) in zip(decoded(clip.path), decoded(source)[30:60], strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def _onset(path: Path) -> float:
    """Seconds from the file's zero at which its sound begins."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(axis=0) > 0.1)
            if len(loud):
                return float(frame.pts * frame.time_base) + float(loud[0]) / frame.sample_rate
    raise AssertionError("silence")


def test_sound_stays_with_the_picture(tmp_path: Path) -> None:
    source = sample("onset.mp4")
    assert abs(_onset(source) - 1.5) < 0.03
    spans = [(F(1, 3), F(2)), (F(7, 5), F(3))]
    for clip in _clips(_encode(source, spans, tmp_path)):
        assert clip.audio
        assert abs(_onset(clip.path) - (1.5 - float(clip.start))) < 0.03
    for clip in _clips(_copy(source, [(F(0), F(2)), (F(4, 3), F(3))], tmp_path)):
        assert clip.audio
        assert abs(_onset(clip.path) - (1.5 - float(clip.start))) < 0.03


def test_sound_that_begins_late_stays_late(tmp_path: Path) -> None:
    source = sample("delayed.mkv")
    assert abs(_onset(source) - 2) < 0.03
    for clip in _clips(_encode(source, [(F(0), F(3)), (F(1, 3), F(3))], tmp_path)):
        assert abs(_onset(clip.path) - (2 - float(clip.start))) < 0.03


def test_audio_may_be_left_out(tmp_path: Path) -> None:
    source = sample("plain.mp4")
    assert [c.audio for c in _clips(_encode(source, [(F(0), F(1))], tmp_path))] == [True]
    quiet = _clips(_encode(source, [(F(0), F(1))], tmp_path, audio=False))
    assert [c.audio for c in quiet] == [False]


@pytest.mark.parametrize("cut", [_copy, _encode])
@pytest.mark.parametrize("name", ["plain.mp4", "uneven.mkv", "plain.ts"])
def test_the_same_bytes_every_time(
    name: str, cut: Callable[..., list[Clip | CutFailure]], tmp_path: Path
) -> None:
    spans = fixed(F(0), F(3), F(3, 2))
    made = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        made.append([sha256(c.path) for c in _clips(cut(sample(name), spans, tmp_path / place))])
    assert made[0] == made[1]
    assert len(set(made[0])) == len(spans)


def test_clip_has_the_same_bytes_alone_and_among_others(tmp_path: Path) -> None:
    source, spans = sample("silent.mp4"), fixed(F(0), F(3), F(1))
    together = [sha256(clip.path) for clip in _clips(_encode(source, spans, tmp_path))]
    alone = [sha256(_clips(_encode(source, [span], tmp_path))[0].path) for span in spans]
    assert alone == together


# What one process makes, and what it costs when it fails


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that are run."""
    lines: list[list[str]] = []

    def recorded(
        streams: Iterable[Any], **options: Any
    ) -> Iterator[tuple[int, FfmpegError | None]]:
        composed = list(streams)
        lines.extend(ffmpeg.get_args(stream) for stream in composed)
        return run_each(composed, **options)

    monkeypatch.setattr(module, "run_each", recorded)
    return lines


def _outputs(line: list[str]) -> list[str]:
    return [arg for arg in line if arg.endswith(".mp4") and not arg.startswith("file:")]


def test_neighbours_share_a_decode_and_gaps_are_not_decoded(
    runs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GROUP", 8)
    monkeypatch.setattr(module, "WORTH_A_SEEK", 60 * WIDTH * HEIGHT)
    monkeypatch.setattr(module, "WORTH_A_PACKET", 0)
    near = fixed(F(0), F(2), F(1, 5))
    spans = [(F(25, 2), F(13)), *near, (F(13), F(14))]
    clips = _clips(_encode(sample("long.mp4"), spans, tmp_path))
    assert [len(_outputs(line)) for line in runs] == [
        7,
        3,
        2,
    ]  # the second begins just behind a keyframe
    assert ["-ss" in line for line in runs] == [False, True, True]
    assert [numbers(c.path)[0] for c in (clips[0], clips[1], clips[-1])] == [375, 0, 390]


@pytest.mark.parametrize("name", [name for name in NUMBERED if name != "odd.mp4"])
def test_seek_lands_ahead_of_the_clip_in_every_container(
    name: str, runs: list[list[str]], tmp_path: Path
) -> None:
    source = sample(name)
    table = packet_table(source)
    start, end = _whole(table)
    span = (start + (end - start) * F(3, 4), end)
    clip = _clips(_encode(source, [span], tmp_path))[0]
    first = int(np.searchsorted(table.shown, float(span[0] / table.time_base)))
    assert numbers(clip.path) == numbers(source)[first:]
    assert ["-ss" in line for line in runs] == [True]


def test_one_clip_that_fails_takes_no_other_along(runs: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "000001.mp4").mkdir()
    outcomes = _encode(sample("silent.mp4"), fixed(F(0), F(3), F(1)), tmp_path)
    assert [type(o) for o in outcomes] == [Clip, CutFailure, Clip]
    assert [numbers(o.path)[0] for o in outcomes if isinstance(o, Clip)] == [0, 60]
    assert isinstance(outcomes[1], CutFailure)
    assert outcomes[1].reason == "encode_failed"
    assert str(tmp_path) not in outcomes[1].message
    assert [len(_outputs(line)) for line in runs] == [3, 1, 1, 1]


def test_late_seek_is_mended_by_a_second_attempt(
    runs: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = module._Encode._keyframe

    def misled(self: Any, plan: Any, preroll: Fraction) -> int:
        late: int = plan.start_pts + KEYINT * int(plan.video.duration[0])
        return honest(self, plan, preroll) if preroll else late

    monkeypatch.setattr(module._Encode, "_keyframe", misled)
    clip = _clips(_encode(sample("long.mp4"), [(F(10), F(12))], tmp_path))[0]
    assert (numbers(clip.path), len(runs)) == (list(range(300, 360)), 2)


@pytest.mark.parametrize("mode", ["exact", "auto", "smart", "copy"])
def test_time_runs_out(mode: str, tmp_path: Path) -> None:
    spans = [(F(0), F(9)), (F(10), F(12))]
    outcomes = _encode(sample("long.mp4"), spans, tmp_path, mode=mode, timeout_s=0)
    assert [o.reason for o in outcomes if isinstance(o, CutFailure)] == ["timeout"] * 2
    assert not list(tmp_path.iterdir())


def test_unknown_encoder_fails_every_clip_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, "h264", replace(CODECS["h264"], encoder="libnone"))
    monkeypatch.setitem(encoders._OWN, "libnone", lambda video: {})
    outcomes = _encode(sample("silent.mp4"), fixed(F(0), F(3), F(1)), tmp_path)
    assert {o.reason for o in outcomes if isinstance(o, CutFailure)} == {"encode_failed"}
    assert not list(tmp_path.iterdir())


def test_damage_costs_only_the_clips_it_is_in(tmp_path: Path) -> None:
    data = bytearray(sample("silent.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    size = int.from_bytes(data[at - 8 : at - 4]) - 8
    # The middle GOPs.
    data[at + size // 3 : at + size // 2] = b"\xff" * (size // 2 - size // 3)
    source = tmp_path / "damaged.mp4"
    source.write_bytes(data)
    outcomes = _encode(source, fixed(F(0), F(3), F(1, 2)), tmp_path)
    first, last = outcomes[0], outcomes[-1]
    assert isinstance(first, Clip)
    assert isinstance(last, Clip)
    assert numbers(first.path) == list(range(15))
    assert numbers(last.path) == list(range(75, 90))
    for outcome in outcomes:
        if isinstance(outcome, Clip):
            assert outcome.frames == len(packet_table(outcome.path).shown)
        else:
            assert outcome.reason == "undecodable"


@pytest.mark.parametrize("cut", [_copy, _encode])
def test_spans_without_frames(cut: Callable[..., Any], tmp_path: Path) -> None:
    spans = [(F(50), F(60)), (F(-9), F(0)), (F(1), F(1)), (F(101, 100), F(102, 100))]
    outcomes = cut(sample("plain.mp4"), [*spans, (F(-9), F(10**30))], tmp_path)
    assert [o.reason for o in outcomes[:-1]] == ["no_frames"] * 4
    assert outcomes[-1].frames == 90
    assert cut(sample("plain.mp4"), [], tmp_path) == []


@pytest.mark.parametrize("cut", [_copy, _encode])
@pytest.mark.parametrize("name", ["audio.m4a", "cover.m4a"])
def test_source_that_is_no_video_is_rejected(
    name: str, cut: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        cut(sample(name), [(F(0), F(1))], tmp_path)
    assert caught.value.reason == "no_video_stream"


# Stream copy


COPYABLE = [name for name in NUMBERED if name not in {"vp8.webm"}]


@pytest.mark.parametrize("name", COPYABLE)
def test_copied_frames_are_the_source_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = sample(name)
    table = packet_table(source)
    start, end = _whole(table)
    points = table.pts[table.cut_points].tolist()
    edges = [max(pts * table.time_base, start) for pts in points if pts < table.end_pts]
    # Half a frame late: an edge must move back to the cut point before it.
    edges = [edges[0], *(edge + F(1, 60) for edge in edges[1:])]
    clips = _clips(_copy(source, list(zip(edges, [*edges[1:], end], strict=True)), tmp_path))
    frames = decoded(source)
    at = 0
    for clip in clips:
        assert clip.start_frame == at
        assert clip.start == frames[at][0] * table.time_base
        ours = decoded(clip.path)
        assert len(ours) == clip.frames
        for (_, copied), (_, original) in zip(ours, frames[at:], strict=False):
            assert np.array_equal(copied, original)
        stamps = [pts * table.time_base for pts, _ in frames[at : at + clip.frames]]
        assert _times(clip.path) == [stamp - stamps[0] for stamp in stamps]
        # The sound of every sample lasts for three seconds at most.
        assert clip.audio == (probe(source).has_audio and clip.start - start < 3)
        at += clip.frames
    assert at == len(frames)
    assert clips[-1].end == end


def test_copied_spans_snap_back_and_never_overlap(tmp_path: Path) -> None:
    assert KEYINT == 20
    clips = _clips(_copy(sample("plain.mp4"), fixed(F(0), F(3), F(1)), tmp_path))
    assert [(c.start, c.end) for c in clips] == [(0, F(2, 3)), (F(2, 3), 2), (2, 3)]
    assert [c.frames for c in clips] == [20, 40, 30]
    spans = [(F(7, 10), F(13, 10)), (F(1, 2), F(1)), (F(0), F(1)), (F(11, 4), F(3))]
    outcomes = _copy(sample("plain.mp4"), spans, tmp_path)
    assert isinstance(outcomes[0], CutFailure)
    assert outcomes[0].reason == "no_keyframe"
    # Spans that overlap share packets.
    assert [numbers(o.path) for o in outcomes[1:3] if isinstance(o, Clip)] == [list(range(20))] * 2
    assert [numbers(o.path) for o in outcomes[3:] if isinstance(o, Clip)] == [list(range(80, 90))]


@pytest.mark.parametrize("name", ["plain.mkv", "plain.ts"])
def test_copies_that_overlap_are_open_a_few_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [(F(i % 5, 5), F(3)) for i in range(20)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    at_once = [sha256(c.path) for c in _clips(_copy(sample(name), spans, tmp_path / "a"))]
    monkeypatch.setattr(copy, "MAX_OPEN", 3)
    opened: list[copy.Copy] = []
    most = 0
    begin = copy.Copy._begin

    def counted(self: copy.Copy, sources: Any) -> None:
        nonlocal most
        begin(self, sources)
        opened.append(self)
        most = max(most, sum(not one.is_done for one in opened))

    monkeypatch.setattr(copy.Copy, "_begin", counted)
    clips = _clips(_copy(sample(name), spans, tmp_path / "b"))
    assert [sha256(clip.path) for clip in clips] == at_once
    assert (len(opened), most) == (20, 3)


def test_open_gops_are_not_cut(tmp_path: Path) -> None:
    outcomes = _copy(sample("open.mp4"), [(F(0), F(1)), (F(1), F(2)), (F(0), F(3))], tmp_path)
    reasons = [o.reason for o in outcomes if isinstance(o, CutFailure)]
    assert reasons == ["no_keyframe", "no_keyframe"]
    assert numbers(_clips(outcomes[2:])[0].path) == list(range(90))


def test_copy_keeps_the_rotation(tmp_path: Path) -> None:
    clip = _clips(_copy(sample("rotated.mp4"), [(F(0), F(1))], tmp_path))[0]
    assert (clip.width, clip.height, clip.rotation) == (128, 96, 90)
    assert probe(clip.path).rotation == 90


def test_what_mp4_cannot_hold_says_so(tmp_path: Path) -> None:
    outcomes = _copy(sample("vp8.webm"), fixed(F(0), F(3), F(1)), tmp_path)
    assert {(o.reason, o.message) for o in outcomes if isinstance(o, CutFailure)} == {
        ("container", "MP4 cannot hold this vp8 with opus: use `cut: exact`")
    }
    assert len(outcomes) == 3
    assert not list(tmp_path.iterdir())


def test_disk_that_cannot_be_written_is_no_fault_of_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000001.mp4").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        _copy(sample("plain.mp4"), fixed(F(0), F(3), F(1)), tmp_path)
    full = "echo 'Error writing trailer: No space left on device' >&2; exit 228"
    monkeypatch.setenv("REELMILL_FFMPEG", str(_program(tmp_path / "ffmpeg", full)))
    with pytest.raises(StageError, match="no space"):
        _encode(sample("plain.mp4"), [(F(0), F(1))], tmp_path)


def test_copy_of_a_source_cut_short_ends_where_the_data_end(tmp_path: Path) -> None:
    source = tmp_path / "short.mkv"
    data = sample("plain.mkv").read_bytes()
    source.write_bytes(data[: len(data) // 2])
    clips = _clips(_copy(source, [(F(0), F(3))], tmp_path))
    assert numbers(clips[0].path) == numbers(source)
    assert 40 < clips[0].frames == len(numbers(source)) < 50


# Real clips


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
def test_real_clips(path: Path, tmp_path: Path) -> None:
    table = packet_table(path)
    start, end = _whole(table)
    spans = bound(fixed(start, end, F(2)), F(1, 2))
    exact = _clips(
        _encode(
            path, spans[:4], tmp_path, encoding=Encoding(video=Video(crf=30, preset="ultrafast"))
        )
    )
    # The first slice of box.mp4 is damaged, and some of its frames are lost.
    lost = 5 if path.name == "box.mp4" else 0
    for (a, b), clip in zip(spans, exact, strict=False):
        inside = [pts for pts in table.shown.tolist() if a <= pts * table.time_base < b]
        assert len(inside) - lost <= clip.frames <= len(inside)
        assert a <= clip.start < clip.end
        assert clip.audio == probe(path).has_audio
    copies = _copy(path, spans, tmp_path)
    frames = decoded(path) if lost == 0 and len(table) < 300 else []
    for outcome in copies:
        if isinstance(outcome, CutFailure):
            assert outcome.reason in {"no_keyframe", "container"}
            continue
        assert outcome.frames == probe(outcome.path).frames
        for (_, ours), (_, theirs) in zip(
            decoded(outcome.path), frames[outcome.start_frame :], strict=False
        ):
            assert np.array_equal(ours, theirs)
    made = [o for o in copies if isinstance(o, Clip)]
    assert all(a.end <= b.start for a, b in pairwise(made))


# The binary


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _stream(tmp_path: Path) -> Any:
    return ffmpeg.input(f"file:{tmp_path}/missing.mp4").output(f"{tmp_path}/out.mp4")


def test_failure_gives_the_last_line_without_paths_or_addresses(tmp_path: Path) -> None:
    with pytest.raises(FfmpegError, match="No such file or directory") as caught:
        run(_stream(tmp_path), timeout_s=LIMIT)
    assert str(tmp_path) not in str(caught.value)
    assert "0x" not in str(caught.value)
    assert not caught.value.timed_out


def test_time_out_kills_the_whole_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    program = _program(tmp_path / "ffmpeg", f"sleep 600 & echo $! > {child}; wait")
    monkeypatch.setenv("REELMILL_FFMPEG", str(program))
    began = time.monotonic()
    with pytest.raises(FfmpegError) as caught:
        run(_stream(tmp_path), timeout_s=0.5)
    assert caught.value.timed_out
    assert time.monotonic() - began < 5
    pid = int(child.read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return "State:\tZ" not in status.read_text() if status.exists() else True


def test_a_flood_of_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = (
        "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo '[a @ 0x1f] why' >&2; exit 3"
    )
    monkeypatch.setenv("REELMILL_FFMPEG", str(_program(tmp_path / "ffmpeg", flood)))
    with pytest.raises(FfmpegError, match=r"status 3: why$"):
        run(_stream(tmp_path), timeout_s=LIMIT)


@pytest.mark.parametrize(
    ("line", "is_the_hosts"),
    [
        ("[in#0/mov @ 0x1] Error during demuxing: Cannot allocate memory", False),
        ("[vist#0:0/h264 @ 0x1] Error submitting packet to decoder: Cannot allocate memory", False),
        ("[libx264 @ 0x1] malloc of size 100 failed: Cannot allocate memory", True),
        ("[in#0 @ 0x1] Error opening input: Too many open files", True),
    ],
)
def test_memory_that_media_ask_for_is_no_fault_of_the_host(
    line: str, is_the_hosts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\necho '{line}' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("REELMILL_FFMPEG", str(fake))
    with pytest.raises(StageError if is_the_hosts else FfmpegError):
        run(ffmpeg.input("in").output("out"), timeout_s=LIMIT)


@pytest.mark.parametrize("encoding", [{"video": {"fps": "25"}}, {"audio": {"extract": "wav"}}])
def test_few_frames_are_not_repeated_for_years(encoding: dict[str, Any], tmp_path: Path) -> None:
    source = make_video(tmp_path / "years.mkv", 2, pts=[0, 10**12], time_base=F(1, 1000))
    asked = Encoding.model_validate(encoding)
    (made,) = _encode(source, [(F(0), F(1))], tmp_path, encoding=asked)
    assert isinstance(made, CutFailure)
    why = "1 of the source's frames would stand for 1000000000 s"
    assert (made.reason, made.message) == ("timestamps", why)
    # As they come, they are what they are.
    assert _clips(_encode(source, [(F(0), F(1))], tmp_path))[0].frames == 1


def test_binary_is_chosen_by_the_environment_then_pip_then_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imageio_ffmpeg

    monkeypatch.delenv("REELMILL_FFMPEG", raising=False)
    assert ffmpeg_exe() == imageio_ffmpeg.get_ffmpeg_exe()
    own = _program(tmp_path / "ffmpeg", "echo 'ffmpeg version 1.2-own Copyright'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", _absent)
    assert ffmpeg_exe() == str(own)
    assert encoder_id() == "ffmpeg 1.2-own"
    own.unlink()
    with pytest.raises(MissingDependencyError, match="pip install"):
        ffmpeg_exe()
    monkeypatch.setenv("REELMILL_FFMPEG", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="REELMILL_FFMPEG"):
        ffmpeg_exe()


def _absent() -> str:
    raise RuntimeError("no binary for this platform")


def test_encoder_is_named_by_its_version() -> None:
    assert encoder_id().startswith("ffmpeg ")
    assert encoder_id() == encoder_id()


def test_program_that_is_not_ffmpeg_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELMILL_FFMPEG", str(_program(tmp_path / "cat", "echo meow")))
    with pytest.raises(MissingDependencyError, match="is not ffmpeg"):
        encoder_id()
