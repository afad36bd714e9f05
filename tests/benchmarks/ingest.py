"""Fifty million rows: rows a second, CPU and memory of an ingest, and of one that grows a little.

The table is parquet with an address, a caption and a number; two rows in a hundred repeat another.
Each subject is a process of its own. The bare scan reads all columns of the same file, which no
ingest can do without, and does so twice; the set holds all addresses, as a script would.
``REELMILL_BENCH_ROWS`` asks for fewer rows.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reelmill.store import Store
from reelmill.tasks.ingest import Source, commit_ingest, ingest, ingest_action, open_source
from tests.benchmarks.harness import cpu_seconds, show

ROWS = int(os.environ.get("REELMILL_BENCH_ROWS", 50_000_000))
ROWS_PER_SHARD = 10_000
REPEATED = 0.02
GROWTH = 0.001
SET_ROWS = 5_000_000
_GROUP_ROWS = 100_000


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        few, many, more = ROWS // 10, ROWS, round(ROWS * (1 + GROWTH))
        _write(folder / "few.parquet", 0, few)
        _write(folder / "many.parquet", 0, many)
        _write(folder / "more.parquet", many, more)
        size = (folder / "many.parquet").stat().st_size / 1e9
        print(f"\n{many:,} rows, {size:.2f} GB of parquet", flush=True)
        scan = [_child(folder, "scan", name) for name in ("few", "many")]
        ours = [_child(folder, "ingest", name) for name in ("few", "many")]
        grown = _child(folder, "grow", "more")
        few_set = min(few, SET_ROWS)
        held = _child(folder, "set", "few")
        rows = [
            _row(f"bare scan, {few:,} rows", scan[0], few, scan[0]),
            _row(f"bare scan, {many:,} rows", scan[1], many, scan[1]),
            _row(f"ingest, {few:,} rows", ours[0], few, scan[0]),
            _row(f"ingest, {many:,} rows", ours[1], many, scan[1]),
            _row(f"ingest of 0.1 % more, {more:,} rows", grown, more, scan[1]),
            _row(f"set of addresses, {few_set:,} rows", held, few_set, scan[0]),
        ]
        header = ["", "rows a second", "CPU-s", "CPU / scan", "wall s", "peak RSS, MB", "new rows"]
        show("Ingest", header, rows)
        print(f"\npeak RSS at ten times the rows: × {ours[1]['rss'] / ours[0]['rss']:.2f}")


def _row(name: str, cost: dict[str, Any], rows: int, scan: dict[str, Any]) -> list[str]:
    ratio = (cost["cpu"] / rows) / (scan["cpu"] / scan["rows"])
    return [
        name,
        f"{rows / cost['wall']:,.0f}",
        f"{cost['cpu']:.1f}",
        f"{ratio:.1f}",
        f"{cost['wall']:.1f}",
        f"{cost['rss']:.0f}",
        f"{cost['new']:,}",
    ]


def _write(path: Path, first: int, end: int) -> None:
    """A file with the rows from one number up to another."""
    schema = pa.schema([("url", pa.string()), ("caption", pa.string()), ("views", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        for start in range(first, end, _GROUP_ROWS):
            writer.write_table(_group(start, min(_GROUP_ROWS, end - start)))


def _group(start: int, rows: int) -> pa.Table:
    chance = np.random.default_rng(start)
    numbers = np.arange(start, start + rows)
    again = chance.random(rows) < REPEATED
    numbers[again] = (numbers[again] * chance.random(int(again.sum()))).astype(np.int64)
    # Scattered, so that neighbours have little in common but the host.
    scattered = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.int64)
    texts = pa.array(scattered).cast(pa.string())
    hosts = pa.array(numbers % 997).cast(pa.string())
    url = pc.binary_join_element_wise("https://cdn", hosts, ".example.com/v/", texts, "")
    url = pc.binary_join_element_wise(url, ".mp4", "")
    caption = pc.binary_join_element_wise("a video of", texts, "things, seen from", hosts, " ")
    return pa.table({"url": url, "caption": caption, "views": chance.integers(0, 10**7, rows)})


def _child(folder: Path, what: str, name: str) -> dict[str, Any]:
    """What one subject costs, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.ingest", what, str(folder), name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    cost: dict[str, Any] = json.loads(done.stdout)
    print(f"{what} {name}: {cost}", flush=True)
    return cost


def _main(what: str, folder: Path, name: str) -> None:
    path = folder / f"{name}.parquet"
    started, before = time.perf_counter(), cpu_seconds()
    rows = new = 0
    if what == "scan":
        rows = sum(batch.num_rows for batch in _batches(path, None))
    elif what == "set":
        seen: set[str] = set()
        for batch in _batches(path, ["url"]):
            for url in batch.column(0).to_pylist()[: SET_ROWS - rows]:
                seen.add(url)
            rows = min(rows + batch.num_rows, SET_ROWS)
        new = len(seen)
    else:
        old = [folder / "many.parquet"] if what == "grow" else []
        new = _ingest(folder, [*old, path], folder / ("many" if old else name))
    cost = {
        "rows": rows,
        "new": new,
        "cpu": cpu_seconds() - before,
        "wall": time.perf_counter() - started,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(cost))


def _batches(path: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        yield from file.iter_batches(8192, columns=columns, use_threads=False)


def _ingest(folder: Path, paths: list[Path], at: Path) -> int:
    """Ingest a table as a build does, into the store at ``at``; how many rows are new."""
    store = Store.open(str(at), create=True)
    source = Source(path=list(map(str, paths)), caption="caption", rows_per_shard=ROWS_PER_SHARD)
    table = open_source(source)
    digest = table.digest()
    last = folder / f"{at.name}.version"
    base = last.read_text() if last.exists() else None
    found = ingest(
        source,
        store.manifest(base) if base else None,
        lambda digest: store.read_blob(digest, "parquet"),
        lambda data: store.put_blob(data, "parquet"),
        None,
        table,
    )
    assert table.digest() == digest
    made = commit_ingest(store, ingest_action(source.settled(table), digest, base), found, {})
    assert made.manifest is not None
    last.write_text(made.manifest.digest)
    return found.new


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
