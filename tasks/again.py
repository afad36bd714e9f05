"""Rows to be fetched again: they enter a source once more, as a new generation, under new keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.dataset import uncounted
from reelmill.digest import sha256
from reelmill.errors import StageError
from reelmill.shards import index, removed
from reelmill.shards.removed import Removed
from reelmill.store import Store
from reelmill.store.model import Action, Blob, Generation, Manifest, Result, Shard
from reelmill.tasks.ingest import VERSION, commit_grown

Read = Callable[[str], bytes]
Put = Callable[[bytes], Blob]


def enter_again(
    base: Manifest,
    keys: Collection[str],
    reason: str,
    rows_per_shard: int,
    read: Read,
    put: Put,
) -> Manifest:
    """Let rows of a source enter it once more; the version that it grows to.

    The new rows take the places of the old ones, which no longer count (``Manifest.removed``); a
    row that counts no longer as it is does not enter. No shard of ``base`` changes. Memory holds
    the rows of one shard, and the keys.

    Args:
        keys: of rows of ``base``.
        reason: why, as in ``reelmill.shards.removed``.
        read: gives the bytes of a parquet blob by digest.
        put: stores the bytes of one.

    Raises:
        StageError: a key is none of ``base``.
    """
    gone = {k: why for blob in base.removed for k, why in removed.decode(read(blob.digest)).items()}
    keys = [key for key in keys if key not in gone]
    number = first = sum(1 for _ in base.shards)
    shards: list[Shard] = []
    found = 0
    for table in _tables(_rows(base, keys, read), rows_per_shard):
        shard_id = f"{number:05d}"
        new = [f"{shard_id}{place:0{removed.PLACE_DIGITS}d}" for place in range(table.num_rows)]
        for old, key in zip(table["key"].to_pylist(), new, strict=True):
            gone[old] = Removed(reason, key)
        field = table.schema.field("key")
        blob = put(index.write(table.set_column(0, field, pa.array(new, field.type))))
        shards.append(Shard(id=shard_id, tar=None, index=blob, samples=len(new), rejects=0))
        found += len(new)
        number += 1
    if found != len(keys):
        raise StageError(f"{len(keys) - found} of {len(keys)} rows are not in their source")
    if number == first:
        return base
    return Manifest(
        fields=(),
        generations=(*base.generations, Generation(shards=tuple(shards))),
        removed=(put(removed.encode(gone)),),
    )


def commit_again(
    store: Store, source: str, keys: Collection[str], reason: str, rows_per_shard: int, run: str
) -> str:
    """Let rows enter a source of a store once more, and commit its new version; its digest.

    Args:
        source: the name of a table's dataset in the store.
        keys: of rows of its latest version.
        reason: why, as in ``reelmill.shards.removed``.

    Raises:
        StageError: the store has no such source, or it has no such rows.
    """
    last = store.latest(source)
    if last is None or last.stage != "ingest":
        raise StageError(f"{store.url} has no table by the name of {source}")
    before = store.record(last.action) if last.action else None
    action = Action(
        stage="ingest",
        version=before.action.version if before else VERSION,
        # That of the table which was read last: the same table holds nothing that is new.
        params=before.action.params if before else {},
        inputs={
            **({"table": before.action.inputs["table"]} if before else {}),
            "base": {"manifest": last.version},
            "again": {"keys": sha256("\n".join(sorted(keys)).encode())},
        },
        slot={"reason": reason},
    )
    read = partial(store.read_blob, suffix="parquet")
    made = store.recall([action.key]).get(action.key)
    if made is None:
        manifest = enter_again(
            store.manifest(last.version),
            keys,
            reason,
            rows_per_shard,
            read,
            lambda data: store.put_blob(data, "parquet"),
        )
        data = manifest.as_bytes()
        totals = manifest.totals()
        result = Result(
            manifest=store.put_blob(data, "json"), samples=totals.samples, rejects=totals.rejects
        )
        made = store.commit(action, result, {"run": run})
    assert made.manifest is not None
    version = made.manifest.digest
    grown = store.manifest(version)
    lost = uncounted(grown, read, by_shard=True)
    if not commit_grown(
        store, source, action, version, base=last.version, totals=grown.totals(), lost=lost, run=run
    ):
        return commit_again(store, source, keys, reason, rows_per_shard, run)
    return version


def _rows(base: Manifest, keys: Collection[str], read: Read) -> Iterator[pa.Table]:
    """The index rows of ``base`` that have these keys, one table a shard."""
    by_shard: dict[str, list[str]] = {}
    for key in keys:
        by_shard.setdefault(removed.shard_of(key), []).append(key)
    for shard in base.shards:
        if wanted := by_shard.get(shard.id):
            table = index.decode(read(shard.index.digest))
            usable = pc.and_(
                pc.is_in(table["key"], pa.array(wanted, pa.string())),
                pc.equal(table["status"], index.OK),
            )
            yield table.filter(usable)


def _tables(tables: Iterator[pa.Table], most: int) -> Iterator[pa.Table]:
    """The same rows in tables of at most ``most`` rows and of one schema each."""
    held: list[pa.Table] = []
    for table in tables:
        if held and not held[0].schema.equals(table.schema):
            yield pa.concat_tables(held).combine_chunks()
            held = []
        held.append(table)
        whole = pa.concat_tables(held)
        while whole.num_rows >= most:
            yield whole.slice(0, most).combine_chunks()
            whole = whole.slice(most)
        held = [whole] if whole.num_rows else []
    if held:
        yield pa.concat_tables(held).combine_chunks()
