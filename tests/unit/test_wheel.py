from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest

from reelmill.report.wheel import flow_picture


def one(u: float, v: float, max_px: float | None = 1.0) -> list[int]:
    return flow_picture(np.full((1, 1, 2), (u, v), np.float32), max_px)[0, 0].tolist()


def colorcode(fx: float, fy: float) -> list[int]:
    """A transcription of the benchmark's colorcode.cpp."""
    arcs = (
        (15, lambda k: (255, k, 0)),
        (6, lambda k: (255 - k, 255, 0)),
        (4, lambda k: (0, 255, k)),
        (11, lambda k: (0, 255 - k, 255)),
        (13, lambda k: (k, 0, 255)),
        (6, lambda k: (255, 0, 255 - k)),
    )
    wheel = [colour(255 * i // n) for n, colour in arcs for i in range(n)]
    radius = math.hypot(fx, fy)
    place = (math.atan2(-fy, -fx) / math.pi + 1) / 2 * (len(wheel) - 1)
    low = int(place)
    share = place - low
    pixel = []
    for channel in range(3):
        a, b = wheel[low][channel] / 255, wheel[(low + 1) % len(wheel)][channel] / 255
        colour = (1 - share) * a + share * b
        colour = 1 - radius * (1 - colour) if radius <= 1 else 0.75 * colour
        pixel.append(int(255 * colour))
    return pixel


def test_the_benchmark_s_own_colours() -> None:
    field = np.random.default_rng(0).normal(0, 0.6, (30, 40, 2)).astype(np.float32)
    picture = flow_picture(field, max_px=1.0)
    assert (picture.shape, picture.dtype) == ((30, 40, 3), np.uint8)
    for y in range(30):
        for x in range(40):
            expected = colorcode(*map(float, field[y, x]))
            assert np.abs(picture[y, x].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("u", "v", "hue"), [(1, 0, 0), (0, 1, 54), (-1, 0, 191), (0, -1, 261)])
def test_hues_of_the_wheel(u: float, v: float, hue: float) -> None:
    red, green, blue = (value / 255 for value in one(u, v))
    found, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
    assert 360 * found == pytest.approx(hue, abs=2)
    assert saturation == pytest.approx(1, abs=0.01)


def test_speed() -> None:
    assert one(0, 0) == [255, 255, 255]
    assert one(0.5, 0) == [255, 127, 127]
    assert one(1, 0) == [255, 0, 0]
    assert one(2, 0) == [191, 0, 0]


def test_the_largest_speed_is_robust() -> None:
    field = np.zeros((50, 50, 2), np.float32)
    field[:, 25:, 0] = 8
    calm = flow_picture(field)
    field[0, 0] = 4000
    wild = flow_picture(field)
    assert calm[9, 40].tolist() == [255, 0, 0]
    assert (calm[1:] == wild[1:]).all()
    assert one(0.1, 0, None) == [255, 229, 229]


def test_unknown_flow_is_black() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        assert one(bad, 0) == [0, 0, 0]
    field = np.zeros((4, 4, 2), np.float32)
    field[0, 0, 1] = np.nan
    picture = flow_picture(field)
    assert not picture[0, 0].any()
    assert (picture.reshape(-1, 3)[1:] == 255).all()
