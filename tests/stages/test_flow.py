from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from reelmill.errors import Rejected
from reelmill.media.flow import (
    MIN_SIDE,
    FlowMethod,
    flow,
    mean_motion,
    occluded,
    rescaled,
    rescaled_mask,
)

METHODS = list(FlowMethod)


def plane(height: int = 180, width: int = 240) -> np.ndarray:
    """A smooth texture with detail everywhere."""
    rng = np.random.default_rng(7)
    fine = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), 2)
    coarse = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), 8)
    mixed = fine / fine.std() + 2 * coarse / coarse.std()
    return cv2.normalize(mixed, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = picture.shape[1::-1]
    return cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("u", "v"), [(4, 0), (0, 4), (-3, 0), (2.5, -3.5)])
def test_translation(method: FlowMethod, u: float, v: float) -> None:
    prev = plane()
    field = flow(prev, moved(prev, np.array([[1.0, 0, u], [0, 1, v]])), method)
    assert (field.shape, field.dtype) == ((180, 240, 2), np.float32)
    middle = field[30:-30, 30:-30].reshape(-1, 2)
    assert np.median(middle, axis=0) == pytest.approx([u, v], abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_rotation(method: FlowMethod) -> None:
    prev = plane(200, 200)
    angle = math.radians(3)
    # Clockwise on the screen, where y points down, about the middle.
    c, s, middle = math.cos(angle), math.sin(angle), 99.5
    turn = np.array([[c, -s, middle - middle * (c - s)], [s, c, middle - middle * (c + s)]])
    field = flow(prev, moved(prev, turn), method)
    x, y = np.meshgrid(np.arange(200) - middle, np.arange(200) - middle)
    expected = np.stack([(c - 1) * x - s * y, s * x + (c - 1) * y], axis=-1)
    error = np.linalg.norm(field - expected, axis=-1)[25:-25, 25:-25]
    assert np.median(error) < 0.4
    assert field[100, 170, 1] > 2
    assert field[170, 100, 0] < -2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zoom", [1.03, 0.97])
def test_zoom(method: FlowMethod, zoom: float) -> None:
    prev = plane(200, 200)
    middle = 99.5 * (1 - zoom)
    field = flow(prev, moved(prev, np.array([[zoom, 0, middle], [0, zoom, middle]])), method)
    x, y = np.meshgrid(np.arange(200) - 99.5, np.arange(200) - 99.5)
    expected = (zoom - 1) * np.stack([x, y], axis=-1)
    assert np.median(np.linalg.norm(field - expected, axis=-1)[25:-25, 25:-25]) < 0.3
    assert np.sign(field[100, 170, 0]) == np.sign(field[170, 100, 1]) == np.sign(zoom - 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_way_back_is_the_other_way(method: FlowMethod) -> None:
    prev = plane()
    following = moved(prev, np.array([[1.0, 0, 3], [0, 1, -2]]))
    there, back = flow(prev, following, method), flow(following, prev, method)
    middle = slice(30, -30), slice(30, -30)
    assert np.median(there[middle].reshape(-1, 2), axis=0) == pytest.approx([3, -2], abs=0.15)
    assert np.median(back[middle].reshape(-1, 2), axis=0) == pytest.approx([-3, 2], abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_the_definition_holds(method: FlowMethod) -> None:
    prev = plane()
    following = moved(prev, np.array([[1.01, 0.02, 1], [-0.02, 1.01, 2]]))
    field = flow(prev, following, method)
    x, y = np.meshgrid(np.arange(240, dtype=np.float32), np.arange(180, dtype=np.float32))
    back = cv2.remap(following, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR)
    inside = slice(20, -20), slice(20, -20)
    still = np.abs(following[inside].astype(int) - prev[inside]).mean()
    assert np.abs(back[inside].astype(int) - prev[inside]).mean() < still / 4


@pytest.mark.parametrize("method", METHODS)
def test_flow_does_not_depend_on_what_was_seen_before(method: FlowMethod) -> None:
    prev, following = plane(), moved(plane(), np.array([[1.0, 0, 2], [0, 1, 0]]))
    before = flow(prev, following, method)
    small = plane(40, 60)
    flow(small, np.roll(small, 1, axis=1), method)
    assert (flow(prev, following, method) == before).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 90), (90, 32), (33, 300), (400, 32)])
def test_small_pictures(method: FlowMethod, height: int, width: int) -> None:
    picture = plane(height, width)
    field = flow(picture, picture.copy(), method)
    assert field.shape == (height, width, 2)
    assert np.abs(field).max() < 0.5


@pytest.mark.parametrize(("height", "width"), [(31, 300), (300, 31), (1, 1), (16, 16)])
def test_too_small_pictures_are_rejected(height: int, width: int) -> None:
    assert min(height, width) < MIN_SIDE
    picture = np.zeros((height, width), np.uint8)
    with pytest.raises(Rejected) as caught:
        flow(picture, picture)
    assert caught.value.reason == "too_small"


def test_pictures_of_two_shapes() -> None:
    with pytest.raises(ValueError, match="shapes"):
        flow(np.zeros((40, 40), np.uint8), np.zeros((40, 41), np.uint8))


def test_bits_do_not_depend_on_the_cpu() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from reelmill.media.flow import FlowMethod, flow\n"
        "rng = np.random.default_rng(0)\n"
        "a = rng.integers(0, 255, (30, 40), dtype=np.uint8).repeat(5, axis=0).repeat(5, axis=1)\n"
        "b = np.roll(a, (2, 3), axis=(0, 1))\n"
        "for method in FlowMethod: print(hashlib.sha256(flow(a, b, method)).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | setting,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout
        for setting in ({}, {"OPENCV_IPP": "disabled", "OPENCV_CPU_DISABLE": "AVX2,AVX,FP16"})
    }
    assert len(results) == 1


def still(height: int = 60, width: int = 80) -> np.ndarray:
    return np.zeros((height, width, 2), np.float32)


def test_what_is_covered_and_what_leaves_is_occluded() -> None:
    """A square of 20 x 20 at (20, 20) goes 10 to the right over a ground that stands still."""
    there, back = still(), still()
    there[20:40, 20:40, 0], back[20:40, 30:50, 0] = 10, -10
    covered = np.zeros((60, 80), bool)
    covered[20:40, 40:50] = True
    assert (occluded(there, back) == covered).all()
    uncovered = np.zeros((60, 80), bool)
    uncovered[20:40, 20:30] = True
    assert (occluded(back, there) == uncovered).all()
    out = still()
    out[..., 1] = 5
    assert (occluded(out, -out) == (np.arange(60)[:, None] > 54)).all()


def test_there_and_back_may_miss_by_what_is_published() -> None:
    """|w + w'|^2 < 0.01 (|w|^2 + |w'|^2) + 0.5: w = (20, 0) may come back to -3.139 to 2.735."""
    there = still()
    there[..., 0] = 20
    for missing, is_occluded in ((2.72, False), (2.75, True), (-3.12, False), (-3.15, True)):
        back = still()
        back[..., 0] = missing - 20
        assert (occluded(there, back)[:, :40] == is_occluded).all(), missing


def test_what_is_not_finite_is_occluded() -> None:
    there = still()
    there[3, 4], there[5, 6, 1] = np.nan, np.inf
    expected = np.zeros((60, 80), bool)
    expected[3, 4] = expected[5, 6] = True
    assert (occluded(there, still()) == expected).all()
    assert mean_motion(np.full((2, 2, 2), np.nan, np.float32)) == (0, 0)


def test_occlusions_of_estimated_flow_lie_where_something_was_covered() -> None:
    ground, square = plane(120, 160), plane(40, 40).T[::-1]
    prev, following = ground.copy(), ground.copy()
    prev[40:80, 40:80], following[40:80, 52:92] = square, square
    there, back = flow(prev, following), flow(following, prev)
    mask = occluded(there, back)
    assert mask[44:76, 82:90].mean() > 0.5
    assert mask[:30].mean() < 0.02
    assert mask[90:].mean() < 0.02


def test_vectors_shrink_and_grow_with_their_field() -> None:
    y, x = np.mgrid[0:60, 0:80].astype(np.float32)
    flow_field = np.stack([x - 40, 2 * y], axis=-1)
    smaller = rescaled(flow_field, 40, 20)
    assert smaller.shape == (20, 40, 2)
    assert smaller[10, 20] == pytest.approx([(40.5 - 40) / 2, 2 * 31 / 3], abs=1e-4)
    larger = rescaled(flow_field, 160, 60)
    assert larger[30, 80] == pytest.approx([2 * (39.75 - 40), 60], abs=1e-4)
    assert rescaled(flow_field, 80, 60) is flow_field


def test_a_mask_at_another_size() -> None:
    mask = np.zeros((6, 9), bool)
    mask[2:4, 3:6] = True
    assert rescaled_mask(mask, 3, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert (rescaled_mask(mask, 18, 12) == mask.repeat(2, 0).repeat(2, 1)).all()


def test_motion_is_that_of_every_fourth_row() -> None:
    field = still()
    field[:30] = (3, -4)
    field[0, 0], field[1, 0] = (600, 800), (6000, 8000)
    mean, longest = mean_motion(field)
    assert longest == 1000
    assert mean == pytest.approx((8 * 80 * 5 - 5 + 1000) / (15 * 80), abs=1e-6)


def test_flow_is_the_same_on_every_thread() -> None:
    """A switch of OpenCV's is each thread's own."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (24, 32), dtype=np.uint8)
    first = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    second = np.roll(first, (2, 3), (0, 1))
    expected = flow(first, second)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(flow, first, second).result()
    assert found.tobytes() == expected.tobytes()
