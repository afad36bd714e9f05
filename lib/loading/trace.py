"""From a sample, or a batch of them, back to where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc

from reelmill.dataset import Version, open_version
from reelmill.errors import LoadError, NotFoundError
from reelmill.loading.random_access import RandomAccess
from reelmill.loading.source import Source, VersionSource
from reelmill.shards.reader import ShardReader, stage_columns
from reelmill.shards.removed import shard_of, source_key

_KEPT: Final = 64
"""Indexes of shards in memory."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a sample comes from; ``None`` stands for what nothing tells.

    Attributes:
        key: of the sample.
        url: address of its tar.
        shard: ID of its shard.
        version: the version that it was loaded from, as ``clips@3fa9c1d20b7e``.
        columns: its metadata, from the index.
        source_key: key of the row of the table that it derives from.
        source_url: the address in that row: where its video was downloaded from.
        source: the version in whose index that address is.
    """

    key: str
    url: str | None = None
    shard: str | None = None
    version: str | None = None
    columns: Mapping[str, Any] | None = None
    source_key: str | None = None
    source_url: str | None = None
    source: str | None = None


class Tracer:
    """Traces samples of one source. The indexes that were read last are kept."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._samples: RandomAccess | None = None
        self._readers: dict[str, ShardReader] = {}
        self._origins: list[Version] | None = None

    def trace(self, what: Any) -> list[Trace]:
        """A trace of each sample of a batch, a sample, or a key, in their order.

        Raises:
            LoadError: there are no keys in it.
            KeyError: there is no such sample.
        """
        return [self._one(key, url) for key, url in _keys(what)]

    def _one(self, key: str, url: str | None) -> Trace:
        source = self._source
        if not isinstance(source, VersionSource):
            return Trace(key, url)
        shard = source.shard_at(url) if url is not None else self._lookup(source, key)
        entry = source.listed[shard]
        row = self._row(source.version, entry.id, key)
        if row is None:
            raise KeyError(f"shard {entry.id} of {source.version} has no sample {key}")
        root = source_key(key)
        found = self._origin(source.version, root)
        return Trace(
            key=key,
            url=source.url(shard),
            shard=entry.id,
            version=str(source.version),
            columns=stage_columns(row),
            source_key=root,
            source_url=found and found[0],
            source=found and found[1],
        )

    def _lookup(self, source: VersionSource, key: str) -> int:
        if self._samples is None:
            self._samples = RandomAccess(source, ())
        return self._samples.place(self._samples.find(key)).shard

    def _row(self, version: Version, shard_id: str, key: str) -> dict[str, Any] | None:
        name = f"{version.digest} {shard_id}"
        if name not in self._readers:
            entry = next((one for one in version.manifest.shards if one.id == shard_id), None)
            if entry is None:
                return None
            self._readers[name] = ShardReader(version.store, entry)
            if len(self._readers) > _KEPT:
                del self._readers[next(iter(self._readers))]
        table = self._readers[name].table
        number = pc.index(table["key"], key).as_py()
        row: dict[str, Any] | None = table.slice(number, 1).to_pylist()[0] if number >= 0 else None
        return row

    def _origin(self, version: Version, key: str) -> tuple[str, str] | None:
        """The address in the row of this key, and the nearest ancestor that has such a row."""
        if self._origins is None:
            self._origins = list(ancestors(version))
        for one in self._origins:
            row = self._row(one, shard_of(key), key)
            if row and row.get("url"):
                return row["url"], str(one)
        return None


def ancestors(version: Version) -> Iterator[Version]:
    """A version, then those it was made from, and so on; those that are still there."""
    waiting, seen = [version], set()
    while waiting:
        one = waiting.pop(0)
        if one.digest in seen:
            continue
        seen.add(one.digest)
        yield one
        for label in one.ref.parents.values():
            try:
                parent = open_version(one.store, label)
                parent.manifest  # noqa: B018 - it is read here, where it may be gone
            except NotFoundError:
                continue
            waiting.append(parent)


def _keys(what: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(what, str):
        yield what, None
    elif isinstance(what, Mapping) and "__key__" in what:
        keys, urls = what["__key__"], what.get("__url__")
        if isinstance(keys, str):
            yield keys, urls
        else:
            urls = [None] * len(keys) if urls is None else urls
            if len(urls) != len(keys):
                raise LoadError(f"a batch of {len(keys)} keys and {len(urls)} addresses of tars")
            yield from zip(keys, urls, strict=True)
    elif isinstance(what, Iterable) and not isinstance(what, Mapping | bytes):
        for one in what:
            yield from _keys(one)
    else:
        raise LoadError(
            f"nothing to trace in {type(what).__name__}: give keys, or samples or batches that "
            "have '__key__'"
        )
