"""Which frames are decoded for those that are asked for, and where they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.loading.readers.plan import asked, planned

FRAMES = st.integers(1, 50)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[int], int]:
    frames = draw(FRAMES)
    return draw(st.lists(st.integers(-frames, frames - 1), max_size=60)), frames


@given(questions())
def test_each_frame_is_decoded_once_and_goes_to_all_its_places(
    question: tuple[list[int], int],
) -> None:
    indices, frames = question
    plan = planned(indices, frames)
    assert plan.numbers == sorted(set(plan.numbers))
    put: dict[int, int] = {}
    for number, places in zip(plan.numbers, plan.places, strict=True):
        assert places
        for place in places:
            assert place not in put
            put[place] = number
    assert [put[place] for place in range(plan.count)] == [range(frames)[i] for i in indices]


@given(questions())
def test_a_plan_is_plain_if_what_is_decoded_is_what_was_asked(
    question: tuple[list[int], int],
) -> None:
    indices, frames = question
    plan = planned(indices, frames)
    assert plan.is_plain == (plan.numbers == [range(frames)[i] for i in indices])


ENDS = st.none() | st.integers(-70, 70)


@given(FRAMES, ENDS, ENDS, st.none() | st.integers(-9, 9).filter(bool))
def test_slices_are_those_of_a_list(
    frames: int, start: int | None, stop: int | None, step: int | None
) -> None:
    which = slice(start, stop, step)
    assert asked(which, frames) == list(range(frames))[which]


@pytest.mark.parametrize(
    "indices",
    [[3, -1, 0], (3, 9, 0), np.array([3, -1, 0]), np.array([3, 9, 0], np.uint8), iter([3, -1, 0])],
)
def test_any_sequence_of_whole_numbers_will_do(indices: Any) -> None:
    assert asked(indices, 10) == [3, 9, 0]


def test_tensors_and_ranges_will_do() -> None:
    torch = pytest.importorskip("torch")
    assert asked(torch.tensor([3, -1, 0]), 10) == [3, 9, 0]
    assert asked([torch.tensor(3), np.int64(-1)], 10) == [3, 9]
    assert asked(range(8, 2, -3), 10) == [8, 5]


@pytest.mark.parametrize("index", [10, -11, 1 << 80])
def test_a_frame_that_is_not_there_is_named(index: int) -> None:
    with pytest.raises(IndexError, match=f"no frame {index}: the video has 10, from 0 to 9"):
        planned([0, index], 10)


@pytest.mark.parametrize(
    "indices", [[True], [1.0], ["1"], 5, None, [[0, 1]], np.array([0.5]), np.array([True, False])]
)
def test_what_is_no_whole_number_is_refused(indices: Any) -> None:
    with pytest.raises(TypeError):
        planned(indices, 10)
