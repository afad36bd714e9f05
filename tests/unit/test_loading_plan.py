"""Who reads which samples in which order, and that a reading goes on from anywhere."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.errors import LoadError
from reelmill.loading.plan import (
    Even,
    Part,
    Reader,
    deal,
    deal_evenly,
    key_of,
    order_of,
    picked,
)
from reelmill.loading.reading import Reading
from reelmill.loading.shuffle import Buffer, Shuffle
from reelmill.loading.source import Troubles
from reelmill.loading.stages import Batched, Each, Opaque, Pass, Shuffled, Sliced, Stage

Counts = st.lists(st.integers(0, 9), min_size=1, max_size=9)
Nodes = st.integers(1, 4)


def readers(world: int, workers: int) -> list[Reader]:
    return [Reader(r, world, w, workers) for r in range(world) for w in range(workers)]


def samples(parts: Sequence[Part], counts: Sequence[int]) -> list[tuple[int, int]]:
    return [(part.shard, n) for part in parts for n in part.numbers(counts[part.shard])]


@given(Counts, Nodes, Nodes, st.integers(0, 5))
def test_every_sample_is_read_by_one_reader(
    counts: list[int], world: int, workers: int, epoch: int
) -> None:
    order = order_of(len(counts), key_of(7, epoch))
    dealt = [deal(order, reader) for reader in readers(world, workers)]
    every = [(shard, n) for shard, count in enumerate(counts) for n in range(count)]
    assert sorted(one for parts in dealt for one in samples(parts, counts)) == every
    if len(counts) < world * workers:
        assert all(len(parts) <= 2 for parts in dealt)
    else:
        assert all(part == Part(part.shard) for parts in dealt for part in parts)


@given(Counts, Nodes, Nodes)
def test_a_part_takes_the_same_numbers_one_by_one(
    counts: list[int], world: int, workers: int
) -> None:
    for reader in readers(world, workers):
        for part in deal(range(len(counts)), reader):
            taken = [n for n in range(40) if part.takes(n)]
            assert taken == list(part.numbers(40))
            assert taken == list(itertools.takewhile(lambda n: n < 40, part.numbers(None)))
            assert [n for n in taken if n >= 5] == list(part.numbers(40, 5))


@given(Counts, Nodes, Nodes, st.sampled_from(["drop", "repeat"]))
def test_readers_get_equally_many_samples_if_they_are_to(
    counts: list[int], world: int, workers: int, even: Even
) -> None:
    order = order_of(len(counts), 3)
    everyone = readers(world, workers)
    dealt = [samples(deal_evenly(order, counts, one, even), counts) for one in everyone]
    assert len({len(some) for some in dealt}) == 1
    given_out = Counter(one for some in dealt for one in some)
    every = {(shard, n) for shard, count in enumerate(counts) for n in range(count)}
    if even == "drop":
        assert set(given_out.values()) <= {1}
        assert len(every) - len(given_out) < len(everyone)
    else:
        assert set(given_out) == every
        assert given_out.total() - len(every) < len(everyone)


def test_the_order_is_another_in_each_epoch_and_the_same_everywhere() -> None:
    orders = [order_of(50, key_of(0, epoch)) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # Written down, since a training that goes on with another version must find the same.
    assert order_of(8, key_of(0, 0, 0)) == [2, 6, 4, 7, 3, 1, 5, 0]
    assert [picked(10, count, 5) for count in range(8)] == [6, 5, 3, 0, 9, 0, 2, 0]


def test_there_is_no_reader_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="no worker 2 of 2 on node 0 of 1"):
        Reader(worker=2, workers=2)


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 15), st.integers(0, 3))
def test_a_buffer_gives_everything_once_and_another_order_for_another_key(
    count: int, size: int, initial: int, key: int
) -> None:
    buffer = Buffer[int](size, initial, key)
    taken: list[int] = []
    out = []

    def things() -> Iterator[int]:
        for number in range(count):
            taken.append(number)
            yield number

    for thing in buffer.run(things()):
        out.append(thing)
        assert len(taken) - len(out) < size
    assert sorted(out) == list(range(count))


@dataclass
class Shelf:
    """A source of numbered samples that notes what is asked of it."""

    counts: list[int]
    counted: bool = True
    window: int = 0
    reads_ahead: bool = False
    identity: str = "shelf"
    scans: list[int] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)

    @property
    def shards(self) -> int:
        return len(self.counts)

    def count(self, shard: int) -> int | None:
        return self.counts[shard] if self.counted else None

    def scan(self, shard: int, troubles: Troubles) -> Iterator[Any]:
        self.scans.append(shard)
        return ((shard, n) for n in range(self.counts[shard]))

    def size(self, found: Any) -> int:
        return 1

    def read(self, found: Sequence[Any], troubles: Troubles) -> list[Any]:
        self.reads += found
        return [{"__key__": f"{shard}-{n}", "n": n} for shard, n in found]

    def first_pick(self, shuffle: Shuffle) -> int:
        return shuffle.size if shuffle.initial is None else shuffle.initial

    def name(self, shard: int) -> str:
        return f"shard {shard}"


def thrice(things: Iterator[Any]) -> Iterator[Any]:
    for thing in things:
        for number in range(len(str(thing)) % 4):
            yield f"{thing}/{number}"


def doubled(things: Iterator[Any]) -> Iterator[Any]:
    return (f"{thing}!" for thing in things)


def pairs(things: Iterator[Any]) -> Iterator[Any]:
    """A generator that holds something of which nobody is told."""
    return itertools.pairwise(things)


def unlisted(things: Iterator[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(things)


STAGES = st.lists(
    st.one_of(
        st.sampled_from([Each("thrice", thrice), Each("doubled", doubled), Opaque("pairs", pairs)]),
        st.builds(Batched, st.integers(1, 4), st.none(), st.booleans()),
        st.builds(Batched, st.integers(1, 4), st.just(str), st.booleans()),
        st.just(Each("unlisted", unlisted)),
        st.builds(Shuffled, st.builds(Shuffle, st.integers(1, 6), st.integers(1, 6))),
        st.builds(Sliced, st.integers(0, 2), st.one_of(st.none(), st.integers(3, 20)), st.just(2)),
    ),
    max_size=4,
)
SHUFFLES = st.lists(
    st.builds(Shuffle, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 9))), max_size=2
)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(Shelf, Counts, st.booleans(), st.integers(0, 5), st.booleans()),
    Nodes,
    SHUFFLES,
    STAGES,
    st.data(),
)
def test_a_pass_goes_on_from_any_point(
    shelf: Shelf, workers: int, shuffles: list[Shuffle], stages: list[Stage], data: st.DataObject
) -> None:
    parts = deal(order_of(shelf.shards, 1), Reader(workers=workers))

    def begun() -> Pass:
        reading = Reading(shelf, parts, shuffles, 11, Troubles())
        return Pass(reading, stages, 11, Troubles())

    whole = list(begun().run())
    at = data.draw(st.integers(0, len(whole)))
    stopped = begun()
    assert list(itertools.islice(stopped.run(), at)) == whole[:at]
    state = json.loads(json.dumps(stopped.state()))
    resumed = begun()
    resumed.restore(state)
    assert resumed.state() == state
    again = data.draw(st.integers(0, len(whole) - at))
    values = resumed.run()
    assert list(itertools.islice(values, again)) == whole[at : at + again]
    # A state of what was resumed is as good.
    last = begun()
    last.restore(json.loads(json.dumps(resumed.state())))
    assert list(last.run()) == whole[at + again :]


@pytest.mark.parametrize("counted", [True, False])
def test_what_was_given_is_not_read_again(counted: bool) -> None:
    shelf = Shelf([10] * 20, counted)
    parts = deal(range(20), Reader())

    def begun() -> Reading:
        return Reading(shelf, parts, [Shuffle(5)], 1, Troubles())

    first = begun()
    values = first.run()
    given_out = {tuple(item.origin) for item in itertools.islice(values, 155)}
    state = first.state()
    shelf.scans.clear()
    shelf.reads.clear()
    second = begun()
    second.restore(state, ())
    rest = {tuple(item.origin) for item in second.run()}
    assert rest == {(s, n) for s in range(20) for n in range(10)} - given_out
    assert set(shelf.reads) == rest
    # No shard but those of samples that waited in the buffer or were yet to come.
    assert set(shelf.scans) == {place for place, _ in rest}


def test_a_sample_that_is_gone_is_missed() -> None:
    shelf = Shelf([4, 4])
    parts = deal(range(2), Reader())
    first = Reading(shelf, parts, [Shuffle(6)], 1, Troubles())
    list(itertools.islice(first.run(), 1))
    shelf.scan = lambda shard, troubles: iter(())  # type: ignore[method-assign]
    second = Reading(shelf, parts, [Shuffle(6)], 1, Troubles())
    with pytest.raises(LoadError, match="4 of the samples that were in work are no longer in sha"):
        second.restore(first.state(), ())


@pytest.mark.parametrize("counted", [True, False])
def test_a_pass_that_left_a_shard_out_goes_on(counted: bool) -> None:
    shelf = Shelf([5, 5, 5, 5], counted)
    scan = shelf.scan
    shelf.scan = lambda n, t: iter(()) if n == 1 else scan(n, t)  # type: ignore[method-assign]
    parts = deal(range(4), Reader())

    def begun() -> Pass:
        reading = Reading(shelf, parts, [Shuffle(4)], 1, Troubles("skip"))
        return Pass(reading, [Each("doubled", doubled)], 1, Troubles("skip"))

    whole = list(begun().run())
    assert len(whole) == 15
    for at in range(16):
        stopped = begun()
        list(itertools.islice(stopped.run(), at))
        resumed = begun()
        resumed.restore(stopped.state())
        assert list(resumed.run()) == whole[at:]
