"""A table: the rows of one file or many, or a listing of videos or of tars."""

from __future__ import annotations

import abc
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from reelmill.tables import formats, sequences
from reelmill.tables.files import TAR, VIDEO, Found, TableError, as_url, errors, extension, locate
from reelmill.tables.formats import File, Guess, Types, Wanted
from reelmill.units import nearest

LISTINGS: Final = {"videos": VIDEO, "webdataset": TAR}
SEQUENCES: Final = "sequences"
FORMATS: Final = (*formats.FORMATS, *LISTINGS, SEQUENCES)
"""Formats by the names that recipes know them by."""

_LISTED: Final = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("modified", pa.timestamp("us", "UTC")),
        pa.field("etag", pa.string()),
    ]
)
_LISTED_ROWS: Final = 8192


class Table(abc.ABC):
    """Rows with named columns, which can be read again and again.

    Attributes:
        name: what messages call it: its path.
        format: the format of its files; several, sorted, are joined by ``+``.
    """

    name: str
    format: str

    @property
    @abc.abstractmethod
    def schema(self) -> pa.Schema:
        """The columns. For text, whose types are those of the whole table, the first look at this
        reads all of it.

        Raises:
            TableError: the table cannot be read, or its files do not fit together.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """The sha256, in hex, of what the table holds now: of its file as it is stored; of many,
        of their digests in order; of a listing, of its rows.

        Raises:
            TableError: a file cannot be read.
        """

    @abc.abstractmethod
    def batches(
        self, columns: Sequence[str] | None = None, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of rows, none of them empty, each with the number of its first row.

        Args:
            columns: those to read, in the order of the schema; all of them by default.
            wanted: rows to read at least, once the table was read to its end.

        Raises:
            TableError: the table cannot be read, or has no rows.
        """

    def require(self, columns: Iterable[str]) -> None:
        """Make sure that the table has the named columns.

        Raises:
            TableError: it lacks one of them, or cannot be read.
        """
        present = self.schema.names
        for column in columns:
            if column not in present:
                near = nearest(column, present)
                hint = f"; did you mean {near!r}?" if near else ""
                raise TableError(
                    f"{self.name}: no column {column!r}{hint} (present: {', '.join(present)})"
                )


def open_table(
    paths: str | Sequence[str],
    *,
    format: str | None = None,
    strings: Collection[str] = ("url",),
    rename: Mapping[str, str] | None = None,
    folders: str | None = None,
) -> Table:
    """Find the files of a table, which is read when it is asked for its rows.

    The formats of files: ``csv`` (RFC 4180), ``tsv`` (no quoting, as IANA has it), ``txt`` (one URL
    a line, in a column ``url``; blank lines and those that begin with ``#`` are skipped), ``json``
    (an array of objects), ``jsonl`` or ``ndjson``, ``parquet``, and ``arrow`` or ``feather`` (IPC
    files and streams). Text may be compressed: ``.gz``, ``.zst``. Two more are listings: ``videos``
    has a row for each video file, ``webdataset`` one for each ``.tar``, with a column ``url`` and,
    where the listing tells, ``bytes``, ``modified`` and ``etag``. The format ``sequences``, which
    no extension tells, is one as well: of the sequences of pictures in folders, zips and tars, with
    the columns of ``reelmill.tables.sequences``.

    Text has no types, so those of csv, tsv and JSON columns are inferred from the *whole* table,
    in a pass of its own: what stands far down never contradicts what the first rows suggested. In
    csv and tsv, numbers that would not survive being read as such (``00012``, 19 digits and more)
    stay text. Files of one table have their columns united by name: a file's missing ones are
    null, and types become those that hold the values of all.

    Args:
        paths: local paths, or URLs that fsspec opens: what `reelmill.tables.files.locate` takes.
        format: one of `FORMATS`, where the extensions do not tell.
        strings: columns, by their new names, that are text whatever they look like.
        rename: new names of columns, by those they have in the files.
        folders: of ``sequences``, a pattern of the folders that are one.

    Raises:
        TableError: nothing is there, or it is of no known format.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    if not given:
        raise TableError("a table has at least one path")
    name = given[0] if len(given) == 1 else f"{given[0]} and {len(given) - 1} more"
    kind = format.lower() if format else None
    if kind in LISTINGS:
        listing = _Listing(name, kind, rename or {})
        for found in locate(given, LISTINGS[kind]):
            listing.add(found)
        return listing
    if kind == SEQUENCES:
        listing = _Listing(name, kind, rename or {}, sequences.SCHEMA)
        for row in sequences.find(given, folders):
            listing.add_row(row)
        return listing
    known = frozenset(formats.FORMATS)
    wanted = frozenset({kind}) if kind else known.union(*LISTINGS.values())
    listings = {other: _Listing(name, other, rename or {}) for other in LISTINGS}
    texts = frozenset(strings).union(*({a} for a, b in (rename or {}).items() if b in strings))
    files = []
    for found in locate(given, wanted):
        other = None if kind else _listing_of(found.path)
        if other:
            listings[other].add(found)
        else:
            files.append(formats.file_of(found.path, kind, texts))
    tables: list[Table] = [listing for listing in listings.values() if listing.rows]
    if files:
        tables.append(_Files(name, files, strings, rename or {}))
    if len(tables) > 1:
        kinds = " and ".join(sorted(table.format for table in tables))
        raise TableError(
            f"{name}: holds {kinds}; say which with 'format', or name the files by a pattern"
        )
    return tables[0]


def format_of(paths: str | Sequence[str]) -> str | None:
    """The format that the extensions of paths alone tell; ``None`` where a listing must tell."""
    kinds = {
        _listing_of(path) or (suffix if suffix in formats.FORMATS else None)
        for path in ([paths] if isinstance(paths, str) else paths)
        for suffix in [extension(path)[0]]
    }
    return kinds.pop() if len(kinds) == 1 else None


def _listing_of(path: str) -> str | None:
    suffix, compression = extension(path)
    fitting = (name for name, suffixes in LISTINGS.items() if suffix in suffixes)
    return None if compression else next(fitting, None)


def _every(first: int, end: int) -> bool:
    return True


class _Files(Table):
    """The rows of files, one after the other."""

    def __init__(
        self,
        name: str,
        files: Sequence[File],
        strings: Collection[str],
        rename: Mapping[str, str],
    ) -> None:
        self.name = name
        self.format = "+".join(sorted({file.kind for file in files}))
        self._files = files
        self._strings = frozenset(strings)
        self._rename = rename
        self._counts: list[int] | None = None

    def digest(self) -> str:
        digests = [_file_digest(file.path) for file in self._files]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(f"{one}\n" for one in digests).encode()).hexdigest()

    @property
    def schema(self) -> pa.Schema:
        return self._surveyed[0]

    @cached_property
    def _surveyed(self) -> tuple[pa.Schema, list[dict[str, Guess]]]:
        """The columns of the table, and what those of each file can be read as."""
        columns: dict[str, dict[Guess, File]] = {}
        surveys: list[dict[str, Guess]] = []
        for file in self._files:
            with errors(file.path):
                survey = formats.FORMATS[file.kind].survey(file)
                self._refuse_twins(survey)
            # Most files of a table are alike.
            surveys.append(surveys[-1] if surveys and surveys[-1] == survey else survey)
            for theirs, guess in survey.items():
                columns.setdefault(self._ours(theirs), {}).setdefault(guess, file)
        if not columns:
            raise self._empty()
        if missing := [theirs for theirs in self._rename if not any(theirs in s for s in surveys)]:
            present = ", ".join(dict.fromkeys(name for survey in surveys for name in survey))
            raise TableError(
                f"{self.name}: no column {missing[0]!r} to rename (present: {present})"
            )
        kinds = {
            name: pa.string() if name in self._strings else _settled(name, guesses)
            for name, guesses in columns.items()
        }
        return pa.schema(list(kinds.items())), surveys

    def batches(
        self, columns: Sequence[str] | None = None, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        schema, surveys = self._surveyed
        if columns is not None:
            schema = pa.schema([field for field in schema if field.name in columns])
        assert wanted is None or self._counts is not None
        counts, total = [], 0
        for place, (file, survey) in enumerate(zip(self._files, surveys, strict=True)):
            known = self._counts[place] if self._counts else None
            if known is None or wanted is None or wanted(total, total + known):
                rows = 0
                for row, batch in self._read(file, survey, schema, total, wanted):
                    rows = row + batch.num_rows
                    if known is not None and rows > known:
                        raise TableError(f"{file.path}: changed while it was read")
                    yield total + row, batch
                known = rows if known is None else known
            counts.append(known)
            total += known
        if not total:
            raise self._empty()
        self._counts = counts

    def _read(
        self,
        file: File,
        survey: Mapping[str, Guess],
        schema: pa.Schema,
        first: int,
        wanted: Wanted | None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        chosen = [name for name in survey if self._ours(name) in schema.names]
        types: Types = {
            name: _parsed_as(file, survey[name], self.schema.field(self._ours(name)).type)
            for name in chosen or list(survey)[:1]
        }
        if not types:
            return
        whether: Wanted = _every
        if wanted is not None:
            asked = wanted
            whether = lambda start, end: asked(first + start, first + end)  # noqa: E731
        with errors(file.path):
            for row, batch in formats.FORMATS[file.kind].read(file, types, whether):
                if batch.num_rows:
                    yield row, self._conformed(batch, schema)

    def _conformed(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """A file's rows with the table's columns."""
        given = {self._ours(name): batch.column(name) for name in batch.schema.names}
        arrays = []
        for field in schema:
            column = given.get(field.name)
            if column is None:
                column = pa.nulls(batch.num_rows, field.type)
            elif column.type != field.type:
                try:
                    column = column.cast(field.type)
                except pa.ArrowException as error:
                    what = str(error).splitlines()[0]
                    raise ValueError(f"column {field.name!r}: {what}") from error
            arrays.append(column)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _ours(self, theirs: str) -> str:
        return self._rename.get(theirs, theirs)

    def _refuse_twins(self, survey: Mapping[str, Guess]) -> None:
        names: dict[str, str] = {}
        for theirs in survey:
            if (twin := names.setdefault(self._ours(theirs), theirs)) != theirs:
                raise ValueError(
                    f"columns {twin!r} and {theirs!r} would both be {self._ours(theirs)!r}"
                )

    def _empty(self) -> TableError:
        expected = formats.FORMATS[self._files[0].kind].expected
        return TableError(f"{self.name}: no rows; expected {expected}")


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    with errors(path), formats.open_file(path) as file:
        while data := file.read(formats.BLOCK_BYTES):
            digest.update(data)
    return digest.hexdigest()


_DELIMITED: Final = ("csv", "tsv", "txt")


def _settled(name: str, guesses: Mapping[Guess, File]) -> pa.DataType:
    """The type of a column, of all that its files can be read as.

    Raises:
        TableError: types of files that have them do not fit together.
    """
    told = [(guess, file) for guess, file in guesses.items() if guess.filled]
    delimited = [(guess, file) for guess, file in told if file.kind in _DELIMITED]
    kinds: list[tuple[pa.DataType, File]] = []
    if delimited:
        common = [k for k in delimited[0][0].kinds if all(k in g.kinds for g, _ in delimited)]
        kinds.append((common[0] if common else pa.string(), delimited[0][1]))
    kinds += [(guess.kinds[0], file) for guess, file in told if file.kind not in _DELIMITED]
    if not kinds:
        return pa.string()
    kind, first = kinds[0]
    for other, file in kinds[1:]:
        united = _united(kind, other)
        if united is None:
            if all(formats.FORMATS[file.kind].is_text for file in guesses.values()):
                return pa.string()
            raise TableError(
                f"{file.path}: column {name!r} holds {other}, but {kind} in {first.path}; "
                "give one of them another name"
            )
        kind = united
    return formats.map_type(kind, lambda leaf: pa.string() if pa.types.is_null(leaf) else leaf)


def _united(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _parsed_as(file: File, guess: Guess, kind: pa.DataType) -> pa.DataType:
    """What a file's column is read as before it becomes ``kind``, if that is not the same."""
    if file.kind not in _DELIMITED:
        return guess.kinds[0]
    if kind == pa.string() or kind in guess.kinds:
        return kind
    return guess.kinds[0] if guess.filled and guess.kinds else pa.null()


class _Listing(Table):
    """Files, or what is in them, as rows. A listing is written down when it is made, and so does
    not change. Columns of files that it has no value for are left out."""

    def __init__(
        self, name: str, format: str, rename: Mapping[str, str], columns: pa.Schema = _LISTED
    ) -> None:
        self.name = name
        self.format = format
        self.rows = 0
        self._rename = rename
        self._digest = hashlib.sha256(format.encode())
        self._pending: list[dict[str, Any]] = []
        self._columns = columns
        self._told: set[str] = {"url"} if columns is _LISTED else set(columns.names)
        self._folder = tempfile.TemporaryDirectory(prefix="reelmill-listing-")
        self._path = str(Path(self._folder.name, "rows.arrow"))
        self._writer: Any = pa.ipc.new_stream(self._path, columns)

    def add(self, found: Found) -> None:
        """Add a file."""
        row = {
            "url": as_url(found.path),
            "bytes": found.size,
            "modified": found.modified,
            "etag": found.etag,
        }
        self.add_row(row)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add what the columns say of one."""
        self._digest.update(json.dumps(row).encode())
        self._told |= {name for name, value in row.items() if value is not None}
        self._pending.append(dict(row))
        self.rows += 1
        if len(self._pending) == _LISTED_ROWS:
            self._flush()

    def digest(self) -> str:
        return self._digest.hexdigest()

    @property
    def schema(self) -> pa.Schema:
        told = [field for field in self._columns if field.name in self._told]
        names = [field.name for field in told]
        if missing := [theirs for theirs in self._rename if theirs not in names]:
            raise TableError(
                f"{self.name}: no column {missing[0]!r} to rename (present: {', '.join(names)})"
            )
        ours = [self._rename.get(name, name) for name in names]
        if len(set(ours)) < len(ours):
            raise TableError(
                f"{self.name}: two columns would both be {max(ours, key=ours.count)!r}"
            )
        return pa.schema([f.with_name(name) for f, name in zip(told, ours, strict=True)])

    def batches(
        self, columns: Sequence[str] | None = None, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None
        told = [name for name in self._columns.names if name in self._told]
        chosen = [name for name in self.schema.names if columns is None or name in columns]
        row = 0
        with pa.OSFile(self._path) as file:
            for batch in pa.ipc.open_stream(file):
                if batch.num_rows:
                    ours = batch.select(told).rename_columns(self.schema.names)
                    yield row, ours.select(chosen)
                row += batch.num_rows

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, self._columns))
        self._pending = []
