"""Functions, filters and joins, against bare loops over the same tars with ``tarfile``.

Ours is all that a worker does: reading, calling, tar, index, sha256, fsync and commit. A bare loop
calls the same function, and writes a tar where ours does; it hashes and indexes nothing.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from reelmill.recipe import Recipe
from reelmill.store import Store
from reelmill.store.model import Generation, Manifest, Result, Shard, action_name, blob_name
from reelmill.tasks import Stages, get_stage
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source
from reelmill.tasks.planner import Node, Planner, Todo
from tests.benchmarks.harness import ROUNDS, compare, show_costs
from tests.benchmarks.payload import FIELD, KB, MB, stored

SHARDS = 4
SHARD_BYTES = 32 * MB
SIZES = {"1 MB samples": MB, "50 KB samples": 50 * KB}
OURS, BARE = "ours", "bare loop with tarfile"

OWN = f'''
import zlib
import reelmill

@reelmill.function(writes=(), columns={{"crc": "int64"}})
def describe(sample):
    return {{"crc": zlib.crc32(sample.fields["{FIELD}"])}}

@reelmill.function(writes=("crc",), columns={{}})
def add(sample):
    return {{"crc": str(zlib.crc32(sample.fields["{FIELD}"]))}}
'''

Samples = Mapping[str, Mapping[str, bytes]]


def run(rounds: int = ROUNDS) -> None:
    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
            _one_size(label, Path(folder), size, rounds)


def _one_size(label: str, folder: Path, size: int, rounds: int) -> None:
    (folder / "own.py").write_text(OWN)
    store = Store.open(str(folder / "store"), create=True)
    shards = list(stored(store, SHARDS, SHARD_BYTES, size))
    given = {"clips": shards, "more": _notes(store, folder, shards)}
    half = SHARD_BYTES // size // 2
    join = {"source": "clips", "more": "more"}
    works: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
        "a function of columns": (
            {"stage": "map", "from": "clips", "function": "./own.py:describe"},
            lambda _: [_crc(one) for one in _bare(store, shards)],
        ),
        "a function that adds a field": (
            {"stage": "map", "from": "clips", "function": "./own.py:add"},
            lambda target: _write(target, (_added(one) for one in _bare(store, shards))),
        ),
        "a filter that keeps half": (
            {"stage": "filter", "from": "clips", "where": f"number < {half}"},
            lambda target: _write(target, (_half(one) for one in _bare(store, shards))),
        ),
        "a join of one field more": (
            {"stage": "join", "from": join},
            lambda target: _write(target, _joined(store, shards, given["more"])),
        ),
    }
    for name, (dataset, bare) in works.items():
        orders = _orders(store, folder, given, dataset)
        costs = compare(
            {OURS: lambda _, orders=orders: _execute(orders), BARE: bare},
            rounds=rounds,
            reset=lambda orders=orders: _forget(store, orders),
        )
        title = f"{name[0].upper()}{name[1:]}, {label}"
        show_costs(title, costs, "GB", SHARDS * SHARD_BYTES / 1e9, OURS)
        _forget(store, orders)


def _orders(
    store: Store, folder: Path, given: Mapping[str, Sequence[Shard]], dataset: Mapping[str, Any]
) -> list[Order]:
    recipe = Recipe.build(
        store=store.url,
        sources={name: {"path": "unused.csv"} for name in given},
        datasets={"out": dataset},
        stages=Stages(),
        source_model=Source,
        base=folder,
    )
    one = recipe.datasets["out"]
    manifests = {
        name: Manifest(fields=(), generations=(Generation(shards=tuple(shards)),))
        for name, shards in given.items()
    }
    params: Any = one.params
    planner = Planner([Node("out", get_stage(one.stage), params, one.inputs)], manifests)
    return [_order(store, params, todo) for todo in planner.start()]


def _order(store: Store, params: Any, todo: Todo) -> Order:
    for data in todo.slot.documents.values():
        store.put_blob(data, "json")
    return Order(
        store=store.url,
        run="bench",
        dataset="out",
        shard=todo.shard,
        action=todo.action,
        params=params.model_dump(mode="json"),
        shards=dict(todo.slot.shards),
    )


def _execute(orders: Sequence[Order]) -> None:
    for order in orders:
        execute(order.model_dump_json())


def _forget(store: Store, orders: Sequence[Order]) -> None:
    kept = {shard for order in orders for shard in order.shards.values()}
    names = {name for shard in kept for name in shard.blob_names()}
    for order in orders:
        record = store.record(order.action.key)
        if record is not None:
            for name in record.result.blob_names().keys() - names:
                store.backend.delete(name)
            store.backend.delete(action_name(order.action.key))


def _notes(store: Store, folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Another dataset of the same keys, with a small field."""
    orders = _orders(
        store,
        folder,
        {"clips": shards},
        {"stage": "map", "from": "clips", "function": "./own.py:add", "keep": False},
    )
    return [
        Result.model_validate_json(execute(order.model_dump_json())).shard(order.shard)
        for order in orders
    ]


# The bare loops


def _bare(store: Store, shards: Sequence[Shard]) -> Any:
    """The samples of each tar."""
    for shard in shards:
        assert shard.tar is not None
        with tarfile.open(store.backend.locate(blob_name(shard.tar.digest, "tar"))) as tar:
            members = ((m.name.partition("."), tar.extractfile(m)) for m in tar)
            read = ((key, name, file.read()) for (key, _, name), file in members if file)
            yield {
                key: {name: data for _, name, data in some}
                for key, some in groupby(read, key=lambda one: one[0])
            }


def _crc(samples: Samples) -> list[int]:
    return [zlib.crc32(fields[FIELD]) for fields in samples.values()]


def _added(samples: Samples) -> dict[str, dict[str, bytes]]:
    crcs = _crc(samples)
    return {
        key: {**fields, "crc": str(crc).encode()}
        for (key, fields), crc in zip(samples.items(), crcs, strict=True)
    }


def _half(samples: Samples) -> dict[str, Mapping[str, bytes]]:
    return dict(list(samples.items())[::2])


def _joined(store: Store, shards: Sequence[Shard], more: Sequence[Shard]) -> Any:
    for ours, theirs in zip(_bare(store, shards), _bare(store, more), strict=True):
        yield {key: {**fields, **theirs[key]} for key, fields in ours.items()}


def _write(folder: Path, shards: Any) -> None:
    for number, samples in enumerate(shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, fields in samples.items():
                for name, data in fields.items():
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
