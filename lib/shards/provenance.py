"""How the samples of a shard were had: a parquet blob beside the index, a row per key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from reelmill.errors import ShardError
from reelmill.shards import parquet

KEY: Final = pa.field("key", pa.string(), nullable=False)


def encode(rows: Mapping[str, Mapping[str, Any]], columns: pa.Schema | None) -> bytes | None:
    """The blob of ``rows``, by key of a sample or reject; ``None`` if there is nothing to say."""
    if columns is None or not rows:
        return None
    keys = sorted(rows)
    values = [[rows[key].get(name) for key in keys] for name in columns.names]
    arrays = [pa.array(column, kind) for column, kind in zip(values, columns.types, strict=True)]
    schema = pa.schema([KEY, *columns])
    return parquet.write(pa.table([pa.array(keys, KEY.type), *arrays], schema=schema))


def decode(data: bytes) -> dict[str, dict[str, Any]]:
    """The rows of a blob, by key.

    Raises:
        ShardError: the bytes are no such blob.
    """
    table = parquet.read(data, "a provenance blob")
    if "key" not in table.column_names or table["key"].type != KEY.type:
        raise ShardError("a provenance blob has no column 'key' of type string")
    return {row.pop("key"): row for row in table.to_pylist()}
