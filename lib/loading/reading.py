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
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeAlias

from reelmill.errors import LoadError
from reelmill.loading.plan import Part, key_of
from reelmill.loading.samples import Sample
from reelmill.loading.shuffle import Buffer, Shuffle
from reelmill.loading.source import Source, Troubles

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
        marks: fields that every sample gets.
    """

    def __init__(
        self,
        source: Source,
        parts: Sequence[Part],
        shuffles: Sequence[Shuffle],
        key: int,
        troubles: Troubles,
        marks: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> None:
        self._source = source
        self._marks = marks
        self._parts = parts
        self._shuffles = shuffles
        self._key = key
        self._troubles = troubles
        self._taken = 0
        self._counts: list[int] = []
        self._found: dict[Position, Any] = {}
        self._planning = False
        self._start: Position = (0, 0)
        self._buffers: list[Buffer[Position]] = []
        self._again: Mapping[Position, Sample | None] = {}
        self._order = self._shuffled()

    def state(self) -> dict[str, Any]:
        """Where it stands: the samples that were given, and, of a source that does not know its
        counts, the samples of the parts that were read to their ends."""
        return {"taken": self._taken, "counts": list(self._counts)}

    def restore(self, state: Mapping[str, Any], wanted: Collection[Position]) -> None:
        """Stand where another stood. ``wanted`` are positions that will be asked for by `make`."""
        self._taken = state["taken"]
        self._counts = list(state["counts"])
        if self._shuffles:
            self._planning = True
            # To its end, with nothing kept: this is the quickest way.
            deque(itertools.islice(self._order, self._taken), maxlen=0)
            self._planning = False
        else:
            self._start = self._after(self._taken)
        waiting = [position for buffer in self._buffers for position in buffer.held]
        self._found = self._looked_up(waiting)
        again = self._looked_up(wanted)
        samples = self._read(list(again.values()))
        self._again = dict(zip(again, samples, strict=True))

    def settle(self) -> None:
        """Let go of what was kept for `make`."""
        self._again = {}

    def positions(self, origin: Origin) -> Iterator[Position]:
        """Of which samples an item was made: here, itself."""
        yield tuple(origin)

    def make(self, origin: Origin) -> Sample:
        """One of the ``wanted`` samples, each time as it was read: who gets it may change it."""
        sample = self._again[tuple(origin)]
        if sample is None:
            raise LoadError("a sample that was in work can no longer be had")
        return dict(sample)

    def run(self) -> Iterator[Item]:
        for window, samples in self._windows_read():
            for position, sample in zip(window, samples, strict=True):
                self._taken += 1
                if sample is not None:
                    yield Item(list(position), sample)

    def _windows_read(self) -> Iterator[tuple[list[Position], list[Sample | None]]]:
        if not self._source.reads_ahead:
            for window, found in self._windows():
                yield window, self._read(found)
            return
        with ThreadPoolExecutor(1, "reelmill-reading") as pool:
            waiting: deque[tuple[list[Position], Future[list[Sample | None]]]] = deque()
            for window, found in self._windows():
                waiting.append((window, pool.submit(self._read, found)))
                if len(waiting) > 1:
                    window, samples = waiting.popleft()
                    yield window, samples.result()
            for window, samples in waiting:
                yield window, samples.result()

    def _windows(self) -> Iterator[tuple[list[Position], list[Any]]]:
        # Small ones first, so that nobody waits long for the first sample.
        limit = min(_FIRST_WINDOW, self._source.window)
        while window := list(self._window(limit)):
            limit = min(2 * limit, self._source.window)
            yield window, [self._found.pop(position) for position in window]

    def _read(self, found: Sequence[Any]) -> list[Sample | None]:
        there = [one for one in found if one is not None]
        samples = iter(self._source.read(there, self._troubles))
        read = [None if one is None else next(samples) for one in found]
        for sample in read:
            if sample is not None:
                sample.update(self._marks)
        return read

    def _window(self, limit: int) -> Iterator[Position]:
        size = 0
        for position in self._order:
            yield position
            found = self._found[position]
            size += 0 if found is None else self._source.size(found)
            if size >= limit:
                return

    def _shuffled(self) -> Iterator[Position]:
        order = self._planned()
        for number, shuffle in enumerate(self._shuffles):
            initial = self._source.first_pick(shuffle)
            buffer = Buffer[Position](shuffle.size, initial, key_of(self._key, number))
            self._buffers.append(buffer)
            order = buffer.run(order)
        return order

    def _planned(self) -> Iterator[Position]:
        begin, first = self._start
        for place, part in itertools.islice(enumerate(self._parts), begin, None):
            if self._planning:
                for number in part.numbers(self._count(place)):
                    yield place, number
                    # Planning may have ended while it waited.
                    if not self._planning:
                        first = number + 1
                        break
                else:
                    continue
            yield from self._scanned(place, part, first)
            first = 0

    def _after(self, taken: int) -> Position:
        """Where it goes on behind the first ``taken`` samples of an order without shuffles."""
        for place, part in enumerate(self._parts):
            count = self._count(place)
            size = None if count is None else part.size(count)
            if size is None or taken < size:
                return place, next(itertools.islice(part.numbers(count), taken, None))
            taken -= size
        return len(self._parts), 0

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
        # Those of a shard that is left out keep their places in the plan.
        for missing in part.numbers(self._count(place) or 0, max(first, number + 1)):
            self._found[place, missing] = None
            yield place, missing
        if not self._source.counted and place == len(self._counts):
            self._counts.append(number + 1)

    def _looked_up(self, positions: Collection[Position]) -> dict[Position, Any]:
        """What stands for the samples at these positions, ``None`` for one that is left out. Each
        of their shards is gone through once.

        Raises:
            LoadError: one is not there, and is not to be left out.
        """
        by_part: dict[int, set[int]] = {}
        for place, number in positions:
            by_part.setdefault(place, set()).add(number)
        found: dict[Position, Any] = {}
        for place, numbers in by_part.items():
            shard = self._parts[place].shard
            scanned = self._source.scan(shard, self._troubles)
            for number, one in enumerate(itertools.islice(scanned, max(numbers) + 1)):
                if number in numbers:
                    found[place, number] = one
            missing = [(place, number) for number in numbers if (place, number) not in found]
            if missing and self._troubles.policy == "raise":
                raise LoadError(
                    f"{len(missing)} of the samples that were in work are no longer in "
                    f"{self._source.name(shard)}"
                )
            found.update(dict.fromkeys(missing))
        return found
