"""Scrubbing: a shard's bytes against their digests, its tar against its index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

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
    rows = [_row(row) for row in table.to_pylist()]
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
    expected = iter(sorted(rows, key=lambda row: row.offset or 0))
    row = next(expected, None)
    size = 0
    held = b""
    try:
        for piece in store.backend.stream(name):
            digest.update(piece)
            size += len(piece)
            held += piece
            while row is not None and row.size is not None and len(held) >= row.size:
                span, held = held[: row.size], held[row.size :]
                if xxhash.xxh3_64_intdigest(span) != row.xxh3:
                    yield f"sample {row.key} of {place} does not match its checksum"
                elif not _headers_fit(row, span):
                    yield f"sample {row.key} of {place} is not where the index says"
                row = next(expected, None)
            if row is None:
                held = b""
    except FileNotFoundError:
        yield f"{place} is gone"
        return
    except StoreError as error:
        yield str(error)
        return
    if row is not None:
        yield f"{place} ends before sample {row.key}"
    if size != shard.tar.size:
        yield f"{place} has {size} bytes instead of {shard.tar.size}"
    if digest.hexdigest() != shard.tar.digest:
        yield f"{place} does not match its digest"


def _row(cells: dict[str, Any]) -> Row:
    base = {name: cells[name] for name in index.BASE.names}
    return Row(**{**base, "fields": index.members(cells["fields"])})


def _headers_fit(row: Row, span: bytes) -> bool:
    assert row.offset is not None
    for member in row.fields:
        start = member.offset - row.offset
        header = tar.header(tar.member_name(row.key, member.name), member.size)
        if span[start - tar.BLOCK : start] != header:
            return False
    return True
