"""Writing a shard and reading it, against raw files, tarfile and webdataset.

Ours writes the tar in the keyed order, its sha256, an xxh3 of each sample and the index. The peers
write the same members, and read the file once more for its sha256 where that is said.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import webdataset

from reelmill.shards import tar
from reelmill.shards.reader import ShardReader
from reelmill.store import Store
from reelmill.store.model import Shard, blob_name
from tests.benchmarks.harness import compare, show_costs
from tests.benchmarks.payload import FIELD, KB, MB, Item, items, shuffled, stored, write_shard

TOTAL = 256 * MB
SIZES = {"1 MB members": MB, "50 KB members": 50 * KB}
_PIECE = 1 << 20


def run() -> None:
    for label, size in SIZES.items():
        _writing(label, size)
        _reading(label, size)


def _writing(label: str, size: int) -> None:
    ordered = items(TOTAL, size)
    mixed = shuffled(ordered)
    subjects: dict[str, Callable[[Path], object]] = {
        "ours, keyed order": lambda folder: write_shard(folder, ordered),
        "ours, any order": lambda folder: write_shard(folder, mixed),
        "raw write": lambda folder: _raw(folder, ordered),
        "raw write + sha256": lambda folder: _raw(folder, ordered, hashlib.sha256()),
        "tarfile (USTAR) + sha256": lambda folder: _digest(_tarfile(folder, ordered)),
        "webdataset TarWriter": lambda folder: _webdataset(folder, ordered),
        "webdataset TarWriter + sha256": lambda folder: _digest(_webdataset(folder, ordered)),
    }
    costs = compare(subjects)
    for ours in ("ours, keyed order", "ours, any order"):
        shown = {n: c for n, c in costs.items() if n == ours or not n.startswith("ours")}
        show_costs(f"Writing {label}: {ours}", shown, "GB", TOTAL / 1e9, ours)


def _reading(label: str, size: int) -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        store = Store.open(folder, create=True)
        (shard,) = stored(store, 1, TOTAL, size)
        assert shard.tar is not None
        path = store.backend.locate(blob_name(shard.tar.digest, "tar"))
        subjects: Mapping[str, Callable[[Path], object]] = {
            "ours, by index": lambda _: _total(_ours(store, shard)),
            "raw read": lambda _: _total(_pieces(path)),
            "tarfile": lambda _: _total(_members(path)),
            "webdataset": lambda _: _total(_samples(path)),
        }
        costs = compare(subjects)
    show_costs(f"Reading {label}", costs, "GB", TOTAL / 1e9, "ours, by index")


def _raw(folder: Path, samples: Sequence[Item], digest: hashlib._Hash | None = None) -> None:
    """The bytes of the tar and nothing else: one gathered write of about 1 MB after another."""
    descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT)
    pending: list[bytes] = []
    size = 0
    head = tar.header(f"{samples[0].key}.{FIELD}", len(samples[0].data))
    for item in samples:
        pending += (head, item.data, bytes(tar.padding(len(item.data))))
        size += len(item.data)
        if digest is not None:
            for piece in pending[-3:]:
                digest.update(piece)
        if size >= _PIECE:
            os.writev(descriptor, pending)
            pending, size = [], 0
    if pending:
        os.writev(descriptor, pending)
    os.close(descriptor)


def _tarfile(folder: Path, samples: Sequence[Item]) -> Path:
    path = folder / "shard.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for item in samples:
            member = tarfile.TarInfo(f"{item.key}.{FIELD}")
            member.size = len(item.data)
            archive.addfile(member, io.BytesIO(item.data))
    return path


def _webdataset(folder: Path, samples: Sequence[Item]) -> Path:
    path = folder / "shard.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for item in samples:
            writer.write({"__key__": item.key, FIELD: item.data})
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _total(pieces: Iterator[bytes]) -> int:
    total = sum(map(len, pieces))
    assert total >= TOTAL * 0.99
    return total


def _ours(store: Store, shard: Shard) -> Iterator[bytes]:
    for sample in ShardReader(store, shard).samples():
        yield sample.fields[FIELD]


def _pieces(path: str) -> Iterator[bytes]:
    with Path(path).open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece


def _members(path: str) -> Iterator[bytes]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            yield content.read()


def _samples(path: str) -> Iterator[bytes]:
    for sample in webdataset.WebDataset(path, shardshuffle=False):
        yield sample[FIELD]
