"""Rows of a source that no longer count: keys, why, and the row that took a row's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa

from reelmill.errors import ShardError
from reelmill.shards import parquet

SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("instead", pa.string()),
    ]
)
"""``key`` is that of a row of the source, with which the keys of all that derives from it begin;
``instead`` is the key of the row that replaces it, if one does."""

PLACE_DIGITS: Final = 4
"""Digits of a source's key that are a row's place in its shard; those before are the shard's."""

GONE: Final = "gone"
"""The table no longer holds the row."""

RETRIED: Final = "retried"
"""The row was a reject, and was fetched again under another key."""

CHANGED: Final = "changed"
"""The bytes behind the address changed, and were fetched again under another key."""


class Removed(NamedTuple):
    """Why a row no longer counts, and the key of the one that does instead."""

    reason: str
    instead: str | None = None


def encode(rows: Mapping[str, Removed]) -> bytes:
    """The blob of ``rows``, by key; equal rows give equal bytes for one version of pyarrow."""
    keys = sorted(rows)
    table = pa.table(
        [keys, [rows[key].reason for key in keys], [rows[key].instead for key in keys]],
        schema=SCHEMA,
    )
    return encode_table(table)


def encode_table(table: pa.Table) -> bytes:
    """The blob of rows of `SCHEMA`, whose keys are sorted: what `encode` gives for equal rows."""
    return parquet.write(table.combine_chunks())


def decode(data: bytes) -> dict[str, Removed]:
    """The rows of a blob, by key.

    Raises:
        ShardError: the bytes are no such blob.
    """
    columns: list[list[Any]] = [column.to_pylist() for column in decode_table(data).columns]
    return {key: Removed(reason, instead) for key, reason, instead in zip(*columns, strict=True)}


def decode_table(data: bytes) -> pa.Table:
    """The rows of a blob as a table of `SCHEMA`: for those that are many.

    Raises:
        ShardError: the bytes are no such blob.
    """
    table = parquet.read(data, "a list of removed rows")
    if not table.schema.equals(SCHEMA) or table["key"].null_count or table["reason"].null_count:
        raise ShardError("a list of removed rows has other columns than it should, or gaps in them")
    return table


def renamed(data: bytes, prefix: str) -> bytes:
    """The blob of the same rows with ``prefix`` before their keys."""
    return encode(
        {
            prefix + key: Removed(why.reason, why.instead and prefix + why.instead)
            for key, why in decode(data).items()
        }
    )


def shard_of(key: str) -> str:
    """The ID of the shard of the source in which the row of a key lies."""
    return key[:-PLACE_DIGITS]


def source_key(key: str) -> str:
    """The key of the row of the source that the sample of a key derives from."""
    return key.partition("_")[0]
