"""Describing: every stream, every frame's time, and what ffprobe says of the same files."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.errors import Rejected
from reelmill.media import mp4
from reelmill.media.describe import describe
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import PacketTable, examine, packet_table, probe
from reelmill.media.timing import MAX_STILL, is_uneven, timing_of
from reelmill.tasks.contract import sample_json
from reelmill.tasks.media_fields import VIDEO_COLUMNS, video_columns, video_json

from .media_samples import KEYINT, NUMBERED, UNEVEN, make_video, real_media, sample, x264
from .test_stages import Bench

_MADE = TemporaryDirectory(prefix="reelmill-described-")

SUBTITLES = "1\n00:00:00,000 --> 00:00:01,000\nA word\n"
CHAPTERS = """;FFMETADATA1
[CHAPTER]
TIMEBASE=1/1000
START=0
END=1000
[CHAPTER]
TIMEBASE=1/1000
START=1000
END=3000
"""


@cache
def rich(name: str) -> Path:
    """HDR of pixels that are no squares, two audio streams, subtitles, chapters, half a turn."""
    folder = Path(_MADE.name)
    path, words, chapters = folder / name, folder / "words.srt", folder / "chapters.txt"
    words.write_text(SUBTITLES)
    chapters.write_text(CHAPTERS)
    surround = "sine=440:d=3,aformat=channel_layouts=5.1"
    command = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-i", sample("silent.mp4")]
    command += ["-f", "lavfi", "-i", surround, "-f", "lavfi", "-i", "sine=880:d=3"]
    command += ["-i", words, "-i", chapters, "-map", "0", "-map", "1", "-map", "2", "-map", "3"]
    colours = "setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    command += ["-vf", f"setsar=4/3,{colours}", "-c:v", "libx264", "-preset", "ultrafast"]
    command += ["-map_metadata", "4", "-map_chapters", "4"]
    command += ["-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=fra"]
    command += ["-metadata:s:s:0", "language=deu", "-c:a", "aac"]
    command += ["-c:s", "mov_text" if name.endswith("mp4") else "srt", path]
    subprocess.run(list(map(str, command)), check=True)
    return path


@pytest.mark.parametrize("name", ["rich.mp4", "rich.mkv"])
def test_says_what_a_player_needs_to_know(name: str) -> None:
    found = describe(rich(name))
    video = found.video
    colours = (video.color_range, video.color_space, video.color_primaries, video.color_transfer)
    assert colours == ("tv", "bt2020nc", "bt2020", "smpte2084")
    assert video.is_hdr
    assert (video.sar, video.channel_layout, video.sample_rate) == ("4:3", "5.1", 44100)
    assert (video.audio_streams, video.subtitle_streams, video.chapters) == (2, 1, 2)
    told = [(s.kind, s.codec, s.language) for s in found.streams if s.kind != "data"]
    words = "mov_text" if name.endswith("mp4") else "subrip"
    assert told == [
        ("video", "h264", None),
        ("audio", "aac", "eng"),
        ("audio", "aac", "fra"),
        ("subtitle", words, "deu"),
    ]
    assert json.loads(json.dumps(found.as_json())) == found.as_json()


def test_what_is_not_tagged_is_not_told() -> None:
    video = probe(sample("plain.mp4"))
    assert video.color_space is video.color_primaries is video.color_transfer is video.sar is None
    assert not video.is_hdr
    assert (video.base_rate, video.channel_layout) == (30, "stereo")


def named(one: str | Path) -> str:
    return one if isinstance(one, str) else one.name


def path_of(one: str | Path) -> Path:
    """The file of a parameter: a sample's name, so that it is made when it is asked for and not
    by every process that collects the tests; or a real clip."""
    return sample(one) if isinstance(one, str) else one


@pytest.mark.parametrize("one", [*NUMBERED, *real_media()], ids=named)
def test_one_pass_or_the_index_find_what_demuxing_does(one: str | Path) -> None:
    path = path_of(one)
    found, read = examine(path, packets=True), packet_table(path)
    assert found.table is not None
    assert (found.table.time_base, found.table.unstamped) == (read.time_base, read.unstamped)
    assert found.table.size_bytes == read.size_bytes
    for field in ("pts", "dts", "duration", "keyframe", "hidden"):
        np.testing.assert_array_equal(getattr(found.table, field), getattr(read, field))
    assert found.info == probe(path)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("plain.mp4", "index"),
        ("open.mp4", "index"),
        ("hidden.mp4", "index"),
        ("fragmented.mp4", "packets"),
        ("trimmed.mp4", "packets"),
        ("plain.mkv", "packets"),
        ("plain.ts", "packets"),
    ],
)
def test_an_index_is_read_where_it_tells_all(name: str, source: str) -> None:
    assert describe(sample(name)).timing_source == source


@given(st.data())
def test_a_broken_index_is_rejected_or_read_as_ffmpeg_reads_it(data: st.DataObject) -> None:
    broken = bytearray(sample("silent.mp4").read_bytes())
    first = broken.index(b"mvhd")
    for at in data.draw(st.lists(st.integers(first, len(broken) - 1), max_size=5)):
        broken[at] = data.draw(st.sampled_from([0, 1, 2, 127, 255]))
    try:
        found = examine(bytes(broken), packets=True)
    except Rejected:
        return
    assert found.table is not None
    read = packet_table(bytes(broken))
    np.testing.assert_array_equal(found.table.pts, read.pts)
    np.testing.assert_array_equal(found.table.hidden, read.hidden)
    # Keyframes may differ: in packets that are no longer what they were, FFmpeg finds none.


@given(st.binary(max_size=300))
def test_no_bytes_trouble_the_reader_of_indexes(data: bytes) -> None:
    moov = (8 + len(data)).to_bytes(4) + b"moov" + data
    assert mp4.read_samples(io.BytesIO(moov), len(moov), 1) is None


def test_timing_of_even_frames() -> None:
    timing = describe(sample("plain.mp4")).timing
    assert (timing.frames, timing.hidden, timing.start, timing.duration) == (90, 0, 0, 3)
    assert (timing.is_vfr, timing.is_ordered) == (False, True)
    assert timing.shortest == timing.longest == Fraction(1, 30)
    assert timing.keyframe_seconds == [0, 0.666667, 1.333333, 2, 2.666667]
    assert (timing.longest_gop, timing.closed_gops) == (KEYINT, 5)
    assert timing.bit_rate == probe(sample("plain.mp4")).bit_rate


def test_timing_of_uneven_open_and_hidden_frames() -> None:
    uneven = describe(sample("uneven.mkv")).timing
    assert (uneven.is_vfr, uneven.longest) == (True, Fraction(max(np.diff(UNEVEN)), 1000))
    opened = describe(sample("open.mp4")).timing
    assert (len(opened.keyframes), opened.closed_gops) == (5, 1)
    hidden = describe(sample("hidden.mp4")).timing
    assert (hidden.frames, hidden.hidden, hidden.start, hidden.is_vfr) == (75, 15, 0, False)
    assert not describe(sample("grown.ts")).timing.is_ordered


@given(
    st.fractions(Fraction(1), Fraction(240)),
    st.sampled_from([600, 1000, 15360, 90000]),
    st.integers(3, 400),
    st.sampled_from([round, int]),
    st.integers(-(10**9), 10**9),
)
def test_an_even_rate_in_whole_ticks_does_not_vary(
    rate: Fraction, ticks: int, count: int, whole: Any, start: int
) -> None:
    times = [start + whole(number * ticks / rate) for number in range(count)]
    assert not is_uneven(np.array(times, dtype=np.int64))


@given(st.integers(5, 300), st.integers(10, 5000), st.data())
def test_a_frame_that_is_late_makes_the_rate_vary(
    count: int, step: int, data: st.DataObject
) -> None:
    times = np.arange(count, dtype=np.int64) * step
    times[data.draw(st.integers(1, count - 2))] += 2
    assert is_uneven(times)


def _table(pts: list[int], unstamped: int = 0, ticks: int = 1000) -> PacketTable:
    times = np.array(pts, dtype=np.int64)
    keyframe = np.arange(len(times)) == 0
    none = np.zeros(len(times), dtype=bool)
    ones = np.ones(len(times), dtype=np.int64)
    return PacketTable(Fraction(1, ticks), times, times, ones, keyframe, none, unstamped, 1000)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_table([0] * 10), "9 of 10 frames have the time of the one before"),
        (_table([0, 1, 2], unstamped=2), "2 of 3 packets have no time"),
        (_table(list(range(0, 100, 10)), ticks=10**6), "10 frames within 0.000091 s"),
        (_table([0, 33, 66, 66 + 1000 * (MAX_STILL + 1)]), "would stand for 3601 s"),
        (_table([-(2**62), 2**62]), "after the first"),
        (_table(random.Random(1).sample(range(10**6), 200)), "the time goes back at 2. of 200"),
    ],
)
def test_broken_clocks(table: PacketTable, message: str) -> None:
    with pytest.raises(Rejected, match=message) as caught:
        timing_of(table)
    assert caught.value.reason == "timestamps"


@pytest.mark.parametrize(
    "pts",
    [
        [7],
        [0, 0, 33, 33, 66, 66],
        [0, 33, 66, 0, 33, 66],
        [33 * n for n in (0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11)] * 8,
        [33 * n for n in (0, 4, 2, 1, 3, 8, 6, 5, 7)],
        [1000 * n for n in (0, 3600, 7200, 10800)],
        [0, 33, 66, 1000 * MAX_STILL],
        [0, 1000 * (MAX_STILL + 1)],
    ],
)
def test_clocks_that_can_be_mended(pts: list[int]) -> None:
    assert timing_of(_table(pts)).frames == len(pts)


def test_index_columns_of_a_video() -> None:
    found = describe(rich("rich.mkv"))
    columns = video_columns(found.video, found.timing)
    assert list(columns) != []
    assert columns.keys() == set(VIDEO_COLUMNS.names)
    assert columns["keyframes"] == found.timing.keyframe_seconds
    assert (columns["vfr"], columns["frames"], columns["bit_rate"]) == (
        False,
        90,
        found.timing.bit_rate,
    )
    header = video_columns(found.video, None)
    assert header.keys() == set(VIDEO_COLUMNS.names) - {"vfr", "gop", "keyframes"}
    assert (header["frames"], header["bit_rate"]) == (None, None)
    assert "keyframes" not in video_json(found.video, found.timing)


def test_numbers_of_strangers_fit_into_json_and_columns() -> None:
    video = replace(probe(sample("silent.mp4")), start_pts=2**60, bit_rate=2**62)
    about = json.loads(sample_json(video_json(video, None)))
    assert (about["start_pts"], about["bit_rate"]) == (str(2**60), str(2**62))
    assert pa.array([video.bit_rate], VIDEO_COLUMNS.field("bit_rate").type)
    assert timing_of(_table([0], ticks=2**62)).bit_rate is None


def test_keyframes_are_not_listed_where_every_frame_is_one() -> None:
    path = make_video(Path(_MADE.name) / "intra.mp4", 30, options=x264(bframes=0, keyint=1))
    found = describe(path)
    columns = video_columns(found.video, found.timing)
    assert columns["gop"] == 1
    assert "keyframes" not in columns


def test_a_download_is_indexed_in_full(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    shard = bench.videos(rich("rich.mkv"), sample("uneven.mkv"))
    first, second = (bench.samples(shard)[key] for key in ("000000000", "000000001"))
    assert first.columns["color_transfer"] == "smpte2084"
    assert (first.columns["subtitles"], first.columns["channel_layout"]) == (1, "5.1")
    assert (second.columns["vfr"], second.columns["frames"]) == (True, 90)
    assert len(second.columns["keyframes"]) == 5
    about = json.loads(second.fields["json"])["video"]
    assert (about["vfr"], about["frames"]) == (True, 90)


FFPROBE = shutil.which("ffprobe")


def _ffprobe(path: Path) -> dict[str, Any]:
    shown = ("-show_streams", "-show_format", "-show_chapters", "-show_packets")
    command = [str(FFPROBE), "-v", "error", "-of", "json", *shown, str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(FFPROBE is None, reason="no ffprobe here")
@pytest.mark.parametrize(
    "one", ["plain.mp4", "hidden.mp4", "plain.mkv", "plain.ts", *real_media()], ids=named
)
def test_ffprobe_says_the_same(one: str | Path) -> None:
    path = path_of(one)
    found, told = describe(path), _ffprobe(path)
    video, timing = found.video, found.timing
    theirs = max(
        (one for one in told["streams"] if one["codec_type"] == "video"),
        key=lambda one: (one["width"], one["height"]) == (video.width, video.height),
    )
    ours = {
        "codec_name": video.codec,
        "pix_fmt": video.pix_fmt,
        "color_range": video.color_range,
        "color_space": video.color_space,
        "color_primaries": video.color_primaries,
        "color_transfer": video.color_transfer,
        "sample_aspect_ratio": video.sar,
        "profile": video.profile,
        "bit_rate": video.bit_rate and str(video.bit_rate),
        "nb_frames": video.frames and str(video.frames),
        "start_pts": video.start_pts,
    }
    assert {name: theirs.get(name) for name in ours} == ours
    assert Fraction(theirs["avg_frame_rate"]) == video.fps
    assert Fraction(theirs["r_frame_rate"]) == video.base_rate
    assert Fraction(theirs["time_base"]) == video.time_base
    assert len(told["chapters"]) == video.chapters
    packets = [
        one
        for one in told["packets"]
        if one["stream_index"] == theirs["index"] and "D" not in one["flags"]
    ]
    assert len(packets) == timing.frames
    times = [float(one.get("pts_time", one.get("dts_time"))) for one in packets]
    keys = sorted(at for at, one in zip(times, packets, strict=True) if "K" in one["flags"])
    assert timing.keyframe_seconds == pytest.approx(keys, abs=2e-6)
