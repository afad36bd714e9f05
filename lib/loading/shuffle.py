"""A shuffle with a buffer, whose picks depend on a key and on their number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from reelmill.loading.plan import picked

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shuffle:
    """A buffer of ``size`` things; picking begins when ``initial`` of them are there, which the
    source decides if it is ``None``."""

    size: int
    initial: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or (self.initial is not None and self.initial < 1):
            raise ValueError("a shuffle needs a buffer of 1 or more")


class Buffer(Generic[T]):
    """Things that wait to be picked. It fills as webdataset's does: by two for each that is picked.

    Attributes:
        held: what waits, in an order that decides what is picked next.
        picks: how many were picked.
    """

    def __init__(self, size: int, initial: int, key: int) -> None:
        self._size = size
        self._initial = min(initial, size)
        self._key = key
        self.held: list[T] = []
        self.picks = 0

    def run(self, things: Iterator[T]) -> Iterator[T]:
        """The things in another order. ``held`` and ``picks`` may be set before, to go on."""
        held = self.held
        for thing in things:
            held.append(thing)
            if len(held) < self._size:
                held.extend(_next(things))
            if len(held) >= self._initial:
                yield self._pick()
        while held:
            yield self._pick()

    def _pick(self) -> T:
        held = self.held
        place = picked(len(held), self.picks, self._key)
        self.picks += 1
        held[place], held[-1] = held[-1], held[place]
        return held.pop()


def _next(things: Iterator[T]) -> Iterator[T]:
    for thing in things:
        yield thing
        return
