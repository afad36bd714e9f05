"""Tables of video addresses: read in batches, in bounded memory, from wherever they are."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, localcontext
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from reelmill.errors import ReelmillError
from reelmill.units import nearest

_BLOCK_BYTES: Final = 1 << 20
# One row, or line. Beyond it the file is something else, and looking further would eat the memory.
_ROW_BYTES: Final = 16 << 20
_PARQUET_ROWS: Final = 8192
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}


class TableError(ReelmillError):
    """A table that cannot be read, is empty, or lacks a column; the text begins with its path."""


def open_table(
    path: str, *, format: str | None = None, strings: Collection[str] = ("url",)
) -> Iterator[pa.RecordBatch]:
    """Open a table and return its rows in batches of one schema, none of them empty.

    The format follows from the extension: ``csv`` (RFC 4180), ``tsv`` (no quoting, as IANA has
    it), ``txt`` (one URL a line, in a column ``url``; blank lines and those that begin with ``#``
    are skipped), ``json`` (an array of objects), ``jsonl`` or ``ndjson``, and ``parquet``. All but
    parquet may be compressed: ``.gz``, ``.zst``.

    Text has no types, so those of csv, tsv and JSON columns are inferred from the *whole* table,
    in a pass of its own: what stands far down never contradicts what the first rows suggested. In
    csv and tsv, numbers that would not survive being read as such (``00012``, 19 digits and more)
    stay text.

    Args:
        path: A local path or any URL that fsspec opens.
        format: One of the formats, where the extension does not tell.
        strings: Columns that are text whatever they look like.

    Raises:
        TableError: The table cannot be read, has no rows, or is of no known format. Rows beyond the
            first batch are read when asked for, and may raise it then.
    """
    kind, compression = _format_of(path, format)
    source = _Source(path, compression, frozenset(strings))
    return _primed(_checked(path, kind, _as_text(_FORMATS[kind].read(source), source.strings)))


def table_digest(path: str) -> tuple[str, int]:
    """Return the sha256, in hex, and the size in bytes of a table's file as it is stored.

    Raises:
        TableError: The file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with _errors(path), _open(path) as file:
        while data := file.read(_BLOCK_BYTES):
            digest.update(data)
            size += len(data)
    return digest.hexdigest(), size


def require(
    path: str, batches: Iterator[pa.RecordBatch], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Pass the batches of the table at ``path`` on, if it has the named columns.

    Raises:
        TableError: The table lacks one of them, or has it twice.
    """
    return _primed(_required(path, batches, columns))


def parse_spans(value: object) -> list[tuple[Decimal, Decimal]]:
    """Return the ``(start, end)`` pairs that a cell of a spans column names, in seconds.

    A cell holds a list of pairs, the same as JSON text, or text such as ``0-2.5;10-12``. A time is
    a number of seconds or a clock reading, ``1:02.5`` or ``00:01:02.5``. Pairs keep their order and
    may overlap. An empty cell names none.

    Raises:
        ValueError: Anything else; a start that is negative or not before its end; a time that is
            not finite, beyond 10⁹ seconds, or has more than 30 decimals.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = _spans_of_text(value.strip())
    if not isinstance(value, Sequence):
        raise ValueError(f"spans are pairs of seconds, not {value!r:.80}")
    return [_span(pair) for pair in value]


# --- Formats ---------------------------------------------------------------------------------


class _Source(NamedTuple):
    path: str
    compression: str | None
    strings: frozenset[str]


class _Format(NamedTuple):
    read: Callable[[_Source], Iterator[pa.RecordBatch]]
    expected: str


def _read_txt(source: _Source) -> Iterator[pa.RecordBatch]:
    with _stream(source) as stream:
        for block in _lines(stream):
            lines = map(str.strip, block.decode().split("\n"))
            urls = [line for line in lines if line and not line.startswith("#")]
            yield pa.record_batch({"url": pa.array(urls, pa.string())})


def _read_csv(source: _Source) -> Iterator[pa.RecordBatch]:
    return _read_delimited(source, ",", '"')


def _read_tsv(source: _Source) -> Iterator[pa.RecordBatch]:
    # A stray quotation mark in a caption must not swallow the rows up to the next one.
    return _read_delimited(source, "\t", None)


def _read_delimited(source: _Source, delimiter: str, quote: str | None) -> Iterator[pa.RecordBatch]:
    read = pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parse = pa.csv.ParseOptions(
        delimiter=delimiter, quote_char=quote or False, newlines_in_values=quote is not None
    )
    try:
        with _stream(source) as stream, pa.csv.open_csv(stream, read, parse) as reader:
            names = reader.schema.names
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the header names column {name!r} twice")
    with _stream(source) as stream:
        counted = _QuoteCounter(stream, quote)
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        )
        with pa.csv.open_csv(pa.PythonFile(counted, "r"), read, parse, convert) as reader:
            types, multiline = _infer(reader, source.strings)
    if multiline and counted.total % 2:
        raise ValueError("a quotation mark is never closed, and swallows rows")
    convert = pa.csv.ConvertOptions(column_types=types)
    with _stream(source) as stream, pa.csv.open_csv(stream, read, parse, convert) as reader:
        yield from reader


def _read_jsonl(source: _Source) -> Iterator[pa.RecordBatch]:
    return _read_objects(source, _lines)


def _read_json(source: _Source) -> Iterator[pa.RecordBatch]:
    return _read_objects(source, _array)


def _read_objects(
    source: _Source, split: Callable[[Any], Iterator[bytes]]
) -> Iterator[pa.RecordBatch]:
    schema, rows = pa.schema([]), 0
    with _stream(source) as stream:
        for block in split(stream):
            batch = _parse_objects(block, None, rows)
            schema = pa.unify_schemas(
                [schema, _map_types(batch.schema, _without_timestamps)],
                promote_options="permissive",
            )
            rows += batch.num_rows
    schema = _map_types(schema, _without_null)
    with _stream(source) as stream:
        for block in split(stream):
            yield from _parse_objects(block, schema, 0).to_batches()


def _read_parquet(source: _Source) -> Iterator[pa.RecordBatch]:
    with (
        _open(source.path) as file,
        pa.parquet.ParquetFile(file, buffer_size=_BLOCK_BYTES, pre_buffer=False) as table,
    ):
        yield from table.iter_batches(_PARQUET_ROWS, use_threads=False)


_FORMATS: Final = {
    "csv": _Format(_read_csv, "a header line and at least one row"),
    "tsv": _Format(_read_tsv, "a header line and at least one row"),
    "txt": _Format(_read_txt, "one URL a line"),
    "json": _Format(_read_json, "an array of at least one object"),
    "jsonl": _Format(_read_jsonl, "one object a line"),
    "ndjson": _Format(_read_jsonl, "one object a line"),
    "parquet": _Format(_read_parquet, "at least one row"),
}


def _format_of(path: str, format: str | None) -> tuple[str, str | None]:
    name = PurePosixPath(urlsplit(path).path if "://" in path else path)
    compression = _COMPRESSIONS.get(name.suffix.lower())
    if compression:
        name = name.with_suffix("")
    kind = (format or name.suffix.removeprefix(".")).lower()
    if kind not in _FORMATS:
        what = f"format {format!r}" if format else f"extension {name.suffix!r}"
        raise TableError(
            f"{path}: unknown {what}; known are {', '.join(_FORMATS)}, all but parquet also with "
            f"{' or '.join(_COMPRESSIONS)}"
        )
    if kind == "parquet" and compression:
        raise TableError(f"{path}: parquet is compressed inside; unpack the file")
    return kind, compression


# --- Streams and errors ----------------------------------------------------------------------


@contextmanager
def _open(path: str) -> Iterator[Any]:
    file_system, inner = fsspec.core.url_to_fs(path)
    with file_system.open(inner, "rb", block_size=_BLOCK_BYTES) as file:
        yield file


@contextmanager
def _stream(source: _Source) -> Iterator[Any]:
    with _open(source.path) as file:
        stream = pa.PythonFile(file, "r")
        if source.compression:
            stream = pa.CompressedInputStream(stream, source.compression)
        yield stream


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    # fsspec's file systems raise the errors of the libraries that they stand on.
    except Exception as error:
        raise TableError(f"{path}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _checked(path: str, kind: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    rows = 0
    with _errors(path):
        for batch in batches:
            if batch.num_rows:
                rows += batch.num_rows
                yield batch
    if not rows:
        raise TableError(f"{path}: no rows; expected {_FORMATS[kind].expected}")


def _primed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Take the first step now, so that a bad table fails where it is opened."""
    first = next(batches, None)
    return iter(()) if first is None else chain((first,), batches)


def _required(
    path: str, batches: Iterator[pa.RecordBatch], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        present = batch.schema.names
        for column in columns:
            if column not in present:
                near = nearest(column, present)
                hint = f"; did you mean {near!r}?" if near else ""
                raise TableError(
                    f"{path}: no column {column!r}{hint} (present: {', '.join(present)})"
                )
            if present.count(column) > 1:
                raise TableError(f"{path}: column {column!r} is there twice")
        yield batch


# --- Types -----------------------------------------------------------------------------------

# In the order of preference; all that fit the same values are equal but for precision.
_CSV_TYPES: Final = (
    pa.int64(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("s"),
    pa.timestamp("s", "UTC"),
    pa.timestamp("ns"),
    pa.timestamp("ns", "UTC"),
)
_CSV_BOOLS: Final = pa.array(["true", "True", "TRUE", "false", "False", "FALSE"])
_IDENTIFIER: Final = r"^[+-]?(0[0-9]|[0-9]{19,}$)"


def _infer(
    batches: Iterator[pa.RecordBatch], strings: frozenset[str]
) -> tuple[dict[str, pa.DataType], bool]:
    """Return the type of each column of text, and whether a value holds a line break."""
    fitting: dict[str, Sequence[pa.DataType]] = {}
    filled: set[str] = set()
    multiline = False
    for batch in batches:
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            candidates = fitting.get(name, () if name in strings else _CSV_TYPES)
            if candidates and values.null_count < len(values):
                filled.add(name)
                trimmed = pc.utf8_trim(values, " \t")
                candidates = [kind for kind in candidates if _fits(kind, trimmed)]
            fitting[name] = candidates
            if not candidates and not multiline:
                multiline = bool(pc.any(pc.match_substring(values, "\n")).as_py())
    types = {
        name: kinds[0] if kinds and name in filled else pa.string()
        for name, kinds in fitting.items()
    }
    return types, multiline


def _fits(kind: pa.DataType, values: pa.Array) -> bool:
    if pa.types.is_boolean(kind):
        return bool(pc.all(pc.is_in(values.drop_null(), _CSV_BOOLS)).as_py())
    try:
        pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return not (is_number and pc.any(pc.match_substring_regex(values, _IDENTIFIER)).as_py())


def _map_types(schema: pa.Schema, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.Schema:
    def mapped(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(kind):
            return pa.struct([field.with_type(mapped(field.type)) for field in kind])
        if pa.types.is_list(kind):
            return pa.list_(mapped(kind.value_type))
        return leaf(kind)

    return pa.schema([field.with_type(mapped(field.type)) for field in schema])


def _without_timestamps(kind: pa.DataType) -> pa.DataType:
    # JSON has none: arrow makes them from strings, in one block and not in the next.
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _without_null(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(kind) else kind


def _as_text(
    batches: Iterator[pa.RecordBatch], strings: frozenset[str]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for index, field in enumerate(batch.schema):
            if field.name in strings and field.type != pa.string():
                try:
                    values = pc.cast(batch.column(index), pa.string())
                except pa.ArrowException:
                    message = f"column {field.name!r} holds {field.type}, expected text"
                    raise ValueError(message) from None
                batch = batch.set_column(index, field.name, values)
        yield batch


# --- Text ------------------------------------------------------------------------------------


class _QuoteCounter:
    """A readable that counts the quotation marks passing through."""

    closed = False

    def __init__(self, stream: Any, quote: str | None) -> None:
        self.total = 0
        self._stream = stream
        self._quote = quote

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if self._quote is not None:
            self.total += data.count(self._quote.encode())
        return data

    def close(self) -> None:
        """Leave the stream to its owner."""


def _lines(stream: Any) -> Iterator[bytes]:
    """Split a stream into blocks of whole lines."""
    rest = stream.read(_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
    while chunk := stream.read(_BLOCK_BYTES):
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += tail
            if len(rest) > _ROW_BYTES:
                raise ValueError(f"a line is longer than {_ROW_BYTES >> 20} MiB")
    yield rest


_GAP = re.compile(r"[ \t\r\n]*")
_SCANNER: Final = json.JSONDecoder()


def _array(stream: Any) -> Iterator[bytes]:
    """Split a JSON array of objects into blocks of lines with one object each."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    text, position, at_end = "", 0, False
    lines: list[str] = []
    seen = 0
    expected = "["
    while True:
        gap = _GAP.match(text, position)
        assert gap
        position = gap.end()
        mark = text[position : position + 1]
        if mark and mark not in expected:
            wanted = " or ".join(expected) or "the end"
            raise ValueError(f"expected {wanted} after object {seen}, an array of objects")
        if mark == "{":
            try:
                _, end = _SCANNER.raw_decode(text, position)
            except json.JSONDecodeError as error:
                # It may only be cut off where the text read so far ends.
                if at_end or len(text) - position > _ROW_BYTES:
                    raise ValueError(f"object {seen + 1} is garbled: {error.msg}") from error
            else:
                # Line breaks are white space here: in strings, JSON has them only escaped.
                lines.append(text[position:end].replace("\n", " ").replace("\r", " "))
                position, expected = end, ",]"
                seen += 1
                continue
        elif mark:
            position, expected = position + 1, {"[": "{]", ",": "{", "]": ""}[mark]
            continue
        elif at_end:
            break
        if lines:
            yield "\n".join(lines).encode()
            lines = []
        chunk = stream.read(max(_BLOCK_BYTES, len(text) - position))
        at_end = not chunk
        text, position = text[position:] + decode(chunk, at_end), 0
    if expected not in ("", "["):
        raise ValueError(f"the array is not closed after object {seen}")


def _parse_objects(block: bytes, schema: pa.Schema | None, rows: int) -> pa.Table:
    """Parse lines of JSON objects; ``rows`` came before them."""
    if not block.strip():
        return pa.table({})
    block.decode()  # arrow lets anything pass for UTF-8
    try:
        return pa.json.read_json(
            pa.BufferReader(block),
            pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pa.json.ParseOptions(explicit_schema=schema),
        )
    except pa.ArrowInvalid as error:
        text = re.sub(r" in row (\d+)", lambda row: f" in row {rows + int(row[1]) + 1}", str(error))
        raise ValueError(text) from error


# --- Spans -----------------------------------------------------------------------------------

_CLOCK = re.compile(r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,10}(?:\.[0-9]{0,30})?)")
_LATEST: Final = Decimal(10**9)
_DECIMALS: Final = 30


def _spans_of_text(text: str) -> object:
    if text.startswith("["):
        try:
            return json.loads(text, parse_float=Decimal, parse_constant=Decimal)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"spans are not valid JSON: {text:.80}") from error
    return [part.split("-") for part in text.split(";") if part.strip()]


def _span(pair: object) -> tuple[Decimal, Decimal]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"a span is a start and an end, such as 0-2.5, not {pair!r:.80}")
    start, end = map(_seconds, pair)
    if start >= end:
        raise ValueError(f"a span ends after it starts, unlike {start}-{end}")
    return start, end


def _seconds(value: object) -> Decimal:
    if isinstance(value, str):
        seconds = _clock_seconds(value.strip())
    elif isinstance(value, float):
        # The digits that the number was written with, not those of its binary neighbour.
        seconds = Decimal(float.__repr__(value))
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        seconds = Decimal(value)
    else:
        raise ValueError(f"a time is a number of seconds, not {value!r:.80}")
    if not (seconds.is_finite() and 0 <= seconds < _LATEST):
        raise ValueError(f"a time is from 0 to {_LATEST} seconds, not {seconds:.6g}")
    if int(seconds.as_tuple().exponent) < -_DECIMALS:
        raise ValueError(f"a time has at most {_DECIMALS} decimals")
    return seconds.copy_abs()


def _clock_seconds(text: str) -> Decimal:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"a time is seconds or [hours:]minutes:seconds, not {text!r:.80}")
    hours, minutes, rest = match.groups()
    seconds = Decimal(rest)
    if minutes is None:
        return seconds
    if seconds >= 60 or (hours is not None and int(minutes) >= 60):
        raise ValueError(f"minutes and seconds of a clock reading are below 60, unlike {text!r}")
    # Exact: the default context would round to 28 digits.
    with localcontext(prec=50):
        return seconds + 60 * (int(minutes) + 60 * int(hours or 0))
