"""Scrubbing: a shard's bytes against their digests, its tar against its index."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator

import xxhash

from reelmill.errors import ShardError, StoreError
from reelmill.shards import index, tar
from reelmill.shards.index import Row
from reelmill.store import Store
from reelmill.store.model import Blob, Shard, Suffix, blob_name


def verify_shard(store: Store, shard: Shard) -> Iterator[str]:
    """Read a whole shard back and say what is wrong with it; nothing if all is well.

    Memory holds a few MiB, and the index. The tar is read once: its digest, each sample's
    checksum and each member's header are checked on the way.
    """
    try:
        table = index.decode(store.read_blob(shard.index.digest, "parquet"))
    except (StoreError, ShardError) as error:
        yield str(error)
        return
    rows = [index.as_row(row, {}) for row in table.to_pylist()]
    samples = [row for row in rows if row.status == index.OK]
    rejects = len(rows) - len(samples)
    if (len(samples), rejects) != (shard.samples, shard.rejects):
        yield (
            f"the index has {len(samples)} samples and {rejects} rejects, "
            f"the manifest {shard.samples} and {shard.rejects}"
        )
    if shard.tar is not None:
        yield from _verify_tar(store, shard, samples)


def remove_damaged(store: Store, shard: Shard) -> None:
    """Delete those blobs of a shard whose bytes do not match their names."""
    blobs: list[tuple[Blob | None, Suffix]] = [(shard.tar, "tar"), (shard.index, "parquet")]
    for blob, suffix in blobs:
        if blob is not None and store.hash_blob(blob.digest, suffix) not in (None, blob.digest):
            store.backend.delete(blob_name(blob.digest, suffix))


def _verify_tar(store: Store, shard: Shard, rows: list[Row]) -> Iterator[str]:
    assert shard.tar is not None
    name = blob_name(shard.tar.digest, "tar")
    place = store.backend.locate(name)
    digest = hashlib.sha256()
    waiting = deque(_Check(row) for row in sorted(rows, key=lambda row: row.offset or 0))
    size = 0
    try:
        for piece in store.backend.stream(name):
            digest.update(piece)
            while waiting and waiting[0].take(piece, size):
                yield from (f"{place}: {problem}" for problem in waiting.popleft().problems())
            size += len(piece)
    except FileNotFoundError:
        yield f"{place} is gone"
        return
    except StoreError as error:
        yield str(error)
        return
    if waiting:
        yield f"{place} ends before sample {waiting[0].row.key}"
    if size != shard.tar.size:
        yield f"{place} has {size} bytes instead of {shard.tar.size}"
    if digest.hexdigest() != shard.tar.digest:
        yield f"{place} does not match its digest"


class _Check:
    """One sample's checksum and headers, checked as the tar streams by."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.start = row.offset or 0
        self.stop = self.start + (row.size or 0)
        self._checksum = xxhash.xxh3_64()
        self._strays = False
        self._headers: list[tuple[int, bytes]] = []
        try:
            for member in row.fields:
                head = tar.header(tar.member_name(row.key, member.name), member.size)
                self._headers.append((member.offset - tar.BLOCK, head))
        except ShardError:
            self._strays = True

    def take(self, piece: bytes, at: int) -> bool:
        """Look at the part of ``piece``, which begins at byte ``at``, that is the sample's;
        whether the sample ends in it."""
        begin, end = max(self.start, at), min(self.stop, at + len(piece))
        if begin < end:
            self._checksum.update(memoryview(piece)[begin - at : end - at])
        for offset, head in self._headers:
            first, last = max(offset, at), min(offset + len(head), at + len(piece))
            if (
                first < last
                and piece[first - at : last - at] != head[first - offset : last - offset]
            ):
                self._strays = True
        return self.stop <= at + len(piece)

    def problems(self) -> Iterator[str]:
        if self._checksum.intdigest() != self.row.xxh3:
            yield f"sample {self.row.key} does not match its checksum"
        elif self._strays:
            yield f"sample {self.row.key} is not where the index says"
