"""The shuffle of a generation, against cp of the same tars, and on S3 against copies of objects.

Ours is all that a worker does: layout, gathering, tar, index, sha256, fsync and commit. What
sha256 alone costs of the same bytes is measured beside it and subtracted in the last table.
On S3 the peer gets whole objects and puts them, by the same client.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import fsspec

from reelmill.store import Store
from reelmill.store.model import Generation, Shard, action_name, blob_name
from reelmill.tasks import shuffle
from reelmill.tasks.contract import action_of
from reelmill.tasks.frame import Order, execute
from tests.benchmarks.harness import Costs, compare, show, show_costs
from tests.benchmarks.payload import KB, MB, stored
from tests.benchmarks.shuffle_memory import MIB, show_peaks
from tests.s3_server import MOTO

SHARDS = 8
SHARD_BYTES = 64 * MB
S3_SHARDS = 2
SIZES = {"1 MB samples": MB, "50 KB samples": 50 * KB}
OURS, SCATTERED = "ours, seed 0", "ours, seed 1"
CP, DURABLE = "cp --reflink=never", "cp --reflink=never, fsync"
KERNEL, HASH = "cp (copy_file_range)", "sha256 alone"
WHOLE = "get and put of whole objects"


def run() -> None:
    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
            store = Store.open(folder, create=True)
            shards = list(stored(store, SHARDS, SHARD_BYTES, size))
            _one_size(label, store, shards)
    show_peaks((64 * MIB, 512 * MIB))
    with s3() as url:
        for label, size in SIZES.items():
            store = Store.open(f"{url}/{size}", create=True)
            _one_size_remote(label, store, list(stored(store, S3_SHARDS, SHARD_BYTES, size)))


@contextmanager
def s3() -> Iterator[str]:
    """An address in an empty bucket of an S3 server on loopback, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        fsspec.filesystem("s3").mkdir("bench")
        yield "s3://bench"
        # The server ends when its standard input does.
        server.communicate()


def _one_size_remote(label: str, store: Store, shards: Sequence[Shard]) -> None:
    orders = _orders(store, shards, 0)
    names = [blob_name(shard.tar.digest, "tar") for shard in shards if shard.tar]
    data = os.urandom(SHARD_BYTES)

    def reset() -> None:
        shuffle._deal.cache_clear()
        _forget(store, orders)

    def copy() -> None:
        for name in names:
            store.backend.put(f"copies/{name}", store.backend.read(name))

    subjects: dict[str, Callable[[Path], object]] = {
        OURS: lambda _: _execute(orders),
        HASH: lambda _: [hashlib.sha256(data) for _ in shards],
        WHOLE: lambda _: copy(),
    }
    costs = compare(subjects, reset=reset, rounds=3, warm=False)
    size = S3_SHARDS * SHARD_BYTES / 1e9
    show_costs(f"Shuffling {label} on S3, sha256 and index included", costs, "GB", size, OURS)
    _show_bare(f"Shuffling {label} on S3", costs, size, {"whole objects": WHOLE})


def _execute(orders: Sequence[Order]) -> None:
    for order in orders:
        execute(order.model_dump_json())


def _one_size(label: str, store: Store, shards: Sequence[Shard]) -> None:
    paths = [store.backend.locate(blob_name(s.tar.digest, "tar")) for s in shards if s.tar]
    orders = {seed: _orders(store, shards, seed) for seed in (0, 1)}

    def reset() -> None:
        shuffle._deal.cache_clear()
        _forget(store, [*orders[0], *orders[1]])

    subjects: dict[str, Callable[[Path], object]] = {
        OURS: lambda _: _execute(orders[0]),
        SCATTERED: lambda _: _execute(orders[1]),
        HASH: lambda _: [_digest(path) for path in paths],
        CP: lambda folder: _cp(paths, folder, "never"),
        DURABLE: lambda folder: _fsync(_cp(paths, folder, "never")),
        KERNEL: lambda folder: _cp(paths, folder, "auto"),
    }
    costs = compare(subjects, reset=reset)
    size = SHARDS * SHARD_BYTES / 1e9
    show_costs(f"Shuffling {label}, sha256 and index and fsync included", costs, "GB", size, OURS)
    peers = {"cp": CP, "cp, fsync": DURABLE, "cp (copy_file_range)": KERNEL}
    _show_bare(f"Shuffling {label}", costs, size, peers)


def _show_bare(
    title: str, costs: Mapping[str, Costs], size: float, peers: Mapping[str, str]
) -> None:
    """What a shuffle of ``size`` GB costs without sha256, and that divided by each peer's cost."""
    rows = []
    for name in (name for name in (OURS, SCATTERED) if name in costs):
        bare = costs[name].median.cpu - costs[HASH].median.cpu
        ratios = [f"{bare / costs[peer].median.cpu:.2f}" for peer in peers.values()]
        rows.append([name, f"{bare / size:.3f}", *ratios])
    header = ["without sha256", "CPU-s per GB", *(f"/ {peer}" for peer in peers)]
    show(f"{title}, sha256 subtracted", header, rows)


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
