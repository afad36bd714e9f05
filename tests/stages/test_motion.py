"""Motion and looks: videos of known motion, light, stillness and blur, and FFmpeg's own filters."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.motion import Motion, measure
from reelmill.shards.reader import ShardReader
from reelmill.shards.verify import verify_shard
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store.model import Shard
from reelmill.tasks.frame import execute
from reelmill.tasks.motion import MOTION_COLUMNS, MotionParams

from .media_samples import REAL, make_video, sample
from .test_stages import Bench

Gray = NDArray[np.uint8]
LOSSLESS = {"qp": "0", "preset": "ultrafast"}
SIZE = (320, 180)
DIAGONAL = math.hypot(*SIZE)
DISPATCHED = np.show_config("dicts")["SIMD Extensions"]["found"]  # type: ignore[call-overload,index]
"""Instructions of this CPU that numpy chooses as it runs."""


def texture(seed: int, size: tuple[int, int] = (1400, 500), grain: float = 3.0) -> Gray:
    """A surface that looks different everywhere, with detail of so many pixels."""
    noise = np.random.default_rng(seed).normal(size=size[::-1])
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return cv2.normalize(smooth, smooth, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def window(picture: Gray, x: float, y: float = 0, size: tuple[int, int] = SIZE) -> Gray:
    """What is seen of ``picture`` through a window whose corner is at (x, y)."""
    return picture[round(y) : round(y) + size[1], round(x) : round(x) + size[0]]


def filmed(path: Path, draw: Callable[[int], Gray], frames: int = 45, **options: Any) -> Path:
    options = {"size": SIZE, "fps": 30, "options": LOSSLESS, **options}
    return make_video(path, frames, draw=draw, **options)


def panned(
    path: Path, step: float, fps: int = 30, size: tuple[int, int] = SIZE, **options: Any
) -> Path:
    """A pan of ``step`` pixels a frame across one texture, which is as much larger as ``size``."""
    factor = size[0] / SIZE[0]
    wide = (round(1400 * factor), round(500 * factor))
    surface = cv2.resize(texture(1), wide, interpolation=cv2.INTER_CUBIC)
    return filmed(
        path, lambda n: window(surface, n * step, size=size), fps=fps, size=size, **options
    )


# Motion


@pytest.mark.parametrize("step", [1, 3, 6])
def test_motion_is_that_of_a_known_pan(step: int, tmp_path: Path) -> None:
    found = measure(panned(tmp_path / "pan.mp4", step))
    true = 30 * step / DIAGONAL
    assert found.motion == pytest.approx(true, rel=0.06)
    assert found.motion_max == pytest.approx(true, rel=0.1)
    assert found.static is not None
    assert found.static < 0.03
    assert (found.frozen, found.repeated, found.cuts) == (0, 0, 0)


def test_motion_goes_both_ways(tmp_path: Path) -> None:
    surface = texture(2)
    path = filmed(tmp_path / "a.mp4", lambda n: window(surface, 300 - 3 * n, 20 + 4 * n))
    assert measure(path).motion == pytest.approx(30 * 5 / DIAGONAL, rel=0.06)


def test_motion_is_the_same_at_any_size_rate_and_turn(tmp_path: Path) -> None:
    expected = measure(panned(tmp_path / "plain.mp4", 3)).motion
    others = {
        "larger": panned(tmp_path / "larger.mp4", 6, size=(640, 360)),
        "slower": panned(tmp_path / "slower.mp4", 6, fps=15, frames=22),
        "faster": panned(tmp_path / "faster.mp4", 1.5, fps=60, frames=90),
        "turned": panned(tmp_path / "turned.mp4", 3, rotation=90),
    }
    for name, path in others.items():
        assert measure(path).motion == pytest.approx(expected, rel=0.06), name


def test_pictures_that_are_drawn_for_two_frames_move_as_fast(tmp_path: Path) -> None:
    surface = texture(1)
    path = filmed(tmp_path / "twos.mp4", lambda n: window(surface, n // 2 * 6), frames=60)
    found = measure(path)
    assert found.motion == pytest.approx(30 * 3 / DIAGONAL, rel=0.25)
    assert found.repeated == 0.5
    assert found.frozen == 0


def test_what_stands_still_is_told_from_what_moves(tmp_path: Path) -> None:
    surface = texture(3)

    def draw(number: int) -> Gray:
        half = window(surface, 3 * number).copy()
        half[:, :160] = surface[:180, 900:1060]
        return half

    found = measure(filmed(tmp_path / "half.mp4", draw))
    assert found.static == pytest.approx(0.5, abs=0.06)
    assert found.motion == pytest.approx(45 / DIAGONAL, rel=0.12)


def test_what_moves_over_an_even_surface_moves_alone(tmp_path: Path) -> None:
    surface = texture(14)

    def draw(number: int) -> Gray:
        even = np.full((180, 320), 90, np.uint8)
        even[60:120, 4 * number : 4 * number + 60] = surface[60:120, :60]
        return even

    found = measure(filmed(tmp_path / "a.mp4", draw))
    share = 60 * 60 / (320 * 180)
    assert found.static == pytest.approx(1 - share, abs=0.1)
    assert found.motion is not None
    # What it covers and uncovers between two looks is seen to move, too.
    assert 0.9 < found.motion / (share * 30 * 4 / DIAGONAL) < 1.8


def test_faint_noise_is_no_motion(tmp_path: Path) -> None:
    surface, rng = texture(15), np.random.default_rng(2)

    def draw(number: int) -> Gray:
        noisy = window(surface, 0) + rng.normal(0, 3, SIZE[::-1])
        return np.clip(noisy, 0, 255).astype(np.uint8)

    found = measure(filmed(tmp_path / "a.mp4", draw))
    assert found.motion is not None
    assert found.motion < 0.003
    assert (found.static, found.frozen) == (1, 0)


def test_a_cut_is_no_motion(tmp_path: Path) -> None:
    before, after = texture(4), texture(5)
    draw = lambda n: window(before if n < 22 else after, n)  # noqa: E731
    found = measure(filmed(tmp_path / "cut.mp4", draw), Fraction(10))
    assert found.cuts == 1
    assert found.motion_max == pytest.approx(30 / DIAGONAL, rel=0.1)


def test_a_video_that_is_cut_between_any_two_frames_has_no_motion(tmp_path: Path) -> None:
    found = measure(filmed(tmp_path / "one.mp4", lambda n: window(texture(6), 0), frames=1))
    assert (found.motion, found.motion_max, found.static) == (None, None, None)
    assert (found.cuts, found.frozen, found.repeated) == (0, 0, 0)
    assert found.contrast > 0.05


def test_a_video_shorter_than_a_pair_is_one(tmp_path: Path) -> None:
    found = measure(panned(tmp_path / "short.mp4", 3, frames=2))
    assert found.motion == pytest.approx(90 / DIAGONAL, rel=0.1)


def test_pictures_of_any_shape_have_motion(tmp_path: Path) -> None:
    surface = texture(7, (3000, 60))
    path = filmed(
        *(tmp_path / "strip.mp4", lambda n: window(surface, 8 * n, size=(1280, 32))),
        size=(1280, 32),
        frames=20,
    )
    assert measure(path).motion == pytest.approx(30 * 8 / math.hypot(1280, 32), rel=0.1)


# Light


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv444p"])
def test_luma_is_a_share_of_the_range_however_it_is_stored(pix_fmt: str, tmp_path: Path) -> None:
    def draw(number: int) -> Gray:
        return np.full((180, 320), (0, 255, 102)[number // 10], np.uint8)

    found = measure(filmed(tmp_path / "a.mp4", draw, 30, pix_fmt=pix_fmt))
    assert found.luma == pytest.approx((0 + 1 + 0.4) / 3, abs=0.004)
    assert (found.luma_min, found.luma_max) == (0, pytest.approx(1, abs=0.004))
    assert found.contrast < 0.002
    assert found.black == pytest.approx(1 / 3, abs=1e-4)
    assert found.overexposed == pytest.approx(1 / 3, abs=1e-4)
    assert found.cuts == 2


def test_contrast_is_the_deviation_within_a_frame(tmp_path: Path) -> None:
    def draw(number: int) -> Gray:
        return np.repeat(np.array([[0, 255]], np.uint8), 160, axis=1).repeat(180, axis=0)

    found = measure(filmed(tmp_path / "a.mp4", draw, 5))
    assert found.contrast == pytest.approx(0.5, abs=0.002)
    assert found.luma == pytest.approx(0.5, abs=0.002)
    assert found.black == 0


def test_black_is_what_blackdetect_calls_so(tmp_path: Path) -> None:
    surface, rng = texture(8), np.random.default_rng(0)

    def draw(number: int) -> Gray:
        if 12 <= number < 27:
            return rng.integers(0, 12, (180, 320), dtype=np.uint8)
        if number >= 36:
            return window(surface, number) // 4 + 20  # dark, but not black
        return window(surface, number)

    path = filmed(tmp_path / "a.mp4", draw)
    found = measure(path)
    assert found.black == pytest.approx(
        detected(path, "blackdetect=d=0.05", "black") / 1.5, abs=1e-4
    )
    assert found.black == pytest.approx(15 / 45, abs=1e-4)
    assert found.luma_min < 0.05


def detected(path: Path, name: str, what: str) -> float:
    """Seconds that a filter of ffmpeg's finds, all stretches together."""
    command = [ffmpeg_exe(), "-i", str(path), "-vf", name, "-an", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(float, re.findall(rf"{what}_duration: ?([0-9.]+)", log)))


# What stays


def test_frozen_is_what_freezedetect_calls_so(tmp_path: Path) -> None:
    surface = texture(9)

    def draw(number: int) -> Gray:
        # Still for 20 frames, then for 10, which is too short, and again for 20.
        at = number if number < 20 else max(20, number - 20)
        at = at if at < 35 else max(35, at - 10)
        at = at if at < 50 else max(50, at - 20)
        return window(surface, 2 * at)

    path = filmed(tmp_path / "a.mp4", draw, 110)
    found = measure(path)
    seconds = detected(path, "freezedetect=n=-60dB:d=0.5", "freeze")
    assert found.frozen == pytest.approx(seconds / (110 / 30), abs=1e-3)
    assert found.frozen > 0.35
    assert found.repeated == pytest.approx(50 / 110, abs=0.03)


def test_shares_are_of_time_and_not_of_frames(tmp_path: Path) -> None:
    surface = texture(10)
    pts = [*range(0, 1000, 100), 1000, 1900, *range(2000, 3000, 100)]

    def draw(number: int) -> Gray:
        if number in (10, 11):
            return np.zeros((180, 320), np.uint8)
        return window(surface, 9 * number)

    path = filmed(
        *(tmp_path / "a.mkv", draw, len(pts)),
        pts=pts,
        time_base=Fraction(1, 1000),
        options=LOSSLESS,
    )
    found = measure(path)
    assert found.black == pytest.approx(1 / 3, abs=1e-3)
    assert found.frozen == pytest.approx(1 / 3, abs=1e-3)
    assert found.repeated == pytest.approx(1 / 22, abs=1e-3)


def test_a_slow_change_is_no_stillness(tmp_path: Path) -> None:
    def draw(number: int) -> Gray:
        return np.full((180, 320), 40 + number, np.uint8)

    found = measure(filmed(tmp_path / "fade.mp4", draw, 90))
    assert found.frozen == 0
    assert found.cuts == 0


# Looks


def test_a_blurred_video_is_less_sharp_at_any_size(tmp_path: Path) -> None:
    surface = texture(11, (700, 360), grain=0.8)

    def sharpness(blur: float, factor: int) -> float:
        soft = cv2.GaussianBlur(surface, (0, 0), blur) if blur else surface
        scaled = cv2.resize(soft, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        size = (640 * factor, 360 * factor)
        path = tmp_path / f"{blur}-{factor}.mp4"
        draw = lambda n: window(scaled, n * factor, size=size)  # noqa: E731
        return measure(filmed(path, draw, 5, size=size)).sharpness

    found = [sharpness(blur, 1) for blur in (0, 1, 2, 4)]
    assert all(one > 2 * other for one, other in pairwise(found)), found
    assert sharpness(0, 2) == pytest.approx(found[0], rel=0.3)
    assert sharpness(2, 2) == pytest.approx(found[2], rel=0.3)


@pytest.mark.parametrize(("rows", "columns"), [(24, 0), (0, 40), (30, 20), (0, 0)])
def test_black_bars_are_the_border(rows: int, columns: int, tmp_path: Path) -> None:
    surface = texture(12)

    def draw(number: int) -> Gray:
        boxed = np.zeros((180, 320), np.uint8)
        inner = window(surface, 2 * number)
        boxed[rows : 180 - rows, columns : 320 - columns] = inner[
            rows : 180 - rows, columns : 320 - columns
        ]
        return boxed if number % 10 else np.zeros_like(boxed)

    found = measure(filmed(tmp_path / "a.mp4", draw, 30))
    inside = (180 - 2 * rows) * (320 - 2 * columns) / (180 * 320)
    assert found.border == pytest.approx(1 - inside, abs=0.02)


def test_a_black_video_is_all_border(tmp_path: Path) -> None:
    path = filmed(tmp_path / "a.mp4", lambda n: np.zeros((180, 320), np.uint8), 30)
    found = measure(path)
    assert (found.border, found.black, found.frozen, found.static) == (1, 1, 1, 1)
    assert (found.motion, found.sharpness) == (0, 0)


# Real clips


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips beside the repository")
def test_real_clips_are_what_they_look_like() -> None:
    found: dict[str, Motion] = {}
    for name in ("bikes.mp4", "vtest.avi", "cup.mp4", "bt709_full_range.mp4"):
        found[name] = measure(REAL / name)
    fixed = found["vtest.avi"]
    assert fixed.static is not None
    assert fixed.static > 0.7, "a camera that stands still above people who walk"
    assert fixed.cuts == 0
    assert found["bikes.mp4"].cuts > 2, "scenes of a race"
    motions = {name: one.motion or 0 for name, one in found.items()}
    assert motions["bikes.mp4"] > 5 * motions["vtest.avi"]
    assert motions["bt709_full_range.mp4"] > 5 * motions["vtest.avi"]
    for one in found.values():
        assert one.black == 0
        assert 0.2 < one.luma < 0.8
        assert 0 <= one.overexposed < 0.2


def test_numbers_do_not_depend_on_the_instructions_of_the_cpu(tmp_path: Path) -> None:
    path = panned(tmp_path / "a.mp4", 2.6, fps=25, options={"crf": "23"})
    code = "import sys; from reelmill.media.motion import measure; print(measure(sys.argv[1]))"
    few = {"OPENCV_CPU_DISABLE": "AVX512_SKX,AVX2,AVX,FP16,SSE4.2,SSE4.1,POPCNT,SSSE3"}
    few["NPY_DISABLE_CPU_FEATURES"] = " ".join(DISPATCHED)
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    run = functools.partial(subprocess.run, command, capture_output=True, text=True, check=True)
    assert run(env={**os.environ, **few}).stdout.strip() == repr(measure(path))


# The stage


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def made(bench: Bench, shard: Shard, **params: Any) -> Shard:
    shard = bench.make("motion", shard, **params)
    assert list(verify_shard(bench.store, shard)) == []
    return shard


def test_the_tar_is_taken_over_and_columns_are_added(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"), sample("uneven.mkv"))
    shard = made(bench, videos)
    assert shard.tar == videos.tar
    before, after = (ShardReader(bench.store, one).table for one in (videos, shard))
    assert after.column_names == [*before.column_names, *MOTION_COLUMNS.names]
    assert after.select(before.column_names).to_pylist() == before.to_pylist()
    samples = bench.samples(shard)
    for key, one in bench.samples(videos).items():
        assert samples[key].fields == one.fields
        expected = vars(measure(next(v for n, v in one.fields.items() if n in ("mp4", "mkv"))))
        assert {name: samples[key].columns[name] for name in expected} == expected


def test_what_an_earlier_look_found_is_replaced_and_others_columns_are_kept(bench: Bench) -> None:
    path = sample("silent.mp4")
    table = bench.rows(f"url,motion,luma\nfile://{path},much,7\n")
    videos = bench.make("download", table, allow_files=True)
    once = made(bench, videos, rate="2")
    again = made(bench, once, rate="8")
    names = ShardReader(bench.store, once).table.column_names
    assert ShardReader(bench.store, again).table.column_names == names
    (one,), (two,) = bench.samples(once).values(), bench.samples(again).values()
    assert one.columns["table_motion"] == two.columns["table_motion"] == "much"
    assert one.columns["table_luma"] == two.columns["table_luma"] == 7
    assert one.columns["motion"] == measure(path, Fraction(2)).motion
    assert two.columns["motion"] == measure(path, Fraction(8)).motion
    assert one.columns["motion"] != two.columns["motion"]


def test_what_cannot_be_measured_is_a_reject_and_the_others_are_copied(bench: Bench) -> None:
    path = sample("silent.mp4")
    writer = ShardWriter(bench.store.backend.scratch(), pa.schema([pa.field("url", pa.string())]))
    for number, data in enumerate((path.read_bytes(), b"no video", path.read_bytes())):
        writer.add(f"00000000{number}", {"mp4": data, "txt": b"hello"}, {"url": f"at {number}"})
    videos = put_shard(bench.store, writer.close()).shard("00000")
    shard = made(bench, videos)
    assert bench.rejects(shard) == {"000000001": "not_video"}
    samples = bench.samples(shard)
    assert set(samples) == {"000000000", "000000002"}
    for key, one in samples.items():
        assert one.fields == bench.samples(videos)[key].fields
        assert one.columns["url"] == f"at {int(key)}"
        assert one.columns["static"] == measure(path).static
    (reject,) = ShardReader(bench.store, shard).rows("rejected")
    assert reject["url"] == "at 1"


def test_samples_without_a_video_are_rejects(bench: Bench) -> None:
    clips = bench.make("frames", bench.videos(sample("silent.mp4")), max_samples=2)
    shard = made(bench, clips)
    assert set(bench.rejects(shard).values()) == {"no_video"}
    assert (shard.samples, shard.tar) == (0, None)


def test_progress_is_told_of_every_sample(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"), sample("uneven.mkv"))
    told: list[tuple[int, int]] = []
    order = bench.order("motion", videos)
    execute(order.model_dump_json(), lambda _, done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("rate", ["0", "11", "-1"])
def test_rates_beyond_what_pairs_allow_are_refused(rate: str) -> None:
    with pytest.raises(ValidationError):
        MotionParams.model_validate({"rate": rate})
