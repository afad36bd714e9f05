from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reelmill.report.timeline import MAX_PICTURES, Curve, Scene, shown, timeline

CUT = (247, 169, 59)


def _curve(frames: int = 500, height: float = 40) -> Curve:
    values = np.zeros(frames)
    values[frames // 2] = height
    return Curve("content", np.arange(frames) / 25, values, 27.0)


def _scene(start: float, end: float, *colour: int) -> Scene:
    return Scene(start, end, "a line", np.full((90, 160, 3), colour, np.uint8))


def _opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_cuts_lie_at_their_times_and_pictures_below() -> None:
    scenes = [_scene(0, 5, 250, 0, 0), _scene(5, 20, 0, 250, 0)]
    page = _opened(timeline([_curve()], scenes, title="one cut"))
    rows, columns = np.nonzero((page[:400] == CUT).all(axis=2))
    left, right = 44 + 72, 1600 - 44 - 22
    assert np.median(columns) == pytest.approx(left + (right - left) / 4, abs=2)
    reds = np.argwhere((page == (250, 0, 0)).all(axis=2))
    greens = np.argwhere((page == (0, 250, 0)).all(axis=2))
    assert reds[:, 0].min() > rows.max()
    assert reds[:, 1].max() < greens[:, 1].min()


def test_equal_input_gives_equal_bytes_at_any_width() -> None:
    scenes = [_scene(i, i + 1, 9, 9, 200) for i in range(20)]
    for width in (400, 1600):
        first, second = (
            timeline([_curve(), _curve()], scenes, title="t", width=width) for _ in "12"
        )
        assert first == second
        assert _opened(first).shape[1] == width


def test_a_threshold_of_nothing_and_a_video_of_one_frame_are_drawn() -> None:
    flat = Curve("threshold", np.zeros(1), np.zeros(1), 0.0)
    page = _opened(timeline([flat], [_scene(0, 0.04, 1, 2, 3)], title="one frame"))
    assert page.shape[1] == 1600


def test_of_many_scenes_some_get_a_picture() -> None:
    assert shown(3) == {0, 1, 2}
    many = shown(1000)
    assert len(many) == MAX_PICTURES
    assert {0, 999} <= many
