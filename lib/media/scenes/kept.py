"""Scores as a parquet file, so that a threshold can be changed without decoding again."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa

from reelmill.digest import plain_json
from reelmill.errors import Rejected, ShardError
from reelmill.media.scenes.contract import Clock, Scores
from reelmill.shards import parquet

_PTS = "pts"
_CLOCK = b"clock"


def pack(scores: Scores) -> bytes:
    """One row for each frame: its int64 ``pts``, and its scores as float64; the clock is in the
    schema's metadata. Equal scores give equal bytes."""
    clock = {
        "time_base": str(scores.clock.time_base),
        "rate": str(scores.clock.rate),
        "origin": scores.clock.origin,
        "end": scores.end,
    }
    table = pa.table({_PTS: scores.pts, **scores.columns})
    return parquet.write(table.replace_schema_metadata({_CLOCK: plain_json(clock)}))


def unpack(data: bytes) -> Scores:
    """What :func:`pack` gave. Raises :class:`~reelmill.errors.Rejected` (``bad_scores``) where it
    is something else."""
    try:
        table = parquet.read(data, "a file of scores")
        clock = json.loads((table.schema.metadata or {})[_CLOCK])
        rate, time_base = Fraction(clock["rate"]), Fraction(clock["time_base"])
        if rate <= 0 or time_base <= 0 or not len(table):
            raise ValueError
        pts = table[_PTS].to_numpy().astype(np.int64)
        columns = {
            name: table[name].to_numpy().astype(np.float64)
            for name in table.column_names
            if name != _PTS
        }
        return Scores(Clock(time_base, rate, int(clock["origin"])), pts, int(clock["end"]), columns)
    except (ShardError, pa.ArrowException, ValueError, TypeError, KeyError, ZeroDivisionError):
        raise Rejected("bad_scores", "its scores are not what stage scores makes") from None
