"""Frames: the numbers burnt into frames are read back from pictures, for every kind of source and
every way to choose; and what pictures are stored as."""

from __future__ import annotations

import json
import struct
import subprocess
import tracemalloc
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, cast

import av
import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from reelmill.errors import Rejected
from reelmill.media import shown as shown_module
from reelmill.media.cut import tone
from reelmill.media.cut.picture import Picture
from reelmill.media.decode import frames, to_jpeg_planes, to_rgb
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.images import decode_gray, decode_image, encode_webp
from reelmill.media.pictures import PictureFormat, encode
from reelmill.media.probe import packet_table
from reelmill.media.shown import Shown, frames_at, shown
from reelmill.media.size import own
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks import cuts as cuts_module
from reelmill.tasks.contract import Job, Output, Reject, Sample, key_params
from reelmill.tasks.frames import Clip, Frames, FramesParams, tuples_of
from reelmill.tasks.media_fields import pictures_of

from .media_samples import CUTS, NUMBERED, make_video, number_of, real_media, sample, x264
from .test_exactness import KINDS, read_back, source
from .test_outputs import _hdr, _sdr_of
from .test_stages import Bench, bench, fixed

__all__ = ["bench"]

F = Fraction


def outputs(path: Path, about: dict[str, Any] | None = None, **params: Any) -> list[Output]:
    """What stage frames makes of a video, in order."""
    return list(Frames().each(*_asked(path, about, **params)))


def _asked(
    path: Path, about: dict[str, Any] | None = None, **params: Any
) -> tuple[Job[FramesParams], InputSample]:
    job: Any = Job(cast(Any, None), cast(Any, None), FramesParams(**params), {}, Path())
    fields = {"video": path.read_bytes(), "json": json.dumps(about or {}).encode()}
    return job, InputSample("clip", fields, {})


def made(path: Path, about: dict[str, Any] | None = None, **params: Any) -> list[Sample]:
    found = outputs(path, about, **params)
    assert all(isinstance(one, Sample) for one in found), found
    return cast(list[Sample], found)


def about_of(one: Sample) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(cast(bytes, one.fields["json"]))
    return about


def pictures(one: Sample) -> list[bytes]:
    return [cast(bytes, one.fields[field]) for _, field in pictures_of(one.fields)]


def numbers(found: Sequence[Sample]) -> list[list[int]]:
    return [about_of(one)["frames"] for one in found]


@cache
def every(kind: str) -> dict[int, bytes]:
    """Each frame of a source as a PNG, by its number, from decoding them all in order."""
    how = PictureFormat(format="png")
    return {
        number: encode(frame, own(*cast(Any, _upright(frame))), how)
        for number, frame in enumerate(frames(source(kind)))
    }


def _upright(frame: av.VideoFrame) -> tuple[int, int]:
    turned = round(frame.rotation / 90) % 2
    return (frame.height, frame.width) if turned else (frame.width, frame.height)


PNG = {"format": "png", "cuts": "ignore"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_triplet_shows_the_frames_and_times_that_it_names(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    monkeypatch.setattr(
        "reelmill.tasks.frames.encode", lambda *args: encoded.append(1) or encode(*args)
    )
    path, one = source(kind), KINDS[kind]
    table = packet_table(path)
    found = made(path, **PNG, step=1, stride=2)
    assert numbers(found) == [[n, n + 2, n + 4] for n in range(len(table.shown) - 4)]
    assert len(encoded) == len(table.shown), "overlapping triplets share decode and encode"
    turned = -1 if kind == "rotated" else 0
    for triplet in found:
        about = about_of(triplet)
        for number, data, time in zip(
            about["frames"], pictures(triplet), about["exact"]["times"], strict=True
        ):
            assert F(time) == int(table.shown[number]) * table.time_base
            stamp = one.stamps[one.hidden + number]
            read = read_back(np.rot90(decode_image(data)[..., 1], turned))
            assert read == (one.hidden + number, round(stamp * 1000))


CHOICES: tuple[dict[str, Any], ...] = (
    {"indices": [0, 7, 33, -5]},
    {"times": ["0", "0.5", "1.21"]},
    {"random": 4, "seed": 7},
    {"keyframes": True, "count": 1},
    {"fps": 7},
    {"step": 9, "max_samples": 3},
)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_frames_are_those_of_decoding_all(kind: str) -> None:
    path = source(kind)
    for choice in CHOICES:
        found = made(path, **PNG, **{"count": 2, **choice})
        assert found
        for one in found:
            assert pictures(one) == [every(kind)[n] for n in about_of(one)["frames"]], choice


@pytest.mark.parametrize(
    "path", [*map(sample, NUMBERED), *real_media()], ids=lambda path: path.name
)
def test_frames_that_are_sought_are_those_that_are_decoded_in_order(path: Path) -> None:
    there = shown(path.read_bytes())
    wanted = sorted({0, 5, 19, 20, 21, min(44, len(there) - 2), len(there) - 1})
    wanted = [number for number in wanted if number < min(len(there), 400)]
    expected = {}
    for number, frame in enumerate(frames(path)):
        assert there.pts[number] == frame.pts
        assert there.keyframe[number] == bool(frame.key_frame)
        if number in wanted:
            expected[number] = frame.to_ndarray()
        if number == wanted[-1]:
            break
    for some in (wanted, wanted[-2:], wanted[1:2]):
        got = {n: frame.to_ndarray() for n, frame in frames_at(path.read_bytes(), there, some)}
        assert list(got) == some
        assert all(np.array_equal(got[n], expected[n]) for n in some)


_AV1 = {"svtav1-params": "keyint=20:lp=1", "preset": "12"}
_CRA = {"x265-params": "keyint=20:min-keyint=20:scenecut=0:open-gop=1:bframes=3:log-level=none"}


@pytest.mark.parametrize(
    ("codec", "options", "suffixes"),
    [
        ("libx264", x264(3, more="open-gop=1:b-pyramid=normal"), ("mp4", "mkv", "ts", "mov")),
        ("libx265", _CRA, ("mp4", "mkv", "ts")),
        ("libsvtav1", _AV1, ("mp4", "webm")),
        ("libvpx-vp9", {"g": "20", "cpu-used": "8", "auto-alt-ref": "1"}, ("mp4", "webm")),
        ("prores_ks", {}, ("mov",)),
    ],
)
def test_any_frame_may_be_sought_whatever_refers_to_it(
    codec: str, options: dict[str, str], suffixes: Sequence[str], tmp_path: Path
) -> None:
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    for suffix in suffixes:
        path = make_video(
            tmp_path / f"video.{suffix}", 60, codec=codec, options=options, pix_fmt=pix_fmt
        )
        data = path.read_bytes()
        there = shown(data)
        expected = [frame.to_ndarray() for frame in frames(data)]
        assert there.packets is not None
        assert len(there) == len(expected) == 60
        for number in range(60):
            sought = list(shown_module._sought(data, there, [number]))
            assert len(sought) <= 1
            for at, frame in sought:
                assert at == number
                assert np.array_equal(frame.to_ndarray(), expected[number])
            assert sought or number < 25 or codec == "libsvtav1"


def test_keyframes_are_had_without_decoding_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, inner = [], shown_module._decoded

    def counted(*args: Any) -> Iterator[av.VideoFrame]:
        for frame in inner(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(shown_module, "_decoded", counted)
    monkeypatch.setattr(shown_module, "frames", None)
    for name in ("long.mp4", "open.mp4", "plain.mkv", "plain.ts", "vp9.webm"):
        decoded.clear()
        found = made(sample(name), keyframes=True, count=1)
        assert numbers(found) == [[n] for n in range(0, len(shown(sample(name))), 20)][: len(found)]
        assert len(decoded) == len(found) >= 4
    assert numbers(made(sample("long.mp4"), **PNG, keyframes=True, count=2, step=1))[:2] == [
        [0, 20],
        [20, 40],
    ]


def test_few_frames_are_sought_and_many_are_not() -> None:
    there = shown(sample("long.mp4"))

    def cost(numbers: list[int]) -> int:
        found = shown_module._segments(there, numbers)
        return sum(one.last - one.first + 1 for one in found)

    assert cost([429]) <= 20
    assert cost([10, 15, 429]) <= 40
    assert cost(list(range(0, 450, 2))) == 0, "decoded from the beginning"
    assert cost([3]) == 0


def test_a_frame_that_cannot_be_decoded_is_one_clear_reject() -> None:
    data = bytearray(sample("silent.mp4").read_bytes())
    there = shown(bytes(data))
    assert there.packets is not None
    with av.open(str(sample("silent.mp4"))) as container:
        packet = next(p for n, p in enumerate(container.demux(video=0)) if n == 40)
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    with pytest.raises(Rejected, match="frame 40 cannot be decoded"):
        list(frames_at(bytes(data), there, [40]))


# Times and rates


def displayed(path: Path, seconds: Fraction) -> int:
    """The frame on show, by the definition: times are rounded by no more than half a tick."""
    table = packet_table(path)
    slack = min(table.time_base / 2, F(1, 2000))
    starts = [(int(pts) - int(table.shown[0])) * table.time_base for pts in table.shown]
    return bisect_right(starts, seconds + slack) - 1


@pytest.mark.parametrize("kind", ["closed GOP", "variable rate", "29.97 in Matroska", "late start"])
@pytest.mark.parametrize("fps", ["5", "24000/1001", "30", "75"])
def test_at_a_rate_the_frame_of_each_moment_is_taken(kind: str, fps: str) -> None:
    path = source(kind)
    found = made(path, fps=fps, count=1)
    expected = []
    length = shown(path).seconds
    while len(expected) / F(fps) < length:
        expected.append([displayed(path, len(expected) / F(fps))])
    assert numbers(found) == expected
    assert [one.key for one in found] == [f"clip_{n:06d}" for n in range(len(expected))]
    if (kind, fps) in (("closed GOP", "30"), ("29.97 in Matroska", "30000/1001")):
        assert numbers(found) == [[n] for n in range(len(expected))]


def test_times_that_containers_round_are_those_of_their_frames() -> None:
    """In Matroska, frames of 29.97 a second come at whole milliseconds."""
    path = source("29.97 in Matroska")
    found = made(path, fps="30000/1001", count=1)
    assert numbers(found) == [[n] for n in range(60)]


def test_at_times_the_frame_is_taken_that_is_shown_then() -> None:
    path = source("variable rate")
    times = ["0", "0.03", "0.0335", "0.5", "1.2", "2.999"]
    found = made(path, times=times, count=1)
    assert numbers(found) == [[n] for n in sorted({displayed(path, F(t)) for t in times})]
    assert numbers(made(source("late start"), times=["0", "0.1"], count=1)) == [[0], [3]]


def test_a_triplet_at_a_rate_has_the_frames_of_that_rate() -> None:
    found = made(source("closed GOP"), fps=10, count=3, step=1, cuts="ignore")
    assert numbers(found) == [[3 * n, 3 * n + 3, 3 * n + 6] for n in range(18)]


def test_at_a_rate_above_the_videos_own_a_time_is_the_place_of_that_time() -> None:
    found = made(source("closed GOP"), fps=90, times=["0", "0.5", "1.999999"], count=1)
    assert [one.key for one in found] == ["clip_000000", "clip_000045", "clip_000179"]
    assert numbers(found) == [[0], [15], [59]]


@pytest.mark.parametrize("choice", [{"stride": 1000}, {"fps": 10, "stride": 20}])
def test_of_a_clip_that_is_too_short_nothing_is_decoded(
    choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is held of it, either, until that turns out."""
    monkeypatch.setattr("reelmill.tasks.frames.encode", lambda *_: pytest.fail("a picture"))
    with pytest.raises(Rejected) as said:
        made(sample("silent.mp4"), step=1, **choice)
    assert said.value.reason == "too_short"


def test_many_long_samples_take_no_memory_for_each_frame_of_each() -> None:
    asked = {"fps": 1000, "count": 1000, "step": 1, "cuts": "ignore"}
    begun = Frames().each(*_asked(sample("silent.mp4"), **asked))
    tracemalloc.start()
    try:
        next(begun)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000, "2000 samples of 1000 places each, 8 bytes a place, would be 16 MB"


# What is not there


def test_what_is_not_there_is_a_reject_each() -> None:
    found = outputs(sample("silent.mp4"), indices=[0, 88, 90, -90, -91], count=3, cuts="ignore")
    assert [one.key for one in found if isinstance(one, Sample)] == ["clip_000000"]
    rejects = [one for one in found if isinstance(one, Reject)]
    assert [(one.key, one.reason) for one in rejects] == [
        (f"clip_missed_{n:03d}", "beyond_clip") for n in range(3)
    ]
    assert [one.message for one in rejects] == [
        "index -91: there are 90 frames",
        "index 88: it would reach frame 90, and there are 90",
        "index 90: there are 90 frames",
    ]
    again = outputs(sample("silent.mp4"), indices=[90, -91, 0, 88, 0, -90], count=3, cuts="ignore")
    assert again == found, "one key, one result"
    (late,) = outputs(sample("silent.mp4"), times=["3"], count=1)
    assert isinstance(late, Reject)
    assert late.message == "3 s: the clip ends before that"


@pytest.mark.parametrize("choice", [{}, {"random": 3}, {"fps": 1}, {"keyframes": True}])
def test_a_clip_without_a_sample_says_what_one_spans(choice: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="a sample spans 91") as said:
        made(sample("silent.mp4"), count=91, **choice)
    assert said.value.reason == "too_short"


@pytest.mark.parametrize("late", ["last", "middle", "end"])
def test_at_a_rate_a_clock_that_leaps_is_refused(late: str) -> None:
    """Of a file of a few bytes, hundreds of thousands of samples would come."""
    pts = np.arange(40, dtype=np.int64)
    pts[{"last": 39, "middle": 20, "end": 40}[late] :] += 30 * 12_000
    end = int(pts[-1]) + {"last": 30 * 12_000, "middle": 1, "end": 30 * 12_000}[late]
    leaping = Shown(F(1, 30), pts, end, pts == 0, F(1))
    with pytest.raises(Rejected, match="one frame would stand for 12000 s") as said:
        leaping.paced(F(13), 2**22)
    assert said.value.reason == "timestamps"
    slides = Shown(F(1), pts[:2] * 7200, 14_400, pts[:2] == 0, F(1))
    assert len(slides.paced(F(1), 2**22)) == 14_400


def test_a_rate_that_would_fill_a_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelmill.tasks.frames.MAX_PLACES", 100)
    with pytest.raises(Rejected, match="3000 at 1000 a second") as said:
        made(sample("silent.mp4"), fps=1000, count=1)
    assert said.value.reason == "too_many_frames"


# Scene cuts


def spans_a_cut(found: list[int]) -> bool:
    return any(found[0] < cut <= found[-1] for cut in CUTS)


def test_no_tuple_spans_a_cut_unless_asked() -> None:
    path, tuples = sample("scenes.mkv"), {"count": 3, "stride": 4, "step": 1}
    everything = [[n, n + 4, n + 8] for n in range(82)]
    assert numbers(made(path, **tuples, cuts="ignore")) == everything
    within = [one for one in everything if not spans_a_cut(one)]
    assert numbers(made(path, **tuples)) == within
    for detector in ("adaptive", "hash", "histogram"):
        assert numbers(made(path, **tuples, detectors=[detector])) == within
    assert numbers(made(path, {"one_scene": True}, **tuples)) == everything
    assert numbers(made(path, {"one_scene": "yes"}, **tuples)) == within


def test_single_frames_and_clips_of_one_scene_are_not_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuts_module, "Finder", None)
    monkeypatch.setattr(cuts_module, "detect", None)
    path = sample("scenes.mkv")
    assert len(made(path, count=1)) == 90
    assert len(made(path, {"one_scene": True}, count=2)) == 45
    assert len(made(path, count=2, cuts="ignore", random=3)) == 3


@pytest.mark.parametrize("name", ["scenes.mkv", "fade.mkv"])
def test_cuts_that_pass_by_are_those_of_a_search(name: str) -> None:
    path = sample(name)
    detectors = [{"kind": "content"}, {"kind": "threshold"}]
    streamed = made(path, count=2, step=1, detectors=detectors)
    sought = made(path, count=2, step=1, detectors=detectors, fps="1000")
    pairs = {tuple(one) for one in numbers(streamed)}
    apart = {tuple(one) for one in numbers(sought) if one[0] != one[1]}
    assert pairs == apart
    assert 0 < 89 - len(pairs) < 5


def test_chosen_tuples_that_span_a_cut_are_rejects() -> None:
    found = outputs(sample("scenes.mkv"), indices=[0, 24, 25], count=3)
    assert numbers([one for one in found if isinstance(one, Sample)]) == [[0, 1, 2], [25, 26, 27]]
    (reject,) = (one for one in found if isinstance(one, Reject))
    assert reject.reason == "scene_cut"
    assert reject.message == "index 24: a scene begins in frames 24 to 26"
    drawn = numbers(made(sample("scenes.mkv"), random=20, count=9))
    assert len(drawn) == 20
    assert not any(map(spans_a_cut, drawn))


def test_each_scene_gives_its_first_frames_or_those_in_its_middle() -> None:
    path = sample("scenes.mkv")
    assert numbers(made(path, per_scene="first", count=2)) == [[n, n + 1] for n in (0, *CUTS)]
    assert numbers(made(path, per_scene="middle", count=1)) == [[12], [35], [58], [79]]
    assert numbers(made(path, per_scene="middle", count=1, max_samples=2)) == [[12], [35]]
    assert numbers(made(path, {"one_scene": True}, per_scene="middle", count=1)) == [[44]]
    short = outputs(path, per_scene="first", count=23)
    assert [type(one) for one in short].count(Reject) == 2
    assert {one.reason for one in short if isinstance(one, Reject)} == {"too_short"}


def test_scenes_may_be_told_by_a_dataset(bench: Bench) -> None:
    videos = bench.videos(sample("scenes.mkv"))
    scenes = bench.make("scenes", bench.make("scores", videos), threshold=100)
    told = bench.make("frames", videos, extra={"scenes": scenes}, count=2, step=1)
    assert told.samples == 89, "no cut is that hard"
    assert bench.make("frames", videos, count=2, step=1).samples == 86


@pytest.mark.parametrize("choice", [{"step": 20}, {"indices": [0, 20, 40, 60, 80]}])
def test_scenes_that_begin_beyond_all_time_part_nothing(choice: dict[str, Any]) -> None:
    """A dataset of scenes may be anyone's."""
    clip = Clip("clip", sample("silent.mp4").read_bytes(), {})
    starts = [-F(10**36), F(10**36)]
    found = tuples_of(clip, FramesParams(**choice), starts, lambda *given: _Number(given[0]))
    assert [one[0] for one in cast(Any, found)] == [0, 20, 40, 60, 80]


class _Number(NamedTuple):
    number: int
    time: Fraction = F(0)


def test_clips_of_scenes_say_so_and_when_they_begin_exactly(bench: Bench) -> None:
    videos = bench.videos(sample("scenes.mkv"))
    clips = bench.make("split", videos, min_seconds="0s")
    table = packet_table(sample("scenes.mkv"))
    abouts = [json.loads(clip.fields["json"]) for clip in bench.samples(clips).values()]
    assert [one["one_scene"] for one in abouts] == [True] * 4
    assert {F(one["exact"]["start"]) for one in abouts} == {
        int(table.shown[cut]) * table.time_base for cut in (0, *CUTS)
    }
    copied = bench.make("split", videos, min_seconds="0s", cut="copy")
    (about,) = [json.loads(clip.fields["json"]) for clip in bench.samples(copied).values()][-1:]
    assert isinstance(about["one_scene"], bool)
    spans = bench.make("split", videos, method="fixed", seconds="1s")
    assert all(
        "one_scene" not in json.loads(clip.fields["json"]) for clip in bench.samples(spans).values()
    )


@pytest.mark.parametrize("name", ["silent.mp4", "uneven.mkv", "open.mp4", "hidden.mp4"])
def test_triplets_of_clips_end_at_their_borders_and_know_their_source(
    bench: Bench, name: str
) -> None:
    table = packet_table(sample(name))
    hidden = 15 if name == "hidden.mp4" else 0
    clips = bench.make("split", bench.videos(sample(name)), **fixed("0.7s", min_seconds="0s"))
    borders = {
        key: json.loads(clip.fields["json"])["start_frame"]
        for key, clip in bench.samples(clips).items()
    }
    lengths = {
        key: json.loads(clip.fields["json"])["frames"] for key, clip in bench.samples(clips).items()
    }
    triplets = bench.make("frames", clips, count=3, step=1, format="png")
    expected = sum(max(0, count - 2) for count in lengths.values())
    assert triplets.samples == expected
    for triplet in bench.samples(triplets).values():
        about = json.loads(triplet.fields["json"])
        first = borders[about["clip"]]
        for place, number in enumerate(about["frames"]):
            read = number_of(decode_image(triplet.fields[f"{place:06d}.image.png"])[..., 1])
            assert read == hidden + first + number
            time = int(table.shown[first + number]) * table.time_base
            assert F(about["exact"]["source_times"][place]) == time
            assert about["source_times"][place] == round(float(time), 6)


# Random


def test_random_samples_are_the_clips_own_and_the_seeds() -> None:
    path = sample("long.mp4")
    first = numbers(made(path, random=5, count=1))
    assert numbers(made(path, random=5, count=1)) == first
    assert len({one[0] for one in first}) == 5
    assert numbers(made(path, random=5, count=1, seed=1)) != first
    assert len(made(sample("silent.mp4"), random=1000, count=1)) == 90


# What pictures are stored as


@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 7, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_jpegs_hold_the_colours_that_rgb_would(matrix: int, full: bool, layout: str) -> None:
    bits = 10 if layout.endswith("10le") else 8
    for colour in ((16, 128, 128), (235, 128, 128), (81, 90, 200), (145, 84, 94), (120, 100, 160)):
        frame = av.VideoFrame(64, 48, layout)
        for plane, value in zip(frame.planes, colour, strict=True):
            level = np.array([value << (bits - 8)], "<u2" if bits > 8 else np.uint8)
            plane.update(level.tobytes() * (plane.buffer_size // level.itemsize))
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        expected = to_rgb(frame, (40, 30))
        for subsampling in ("420", "422", "444"):
            how = PictureFormat(quality=100, subsampling=subsampling)
            found = decode_image(encode(frame, own(40, 30), how)).astype(int)
            assert np.abs(found - expected).max() <= 2
            if colour[1:] == (128, 128):
                assert np.ptp(found, axis=-1).max() == 0, "grey stays grey"
        for how in (PictureFormat(format="png"), PictureFormat(format="webp", lossless=True)):
            assert np.array_equal(decode_image(encode(frame, own(40, 30), how)), expected)


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
def test_jpegs_of_real_clips_look_as_their_rgb_does(path: Path) -> None:
    frame = next(frames(path))
    fit = own(frame.width // 2, frame.height // 2)
    expected = to_rgb(frame, fit.scaled).astype(int)
    planar = decode_image(encode(frame, fit, PictureFormat(quality=100, subsampling="444")))
    assert np.abs(planar - expected).mean() < 1.2
    assert np.abs((planar - expected).mean(axis=(0, 1))).max() < 1


def test_video_of_the_matrix_of_jpeg_is_not_converted_to_rgb() -> None:
    frame = av.VideoFrame(64, 48, "yuv420p")
    for matrix, is_planar in ((2, True), (5, True), (6, True), (1, False), (9, False)):
        frame.colorspace = matrix
        planes = to_jpeg_planes(frame, (34, 22), "420")
        assert (planes is not None) == is_planar
        if planes is not None:
            assert [plane.shape for plane in planes] == [(22, 34), (11, 17), (11, 17)]
            assert decode_image(encode(frame, own(34, 22), PictureFormat())).shape == (22, 34, 3)


@pytest.mark.parametrize("size", [(33, 22), (34, 21), (33, 21)])
def test_a_jpeg_of_an_odd_size_holds_nothing_but_the_picture(size: tuple[int, int]) -> None:
    """Planes of such a size end where the encoder reads on: it would store what lies behind."""
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    assert to_jpeg_planes(frame, size, "420") is None
    assert len({encode(frame, own(*size), PictureFormat()) for _ in range(20)}) == 1


def test_16_bits_keep_what_8_would_lose() -> None:
    frame = av.VideoFrame(440, 32, "yuv420p10le")
    ramp = np.arange(440, dtype="<u2") + 64
    luma, *chroma = frame.planes
    rows = np.zeros((32, luma.line_size // 2), "<u2")
    rows[:, :440] = ramp
    luma.update(rows.tobytes())
    for plane in chroma:
        plane.update(np.full(plane.buffer_size // 2, 512, "<u2").tobytes())
    data = encode(frame, own(440, 32), PictureFormat(format="png", bits=16))
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    assert len(np.unique(image[16, :, 1])) == 440
    expected = np.clip((ramp.astype(float) - 64) / 876 * 65535, 0, 65535)
    assert np.abs(image[16, :, 1] - expected).max() < 200
    eight = decode_image(encode(frame, own(440, 32), PictureFormat(format="png")))
    assert len(np.unique(eight[16, :, 1])) < 130


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_becomes_sdr_by_the_formulas_unless_it_is_kept(transfer: str, tmp_path: Path) -> None:
    path = _hdr(tmp_path / "hdr.mp4", transfer)
    expected = np.array([255 * _sdr_of(2 * x / 876, transfer) for x in range(438)])
    # The grid's steps, and those of a JPEG.
    for format, steps in (("png", 2.5), ("jpg", 4)):
        (one, *_) = made(path, count=1, format=format)
        row = decode_image(pictures(one)[0])[16, :438].astype(int)
        assert np.abs(row - expected[:, None]).max() <= steps
        assert np.ptp(row, axis=-1).max() <= 1, "grey stays grey"
    kept = [255 * 2 * x / 876 for x in range(438)]
    for more, most in (({"hdr": "keep"}, 255), ({"bits": 16}, 65535)):
        (one, *_) = made(path, count=1, format="png", **more)
        data = np.frombuffer(pictures(one)[0], np.uint8)
        row = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[16, :438, 1] * (255 / most)
        assert np.abs(row - kept).max() <= 1.5


def test_tones_are_interpolated_as_ffmpeg_does_it() -> None:
    picture = Picture(64, 48, transfer=16, primaries=9, matrix=9)
    bgr = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    bgr[0, :3] = [[0, 0, 0], [65535, 65535, 65535], [40000, 40000, 100]]
    frame = av.VideoFrame(64, 48, "gbrp16le")
    for plane, channel in zip(frame.planes, (1, 0, 2), strict=True):
        rows = np.zeros((48, plane.line_size // 2), "<u2")
        rows[:, :64] = bgr[..., channel]
        plane.update(rows.tobytes())
    frame.pts, frame.time_base = 0, F(1)
    with NamedTemporaryFile(suffix=".cube") as file:
        file.write(tone.table(picture))
        file.flush()
        graph = av.filter.Graph()
        nodes = (
            graph.add_buffer(width=64, height=48, format="gbrp16le", time_base=F(1)),
            graph.add("lut3d", file=file.name, interp="tetrahedral"),
            graph.add("buffersink"),
        )
        graph.link_nodes(*nodes).configure()
    graph.push(frame)
    planes = [np.frombuffer(plane, "<u2").reshape(48, -1)[:, :64] for plane in graph.pull().planes]
    theirs = np.stack([planes[1], planes[0], planes[2]], axis=-1) / 257
    assert np.abs(tone.toned(bgr, picture) - theirs).max() <= 0.51


def test_a_webp_is_decoded_as_it_is_stored_whatever_turn_its_metadata_tell() -> None:
    data = encode_webp(np.zeros((48, 80, 3), np.uint8), None)
    # A canvas of 80x48 with EXIF (RFC 9649); TIFF with one entry: orientation 6.
    head = b"VP8X" + struct.pack("<II", 10, 8) + b"\x4f\0\0" + b"\x2f\0\0"
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x112, 3, 1, 6, 0)
    chunks = head + data[12:] + b"EXIF" + struct.pack("<I", len(tiff)) + tiff
    turned = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (80, 48, 3)
    assert decode_image(turned).shape == (48, 80, 3)
    assert decode_gray(turned).shape == (48, 80)


def test_webp_is_read_back_by_all_and_smaller_than_png() -> None:
    frame = next(frames(sample("silent.mp4")))
    png, lossless, lossy = (
        encode(frame, own(128, 96), how)
        for how in (
            PictureFormat(format="png"),
            PictureFormat(format="webp", lossless=True),
            PictureFormat(format="webp", quality=80),
        )
    )
    assert np.array_equal(decode_image(png), decode_image(lossless))
    assert len(lossy) < len(lossless) < len(png)
    assert number_of(decode_gray(lossy)) == 0
    pil = pytest.importorskip("PIL.Image")
    import io

    assert np.array_equal(np.asarray(pil.open(io.BytesIO(lossless))), decode_image(png))
    for broken in (lossy[:40], lossy[:12], b"RIFF\0\0\0\0WEBPVP8X" + b"\xff" * 20):
        with pytest.raises(Rejected):
            decode_image(broken)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
@pytest.mark.parametrize("mode", ["crop", "pad", "window"])
def test_pictures_are_cropped_and_padded(format: str, mode: str) -> None:
    (one,) = made(
        sample("silent.mp4"), count=1, max_samples=1, format=format, size=(160, 60), mode=mode
    )
    picture = decode_image(pictures(one)[0]).astype(int)
    assert picture.shape == (60, 160, 3)
    assert (one.columns["width"], one.columns["height"]) == (160, 60)
    assert (picture[:, :10].max() < 8) == (mode != "crop"), "black at the sides"
    assert picture[30, 60:100].max() > 60


def test_pictures_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Rejected, match="pixels are more than") as said:
        made(sample("silent.mp4"), count=1, max_samples=1, size=(16384, 16384))
    assert said.value.reason == "too_large"
    with pytest.raises(Rejected, match="a WebP has at most 16383"):
        made(sample("silent.mp4"), count=1, max_samples=1, format="webp", size=(16384, 16))


def test_upright_pictures_take_the_size_that_is_asked_for() -> None:
    (one,) = made(sample("rotated.mp4"), count=1, max_samples=1, width=48)
    assert decode_image(pictures(one)[0]).shape == (64, 48, 3)


@pytest.mark.parametrize("choice", [{"step": 90}, {"indices": [0]}])
def test_a_size_is_one_of_square_pixels(choice: dict[str, Any], tmp_path: Path) -> None:
    # The height stays, that of the upright picture.
    for turned, square in ((0, (192, 96)), (90, (64, 128))):
        plain = make_video(tmp_path / f"{turned}.mp4", 30, rotation=turned)
        wide = tmp_path / f"wide{turned}.mp4"
        # Pixels as they are stored: three times as wide as they are high, over two.
        command = [ffmpeg_exe(), "-loglevel", "error", "-i", plain, "-c", "copy"]
        shape = ["-bsf:v", "h264_metadata=sample_aspect_ratio=3/2", wide]
        subprocess.run([*command, *shape], check=True)
        (one,) = made(wide, count=1, **choice)
        assert sorted(decode_image(pictures(one)[0]).shape[:2]) == [96, 128]
        for asked, expected in (
            ({"max_side": 1000}, square),
            ({"height": 48}, (square[0] * 48 // square[1], 48)),
            ({"size": (50, 60)}, (50, 60)),
        ):
            (one,) = made(wide, count=1, **choice, **asked)
            assert decode_image(pictures(one)[0]).shape[1::-1] == expected


# Parameters


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"indices": [0], "step": 2}, "give one of step and indices"),
        ({"indices": [0], "random": 2}, "give one of indices and random"),
        ({"times": ["1s"], "per_scene": "first"}, "give one of times and per_scene"),
        ({"keyframes": True, "fps": 2}, "keyframes or fps"),
        ({"random": 2, "max_samples": 1}, "max_samples has no effect with random"),
        ({"per_scene": "first", "cuts": "ignore"}, "per_scene needs the cuts"),
        ({"seed": 2}, "seed is for random"),
        ({"count": 1, "stride": 2}, "stride is for several frames"),
        ({"fps": "0"}, "not between"),
        ({"bits": 16, "hdr": "sdr", "format": "png"}, "makes pictures of 8 bits"),
        ({"bits": 16}, "bits is for format 'png'"),
        ({"lossless": True}, "lossless is for format 'webp'"),
        ({"subsampling": "444", "format": "png"}, "subsampling is for format 'jpg'"),
        ({"max_side": 64, "width": 64}, "exactly one of"),
        ({"detectors": ["transnetv2"]}, "transnetv2 is for stage scores"),
        ({"detectors": []}, "at least 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FramesParams(**given)


def test_one_meaning_has_one_key() -> None:
    def key(**params: Any) -> dict[str, Any]:
        return key_params(FramesParams(**params))

    assert key() == key(step=3, seed=0, quality=95)
    assert key(indices=[3, -1, 3]) == key(indices=[-1, 3])
    assert key(times=["1s", "500ms"]) == key(times=["0.5", 1, 1.0])
    assert key(fps="25") == key(fps=25.0) == key(fps="50/2")
    assert key(count=1, cuts="ignore") == key(count=1) == key(count=1, detectors=["hash"])
    assert key(cuts="ignore", detectors=["hash"]) == key(cuts="ignore")
    assert key(format="webp", lossless=True, quality=3) == key(format="webp", lossless=True)
    assert key(format="webp", quality=3) != key(format="webp")
    assert key(hdr="sdr") == key() != key(hdr="keep")
    assert key(random=3) != key(random=3, seed=1)
    assert key(indices=[0]) != key(indices=[1])
    assert key(count=2) != key(count=2, cuts="ignore")


def test_tools_name_what_bytes_depend_on() -> None:
    stage = Frames()
    assert set(stage.tools(FramesParams(count=1))) == {"av", "simplejpeg"}
    assert set(stage.tools(FramesParams())) == {"av", "simplejpeg", "opencv-python-headless"}
    assert "simplejpeg" not in stage.tools(FramesParams(count=1, format="webp"))
