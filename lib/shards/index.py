"""The parquet index of a shard: one row per sample and per reject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reelmill.errors import ShardError
from reelmill.shards import parquet

OK = "ok"
REJECTED = "rejected"

BASE = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        # Where the sample's members lie in the tar, headers and padding included, and the
        # xxh3-64 of those bytes; null for rejects and for tables of addresses, which have no tar.
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("xxh3", pa.uint64()),
        pa.field(
            "fields",
            pa.list_(
                pa.struct(
                    [
                        pa.field("name", pa.string(), nullable=False),
                        pa.field("offset", pa.int64(), nullable=False),
                        pa.field("size", pa.int64(), nullable=False),
                    ]
                )
            ),
        ),
    ]
)
"""Columns that every index has. A field's offset and size are those of its data in the tar."""

MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Member:
    """A field's data within a tar: offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class Row:
    """One row of an index. ``columns`` holds the metadata of the stage."""

    key: str
    status: str = OK
    reason: str | None = None
    message: str | None = None
    offset: int | None = None
    size: int | None = None
    xxh3: int | None = None
    fields: Sequence[Member] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


def schema_with(columns: pa.Schema) -> pa.Schema:
    """The base columns and a stage's own.

    Raises:
        ValueError: a stage's column has the name of a base column, or the name of another.
    """
    names = [*BASE.names, *columns.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"index columns defined twice: {', '.join(twice)}")
    return pa.schema([*BASE, *columns])


def own_columns(schema: pa.Schema) -> pa.Schema:
    """The columns of an index beside those that every index has."""
    return pa.schema([field for field in schema if field.name not in BASE.names])


def encode(rows: Iterable[Row], columns: pa.Schema) -> bytes:
    """An index as parquet bytes; equal rows give equal bytes for one version of pyarrow."""
    schema = schema_with(columns)
    rows = list(rows)
    arrays: dict[str, list[Any]] = {
        "key": [row.key for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
        "message": [row.message and row.message[:MAX_MESSAGE] for row in rows],
        "offset": [row.offset for row in rows],
        "size": [row.size for row in rows],
        "xxh3": [row.xxh3 for row in rows],
        "fields": [
            [{"name": m.name, "offset": m.offset, "size": m.size} for m in row.fields]
            if row.status == OK
            else None
            for row in rows
        ],
        **{name: [row.columns.get(name) for row in rows] for name in columns.names},
    }
    return write(pa.table([_array(arrays[part.name], part.type) for part in schema], schema=schema))


def encode_table(keys: pa.Array, table: pa.Table) -> bytes:
    """An index of samples without a tar as parquet bytes: those that `encode` gives equal rows.

    Args:
        table: the columns ``status``, ``reason`` and ``message``, then those of the stage.
    """
    own = ["status", "reason", "message"]
    table = table.combine_chunks()
    rejected = pc.equal(table["status"], REJECTED).combine_chunks()
    kind = BASE.field("fields").type
    none = pa.array([], kind.value_type)
    offsets = pa.array(np.zeros(len(keys) + 1, np.int32))
    columns = {
        "key": keys,
        "status": table["status"],
        "reason": table["reason"],
        "message": pc.utf8_slice_codeunits(table["message"], 0, MAX_MESSAGE),
        **{name: pa.nulls(len(keys), BASE.field(name).type) for name in ("offset", "size", "xxh3")},
        "fields": pa.ListArray.from_arrays(offsets, none, type=kind, mask=rejected),
    }
    stage = table.drop_columns(own)
    schema = schema_with(stage.schema)
    return write(pa.table([*columns.values(), *stage.columns], schema=schema))


def rejects(keys: pa.Array, reason: str, message: str, columns: pa.Schema) -> pa.Table:
    """Rows of samples that were left out for one reason, with nothing in the stage's columns."""
    count = len(keys)
    given = {
        "key": keys,
        "status": pa.repeat(REJECTED, count),
        "reason": pa.repeat(reason, count),
        "message": pa.repeat(message, count),
    }
    schema = schema_with(columns)
    arrays = [given.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.table(arrays, schema=schema)


def encode_rows(rows: pa.Table, columns: pa.Schema) -> bytes:
    """An index that is a table already as parquet bytes: those that `encode` gives equal rows."""
    schema = schema_with(columns)
    rows = rows.select(schema.names).combine_chunks()
    return write(pa.table(rows.columns, schema=schema))


def write(table: pa.Table) -> bytes:
    """A whole index as parquet bytes; equal tables give equal bytes for one version of pyarrow."""
    return parquet.write(table, row_group_size=65536)


def decode(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """An index, or some columns of it, from parquet bytes.

    Raises:
        ShardError: the bytes are no index, or one with impossible offsets.
    """
    wanted = None if columns is None else list(columns)
    table = parquet.read(data, "an index", wanted)
    names = BASE.names if wanted is None else [name for name in wanted if name in BASE.names]
    for name in names:
        if name not in table.column_names or table[name].type != BASE.field(name).type:
            raise ShardError(f"an index has no column {name!r} of type {BASE.field(name).type}")
        if not BASE.field(name).nullable and table[name].null_count:
            raise ShardError(f"an index has a row without {name}")
    if any(_has_negative(table, name) for name in names):
        raise ShardError("an index has a negative offset or size")
    return table


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    # Text from strangers may hold half of a surrogate pair, which UTF-8 cannot.
    if pa.types.is_string(kind):
        values = [v and v.encode("utf-8", "backslashreplace").decode() for v in values]
    return pa.array(values, kind)


def _has_negative(table: pa.Table, name: str) -> bool:
    columns = [table[name]] if name in ("offset", "size") else []
    if name == "fields":
        cells = table[name].combine_chunks().flatten()
        columns = [cells.field("offset"), cells.field("size")]
    return any((pc.min(column).as_py() or 0) < 0 for column in columns)


def as_row(cells: Mapping[str, Any], columns: Mapping[str, Any]) -> Row:
    """A row as it was read, as one to be written with the ``columns`` of another stage."""
    base = {name: cells[name] for name in BASE.names}
    return Row(**{**base, "fields": members(cells["fields"]), "columns": columns})


def members(fields: Sequence[Mapping[str, Any]] | None) -> tuple[Member, ...]:
    """The ``fields`` cell of a row."""
    return tuple(Member(f["name"], f["offset"], f["size"]) for f in fields or ())
