"""Portions of a dataset: who belongs to which, by a keyed hash of what must stay together.

Every text has a place among the hash's 2**64 values, which depends on nothing but the text, the
purpose and the seed: so it stays on its side whatever else a dataset gains or loses. A portion is
an interval of places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from reelmill.shards.removed import source_key

By = Literal["source", "sample"]
"""What stays together: all that derives from a row of the source, such as the clips of a video and
their frames; or nothing beyond the sample."""

Purpose = Literal["splits", "sample"]
"""What a portion is for. Portions of different purposes have nothing to do with each other: of a
tenth of a dataset, the test set is what it is of all."""

PLACES: Final = 2**64

_PRECISION: Final = 100  # of sums of shares, none of which has as many digits


@dataclass(frozen=True, slots=True)
class Portion:
    """The places ``[start, stop)``."""

    start: int
    stop: int

    def holds(self, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the places are in it."""
        inside = places >= np.uint64(min(self.start, PLACES - 1))
        if self.stop < PLACES:
            inside &= places < np.uint64(self.stop)
        return inside & (self.start < self.stop)


def portion(start: Decimal, stop: Decimal) -> Portion:
    """The portion between two shares of the whole, each from 0 to 1.

    Portions that share an end meet there: nothing is in both, and nothing in neither.
    """
    return Portion(_place_of(start), _place_of(stop))


def split(shares: Mapping[str, Decimal], part: str) -> tuple[Decimal, Decimal]:
    """Where a part begins and ends, as shares of the whole. Parts lie in the order of their names.

    Raises:
        KeyError: there is no such part.
    """
    start = Decimal(0)
    with localcontext(prec=_PRECISION):
        for name in sorted(shares):
            stop = start + shares[name]
            if name == part:
                return start, stop
            start = stop
    raise KeyError(part)


def together(keys: Iterable[str], by: By) -> list[str]:
    """For each sample's key the text that decides its side."""
    return [source_key(key) for key in keys] if by == "source" else list(keys)


def places(texts: Iterable[str], purpose: Purpose, seed: int = 0) -> npt.NDArray[np.uint64]:
    """The place of each text: xxh3-64, keyed by the purpose and the seed."""
    keyed = xxhash.xxh3_64_intdigest(f"{purpose} {seed}".encode())
    hashes = (xxhash.xxh3_64_intdigest(text.encode(), keyed) for text in texts)
    return np.fromiter(hashes, np.uint64)


def _place_of(share: Decimal) -> int:
    return int(Fraction(share) * PLACES)
