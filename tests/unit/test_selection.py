"""Which frames of a clip are chosen, by the pure planner: against the plain definitions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reelmill.tasks.selection import Chosen, Places, SelectionParams, choose

cuts = st.sets(st.integers(1, 59), max_size=5).map(sorted)


def chosen(places: Places, key: str = "clip", **params: Any) -> Chosen:
    def place_at(seconds: Fraction) -> int | None:
        """Ten frames a second."""
        return int(seconds * 10) if seconds * 10 < places.count else None

    return choose(SelectionParams(count=1, **params), places, key, place_at)


def fits(places: Places, start: int) -> bool:
    last = start + places.reach
    return start >= 0 and last < places.count and not any(start < c <= last for c in places.cuts)


@given(st.integers(1, 60), st.integers(0, 12), cuts)
def test_samples_begin_wherever_they_fit(count: int, reach: int, cuts: list[int]) -> None:
    places = Places(count, reach, [cut for cut in cuts if cut < count])
    valid = [start for start in range(count) if fits(places, start)]
    assert [start for scene in places.ranges for start in scene] == valid
    assert [start for start in range(-5, count + 5) if places.missing(start) is None] == valid
    assert list(chosen(places, step=1).starts) == valid
    assert list(chosen(places, step=7).starts) == [start for start in valid if start % 7 == 0]
    assert list(chosen(places, step=1, max_samples=3).starts) == valid[:3]


@given(st.integers(1, 60), st.integers(0, 12), cuts, st.lists(st.integers(-70, 70), min_size=1))
def test_each_index_is_a_sample_or_says_why_not(
    count: int, reach: int, cuts: list[int], indices: list[int]
) -> None:
    places = Places(count, reach, [cut for cut in cuts if cut < count])
    found = chosen(places, indices=indices)
    meant = {index: index if index >= 0 else count + index for index in indices}
    assert list(found.starts) == sorted({n for n in meant.values() if fits(places, n)})
    assert [missed.message.partition(":")[0] for missed in found.missed] == [
        f"index {index}" for index, n in sorted(meant.items()) if not fits(places, n)
    ]
    assert found == chosen(places, indices=indices[::-1] + indices)


@given(st.integers(1, 60), st.integers(0, 12), cuts)
def test_each_scene_has_one_sample_or_is_too_short(count: int, reach: int, cuts: list[int]) -> None:
    places = Places(count, reach, [cut for cut in cuts if cut < count])
    scenes = [range(a, b) for a, b in zip([0, *places.cuts], [*places.cuts, count], strict=True)]
    long = [scene for scene in scenes if len(scene) > reach]
    for where in ("first", "middle"):
        found = chosen(places, per_scene=where)
        assert len(found.missed) == len(scenes) - len(long)
        for scene, start in zip(long, found.starts, strict=True):
            before, behind = start - scene[0], scene[-1] - (start + reach)
            assert before == 0 if where == "first" else 0 <= behind - before <= 1


@given(st.integers(1, 60), st.integers(0, 12), cuts, st.integers(1, 70), st.text("abc", min_size=1))
def test_draws_are_without_repetition_and_only_of_what_fits(
    count: int, reach: int, cuts: list[int], wished: int, key: str
) -> None:
    places = Places(count, reach, [cut for cut in cuts if cut < count])
    valid = {start for start in range(count) if fits(places, start)}
    drawn = chosen(places, key, random=wished).starts
    assert list(drawn) == sorted(set(drawn))
    assert set(drawn) <= valid
    assert len(drawn) == min(wished, len(valid))
    assert chosen(places, key, random=wished).starts == drawn


def test_draws_are_fair() -> None:
    places, clips = Places(12, 1, (5,)), 3000
    drawn = [tuple(chosen(places, f"clip{n}", random=3).starts) for n in range(clips)]
    # Ten places at which a sample may begin, so 120 sets of three.
    sets = Counter(drawn)
    assert len(sets) == 120
    expected = clips / 120
    # Chi-squared with 119 degrees of freedom: above 184 in one of 10,000 cases.
    assert sum((seen - expected) ** 2 / expected for seen in sets.values()) < 184
    other = [tuple(chosen(places, f"clip{n}", random=3, seed=1).starts) for n in range(clips)]
    assert sum(a == b for a, b in zip(drawn, other, strict=True)) < 60


@given(st.lists(st.integers(0, 100), min_size=1))
def test_times_are_places_or_behind_the_end(tenths: list[int]) -> None:
    found = chosen(Places(60, 0), times=[f"{n / 10:.1f}" for n in tenths])
    assert list(found.starts) == sorted({n for n in tenths if n < 60})
    assert len(found.missed) == len({n for n in tenths if n >= 60})
