"""Which rows are the first of their kind, for more of them than memory holds."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reelmill.errors import StageError

Array = npt.NDArray[Any]

DIGEST: Final = np.dtype([("hi", "<u8"), ("lo", "<u8")])
"""A blake2b digest of 16 bytes: nobody can make two texts that share one."""

BUCKET_ROWS: Final = 1 << 18
"""Rows in one bucket of what is known of rows: a bucket at a time is in memory."""

_RECORD: Final = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("row", "<u8")])
_COUNT: Final = np.dtype([("row", "<u8"), ("count", "<u8")])
_PAIR: Final = np.dtype([("row", "<u8"), ("first", "<u8")])
_PARTITION_BITS: Final = 8
_BUFFERED: Final = 1 << 18
# Rows of a mention come after all others, and are never a first one.
_MENTION: Final = np.uint64(1 << 62)


def digests(texts: pa.Array) -> Array:
    """The digests of texts, none of them null, as records of `DIGEST`."""
    copy = blake2b(digest_size=DIGEST.itemsize).copy
    made = []
    # As few calls for each text as there can be: this is where an ingest spends its time.
    for text in texts.cast(pa.binary()).to_pylist():
        hasher = copy()
        hasher.update(text)
        made.append(hasher.digest())
    return np.frombuffer(b"".join(made), DIGEST)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Say so where a disk is too full for the temporary files in ``folder``.

    Raises:
        StageError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"{folder.parent}: no space left for the temporary files of an ingest; name another "
            "folder in TMPDIR"
        ) from None


class Bits:
    """A fixed number of bits, all of them off at first."""

    def __init__(self, length: int) -> None:
        self._packed: Array = np.zeros((length + 7) // 8, np.uint8)

    def set(self, places: Array) -> None:
        """Turn the bits at distinct places on."""
        bits = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
        np.bitwise_or.at(self._packed, (places >> np.uint64(3)).astype(np.int64), bits)

    def slice(self, start: int, stop: int) -> Array:
        """The bits from one place up to another, as booleans."""
        first = start // 8
        bits = np.unpackbits(self._packed[first : (stop + 7) // 8], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].astype(bool)

    def any(self, start: int, stop: int) -> bool:
        """Whether a bit from one place up to another is on."""
        return bool(self.slice(start, stop).any())


class Spill:
    """Records of a fixed width in files, one a bucket, each in the order in which they came."""

    def __init__(self, folder: Path, name: str, kind: np.dtype[Any]) -> None:
        self.folder = folder
        self._name = name
        self._kind = kind
        self._pending: list[tuple[Array, Array]] = []
        self._waiting = 0

    def add(self, buckets: Array, records: Array) -> None:
        """Add records to the buckets of the same places."""
        if len(records):
            self._pending.append((buckets, records))
            self._waiting += len(records)
        if self._waiting >= _BUFFERED:
            self._flush()

    def by_row(self, records: Array) -> None:
        """Add records to the buckets of their rows."""
        self.add(records["row"] // np.uint64(BUCKET_ROWS), records)

    def pieces(self, bucket: int) -> Iterator[Array]:
        """The records of a bucket, a bounded number at a time."""
        self._flush()
        path = self._path(bucket)
        if not path.exists():
            return
        with path.open("rb") as file:
            while data := file.read(4 * _BUFFERED * self._kind.itemsize):
                yield np.frombuffer(data, self._kind)

    def read(self, bucket: int) -> Array:
        """All records of a bucket."""
        return np.concatenate([np.empty(0, self._kind), *self.pieces(bucket)])

    def drop(self, bucket: int) -> None:
        """Free the disk space of a bucket that is not needed again."""
        self._path(bucket).unlink(missing_ok=True)

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{self._name}-{bucket}"

    def _flush(self) -> None:
        if not self._pending:
            return
        buckets = np.concatenate([one for one, _ in self._pending])
        records = np.concatenate([one for _, one in self._pending])
        self._pending, self._waiting = [], 0
        order = np.argsort(buckets, kind="stable")
        buckets, records = buckets[order], records[order]
        starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        for start, stop in zip(starts, [*starts[1:], len(buckets)], strict=True):
            with room(self.folder), self._path(int(buckets[start])).open("ab") as file:
                file.write(records[start:stop].tobytes())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes of all digests.

    Attributes:
        rows: kinds of rows that were added.
        new: added rows that are the first of a kind that was not known.
        mentioned: known rows of whose kind a row was added or mentioned.
        counts: how many rows came after a new one of the same kind, by bucket of the new row.
        pairs: those rows, by their own bucket, with the new one; if they were asked for.
    """

    rows: int
    new: Bits
    mentioned: Bits
    counts: Spill
    pairs: Spill


class Distinct:
    """Digests of known rows and of added ones, which `settle` compares.

    They lie on disk, parted by their first bits; one part at a time is sorted in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = Spill(folder, "digests", _RECORD)
        self._known = 0
        self._added = 0
        self._mentions = False

    def know(self, digests: Array) -> None:
        """Add the digests of known rows; all of them before the first that is added."""
        assert not self._added
        self._put(digests, np.arange(self._known, self._known + len(digests), dtype=np.uint64))
        self._known += len(digests)

    def add(self, digests: Array) -> None:
        """Add the digests of rows."""
        first = self._known + self._added
        self._put(digests, np.arange(first, first + len(digests), dtype=np.uint64))
        self._added += len(digests)

    def mention(self, digests: Array) -> None:
        """Say that known rows of these digests are not gone, without adding any."""
        self._mentions = self._mentions or len(digests) > 0
        self._put(digests, np.full(len(digests), _MENTION))

    def settle(self, *, pairs: bool, told: Callable[[], object] = lambda: None) -> Outcome:
        """Compare all digests; ``told`` is called now and then."""
        outcome = Outcome(
            rows=0,
            new=Bits(self._added),
            mentioned=Bits(self._known),
            counts=Spill(self._folder, "counts", _COUNT),
            pairs=Spill(self._folder, "pairs", _PAIR),
        )
        rows = 0
        for partition in range(1 << _PARTITION_BITS):
            records = self._records.read(partition)
            self._records.drop(partition)
            if len(records):
                rows += self._settle(self._sorted(records), outcome, pairs)
            told()
        return Outcome(rows, outcome.new, outcome.mentioned, outcome.counts, outcome.pairs)

    def _put(self, digests: Array, rows: Array) -> None:
        records = np.empty(len(digests), _RECORD)
        records["hi"], records["lo"], records["row"] = digests["hi"], digests["lo"], rows
        self._records.add(digests["hi"] >> np.uint64(64 - _PARTITION_BITS), records)

    def _sorted(self, records: Array) -> Array:
        """Records in the order of their digests, and of one digest in that of their rows."""
        # They came in the order of their rows, so that a stable sort by half of the digest will
        # do, unless two digests share that half or a mention came between.
        ordered = records[np.argsort(records["hi"], kind="stable")]
        same = ordered["hi"][1:] == ordered["hi"][:-1]
        if self._mentions or bool((same & (ordered["lo"][1:] != ordered["lo"][:-1])).any()):
            return records[np.lexsort((records["row"], records["lo"], records["hi"]))]
        return ordered

    def _settle(self, records: Array, outcome: Outcome, pairs: bool) -> int:
        """Work out one partition; the kinds of added rows in it."""
        known = np.uint64(self._known)
        other = (records["hi"][1:] != records["hi"][:-1]) | (
            records["lo"][1:] != records["lo"][:-1]
        )
        starts = np.flatnonzero(np.r_[True, other])
        sizes = np.diff(np.r_[starts, len(records)])
        row = records["row"]
        first, last = row[starts], row[starts + sizes - 1]
        is_known = row < known
        is_added = ~is_known & (row < _MENTION)
        was_there = np.repeat(last >= known, sizes)
        outcome.mentioned.set(row[is_known & was_there])
        is_new = (first >= known) & (first < _MENTION)
        new = first[is_new] - known
        outcome.new.set(new)
        added = np.add.reduceat(is_added, starts, dtype=np.uint64)
        again = (added[is_new] - np.uint64(1)) if len(new) else added[:0]
        counted = np.empty(int((again > 0).sum()), _COUNT)
        counted["row"], counted["count"] = new[again > 0], again[again > 0]
        outcome.counts.by_row(counted)
        if pairs and len(counted):
            later = is_added & np.repeat(is_new, sizes)
            later[starts] = False
            paired = np.empty(int(later.sum()), _PAIR)
            paired["row"] = row[later] - known
            paired["first"] = np.repeat(first, sizes)[later] - known
            outcome.pairs.by_row(paired)
        return int((added > 0).sum())
