"""The shuffle's reading side: which run of each input shard an output shard is, and its bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reelmill.digest import ORDER_SEED, order_hash
from reelmill.errors import ShardError
from reelmill.shards import index
from reelmill.shards.reader import MAX_GAP, coalesce
from reelmill.shards.writer import Span
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.local import scratch_name
from reelmill.store.model import Shard, blob_name

_MAX_OPEN = 256
_MAX_FETCH = 64 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every sample of a generation goes.

    ``hashes`` holds an array of uint64 for each input shard, in the order of its index;
    ``bounds`` (uint64, one per output but the first) are where the next output shard begins.
    """

    hashes: tuple[npt.NDArray[np.uint64], ...]
    bounds: npt.NDArray[np.uint64]

    def rows(self, source: int, output: int) -> npt.NDArray[np.int64]:
        """The index rows of input shard ``source`` that belong to output shard ``output``."""
        hashes = self.hashes[source]
        inside = np.ones(len(hashes), dtype=bool)
        if output > 0:
            inside &= hashes >= self.bounds[output - 1]
        if output < len(self.bounds):
            inside &= hashes < self.bounds[output]
        return np.flatnonzero(inside)


def layout(keys: Sequence[Sequence[str]], outputs: int, seed: int = 0) -> Layout:
    """Deal the samples of a generation to ``outputs`` shards of equal counts, give or take one.

    Args:
        keys: the sample keys of each input shard.
        seed: 0 follows the order in which shards are written, so that every output is one
            contiguous run of each input; any other seed deals differently, by scattered reads.
    """
    order_seed = ORDER_SEED if seed == 0 else order_hash(str(seed))
    hashes = tuple(
        np.fromiter((order_hash(key, order_seed) for key in shard), np.uint64, len(shard))
        for shard in keys
    )
    ranked = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
    firsts = [len(ranked) * output // outputs for output in range(1, outputs)]
    return Layout(hashes, ranked[np.array(firsts, np.int64)])


def sample_rows(data: bytes) -> pa.Table:
    """The rows of an index that are samples."""
    table = index.decode(data)
    return table.filter(pc.equal(table["status"], index.OK))


class Gatherer:
    """Samples of many tars as spans of open files; a context manager that closes them.

    Locally the spans are of the blobs themselves. Remotely the asked ranges are fetched in few
    coalesced requests into one scratch file, no larger than the output shard.
    """

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> Gatherer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def spans(self, wanted: Sequence[tuple[Shard, dict[str, object]]]) -> Iterator[Span]:
        """The span of each (shard, index row), in the order asked."""
        if self._store.backend.is_local:
            for shard, row in wanted:
                name = _tar_name(shard)
                yield _span(self._descriptor(name), row, 0)
        else:
            yield from self._fetched(wanted)

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = os.open(self._store.backend.locate(name), os.O_RDONLY)
        return self._open[name]

    def _fetched(self, wanted: Sequence[tuple[Shard, dict[str, object]]]) -> Iterator[Span]:
        by_name: dict[str, list[tuple[int, int]]] = {}
        for shard, row in wanted:
            start = _integer(row["offset"])
            by_name.setdefault(_tar_name(shard), []).append((start, start + _integer(row["size"])))
        runs = [
            Range(name, start, stop)
            for name, ranges in by_name.items()
            for start, stop in coalesce(ranges, MAX_GAP)
        ]
        path = scratch_name(self._scratch)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._open[str(path)] = descriptor
        path.unlink()
        shifts: dict[str, list[tuple[Range, int]]] = {}
        at = 0
        for batch in _portions(runs):
            for run, data in zip(batch, self._store.backend.read_ranges(batch), strict=True):
                _write_all(descriptor, data, at)
                shifts.setdefault(run.name, []).append((run, at - run.start))
                at += len(data)
        for shard, row in wanted:
            offset = _integer(row["offset"])
            shift = next(s for r, s in shifts[_tar_name(shard)] if r.start <= offset < r.stop)
            yield _span(descriptor, row, shift)


def _span(descriptor: int, row: dict[str, object], shift: int) -> Span:
    members = index.members(row["fields"])  # type: ignore[arg-type]
    return Span(
        descriptor=descriptor,
        offset=_integer(row["offset"]) + shift,
        size=_integer(row["size"]),
        fields=tuple(index.Member(m.name, m.offset + shift, m.size) for m in members),
        xxh3=_integer(row["xxh3"]),
    )


def _portions(runs: Sequence[Range]) -> Iterator[list[Range]]:
    batch: list[Range] = []
    size = 0
    for run in runs:
        # A run may be as large as its shard: it is fetched in pieces, and laid piece by piece.
        for start in range(run.start, run.stop, _MAX_FETCH):
            piece = Range(run.name, start, min(start + _MAX_FETCH, run.stop))
            batch.append(piece)
            size += piece.stop - piece.start
            if size >= _MAX_FETCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], at + done)


def _tar_name(shard: Shard) -> str:
    assert shard.tar is not None
    return blob_name(shard.tar.digest, "tar")


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise ShardError("an index has a sample without a place in the tar")
    return value
