"""Which frames are decoded for those that were asked for, and where each of them goes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

Indices: TypeAlias = Iterable[int] | slice
"""Numbers of frames: a slice, a range, a list, an array or a tensor of whole numbers. They may
repeat, come in any order, and be negative, from the end."""


@dataclass(frozen=True)
class Plan:
    """``numbers`` are those of the frames to decode, ascending, each once. The frame at each of
    their positions goes to all of the ``places`` there, of which there are ``count`` together."""

    numbers: list[int]
    places: list[list[int]]
    count: int

    @property
    def is_plain(self) -> bool:
        """Whether the frames were asked for as they are decoded."""
        return len(self.numbers) == self.count and all(
            places == [position] for position, places in enumerate(self.places)
        )


def planned(indices: Indices, frames: int) -> Plan:
    """How to get the frames with these ``indices`` out of a video of so many ``frames``.

    Raises:
        IndexError: there is no such frame.
        TypeError: an index is no whole number.
    """
    wanted = asked(indices, frames)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(wanted):
        places.setdefault(number, []).append(place)
    numbers = sorted(places)
    return Plan(numbers, [places[number] for number in numbers], len(wanted))


def asked(indices: Indices, frames: int) -> list[int]:
    """The numbers of the frames with these ``indices``, from 0, in the order asked; raises as
    :func:`planned` does."""
    if isinstance(indices, slice):
        return list(range(*indices.indices(frames)))
    # Arrays and tensors give Python's own numbers all at once; one by one is far slower.
    told: Any = indices.tolist() if hasattr(indices, "tolist") else indices
    if not isinstance(told, Iterable):
        raise TypeError(f"frames are asked for by a sequence of numbers, not by {told!r}")
    return [number_of(index, frames) for index in told]


def number_of(index: Any, frames: int) -> int:
    """The number, from 0, of the frame with one ``index``; raises as :func:`planned` does."""
    if isinstance(index, bool):
        raise TypeError("frames are asked for by their numbers, not by truth values")
    number = operator.index(index)
    if not -frames <= number < frames:
        raise IndexError(
            f"there is no frame {number}: the video has {frames}, from 0 to {frames - 1}"
        )
    return number % frames
