"""Files in the order in which somebody wants them, as far as waiting for it is cheap."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Final

from reelmill.fetch.transfer import Fetched, Outcome

MAX_HELD: Final = 128
"""Files that are held back for one that comes before them, at most."""

MAX_HELD_BYTES: Final = 64 << 20
"""Bytes of those that are in memory, at most."""


def in_turn(
    outcomes: Iterable[tuple[str, Outcome]],
    keys: Sequence[str],
    *,
    max_held: int = MAX_HELD,
    max_held_bytes: int = MAX_HELD_BYTES,
) -> Generator[tuple[str, Outcome], None, None]:
    """Pass outcomes on in the order of ``keys``, but failures at once.

    One that is slow holds up no more than the given count and bytes: beyond, the first of those
    that wait goes ahead of its turn. What waits is closed with the generator.

    Args:
        outcomes: by key, each key once.
        keys: all of them.
    """
    place = {key: number for number, key in enumerate(keys)}
    held: dict[int, tuple[str, Fetched]] = {}
    gone: set[int] = set()
    turn = size = 0
    try:
        for key, outcome in outcomes:
            number = place[key]
            if isinstance(outcome, Fetched):
                held[number] = key, outcome
                size += _weight(outcome)
            else:
                gone.add(number)
                yield key, outcome
            while held:
                while turn in gone:
                    gone.remove(turn)
                    turn += 1
                if turn not in held and len(held) <= max_held and size <= max_held_bytes:
                    break
                first = turn if turn in held else min(held)
                gone.add(first)
                key, ready = held.pop(first)
                size -= _weight(ready)
                yield key, ready
        for number in sorted(held):
            yield held.pop(number)
    finally:
        for _, waiting in held.values():
            waiting.close()


def _weight(file: Fetched) -> int:
    return file.size if file.path is None else 0
