"""Samples of a given size to write, and a store that holds shards of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from reelmill.digest import order_hash
from reelmill.shards.writer import ShardWriter, Written
from reelmill.store import Store
from reelmill.store.model import Shard

COLUMNS = pa.schema([pa.field("number", pa.int32())])
FIELD = "bin"
MB = 1_000_000
KB = 1_000


@dataclass(frozen=True, slots=True)
class Item:
    """A sample of one member."""

    key: str
    data: bytes


def items(total: int, size: int, shard: int = 0) -> list[Item]:
    """Samples of ``size`` random bytes, ``total`` bytes in all, in the keyed order."""
    block = random.Random(shard).randbytes(min(total, 64 * MB))
    made = []
    for place in range(total // size):
        start = place * size % (len(block) - size + 1)
        made.append(Item(f"{shard:05d}{place:04d}", block[start : start + size]))
    return sorted(made, key=lambda item: (order_hash(item.key), item.key))


def shuffled(ordered: Sequence[Item]) -> list[Item]:
    """The same samples, in no order."""
    mixed = list(ordered)
    random.Random(0).shuffle(mixed)
    return mixed


def write_shard(scratch: Path, samples: Sequence[Item]) -> Written:
    """A shard in scratch, as the frame writes it."""
    writer = ShardWriter(scratch, COLUMNS)
    for number, item in enumerate(samples):
        writer.add(item.key, {FIELD: item.data}, {"number": number})
    return writer.close()


def stored(store: Store, shards: int, total: int, size: int) -> Iterator[Shard]:
    """Write shards of ``total`` bytes each, and put them into ``store``."""
    for number in range(shards):
        written = write_shard(store.backend.scratch(), items(total, size, number))
        assert written.path is not None
        assert written.tar is not None
        store.put_blob_file(written.path, written.tar, "tar")
        yield Shard(
            id=f"{number:05d}",
            tar=written.tar,
            index=store.put_blob(written.index, "parquet"),
            samples=written.samples,
            rejects=0,
        )
