"""The rejects of a version, with what is known of how they came about."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from reelmill.dataset import Version
from reelmill.errors import ReelmillError, Rejected, one_line
from reelmill.fetch.urls import host_of
from reelmill.shards.index import REJECTED
from reelmill.shards.reader import ShardReader

SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("host", pa.string()),
        pa.field("url", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("last", pa.timestamp("s", "UTC")),
    ]
)
"""Columns of exported rejects. ``attempts`` and ``last`` are those of fetching, where known."""

_STATUS = re.compile(r"http_[0-9]+")
_ROWS: Final = 8192


class Reject(NamedTuple):
    """One reject. ``last`` is when it was last tried, in seconds since the epoch."""

    key: str
    reason: str
    host: str
    url: str | None
    message: str
    attempts: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rejects are meant: all of them, or only those of some reasons and hosts, and those that
    were last tried after a moment (seconds since the epoch). ``http`` is any ``http_404``."""

    reasons: Collection[str] = ()
    hosts: Collection[str] = ()
    since: float | None = None

    def has(self, reject: Reject) -> bool:
        return (
            (not self.reasons or any(is_reason(reject.reason, name) for name in self.reasons))
            and (not self.hosts or any(_is_host(reject.host, name) for name in self.hosts))
            and (self.since is None or (reject.last is not None and reject.last >= self.since))
        )


def named_reasons(text: str | None) -> list[str]:
    """The reasons in ``timeout,http_429``; none in ``None``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def is_reason(reason: str, name: str) -> bool:
    """Whether a reason is the one that is named; ``http`` names every ``http_<status>``."""
    return reason == name or (name == "http" and bool(_STATUS.fullmatch(reason)))


def rejects(version: Version, selection: Selection = Selection()) -> Iterator[Reject]:
    """The rejects of a version that count and are selected, in the order of its shards."""
    for shard in version.manifest.shards:
        if not shard.rejects:
            continue
        rows = ShardReader(version.store, shard).rows(REJECTED)
        told = version.provenance(shard)
        made = version.made(shard) if len(told) < len(rows) else None
        for row in rows:
            if version.counts(row["key"]):
                one = _reject(row, told.get(row["key"], {}), made)
                if selection.has(one):
                    yield one


def _reject(row: dict[str, Any], told: dict[str, Any], made: int | None) -> Reject:
    url = row.get("url")
    return Reject(
        key=row["key"],
        reason=row["reason"],
        host=_host(url),
        url=url,
        message=row["message"] or "",
        attempts=told.get("attempts"),
        last=told.get("ended", made),
    )


def _host(url: str | None) -> str:
    try:
        return host_of(url) if url else ""
    except Rejected:
        return ""


def _is_host(host: str, name: str) -> bool:
    return host == name or host.endswith(f".{name}")


def tally(found: Iterable[Reject]) -> Counter[tuple[str, str]]:
    """How many rejects there are by ``(reason, host)``."""
    return Counter((one.reason, one.host) for one in found)


def by_reason(tally: Counter[tuple[str, str]]) -> dict[str, Counter[str]]:
    """The hosts of each reason, the most frequent reason first."""
    found: dict[str, Counter[str]] = {}
    for (reason, host), count in tally.items():
        found.setdefault(reason, Counter())[host] += count
    return dict(sorted(found.items(), key=lambda item: (-item[1].total(), item[0])))


def export(found: Iterable[Reject], path: Path) -> int:
    """Write rejects to a table, ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; how many.

    A table of rejects can be the source of a recipe: its addresses are in the column ``url``. In
    ``.csv`` and ``.tsv``, a quotation mark precedes what a spreadsheet would take for a formula.

    Raises:
        ReelmillError: the name has no such ending, or the file cannot be written.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise ReelmillError(f"{path}: name it {', '.join(_WRITERS)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(_batches(found), path)
    except OSError as error:
        raise ReelmillError(f"cannot write {path}: {error.strerror}") from error


def _batches(found: Iterable[Reject]) -> Iterator[pa.RecordBatch]:
    held: list[Reject] = []
    for one in found:
        held.append(one)
        if len(held) == _ROWS:
            yield _batch(held)
            held = []
    yield _batch(held)


def _batch(found: list[Reject]) -> pa.RecordBatch:
    columns = list(zip(*found, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows for text, which has no moments of its own."""
    for row in batch.to_pylist():
        yield {**row, "last": row["last"] and row["last"].isoformat()}


def _write_csv(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    with pa.csv.CSVWriter(path, SCHEMA) as writer:
        return sum(_written(writer, _inert(batch)) for batch in batches)


def _write_tsv(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    """Tab separated values have no quoting, here as where Reelmill reads them."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(SCHEMA.names) + "\n")
        for batch in batches:
            for row in _rows(_inert(batch)):
                cells = ("" if cell is None else one_line(str(cell)) for cell in row.values())
                file.write("\t".join(cells) + "\n")
                count += 1
    return count


def _inert(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows for a spreadsheet, which would compute what begins like a formula."""
    columns = [
        pc.replace_substring_regex(column, r"^([=+\-@\t\r])", r"'\1")
        if pa.types.is_string(column.type)
        else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, schema=batch.schema)


def _write_parquet(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    with pa.parquet.ParquetWriter(path, SCHEMA) as writer:
        return sum(_written(writer, batch) for batch in batches)


def _written(writer: Any, batch: pa.RecordBatch) -> int:
    writer.write_batch(batch)
    rows: int = batch.num_rows
    return rows


def _write_jsonl(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for row in _rows(batch):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count


_WRITERS: Final = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
