"""Scores as a parquet file, so that a threshold can be changed without decoding again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from reelmill.digest import json_integer, plain_json
from reelmill.errors import Rejected, ShardError
from reelmill.media.scenes.contract import Clock, Scores
from reelmill.shards import parquet

MAX_VALUES = 2**26
"""Values of a file of scores, at most: parquet packs any number of equal ones into a few bytes."""

_PTS = "pts"
_CLOCK = b"clock"
_RATIO = re.compile(r"[0-9]{1,19}(/[0-9]{1,19})?")
_TICK = re.compile(r"-?[0-9]{1,19}")


def pack(scores: Scores) -> bytes:
    """One row for each frame: its int64 ``pts``, and its scores as float64; the clock is in the
    schema's metadata. Equal scores give equal bytes."""
    clock = {
        "time_base": str(scores.clock.time_base),
        "rate": str(scores.clock.rate),
        "origin": json_integer(scores.clock.origin),
        "end": json_integer(scores.end),
    }
    table = pa.table({_PTS: scores.pts, **scores.columns})
    return parquet.write(table.replace_schema_metadata({_CLOCK: plain_json(clock)}))


def unpack(data: bytes) -> Scores:
    """What :func:`pack` gave. Raises :class:`~reelmill.errors.Rejected` (``bad_scores``) where it
    is something else: fields of that name may be anyone's."""
    try:
        table = parquet.read(data, "a file of scores", most=MAX_VALUES)
        about = json.loads((table.schema.metadata or {})[_CLOCK])
        clock, end = _clock(about), _ticks(about, "end")
        pts = _column(table, _PTS, pa.int64())
        if int(pts.max()) >= end:
            raise ValueError
        names = [name for name in table.column_names if name != _PTS]
        return Scores(clock, pts, end, {name: _column(table, name, pa.float64()) for name in names})
    except (ShardError, pa.ArrowException, ValueError, TypeError, KeyError, RecursionError):
        raise Rejected("bad_scores", "its scores are not what stage scores makes") from None


def _clock(about: Mapping[str, Any]) -> Clock:
    """Raises ``ValueError``, ``TypeError`` or ``KeyError`` where it is none."""
    return Clock(ratio(about["time_base"]), ratio(about["rate"]), _ticks(about, "origin"))


def ratio(text: str) -> Fraction:
    """A positive fraction such as ``1001/30000``. Raises ``ValueError`` or ``TypeError`` where it
    is none, or of more digits than those of video have: ``1e999999999`` would take for ever."""
    if not _RATIO.fullmatch(text):
        raise ValueError(f"not a ratio: {text[:40]!r}")
    above, _, below = text.partition("/")
    if not int(above) or not int(below or 1):
        raise ValueError("a ratio that is not positive")
    return Fraction(int(above), int(below or 1))


def _ticks(about: Mapping[str, Any], name: str) -> int:
    text = str(about[name])
    if not _TICK.fullmatch(text):
        raise ValueError(f"{name} is no time")
    return int(text)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> NDArray[Any]:
    """A column of the table that has values and no gap."""
    column = table[name]
    if column.type != kind or column.null_count or not len(column):
        raise ValueError(f"{name} is no column of {kind}")
    values: NDArray[Any] = column.to_numpy()
    return values
