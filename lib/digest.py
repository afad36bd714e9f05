"""Names made from content: canonical JSON, sha256 digests, and the keyed order of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import rfc8785
import xxhash

ORDER_SEED = 0x7265656C6D696C6C
"""Seed of the order in which samples lie in a shard: the ASCII bytes of ``reelmill``."""

SHORT = 12
"""Hexadecimal digits of a digest that people see: ``clips@3fa9c1d20b7e``."""


def sha256(data: bytes) -> str:
    """The sha256 of ``data``, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: Mapping[str, Any]) -> bytes:
    """``value`` as RFC 8785 canonical JSON.

    Raises:
        TypeError: a float is in it. Floats print differently from one writer to the next; a
            document that is a name holds integers and strings.
    """
    _refuse_floats(value, "$")
    return rfc8785.dumps(dict(value))


def plain_json(value: Mapping[str, Any]) -> bytes:
    """``value``, which may hold floats, as RFC 8785 canonical JSON."""
    try:
        # The standard library's encoder is ten times as fast, and writes the same where names sort
        # alike by character and by UTF-16 code, and floats need no exponent.
        text = json.dumps(_simple(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode()
    except (_NotSimpleError, UnicodeEncodeError):
        return rfc8785.dumps(dict(value))


def json_integer(value: int) -> int | str:
    """An integer as canonical JSON carries it: as text where it is one of no float's."""
    return value if -(2**53) < value < 2**53 else str(value)


class _NotSimpleError(Exception):
    pass


def _simple(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int and -(2**53) < value < 2**53:
        return value
    if kind is float and (value == 0 or 1e-4 <= abs(value) < 1e15):
        return int(value) if value.is_integer() else value
    if kind is dict and all(type(name) is str and name.isascii() for name in value):
        return {name: _simple(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [_simple(item) for item in value]
    raise _NotSimpleError


def _refuse_floats(value: Any, where: str) -> None:
    if isinstance(value, float):
        raise TypeError(f"{where} is a float; a digest is taken of integers and strings only")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_floats(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _refuse_floats(item, f"{where}[{place}]")


def order_hash(key: str, seed: int = ORDER_SEED) -> int:
    """The place of a sample in the keyed order: xxh3-64 of its key, an unsigned 64-bit integer.

    Every shard lies in this order, so the samples of one output shard of a shuffle are one
    contiguous run of each input shard.
    """
    return xxhash.xxh3_64_intdigest(key.encode(), seed)
