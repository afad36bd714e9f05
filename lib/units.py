"""Quantities with units, as types for the parameters of stages.

Recipes say ``8s``, ``1 GiB`` and ``50%``; models hold exact numbers; canonical JSON, and so every
action key, holds integers and decimal strings, never floats. ``Seconds``, ``Share`` and ``Number``
are decimals, ``Bytes`` is an integer, and each takes the forms its ``parse_`` function lists::

    class Params(BaseModel):
        max_seconds: Seconds = Decimal(10)
        max_size: Bytes = 2 * 1024**3

Bounds go on as usual: ``Annotated[Seconds, Field(gt=0)]``.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

__all__ = [
    "Bytes",
    "Number",
    "Seconds",
    "Share",
    "canonical",
    "format_bytes",
    "format_seconds",
    "nearest",
    "parse_bytes",
    "parse_number",
    "parse_seconds",
    "parse_share",
]

MAX_BYTES: Final = 2**53 - 1  # the largest integer that canonical JSON can carry
_DIGITS: Final = 36  # on either side of the decimal point
_PRECISION: Final = 100  # of arithmetic: no such number times a unit ever rounds

_SECONDS: Final = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
}
_SPOKEN_SECONDS: Final = {
    **{unit: unit for unit in _SECONDS},
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("hr", "hour", "hours"), "h"),
    **dict.fromkeys(("min", "minute", "minutes"), "m"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("msec", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("usec", "microsecond", "microseconds"), "us"),
}
_BYTES: Final = {
    "B": 1,
    **{unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB", "PB"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB", "PiB"), 1)},
}
# "mb" and "MB" can only be megabytes; "Mb" may be a megabit, so mixed cases must be exact.
_SPELLED_BYTES: Final = {
    spelling: unit for unit in _BYTES for spelling in (unit, unit.lower(), unit.upper())
}

# Durations below the first number of microseconds are shown in multiples of the second.
_STEPS: Final = (
    (1_000, 1),
    (1_000_000, 1_000),
    (60_000_000, 100_000),
    (3_600_000_000, 1_000_000),
    (86_400_000_000, 60_000_000),
    (float("inf"), 3_600_000_000),
)

_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_TERM: Final = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*([^\W\d_]+|%)\s*")
_MAX_TEXT: Final = 80

_repr = reprlib.Repr()
_repr.maxstring = _MAX_TEXT


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word``, or None where none is near enough to be what was meant."""
    return next(iter(difflib.get_close_matches(word[:_MAX_TEXT], choices, n=1)), None)


def canonical(value: Decimal) -> str:
    """The one spelling of a decimal: no exponent, no trailing zero, no negative zero."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parse_number(value: object) -> Decimal:
    """An exact decimal from an int, a Decimal, a float (its shortest spelling) or a string.

    Raises ValueError for anything else, for NaN and infinities, and for more than 36 digits on
    either side of the point.
    """
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _MAX_TEXT or not _NUMBER.fullmatch(text):
            raise ValueError(f"{_repr.repr(value)} is not a number")
        number = Decimal(text)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    else:
        raise ValueError(f"{_repr.repr(value)} is not a number")
    return _bounded(number, value)


def _bounded(number: Decimal, value: object) -> Decimal:
    if not number.is_finite():
        raise ValueError(f"{_repr.repr(value)} is not a finite number")
    if not number:
        return Decimal(0)
    # Magnitude first: spelling out a number such as 1e999999 would already be too much.
    if -_DIGITS <= number.adjusted() < _DIGITS:
        exact = Decimal(canonical(number))
        if int(exact.as_tuple().exponent) >= -_DIGITS:
            return exact
    raise ValueError(
        f"{_repr.repr(value)} has more than {_DIGITS} digits before or after the decimal point"
    )


def _terms(value: object, example: str) -> list[tuple[Decimal, str]]:
    """``1m30s`` as its numbers and units; a bare number has the unit ``""``."""
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError(f"{_repr.repr(value)} has a wrong type; write {example}")
        return [(parse_number(value), "")]
    text = value.strip()
    if len(text) <= _MAX_TEXT:
        if _NUMBER.fullmatch(text):
            return [(parse_number(text), "")]
        terms = _TERM.findall(text)
        if terms and not _TERM.sub("", text):
            return [(parse_number(number), unit) for number, unit in terms]
    raise ValueError(f"{_repr.repr(value)} cannot be read; write {example}")


def _unknown_unit(value: object, unit: str, meant: str | None, units: Iterable[str]) -> ValueError:
    hint = f", did you mean {meant}?" if meant else ";"
    return ValueError(
        f"{_repr.repr(value)} has an unknown unit {unit}{hint} units are {', '.join(units)}"
    )


def parse_seconds(value: object) -> Decimal:
    """Seconds from a number of seconds, or from text such as ``500ms``, ``1m30s``, ``1.5h``.

    Units are d, h, m, s, ms and us, each at most once, largest first. Raises ValueError for other
    forms, below zero, and for anything finer than a microsecond.
    """
    total = Decimal(0)
    previous = -1
    order = list(_SECONDS)
    with localcontext(prec=_PRECISION):
        for number, unit in _terms(value, "a duration such as 8, 0.5, 500ms or 1m30s"):
            name = re.sub("^[\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}]", "u", unit.lower()) or "s"
            if name not in _SECONDS:
                meant = _SPOKEN_SECONDS.get(nearest(name, _SPOKEN_SECONDS) or "")
                raise _unknown_unit(value, unit, meant, _SECONDS)
            rank = order.index(name)
            if rank <= previous:
                raise ValueError(f"{_repr.repr(value)} must hold each unit once, the largest first")
            if number < 0:
                raise ValueError(f"{_repr.repr(value)} is below zero")
            total += number * _SECONDS[name]
            previous = rank
        if total * 1_000_000 % 1:
            raise ValueError(f"{_repr.repr(value)} is finer than a microsecond")
    return _bounded(total, value)


def parse_bytes(value: object) -> int:
    """Bytes from a whole number of bytes, or from text such as ``500MB`` or ``1.5 GiB``.

    kB, MB, GB, TB and PB are powers of 1000; KiB, MiB, GiB, TiB and PiB powers of 1024. Raises
    ValueError for other forms (a bare ``k`` could be either), below zero, for a fraction of a byte,
    and above 2**53 - 1, the largest integer of canonical JSON.
    """
    (number, unit), *more = _terms(value, "a size such as 4096, 500MB or 1.5GiB")
    if more:
        raise ValueError(f"{_repr.repr(value)} must be one number and one unit")
    name = _SPELLED_BYTES.get(unit or "B")
    if name is None:
        meant = _SPELLED_BYTES.get(nearest(unit.lower(), _SPELLED_BYTES) or "")
        raise _unknown_unit(value, unit, meant, _BYTES)
    with localcontext(prec=_PRECISION):
        total = number * _BYTES[name]
        if total < 0:
            raise ValueError(f"{_repr.repr(value)} is below zero")
        if total % 1:
            raise ValueError(f"{_repr.repr(value)} is not a whole number of bytes")
    if total > MAX_BYTES:
        raise ValueError(f"{_repr.repr(value)} is more than {MAX_BYTES} bytes")
    return int(total)


def parse_share(value: object) -> Decimal:
    """A share of a whole, from 0 to 1: ``0.5`` or ``50%``.

    Raises ValueError for other forms and outside that range.
    """
    (number, unit), *more = _terms(value, "a share such as 0.5 or 50%")
    if more or unit not in ("", "%"):
        raise ValueError(f"{_repr.repr(value)} cannot be read; write a share such as 0.5 or 50%")
    with localcontext(prec=_PRECISION):
        share = _bounded(number / 100, value) if unit else number
    if not 0 <= share <= 1:
        percent = not unit and 1 < share <= 100
        hint = f"; did you mean {canonical(share)}%?" if percent else ""
        raise ValueError(f"{_repr.repr(value)} is not between 0 and 1 (0% and 100%){hint}")
    return share


def _form(description: str, examples: list[str], units: str) -> WithJsonSchema:
    # A short pattern, since forms show it to people; the parser has the last word.
    pattern = rf"^\s*[0-9.][0-9.\s{units}]*$"
    shown = {"type": "string", "pattern": pattern, "description": description, "examples": examples}
    return WithJsonSchema(shown, mode="validation")


_SPELLING = PlainSerializer(canonical, return_type=str, when_used="json")

Seconds = Annotated[
    Decimal,
    BeforeValidator(parse_seconds),
    _SPELLING,
    _form(
        "A duration: seconds, or a number with d, h, m, s, ms or us",
        ["8s", "1m30s", "500ms"],
        "dhmsuDHMSU\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}",
    ),
]
"""A duration in seconds: at least 0, exact to the microsecond; a decimal string in JSON."""

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    _form(
        "A size: bytes, or a number with a unit",
        ["1 GiB", "500MB", "4096"],
        "kmgtpibKMGTPIB",
    ),
]
"""A size in bytes, at least 0; an integer in JSON."""

Share = Annotated[
    Decimal,
    BeforeValidator(parse_share),
    _SPELLING,
    _form("A share of a whole: 0 to 1, or a percentage", ["50%", "0.5"], "%"),
]
"""A share of a whole, from 0 to 1; a decimal string in JSON."""

Number = Annotated[
    Decimal,
    BeforeValidator(parse_number),
    _SPELLING,
    WithJsonSchema({"type": "number", "description": "A decimal number"}, mode="validation"),
]
"""An exact decimal without a unit, such as a detector's threshold; a decimal string in JSON."""


def format_bytes(size: int) -> str:
    """A size in bytes for people, to one decimal: ``512 B``, ``1.5 GiB``."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        # 1023.96 would print as 1024.0 of a unit that has a better one above it.
        if round(value, 1) < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def format_seconds(seconds: float | Decimal) -> str:
    """A duration in seconds for people, in at most two units: ``850ms``, ``8.5s``, ``1m30s``.

    What it prints, ``parse_seconds`` reads. Raises OverflowError or ValueError where ``seconds``
    is not finite.
    """
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    exact = round(seconds * 1_000_000)
    us = exact
    # Round to what is shown before choosing the units, or 59.97 s would print as 60s.
    for limit, step in _STEPS:
        us = (exact + step // 2) // step * step
        if us < limit:
            break
    if 1_000_000 <= us < 60_000_000:
        return f"{canonical(Decimal(us) / 1_000_000)}s"
    parts = []
    for unit, size in _SECONDS.items():
        count, us = divmod(us, int(size * 1_000_000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
