"""The stages of a pipeline behind its source, each of which can say what it holds and get it back.

A stage works on items as they are pulled through it. What it holds when the pipeline's last stage
gives something is told by the *origins* of the items, as plain data:

* of a sample: its position;
* of what a function of one thing gives: ``[origin of that thing, which of those it gives]``;
* of a batch: the list of its items' origins;
* of what anybody's own generator gives: its number.

An origin tells how to make an item again: by doing the same, from the samples on, with no other
samples than these.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from reelmill.errors import LoadError, told
from reelmill.loading.plan import key_of
from reelmill.loading.reading import Item, Origin, Position, Reading
from reelmill.loading.samples import place_of
from reelmill.loading.shuffle import Buffer, Shuffle
from reelmill.loading.source import Troubles
from reelmill.loading.told import described

Filter = Callable[[Iterator[Any]], Iterator[Any]]
"""What webdataset calls a pipeline stage: a generator of things from things."""

_FIRST_PICK: Final = 100
_NOTHING: Final = object()


class Upstream(Protocol):
    """What a running stage asks of the one before it, which may be the reading itself."""

    def run(self) -> Iterator[Item]: ...

    def positions(self, origin: Origin) -> Iterator[Position]:
        """The samples of which an item of this origin was made."""

    def make(self, origin: Origin) -> Any:
        """The item of this origin again."""


class Running(ABC):
    """A stage at work in one pass."""

    replays = False
    """Whether it comes to where it stood by doing all again, so that the stages before it begin at
    the start."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    @abstractmethod
    def run(self) -> Iterator[Item]:
        """Its items, one by one."""

    def state(self) -> list[Any]:
        """Where it stands, as plain data."""
        return []

    def waiting(self, state: Sequence[Any]) -> Iterator[Origin]:
        """The origins of the items of the stage before that it held in a state."""
        return iter(())

    def restore(self, state: Sequence[Any]) -> None:  # noqa: B027 - most hold nothing
        """Stand where another stood; to be said when those before it stand there."""

    def positions(self, origin: Origin) -> Iterator[Position]:
        return self.upstream.positions(origin)

    def make(self, origin: Origin) -> Any:
        return self.upstream.make(origin)

    def settle(self) -> None:  # noqa: B027 - most keep nothing
        """Let go of what was kept for `make`."""


class Stage(ABC):
    """A stage as it is written down; ``label`` is what a state must agree with."""

    label: str

    @abstractmethod
    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        """Put it to work in one pass; ``key`` decides what is picked."""


@dataclass(frozen=True)
class Each(Stage):
    """Filters that look at one thing at a time, and make any number of things of it.

    ``looks_ahead`` is for those that leave alone what they gave: they are asked for the next thing
    before one is passed on, so that who has given the last is known to hold nothing.
    """

    label: str
    filter: Filter
    looks_ahead: bool = True

    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        return _Each(upstream, self, troubles)


class _Each(Running):
    def __init__(self, upstream: Upstream, stage: Each, troubles: Troubles) -> None:
        super().__init__(upstream)
        self._stage = stage
        self._troubles = troubles
        self._origin: Origin = None
        self._given = 0
        self._rest: Iterator[Any] = iter(())
        self._remade: _Remade | None = None

    def run(self) -> Iterator[Item]:
        yield from self._items()
        for item in self.upstream.run():
            self._origin, self._given = item.origin, 0
            self._rest = self._applied(item.value)
            yield from self._items()

    def _items(self) -> Iterator[Item]:
        origin = self._origin
        told = _with_last if self._stage.looks_ahead else _with_no_last
        for value, is_last in told(self._rest):
            self._given += 1
            if is_last:
                self._origin = None
            yield Item([origin, self._given - 1], value)
        self._origin = None

    def _applied(self, value: Any) -> Iterator[Any]:
        try:
            yield from self._stage.filter(iter((value,)))
        except Exception as error:
            self._troubles.meet(at_work(self._stage.label, value, error), error)

    def state(self) -> list[Any]:
        return [] if self._origin is None else [self._origin, self._given]

    def waiting(self, state: Sequence[Any]) -> Iterator[Origin]:
        return iter(state[:1])

    def restore(self, state: Sequence[Any]) -> None:
        if state:
            self._origin, self._given = state
            values = self._applied(self.upstream.make(self._origin))
            self._rest = itertools.islice(values, self._given, None)

    def positions(self, origin: Origin) -> Iterator[Position]:
        return self.upstream.positions(origin[0])

    def make(self, origin: Origin) -> Any:
        before, number = origin
        if self._remade is None or not self._remade.may_give(before, number):
            self._remade = _Remade(before, self._applied(self.upstream.make(before)))
        value = self._remade.take(number)
        if value is _NOTHING:
            raise LoadError(f"{self._stage.label} does not give again what it gave")
        return value

    def settle(self) -> None:
        self._remade = None


class _Remade:
    """What comes of one thing, made again as far as it is asked for. Each is given once, since who
    gets it may change it."""

    def __init__(self, origin: Origin, values: Iterator[Any]) -> None:
        self._origin = origin
        self._values = values
        self._made = 0
        self._passed: dict[int, Any] = {}

    def may_give(self, origin: Origin, number: int) -> bool:
        return origin == self._origin and (number >= self._made or number in self._passed)

    def take(self, number: int) -> Any:
        """The thing of this number; ``_NOTHING`` if there are fewer."""
        while self._made <= number:
            self._passed[self._made] = next(self._values, _NOTHING)
            self._made += 1
        return self._passed.pop(number)


def _with_last(values: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Each value, and whether it is the last: what follows is asked for first, so that who has
    given the last one is known to hold nothing."""
    value = next(values, _NOTHING)
    while value is not _NOTHING:
        after = next(values, _NOTHING)
        yield value, after is _NOTHING
        value = after


def _with_no_last(values: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    return ((value, False) for value in values)


@dataclass(frozen=True)
class Batched(Stage):
    """So many things as one, made of their list by ``collate``; the last may be of fewer."""

    size: int
    collate: Callable[[list[Any]], Any] | None
    partial: bool

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("a batch holds 1 sample or more")

    @property
    def label(self) -> str:  # type: ignore[override]
        together = "" if self.collate is None else f", {described(self.collate)}"
        return f"batched({self.size}, partial={self.partial}{together})"

    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        return _Batched(upstream, self)


class _Batched(Running):
    """It holds nothing when it has given a batch."""

    def __init__(self, upstream: Upstream, stage: Batched) -> None:
        super().__init__(upstream)
        self._stage = stage

    def run(self) -> Iterator[Item]:
        items = self.upstream.run()
        while batch := list(itertools.islice(items, self._stage.size)):
            if len(batch) == self._stage.size or self._stage.partial:
                made = self._collated([item.value for item in batch])
                yield Item([item.origin for item in batch], made)

    def _collated(self, values: list[Any]) -> Any:
        if self._stage.collate is None:
            return values
        try:
            return self._stage.collate(values)
        except Exception as error:
            keys = ", ".join(named(value) for value in values[:3])
            raise LoadError(
                f"a batch of {len(values)} ({keys}, …) cannot be put together: {told(error)}"
            ) from error

    def positions(self, origin: Origin) -> Iterator[Position]:
        return itertools.chain.from_iterable(map(self.upstream.positions, origin))

    def make(self, origin: Origin) -> Any:
        return self._collated([self.upstream.make(one) for one in origin])


@dataclass(frozen=True)
class Shuffled(Stage):
    """A buffer of what the stages before it made."""

    shuffle: Shuffle

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"shuffle({self.shuffle.size}, initial={self.shuffle.initial})"

    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        return _Shuffled(upstream, self.shuffle, key)


class _Shuffled(Running):
    def __init__(self, upstream: Upstream, shuffle: Shuffle, key: int) -> None:
        super().__init__(upstream)
        initial = _FIRST_PICK if shuffle.initial is None else shuffle.initial
        self._buffer = Buffer[Item](shuffle.size, initial, key)

    def run(self) -> Iterator[Item]:
        return self._buffer.run(self.upstream.run())

    def state(self) -> list[Any]:
        return [self._buffer.picks, [item.origin for item in self._buffer.held]]

    def waiting(self, state: Sequence[Any]) -> Iterator[Origin]:
        return iter(state[1])

    def restore(self, state: Sequence[Any]) -> None:
        self._buffer.picks, origins = state
        # Things that come of one thing one after the other, since it may be dear to make.
        order = sorted(range(len(origins)), key=lambda number: json.dumps(origins[number]))
        made = {number: self.upstream.make(origins[number]) for number in order}
        self._buffer.held[:] = [Item(one, made[number]) for number, one in enumerate(origins)]


@dataclass(frozen=True)
class Sliced(Stage):
    """Some of the things by their numbers, as ``itertools.islice`` has it."""

    start_at: int
    stop: int | None
    step: int

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"slice({self.start_at}, {self.stop}, {self.step})"

    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        return _Sliced(upstream, self)


class _Sliced(Running):
    def __init__(self, upstream: Upstream, stage: Sliced) -> None:
        super().__init__(upstream)
        self._stage = stage
        self._seen = 0

    def run(self) -> Iterator[Item]:
        first, stop, step = self._stage.start_at, self._stage.stop, self._stage.step
        left = None if stop is None else max(0, stop - self._seen)
        for item in itertools.islice(self.upstream.run(), left):
            number = self._seen
            self._seen += 1
            if number >= first and (number - first) % step == 0:
                yield item

    def state(self) -> list[Any]:
        return [self._seen]

    def restore(self, state: Sequence[Any]) -> None:
        (self._seen,) = state


@dataclass(frozen=True)
class Opaque(Stage):
    """Anybody's generator of things from things, of which nothing is known but that it gives the
    same for the same: it comes to where it stood by doing all again."""

    label: str
    filter: Filter

    def start(self, upstream: Upstream, key: int, troubles: Troubles) -> Running:
        return _Opaque(upstream, self)


class _Opaque(Running):
    replays = True

    def __init__(self, upstream: Upstream, stage: Opaque) -> None:
        super().__init__(upstream)
        self._given = 0
        self._label = stage.label
        self._wanted: dict[int, Any] = {}
        values = (item.value for item in upstream.run())
        self._values: Iterator[Any] = iter(stage.filter(values))

    def run(self) -> Iterator[Item]:
        for value in self._values:
            self._given += 1
            yield Item(self._given - 1, value)

    def state(self) -> list[Any]:
        return [self._given]

    def restore(self, state: Sequence[Any]) -> None:
        for item in itertools.islice(self.run(), state[0]):
            if item.origin in self._wanted:
                self._wanted[item.origin] = item.value
        if self._given != state[0]:
            raise LoadError(f"{self._label} does not give again what it gave")

    def positions(self, origin: Origin) -> Iterator[Position]:
        self._wanted[origin] = None
        return iter(())

    def make(self, origin: Origin) -> Any:
        value = self._wanted[origin]
        # Who gets it may change it, and it may be asked for again.
        return dict(value) if isinstance(value, dict) else value

    def settle(self) -> None:
        self._wanted = {}


class Pass:
    """One pass through a dataset: a reading and the stages behind it, at work."""

    def __init__(
        self, reading: Reading, stages: Sequence[Stage], key: int, troubles: Troubles
    ) -> None:
        self._reading = reading
        self._running: list[Running] = []
        last: Upstream = reading
        for number, stage in enumerate(stages):
            last = stage.start(last, key_of(key, "stage", number), troubles)
            self._running.append(last)
        self._last = last
        self._replays = max((n for n, one in enumerate(self._running) if one.replays), default=-1)

    def run(self) -> Iterator[Any]:
        return (item.value for item in self._last.run())

    def state(self) -> dict[str, Any]:
        """Where it stands; of what comes to it by doing all again, only how far it went."""
        states = [
            one.state() if number >= self._replays else []
            for number, one in enumerate(self._running)
        ]
        return {
            "source": self._reading.state() if self._replays < 0 else None,
            "stages": states,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where another pass through the same stood."""
        resumed = list(zip(self._running, state["stages"], strict=True))[max(self._replays, 0) :]
        wanted = {
            position
            for one, held in resumed
            for origin in one.waiting(held)
            for position in one.upstream.positions(origin)
        }
        if self._replays < 0:
            self._reading.restore(state["source"], wanted)
        for one, held in resumed:
            one.restore(held)
        self._reading.settle()
        for one in self._running:
            one.settle()


def at_work(label: str, value: Any, error: Exception) -> str:
    """What messages call a stage that an item fails in; the item, unless the error names it."""
    place = named(value)
    return label if str(error).startswith(place) else f"{label} of {place}"


def named(value: Any) -> str:
    """What messages call an item."""
    return place_of(value) if isinstance(value, Mapping) else "an item"
