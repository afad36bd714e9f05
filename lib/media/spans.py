"""Spans of time: half-open ``[start, end)``, in seconds as fractions, so that no frame is counted
twice or lost to rounding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil
from numbers import Rational
from typing import Literal, TypeAlias

from reelmill.errors import Rejected

Span: TypeAlias = tuple[Fraction, Fraction]
"""``(start, end)`` in seconds; it holds every frame with ``start <= pts < end``."""

MAX_SPANS = 10_000
"""Most spans of one video: a header of a few bytes can claim a length of years."""

Seconds: TypeAlias = Rational | float | str
"""Seconds as a number, or as text: ``"12.5"`` or ``"[HH:]MM:SS[.fff]"``."""

Remainder: TypeAlias = Literal["keep", "drop", "merge"]
"""What becomes of a last window that is shorter than the others: see :func:`fixed`."""

Pick: TypeAlias = Literal["first", "spread"]
"""Which spans stay where there are too many: see :func:`few`."""

_CLOCK = re.compile(r"(?:(?:[0-9]+:)?[0-9]+:)?[0-9]+(?:\.[0-9]+)?")


def seconds(value: Seconds) -> Fraction:
    """Exact seconds as they are written: ``0.1`` is one tenth, not the float's binary neighbour.

    Raises ``ValueError`` where ``value`` is no finite time.
    """
    if isinstance(value, Rational):
        return Fraction(value)
    if isinstance(value, float):
        return Fraction(repr(float(value)))
    if not _CLOCK.fullmatch(value):
        raise ValueError(f"not a time: {value!r}")
    total = Fraction(0)
    for field in value.split(":"):
        total = total * 60 + Fraction(field)
    return total


def fixed(
    start: Fraction,
    end: Fraction,
    length: Fraction,
    *,
    stride: Fraction | None = None,
    remainder: Remainder = "keep",
) -> list[Span]:
    """Windows of ``length`` seconds, one every ``stride`` (default: ``length``), from ``start``.

    The last one reaches ``end`` and may be shorter. Such a ``remainder`` is kept (:func:`bound`
    drops it if it is too short), dropped, or merged: the window before it then reaches ``end``. A
    remainder that has no window before it, the whole being shorter than ``length``, is merged with
    nothing and kept.
    Raises ``ValueError`` where ``length`` or ``stride`` is not positive, or where gaps between
    windows would be merged along, and Rejected ``too_many_clips`` for more than ``MAX_SPANS``.
    """
    step = length if stride is None else stride
    if length <= 0 or step <= 0:
        raise ValueError("the length and the stride of spans must be positive")
    if remainder == "merge" and step > length:
        raise ValueError("a remainder behind a gap cannot be merged")
    count = max(0, ceil((end - start) / step))
    # A window that begins when another has already reached the end would repeat its tail.
    count = min(count, max(0, ceil((end - start - length) / step)) + 1)
    _refuse(count)
    windows = [(at, min(at + length, end)) for at in (start + step * i for i in range(count))]
    if remainder == "keep" or not windows or windows[-1][1] - windows[-1][0] == length:
        return windows
    if remainder == "drop":
        return windows[:-1]
    return [*windows[:-2], (windows[-2][0], end)] if len(windows) > 1 else windows


def windows(
    spans: Iterable[Span],
    length: Fraction,
    *,
    stride: Fraction | None = None,
    remainder: Remainder = "keep",
) -> list[Span]:
    """Each of ``spans`` divided as by :func:`fixed`: no window reaches from one into the next.

    Raises as :func:`fixed` does, for the windows of all spans together.
    """
    made: list[Span] = []
    for start, end in spans:
        made += fixed(start, end, length, stride=stride, remainder=remainder)
        _refuse(len(made))
    return made


def given(spans: Iterable[tuple[Seconds, Seconds]], start: Fraction, end: Fraction) -> list[Span]:
    """The ``spans`` that someone wrote down, in their order, clipped to ``[start, end)``.

    Those that have nothing in it are left out. Raises ``ValueError`` where one is no time, or ends
    before it begins.
    """
    clipped = []
    for first, last in spans:
        a, b = seconds(first), seconds(last)
        if a > b:
            raise ValueError(f"a span ends before it begins: {first!r} to {last!r}")
        a, b = max(a, start), min(b, end)
        if a < b:
            clipped.append((a, b))
    return clipped


def bound(
    spans: Iterable[Span], min_seconds: Fraction = Fraction(0), max_seconds: Fraction | None = None
) -> list[Span]:
    """Drop spans shorter than ``min_seconds``; divide those longer than ``max_seconds``.

    A long span becomes the fewest equal parts that fit. Where those would be too short (the maximum
    is less than twice the minimum), it becomes parts of the maximum, without the remainder.
    Raises ``ValueError`` where the maximum is not positive or below the minimum, and Rejected
    ``too_many_clips`` for more than ``MAX_SPANS``.
    """
    if max_seconds is not None and not 0 < max_seconds >= min_seconds:
        raise ValueError("the longest span must be positive and not below the shortest")
    bounded: list[Span] = []
    for start, end in spans:
        if end - start < min_seconds:
            continue
        parts, length = 1, end - start
        if max_seconds is not None and length > max_seconds:
            parts = ceil(length / max_seconds)
            length = (end - start) / parts
            if length < min_seconds:
                parts, length = (end - start) // max_seconds, max_seconds
        _refuse(len(bounded) + parts)
        bounded += [(start + length * i, start + length * (i + 1)) for i in range(parts)]
    return bounded


def few(spans: Sequence[Span], most: int | None, pick: Pick = "first") -> list[Span]:
    """At most ``most`` (at least 1) of ``spans``, in their order: the first ones, or ``spread``
    evenly, as the middles of ``most`` equal runs of them."""
    if most is None or len(spans) <= most:
        return list(spans)
    if pick == "first":
        return list(spans[:most])
    return [spans[(2 * i + 1) * len(spans) // (2 * most)] for i in range(most)]


def _refuse(count: int) -> None:
    if count > MAX_SPANS:
        raise Rejected("too_many_clips", f"{count} spans; {MAX_SPANS} at most are cut")
