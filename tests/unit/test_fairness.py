"""Whether the order of a shuffle is a fair one, by the statistics of what it does to keys.

Keys are as stages make them: neighbours differ in their last digits. Everything is the same in each
run, so that no test fails by chance; bounds are those that one fair order in 10,000 exceeds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from reelmill.digest import order_hash
from reelmill.shards import gather

SOURCES, VIDEOS, CLIPS, OUTPUTS = 20, 100, 5, 50
KEYS = [
    f"{shard:05d}{video:04d}_{clip:03d}"
    for shard in range(SOURCES)
    for video in range(VIDEOS)
    for clip in range(CLIPS)
]
SHARD = np.repeat(np.arange(SOURCES), VIDEOS * CLIPS)
VIDEO = np.repeat(np.arange(SOURCES * VIDEOS), CLIPS)
SIGMAS = 3.9
"""Standard deviations beyond which lies one normal value in 10,000."""

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**53 - 1])


def dealt(seed: int) -> npt.NDArray[np.int64]:
    """The output of each key."""
    order = gather.hashes(KEYS, seed)
    return gather.dealt(order, gather.even_bounds(order, OUTPUTS))


def reading_order(seed: int) -> npt.NDArray[np.int64]:
    """The numbers of keys in the order in which a reader of all outputs meets them."""
    return np.lexsort((gather.hashes(KEYS), dealt(seed)))


def chi_square(counts: npt.NDArray[np.int64]) -> float:
    """How far counts of a table are from what its margins say, in standard deviations."""
    rows, columns = counts.sum(axis=1, keepdims=True), counts.sum(axis=0, keepdims=True)
    expected = rows * columns / counts.sum()
    free = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Wilson and Hilferty: its cube root is all but normal.
    spread = 2 / (9 * free)
    return float((np.cbrt(statistic / free) - (1 - spread)) / np.sqrt(spread))


@SEEDS
def test_every_output_draws_on_the_sources_as_chance_would(seed: int) -> None:
    counts = np.zeros((OUTPUTS, SOURCES), np.int64)
    np.add.at(counts, (dealt(seed), SHARD), 1)
    assert counts.sum(axis=1).tolist() == [len(KEYS) // OUTPUTS] * OUTPUTS
    # Neither too uneven nor too even.
    assert abs(chi_square(counts)) < SIGMAS
    # Each cell is hypergeometric: so many of a source's samples among those of an output.
    total, each, taken = len(KEYS), VIDEOS * CLIPS, len(KEYS) // OUTPUTS
    share = each / total
    variance = taken * share * (1 - share) * (total - taken) / (total - 1)
    assert counts.var() == pytest.approx(variance, rel=0.2)


@SEEDS
def test_clips_of_a_video_part_as_chance_would(seed: int) -> None:
    at = dealt(seed).reshape(-1, CLIPS)
    pairs = sum(int((at[:, one] == at[:, two]).sum()) for one in range(CLIPS) for two in range(one))
    count = len(at) * CLIPS * (CLIPS - 1) / 2
    share = (len(KEYS) / OUTPUTS - 1) / (len(KEYS) - 1)
    assert abs(pairs - count * share) < SIGMAS * (count * share * (1 - share)) ** 0.5


@SEEDS
def test_where_a_sample_lies_says_nothing_of_where_it_came_from(seed: int) -> None:
    place = np.empty(len(KEYS))
    place[reading_order(seed)] = np.arange(len(KEYS))
    # Spearman's rank correlation of the place among keys with that in the outputs.
    correlation = np.corrcoef(np.arange(len(KEYS)), place)[0, 1]
    assert abs(correlation) < SIGMAS / (len(KEYS) - 1) ** 0.5
    # Neighbours among keys are no neighbours there: the same of each key and the next.
    correlation = np.corrcoef(place[:-1], place[1:])[0, 1]
    assert abs(correlation) < SIGMAS / (len(KEYS) - 1) ** 0.5


@SEEDS
def test_runs_of_one_source_are_as_long_as_chance_makes_them(seed: int) -> None:
    order = reading_order(seed)
    # Wald and Wolfowitz: runs of two kinds, each source against all others.
    for source in range(SOURCES):
        kind = SHARD[order] == source
        ours, others = int(kind.sum()), int((~kind).sum())
        runs = 1 + int((kind[1:] != kind[:-1]).sum())
        mean = 2 * ours * others / (ours + others) + 1
        variance = (mean - 1) * (mean - 2) / (ours + others - 1)
        assert abs(runs - mean) < SIGMAS * variance**0.5
    # Of the same video there are next to no neighbours at all.
    same = int((VIDEO[order][1:] == VIDEO[order][:-1]).sum())
    expected = (len(KEYS) - 1) * (CLIPS - 1) / (len(KEYS) - 1)
    assert same < expected + 4 * expected**0.5


def test_orders_of_different_seeds_have_nothing_in_common() -> None:
    places = [np.argsort(reading_order(seed)) for seed in (0, 1, 2, 12345)]
    for one in range(len(places)):
        for two in range(one):
            correlation = np.corrcoef(places[one], places[two])[0, 1]
            assert abs(correlation) < SIGMAS / (len(KEYS) - 1) ** 0.5


def test_keys_are_spread_evenly_over_the_order() -> None:
    at = np.sort(np.array([order_hash(key) for key in KEYS], np.float64)) / 2.0**64
    # Kolmogorov and Smirnov: the largest distance from a straight line.
    ends = np.arange(len(KEYS) + 1) / len(KEYS)
    distance = max(np.abs(at - ends[1:]).max(), np.abs(at - ends[:-1]).max())
    assert distance < 2.23 / len(KEYS) ** 0.5


def test_an_order_by_key_is_not_fair_by_any_of_this() -> None:
    by_key = np.arange(len(KEYS)) * OUTPUTS // len(KEYS)
    counts = np.zeros((OUTPUTS, SOURCES), np.int64)
    np.add.at(counts, (by_key, SHARD), 1)
    assert chi_square(counts) > SIGMAS
    assert np.corrcoef(np.arange(len(KEYS)), by_key)[0, 1] > 0.9
