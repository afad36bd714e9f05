"""Reading a shard through its index: the samples, or only some of their fields, by byte range."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.digest import order_hash
from reelmill.errors import NotFoundError, ShardError
from reelmill.shards import index
from reelmill.shards.index import Member
from reelmill.shards.writer import SampleOrder
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.model import Shard, blob_name

MAX_GAP = 64 << 10
"""Bytes worth reading along to save a request: about what a request's overhead costs."""

_MAX_READ = 32 << 20
_MAX_READ_LOCAL = 1 << 20
"""There is no request to save: a larger block only costs fresh memory."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample in memory: its key, each field's bytes, and its row's metadata columns."""

    key: str
    fields: dict[str, bytes]
    columns: dict[str, Any]


class ShardReader:
    """One shard of a version: its index at once, its samples as they are asked for."""

    def __init__(self, store: Store, shard: Shard) -> None:
        self._store = store
        self.shard = shard

    @functools.cached_property
    def table(self) -> pa.Table:
        """The index, a row per sample in the tar's order, then a row per reject."""
        return index.decode(self._store.read_blob(self.shard.index.digest, "parquet"))

    def rows(self, status: str = index.OK) -> list[dict[str, Any]]:
        """The index rows of one status: ``ok`` or ``rejected``."""
        return [row for row in self.table.to_pylist() if row["status"] == status]

    @property
    def order(self) -> SampleOrder:
        """How its samples lie: by keyed hash where they lie in both orders, as few may."""
        keys = self.table.filter(pc.equal(self.table["status"], index.OK))["key"].to_pylist()
        if keys != sorted(keys):
            return "hash"
        hashes = [(order_hash(key), key) for key in keys]
        return "hash" if hashes == sorted(hashes) else "key"

    def samples(
        self, fields: Collection[str] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[Sample]:
        """Every sample, or those of some keys, in the tar's order, with all or some fields.

        Memory holds the samples of one read of at most 32 MiB, or one larger sample.
        """
        if self.shard.tar is None:
            return
        name = blob_name(self.shard.tar.digest, "tar")
        rows = [row for row in self.rows() if keys is None or row["key"] in keys]
        picked = [
            [m for m in index.members(row["fields"]) if fields is None or m.name in fields]
            for row in rows
        ]
        end = self.shard.tar.size
        if any(m.offset + m.size > end for members in picked for m in members):
            raise ShardError(f"the index of shard {self.shard.id} points beyond the end of its tar")
        most = _MAX_READ_LOCAL if self._store.backend.is_local else _MAX_READ
        for batch in _batches(picked, most):
            wanted = [member for i in batch for member in picked[i]]
            data = self._read(name, wanted)
            for i in batch:
                yield Sample(
                    key=rows[i]["key"],
                    fields={m.name: data[m.offset] for m in picked[i]},
                    columns=stage_columns(rows[i]),
                )

    def _read(self, name: str, wanted: Sequence[Member]) -> dict[int, bytes]:
        runs = coalesce([(m.offset, m.offset + m.size) for m in wanted], MAX_GAP)
        try:
            blocks = self._store.backend.read_ranges([Range(name, a, b) for a, b in runs])
        except FileNotFoundError:
            raise NotFoundError(
                f"{self._store.backend.locate(name)} is gone; build again to make it anew"
            ) from None
        out = {}
        ahead = iter(zip(runs, blocks, strict=True))
        (start, stop), block = next(ahead, ((0, 0), b""))
        for member in sorted(wanted, key=lambda m: m.offset):
            while member.offset + member.size > stop:
                (start, stop), block = next(ahead)
            out[member.offset] = block[member.offset - start : member.offset - start + member.size]
        return out


def stage_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row's metadata without the columns that every index has."""
    return {name: value for name, value in row.items() if name not in _BASE_NAMES}


_BASE_NAMES = frozenset(index.BASE.names)


def coalesce(ranges: Iterable[tuple[int, int]], max_gap: int) -> list[tuple[int, int]]:
    """Half-open byte ranges joined where at most ``max_gap`` bytes lie between them."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= max_gap:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _batches(picked: Sequence[Sequence[Member]], most: int) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for place, members in enumerate(picked):
        batch.append(place)
        size += sum(member.size for member in members)
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
