"""A version of a dataset as readers see it: shards, samples, addresses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reelmill.digest import SHORT
from reelmill.errors import NotFoundError
from reelmill.shards.index import REJECTED
from reelmill.shards.reader import Sample, ShardReader
from reelmill.store import Store
from reelmill.store.model import Manifest, Ref, Totals, blob_name


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
        return self.ref.totals

    def shards(self) -> Iterator[ShardReader]:
        """A reader for each shard, in order."""
        return (ShardReader(self.store, shard) for shard in self.manifest.shards)

    def samples(self, fields: Collection[str] | None = None) -> Iterator[Sample]:
        """Every sample, shard by shard, with all fields or those named."""
        for shard in self.shards():
            yield from shard.samples(fields)

    def rejects(self) -> Iterator[dict[str, Any]]:
        """The index row of every reject: key, reason, message and the stage's columns."""
        for shard in self.shards():
            yield from shard.rows(REJECTED)

    def urls(self) -> list[str]:
        """The address of each tar, for ``webdataset.WebDataset`` or any reader of tars."""
        return [
            self.store.backend.locate(blob_name(shard.tar.digest, "tar"))
            for shard in self.manifest.shards
            if shard.tar
        ]


def open_version(store: Store | str, spec: str) -> Version:
    """Open ``clips``, ``clips@latest``, ``clips@v1`` or ``clips@3fa9c1d2`` in a store.

    Raises:
        NotFoundError: the store does not hold it.
    """
    opened = Store.open(store) if isinstance(store, str) else store
    name, ref = opened.resolve(spec)
    return Version(opened, name, ref.version, ref)
