"""The peak of a worker's memory while it shuffles a shard, by the size of the shard."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from reelmill.digest import order_hash
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.model import Generation, Shard
from reelmill.tasks import shuffle
from reelmill.tasks.contract import action_of
from reelmill.tasks.frame import Order, execute
from reelmill.units import format_bytes
from tests.benchmarks.harness import show

MIB, GIB = 1 << 20, 1 << 30
SAMPLES = {"1 MB": 1_000_000, "50 KB": 50_000}
INPUTS = 2


def run() -> None:
    show_peaks((64 * MIB, GIB, 4 * GIB))


def show_peaks(sizes: Sequence[int]) -> None:
    """Print the peaks for shards of such sizes in bytes, in a folder of the machine."""
    rows = []
    for size in sizes:
        for label, each in SAMPLES.items():
            with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
                order = _order(Store.open(folder, create=True), size, each)
                path = Path(folder, "order.json")
                path.write_text(order.model_dump_json())
                program = [sys.executable, "-m", __name__, str(path)]
                told = subprocess.run(program, check=True, capture_output=True, text=True).stdout
                before, peak = map(int, told.split())
            rows.append([format_bytes(size), label, format_bytes(before), format_bytes(peak)])
    show("Peak memory", ["shard", "samples of", "before the work", "peak"], rows)


def _order(store: Store, size: int, each: int) -> Order:
    """The making of one shard of ``size`` bytes, from inputs that are written here."""
    shards = [_input(store, number, size // INPUTS, each) for number in range(INPUTS)]
    store.put_blob(Generation(shards=tuple(shards)).as_bytes(), "json")
    stage = shuffle.Shuffle()
    params = shuffle.ShuffleParams(samples_per_shard=1_000_000)
    (slot,) = stage.plan(params, {"source": shards}, 0)
    return Order(
        store=store.url,
        run="bench",
        dataset="shuffled",
        shard=slot.shard_id,
        action=action_of(stage, params, slot, "", stage.tools(params)),
        params=params.model_dump(mode="json"),
    )


def _input(store: Store, number: int, size: int, each: int) -> Shard:
    writer = ShardWriter(store.backend.scratch(), pa.schema([]))
    data = random.Random(number).randbytes(each)
    for key in sorted((f"{number:05d}{n:06d}" for n in range(size // each)), key=order_hash):
        writer.add(key, {"bin": data}, {})
    return put_shard(store, writer.close()).shard(f"{number:05d}")


def _peak() -> int:
    """The most memory that this program has held, in bytes. What the kernel tells of a process
    would be that of its parent too, until the program began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    before = _peak()
    execute(Path(sys.argv[1]).read_text())
    print(before, _peak())
