"""Estimates: what they rest on, what is exact, and how unsure they are."""

from __future__ import annotations

from typing import Any

import pytest

from reelmill.tasks import get_stage
from reelmill.tasks.estimate import (
    Evidence,
    Made,
    Time,
    Volume,
    estimate,
    imagined,
    on_workers,
    together,
    volume,
)

MB = 1_000_000


def made(
    megabytes: float, seconds: float, *, samples: int = 10, out: int = 30, rejects: int = 0
) -> Made:
    """A shard of so much data, in which each byte becomes two."""
    taken = Volume(1, samples, megabytes * MB)
    return Made(
        taken, out, rejects, round(2 * megabytes * MB), round(seconds * 1000), 1_795_000_000
    )


def evidence(*shards: Made, alike: bool = True) -> Evidence:
    return Evidence(shards, alike=alike, where="clips@123")


def test_time_and_bytes_go_by_bytes_and_samples_by_samples() -> None:
    past = evidence(made(10, 20), made(30, 60))
    found = estimate(4, Volume(4, 100, 80 * MB), past, conserves=False)
    assert found.samples == 300
    assert not found.exact
    assert found.given == Volume(4, 300, 160 * MB)
    assert found.busy is not None
    assert found.busy.likely == pytest.approx(160)


def test_that_counts_in_which_shards_differ_least() -> None:
    long, short = made(30, 60, samples=10, out=300), made(10, 20, samples=10, out=100)
    clips = Volume(1, 40, 20 * MB)
    assert estimate(1, clips, evidence(long, short), conserves=False).samples == 200
    plain, coded = made(30, 60, samples=10, out=100), made(10, 60, samples=10, out=100)
    found = estimate(1, clips, evidence(plain, coded), conserves=False)
    assert found.samples == 400
    assert found.busy is not None
    assert found.busy.likely == pytest.approx(240)


def test_shards_without_samples_tell_nothing_of_others() -> None:
    empty = Made(Volume(1, 0, 0), 0, 0, 100, 50, 1_795_000_000)
    with_it = estimate(1, Volume(1, 10, MB), evidence(empty, made(1, 1)), conserves=True)
    without = estimate(1, Volume(1, 10, MB), evidence(made(1, 1)), conserves=True)
    assert with_it.busy == without.busy


def test_rows_have_no_bytes_so_that_time_goes_by_their_number() -> None:
    past = evidence(made(0, 5, samples=10), made(0, 15, samples=30))
    found = estimate(1, Volume(1, 100, 0), past, conserves=True)
    assert found.busy is not None
    assert found.busy.likely == pytest.approx(50)


def test_what_keeps_all_samples_is_exact_unless_some_were_rejected() -> None:
    taken = Volume(2, 50, MB)

    def found(past: Evidence | None, known: bool = True) -> tuple[int | None, bool]:
        one = estimate(2, taken, past, conserves=True, known=known)
        return one.samples, one.exact

    assert found(None) == (50, True)
    assert found(evidence(made(1, 1, out=10))) == (50, True)
    assert found(evidence(made(1, 1, out=8, rejects=2))) == (40, False)
    assert found(evidence(made(1, 1, out=10)), known=False) == (50, False)
    assert estimate(2, taken, None, conserves=False).samples is None


def test_nothing_to_make_costs_nothing_and_what_is_unknown_stays_so() -> None:
    none = estimate(0, Volume(), None, conserves=False)
    assert (none.samples, none.busy) == (0, Time(0, 0, 0))
    waiting = estimate(None, None, evidence(made(1, 1)), conserves=True, known=False)
    assert (waiting.samples, waiting.given, waiting.busy) == (None, None, None)


def _spread(past: Evidence, shards: int = 100) -> float:
    busy = estimate(shards, Volume(shards, 1, MB), past, conserves=False).busy
    assert busy is not None
    assert busy.low < busy.likely < busy.high
    return busy.high / busy.low


def test_few_shards_unlike_ones_and_other_parameters_make_for_a_wide_range() -> None:
    equal = [made(1, 10)] * 12
    unlike = [made(1, 5), made(1, 15)] * 6
    assert _spread(evidence(*equal)) < _spread(evidence(*unlike)) < _spread(evidence(made(1, 10)))
    assert _spread(evidence(*equal)) < 1.4
    assert _spread(evidence(*equal, alike=False)) == pytest.approx(9 * _spread(evidence(*equal)))
    rough = estimate(100, Volume(100, 1, MB), evidence(*equal), conserves=False, rough=True)
    assert rough.rough
    assert rough.busy is not None
    assert rough.busy.high / rough.busy.low > 9
    assert _spread(evidence(*unlike), shards=1) > _spread(evidence(*unlike))


@pytest.mark.parametrize(
    ("shards", "workers", "seconds"), [(12, 4, 30), (4, 12, 30), (5, 4, 48), (1, 4, 120)]
)
def test_workers_share_whole_shards(shards: int, workers: int, seconds: float) -> None:
    assert on_workers(Time(60, 120, 240), shards, workers).likely == seconds


def test_datasets_fill_the_workers_together() -> None:
    small, long = Time(5, 10, 20), Time(50, 100, 200)
    assert together([(small, 1), (small, 1)], 4).likely == 10
    assert together([(small, 8), (long, 8)], 4).likely == pytest.approx(27.5)
    assert together([(small, 8), (long, 1)], 4) == long


def test_shards_that_are_imagined_hold_what_they_should() -> None:
    shards = imagined(Volume(3, 10, 100))
    assert volume(shards) == Volume(3, 10, 100)
    assert [shard.samples for shard in shards] == [3, 3, 4]
    assert imagined(Volume(2, 1, 10))[0].tar is None


@pytest.mark.parametrize(
    "params",
    [
        {"samples_per_shard": 3},
        {"bytes_per_shard": 30},
        {"splits": {"a": "30%", "b": "70%"}, "part": "a", "samples_per_shard": 2},
    ],
)
def test_how_many_shards_a_shuffle_makes_is_known_without_a_plan(params: dict[str, Any]) -> None:
    stage = get_stage("shuffle")
    values, inputs = stage.params(**params), {"source": imagined(Volume(3, 20, 200))}
    assert stage.outputs(values, inputs) == len(stage.plan(values, inputs, 0))
