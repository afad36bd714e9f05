"""The pure planner of tuples, against the plain definition of what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill.tasks.contract import key_params
from reelmill.tasks.tuples import NoCuts, TupleParams, gathered

Plan = tuple[int, int, int]  # count, stride, step

plans = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 12)).map(
    lambda plan: (plan[0], plan[1] if plan[0] > 1 else 1, plan[2])
)


def defined(frames: int, plan: Plan, cuts: Sequence[int] = ()) -> list[list[int]]:
    """All tuples of a clip, by their definition."""
    count, stride, step = plan
    made = [[start + i * stride for i in range(count)] for start in range(0, frames, step)]
    return [
        one for one in made if one[-1] < frames and not any(one[0] < cut <= one[-1] for cut in cuts)
    ]


class Late:
    """Tells of each cut some frames behind it."""

    def __init__(self, cuts: Sequence[int], lag: int, end: int) -> None:
        self.cuts, self.lag, self.end = cuts, lag, end

    def see(self, number: int, frame: Any) -> tuple[Sequence[int], int]:
        settled = number - self.lag
        return [settled] if settled in self.cuts else [], settled

    def finish(self) -> Sequence[int]:
        return [cut for cut in self.cuts if cut >= self.end - self.lag]


def params(plan: Plan, **more: Any) -> TupleParams:
    return TupleParams(count=plan[0], stride=plan[1], step=plan[2], **more)


@given(st.integers(0, 60), plans)
def test_tuples_are_all_that_there_are_in_order(frames: int, plan: Plan) -> None:
    made = gathered(range(frames), params(plan).window(), NoCuts(), lambda n, _: n)
    expected = defined(frames, plan)
    assert list(made) == [(one, one) for one in expected]


@given(st.integers(1, 60), plans, st.sets(st.integers(1, 60), max_size=5), st.integers(0, 9))
def test_no_tuple_spans_a_cut_however_late_it_is_known(
    frames: int, plan: Plan, cuts: set[int], lag: int
) -> None:
    there = sorted(cut for cut in cuts if cut < frames)
    window = params(plan).window()
    made = gathered(range(frames), window, Late(there, lag, frames), lambda n, _: n)
    expected = defined(frames, plan, there)
    assert [places for places, _ in made] == expected
    assert window.given == len(expected)


@given(st.integers(1, 60), plans, st.integers(1, 6), st.integers(0, 9))
def test_so_many_at_most_and_no_frame_behind_them_is_asked_for(
    frames: int, plan: Plan, most: int, lag: int
) -> None:
    seen: list[int] = []
    passing = (seen.append(n) or n for n in range(frames))
    window = params(plan, max_samples=most).window()
    made = list(gathered(passing, window, Late((), lag, frames), lambda n, _: n))
    expected = defined(frames, plan)[:most]
    assert [places for places, _ in made] == expected
    if len(expected) == most:
        assert len(seen) <= expected[-1][-1] + lag + 1


@given(st.integers(1, 80), plans)
def test_every_member_is_made_once_and_no_other_frame_is(frames: int, plan: Plan) -> None:
    asked: list[int] = []
    count, stride, step = plan
    list(gathered(range(frames), params(plan).window(), NoCuts(), lambda n, _: asked.append(n)))
    starts = range(0, frames, step)
    assert asked == sorted(
        {s + i * stride for s in starts for i in range(count)} & set(range(frames))
    )


@given(st.integers(1, 300), plans)
def test_no_more_is_held_than_lies_between_a_tuples_first_and_last(frames: int, plan: Plan) -> None:
    window = params(plan).window()
    for number in range(frames):
        if window.wants(number):
            window.put(number, number)
        list(window.take())
        assert len(window._items) <= (plan[0] - 1) * plan[1]


@given(plans, st.sets(st.integers(0, 80), max_size=8))
def test_starts_may_be_given(plan: Plan, starts: set[int]) -> None:
    count, stride, _ = plan
    window = params(plan).window(sorted(starts))
    made = [places for places, _ in gathered(range(90), window, NoCuts(), lambda n, _: n)]
    tuples = [[start + i * stride for i in range(count)] for start in sorted(starts)]
    assert made == [one for one in tuples if one[-1] < 90]


def test_one_meaning_has_one_key() -> None:
    assert key_params(TupleParams(count=3, stride=2)) == key_params(
        TupleParams(count=3, stride=2, step=6)
    )
    assert key_params(TupleParams(count=1)) == key_params(TupleParams(count=1, step=1))
    assert key_params(TupleParams(step=2)) != key_params(TupleParams())
    with pytest.raises(ValidationError, match="stride is for several frames"):
        TupleParams(count=1, stride=2)


@given(
    st.integers(1, 40),
    plans,
    st.lists(st.integers(0, 39), max_size=60).map(sorted),
    st.sets(st.integers(1, 39), max_size=4),
    st.integers(0, 5),
)
def test_some_frames_may_count_alone_or_several_times(
    frames: int, plan: Plan, numbers: list[int], cuts: set[int], lag: int
) -> None:
    numbers = [number for number in numbers if number < frames]
    there = sorted(cut for cut in cuts if cut < frames)
    asked: list[int] = []
    made = gathered(
        range(frames),
        params(plan).window(),
        Late(there, lag, frames),
        lambda n, _: asked.append(n) or n,
        numbers,
    )
    expected = [
        (places, [numbers[place] for place in places])
        for places in defined(len(numbers), plan)
        if not any(numbers[places[0]] < cut <= numbers[places[-1]] for cut in there)
    ]
    assert list(made) == expected
    assert len(asked) == len(set(asked))
