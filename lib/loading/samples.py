"""Samples as webdataset has them: dicts of fields, with what they are called beside the fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from reelmill.errors import Rejected, one_line, told

Sample: TypeAlias = dict[str, Any]
"""Values by field; keys that begin with ``__`` are no fields: ``__key__``, ``__url__``."""

_MOST_NAMED = 30


def fields_of(sample: Mapping[str, Any]) -> list[str]:
    """The names of a sample's fields."""
    return [name for name in sample if not name.startswith("__")]


def place_of(sample: Mapping[str, Any]) -> str:
    """Which sample it is, of which shard: ``sample 000010005 of https://…/000001.tar``."""
    key, url = sample.get("__key__"), sample.get("__url__")
    named = f"sample {key}" if key is not None else "a sample"
    return one_line(f"{named} of {shown(str(url))}" if url is not None else named)


def listed(names: Iterable[str]) -> str:
    """Names in a message, few enough for a line."""
    found = list(names)
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return one_line(", ".join(found[:_MOST_NAMED]) + more) or "none"


def shown(url: str) -> str:
    """A URL without what may be secret: user, password, and the query that may sign it."""
    if "://" not in url:
        return one_line(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{one_line(url.partition('://')[0])}://…"
    host = parts.netloc.rpartition("@")[2]
    return one_line(urlunsplit((parts.scheme, host, parts.path, "", "")))


def reason(error: BaseException) -> str:
    """What went wrong with a field, in one line."""
    if isinstance(error, Rejected):
        return one_line(f"{error.reason}: {error.message}")
    return told(error)
