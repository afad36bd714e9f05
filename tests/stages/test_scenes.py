"""Scene cuts: those of PySceneDetect's own command, to the frame, from scores that are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from reelmill.errors import Rejected
from reelmill.media.probe import open_media, packet_table, video_stream
from reelmill.media.scenes import (
    KINDS,
    AdaptiveDetector,
    AnyDetector,
    Clock,
    ContentDetector,
    Detector,
    Finder,
    HashDetector,
    HistogramDetector,
    Scores,
    ThresholdDetector,
    detect,
    find,
    kept,
    ranges,
    score,
    spans,
)
from reelmill.media.scenes.measures import Brightness, Hash, Histogram, Pairwise
from reelmill.media.scenes.pictures import Shrinker, View, small_size
from reelmill.media.scenes.scores import clock_of

from .media_samples import CUTS, UNEVEN, make_video, real_media, sample, x264

F = Fraction
CONTENT = (ContentDetector(),)
COMMANDS = {
    "content": "detect-content",
    "adaptive": "detect-adaptive",
    "threshold": "detect-threshold",
    "hash": "detect-hash",
    "histogram": "detect-hist",
}


def _whole(path: Path) -> tuple[Fraction, Fraction]:
    table = packet_table(path)
    return int(table.shown[0]) * table.time_base, table.end_pts * table.time_base


@pytest.mark.parametrize("kind", ["content", "adaptive", "hash", "histogram"])
def test_cuts_fall_on_the_first_frame_of_each_scene(kind: str) -> None:
    path = sample("scenes.mkv")
    found = detect(path, [KINDS[kind]()])
    assert [start for start, _ in found] == [F(UNEVEN[frame], 1000) for frame in (0, *CUTS)]
    assert (found[0][0], found[-1][1]) == _whole(path)
    assert all(a[1] == b[0] for a, b in pairwise(found))


@pytest.mark.parametrize("name", ["plain.mp4", "late.mp4", "plain.ts", "hidden.mp4"])
def test_video_without_cuts_is_one_scene(name: str) -> None:
    assert detect(sample(name), CONTENT) == [_whole(sample(name))]


def test_threshold_and_shortest_scene_are_heeded() -> None:
    path = sample("scenes.mkv")
    assert len(detect(path, [ContentDetector(threshold=Decimal(255))])) == 1
    assert len(detect(path, [AdaptiveDetector(threshold=Decimal(255))])) == 1
    assert len(detect(path, [ContentDetector(min_scene=Decimal("1.2"))])) < len(CUTS) + 1


def test_the_best_stream_is_searched_not_the_first() -> None:
    assert len(detect(sample("two.mkv"), CONTENT)) == len(CUTS) + 1


# The command itself, in this process, on its PyAV backend.


def _command(path: Path, *arguments: str) -> list[list[Fraction]]:
    """The cuts of each detector of one run of ``scenedetect``, in seconds from the start."""
    from scenedetect._cli import scenedetect
    from scenedetect._cli.context import CliContext
    from scenedetect._cli.controller import _detect

    context = CliContext()
    given = ["-q", "-i", str(path), "-b", "pyav", *arguments]
    found: list[list[Any]] = []
    try:
        scenedetect.main(args=given, obj=context, standalone_mode=False)
        for detector in context.scene_manager._detector_list:
            found.append([])
            for method in ("process_frame", "post_process"):
                call = getattr(detector, method)
                setattr(detector, method, partial(_noted, call, found[-1]))
        _detect(context)
    finally:
        # PySceneDetect has turned FFmpeg's log on for the whole process.
        av.logging.set_level(None)
    return [[cut.pts * cut.time_base for cut in sorted(set(cuts))] for cuts in found]


def _noted(call: Callable[..., list[Any]], found: list[Any], *arguments: Any) -> list[Any]:
    cuts = call(*arguments)
    found += cuts
    return cuts


def _scene_video(
    path: Path, draw: Callable[[int], NDArray[np.uint8]] | None = None, **more: Any
) -> Path:
    return make_video(path, more.pop("frames", 75), draw=draw or _cuts, **more)


def _cuts(number: int, size: tuple[int, int] = (192, 256)) -> NDArray[np.uint8]:
    """A scene of 18 frames, one of 4, and more of 18, each a still with something that moves."""
    scene = number // 18 + (number >= 22)
    height, width = size
    tiles = np.random.default_rng(scene).integers(16, 90, (8, 8), dtype=np.uint8)
    tiles += 140 * (scene % 2)
    whole = cv2.resize(tiles, (width, height), interpolation=cv2.INTER_NEAREST)
    whole[:8, 4 * (number % 16) : 4 * (number % 16) + 8] = 235
    return whole


def _flashes(number: int) -> NDArray[np.uint8]:
    return np.full((192, 256), 235, np.uint8) if number % 17 in (0, 1) else _cuts(number)


def _fades(number: int) -> NDArray[np.uint8]:
    # Dark at the start, in the middle and, for good, at the end.
    light = min(1.0, max(0.0, min(number / 12, abs(number - 38) / 9 - 0.2, (70 - number) / 6)))
    return (_cuts(number // 40 * 18) * light).astype(np.uint8)


_LARGE = {"size": (1280, 720), "draw": partial(_cuts, size=(720, 1280)), "frames": 45}
_FAST = {"preset": "ultrafast"}

_TEST_SET: dict[str, Callable[[Path], Path]] = {
    "cuts.mp4": partial(_scene_video, size=(256, 192), options=x264()),
    "ntsc.mkv": partial(
        _scene_video, size=(256, 192), time_base=F(1, 1000), pts=[i * 1001 // 30 for i in range(75)]
    ),
    "flashes.mp4": partial(_scene_video, draw=_flashes, size=(256, 192), options=x264()),
    "fades.mp4": partial(_scene_video, draw=_fades, size=(256, 192), options=x264()),
    "720p.mp4": partial(_scene_video, options=_FAST, **_LARGE),
    "full.mp4": partial(_scene_video, options=_FAST, pix_fmt="yuvj420p", **_LARGE),
    "422.mp4": partial(_scene_video, options=_FAST, pix_fmt="yuv422p", **_LARGE),
    "ten.mp4": partial(
        _scene_video, size=(512, 384), draw=partial(_cuts, size=(384, 512)), pix_fmt="yuv420p10le"
    ),
    "even.mp4": partial(_scene_video, size=(512, 384), draw=partial(_cuts, size=(384, 512))),
    "odd.mp4": partial(
        _scene_video, size=(333, 215), draw=partial(_cuts, size=(215, 333)), pix_fmt="yuv444p"
    ),
    "rotated.mp4": partial(_scene_video, size=(256, 192), rotation=90),
    "late.mp4": partial(_scene_video, size=(256, 192), pts=range(45, 120), options=x264(3)),
    "open.mp4": partial(_scene_video, size=(256, 192), options=x264(3, more="open-gop=1")),
}
_OTHERS = (
    "uneven.mkv",
    "scenes.mkv",
    "fade.mkv",
    "plain.avi",
    "vp9.webm",
    "trimmed.mp4",
    "grown.ts",
)
_FIRST_IS_BEST = {"nasa_13013.mp4"}
"""Real clips of several videos, where the command takes the first and we the best."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return cache(lambda name: _TEST_SET[name](folder / name))


def _is_as_the_command(path: Path) -> int:
    """Check the cuts of all detectors; how many there are."""
    detectors = [KINDS[name]() for name in COMMANDS]
    scores = score(path, detectors)
    clock = scores.clock
    total = 0
    for detector, wanted in zip(detectors, _command(path, *COMMANDS.values()), strict=True):
        # A fade's place is a nominal frame number; ours is the frame nearest to it.
        times = [(int(at) - clock.origin) * clock.time_base for at in scores.pts]
        wanted = [min(times, key=lambda time: (abs(time - cut), time)) for cut in wanted]
        cuts = [(cut - clock.origin) * clock.time_base for cut in find(scores, [detector])]
        assert cuts == wanted, detector.kind
        total += len(cuts)
    return total


@pytest.mark.parametrize("name", _TEST_SET)
def test_cuts_are_those_of_the_command(name: str, made: Callable[[str], Path]) -> None:
    assert _is_as_the_command(made(name))


@pytest.mark.parametrize("name", _OTHERS)
def test_cuts_of_other_samples_are_those_of_the_command(name: str) -> None:
    _is_as_the_command(sample(name))


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
def test_cuts_of_real_clips_are_those_of_the_command(path: Path) -> None:
    if path.name in _FIRST_IS_BEST:
        pytest.skip("the command takes another of its streams")
    _is_as_the_command(path)


def test_several_detectors_give_the_cuts_of_all(made: Callable[[str], Path]) -> None:
    detectors: list[Detector] = [ThresholdDetector(), HashDetector(min_frames=5)]
    scores = score(made("fades.mp4"), detectors)
    fades, changes = (set(find(scores, [one])) for one in detectors)
    assert fades - changes
    assert changes - fades
    assert find(scores, detectors) == sorted(fades | changes)


def test_settings_mean_what_they_mean_to_the_command(made: Callable[[str], Path]) -> None:
    path = made("flashes.mp4")
    asked: list[tuple[Detector, str]] = [
        (
            ContentDetector(
                threshold=Decimal(40),
                weights=(Decimal(1), Decimal("0.5"), Decimal(1), Decimal(2)),
                kernel_size=5,
                filter_mode="suppress",
                min_frames=4,
            ),
            "detect-content -t 40 -w 1 0.5 1 2 -k 5 -f suppress -m 4",
        ),
        (ContentDetector(luma_only=True, min_frames=0), "detect-content -l -m 0"),
        (ContentDetector(min_scene=Decimal("0.3")), "detect-content -m 0.3s"),
        (
            AdaptiveDetector(
                threshold=Decimal("1.5"),
                min_content_val=Decimal(5),
                window_width=4,
                min_frames=3,
                weights=(Decimal(0), Decimal(0), Decimal(1), Decimal(1)),
            ),
            "detect-adaptive -t 1.5 -c 5 -f 4 -m 3 -w 0 0 1 1",
        ),
        (
            ThresholdDetector(
                threshold=Decimal("200.7"), fade_bias=Decimal(1), min_out=Decimal("0.05")
            ),
            "detect-threshold -t 200.7 -f 1 --min-out-length 0.05s",
        ),
        (
            HashDetector(threshold=Decimal("0.2"), size=12, lowpass=3, min_frames=2),
            "detect-hash -t 0.2 -s 12 -l 3 -m 2",
        ),
        (
            HistogramDetector(threshold=Decimal("0.05"), bins=32, min_frames=2),
            "detect-hist -t 0.05 -b 32 -m 2",
        ),
    ]
    scores = score(path, [detector for detector, _ in asked])
    counts = set()
    for detector, command in asked:
        (wanted,) = _command(path, *command.split())
        cuts = [cut * scores.clock.time_base for cut in find(scores, [detector])]
        assert cuts == wanted, command
        counts.add(len(cuts))
    assert len(counts) > 2


# Detectors by themselves, against PySceneDetect's own objects on the same scores.

_clocks = st.builds(
    Clock,
    st.sampled_from([F(1, 1000), F(1, 90000), F(1, 12800), F(1001, 30000)]),
    st.sampled_from([F(25), F(30000, 1001), F(24000, 1001), F(26777, 1000), F(60)]),
    st.sampled_from([0, 0, 900]),
)


@st.composite
def _stamps(draw: st.DrawFn) -> tuple[Clock, list[int]]:
    """A clock, and increasing pts about a nominal frame apart."""
    clock = draw(_clocks)
    steps = draw(st.lists(st.sampled_from([0.5, 1.0, 1.0, 1.0, 1.2, 3.0]), max_size=60))
    pts = [clock.origin]
    for step in steps:
        pts.append(pts[-1] + max(1, round(step / float(clock.rate * clock.time_base))))
    return clock, pts


def _theirs(detector: Any, clock: Clock, pts: Sequence[int], frames: Sequence[Any]) -> list[int]:
    from scenedetect import FrameTimecode
    from scenedetect.common import Timecode

    cuts: list[Any] = []
    for at, frame in zip(pts, frames, strict=True):
        now = FrameTimecode(Timecode(at - clock.origin, clock.time_base), clock.rate)
        cuts += detector.process_frame(now, frame)
    cuts += detector.post_process(now)
    at = {clock.origin + cut.pts * cut.time_base / clock.time_base for cut in cuts}
    return sorted(cut for cut in at if cut > pts[0])


def _scores(clock: Clock, pts: Sequence[int], columns: dict[str, Sequence[float]]) -> Scores:
    values = {name: np.array(column, dtype=np.float64) for name, column in columns.items()}
    return Scores(clock, np.array(pts, dtype=np.int64), pts[-1] + 1, values)


def _of_light(clock: Clock, pts: Sequence[int], light: Sequence[float]) -> Scores:
    still = [0.0] * len(pts)
    return _scores(clock, pts, {"delta_hue": still, "delta_sat": still, "delta_lum": light})


_changes = partial(st.lists, st.sampled_from([0.0, 1.0, 4.0, 26.9, 27.0, 40.0, 90.0]))


@given(_stamps(), st.data(), st.sampled_from(["merge", "suppress"]), st.integers(0, 20))
def test_content_cuts_as_theirs(
    stamps: tuple[Clock, list[int]], data: st.DataObject, mode: Any, least: int
) -> None:
    import scenedetect
    from scenedetect.detector import FlashFilter

    clock, pts = stamps
    changes = data.draw(_changes(min_size=len(pts), max_size=len(pts)))
    theirs = scenedetect.ContentDetector(
        luma_only=True, min_scene_len=least, filter_mode=FlashFilter.Mode[mode.upper()]
    )
    theirs._calculate_frame_score = lambda timecode, frame_img: frame_img
    ours = ContentDetector(luma_only=True, min_frames=least, filter_mode=mode)
    wanted = _theirs(theirs, clock, pts, changes)
    assert find(_of_light(clock, pts, changes), [ours]) == wanted


@given(_stamps(), st.data(), st.integers(1, 4), st.integers(0, 20))
def test_adaptive_cuts_as_theirs(
    stamps: tuple[Clock, list[int]], data: st.DataObject, width: int, least: int
) -> None:
    import scenedetect

    clock, pts = stamps
    changes = data.draw(_changes(min_size=len(pts), max_size=len(pts)))
    theirs = scenedetect.AdaptiveDetector(
        luma_only=True, min_scene_len=least, window_width=width, adaptive_threshold=2.0
    )
    theirs._calculate_frame_score = lambda timecode, frame_img: frame_img
    ours = AdaptiveDetector(
        luma_only=True, min_frames=least, window_width=width, threshold=Decimal(2)
    )
    wanted = _theirs(theirs, clock, pts, changes)
    assert find(_of_light(clock, pts, changes), [ours]) == wanted


def _pictures(seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
    return [
        np.random.default_rng(seed).integers(0, 40 * seed + 2, (24, 32, 3), dtype=np.uint8)
        for seed in seeds
    ]


def _measured(measure: Pairwise, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, list[float]]:
    seen = [measure.look(View(picture)) for picture in pictures]
    rows = [measure.change(b, n) for b, n in zip([None, *seen], seen, strict=False)]
    return {name: [row[i] for row in rows] for i, name in enumerate(measure.columns)}


@given(_stamps(), st.data(), st.integers(0, 12))
def test_hash_histogram_and_fades_cut_as_theirs(
    stamps: tuple[Clock, list[int]], data: st.DataObject, least: int
) -> None:
    import scenedetect

    clock, pts = stamps
    seeds = data.draw(st.lists(st.integers(0, 6), min_size=len(pts), max_size=len(pts)))
    pictures = _pictures(seeds)
    columns: dict[str, Sequence[float]] = {}
    for measure in (Hash(6, 2), Histogram(16), Brightness()):
        columns |= _measured(measure, pictures)
    scores = _scores(clock, pts, columns)
    hashes = scenedetect.HashDetector(size=6, min_scene_len=least, threshold=0.4)
    ours: Detector = HashDetector(size=6, min_frames=least, threshold=Decimal("0.4"))
    assert find(scores, [ours]) == _theirs(hashes, clock, pts, pictures)
    histograms = scenedetect.HistogramDetector(bins=16, min_scene_len=least, threshold=0.3)
    ours = HistogramDetector(bins=16, min_frames=least, threshold=Decimal("0.3"))
    assert find(scores, [ours]) == _theirs(histograms, clock, pts, pictures)
    for method in ("floor", "ceiling"):
        fades = scenedetect.ThresholdDetector(
            threshold=60,
            min_scene_len=least,
            add_final_scene=True,
            fade_bias=0.25,
            method=scenedetect.ThresholdDetector.Method[method.upper()],
        )
        wanted = _theirs(fades, clock, pts, pictures)
        ours = ThresholdDetector(
            threshold=Decimal(60),
            min_frames=least,
            fade_bias=Decimal("0.25"),
            min_out=Decimal(0),
            method=method,
        )
        cuts = find(scores, [ours])
        # Theirs are nominal frames, two of which may lie nearest to one frame; ours are frames.
        assert len(cuts) <= len(wanted)
        reach = 3.5 / float(clock.rate * clock.time_base)
        assert all(min(abs(cut - one) for one in wanted) <= reach for cut in cuts)
        assert all(min(abs(cut - one) for cut in cuts) <= reach for one in wanted if one > pts[1])


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("contents", "contents"),
        ({"kind": "content", "threshold": 300}, "255"),
        ({"kind": "hash", "threshold": 27}, "less than or equal to 1"),
        ({"kind": "content", "kernel_size": 4}, "odd"),
        ({"kind": "content", "weights": [0, 0, 0, 0]}, "weights"),
        ({"kind": "threshold", "fade_bias": -2}, "-1"),
        ({"kind": "adaptive", "bins": 2}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(detector: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(AnyDetector).validate_python(detector)
    assert message in str(caught.value)


# The small picture, bit for bit.


def _noise(width: int, height: int, name: str, matrix: int, colour_range: int) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, name)
    frame.colorspace, frame.color_range = matrix, colour_range
    noise = np.random.default_rng(7)
    for plane in frame.planes:
        values = np.frombuffer(plane, np.uint8)
        values[:] = noise.integers(0, 256, values.shape, dtype=np.uint8)
        if name.endswith("10le"):
            values[1::2] &= 3
    return frame


def _long_way(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture = frame.to_ndarray(format="bgr24")
    size = small_size(frame.width, frame.height)
    if max(frame.width, frame.height) <= 256:
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("matrix", [1, 2, 5, 9])
@pytest.mark.parametrize("colour_range", [0, 1, 2])
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12"])
def test_small_pictures_are_those_of_the_long_way(
    name: str, colour_range: int, matrix: int
) -> None:
    sizes = ((1280, 720), (512, 288), (640, 362), (255, 77), (1280, 5), (512, 2), (6, 512))
    for size in (*sizes, (1920, 1080), (1080, 1920), (1408, 792)):
        frame = _noise(*size, name, matrix, colour_range)
        assert np.array_equal(Shrinker(*size)(frame), _long_way(frame)), size


@pytest.mark.parametrize(
    ("size", "name", "way"),
    [
        ((1280, 720), "yuv420p", "_Sampled"),
        ((720, 1280), "yuvj420p", "_Sampled"),
        ((1024, 576), "yuv422p", "_Sampled"),
        ((1920, 1080), "yuv420p", "_Rows"),
        ((1080, 1920), "yuvj420p", "_Rows"),
        ((1408, 792), "yuv420p", "_Whole"),
        ((1920, 1080), "yuv422p", "_Whole"),
        ((1280, 720), "yuv420p10le", "_Whole"),
        ((1280, 534), "yuv420p", "_Whole"),
        ((240, 180), "yuv420p", "_Whole"),
    ],
)
def test_only_what_is_read_is_converted(size: tuple[int, int], name: str, way: str) -> None:
    shrink = Shrinker(*size)
    frame = _noise(*size, name, 1, 1)
    assert np.array_equal(shrink(frame), _long_way(frame))
    assert type(shrink._way).__name__ == way


def test_every_colour_comes_out_as_it_would() -> None:
    # All values of luma with all of chroma, 65,536 blocks of which are looked at: each once.
    values = np.arange(256, dtype=np.uint8)
    for number in range(4):
        frame = av.VideoFrame(1280, 720, "yuv420p")
        luma, blue, red = (np.frombuffer(plane, np.uint8) for plane in frame.planes)
        luma[:] = np.resize(np.repeat(values, 5), luma.shape)
        blue[:] = np.resize(np.repeat(values[:: number + 1], 5 + number), blue.shape)
        red[:] = np.resize(np.repeat(values[::-1], 1280 - number), red.shape)
        shrink = Shrinker(1280, 720)
        assert np.array_equal(shrink(frame), _long_way(frame))


def test_frames_of_another_size_are_scaled_to_the_first() -> None:
    shrink = Shrinker(1280, 720)
    shrink(_noise(1280, 720, "yuv420p", 1, 1))
    assert shrink(_noise(640, 480, "yuv420p", 1, 1)).shape == (144, 256, 3)


# Several cores.


def _same(one: Scores, other: Scores) -> bool:
    return (
        one.clock == other.clock
        and one.end == other.end
        and np.array_equal(one.pts, other.pts)
        and list(one.columns) == list(other.columns)
        and all(np.array_equal(one.columns[name], other.columns[name]) for name in one.columns)
    )


_ALL: list[Detector] = [
    ContentDetector(weights=(Decimal(1), Decimal(1), Decimal(1), Decimal(1))),
    ThresholdDetector(),
    HashDetector(),
    HistogramDetector(),
]


_LONG: dict[str, dict[str, Any]] = {
    "closed.mp4": {"options": x264(3)},
    "open.mp4": {"options": x264(3, more="open-gop=1")},
    "hevc.mkv": {
        "codec": "libx265",
        "options": {
            "preset": "ultrafast",
            "x265-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:pools=none:"
            "frame-threads=1:log-level=none",
        },
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "20", "cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "20"}},
    "late.mp4": {"options": x264(3), "pts": range(45, 165)},
}


@pytest.mark.parametrize("name", _LONG)
def test_scores_are_the_same_on_any_number_of_cores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "LEAST_FRAMES", 10)
    path = make_video(tmp_path / name, 120, **_LONG[name])
    once = score(path, _ALL)
    assert len(once) == 120
    for jobs in (2, 3, 5):
        assert ranges.in_ranges(path, [m for one in _ALL for m in one.measures], jobs), jobs
        assert _same(score(path, _ALL, jobs=jobs), once), jobs


def test_damage_is_the_same_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "LEAST_FRAMES", 10)
    path = make_video(tmp_path / "whole.mkv", 120, options=x264(3))
    data = bytearray(path.read_bytes())
    for at in (len(data) // 4, len(data) // 2, len(data) * 4 // 5):
        data[at : at + 40] = b"\xa5" * 40
    once = score(bytes(data), _ALL)
    assert _same(score(bytes(data), _ALL, jobs=3), once)


def test_pictures_that_change_in_size_are_the_same_on_any_number_of_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "LEAST_FRAMES", 10)
    once = score(sample("grown.ts"), _ALL)
    for jobs in (2, 3):
        assert _same(score(sample("grown.ts"), _ALL, jobs=jobs), once)


def test_what_cannot_be_parted_is_scored_in_one_pass(tmp_path: Path) -> None:
    short = sample("plain.mp4")
    assert ranges.in_ranges(short, [Brightness()], 4) is None
    with short.open("rb") as file:
        assert ranges.in_ranges(file, [Brightness()], 4) is None
        assert _same(score(file, _ALL, jobs=4), score(short, _ALL))


# Few frames.


def test_skimming_looks_at_few_frames_and_finds_cuts_that_stand_out() -> None:
    path = sample("scenes.mkv")
    skimmed = score(path, CONTENT, exact=False)
    assert len(skimmed) < len(UNEVEN)
    assert find(skimmed, CONTENT) == [UNEVEN[cut] for cut in CUTS]
    assert skimmed.end == score(path, CONTENT).end
    assert len(score(sample("long.mp4"), CONTENT, exact=False)) < 45


@pytest.mark.parametrize("name", ["plain.ts", "hidden.mp4", "open.mp4"])
def test_where_packets_do_not_tell_all_frames_are_looked_at(name: str) -> None:
    path = sample(name)
    assert _same(score(path, CONTENT, exact=False), score(path, CONTENT))


def test_what_must_see_all_frames_is_not_skimmed() -> None:
    with pytest.raises(ValueError, match="adaptive and threshold must look at all frames"):
        score(sample("plain.mp4"), [AdaptiveDetector(), ThresholdDetector()], exact=False)
    with pytest.raises(ValueError, match="compare two pictures"):
        score(sample("plain.mp4"), [_Foreign()], exact=False)


# Scores that are kept, and cuts found while others look on.


def test_kept_scores_are_what_they_were() -> None:
    scores = score(sample("scenes.mkv"), _ALL)
    data = kept.pack(scores)
    assert _same(kept.unpack(data), scores)
    assert kept.pack(kept.unpack(data)) == data


@pytest.mark.parametrize("data", [b"", b"PAR1", b"{}"])
def test_what_is_no_file_of_scores_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        kept.unpack(data)
    assert caught.value.reason == "bad_scores"


@pytest.mark.parametrize("kind", COMMANDS)
def test_cuts_are_certain_when_they_are_said_to_be(kind: str, made: Callable[[str], Path]) -> None:
    for name in ("flashes.mp4", "fades.mp4"):
        detector = KINDS[kind](min_frames=6)
        scores = score(made(name), [detector])
        with open_media(made(name)) as container:
            stream = video_stream(container)
            finder = Finder([detector], clock_of(stream))
            cuts: list[int] = []
            settled = -1
            for frame in container.decode(stream):
                new = finder.feed(frame, frame.pts)
                assert all(cut > settled for cut in new)
                settled = max(settled, -1 if finder.settled is None else finder.settled)
                cuts += new
            last = finder.finish()
            assert all(cut > settled for cut in last)
        assert sorted({*cuts, *last}) == find(scores, [detector])


class _Late:
    """A measure of another kind: how many frames came before, told three frames late."""

    columns = ("delta_hue", "delta_sat", "delta_lum")
    lag = 3

    def start(self) -> _Late:
        self.seen = self.told = 0
        return self

    def feed(self, frame: Any) -> list[tuple[float, ...]]:
        self.seen += 1
        return self._rows(self.seen - self.lag)

    def finish(self) -> list[tuple[float, ...]]:
        return self._rows(self.seen)

    def _rows(self, end: int) -> list[tuple[float, ...]]:
        rows = [(0.0, 0.0, float(i % 30 == 20) * 255) for i in range(self.told, end)]
        self.told = max(self.told, end)
        return rows


class _Foreign(ContentDetector):
    @property
    def measures(self) -> tuple[Any, ...]:
        return (_LATE, Brightness())


_LATE = _Late()


def test_measures_of_another_kind_join_in() -> None:
    path = sample("plain.mp4")
    scores = score(path, [_Foreign()], jobs=4)
    assert set(scores.columns) == {*_Late.columns, "average_rgb"}
    assert [int(np.searchsorted(scores.pts, cut)) for cut in find(scores, [_Foreign()])] == [
        20,
        50,
        80,
    ]
    with open_media(path) as container:
        stream = video_stream(container)
        finder = Finder([_Foreign()], clock_of(stream))
        cuts = [cut for f in container.decode(stream) for cut in finder.feed(f, f.pts)]
        assert [*cuts, *finder.finish()] == find(scores, [_Foreign()])


def test_spans_are_whole() -> None:
    scores = _of_light(Clock(F(1, 25), F(25)), [3, 4, 5], [0.0, 90.0, 0.0])
    assert spans(scores, [4]) == [(F(3, 25), F(4, 25)), (F(4, 25), F(6, 25))]


def test_damage_is_passed_over_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(sample("scenes.mkv").read_bytes())
    third = len(data) // 3
    data[third : third + 20] = b"\xa5" * 20
    spans = detect(bytes(data), CONTENT)
    assert spans[0][0] == 0
    assert len(spans) > 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html><body>404</body></html>", "not_video"),
        (b"", "empty"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "undecodable"),
    ],
)
def test_unreadable_source_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        detect(data, CONTENT)
    assert caught.value.reason == reason


def test_source_without_a_decodable_frame_is_rejected() -> None:
    data = bytearray(sample("fast.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = b"\xff" * (len(data) - at)
    with pytest.raises(Rejected) as caught:
        detect(bytes(data), CONTENT)
    assert caught.value.reason == "undecodable"
