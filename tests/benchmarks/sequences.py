"""Sequences of pictures into shards, and triplets of them, against cp of the same bytes.

Ours is all that a worker does: listing members, grouping, checksums, tar, index, sha256, fsync and
commit. What sha256 alone costs of the same bytes is measured beside it, and subtracted in the last
table, as it is for the shuffle. Zips are not packed, as pictures in zips mostly are.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reelmill.store import Store
from reelmill.store.model import Result, Shard, action_name
from reelmill.tasks import get_stage
from reelmill.tasks.contract import action_of
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source, ingest
from tests.benchmarks.harness import compare, show, show_costs
from tests.benchmarks.payload import KB, MB

FRAMES = 600
FIELDS = {"left.jpg": 200 * KB, "left.depth.png": 200 * KB, "left.json": 2 * KB}
BYTES = FRAMES * sum(FIELDS.values())
CP, CP_TAR, HASH = "cp -r of the folder", "cp of the tar", "sha256 alone"


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        _all(Path(folder))


def _all(folder: Path) -> None:
    store = Store.open(str(folder / "store"), create=True)
    places = _packed(folder)
    orders = {f"sequences of a {kind}": _sequence(store, path) for kind, path in places.items()}
    frames = _made(store, orders["sequences of a tar"])
    for step, name in ((3, "windows, none overlap"), (1, "windows, each frame in three")):
        orders[name] = _order(store, "windows", frames, step=step)

    def work(order: Order) -> Callable[[Path], object]:
        return lambda _: execute(order.model_dump_json())

    subjects: dict[str, Callable[[Path], object]] = {
        name: work(order) for name, order in orders.items()
    }
    subjects |= {
        HASH: lambda _: _hash(places["tar"]),
        CP: lambda made: shutil.copytree(places["folder"], made / "data"),
        CP_TAR: lambda made: shutil.copyfile(places["tar"], made / "s.tar"),
    }
    costs = compare(subjects, reset=lambda: _forget(store, orders))
    size = BYTES / 1e9
    ours = "sequences of a zip"
    title = f"{FRAMES} frames of {sum(FIELDS.values()) // KB} KB, sha256, index and fsync included"
    show_costs(title, costs, "GB", size, ours)
    rows = []
    for name in orders:
        # Each frame is written three times where it is in three windows.
        times = 3 if "three" in name else 1
        bare = costs[name].median.cpu - times * costs[HASH].median.cpu
        peers = [times * costs[peer].median.cpu for peer in (CP, CP_TAR)]
        ratios = [f"{bare / peer:.2f}" for peer in peers]
        rows.append([name, f"{bare / size / times:.3f}", *ratios])
    header = ["without sha256", "CPU-s per GB written", f"/ {CP}", f"/ {CP_TAR}"]
    show("The same, sha256 subtracted", header, rows)


def _packed(folder: Path) -> dict[str, Path]:
    """The same sequence in a folder, a zip and a tar."""
    noise = random.Random(0).randbytes(64 * MB)
    root, zipped, tarred = folder / "data", folder / "s.zip", folder / "s.tar"
    (root / "s").mkdir(parents=True)
    with zipfile.ZipFile(zipped, "w") as archive, tarfile.open(tarred, "w") as tar:
        at = 0
        for number in range(FRAMES):
            for field, size in FIELDS.items():
                data = noise[at : at + size]
                at = (at + size) % (len(noise) - 2 * MB)
                name = f"s/{number:06d}.{field}"
                (root / name).write_bytes(data)
                archive.writestr(name, data)
                info = tarfile.TarInfo(name)
                info.size = size
                tar.addfile(info, io.BytesIO(data))
    return {"folder": root, "zip": zipped, "tar": tarred}


def _sequence(store: Store, path: Path) -> Order:
    found = ingest(
        Source(path=str(path), format="sequences"),
        None,
        lambda digest: b"",
        lambda data: store.put_blob(data, "parquet"),
    )
    (rows,) = found.manifest.generations[0].shards
    return _order(store, "sequences", rows, allow_files=True)


def _order(store: Store, name: str, shard: Shard, **params: Any) -> Order:
    stage = get_stage(name)
    values = stage.params.model_validate(params)
    (slot,) = stage.plan(values, {"source": [shard]}, 0)
    return Order(
        store=store.url,
        run="bench",
        dataset=name,
        shard=slot.shard_id,
        action=action_of(stage, values, slot, "", stage.tools(values)),
        params=values.model_dump(mode="json"),
        shards=dict(slot.shards),
    )


def _made(store: Store, order: Order) -> Shard:
    return Result.model_validate_json(execute(order.model_dump_json())).shard(order.shard)


def _forget(store: Store, orders: Mapping[str, Order]) -> None:
    """Let all be made anew, but for the frames that windows are made of."""
    kept = {order.shards["source"].tar for order in orders.values() if order.shards["source"].tar}
    for order in orders.values():
        record = store.record(order.action.key)
        if record is not None:
            store.backend.delete(action_name(order.action.key))
            if record.result.tar not in kept:
                for name in record.result.blob_names():
                    store.backend.delete(name)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
