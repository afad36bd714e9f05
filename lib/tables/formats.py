"""The formats of tables: what a file's columns can be read as, and its rows in batches."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from reelmill.tables.files import COMPRESSIONS, TableError, extension, is_local

BLOCK_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 100
# One row, or line. Beyond it the file is something else, and looking further would eat the memory.
_ROW_BYTES: Final = 16 << 20
_ROWS: Final = 8192
# Rows without what was left out are small.
_NARROW_ROWS: Final = 8 * _ROWS


class Guess(NamedTuple):
    """What the values of a column in one file can be read as, the best first: nothing but text if
    there is none. A column that is not ``filled`` holds no value that would tell."""

    kinds: tuple[pa.DataType, ...]
    filled: bool = True


class File(NamedTuple):
    """A file of a table. ``strings`` are columns that are text whatever they look like."""

    path: str
    kind: str
    compression: str | None
    strings: frozenset[str]


Types = Mapping[str, pa.DataType]
Wanted = Callable[[int, int], bool]
"""Whether any of the rows from one number up to another is wanted."""

Placed = tuple[int, pa.RecordBatch]
"""A batch of rows, and the number of its first in the file."""


class Format(NamedTuple):
    """How files of a format are read.

    ``survey`` gives the columns with what they can be read as; ``read`` the rows of some columns,
    as the given types where the format leaves a choice. It may leave out rows that nobody wants.
    """

    survey: Callable[[File], dict[str, Guess]]
    read: Callable[[File, Types, Wanted], Iterator[Placed]]
    expected: str
    is_text: bool = True


def file_of(path: str, format: str | None, strings: frozenset[str]) -> File:
    """A file with its format, which follows from its extension where it is not given.

    Raises:
        TableError: there is no such format.
    """
    suffix, compression = extension(path)
    kind = (format or suffix).lower()
    if kind not in FORMATS:
        what = f"format {format!r}" if format else f"extension {f'.{suffix}' if suffix else ''!r}"
        raise TableError(
            f"{path}: unknown {what}; known are {', '.join(FORMATS)}, videos, webdataset and "
            f"sequences, text also with {' or '.join(COMPRESSIONS)}"
        )
    if compression and not FORMATS[kind].is_text:
        raise TableError(f"{path}: {kind} is compressed inside; unpack the file")
    return File(path, kind, compression, strings)


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """A file, of this machine or of any store that fsspec opens, as a file of Arrow's."""
    if is_local(path):
        with pa.OSFile(path) as file:
            yield file
        return
    file_system, inner = fsspec.core.url_to_fs(path)
    with file_system.open(inner, "rb", block_size=BLOCK_BYTES) as file:
        yield pa.PythonFile(file, "r")


@contextmanager
def _stream(file: File) -> Iterator[Any]:
    with open_file(file.path) as stream:
        yield pa.CompressedInputStream(stream, file.compression) if file.compression else stream


def _placed(batches: Iterator[pa.RecordBatch]) -> Iterator[Placed]:
    row = 0
    for batch in batches:
        yield row, batch
        row += batch.num_rows


# --- Lines of URLs ---------------------------------------------------------------------------


def _survey_txt(file: File) -> dict[str, Guess]:
    return {"url": Guess(())}


def _read_txt(file: File, types: Types, wanted: Wanted) -> Iterator[Placed]:
    return _placed(_urls(file))


def _urls(file: File) -> Iterator[pa.RecordBatch]:
    with _stream(file) as stream:
        for block in _lines(stream):
            lines = map(str.strip, block.decode().split("\n"))
            urls = [line for line in lines if line and not line.startswith("#")]
            yield pa.record_batch({"url": pa.array(urls, pa.string())})


# --- Delimited text --------------------------------------------------------------------------

_QUOTES: Final = {"csv": '"', "tsv": None}
# A stray quotation mark in a caption must not swallow the rows up to the next one: IANA's tab
# separated values have no quoting.
_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}


def _csv_options(kind: str) -> tuple[pa.csv.ReadOptions, pa.csv.ParseOptions]:
    quote = _QUOTES[kind]
    return (
        pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        pa.csv.ParseOptions(
            delimiter=_DELIMITERS[kind],
            quote_char=quote or False,
            newlines_in_values=quote is not None,
        ),
    )


def _survey_csv(file: File) -> dict[str, Guess]:
    read, parse = _csv_options(file.kind)
    try:
        with _stream(file) as stream, pa.csv.open_csv(stream, read, parse) as reader:
            names = reader.schema.names
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return {}
        raise
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the header names column {name!r} twice")
    with _stream(file) as stream:
        counted = _QuoteCounter(stream, _QUOTES[file.kind])
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        )
        with pa.csv.open_csv(pa.PythonFile(counted, "r"), read, parse, convert) as reader:
            guesses, multiline = _infer(reader, file.strings)
    if multiline and counted.total % 2:
        raise ValueError("a quotation mark is never closed, and swallows rows")
    return {name: guesses.get(name, Guess(_CSV_TYPES, False)) for name in names}


def _read_csv(file: File, types: Types, wanted: Wanted) -> Iterator[Placed]:
    return _placed(_delimited(file, types))


def _delimited(file: File, types: Types) -> Iterator[pa.RecordBatch]:
    read, parse = _csv_options(file.kind)
    convert = pa.csv.ConvertOptions(column_types=types, include_columns=list(types))
    with _stream(file) as stream, pa.csv.open_csv(stream, read, parse, convert) as reader:
        yield from reader


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
) -> tuple[dict[str, Guess], bool]:
    """Return what each column of text can be read as, and whether a value holds a line break."""
    fitting: dict[str, tuple[pa.DataType, ...]] = {}
    filled: set[str] = set()
    multiline = False
    for batch in batches:
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            candidates = fitting.get(name, () if name in strings else _CSV_TYPES)
            if values.null_count < len(values):
                filled.add(name)
            if candidates and values.null_count < len(values):
                trimmed = pc.utf8_trim(values, " \t")
                candidates = tuple(kind for kind in candidates if _fits(kind, trimmed))
            fitting[name] = candidates
            if not candidates and not multiline:
                multiline = bool(pc.any(pc.match_substring(values, "\n")).as_py())
    return {name: Guess(kinds, name in filled) for name, kinds in fitting.items()}, multiline


def _fits(kind: pa.DataType, values: pa.Array) -> bool:
    if pa.types.is_boolean(kind):
        return bool(pc.all(pc.is_in(values.drop_null(), _CSV_BOOLS)).as_py())
    try:
        pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return not (is_number and pc.any(pc.match_substring_regex(values, _IDENTIFIER)).as_py())


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


# --- JSON ------------------------------------------------------------------------------------


def _survey_objects(file: File) -> dict[str, Guess]:
    schema, rows = pa.schema([]), 0
    with _stream(file) as stream:
        for block in _SPLIT[file.kind](stream):
            batch = _parse_objects(block, None, rows)
            found = map_types(batch.schema, _without_timestamps)
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
            rows += batch.num_rows
    return _typed(schema, file.strings)


def _read_objects(file: File, types: Types, wanted: Wanted) -> Iterator[Placed]:
    return _placed(_objects(file, pa.schema(list(types.items()))))


def _objects(file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _stream(file) as stream:
        for block in _SPLIT[file.kind](stream):
            yield from _parse_objects(block, schema, 0).to_batches()


def _without_timestamps(kind: pa.DataType) -> pa.DataType:
    # JSON has none: arrow makes them from strings, in one block and not in the next.
    return pa.string() if pa.types.is_timestamp(kind) else kind


# --- Parquet and Arrow -----------------------------------------------------------------------


def _survey_parquet(file: File) -> dict[str, Guess]:
    with _parquet(file) as table:
        return _typed(table.schema_arrow, file.strings)


def _read_parquet(file: File, types: Types, wanted: Wanted) -> Iterator[Placed]:
    with _parquet(file) as table:
        names = list(types)
        is_all = len(names) == len(table.schema_arrow)
        size, chosen = (_ROWS, None) if is_all else (_NARROW_ROWS, names)
        for row, groups in _groups(table.metadata, wanted):
            batches = table.iter_batches(size, groups, chosen, use_threads=False)
            for batch in batches:
                yield row, _whole(batch).select(names)
                row += batch.num_rows


def _groups(metadata: Any, wanted: Wanted) -> Iterator[tuple[int, list[int]]]:
    """Runs of row groups with a wanted row in each, with the number of the first row."""
    row = start = 0
    run: list[int] = []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if wanted(row, row + rows):
            start = start if run else row
            run.append(group)
        elif run:
            yield start, run
            run = []
        row += rows
    if run:
        yield start, run


@contextmanager
def _parquet(file: File) -> Iterator[Any]:
    with (
        open_file(file.path) as source,
        pa.parquet.ParquetFile(source, buffer_size=BLOCK_BYTES, pre_buffer=False) as table,
    ):
        yield table


def _survey_arrow(file: File) -> dict[str, Guess]:
    with open_file(file.path) as source:
        return _typed(_arrow(source)[0], file.strings)


def _read_arrow(file: File, types: Types, wanted: Wanted) -> Iterator[Placed]:
    with open_file(file.path) as source:
        yield from _placed(_slices(_arrow(source)[1], list(types)))


def _arrow(source: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of an IPC file, or of an IPC stream."""
    magic = source.read(6)
    source.seek(0)
    options = pa.ipc.IpcReadOptions(use_threads=False)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(source, options=options)
        count = reader.num_record_batches
        return reader.schema, (reader.get_batch(number) for number in range(count))
    reader = pa.ipc.open_stream(source, options=options)
    return reader.schema, iter(reader)


def _slices(batches: Iterator[pa.RecordBatch], names: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        chosen = _whole(batch.select(names))
        for start in range(0, batch.num_rows, _ROWS):
            yield chosen.slice(start, _ROWS)


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    # Strangers wrote it: text that is no UTF-8, offsets that lead elsewhere.
    batch.validate(full=True)
    return batch


# --- Types -----------------------------------------------------------------------------------


def _typed(schema: pa.Schema, strings: frozenset[str]) -> dict[str, Guess]:
    """What the columns of a file with types can be read as: that, or text where it must be."""
    guesses = {}
    for field in schema:
        if field.name in guesses:
            raise ValueError(f"column {field.name!r} is there twice")
        if field.name in strings:
            _require_text(field)
        guesses[field.name] = Guess((plain(field.type),), not pa.types.is_null(field.type))
    return guesses


def _require_text(field: pa.Field) -> None:
    try:
        pc.cast(pa.array([], plain(field.type)), pa.string())
    except pa.ArrowException:
        message = f"column {field.name!r} holds {field.type}, expected text"
        raise ValueError(message) from None


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without what only its memory layout has: dictionaries, views."""
    return map_type(kind, _plain_leaf)


def _plain_leaf(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def map_types(schema: pa.Schema, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.Schema:
    """A schema with ``leaf`` applied to each type that holds no others."""
    return pa.schema([_mapped(field, leaf) for field in schema])


def _mapped(field: pa.Field, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.Field:
    return field.with_type(map_type(field.type, leaf))


def map_type(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with ``leaf`` applied to each type in it that holds no others."""
    if pa.types.is_struct(kind):
        return pa.struct([_mapped(field, leaf) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(_mapped(kind.value_field, leaf))
    if pa.types.is_list(kind):
        return pa.list_(_mapped(kind.value_field, leaf))
    return leaf(kind)


# --- Text ------------------------------------------------------------------------------------


def _lines(stream: Any) -> Iterator[bytes]:
    """Split a stream into blocks of whole lines."""
    rest = stream.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
    while chunk := stream.read(BLOCK_BYTES):
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
        chunk = stream.read(max(BLOCK_BYTES, len(text) - position))
        at_end = not chunk
        text, position = text[position:] + decode(chunk, at_end), 0
    if expected not in ("", "["):
        raise ValueError(f"the array is not closed after object {seen}")


def _parse_objects(block: bytes, schema: pa.Schema | None, rows: int) -> pa.Table:
    """Parse lines of JSON objects; ``rows`` came before them."""
    if not block.strip():
        return pa.table({})
    block.decode()  # arrow lets anything pass for UTF-8
    if _depth(block) > _MAX_DEPTH:  # and it recurses, to the end of its stack
        raise ValueError(f"a value is nested deeper than {_MAX_DEPTH} levels")
    try:
        return pa.json.read_json(
            pa.BufferReader(block),
            pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pa.json.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior="infer" if schema is None else "ignore",
            ),
        )
    except pa.ArrowInvalid as error:
        text = re.sub(r" in row (\d+)", lambda row: f" in row {rows + int(row[1]) + 1}", str(error))
        raise ValueError(text) from error


_NO_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))


def _depth(block: bytes) -> int:
    """How deeply values of JSON are nested."""
    text = block.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    marks = np.frombuffer(text, np.uint8)
    steps = np.zeros(len(marks), np.int32)
    for mark, step in zip(b"[{]}", (1, 1, -1, -1), strict=True):
        steps[marks == mark] = step
    in_text = np.cumsum(marks == ord('"'), dtype=np.int32) % 2 == 1
    steps[in_text] = 0
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


_SPLIT: Final[Mapping[str, Callable[[Any], Iterator[bytes]]]] = {
    "json": _array,
    "jsonl": _lines,
    "ndjson": _lines,
}

FORMATS: Final = {
    "csv": Format(_survey_csv, _read_csv, "a header line and at least one row"),
    "tsv": Format(_survey_csv, _read_csv, "a header line and at least one row"),
    "txt": Format(_survey_txt, _read_txt, "one URL a line"),
    "json": Format(_survey_objects, _read_objects, "an array of at least one object"),
    "jsonl": Format(_survey_objects, _read_objects, "one object a line"),
    "ndjson": Format(_survey_objects, _read_objects, "one object a line"),
    "parquet": Format(_survey_parquet, _read_parquet, "at least one row", is_text=False),
    "arrow": Format(_survey_arrow, _read_arrow, "at least one row", is_text=False),
    "feather": Format(_survey_arrow, _read_arrow, "at least one row", is_text=False),
}
