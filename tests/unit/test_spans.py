"""Spans of time: fixed, given, and bounded in length."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st

from reelmill.media.spans import Pick, Remainder, Span, bound, few, fixed, given, seconds, windows

F = Fraction

times = st.fractions(min_value=-20, max_value=60, max_denominator=1000)
lengths = st.fractions(min_value=F(1, 2), max_value=30, max_denominator=1000)


def _spans(*edges: float) -> list[Span]:
    return [(F(a), F(b)) for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, F(1, 10)),
        (3, F(3)),
        (F(1, 3), F(1, 3)),
        ("12.5", F(25, 2)),
        ("1:02.5", F(125, 2)),
        ("01:00:00.001", F(3600001, 1000)),
    ],
)
def test_seconds_are_exact_as_written(value: float | str, expected: Fraction) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["", "x", "1:2:3:4", "-1:30", "1/0", "1e999", float("nan")])
def test_seconds_refuse_what_is_no_time(value: float | str) -> None:
    with pytest.raises(ValueError):
        seconds(value)


def test_seconds_take_numpy_floats() -> None:
    np = pytest.importorskip("numpy")
    assert seconds(np.float64(0.1)) == F(1, 10)


def test_fixed_covers_and_keeps_the_remainder() -> None:
    assert fixed(F(1), F(8), F(3)) == _spans(1, 4, 7, 8)
    assert fixed(F(0), F(6), F(3)) == _spans(0, 3, 6)
    assert fixed(F(0), F(0), F(3)) == []


def test_fixed_with_a_stride_repeats_no_tail() -> None:
    assert fixed(F(0), F(9), F(4), stride=F(2)) == [(0, 4), (2, 6), (4, 8), (6, 9)]
    assert fixed(F(0), F(10), F(4), stride=F(2)) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert fixed(F(0), F(10), F(2), stride=F(5)) == [(0, 2), (5, 7)]


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (1, 0), (-1, None)])
def test_fixed_refuses_what_never_ends(length: int, stride: int | None) -> None:
    with pytest.raises(ValueError, match="positive"):
        fixed(F(0), F(1), F(length), stride=None if stride is None else F(stride))


@holds_for(times, times, lengths)
def test_fixed_tiles_the_whole(start: Fraction, end: Fraction, length: Fraction) -> None:
    spans = fixed(start, end, length)
    if start >= end:
        assert spans == []
        return
    assert (spans[0][0], spans[-1][1]) == (start, end)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(b - a == length for a, b in spans[:-1])
    assert 0 < spans[-1][1] - spans[-1][0] <= length


@holds_for(times, lengths, lengths, lengths)
def test_strided_windows_stay_inside_and_none_is_part_of_another(
    start: Fraction, whole: Fraction, length: Fraction, stride: Fraction
) -> None:
    end = start + whole
    spans = fixed(start, end, length, stride=stride)
    assert [a for a, _ in spans] == [start + stride * i for i in range(len(spans))]
    assert all(start <= a < b <= end for a, b in spans)
    assert all(a[1] < b[1] for a, b in pairwise(spans))
    assert spans[-1][1] == end or spans[-1][0] + stride >= end


@pytest.mark.parametrize(
    ("remainder", "expected"),
    [("keep", [0, 3, 6, 8]), ("drop", [0, 3, 6]), ("merge", [0, 3, 8])],
)
def test_remainders(remainder: Remainder, expected: list[float]) -> None:
    assert fixed(F(0), F(8), F(3), remainder=remainder) == _spans(*expected)
    assert fixed(F(0), F(6), F(3), remainder=remainder) == _spans(0, 3, 6)
    alone = [] if remainder == "drop" else [(0, 2)]
    assert fixed(F(0), F(2), F(3), remainder=remainder) == alone
    assert fixed(F(0), F(0), F(3), remainder=remainder) == []


def test_a_remainder_behind_a_gap_is_not_merged() -> None:
    with pytest.raises(ValueError, match="gap"):
        fixed(F(0), F(9), F(2), stride=F(3), remainder="merge")


@holds_for(times, lengths, lengths, lengths, st.sampled_from(["keep", "drop", "merge"]))
def test_remainders_change_the_end_alone(
    start: Fraction, whole: Fraction, length: Fraction, share: Fraction, remainder: Remainder
) -> None:
    end, stride = start + whole, min(length, share)
    kept = fixed(start, end, length, stride=stride)
    made = fixed(start, end, length, stride=stride, remainder=remainder)
    full = [(a, b) for a, b in kept if b - a == length]
    assert [a for a, _ in made] == [a for a, _ in kept][: len(made)]
    if remainder == "drop":
        assert made == full
    else:
        assert (made[0][0], made[-1][1]) == (start, end)
    if remainder == "merge" and full:
        assert made[:-1] == full[:-1]
        assert length <= made[-1][1] - made[-1][0] < length + stride


@holds_for(st.lists(times, max_size=6, unique=True), lengths, lengths)
def test_windows_of_scenes_never_hold_a_cut(
    edges: list[Fraction], length: Fraction, stride: Fraction
) -> None:
    scenes = list(pairwise(sorted(edges)))
    made = windows(scenes, length, stride=stride)
    assert all(any(s <= a < b <= e for s, e in scenes) for a, b in made)
    assert {s for s, _ in scenes} <= {a for a, _ in made}
    assert all(b - a <= length for a, b in made)


@pytest.mark.parametrize(
    ("count", "most", "pick", "expected"),
    [
        (10, None, "first", range(10)),
        (10, 3, "first", [0, 1, 2]),
        (10, 3, "spread", [1, 5, 8]),
        (10, 1, "spread", [5]),
        (3, 3, "spread", range(3)),
        (2, 3, "spread", range(2)),
    ],
)
def test_few(count: int, most: int | None, pick: Pick, expected: list[int]) -> None:
    spans = _spans(*range(count + 1))
    assert few(spans, most, pick) == [spans[i] for i in expected]


@holds_for(st.integers(1, 200), st.integers(1, 200))
def test_spread_clips_are_in_order_and_as_far_apart_as_may_be(count: int, most: int) -> None:
    places = [int(a) for a, _ in few(_spans(*range(count + 1)), most, "spread")]
    assert len(places) == min(count, most)
    steps = {b - a for a, b in pairwise(places)}
    assert steps <= {count // len(places), count // len(places) + 1} - {0}


def test_given_clips_and_leaves_out() -> None:
    wished = [(0.1, 2), ("0:09", "0:30"), (-5, 1), (20, 30), (3, 3)]
    assert given(wished, F(0), F(10)) == [(F(1, 10), 2), (9, 10), (0, 1)]


def test_given_refuses_a_span_that_runs_backwards() -> None:
    with pytest.raises(ValueError, match="ends before it begins"):
        given([(2, 1)], F(0), F(10))


def test_bound_drops_and_divides() -> None:
    assert bound(_spans(0, 1, 4, 14), F(2), F(5)) == [(1, 4), (4, 9), (9, 14)]
    assert bound(_spans(0, 11), F(2), F(5)) == [(0, F(11, 3)), (F(11, 3), F(22, 3)), (F(22, 3), 11)]
    assert bound(_spans(0, 11), F(2)) == [(0, 11)]


def test_bound_keeps_what_fits_where_equal_parts_would_be_too_short() -> None:
    assert bound(_spans(0, 7), F(5), F(6)) == [(0, 6)]
    assert bound(_spans(0, 13), F(5), F(6)) == [(0, 6), (6, 12)]


@pytest.mark.parametrize(("least", "most"), [(3, 2), (0, 0)])
def test_bound_refuses_bounds_that_nothing_meets(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="longest"):
        bound([], F(least), F(most))


@holds_for(st.lists(times, max_size=6, unique=True), lengths, lengths)
def test_bounded_spans_are_in_bounds_in_order_and_disjoint(
    edges: list[Fraction], one: Fraction, other: Fraction
) -> None:
    least, most = sorted((one, other))
    spans = list(pairwise(sorted(edges)))
    made = bound(spans, least, most)
    assert all(least <= b - a <= most for a, b in made)
    assert all(a[1] <= b[0] for a, b in pairwise(made))
    assert all(a >= edge or b <= edge for a, b in made for edge in edges)
    covered = sum((b - a for a, b in made), F(0))
    if most >= 2 * least:
        assert covered == sum((e - s for s, e in spans if e - s >= least), F(0))
