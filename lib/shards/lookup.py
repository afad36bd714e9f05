"""Samples by key, wherever they lie among some shards: only the asked ones are read."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.errors import NotFoundError, ShardError
from reelmill.shards import gather, index
from reelmill.shards.index import Member
from reelmill.shards.reader import MAX_GAP, coalesce, stage_columns
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.model import Shard, blob_name

_KEPT_BYTES: Final = 16 << 20
"""Up to this size a process keeps the indexes of many shards, rather than read them again."""


def with_ancestors(key: str) -> list[str]:
    """A sample's key, and those of the samples that it derives from, the nearest first."""
    parts = key.split("_")
    return ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]


class Lookup:
    """The samples of some shards that have one of some keys.

    Raises:
        ShardError: two samples have one key, or the shards' columns differ.
    """

    def __init__(self, store: Store, shards: Sequence[Shard], keys: Collection[str]) -> None:
        self._store = store
        self._rows: dict[str, tuple[Shard, dict[str, Any]]] = {}
        wanted = pa.array(sorted(keys), pa.string())
        schema = None
        for shard, table in zip(shards, _tables(store, shards), strict=True):
            if not table.schema.equals(schema or table.schema):
                raise ShardError("the shards have indexes with different columns")
            schema = table.schema
            self._take(shard, table.filter(pc.is_in(table["key"], value_set=wanted)))

    def _take(self, shard: Shard, found: pa.Table) -> None:
        for row in found.to_pylist():
            if row["key"] in self._rows:
                raise ShardError(f"two samples have the key {row['key']}")
            self._rows[row["key"]] = shard, row

    def nearest(self, key: str) -> str | None:
        """The key of the sample itself, or of the nearest that it derives from; if any is there."""
        return next((one for one in with_ancestors(key) if one in self._rows), None)

    def row(self, key: str) -> dict[str, Any]:
        """The columns of the sample of a key."""
        return stage_columns(self._rows[key][1])

    def members(self, key: str) -> tuple[Member, ...]:
        """The fields of the sample of a key, as they lie in its tar."""
        return index.members(self._rows[key][1]["fields"])

    def read(self, wanted: Mapping[str, Sequence[Member]]) -> dict[str, dict[str, bytes]]:
        """Some fields of some samples, by the samples' keys, in as few reads as make sense.

        Raises:
            NotFoundError: a tar is gone.
        """
        by_tar: dict[str, list[tuple[int, int]]] = {}
        for key, members in wanted.items():
            if not members:
                continue
            spans = by_tar.setdefault(self._tar(key), [])
            spans += [(m.offset, m.offset + m.size) for m in members]
        runs = [
            Range(name, start, stop)
            for name, spans in by_tar.items()
            for start, stop in coalesce(spans, MAX_GAP)
        ]
        try:
            blocks = self._store.backend.read_ranges(runs)
        except FileNotFoundError:
            raise NotFoundError("a tar is gone; build again to make it anew") from None
        held: dict[str, list[tuple[Range, bytes]]] = {}
        for run, block in zip(runs, blocks, strict=True):
            held.setdefault(run.name, []).append((run, block))
        return {
            key: {m.name: _cut(held[self._tar(key)], m) for m in members}
            for key, members in wanted.items()
        }

    def _tar(self, key: str) -> str:
        shard = self._rows[key][0]
        assert shard.tar is not None
        return blob_name(shard.tar.digest, "tar")


def _cut(runs: Sequence[tuple[Range, bytes]], member: Member) -> bytes:
    for run, block in runs:
        if run.start <= member.offset and member.offset + member.size <= run.stop:
            return block[member.offset - run.start : member.offset - run.start + member.size]
    raise AssertionError(member)


def columns_of(store: Store, shards: Sequence[Shard]) -> pa.Schema:
    """The stage's columns that the shards of a dataset have: those of the first."""
    if not shards:
        return pa.schema([])
    return index.own_columns(next(iter(_tables(store, shards))).schema)


def _tables(store: Store, shards: Sequence[Shard]) -> Iterable[pa.Table]:
    """The samples' rows of each shard."""
    digests = tuple(shard.index.digest for shard in shards)
    if len(shards) > 1 and sum(shard.index.size for shard in shards) <= _KEPT_BYTES:
        return _kept(store, digests)
    return (_table(store, digest) for digest in digests)


@functools.lru_cache(maxsize=4)
def _kept(store: Store, digests: tuple[str, ...]) -> list[pa.Table]:
    return [_table(store, digest) for digest in digests]


def _table(store: Store, digest: str) -> pa.Table:
    return gather.sample_rows(store.read_blob(digest, "parquet"))
