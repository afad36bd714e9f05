"""One reader's samples of one pass through a dataset, in an order that is planned before they are
read; it can be begun anywhere.

What is planned are positions: a reader's part, and the number of a sample in the part's shard. A
shuffle's buffer holds positions, so that where a reading stands is told by how many samples it
gave: the same plan is made again without reading anything, and only what then waits in the buffer
is looked up. Of tars without an index nobody knows how many samples they have until they were read,
so that the state tells that, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from reelmill.errors import LoadError
from reelmill.loading.plan import Part, key_of
from reelmill.loading.shuffle import Buffer, Shuffle
from reelmill.loading.source import Sample, Source, Troubles

Position: TypeAlias = tuple[int, int]
"""The place of a reader's part, and the number of a sample in the part's shard."""

Origin: TypeAlias = Any
"""How an item of a pipeline came about, as plain data: see `reelmill.loading.stages`."""

_FIRST_WINDOW: Final = 128 << 10


class Item(NamedTuple):
    """What passes from stage to stage, and how it is made again."""

    origin: Origin
    value: Any


class Reading:
    """The samples of some parts, shuffled by some shuffles, each item's origin its position.

    Args:
        key: decides what is picked.
    """

    def __init__(
        self,
        source: Source,
        parts: Sequence[Part],
        shuffles: Sequence[Shuffle],
        key: int,
        troubles: Troubles,
    ) -> None:
        self._source = source
        self._parts = parts
        self._shuffles = shuffles
        self._key = key
        self._troubles = troubles
        self._taken = 0
        self._counts: list[int] = []
        self._found: dict[Position, Any] = {}
        self._planning = False
        self._waiting: set[Position] = set()
        self._again: Mapping[Position, Sample] = {}
        self._order = self._shuffled()

    def state(self) -> dict[str, Any]:
        """Where it stands: the samples that were given, and, of a source that does not know its
        counts, the samples of the parts that were read to their ends."""
        return {"taken": self._taken, "counts": list(self._counts)}

    def restore(self, state: Mapping[str, Any], wanted: Collection[Position]) -> None:
        """Stand where another stood. ``wanted`` are positions that will be asked for by `make`."""
        self._taken = state["taken"]
        self._counts = list(state["counts"])
        self._planning = True
        for position in itertools.islice(self._order, self._taken):
            self._waiting.discard(position)
        self._planning = False
        self._found = self._looked_up(self._waiting)
        if missing := self._waiting - self._found.keys():
            raise LoadError(f"{len(missing)} samples that were waiting are no longer there")
        self._waiting = set()
        self._again = self._read_again(wanted)

    def positions(self, origin: Origin) -> Iterator[Position]:
        """Of which samples an item was made: here, itself."""
        yield tuple(origin)

    def make(self, origin: Origin) -> Sample:
        """One of the ``wanted`` samples."""
        return self._again[tuple(origin)]

    def run(self) -> Iterator[Item]:
        # Small ones first, so that nobody waits long for the first sample.
        limit = min(_FIRST_WINDOW, self._source.window)
        while window := list(self._window(limit)):
            limit = min(2 * limit, self._source.window)
            found = [self._found.pop(position) for position in window]
            samples = self._source.read(found, self._troubles)
            for position, sample in zip(window, samples, strict=True):
                self._taken += 1
                if sample is not None:
                    yield Item(position, sample)

    def _window(self, limit: int) -> Iterator[Position]:
        size = 0
        for position in self._order:
            yield position
            size += self._source.size(self._found[position])
            if size >= limit:
                return

    def _shuffled(self) -> Iterator[Position]:
        order = self._planned()
        for number, shuffle in enumerate(self._shuffles):
            initial = self._source.first_pick(shuffle)
            buffer = Buffer[Position](shuffle.size, initial, key_of(self._key, number))
            order = buffer.run(order)
        return order

    def _planned(self) -> Iterator[Position]:
        for place, part in enumerate(self._parts):
            first = 0
            if self._planning:
                for number in part.numbers(self._count(place)):
                    self._waiting.add((place, number))
                    yield place, number
                    # Planning may have ended while it waited.
                    if not self._planning:
                        first = number + 1
                        break
                else:
                    continue
            yield from self._scanned(place, part, first)

    def _count(self, place: int) -> int | None:
        if place < len(self._counts):
            return self._counts[place]
        return self._source.count(self._parts[place].shard)

    def _scanned(self, place: int, part: Part, first: int) -> Iterator[Position]:
        if next(part.numbers(self._count(place), first), None) is None:
            return
        number = -1
        for number, found in enumerate(self._source.scan(part.shard, self._troubles)):
            if number >= first and part.takes(number):
                self._found[place, number] = found
                yield place, number
        if not self._source.counted and place == len(self._counts):
            self._counts.append(number + 1)

    def _looked_up(self, positions: Collection[Position]) -> dict[Position, Any]:
        """What stands for the samples at these positions; each of their shards is gone through
        once."""
        by_part: dict[int, set[int]] = {}
        for place, number in positions:
            by_part.setdefault(place, set()).add(number)
        found = {}
        for place, numbers in by_part.items():
            scanned = self._source.scan(self._parts[place].shard, self._troubles)
            for number, one in enumerate(itertools.islice(scanned, max(numbers) + 1)):
                if number in numbers:
                    found[place, number] = one
        return found

    def _read_again(self, positions: Collection[Position]) -> dict[Position, Sample]:
        found = self._looked_up(positions)
        samples = self._source.read(list(found.values()), self._troubles)
        made = {p: s for p, s in zip(found, samples, strict=True) if s is not None}
        if missing := set(positions) - made.keys():
            raise LoadError(f"{len(missing)} samples that were in work are no longer there")
        return made
