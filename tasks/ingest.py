"""Ingest: a table of video addresses becomes shards of rows, and grows by generations.

A table may have more rows than memory holds. It is read twice: once to find out which rows are
new, by digests of their addresses that lie on disk, and once to write those down.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from reelmill import tables
from reelmill.digest import sha256
from reelmill.errors import Rejected, StageError
from reelmill.fetch.urls import MAX_LENGTH, NORMAL, normalise
from reelmill.shards import index, removed
from reelmill.store import Store
from reelmill.store.model import (
    Action,
    Blob,
    Generation,
    Manifest,
    Ref,
    Result,
    Shard,
    Totals,
    Uncounted,
)
from reelmill.store.store import now
from reelmill.tables import Table, TableError
from reelmill.tables.distinct import (
    BUCKET_ROWS,
    Array,
    Distinct,
    Outcome,
    Spill,
    digests,
    room,
)
from reelmill.tables.formats import map_type
from reelmill.tasks.contract import Params, Runtime, carried_names, key_params
from reelmill.tasks.due import NEVER, Refresh

T = TypeVar("T")
R = TypeVar("R")

VERSION = 2
MAX_ROWS = 10**removed.PLACE_DIGITS
"""Rows in the largest shard: a key has no more digits for a row's place."""

MAX_SPANS = 100_000
"""Spans of interest of one video, in all rows of its address together."""

SPANS = pa.list_(pa.struct([("start", pa.decimal128(18, 6)), ("end", pa.decimal128(18, 6))]))
"""Spans of interest: seconds from the start of the video, half open."""

Progress = Callable[[str, int], object]
"""Is told what is being done, in a word or two, and with how many rows so far."""

_OWN = ("url", "caption", "spans", "duplicates")
_TOO_MANY: Final = "too_many_spans"
_MICROSECOND = Decimal("0.000001")
_READERS: Final = 4
_WRITERS: Final = 2
# Small shards are waiting for the store more than they are work.
_SMALL_ROWS: Final = 1000
_SMALL_WRITERS: Final = 8


class Source(Params):
    """A table of video addresses. Columns that are not named here are carried along as they are."""

    path: Annotated[str | list[str], Runtime] = Field(
        description="the table: a file (csv, tsv, txt, json or jsonl, also .gz or .zst; parquet, "
        "arrow), a folder, a pattern such as part-{000..099}.csv or **/*.parquet, or a list of "
        "those; here or in an object store"
    )
    format: str | None = Field(
        None,
        description="the format, if names do not tell; 'videos' and 'webdataset' take the video "
        "files, or the tars, that are at the path as the rows, 'sequences' the sequences of "
        "pictures in folders, zips and tars",
    )
    folders: str | None = Field(
        None,
        min_length=1,
        description="of sequences: a pattern of the folders that are one with all below them, such "
        "as */scene_*; without it, each folder that holds pictures is one by itself",
    )
    columns: Mapping[str, str] = Field(
        {}, description="new names of columns, by those they have in the table"
    )
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
    rows_per_shard: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = Field(
        None,
        description="rows, and so downloads, in one shard; by default 100, or a single tar or "
        "sequence",
    )
    removed: Literal["keep", "drop"] = Field(
        "keep", description="what becomes of rows that are no longer in the table"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path or not all(self.paths):
            raise ValueError("path is empty")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns gives two columns one name")
        if self.folders is not None and self.format != tables.SEQUENCES:
            raise ValueError("folders is for format: sequences")
        if self.format == tables.SEQUENCES and self.refresh != NEVER:
            raise ValueError("refresh is for addresses; sequences that are known stay as they are")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The table's paths; most have one."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)

    @property
    def shard_rows(self) -> int:
        """Rows in a full shard, said or not."""
        return self.rows_per_shard or _usual_rows(self.format or tables.format_of(self.paths))

    def effective(self) -> dict[str, Any]:
        kind = self.format or tables.format_of(self.paths)
        # A key that had no folders stays the one it was.
        no_folders = {"folders": None} if self.folders is None else {}
        return {"format": kind, "rows_per_shard": self.shard_rows, **no_folders}

    def settled(self, table: Table) -> Source:
        """The source with what its table tells filled in, for its action key."""
        rows = self.rows_per_shard or _usual_rows(table.format)
        return self.model_copy(update={"format": table.format, "rows_per_shard": rows})


def _usual_rows(format: str | None) -> int:
    return 1 if format in ("webdataset", tables.SEQUENCES) else 100


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest found.

    Attributes:
        rows: different addresses in the table, and different rows that cannot be used.
        new: those that the base does not know.
        known: addresses that the base holds and that count there.
        gone: those of them that the table no longer holds.
        back: rows of the base that counted no longer, since they were gone, and count again.
        removed: the blob that the manifest names as removed, if there is one.
    """

    manifest: Manifest
    rows: int
    new: int
    known: int
    gone: int
    back: int
    removed: bytes | None


def open_source(source: Source) -> Table:
    """The table of a source.

    Raises:
        TableError: nothing is there, or it is of no known format.
    """
    texts = [column for column in (source.url, source.caption) if column]
    return tables.open_table(
        source.paths,
        format=source.format,
        strings=texts,
        rename=source.columns,
        folders=source.folders,
    )


def ingest_action(source: Source, table: str, base: str | None) -> Action:
    """The action of an ingest.

    Args:
        table: sha256 of what the table holds. Its path is not part of the key.
        base: the version that the table grew from, if there is one.
    """
    return Action(
        stage="ingest",
        version=VERSION,
        params=key_params(source),
        inputs={"table": {"file": table}, "base": {"manifest": base}},
    )


def same_table(one: Action, other: Action) -> bool:
    """Whether two ingests are of the same table in the same way, whatever it grew from."""
    return (one.version, one.params, one.inputs["table"]) == (
        other.version,
        other.params,
        other.inputs.get("table"),
    )


def ingest(
    source: Source,
    base: Manifest | None,
    read: Callable[[str], bytes],
    write: Callable[[bytes], object] | None = None,
    progress: Progress | None = None,
    table: Table | None = None,
) -> Ingested:
    """Read the table; rows that ``base`` does not know become a new generation.

    Rows with the same address are one row: their spans are joined, and the first row's other
    columns stand. Rows of ``base`` that the table no longer holds stay in its shards; if the source
    drops them, the manifest names them as removed.

    Memory does not grow with the table, but for a bit a row and the list of its shards.

    Args:
        read: gives the bytes of a parquet blob of ``base`` by digest; several threads call it.
        write: is given the new parquet blobs, each as soon as it is made; several threads call it.
        table: the source's table, if it is open already.

    Raises:
        TableError: the table cannot be read, or a named column is missing.
        StageError: no row of the table can be used, or the disk for temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="reelmill-ingest-") as folder:
        work = _Ingest(
            source=source,
            table=table or open_source(source),
            base=base or Manifest(fields=(), generations=()),
            read=read,
            write=write or (lambda data: None),
            progress=progress or (lambda what, rows: None),
            folder=Path(folder),
        )
        return work.run()


def commit_ingest(
    store: Store, action: Action, ingested: Ingested, how: Mapping[str, str | int]
) -> Result:
    """Put an ingest's manifest and its result into the store, which holds its other blobs."""
    if ingested.removed is not None:
        store.put_blob(ingested.removed, "parquet")
    data = ingested.manifest.as_bytes()
    store.put_blob(data, "json")
    totals = ingested.manifest.totals()
    result = Result(
        manifest=Blob(digest=sha256(data), size=len(data)),
        samples=totals.samples,
        rejects=totals.rejects,
    )
    return store.commit(action, result, dict(how))


def commit_grown(
    store: Store,
    name: str,
    action: Action,
    version: str,
    *,
    base: str | None,
    totals: Totals,
    lost: Uncounted | None,
    run: str,
) -> bool:
    """Commit the version to which a table grew from ``base``, or from nothing; whether nobody else
    let it grow meanwhile, by rows that this version knows nothing of.

    Args:
        action: the one that made it, whose result is in the store.
        lost: what no longer counts of ``totals``.
    """
    ref = Ref(
        event="commit",
        version=version,
        tags=("latest",),
        time=now(),
        run=run,
        stage="ingest",
        totals=totals,
        action=action.key,
        uncounted=lost,
    )
    return store.grow_ref(name, ref, base)


@dataclass(slots=True)
class _Base:
    """What an ingest needs to know of a shard of the version that the table grew from: which of its
    rows count, which of those are addresses, and which count no longer since they were gone."""

    shard: Shard
    rows: int
    live: Array
    usable: Array
    left: Array

    def flags(self, packed: Array) -> Array:
        return np.unpackbits(packed, count=self.rows).astype(bool)


@dataclass(slots=True)
class _Ingest:
    """One ingest, in the order of its work."""

    source: Source
    table: Table
    base: Manifest
    read: Callable[[str], bytes]
    write: Callable[[bytes], object]
    progress: Progress
    folder: Path
    bases: list[_Base] = field(default_factory=list)
    first_problem: tuple[str, str] | None = None
    has_usable: bool = False

    def run(self) -> Ingested:
        source = self.source
        named = [name for name in (source.url, source.caption, source.spans) if name]
        self.table.require(named)
        layout = _Layout.of(source, self.table)
        gone_before = self._removed_before()
        distinct = Distinct(self.folder)
        self._know(distinct, gone_before)
        fixes = _Fixes(self.folder)
        spans = Spill(self.folder, "spans", _SPAN)
        rows = self._add(distinct, fixes, spans)
        if not self.has_usable and not any(one.usable.any() for one in self.bases):
            assert self.first_problem is not None
            url, message = self.first_problem
            raise StageError(
                f"{self.table.name}: no row can be used; the first is {url!r}: {message}"
            )
        outcome = distinct.settle(
            pairs=source.spans is not None, told=lambda: self.progress("comparing rows", rows)
        )
        if source.spans:
            _join_spans(rows, outcome, spans)
        shards = _Writer(self, layout, outcome, fixes, spans).shards()
        return self._ingested(shards, outcome, gone_before)

    # What is known

    def _removed_before(self) -> pa.Table:
        tables = [removed.decode_table(self.read(blob.digest)) for blob in self.base.removed]
        return pa.concat_tables([removed.SCHEMA.empty_table(), *tables])

    def _know(self, distinct: Distinct, gone_before: pa.Table) -> None:
        """Feed in the rows of the base, shard by shard."""
        listed = _by_shard(gone_before)
        columns = ["status", "message", "reason", "url", *(["key"] if listed else [])]
        shards = list(self.base.shards)
        seen = 0

        def load(shard: Shard) -> pa.Table:
            return index.decode(self.read(shard.index.digest), columns)

        for shard, rows in zip(shards, _in_threads(load, shards, _READERS), strict=True):
            usable = pc.equal(rows["status"], index.OK)
            # A row with too many spans, of several rows together, is known by its address alone.
            plain = pc.or_(usable, pc.equal(pc.fill_null(rows["reason"], ""), _TOO_MANY))
            texts = pc.if_else(plain, rows["url"], _identity(rows["message"], rows["url"]))
            distinct.know(digests(texts))
            live = np.ones(len(rows), bool)
            left = np.zeros(len(rows), bool)
            if shard.id in listed:
                keys, reasons = listed[shard.id]
                place = pc.index_in(rows["key"], value_set=keys).to_numpy(zero_copy_only=False)
                live = np.isnan(place)
                was_left = pc.equal(pc.take(reasons, pc.index_in(rows["key"], keys)), removed.GONE)
                left = pc.fill_null(was_left, False).to_numpy(zero_copy_only=False)
            is_usable = usable.to_numpy(zero_copy_only=False) & live
            self.bases.append(_Base(shard, len(rows), *map(np.packbits, (live, is_usable, left))))
            seen += len(rows)
            self.progress("reading known rows", seen)

    # What is there

    def _add(self, distinct: Distinct, fixes: _Fixes, spans: Spill) -> int:
        """Feed in the rows of the table; how many there are."""
        names = [name for name in (self.source.url, self.source.spans) if name]
        rows = 0
        for row, batch in self.table.batches(names):
            given = pc.fill_null(batch.column(self.source.url), "")
            cells = batch.column(self.source.spans) if self.source.spans else None
            found = _Scan(row, given, cells)
            spans.by_row(found.spans)
            fixes.add(found.fixes)
            distinct.add(digests(found.identities))
            if found.mentions:
                distinct.mention(digests(pa.array(found.mentions, pa.string())))
            problems = len(found.problems)
            if problems and self.first_problem is None:
                place, message = next(iter(found.problems.items()))
                self.first_problem = given[place].as_py(), message
            self.has_usable = self.has_usable or problems < len(batch)
            rows = row + len(batch)
            self.progress("reading rows", rows)
        fixes.close()
        return rows

    # What comes of it

    def _ingested(
        self, shards: tuple[Shard, ...], outcome: Outcome, gone_before: pa.Table
    ) -> Ingested:
        gone = back = known = start = 0
        gone_keys: list[pa.Array] = []
        back_keys: list[pa.Array] = []
        drop = self.source.removed == "drop"
        for one in self.bases:
            there = outcome.mentioned.slice(start, start + one.rows)
            start += one.rows
            usable = one.flags(one.usable)
            known += int(usable.sum())
            gone += int((usable & ~there).sum())
            leaves, returns = one.flags(one.live) & ~there & drop, one.flags(one.left) & there
            back += int(returns.sum())
            if leaves.any() or returns.any():
                rows = index.decode(self.read(one.shard.index.digest), ["key"])
                keys = rows["key"].combine_chunks()
                gone_keys.append(keys.filter(pa.array(leaves)))
                back_keys.append(keys.filter(pa.array(returns)))
        blob = _removed_now(gone_before, gone_keys, back_keys)
        generations = self.base.generations
        if shards:
            generations = (*generations, Generation(shards=shards))
        manifest = Manifest(
            fields=self.base.fields,
            generations=generations,
            removed=(Blob(digest=sha256(blob), size=len(blob)),) if blob else (),
        )
        new = sum(shard.samples + shard.rejects for shard in shards)
        return Ingested(manifest, outcome.rows, new, known, gone, back, blob)


def _identity(messages: Any, urls: Any) -> Any:
    """What rows that cannot be used are told apart by; no message holds a zero byte."""
    return pc.binary_join_element_wise(pc.fill_null(messages, ""), urls, "\0")


def _by_shard(rows: pa.Table) -> dict[str, tuple[pa.Array, pa.Array]]:
    """Keys and reasons of removed rows, by the shard that their keys name."""
    if not len(rows):
        return {}
    shards = pc.utf8_slice_codeunits(rows["key"], 0, -removed.PLACE_DIGITS).combine_chunks()
    order = pc.sort_indices(shards)
    shards, rows = shards.take(order), rows.take(order).combine_chunks()
    runs = pc.run_end_encode(shards)
    parts, start = {}, 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        part = rows.slice(start, end - start)
        parts[shard] = (part["key"].combine_chunks(), part["reason"].combine_chunks())
        start = end
    return parts


def _removed_now(
    before: pa.Table, gone: Sequence[pa.Array], back: Sequence[pa.Array]
) -> bytes | None:
    """The blob of the rows that no longer count, if there are any."""
    kept = before
    if back:
        returned = pa.chunked_array(back, pa.string()).combine_chunks()
        kept = before.filter(pc.invert(pc.is_in(before["key"], value_set=returned)))
    keys = pa.chunked_array(gone, pa.string())
    added = pa.table(
        [keys, pa.repeat(removed.GONE, len(keys)), pa.nulls(len(keys), pa.string())],
        schema=removed.SCHEMA,
    )
    rows = pa.concat_tables([kept, added]).sort_by("key")
    return removed.encode_table(rows) if len(rows) else None


def _in_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """What ``work`` gives for each item, in order, made ahead by some threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- Addresses and spans ---------------------------------------------------------------------

_SPAN: Final = np.dtype([("row", "<u8"), ("start", "<i8"), ("end", "<i8")])
"""A span of a row, in microseconds."""

_FIX: Final = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("url", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""A row whose address is spelt otherwise than in the table, or that cannot be used."""


class _Scan:
    """What a batch of rows comes to.

    Attributes:
        problems: messages about rows that cannot be used, by their places in the batch.
        fixes: what differs from the table, as columns of ``_FIX``.
        spans: those that the cells name.
        identities: what rows are told apart by.
        mentions: addresses in rows that cannot be used for another reason.
    """

    def __init__(self, first: int, urls: pa.Array, cells: pa.Array | None) -> None:
        self.problems: dict[int, str] = {}
        self.mentions: list[str] = []
        self._fixed: dict[int, tuple[str, str | None, str | None]] = {}
        for place in np.flatnonzero(~_is_normal(urls)).tolist():
            self._normalise(place, urls[place].as_py())
        self.spans = np.empty(0, _SPAN)
        if cells is not None:
            self._parse(first, urls, cells)
        places = sorted(self._fixed)
        columns = zip(*(self._fixed[place] for place in places), strict=True)
        fixed, reasons, messages = columns if places else ([], [], [])
        self.fixes = pa.record_batch(
            [
                pa.array([first + place for place in places], pa.int64()),
                pa.array(fixed, pa.string()),
                pa.array(reasons, pa.string()),
                pa.array(messages, pa.string()),
            ],
            schema=_FIX,
        )
        self.identities = urls
        if places:
            changed = self.fixes
            spelt = changed["url"]
            told = pc.if_else(
                changed["message"].is_null(), spelt, _identity(changed["message"], spelt)
            )
            self.identities = pc.replace_with_mask(urls, _mask(len(urls), places), told)

    def _normalise(self, place: int, given: str) -> None:
        try:
            url = normalise(given)
        except Rejected as rejected:
            self._reject(place, given, rejected.reason, rejected.message)
        else:
            if url != given:
                self._fixed[place] = (url, None, None)

    def _parse(self, first: int, urls: pa.Array, cells: pa.Array) -> None:
        rows: list[tuple[int, int, int]] = []
        for place, cell in enumerate(cells.to_pylist()):
            if cell is None or cell == "" or place in self.problems:
                continue
            try:
                spans = _spans(cell)
            except ValueError as error:
                fixed = self._fixed.get(place)
                url = fixed[0] if fixed else urls[place].as_py()
                self.mentions.append(url)
                self._reject(place, url, "bad_spans", str(error))
            else:
                rows += [(first + place, start, end) for start, end in spans]
        self.spans = np.array(rows, _SPAN)

    def _reject(self, place: int, url: str, reason: str, message: str) -> None:
        self.problems[place] = message = message[: index.MAX_MESSAGE]
        self._fixed[place] = (url, reason, message)


def _is_normal(urls: pa.Array) -> Array:
    """Whether `normalise` is sure to return a URL as it is."""
    fits = pc.match_substring_regex(urls, NORMAL)
    short = pc.less_equal(pc.binary_length(urls), MAX_LENGTH)
    normal: Array = pc.and_(fits, short).to_numpy(zero_copy_only=False)
    return normal


def _mask(length: int, places: Sequence[int] | Array) -> pa.Array:
    mask = np.zeros(length, bool)
    mask[places] = True
    return pa.array(mask)


def _spans(cell: object) -> set[tuple[int, int]]:
    """The spans of a cell in microseconds, to which the index holds them.

    Raises:
        ValueError: they are none, too short, or too many.
    """
    spans = _quickly(cell) if isinstance(cell, str) else None
    if spans is None:
        spans = [(_rounded(start), _rounded(end)) for start, end in tables.parse_spans(cell)]
    if len(spans) > MAX_SPANS:
        raise ValueError(f"more than {MAX_SPANS} spans")
    if any(start >= end for start, end in spans):
        raise ValueError("a span is shorter than a microsecond")
    return set(spans)


_TIME: Final = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
_SIMPLE: Final = re.compile(rf"{_TIME}-{_TIME}(?:; ?{_TIME}-{_TIME})*")


def _quickly(text: str) -> list[tuple[int, int]] | None:
    """What `tables.parse_spans` makes of text of the simplest form, in a tenth of its time."""
    if not _SIMPLE.fullmatch(text):
        return None
    times = [
        int(whole) * 1_000_000 + int(decimals.ljust(6, "0"))
        for whole, _, decimals in (time.partition(".") for time in re.split("-|; ?", text))
    ]
    spans = list(zip(times[::2], times[1::2], strict=True))
    return spans if all(start < end for start, end in spans) else None


def _rounded(seconds: Decimal) -> int:
    return int(seconds.quantize(_MICROSECOND).scaleb(6))


def _join_spans(rows: int, outcome: Outcome, spans: Spill) -> None:
    """Give the spans of rows that came again to the first row of their address."""
    joined = Spill(spans.folder, "joined", _SPAN)
    for bucket in range(rows // BUCKET_ROWS + 1):
        pairs = outcome.pairs.read(bucket)
        pairs = pairs[np.argsort(pairs["row"])]
        for piece in spans.pieces(bucket) if len(pairs) else ():
            place = np.searchsorted(pairs["row"], piece["row"]).clip(max=len(pairs) - 1)
            again = pairs["row"][place] == piece["row"]
            moved = piece[again].copy()
            moved["row"] = pairs["first"][place[again]]
            joined.by_row(moved)
    for bucket in range(rows // BUCKET_ROWS + 1):
        for piece in joined.pieces(bucket):
            spans.by_row(piece)
        joined.drop(bucket)


class _Fixes:
    """Rows that differ from the table, in a file, read again in the order in which they came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = str(folder / "fixes.arrow")
        self._writer: Any = pa.ipc.new_stream(self._path, _FIX)

    def add(self, fixes: pa.RecordBatch) -> None:
        if fixes.num_rows:
            with room(self._folder):
                self._writer.write_batch(fixes)

    def close(self) -> None:
        self._writer.close()

    def between(self) -> Callable[[int, int], pa.RecordBatch]:
        """A function that gives those from one row up to another, for rows that ascend."""
        batches = iter(pa.ipc.open_stream(pa.OSFile(self._path)))
        held = [_FIX.empty_table()]

        def between(start: int, stop: int) -> pa.RecordBatch:
            table = held[0]
            while not len(table) or table["row"][-1].as_py() < stop:
                rest = table.slice(_place(table, start))
                batch = next(batches, None)
                if batch is None:
                    table = rest
                    break
                table = pa.concat_tables([rest, pa.Table.from_batches([batch])]).combine_chunks()
            held[0] = table.slice(_place(table, start))
            return held[0].slice(0, _place(held[0], stop))

        return between


def _place(table: pa.Table, row: int) -> int:
    return int(np.searchsorted(table["row"].to_numpy(), row))


# --- Shards ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of the index: what they are called, and the table's that fill them."""

    schema: pa.Schema
    source: Source
    carried: Mapping[str, str]

    @classmethod
    def of(cls, source: Source, table: Table) -> _Layout:
        """The layout for a table.

        Raises:
            TableError: an index cannot hold a column.
        """
        named = (source.url, source.caption, source.spans)
        extras = [one for one in table.schema if one.name not in named]
        names = carried_names([one.name for one in extras], {*index.BASE.names, *_OWN})
        own = [
            pa.field("url", pa.string()),
            pa.field("duplicates", pa.int32()),
            *([pa.field("caption", pa.string())] if source.caption else []),
            *([pa.field("spans", SPANS)] if source.spans else []),
        ]
        carried = [pa.field(names[one.name], map_type(one.type, _coarse)) for one in extras]
        for one in carried:
            try:
                index.encode_table(pa.array([], pa.string()), _STATUS.append(one).empty_table())
            except pa.ArrowException as error:
                what = str(error).splitlines()[0]
                raise TableError(
                    f"{table.name}: column {one.name!r} of {one.type} cannot be carried: {what}"
                ) from None
        return cls(pa.schema([*_STATUS, *own, *carried]), source, names)

    def fill(self, table: Table, batch: pa.RecordBatch, made: Mapping[str, Any]) -> pa.Table:
        """Rows of the index, from rows of the table and the columns that were made for them."""
        columns = dict(made)
        if self.source.caption:
            columns["caption"] = batch.column(self.source.caption)
        for theirs, ours in self.carried.items():
            try:
                column = batch.column(theirs).cast(self.schema.field(ours).type)
                _refuse_unspeakable(column)
            except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:
                what = str(error).splitlines()[0]
                raise TableError(f"{table.name}: a value cannot be carried: {what}") from None
            columns[ours] = column
        return pa.table([columns[one.name] for one in self.schema], schema=self.schema)


_STATUS: Final = pa.schema([index.BASE.field(name) for name in ("status", "reason", "message")])


def _coarse(kind: pa.DataType) -> pa.DataType:
    """Times finer than Python's microseconds become text."""
    fine = pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns"
    return pa.string() if fine else kind


def _refuse_unspeakable(column: pa.Array) -> None:
    """Fail of times that Python has no value for: no stage could read them."""
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        pc.min_max(column).as_py()
    elif pa.types.is_duration(kind) or pa.types.is_nested(kind):
        column.to_pylist()


class _Writer:
    """Writes the new rows down as shards."""

    def __init__(
        self, work: _Ingest, layout: _Layout, outcome: Outcome, fixes: _Fixes, spans: Spill
    ) -> None:
        self._work = work
        self._layout = layout
        self._new = outcome.new
        self._counts = _Loaded(outcome.counts)
        self._spans = _Loaded(spans)
        self._fixes = fixes.between()

    def shards(self) -> tuple[Shard, ...]:
        """The shards of the new rows, whose blobs are written."""
        size = self._work.source.settled(self._work.table).rows_per_shard
        assert size is not None
        threads = _SMALL_WRITERS if size < _SMALL_ROWS else _WRITERS
        return tuple(_in_threads(self._shard, self._numbered(size), threads))

    def _shard(self, numbered: tuple[int, pa.Table]) -> Shard:
        number, rows = numbered
        name = f"{number:05d}"
        keys = pc.binary_join_element_wise(name, _PLACES.slice(0, len(rows)), "")
        data = index.encode_table(keys, rows)
        self._work.write(data)
        rejects = pc.sum(pc.equal(rows["status"], index.REJECTED)).as_py()
        return Shard(
            id=name,
            tar=None,
            index=Blob(digest=sha256(data), size=len(data)),
            samples=len(rows) - rejects,
            rejects=rejects,
        )

    def _numbered(self, size: int) -> Iterator[tuple[int, pa.Table]]:
        number = sum(1 for _ in self._work.base.shards)
        done, pending = 0, self._layout.schema.empty_table()
        for rows in self._rows():
            pending = pa.concat_tables([pending, rows])
            start = 0
            while len(pending) - start >= size:
                yield number, pending.slice(start, size)
                number, start = number + 1, start + size
            pending = pending.slice(start)
            done += len(rows)
            self._work.progress("writing new rows", done)
        if len(pending):
            yield number, pending

    def _rows(self) -> Iterator[pa.Table]:
        table = self._work.table
        for first, batch in table.batches(wanted=self._new.any):
            # Bucket by bucket: what is known of rows is held for one bucket at a time.
            last = first + len(batch)
            edges = [first, *range(first - first % BUCKET_ROWS + BUCKET_ROWS, last, BUCKET_ROWS)]
            for start, stop in zip(edges, [*edges[1:], last], strict=True):
                places = np.flatnonzero(self._new.slice(start, stop))
                if len(places):
                    part = batch.slice(start - first, stop - start)
                    yield self._made(part.take(pa.array(places)), start, stop, places)

    def _made(self, batch: pa.RecordBatch, start: int, stop: int, places: Array) -> pa.Table:
        """Rows of the index for new rows of the table, from their places behind ``start``."""
        source = self._work.source
        count, rows = len(places), (places + start).astype(np.uint64)
        url = pc.fill_null(batch.column(source.url), "")
        reason = message = pa.nulls(count, pa.string())
        fixes = self._fixes(start, stop)
        fixed = fixes["row"].to_numpy().astype(np.uint64)
        is_new = np.isin(fixed, rows)
        if is_new.any():
            fixes = fixes.filter(pa.array(is_new)).combine_chunks()
            mask = _mask(count, np.searchsorted(rows, fixed[is_new]))
            url, reason, message = (
                pc.replace_with_mask(old, mask, fixes[name].combine_chunks())
                for old, name in ((url, "url"), (reason, "reason"), (message, "message"))
            )
        made: dict[str, Any] = {}
        if source.spans:
            spans, too_many = self._joined(start // BUCKET_ROWS, rows)
            made["spans"] = spans
            mask = pa.array(too_many)
            text = f"more than {MAX_SPANS} spans in all rows of this address"
            reason = pc.if_else(mask, _TOO_MANY, reason)
            message = pc.if_else(mask, text, message)
        made |= {"url": url, "reason": reason, "message": message}
        made["status"] = pc.if_else(reason.is_null(), index.OK, index.REJECTED)
        made["duplicates"] = self._duplicates(start // BUCKET_ROWS, rows)
        return self._layout.fill(self._work.table, batch, made)

    def _duplicates(self, bucket: int, rows: Array) -> pa.Array:
        counts = self._counts.of(bucket)
        duplicates = np.zeros(len(rows), np.int64)
        if len(counts):
            place = np.searchsorted(counts["row"], rows).clip(max=len(counts) - 1)
            known = counts["row"][place] == rows
            duplicates[known] = counts["count"][place[known]]
        return pa.array(duplicates.clip(max=2**31 - 1), pa.int32())

    def _joined(self, bucket: int, rows: Array) -> tuple[pa.Array, Array]:
        """The spans of rows, sorted, and which have too many; those are left without any."""
        held = self._spans.of(bucket)
        start = np.searchsorted(held["row"], rows)
        counts = np.searchsorted(held["row"], rows, side="right") - start
        too_many = counts > MAX_SPANS
        counts[too_many] = 0
        ends = np.cumsum(counts)
        places = np.arange(counts.sum()) + np.repeat(start - (ends - counts), counts)
        pairs = [_seconds(held[name][places]) for name in ("start", "end")]
        spans = pa.StructArray.from_arrays(pairs, fields=list(SPANS.value_type))
        offsets = pa.array(np.r_[0, ends].astype(np.int32))
        return pa.ListArray.from_arrays(offsets, spans, type=SPANS), too_many


class _Loaded:
    """The records of one bucket at a time, each once, in order."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._bucket: int | None = None
        self._records: Array = spill.read(-1)

    def of(self, bucket: int) -> Array:
        """The records of a bucket; buckets ascend."""
        if bucket != self._bucket:
            self._bucket, self._records = bucket, self._spill.read(-1)
            for piece in self._spill.pieces(bucket):
                self._records = _bounded(np.concatenate([self._records, piece]))
        return self._records


def _bounded(records: Array) -> Array:
    """Records sorted, each once, and no more of one row than tell that it has too many."""
    names = records.dtype.names
    assert names
    records = records[np.lexsort([records[name] for name in reversed(names)])]
    if not len(records):
        return records
    fresh = np.r_[True, records[1:] != records[:-1]]
    records = records[fresh]
    row = records["row"]
    place = np.arange(len(records)) - np.searchsorted(row, row)
    return records[place <= MAX_SPANS]


def _seconds(microseconds: Array) -> pa.Array:
    """Microseconds, none below zero, as decimals of seconds."""
    words = np.zeros((len(microseconds), 2), "<i8")
    words[:, 0] = microseconds
    buffers = [None, pa.py_buffer(words.tobytes())]
    return pa.Array.from_buffers(pa.decimal128(18, 6), len(microseconds), buffers)


_PLACES: Final = pa.array([f"{place:0{removed.PLACE_DIGITS}d}" for place in range(MAX_ROWS)])
