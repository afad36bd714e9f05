"""A version of a dataset as readers see it: shards, samples, addresses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.digest import SHORT
from reelmill.errors import NotFoundError
from reelmill.shards import index, provenance, removed
from reelmill.shards.index import REJECTED
from reelmill.shards.reader import Sample, ShardReader
from reelmill.shards.removed import Removed
from reelmill.store import Store
from reelmill.store.model import (
    LineageEntry,
    Manifest,
    Ref,
    Shard,
    Totals,
    Uncounted,
    blob_name,
)

_READERS: Final = 4


@dataclass(frozen=True)
class Version:
    """An immutable version. ``name`` is the dataset's, ``digest`` the full digest."""

    store: Store
    name: str
    digest: str
    ref: Ref

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:SHORT]}"

    @cached_property
    def manifest(self) -> Manifest:
        """What the version holds.

        Raises:
            NotFoundError: the version was collected.
        """
        try:
            return self.store.manifest(self.digest)
        except NotFoundError:
            raise NotFoundError(
                f"{self} is no longer in {self.store.url}: it was collected; "
                f"'reelmill ls {self.name}' says which versions are there"
            ) from None

    @property
    def totals(self) -> Totals:
        """The shards and their bytes, and the samples and rejects in them that count."""
        return self.ref.counted

    @cached_property
    def removed(self) -> dict[str, Removed]:
        """Rows of the sources that no longer count, by key."""
        blobs = (self.store.read_blob(b.digest, "parquet") for b in self.manifest.removed)
        return {key: why for data in blobs for key, why in removed.decode(data).items()}

    def counts(self, key: str) -> bool:
        """Whether a sample or reject counts: it derives from no row that was removed."""
        return removed.source_key(key) not in self.removed

    def shards(self) -> Iterator[ShardReader]:
        """A reader for each shard, in order. What was removed is still in them."""
        return (ShardReader(self.store, shard) for shard in self.manifest.shards)

    def samples(self, fields: Collection[str] | None = None) -> Iterator[Sample]:
        """Every sample that counts, shard by shard, with all fields or those named."""
        for shard in self.shards():
            keys = self.kept(shard)
            if keys is None or keys:
                yield from shard.samples(fields, keys)

    def kept(self, shard: ShardReader) -> set[str] | None:
        """The keys of the samples of a shard that count; ``None`` if all of them do."""
        if not self.removed:
            return None
        keys: list[str] = [row["key"] for row in shard.rows()]
        kept = {key for key in keys if self.counts(key)}
        return None if len(kept) == len(keys) else kept

    def rejects(self) -> Iterator[dict[str, Any]]:
        """The index row of every reject that counts: key, reason, message, the stage's columns."""
        for shard in self.shards():
            yield from (row for row in shard.rows(REJECTED) if self.counts(row["key"]))

    @cached_property
    def lineage(self) -> dict[str, LineageEntry]:
        """Which action made each shard, by shard ID; empty for a table."""
        if self.ref.lineage is None:
            return {}
        return {entry.shard: entry for entry in self.store.lineage(self.ref.lineage).shards}

    def made(self, shard: Shard) -> int | None:
        """When the making of a shard began, in seconds since the epoch, where somebody knows."""
        entry = self.lineage.get(shard.id)
        record = self.store.record(entry.action) if entry else None
        started = record.how.get("started") if record else None
        return started if isinstance(started, int) else None

    def provenance(self, shard: Shard) -> dict[str, dict[str, Any]]:
        """How the samples and rejects of a shard were had, by key; empty where nobody knows."""
        entry = self.lineage.get(shard.id)
        if entry is None or entry.result.provenance is None:
            return {}
        data = self.store.read_blob(entry.result.provenance.digest, "parquet")
        return provenance.decode(data)

    def urls(self) -> list[str]:
        """The address of each tar, for ``webdataset.WebDataset`` or any reader of tars.

        The tars still hold the samples that were removed; ``reelmill view`` leaves them out.
        """
        return [
            self.store.backend.locate(blob_name(shard.tar.digest, "tar"))
            for shard in self.manifest.shards
            if shard.tar
        ]


def uncounted(
    manifest: Manifest, read: Callable[[str], bytes], *, by_shard: bool = False
) -> Uncounted | None:
    """What no longer counts of a version's shards, found in their indexes; ``None`` if no row was
    removed.

    Args:
        read: gives the bytes of a parquet blob by digest.
        by_shard: keys of source rows begin with the ID of the shard that they are in, so that only
            the indexes of some shards need to be read.
    """
    if not manifest.removed:
        return None
    tables = (removed.decode_table(read(blob.digest)) for blob in manifest.removed)
    gone: set[str] = {key for table in tables for key in table["key"].to_pylist()}
    named = {removed.shard_of(key) for key in gone} if by_shard else ()
    shards = [shard for shard in manifest.shards if not by_shard or shard.id in named]

    def count(shard: Shard) -> tuple[int, Counter[str]]:
        rows = index.decode(read(shard.index.digest), ["key", "status", "reason"])
        left = [removed.source_key(key) in gone for key in rows["key"].to_pylist()]
        rows = rows.filter(pa.array(left, pa.bool_()))
        bad = rows.filter(pc.equal(rows["status"], REJECTED))["reason"].to_pylist()
        return len(rows) - len(bad), Counter(bad)

    with ThreadPoolExecutor(_READERS) as pool:
        counts = list(pool.map(count, shards))
    rejects: Counter[str] = sum((reasons for _, reasons in counts), Counter())
    return Uncounted(samples=sum(samples for samples, _ in counts), rejects=dict(rejects))


def open_version(store: Store | str, spec: str) -> Version:
    """Open ``clips``, ``clips@latest``, ``clips@v1`` or ``clips@3fa9c1d2`` in a store.

    Raises:
        NotFoundError: the store does not hold it.
    """
    opened = Store.open(store) if isinstance(store, str) else store
    name, ref = opened.resolve(spec)
    return Version(opened, name, ref.version, ref)
