"""The shuffle of a generation, against cp of the same tars.

Ours is all that a worker does: layout, gathering, tar, index, sha256, fsync and commit. What
sha256 alone costs of the same bytes is measured beside it and subtracted in the last table.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from reelmill.store import Store
from reelmill.store.model import Generation, Shard, action_name, blob_name
from reelmill.tasks import shuffle
from reelmill.tasks.contract import action_of
from reelmill.tasks.frame import Order, execute
from tests.benchmarks.harness import compare, show, show_costs
from tests.benchmarks.payload import KB, MB, stored

SHARDS = 8
SHARD_BYTES = 64 * MB
SIZES = {"1 MB samples": MB, "50 KB samples": 50 * KB}
OURS, SCATTERED = "ours, seed 0", "ours, seed 1"
CP, DURABLE = "cp --reflink=never", "cp --reflink=never, fsync"
KERNEL, HASH = "cp (copy_file_range)", "sha256 alone"


def run() -> None:
    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
            store = Store.open(folder, create=True)
            shards = list(stored(store, SHARDS, SHARD_BYTES, size))
            _one_size(label, store, shards)


def _one_size(label: str, store: Store, shards: Sequence[Shard]) -> None:
    paths = [store.backend.locate(blob_name(s.tar.digest, "tar")) for s in shards if s.tar]
    orders = {seed: _orders(store, shards, seed) for seed in (0, 1)}

    def ours(seed: int) -> None:
        for order in orders[seed]:
            execute(order.model_dump_json())

    def reset() -> None:
        shuffle._deal.cache_clear()
        _forget(store, [*orders[0], *orders[1]])

    subjects: dict[str, Callable[[Path], object]] = {
        OURS: lambda _: ours(0),
        SCATTERED: lambda _: ours(1),
        HASH: lambda _: [_digest(path) for path in paths],
        CP: lambda folder: _cp(paths, folder, "never"),
        DURABLE: lambda folder: _fsync(_cp(paths, folder, "never")),
        KERNEL: lambda folder: _cp(paths, folder, "auto"),
    }
    costs = compare(subjects, reset=reset)
    size = SHARDS * SHARD_BYTES / 1e9
    show_costs(f"Shuffling {label}, sha256 and index and fsync included", costs, "GB", size, OURS)
    rows = []
    for name in (OURS, SCATTERED):
        bare = costs[name].median.cpu - costs[HASH].median.cpu
        peers = [costs[peer].median.cpu for peer in (CP, DURABLE, KERNEL)]
        rows.append([name, f"{bare / size:.3f}", *(f"{bare / peer:.2f}" for peer in peers)])
    header = ["without sha256", "CPU-s per GB", "/ cp", "/ cp, fsync", "/ cp (copy_file_range)"]
    show(f"Shuffling {label}, sha256 subtracted", header, rows)


def _orders(store: Store, shards: Sequence[Shard], seed: int) -> list[Order]:
    stage = shuffle.Shuffle()
    samples = sum(shard.samples for shard in shards) // len(shards)
    params = shuffle.ShuffleParams(samples_per_shard=samples, seed=seed)
    store.put_blob(Generation(shards=tuple(shards)).as_bytes(), "json")
    return [
        Order(
            store=store.url,
            run="bench",
            dataset="shuffled",
            shard=slot.shard_id,
            action=action_of(stage, params, slot, "", stage.tools(params)),
            params=params.model_dump(mode="json"),
        )
        for slot in stage.plan(params, {"source": shards}, 0)
    ]


def _forget(store: Store, orders: Sequence[Order]) -> None:
    for order in orders:
        record = store.record(order.action.key)
        if record is not None:
            for name in record.result.blob_names():
                store.backend.delete(name)
            store.backend.delete(action_name(order.action.key))


def _cp(paths: Sequence[str], folder: Path, reflink: str) -> Path:
    subprocess.run(["cp", f"--reflink={reflink}", *paths, str(folder)], check=True)
    return folder


def _fsync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
