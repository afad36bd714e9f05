"""Portions of a dataset: nothing on two sides, nothing on none, and nobody changes sides."""

from __future__ import annotations

import itertools
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.shards.portion import PLACES, Portion, places, portion, split, together

EDGES = np.array([0, 1, 2**63 - 1, 2**63, PLACES - 2, PLACES - 1], np.uint64)
VIDEOS = [f"{shard:05d}{row:04d}" for shard in range(20) for row in range(1000)]


@given(st.lists(st.decimals(0, 1, places=6), min_size=0, max_size=5))
def test_every_place_is_in_exactly_one_of_portions_that_meet(cuts: list[Decimal]) -> None:
    ends = [Decimal(0), *sorted(cuts), Decimal(1)]
    portions = [portion(a, b) for a, b in itertools.pairwise(ends)]
    borders = [p.start for p in portions[1:] if p.start < PLACES]
    near = np.array([*borders, *(b - 1 for b in borders if b)], np.uint64)
    asked = np.concatenate([EDGES, near, places(VIDEOS[:100], "splits")])
    held = np.sum([p.holds(asked) for p in portions], axis=0)
    assert held.tolist() == [1] * len(asked)


def test_shares_are_exact() -> None:
    assert portion(Decimal(0), Decimal(1)) == Portion(0, PLACES)
    assert portion(Decimal("0.5"), Decimal(1)) == Portion(2**63, PLACES)
    tenth = portion(Decimal(0), Decimal("0.1"))
    assert tenth.stop * 10 <= PLACES < (tenth.stop + 1) * 10


def test_parts_lie_in_the_order_of_their_names_and_meet() -> None:
    shares = {"train": Decimal("0.9"), "val": Decimal("0.05"), "test": Decimal("0.05")}
    found = {part: split(shares, part) for part in shares}
    assert found == {
        "test": (Decimal(0), Decimal("0.05")),
        "train": (Decimal("0.05"), Decimal("0.95")),
        "val": (Decimal("0.95"), Decimal(1)),
    }
    fine = {"a": Decimal("0." + "3" * 36), "b": Decimal("0." + "6" * 35 + "7")}
    assert split(fine, "b") == (fine["a"], Decimal(1))
    with pytest.raises(KeyError):
        split(shares, "dev")


def test_what_derives_from_a_row_stays_together() -> None:
    derived = ["000010005", "000010005_003", "000010005_003_000012", "000010006_003"]
    assert together(derived, "source") == ["000010005"] * 3 + ["000010006"]
    assert together(derived, "sample") == derived


def test_a_place_depends_on_the_text_the_purpose_and_the_seed_alone() -> None:
    assert places(VIDEOS, "splits")[::-1].tolist() == places(VIDEOS[::-1], "splits").tolist()
    assert places(["000000000", "000010005"], "splits").tolist() == [
        int(value) for value in places(VIDEOS, "splits")[[0, VIDEOS.index("000010005")]]
    ]
    assert len({int(places(["k"], p, s)[0]) for p in ("splits", "sample") for s in (0, 1)}) == 4


def test_a_larger_share_keeps_all_of_a_smaller_one() -> None:
    at = places(VIDEOS, "sample")
    small, large = (portion(Decimal(0), Decimal(s)).holds(at) for s in ("0.1", "0.2"))
    assert not (small & ~large).any()


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("share", ["0.05", "0.5"])
def test_portions_have_their_size_and_are_independent_of_each_other(seed: int, share: str) -> None:
    whole = portion(Decimal(0), Decimal(share))
    splits = whole.holds(places(VIDEOS, "splits", seed))
    sample = whole.holds(places(VIDEOS, "sample", seed))
    other = whole.holds(places(VIDEOS, "splits", seed + 1))
    expected = float(share)
    spread = (expected * (1 - expected) / len(VIDEOS)) ** 0.5
    assert abs(splits.mean() - expected) < 4 * spread
    both = expected**2
    spread = (both * (1 - both) / len(VIDEOS)) ** 0.5
    assert abs((splits & sample).mean() - both) < 4 * spread
    assert abs((splits & other).mean() - both) < 4 * spread


def test_places_are_uniform() -> None:
    counts = np.bincount((places(VIDEOS, "splits") >> np.uint64(58)).astype(np.int64))
    expected = len(VIDEOS) / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 63 - 4 * (2 * 63) ** 0.5 < chi_square < 63 + 4 * (2 * 63) ** 0.5
