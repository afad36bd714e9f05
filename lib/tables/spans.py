"""Spans of interest: the pairs of seconds that a cell of a table names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Final

_CLOCK = re.compile(r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,10}(?:\.[0-9]{0,30})?)")
_LATEST: Final = Decimal(10**9)
_DECIMALS: Final = 30


def parse_spans(value: object) -> list[tuple[Decimal, Decimal]]:
    """Return the ``(start, end)`` pairs that a cell of a spans column names, in seconds.

    A cell holds a list of pairs, the same as JSON text, or text such as ``0-2.5;10-12``. A time is
    a number of seconds or a clock reading, ``1:02.5`` or ``00:01:02.5``. Pairs keep their order and
    may overlap. An empty cell names none.

    Raises:
        ValueError: Anything else; a start that is negative or not before its end; a time that is
            not finite, beyond 10⁹ seconds, or has more than 30 decimals.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = _spans_of_text(value.strip())
    if not isinstance(value, Sequence):
        raise ValueError(f"spans are pairs of seconds, not {value!r:.80}")
    return [_span(pair) for pair in value]


def _spans_of_text(text: str) -> object:
    if text.startswith("["):
        try:
            return json.loads(text, parse_float=Decimal, parse_constant=Decimal)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"spans are not valid JSON: {text:.80}") from error
    return [part.split("-") for part in text.split(";") if part.strip()]


def _span(pair: object) -> tuple[Decimal, Decimal]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"a span is a start and an end, such as 0-2.5, not {pair!r:.80}")
    start, end = map(_seconds, pair)
    if start >= end:
        raise ValueError(f"a span ends after it starts, unlike {start}-{end}")
    return start, end


def _seconds(value: object) -> Decimal:
    if isinstance(value, str):
        seconds = _clock_seconds(value.strip())
    elif isinstance(value, float):
        # The digits that the number was written with, not those of its binary neighbour.
        seconds = Decimal(float.__repr__(value))
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        seconds = Decimal(value)
    else:
        raise ValueError(f"a time is a number of seconds, not {value!r:.80}")
    if not (seconds.is_finite() and 0 <= seconds < _LATEST):
        raise ValueError(f"a time is from 0 to {_LATEST} seconds, not {seconds:.6g}")
    if int(seconds.as_tuple().exponent) < -_DECIMALS:
        raise ValueError(f"a time has at most {_DECIMALS} decimals")
    return seconds.copy_abs()


def _clock_seconds(text: str) -> Decimal:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"a time is seconds or [hours:]minutes:seconds, not {text!r:.80}")
    hours, minutes, rest = match.groups()
    seconds = Decimal(rest)
    if minutes is None:
        return seconds
    if seconds >= 60 or (hours is not None and int(minutes) >= 60):
        raise ValueError(f"minutes and seconds of a clock reading are below 60, unlike {text!r}")
    # Exact: the default context would round to 28 digits.
    with localcontext(prec=50):
        return seconds + 60 * (int(minutes) + 60 * int(hours or 0))
