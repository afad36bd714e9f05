"""``croissant.json``: the tars with their digests, and record sets of what is in them.

A record set stands for all members with one extension: ``mp4``, ``json``, ``jpg``; a record is a
member, with its sample's key. mlcroissant joins no more than two sources, and only tables, so the
fields of a sample meet by their key. The index is a record set as well, from a parquet file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from reelmill.errors import ShardError
from reelmill.loading.views.kinds import extension_of, kind_of, media_type
from reelmill.loading.views.tars import Tar, View
from reelmill.shards.index import own_columns

TABLE: Final = "samples.parquet"
"""The index of a split. No extension of a field has a dot, so no record set has its name."""

_TAR: Final = "__url__"
"""The column that tells a sample's tar, by the name that webdataset has for it."""

_TERMS: Final = [
    "citeAs",
    "column",
    "equivalentProperty",
    "extract",
    "field",
    "fileObject",
    "fileProperty",
    "fileSet",
    "format",
    "includes",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "samplingRate",
    "separator",
    "source",
    "subField",
    "transform",
]

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in _TERMS},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}

_OPENED: Final = frozenset(["bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"])
"""Pictures that mlcroissant opens, which it does with Pillow; it hands out others as bytes."""

_ROWS: Final = 1 << 16
"""Rows of the index that are written together, at least."""

_OBJECTS: Final = {"video": "sc:VideoObject", "audio": "sc:AudioObject"}


class CroissantWriter:
    """Writes ``croissant.json``, and a ``samples.parquet`` for each split in its folder."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._objects: list[dict[str, Any]] = []
        self._tars: dict[str, list[str]] = {split.name: [] for split in view.splits}
        self._tables: dict[str, _Table] = {}

    def add(self, tar: Tar) -> None:
        """Take a tar in."""
        split = tar.split
        self._objects.append(
            _file_object(tar.path, "application/x-tar", tar.blob.digest, tar.blob.size)
        )
        self._tars[split.name].append(tar.path)
        if split.name not in self._tables:
            path = self._view.folder / split.folder / TABLE
            path.parent.mkdir(exist_ok=True)
            self._tables[split.name] = _Table(path, own_columns(tar.rows.schema))
        self._tables[split.name].add(tar)

    def close(self) -> str:
        """Finish the files; returns the Python expression that opens the view."""
        splits = self._view.splits
        files: list[dict[str, Any]] = []
        sets: list[dict[str, Any]] = []
        for split in splits:
            prefix = f"{split.name}/" if len(splits) > 1 else ""
            table = self._tables[split.name]
            table.close()
            name = f"{split.folder}/{TABLE}"
            files.append(_file_object(name, "application/x-parquet", *_digest(table.path)))
            sets.append(_table_set(f"{prefix}{TABLE}", name, table.columns))
            for extension in sorted({extension_of(field) for field in table.fields}):
                kept = f"{prefix}*.{extension}"
                files.append(_file_set(kept, self._tars[split.name], extension))
                sets.append(_member_set(f"{prefix}{extension}", kept, extension))
        named = ", ".join(f"{split.version} ({split.name})" for split in splits)
        document = {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": splits[0].version.name,
            "description": f"WebDataset tars of {named}. {'; '.join(self._view.lineage)}",
            # A version is named by its content: there is no order to tell.
            "version": f"0.0.0+{'.'.join(split.version.ref.short for split in splits)}",
            "distribution": [*self._objects, *files],
            "recordSet": sets,
        }
        path = self._view.folder / "croissant.json"
        text = json.dumps(document, indent=1, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")
        return f"mlcroissant.Dataset({str(path)!r})"


class _Table:
    """The index of a split on its way into one parquet file, tar by tar."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.path = path
        own = [column for column in columns if column.name != _TAR]
        self.columns = pa.schema([("key", pa.string()), (_TAR, pa.string()), *own])
        self.fields: set[str] = set()
        self._own = [column.name for column in own]
        self._waiting: list[pa.Table] = []
        self._writer = pq.ParquetWriter(path, self.columns, compression="zstd")

    def add(self, tar: Tar) -> None:
        rows = tar.rows
        paths = pa.repeat(tar.path, len(rows))
        # Columns that the stage has got since are those of later shards alone.
        own = (
            rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in self._own
        )
        columns = [rows["key"], paths, *own]
        try:
            table = pa.table(columns, names=self.columns.names).cast(self.columns)
        except pa.ArrowException as error:
            raise ShardError(f"{tar.path} has other columns than the first tar: {error}") from None
        self._waiting.append(table)
        names = rows["fields"].combine_chunks().flatten().field("name")
        self.fields.update(names.unique().to_pylist())
        if sum(map(len, self._waiting)) >= _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting.clear()


def _digest(path: Path) -> tuple[str, int]:
    """The sha256 of a file, and its size in bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _file_object(path: str, form: str, digest: str, size: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{size} B",
        "encodingFormat": form,
        "sha256": digest,
    }


def _file_set(name: str, tars: list[str], extension: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": [{"@id": tar} for tar in tars],
        "encodingFormat": media_type(extension),
        "includes": f"*.{extension}",
    }


def _member_set(name: str, files: str, extension: str) -> dict[str, Any]:
    """All members with one extension: the sample's key, the field, and the bytes."""
    kind = kind_of(extension)
    content = _OBJECTS.get(kind, "sc:Text")
    if extension.lower() in _OPENED:
        content = "sc:ImageObject"

    def field(what: str, data_type: str, **extract: Any) -> dict[str, Any]:
        source = {"fileSet": {"@id": files}, **extract}
        return _field(f"{name}/{what}", what, data_type, source)

    def part(what: str, regex: str) -> dict[str, Any]:
        return field(
            what, "sc:Text", extract={"fileProperty": "filename"}, transform={"regex": regex}
        )

    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            part("key", r"^([^.]+)\."),
            part("field", r"^[^.]+\.(.+)$"),
            field("content", content, extract={"fileProperty": "content"}),
        ],
    }


def _table_set(name: str, path: str, columns: pa.Schema) -> dict[str, Any]:
    """The index: those of its columns that hold single values."""
    typed = [(column.name, _data_type(column.type)) for column in columns]
    words = _words([column for column, _ in typed])
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/key"},
        "field": [
            _field(
                f"{name}/{words[column]}",
                column,
                data_type,
                {"fileObject": {"@id": path}, "extract": {"column": column}},
            )
            for column, data_type in typed
            if data_type is not None
        ],
    }


def _words(names: Iterable[str]) -> dict[str, str]:
    """Names that an ``@id`` can end with, each other than all before."""
    words: dict[str, str] = {}
    for name in names:
        word = plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        number = 1
        while word in words.values():
            number += 1
            word = f"{plain}_{number}"
        words[name] = word
    return words


def _field(uid: str, name: str, data_type: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": uid,
        "name": name,
        "dataType": data_type,
        "source": source,
    }


def _data_type(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "sc:Text"
    return None
