"""Who reads which samples in which order: pure functions of a seed, an epoch and who reads.

A *reader* is one process that yields samples: a worker of a data loader on one of the nodes (ranks)
that train together. Shards are dealt to readers whole. Where there are fewer of them than readers,
they are laid end to end and each reader gets an equal stretch: a run of the numbers that are left
when a sample's number is divided by the number of readers, of one shard or of two neighbours. So
who reads a sample is known without knowing how many there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import xxhash

Even = Literal["drop", "repeat"]
"""How readers come to equally many samples: what is over is left out, or some are read twice."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One of the processes that read a dataset together: worker ``worker`` of ``workers`` on node
    ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.worker < self.workers):
            raise ValueError(
                f"there is no worker {self.worker} of {self.workers} on node {self.rank} "
                f"of {self.world}; all of them count from 0"
            )

    @property
    def number(self) -> int:
        """Its number among all: neighbours are on different nodes, which so get equally many."""
        return self.worker * self.world + self.rank

    @property
    def count(self) -> int:
        return self.world * self.workers


class Part(NamedTuple):
    """What a reader takes of a shard: of the samples ``start`` to ``stop``, those whose number,
    divided by ``modulus``, leaves ``low`` to ``high`` (each end excluded).

    ``shard`` is a place in the dataset's list of shards; samples are numbered from 0 in the order
    in which they lie.
    """

    shard: int
    start: int = 0
    stop: int | None = None
    modulus: int = 1
    low: int = 0
    high: int = 1

    def takes(self, number: int) -> bool:
        return (
            self.start <= number
            and (self.stop is None or number < self.stop)
            and self.low <= number % self.modulus < self.high
        )

    def numbers(self, count: int | None, first: int = 0) -> Iterator[int]:
        """The numbers that it takes of ``count`` samples, or of who knows how many, from ``first``
        on."""
        stop = count if self.stop is None else self.stop if count is None else min(count, self.stop)
        first = max(first, self.start)
        numbers = iter(range(first, stop)) if stop is not None else itertools.count(first)
        if self.high - self.low == self.modulus:
            return numbers
        return (n for n in numbers if self.low <= n % self.modulus < self.high)

    def size(self, count: int) -> int:
        """How many it takes of ``count`` samples."""
        stop = count if self.stop is None else min(count, self.stop)
        if self.high - self.low == self.modulus:
            return max(0, stop - self.start)
        return sum(1 for _ in self.numbers(count))


def key_of(*what: object) -> int:
    """A number that stands for some integers and words, the same on every machine."""
    return xxhash.xxh3_64_intdigest(" ".join(map(str, what)).encode())


def order_of(shards: int, key: int) -> list[int]:
    """The places of so many shards, shuffled."""
    hashes = [xxhash.xxh3_64_intdigest(n.to_bytes(8, "little"), key) for n in range(shards)]
    return [n for _, n in sorted(zip(hashes, range(shards), strict=True))]


def deal(order: Sequence[int], reader: Reader) -> list[Part]:
    """A reader's parts, if shards are read in ``order``. Those of all readers make up all."""
    if len(order) >= reader.count:
        return [Part(shard) for shard in order[reader.number :: reader.count]]
    return list(_stretch(order, reader.number, reader.count))


def _stretch(order: Sequence[int], number: int, count: int) -> Iterator[Part]:
    # In units of which a shard has as many as there are readers.
    start, stop = number * len(order), (number + 1) * len(order)
    while start < stop:
        place, low = divmod(start, count)
        high = min(count, low + stop - start)
        yield Part(order[place], modulus=count, low=low, high=high)
        start += high - low


def deal_evenly(
    order: Sequence[int], counts: Sequence[int], reader: Reader, even: Even
) -> list[Part]:
    """A reader's parts if all are to have equally many samples: the samples, in the order of their
    shards, are cut into runs of one length.

    Args:
        counts: the samples of each shard, by place.
        even: ``drop`` leaves out the last few, fewer than there are readers; ``repeat`` has the
            last run go on with the first samples of all.
    """
    total = sum(counts)
    size = total // reader.count if even == "drop" else -(-total // reader.count)
    parts = []
    for start, stop in _wrapped(reader.number * size, size, total):
        passed = 0
        for shard in order:
            first, last = max(start - passed, 0), min(stop - passed, counts[shard])
            if first < last:
                parts.append(Part(shard, first, last))
            passed += counts[shard]
            if passed >= stop:
                break
    return parts


def _wrapped(start: int, size: int, total: int) -> Iterator[tuple[int, int]]:
    while size > 0:
        start %= total
        stop = min(start + size, total)
        yield start, stop
        size -= stop - start
        start = stop


def picked(length: int, count: int, key: int) -> int:
    """Which of ``length`` things is the ``count``-th to be picked."""
    return xxhash.xxh3_64_intdigest(count.to_bytes(8, "little"), key) % length
