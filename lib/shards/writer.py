"""Writing a shard: samples in any order go in, one tar in the keyed order comes out."""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from reelmill.digest import order_hash
from reelmill.errors import ShardError
from reelmill.shards import index, tar
from reelmill.shards.index import Member, Row
from reelmill.store import Store
from reelmill.store.local import scratch_name
from reelmill.store.model import Blob, Result

Data = bytes | memoryview | Path

SampleOrder = Literal["hash", "key"]
"""How samples lie in a shard: by a keyed hash of their keys, or by the keys themselves."""

_BATCH = 1 << 20
_PIECE = 4 << 20
_MAX_IOV = 512
_NOT_ALONE = "a shard that is made whole, of other shards, has other samples besides"


@dataclass(frozen=True, slots=True)
class Span:
    """A sample as it lies in another tar, to be copied verbatim: bytes of an open file."""

    descriptor: int
    offset: int
    size: int
    fields: tuple[Member, ...]
    xxh3: int


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard in scratch: ``tar`` and its path are absent where there are no samples, and
    the path alone where the tar is one that the store holds already."""

    path: Path | None
    tar: Blob | None
    index: bytes
    samples: int
    rejects: int
    fields: tuple[str, ...]
    reasons: dict[str, int]


def put_shard(store: Store, written: Written, origins: bytes | None = None) -> Result:
    """Put a finished shard's blobs into a store, in the order of its protocol.

    Args:
        origins: the shard's provenance blob (see ``reelmill.shards.provenance``).

    Raises:
        NotFoundError: the shard takes over a tar, and the store does not hold that.
    """
    if written.path is not None:
        assert written.tar is not None
        store.put_blob_file(written.path, written.tar, "tar")
    elif written.tar is not None:
        store.hold_blob(written.tar, "tar")
    return Result(
        tar=written.tar,
        index=store.put_blob(written.index, "parquet"),
        provenance=store.put_blob(origins, "parquet") if origins else None,
        samples=written.samples,
        rejects=written.rejects,
        fields=written.fields,
        reasons=written.reasons,
    )


class ShardWriter:
    """Collects the samples and rejects of one shard.

    Samples are written as they come and hashed behind the writer's back. If they came in their
    order the file is the tar; if not, one more pass lays them in order. Either way the bytes
    depend on the set of samples only. Memory does not grow with the shard.
    """

    def __init__(self, scratch: Path, columns: pa.Schema, order: SampleOrder = "hash") -> None:
        self._by_hash = order == "hash"
        self._columns = columns
        self._scratch = scratch
        self._path = scratch_name(scratch)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._hasher: _Follower | None = _Follower(self._file)
        self._pending: list[bytes | memoryview] = []
        self._pending_size = 0
        self._size = 0
        self._rows: dict[str, tuple[int, Row]] = {}
        self._rejects: list[Row] = []
        self._adopted: Blob | None = None
        self._whole: pa.Table | None = None
        self._last = (-1, "")

    @property
    def samples(self) -> int:
        return len(self._rows) if self._whole is None else _count(self._whole, index.OK)

    @property
    def rejects(self) -> int:
        whole = 0 if self._whole is None else _count(self._whole, index.REJECTED)
        return len(self._rejects) + whole

    def add(self, key: str, fields: Mapping[str, Data], columns: Mapping[str, Any]) -> None:
        """Add a sample; its fields are written sorted by name. A path is read, not removed.

        Raises:
            ShardError: the key is taken or unfit, a field is unfit, or there is no field.
        """
        # All that can be refused is refused before the first byte is written.
        self._refuse_taken(key)
        names = sorted(fields)
        if len({name.lower() for name in names}) < max(len(names), 1):
            what = "fields that differ only in case" if names else "no fields"
            raise ShardError(f"sample {key!r} has {what}")
        contents = [d if isinstance(d := fields[name], Path) else bytes(d) for name in names]
        sizes = [d.stat().st_size if isinstance(d, Path) else len(d) for d in contents]
        heads = [
            tar.header(tar.member_name(key, name), size)
            for name, size in zip(names, sizes, strict=True)
        ]
        start = self._size
        members = []
        checksum = xxhash.xxh3_64()
        for name, data, size, head in zip(names, contents, sizes, heads, strict=True):
            members.append(Member(name, self._size + tar.BLOCK, size))
            self._write(head, checksum)
            if isinstance(data, Path):
                self._copy_in(data, size, checksum)
            else:
                self._write(data, checksum)
            self._write(bytes(tar.padding(size)), checksum)
        self._enter(key, start, members, checksum.intdigest(), columns)

    def add_span(self, key: str, span: Span, columns: Mapping[str, Any]) -> None:
        """Add a sample by copying its bytes from another tar without looking at them."""
        self._refuse_taken(key)
        self._flush()
        start = self._size
        _copy_range(span.descriptor, span.offset, self._file, start, span.size)
        self._size += span.size
        self._follow()
        shift = start - span.offset
        members = [Member(m.name, m.offset + shift, m.size) for m in span.fields]
        self._enter(key, start, members, span.xxh3, columns)

    def adopt(self, blob: Blob, rows: Iterable[Row]) -> None:
        """Let a tar that the store holds be this shard's, without a look at it.

        Args:
            rows: one for each of its samples, with the places that its own index gives.

        Raises:
            ShardError: there are other samples, before or after.
        """
        if self._rows or self._adopted or self._whole is not None:
            raise ShardError(_NOT_ALONE)
        for row in rows:
            self._take(row.key, row)
        self._adopted = blob

    def lay(self, rows: pa.Table, data: Iterable[Sequence[memoryview]]) -> None:
        """Let samples that come in their order, all at once, be the shard.

        Args:
            rows: the index of the shard: its samples as they will lie, then rejects by key.
            data: the samples' bytes, in pieces that stand until the next is asked for.

        Raises:
            ShardError: there are other samples or rejects, before or after; or the samples come in
                another order, or with more or fewer bytes than the index says.
        """
        if self._rows or self._rejects or self._adopted or self._whole is not None:
            raise ShardError(_NOT_ALONE)
        samples = rows.filter(pc.equal(rows["status"], index.OK))
        self._refuse_disorder(samples["key"].to_pylist())
        assert self._hasher is not None
        self._whole = rows
        for views in data:
            for view in views:
                # Here and now, while they are at hand: to read them again costs a fifth of a copy.
                self._hasher.feed(view)
                self._append(view)
            self._flush()
        if self._size != (pc.sum(samples["size"]).as_py() or 0):
            raise ShardError("the samples of a shard have other sizes than its index says")

    def reject(self, key: str, reason: str, message: str, columns: Mapping[str, Any]) -> None:
        """Record that a sample was left out, and why."""
        if self._whole is not None:
            raise ShardError(_NOT_ALONE)
        self._rejects.append(Row(key, index.REJECTED, reason, message, columns=columns))

    def row(self, key: str, columns: Mapping[str, Any]) -> None:
        """Add a row that has no members: an address of a table."""
        self._take(key, Row(key, columns=columns))

    def close(self) -> Written:
        """Finish: the tar in scratch, its digest, and the index bytes."""
        self._flush()
        order = sorted(self._rows.values(), key=lambda entry: (entry[0], entry[1].key))
        rows = [row for _, row in order]
        blob = self._adopted
        if self._size:
            if self._hasher is None:
                self._lay_in_order(rows)
            self._append(tar.trailer(self._size))
            self._flush()
            assert self._hasher is not None
            blob = Blob(digest=self._hasher.finish(self._size), size=self._size)
        else:
            assert self._hasher is not None
            self._hasher.finish(0)
        os.close(self._file)
        self._file = -1
        if not self._size:
            self._path.unlink()
        path = self._path if self._size else None
        if self._whole is not None:
            return _written(path, blob, self._whole, self._columns)
        rejects = sorted(self._rejects, key=lambda row: (row.key, row.reason, row.message))
        reasons: dict[str, int] = {}
        for row in rejects:
            reasons[str(row.reason)] = reasons.get(str(row.reason), 0) + 1
        return Written(
            path=path,
            tar=blob,
            index=index.encode([*rows, *rejects], self._columns),
            samples=len(rows),
            rejects=len(rejects),
            fields=tuple(sorted({m.name for row in rows for m in row.fields})),
            reasons=dict(sorted(reasons.items())),
        )

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._hasher is not None:
            self._hasher.stop()
            self._hasher = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._path.unlink(missing_ok=True)

    def _enter(
        self,
        key: str,
        start: int,
        members: list[Member],
        checksum: int,
        columns: Mapping[str, Any],
    ) -> None:
        row = Row(
            key,
            offset=start,
            size=self._size - start,
            xxh3=checksum,
            fields=members,
            columns=columns,
        )
        place = self._take(key, row)
        if (place, key) < self._last and self._hasher is not None:
            self._hasher.stop()
            self._hasher = None
        self._last = (place, key)

    def _refuse_disorder(self, keys: Sequence[str]) -> None:
        places = [(order_hash(key) if self._by_hash else 0, key) for key in keys]
        for one, two in itertools.pairwise(places):
            if one >= two:
                what = "two samples have the key" if one == two else "out of its order comes"
                raise ShardError(f"{what} {two[1]!r}")

    def _refuse_taken(self, key: str) -> None:
        if self._adopted or self._whole is not None:
            raise ShardError(_NOT_ALONE)
        if key in self._rows:
            raise ShardError(f"two samples of the shard have the key {key!r}")

    def _take(self, key: str, row: Row) -> int:
        self._refuse_taken(key)
        place = order_hash(key) if self._by_hash else 0
        self._rows[key] = (place, row)
        return place

    def _write(self, data: bytes, checksum: xxhash.xxh3_64) -> None:
        checksum.update(data)
        self._append(data)

    def _append(self, data: bytes | memoryview) -> None:
        if not len(data):
            return
        self._pending.append(data)
        self._pending_size += len(data)
        self._size += len(data)
        if self._pending_size >= _BATCH or len(self._pending) >= _MAX_IOV:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        at = self._size - self._pending_size
        done = os.pwritev(self._file, self._pending, at)
        if done != self._pending_size:
            rest = memoryview(b"".join(self._pending))[done:]
            while rest:
                done += (wrote := os.pwrite(self._file, rest, at + done))
                rest = rest[wrote:]
        self._pending = []
        self._pending_size = 0
        self._follow()

    def _follow(self) -> None:
        if self._hasher is not None:
            self._hasher.reach(self._size)

    def _copy_in(self, path: Path, size: int, checksum: xxhash.xxh3_64) -> None:
        copied = 0
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                self._write(piece, checksum)
                copied += len(piece)
        if copied != size:
            raise ShardError(f"{path.name} changed while it was read")

    def _lay_in_order(self, rows: Iterable[Row]) -> None:
        """Copy the samples into a second file, in order, and go on with that one."""
        path = scratch_name(self._scratch)
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._hasher = _Follower(target)
        try:
            at = 0
            for row in rows:
                assert row.offset is not None
                assert row.size is not None
                _copy_range(self._file, row.offset, target, at, row.size)
                shift = at - row.offset
                row.offset = at
                row.fields = [Member(m.name, m.offset + shift, m.size) for m in row.fields]
                at += row.size
                self._hasher.reach(at)
        except BaseException:
            self._hasher.stop()
            os.close(target)
            path.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._path.unlink()
        self._file, self._path = target, path


class _Follower:
    """Hashes a growing file from a thread of its own, out of the page cache."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._buffer: memoryview | None = None
        self._reached: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stopping = False
        self._announced = 0
        self._fed = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def reach(self, size: int) -> None:
        """The file is final up to ``size`` bytes."""
        # A wake-up per MiB is enough; a small shard never starts the thread at all.
        if size - self._announced >= _BATCH:
            self._announced = size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
                self._thread.start()
            self._reached.put(size)

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the file from the one who writes them: all bytes before them must
        have come this way."""
        self._hash.update(data)
        self._fed += len(data)
        self._announced = self._fed

    def finish(self, size: int) -> str:
        """The sha256 of the file, which is final at ``size`` bytes."""
        if self._thread is None:
            self._advance(self._fed, size)
        else:
            self._reached.put(size)
            self._reached.put(None)
            self._thread.join()
        if self._error:
            raise self._error
        return self._hash.hexdigest()

    def stop(self) -> None:
        """Give up: the order turned out not to be final."""
        self._stopping = True
        if self._thread is not None:
            self._reached.put(None)
            self._thread.join()

    def _run(self) -> None:
        at = self._fed
        try:
            while (size := self._reached.get()) is not None:
                at = self._advance(at, size)
        except BaseException as error:  # raised by finish(): half a hash must not look like one
            self._error = error

    def _advance(self, at: int, size: int) -> int:
        if self._buffer is None:
            # One for all pieces: fresh memory for each would cost as much as reading it.
            self._buffer = memoryview(bytearray(min(_BATCH, size)))
        while at < size and not self._stopping:
            count = os.preadv(self._descriptor, [self._buffer[: size - at]], at)
            if not count:
                raise ShardError("a file in scratch became shorter while it was written")
            self._hash.update(self._buffer[:count])
            at += count
        return at


def _written(path: Path | None, blob: Blob | None, rows: pa.Table, columns: pa.Schema) -> Written:
    """A shard of which the index is a table already."""
    of_fields = rows["fields"].combine_chunks().flatten().field("name").unique().to_pylist()
    counts = rows["reason"].drop_null().value_counts().to_pylist()
    return Written(
        path=path,
        tar=blob,
        index=index.encode_rows(rows, columns),
        samples=_count(rows, index.OK),
        rejects=_count(rows, index.REJECTED),
        fields=tuple(sorted(of_fields)),
        reasons={one["values"]: one["counts"] for one in sorted(counts, key=_by_reason)},
    )


def _by_reason(count: Mapping[str, Any]) -> str:
    return str(count["values"])


def _count(rows: pa.Table, status: str) -> int:
    return pc.sum(pc.equal(rows["status"], status)).as_py() or 0


def _copy_range(source: int, start: int, target: int, at: int, size: int) -> None:
    """Copy ``size`` bytes between files, inside the kernel where it can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, size - done, start + done, at + done)
        except (OSError, AttributeError):
            count = 0
        if count == 0:
            # Other filesystems, old kernels, macOS: through memory. A short source ends here too.
            piece = os.pread(source, min(_PIECE, size - done), start + done)
            if not piece:
                raise ShardError("a shard is shorter than its index says; run 'reelmill verify'")
            count = os.pwrite(target, piece, at + done)
        done += count
