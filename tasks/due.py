"""When a known address is looked at again."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from reelmill.units import canonical, parse_seconds

NEVER: Final = "never"
IF_CHANGED: Final = "if-changed"
_AFTER: Final = "after "


def _refresh(value: object) -> str:
    text = value.strip() if isinstance(value, str) else value
    if text in (NEVER, IF_CHANGED):
        return str(text)
    if isinstance(text, str) and text.startswith(_AFTER):
        seconds = parse_seconds(text.removeprefix(_AFTER))
        if seconds > 0:
            return f"{_AFTER}{canonical(seconds)}s"
    raise ValueError(f"must be {NEVER}, {IF_CHANGED}, or {_AFTER}a time such as 30d")


Refresh = Annotated[
    str,
    BeforeValidator(_refresh),
    WithJsonSchema({"type": "string", "examples": [NEVER, IF_CHANGED, "after 30d"]}),
]
"""Whether a known address is looked at again: ``never``; ``if-changed``, at every build; or
``after 30d``, at the first build when that long has passed since, and so on."""


def due(refresh: str, made: int, now: int) -> dict[str, int | str] | None:
    """The slot of the check that is due for what was fetched at ``made``, if one is.

    Times are in seconds since the epoch. Equal slots are one check, however often it is asked for.
    """
    if refresh == NEVER:
        return None
    if refresh == IF_CHANGED:
        return {"moment": now}
    period = parse_seconds(refresh.removeprefix(_AFTER))
    rounds = int(max(0, now - made) / period)
    return {"after": canonical(period), "round": rounds} if rounds else None
