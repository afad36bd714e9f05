"""Ingest: a table of video addresses becomes shards of rows, and grows by generations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from reelmill import tables
from reelmill.digest import sha256
from reelmill.errors import Rejected, StageError
from reelmill.fetch.urls import normalise
from reelmill.shards import index
from reelmill.shards.index import Row
from reelmill.store import Store
from reelmill.store.model import Action, Blob, Generation, Manifest, Result, Shard
from reelmill.tasks.contract import Params, Runtime, carried_names, key_params
from reelmill.tasks.due import NEVER, Refresh

VERSION = 1
MAX_ROWS = 10_000
"""Rows in the largest shard: a key holds the row's place in four digits."""

SPANS = pa.list_(pa.struct([("start", pa.decimal128(18, 6)), ("end", pa.decimal128(18, 6))]))
"""Spans of interest: seconds from the start of the video, half open."""

_OWN = ("url", "caption", "spans", "duplicates")
_MICROSECOND = Decimal("0.000001")


class Source(Params):
    """A table of video addresses. Columns that are not named here are carried along as they are."""

    path: str = Field(description="the table: csv, tsv, txt, json, jsonl or parquet, also .gz")
    format: str | None = Field(None, description="the table's format, if its name does not tell")
    url: str = Field("url", description="the column that holds the address")
    caption: str | None = Field(None, description="the column that holds a caption")
    spans: str | None = Field(
        None, description="the column that holds spans of interest, such as '0-2.5; 10-12' seconds"
    )
    refresh: Annotated[Refresh, Runtime] = Field(
        NEVER,
        description="whether known addresses are looked at again when a dataset is built: never; "
        "if-changed, each time; or after 30d, once that long has passed, and so on",
    )
    rows_per_shard: Annotated[int, Field(ge=1, le=MAX_ROWS)] = Field(
        100, description="rows, and so downloads, in one shard"
    )


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest found. ``blobs`` are the new index blobs, not yet in any store."""

    manifest: Manifest
    blobs: tuple[bytes, ...]
    rows: int
    new: int
    gone: int


@dataclass(slots=True)
class _Entry:
    url: str
    caption: str | None
    spans: list[tuple[Decimal, Decimal]]
    extra: dict[str, Any]
    duplicates: int = 0
    problem: tuple[str, str] | None = None


def ingest_action(source: Source, table: str, base: str | None) -> Action:
    """The action of an ingest.

    Args:
        table: sha256 of the table's bytes. Its path is not part of the key.
        base: the version that the table grew from, if there is one.
    """
    params = key_params(source)
    del params["path"]
    return Action(
        stage="ingest",
        version=VERSION,
        params=params,
        inputs={"table": {"file": table}, "base": {"manifest": base}},
    )


def ingest(source: Source, base: Manifest | None, read: Callable[[str], bytes]) -> Ingested:
    """Read the table; rows that ``base`` does not know become a new generation.

    Rows with the same address are one row: their spans are joined, and the first row's other
    columns stand. Rows of ``base`` that the table no longer holds stay.

    Args:
        read: gives the bytes of an index blob of ``base`` by digest.

    Raises:
        TableError: the table cannot be read, or a named column is missing.
        StageError: no row of the table can be used.
    """
    schema, entries = _entries(source)
    base = base or Manifest(fields=(), generations=())
    known, known_problems = _known(base, read)
    new = [
        entry
        for entry in entries
        if (
            entry.url not in known
            if entry.problem is None
            else (entry.url, entry.problem[1]) not in known_problems
        )
    ]
    if all(entry.problem for entry in entries) and not known:
        first = entries[0]
        assert first.problem is not None
        raise StageError(
            f"{source.path}: no row can be used; the first is {first.url!r}: {first.problem[1]}"
        )
    present = {entry.url for entry in entries}
    counts = {
        "rows": len(entries),
        "new": len(new),
        "gone": sum(url not in present for url in known),
    }
    if not new:
        return Ingested(base, (), **counts)
    number = sum(1 for _ in base.shards)
    shards, blobs = [], []
    for place in range(0, len(new), source.rows_per_shard):
        shard, data = _shard(number, new[place : place + source.rows_per_shard], schema)
        shards.append(shard)
        blobs.append(data)
        number += 1
    grown = Manifest(fields=(), generations=(*base.generations, Generation(shards=tuple(shards))))
    return Ingested(grown, tuple(blobs), **counts)


def commit_ingest(
    store: Store, action: Action, ingested: Ingested, how: Mapping[str, str | int]
) -> Result:
    """Put an ingest's blobs and its result into the store."""
    for data in ingested.blobs:
        store.put_blob(data, "parquet")
    data = ingested.manifest.as_bytes()
    store.put_blob(data, "json")
    totals = ingested.manifest.totals()
    result = Result(
        manifest=Blob(digest=sha256(data), size=len(data)),
        samples=totals.samples,
        rejects=totals.rejects,
    )
    return store.commit(action, result, dict(how))


def _entries(source: Source) -> tuple[pa.Schema, list[_Entry]]:
    """The table's rows, one per address, in the table's order, and the schema of their columns."""
    named = {"url": source.url, "caption": source.caption, "spans": source.spans}
    columns = {ours: theirs for ours, theirs in named.items() if theirs}
    merged: dict[tuple[str, str | None], _Entry] = {}
    extras: pa.Schema | None = None
    names: dict[str, str] = {}
    texts = [column for column in (source.url, source.caption) if column]
    batches = tables.require(
        source.path,
        tables.open_table(source.path, format=source.format, strings=texts),
        list(columns.values()),
    )
    for batch in batches:
        if extras is None:
            extras = pa.schema(
                [
                    f.with_type(pa.string()) if _is_fine(f.type) else f
                    for f in batch.schema
                    if f.name not in columns.values()
                ]
            )
            names = carried_names(extras.names, {*index.BASE.names, *_OWN})
        for row in _plain(source.path, batch):
            entry = _entry(row, columns, names)
            identity = (entry.url, entry.problem[1] if entry.problem else None)
            first = merged.setdefault(identity, entry)
            if first is not entry:
                first.duplicates += 1
                first.spans += [span for span in entry.spans if span not in first.spans]
    assert extras is not None
    own = [
        pa.field("url", pa.string()),
        pa.field("duplicates", pa.int32()),
        *([pa.field("caption", pa.string())] if source.caption else []),
        *([pa.field("spans", SPANS)] if source.spans else []),
    ]
    carried = [field.with_name(names[field.name]) for field in extras]
    return pa.schema([*own, *carried]), list(merged.values())


def _entry(row: Mapping[str, Any], columns: Mapping[str, str], extras: Mapping[str, str]) -> _Entry:
    raw = row[columns["url"]]
    caption = row[columns["caption"]] if "caption" in columns else None
    entry = _Entry(
        url="" if raw is None else str(raw),
        caption=None if caption is None else str(caption),
        spans=[],
        extra={ours: row[theirs] for theirs, ours in extras.items()},
    )
    try:
        entry.url = normalise(entry.url)
        if "spans" in columns and row[columns["spans"]] not in (None, ""):
            entry.spans = _rounded(tables.parse_spans(row[columns["spans"]]))
    except Rejected as rejected:
        entry.problem = (rejected.reason, rejected.message)
    except ValueError as error:
        entry.problem = ("bad_spans", str(error))
    return entry


def _rounded(spans: list[tuple[Decimal, Decimal]]) -> list[tuple[Decimal, Decimal]]:
    """Spans to the microsecond, as the index holds them."""
    rounded = [(start.quantize(_MICROSECOND), end.quantize(_MICROSECOND)) for start, end in spans]
    if any(start >= end for start, end in rounded):
        raise ValueError("a span is shorter than a microsecond")
    return rounded


def _plain(path: str, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch as Python values; times finer than Python's microseconds become text."""
    columns = [
        column.cast(pa.string()) if _is_fine(column.type) else column for column in batch.columns
    ]
    try:
        rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(
            columns, batch.schema.names
        ).to_pylist()
    except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:
        raise tables.TableError(
            f"{path}: a value cannot be carried: {str(error).splitlines()[0]}"
        ) from None
    return rows


def _is_fine(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns"


def _known(base: Manifest, read: Callable[[str], bytes]) -> tuple[set[str], set[tuple[str, str]]]:
    known: set[str] = set()
    problems: set[tuple[str, str]] = set()
    for shard in base.shards:
        table = index.decode(read(shard.index.digest), ["status", "message", "url"])
        for row in table.to_pylist():
            if row["status"] == index.OK:
                known.add(row["url"])
            else:
                problems.add((row["url"], row["message"]))
    return known, problems


def _shard(number: int, entries: list[_Entry], schema: pa.Schema) -> tuple[Shard, bytes]:
    rows = list(_rows(number, entries))
    data = index.encode(rows, schema)
    rejects = sum(row.status == index.REJECTED for row in rows)
    shard = Shard(
        id=f"{number:05d}",
        tar=None,
        index=Blob(digest=sha256(data), size=len(data)),
        samples=len(rows) - rejects,
        rejects=rejects,
    )
    return shard, data


def _rows(number: int, entries: list[_Entry]) -> Iterator[Row]:
    for place, entry in enumerate(entries):
        columns = {
            **entry.extra,
            "url": entry.url,
            "caption": entry.caption,
            "spans": [{"start": start, "end": end} for start, end in sorted(entry.spans)],
            "duplicates": entry.duplicates,
        }
        key = f"{number:05d}{place:04d}"
        if entry.problem is None:
            yield Row(key, columns=columns)
        else:
            yield Row(key, index.REJECTED, *entry.problem, columns=columns)
