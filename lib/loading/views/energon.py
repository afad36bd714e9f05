"""``.nv-meta`` of Megatron-Energon, as ``energon prepare`` would write it, but from our indexes.

The tar indexes beside the tars, ``00000.tar.idx``, are bare offsets: nothing of this is code.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections import Counter
from itertools import groupby
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from reelmill.errors import ReelmillError
from reelmill.loading.views.kinds import Kind, kind_of
from reelmill.loading.views.tars import Tar, View

_FOLDER: Final = ".nv-meta"

_PARTS: Final = {"validation": "val"}
"""Its names of splits, where they are not the usual ones."""

_TABLES: Final = (
    """CREATE TABLE samples (
        tar_file_id INTEGER NOT NULL,
        sample_key TEXT NOT NULL UNIQUE,
        sample_index INTEGER NOT NULL,
        byte_offset INTEGER,
        byte_size INTEGER
    )""",
    """CREATE TABLE sample_parts (
        tar_file_id INTEGER,
        sample_index INTEGER,
        part_name TEXT,
        content_byte_offset INTEGER,
        content_byte_size INTEGER
    )""",
)
_INDEXES: Final = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq"
    " ON sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts"
    "(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)

_TYPES: Final[tuple[tuple[str, str, dict[str, Kind]], ...]] = (
    ("captioning.yaml", "CaptioningSample", {"image": "image", "caption": "text"}),
    ("image.yaml", "ImageSample", {"image": "image"}),
    ("text.yaml", "TextSample", {"text": "text"}),
)
"""Sample types that some datasets fit: a configuration's file, the type, what its fields are."""


class EnergonWriter:
    """Writes ``.nv-meta`` and a ``.tar.idx`` beside each tar.

    ``dataset.yaml`` is crude: samples come with all of their fields. Where samples fit one of the
    library's types there is a configuration for that beside it.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._counts: dict[str, int] = {}
        self._shards: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        self._with: Counter[str] = Counter()
        self._meta = view.folder / _FOLDER
        self._meta.mkdir()
        # One transaction, since each that is committed counts in the file's header.
        self._index = sqlite3.connect(self._meta / "index.sqlite", isolation_level=None)
        self._index.execute("PRAGMA synchronous = OFF")
        self._index.execute("BEGIN")
        for table in _TABLES:
            self._index.execute(table)

    def add(self, tar: Tar) -> None:
        """Take a tar in.

        Raises:
            ReelmillError: a sample has the key of another.
        """
        number = len(self._counts)
        rows = tar.rows
        self._counts[tar.path] = tar.samples
        self._shards.setdefault(self._part(tar.split.name), []).append(tar.path)
        offsets, sizes = rows["offset"].to_pylist(), rows["size"].to_pylist()
        ends = [*offsets, offsets[-1] + sizes[-1]]
        (self._view.folder / f"{tar.path}.idx").write_bytes(np.array(ends, "<u8").tobytes())
        keys = rows["key"].to_pylist()
        try:
            self._index.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                (
                    (number, key, place, offset, size)
                    for place, (key, offset, size) in enumerate(
                        zip(keys, offsets, sizes, strict=True)
                    )
                ),
            )
        except sqlite3.IntegrityError:
            raise ReelmillError(
                f"a sample of shard {tar.path} has a key that another sample has, which "
                "Energon cannot read; make a view of each split"
            ) from None
        fields = rows["fields"].combine_chunks()
        members = fields.flatten()
        names = members.field("name")
        columns = [
            pc.list_parent_indices(fields),
            names,
            members.field("offset"),
            members.field("size"),
        ]
        self._index.executemany(
            "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
            ((number, *values) for values in zip(*map(pa.Array.to_pylist, columns), strict=True)),
        )
        counted = pc.value_counts(names)
        self._with.update({one["values"]: one["counts"] for one in counted.to_pylist()})

    def close(self) -> str:
        """Finish the files; returns the Python expression that opens the view."""
        for statement in _INDEXES:
            self._index.execute(statement)
        self._index.execute("COMMIT")
        self._index.close()
        versions = " ".join(split.version.digest for split in self._view.splits)
        self._write("index.uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, versions)))
        self._write(".info.json", json.dumps({"shard_counts": self._counts}, indent=2))
        parts = {part: list(_collapsed(paths)) for part, paths in self._shards.items()}
        self._write_yaml("split.yaml", {"split_parts": parts, "exclude": []})
        crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
        self._write_yaml("dataset.yaml", crude)
        for name, kind, wanted in _TYPES:
            if fitting := self._fitting(wanted):
                sample = {"__module__": "megatron.energon", "__class__": kind}
                self._write_yaml(name, {"sample_type": sample, "field_map": fitting})
        part = self._part(self._view.splits[0].name)
        return (
            f"megatron.energon.get_train_dataset({str(self._view.folder)!r}, "
            f"split_part={part!r}, ...)"
        )

    def _fitting(self, wanted: dict[str, Kind]) -> dict[str, str] | None:
        """Which field is which of a type's, if all samples have just one of each kind."""
        samples = sum(self._counts.values())
        found = {}
        for name, kind in wanted.items():
            fields = [field for field in self._with if kind_of(field) == kind]
            if len(fields) != 1 or self._with[fields[0]] != samples:
                return None
            found[name] = fields[0]
        return found

    def _part(self, split: str) -> str:
        return _PARTS.get(split, split)

    def _write(self, name: str, text: str) -> None:
        (self._meta / name).write_text(text, encoding="utf-8")

    def _write_yaml(self, name: str, document: object) -> None:
        self._write(name, yaml.safe_dump(document, sort_keys=False))


def _collapsed(paths: list[str]) -> list[str]:
    """Brace patterns that stand for the paths of tars, which are numbered without gaps."""
    patterns = []
    for folder, group in groupby(paths, lambda path: path.rpartition("/")[0]):
        names = [path.rpartition("/")[2].removesuffix(".tar") for path in group]
        numbers = names[0] if len(names) == 1 else f"{{{names[0]}..{names[-1]}}}"
        patterns.append(f"{folder}/{numbers}.tar")
    return patterns
