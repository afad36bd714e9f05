"""Tuples: which frames of a clip belong together, found while frames pass by once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count as counting
from typing import Annotated, Any, Generic, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from reelmill.tasks.contract import MAX_COUNT, Params

T = TypeVar("T")
F = TypeVar("F")

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class StepParams(Params):
    """Samples of several frames: how many, how far apart, and where they begin."""

    count: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="frames in a sample; 3 makes triplets"
    )
    stride: Count = Field(1, description="frames from one picture of a sample to the next")
    step: Count | None = Field(
        None, description="frames from one sample's start to the next; without it none overlap"
    )

    @model_validator(mode="after")
    def _has_a_stride(self) -> Self:
        if self.count == 1 and self.stride > 1:
            raise ValueError("stride is for several frames a sample; step parts single ones")
        return self

    def effective(self) -> dict[str, Any]:
        return {"step": self.every}

    @property
    def every(self) -> int:
        """Frames from one sample's start to the next."""
        return self.step or self.count * self.stride

    @property
    def reach(self) -> int:
        """Frames from a sample's first to its last."""
        return (self.count - 1) * self.stride


class TupleParams(StepParams):
    """The same of a clip, and how many."""

    max_samples: Count | None = Field(
        None, description="samples of one clip at most, from its start"
    )

    def window(self, starts: Iterable[int] | None = None) -> Window[Any]:
        """What gathers the samples of one clip: those that begin at ``starts`` (ascending), or
        those at every step."""
        begins = counting(0, self.every) if starts is None else starts
        return Window(self.count, self.stride, begins, self.max_samples)


class Window(Generic[T]):
    """Gathers tuples of ``count`` places, ``stride`` apart, that begin at ``starts`` (ascending),
    from items that come once each, by ascending place, and are shared by the tuples that overlap.

    It holds those items that a tuple in the making still needs, and the tuples of which it is not
    yet settled whether a cut parts them. No tuple spans a cut: a place with which a scene begins.
    ``most`` bounds the tuples that are given.
    """

    def __init__(
        self, count: int, stride: int, starts: Iterable[int], most: int | None = None
    ) -> None:
        self._count, self._stride, self._most = count, stride, most
        self._reach = (count - 1) * stride
        self._starts = iter(starts)
        self._next = next(self._starts, None)
        self._begun: dict[int, None] = {}  # starts of tuples in the making, ascending
        self._items: dict[int, T] = {}
        self._made: deque[tuple[list[int], list[T]]] = deque()
        self._given = 0

    def wants(self, place: int) -> bool:
        """Whether the item of the next place is part of any tuple; it must be put, then."""
        while self._next is not None and self._next <= place:
            self._begun[self._next] = None
            self._next = next(self._starts, None)
        return any(place - i * self._stride in self._begun for i in range(self._count))

    def put(self, place: int, item: T) -> None:
        """Take the item of a place that is wanted."""
        self._items[place] = item
        start = place - self._reach
        if start in self._begun:
            places = list(range(start, place + 1, self._stride))
            self._made.append((places, [self._items[one] for one in places]))
            self._end(start)

    def cut(self, place: int) -> None:
        """A scene begins with this place: what spans it is no tuple."""
        for start in [one for one in self._begun if one < place <= one + self._reach]:
            self._end(start)
        self._made = deque(made for made in self._made if not made[0][0] < place <= made[0][-1])

    def take(self, settled: int | None = None) -> Iterator[tuple[list[int], list[T]]]:
        """The tuples that are complete, each with its places: those that end at or before the place
        ``settled``, behind which cuts may still be found, or all (None)."""
        while self._made and not self.is_full:
            if settled is not None and self._made[0][0][-1] > settled:
                return
            self._given += 1
            yield self._made.popleft()

    @property
    def is_full(self) -> bool:
        """Whether no more tuples are wanted."""
        if self._most is not None and self._given >= self._most:
            return True
        return self._next is None and not self._begun and not self._made

    @property
    def given(self) -> int:
        """How many tuples were given."""
        return self._given

    def _end(self, start: int) -> None:
        del self._begun[start]
        oldest = next(iter(self._begun), start + self._reach + 1)
        for place in [one for one in self._items if one < oldest]:
            del self._items[place]


class Cuts(Protocol):
    """What knows where scenes begin, from what it is told of each frame."""

    def see(self, number: int, frame: Any) -> tuple[Sequence[int], int]:
        """Take the next frame: the numbers of frames with which scenes are now known to begin, and
        the number of the last one of which it is settled whether a scene begins with it."""

    def finish(self) -> Sequence[int]:
        """The cuts that only the end makes certain."""


class NoCuts:
    """A clip that is of one scene, or whose cuts do not matter."""

    def see(self, number: int, frame: Any) -> tuple[Sequence[int], int]:
        return (), number

    def finish(self) -> Sequence[int]:
        return ()


def gathered(
    frames: Iterable[F],
    window: Window[T],
    cuts: Cuts,
    item: Callable[[int, F], T],
    numbers: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], list[T]]]:
    """Tuples of all ``frames`` of a clip, which come in order: the places of each, and what
    ``item`` makes of its frames. That is asked once for a frame, however many tuples have it, and
    not for those that are part of none. Frames behind the last tuple are not asked for.

    A place is a frame's number, or, where only some frames count or some count more than once, one
    in ``numbers``, ascending.
    """
    place = 0
    for number, frame in enumerate(frames):
        found, settled = cuts.see(number, frame)
        for cut in found:
            window.cut(cut if numbers is None else bisect_left(numbers, cut))
        end = number + 1 if numbers is None else bisect_right(numbers, number, lo=place)
        made: list[T] = []
        for one in range(place, end):
            if window.wants(one):
                made = made or [item(number, frame)]
                window.put(one, made[0])
        place = end
        yield from window.take(settled if numbers is None else bisect_right(numbers, settled) - 1)
        if window.is_full:
            return
    for cut in cuts.finish():
        window.cut(cut if numbers is None else bisect_left(numbers, cut))
    yield from window.take()
