"""The shuffle's reading side: which samples an output shard gets, their index and their bytes.

Samples lie in a shard by a keyed hash of their keys, and are dealt by it: an output shard is one
contiguous run of each input shard. So its bytes are read in its own order, tar by tar, and written
as they come: memory holds a buffer of 1 MiB, or of a remote store one window of the output. Nothing
lies on disk but the output.

Locally a read into a buffer that is kept and a write from it cost less than ``copy_file_range``,
which on filesystems that share no extents is the same copy through fresh pages: 0.30 instead of
0.47 CPU-seconds per GB in samples of 1 MB, 0.36 instead of 0.57 in samples of 50 KB.
"""

from __future__ import annotations

import bisect
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

WINDOW = 128 << 20
"""Bytes of an output that are fetched at once from a remote store. Each window costs one request or
more for each input, so a larger one costs fewer, and memory."""

_BUFFER = 1 << 20
_MAX_OPEN = 256
_MAX_VIEWS = 512


# Who goes where


def hashes(keys: Iterable[str], seed: int = 0) -> Hashes:
    """The places of samples in the order in which they are dealt.

    Args:
        seed: 0 is the order in which shards are written, so that every output is one contiguous
            run of each input; any other seed deals differently, by scattered reads.
    """
    order_seed = ORDER_SEED if seed == 0 else order_hash(str(seed))
    return np.fromiter((order_hash(key, order_seed) for key in keys), np.uint64)


def even_bounds(order: Hashes, outputs: int, sizes: Integers | None = None) -> Hashes:
    """Where each output but the first begins, in the order in which samples are dealt.

    Outputs get equal counts of samples, give or take one. With ``sizes``, which are each sample's
    bytes, they get equal bytes as far as samples allow: each begins with the sample that begins
    nearest to where it should, except that none is without a sample.
    """
    count = len(order)
    if not count:
        return np.array([(output << 64) // outputs for output in range(1, outputs)], np.uint64)
    if sizes is None or count < outputs:
        ranked = np.sort(order)
        return ranked[np.array([count * o // outputs for o in range(1, outputs)], np.int64)]
    by_place = np.argsort(order, kind="stable")
    return order[by_place][_even_cuts(sizes[by_place], outputs)]


def _even_cuts(sizes: Integers, outputs: int) -> Integers:
    """The number of the first sample of each output but the first, of samples in order."""
    ends = np.cumsum(sizes)
    total, count = int(ends[-1]), len(sizes)
    cuts: list[int] = []
    for output in range(1, outputs):
        target = total * output // outputs
        after = int(np.searchsorted(ends, target))
        before = int(ends[after - 1]) if after else 0
        nearest = after + (target - before > int(ends[after]) - target)
        first = cuts[-1] + 1 if cuts else 1
        cuts.append(min(max(nearest, first), count - outputs + output))
    return np.array(cuts, np.int64)


def dealt(order: Hashes, bounds: Hashes) -> Integers:
    """The output of each sample."""
    return np.searchsorted(bounds, order, side="right")


# The index


def sample_rows(data: bytes) -> pa.Table:
    """The rows of an index that are samples."""
    table = index.decode(data)
    return table.filter(pc.equal(table["status"], index.OK))


@dataclass(frozen=True, slots=True)
class Extents:
    """Where samples lie, in the order in which they are wanted: ``tars`` are places in a list of
    input shards, ``offsets`` and ``sizes`` bytes of their spans there."""

    tars: Integers
    offsets: Integers
    sizes: Integers

    @classmethod
    def of(cls, rows: pa.Table, tars: Integers) -> Extents:
        """The extents of the samples of an index.

        Raises:
            ShardError: a sample has no place.
        """
        if rows["offset"].null_count or rows["size"].null_count:
            raise ShardError("an index has a sample without a place in the tar")
        return cls(tars, rows["offset"].to_numpy(), rows["size"].to_numpy())


def laid(rows: pa.Table) -> pa.Table:
    """The index of samples as they lie in one tar, one after the other.

    Args:
        rows: an index of samples, each with its place in a tar of its own.
    """
    sizes = rows["size"].to_numpy()
    offsets = np.cumsum(sizes) - sizes
    shifts = offsets - rows["offset"].to_numpy()
    cells = rows["fields"].combine_chunks()
    members = cells.flatten()
    counts = cells.value_lengths().to_numpy()
    moved = members.field("offset").to_numpy() + np.repeat(shifts, counts)
    kind = index.BASE.field("fields").type
    structs = pa.StructArray.from_arrays(
        [members.field("name"), pa.array(moved), members.field("size")], fields=kind.value_type
    )
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    fields = pa.ListArray.from_arrays(pa.array(starts), structs, type=kind)
    for name, array in (("offset", pa.array(offsets)), ("fields", fields)):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), array)
    return rows


# The bytes


class Gatherer:
    """Samples of many tars; a context manager that closes them."""

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

    def stream(self, tars: Sequence[str], extents: Extents) -> Iterator[list[memoryview]]:
        """The bytes of extents, one after the other, in pieces that stand until the next is asked.

        Args:
            tars: the blob names that the extents' ``tars`` are places of.
        """
        if self._store.backend.is_local:
            return self._read(tars, extents)
        return self._fetch(tars, extents)

    def spans(self, wanted: Sequence[tuple[Shard, dict[str, object]]]) -> Iterator[Span]:
        """The span of each (shard, index row), in the order asked, of open files: locally of the
        blobs themselves, otherwise of one scratch file as large as all spans together."""
        if self._store.backend.is_local:
            for shard, row in wanted:
                yield _span(self._descriptor(_tar_name(shard)), row, 0)
        else:
            yield from self._fetched_spans(wanted)

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = os.open(self._store.backend.locate(name), os.O_RDONLY)
        return self._open[name]

    def _read(self, tars: Sequence[str], extents: Extents) -> Iterator[list[memoryview]]:
        buffer = memoryview(bytearray(_BUFFER))
        filled = 0
        for tar, start, size in _joined(extents):
            at, stop = start, start + size
            while at < stop:
                room = buffer[filled : filled + stop - at]
                # Looked up anew each time: whoever asks for the next piece may have closed it.
                count = os.preadv(self._descriptor(tars[tar]), [room], at)
                if not count:
                    raise ShardError(
                        f"{self._store.backend.locate(tars[tar])} is shorter than its index says; "
                        "run 'reelmill verify'"
                    )
                at += count
                filled += count
                if filled == _BUFFER:
                    yield [buffer]
                    filled = 0
        if filled:
            yield [buffer[:filled]]

    def _fetch(self, tars: Sequence[str], extents: Extents) -> Iterator[list[memoryview]]:
        for window in _windows(_joined(extents), WINDOW):
            yield from self._fetch_window(tars, window)

    def _fetch_window(
        self, tars: Sequence[str], window: Sequence[_Extent]
    ) -> Iterator[list[memoryview]]:
        by_tar: dict[int, list[tuple[int, int]]] = {}
        for tar, start, size in window:
            by_tar.setdefault(tar, []).append((start, start + size))
        runs = [(tar, *run) for tar, wanted in by_tar.items() for run in coalesce(wanted, MAX_GAP)]
        ranges = [Range(tars[tar], start, stop) for tar, start, stop in runs]
        blocks = self._store.backend.read_ranges(ranges)
        fetched: dict[int, tuple[list[int], list[memoryview]]] = {}
        for (tar, start, _), block in zip(runs, blocks, strict=True):
            starts, of_tar = fetched.setdefault(tar, ([], []))
            starts.append(start)
            of_tar.append(memoryview(block))
        return _views(window, fetched)

    def _fetched_spans(self, wanted: Sequence[tuple[Shard, dict[str, object]]]) -> Iterator[Span]:
        places: dict[str, int] = {}
        tars = [places.setdefault(_tar_name(shard), len(places)) for shard, _ in wanted]
        offsets = [_integer(row["offset"]) for _, row in wanted]
        sizes = [_integer(row["size"]) for _, row in wanted]
        extents = Extents(*(np.array(column, np.int64) for column in (tars, offsets, sizes)))
        path = scratch_name(self._scratch)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._open[str(path)] = descriptor
        path.unlink()
        at = 0
        for views in self._fetch(list(places), extents):
            for view in views:
                write_all(descriptor, view, at)
                at += len(view)
        at = 0
        for _, row in wanted:
            yield _span(descriptor, row, at - _integer(row["offset"]))
            at += _integer(row["size"])


_Extent = tuple[int, int, int]


def _joined(extents: Extents) -> Iterator[_Extent]:
    """The (tar, offset, size) of extents, as one where one follows the other in its tar."""
    columns = (extents.tars.tolist(), extents.offsets.tolist(), extents.sizes.tolist())
    last, start, stop = -1, 0, 0
    for tar, offset, size in zip(*columns, strict=True):
        if tar == last and offset == stop:
            stop += size
            continue
        if stop > start:
            yield last, start, stop - start
        last, start, stop = tar, offset, offset + size
    if stop > start:
        yield last, start, stop - start


def _windows(extents: Iterable[_Extent], most: int) -> Iterator[list[_Extent]]:
    """Extents in portions of at most ``most`` bytes; one that is larger is cut."""
    window: list[_Extent] = []
    room = most
    for tar, offset, size in extents:
        while size:
            taken = min(size, room)
            window.append((tar, offset, taken))
            offset, size, room = offset + taken, size - taken, room - taken
            if not room:
                yield window
                window, room = [], most
    if window:
        yield window


def _views(
    window: Sequence[_Extent], fetched: Mapping[int, tuple[list[int], list[memoryview]]]
) -> Iterator[list[memoryview]]:
    """The bytes of each extent, out of the blocks of each tar: where each starts, and it."""
    views: list[memoryview] = []
    held = 0
    for tar, start, size in window:
        starts, blocks = fetched[tar]
        place = bisect.bisect_right(starts, start) - 1
        at = start - starts[place]
        views.append(blocks[place][at : at + size])
        held += size
        if held >= _BUFFER or len(views) == _MAX_VIEWS:
            yield views
            # Emptied, not replaced: whoever still has the list would hold the blocks of a window
            # in memory while the next one is fetched.
            views.clear()
            held = 0
    yield views
    views.clear()


def _span(descriptor: int, row: dict[str, object], shift: int) -> Span:
    members = index.members(row["fields"])  # type: ignore[arg-type]
    return Span(
        descriptor=descriptor,
        offset=_integer(row["offset"]) + shift,
        size=_integer(row["size"]),
        fields=tuple(index.Member(m.name, m.offset + shift, m.size) for m in members),
        xxh3=_integer(row["xxh3"]),
    )


def write_all(descriptor: int, data: memoryview, at: int) -> None:
    """Write at a place of a file, as often as the disk takes less than asked."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _tar_name(shard: Shard) -> str:
    assert shard.tar is not None
    return blob_name(shard.tar.digest, "tar")


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise ShardError("an index has a sample without a place in the tar")
    return value
