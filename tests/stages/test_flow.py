from __future__ import annotations

import math
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from reelmill.errors import Rejected
from reelmill.media.flow import MIN_SIDE, FlowMethod, flow

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
