"""A folder in which shards of other machines are kept whole, for any number of processes at once.

A kept shard is a file named by what it is of: by the digest of a blob's content, or of the whole
address together with the size and the tag that the server tells. Two shards never share a name, and
one that changes where it comes from gets another. A shard is written under another name, and
appears when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

from reelmill.digest import sha256
from reelmill.errors import NotFoundError, ShardError, StoreError
from reelmill.loading.samples import shown

if TYPE_CHECKING:
    from reelmill.store.backend import Backend, Range

_PIECE: Final = 4 << 20
_TMP: Final = "tmp"


class Opened(NamedTuple):
    """A file that is about to be read, and what is known of it: its size in bytes, and a tag that
    changes with its content, such as an ETag."""

    file: BinaryIO
    size: int | None = None
    tag: str | None = None


class ShardCache:
    """Shards that were read before, in a folder.

    Args:
        folder: on a disk of this machine; made if it is not there.
        max_bytes: how many bytes it may hold, those included that are on their way; whatever was
            not read for longest goes first. A shard that does not fit is read without being kept.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.max_bytes = max_bytes
        with self._failing():
            (self.folder / _TMP).mkdir(parents=True, exist_ok=True)

    @classmethod
    def at(cls, place: ShardCache | str | Path | None) -> ShardCache | None:
        """A cache, from what people call one."""
        return cls(place) if isinstance(place, str | Path) else place

    def keep(self, url: str, opened: Opened) -> BinaryIO:
        """The shard of an address, from here if it is kept, and else kept from now on.

        Args:
            opened: the shard where it comes from, not read yet; it is closed if it is not needed.
                One of which nothing is known is not kept: it may be another one tomorrow.

        Raises:
            ShardError: other bytes came than were announced.
        """
        if opened.size is None and opened.tag is None:
            return opened.file
        name = sha256(f"{url}\n{opened.size}\n{opened.tag}".encode())

        def fill(file: BinaryIO) -> None:
            with opened.file as source:
                size = _copied(iter(lambda: source.read(_PIECE), b""), file)
            if opened.size is not None and size != opened.size:
                raise ShardError(f"{shown(url)} has {opened.size} bytes, and {size} came")

        kept = self._kept(name, opened.size, fill)
        if kept is None:
            return opened.file
        opened.file.close()
        return kept

    def blob(self, backend: Backend, name: str, digest: str) -> BinaryIO | None:
        """The tar of a shard of a store, its content checked against its digest before it is kept;
        None if it does not fit.

        Raises:
            ShardError: it is not what its digest says.
            NotFoundError: the store holds it no more.
        """
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            return _opened(path)
        size = backend.size(name)
        if size is None:
            raise _gone(backend, name)

        def fill(file: BinaryIO) -> None:
            found = hashlib.sha256()
            try:
                _copied(backend.stream(name), file, found.update)
            except FileNotFoundError:
                raise _gone(backend, name) from None
            if found.hexdigest() != digest:
                raise ShardError(
                    f"{backend.locate(name)} is not what its name says; run 'reelmill verify'"
                )

        return self._kept(digest, size, fill)

    def drop(self, digest: str) -> None:
        """Forget the tar of a shard of a store."""
        self._path(digest).unlink(missing_ok=True)

    def _kept(
        self, name: str, size: int | None, fill: Callable[[BinaryIO], None]
    ) -> BinaryIO | None:
        path = self._path(name)
        while True:
            with contextlib.suppress(FileNotFoundError):
                kept = _opened(path)
                if size is None or os.fstat(kept.fileno()).st_size == size:
                    return kept
                # Somebody, or the disk, has cut it short.
                kept.close()
                path.unlink(missing_ok=True)
            with self._failing(), self._claimed(name) as (file, temporary):
                # Who waited for another finds what that one made.
                if path.exists():
                    temporary.unlink()
                    continue
                try:
                    # Its room is taken before its bytes come, and everybody sees that it is.
                    os.truncate(file.fileno(), size or 0)
                    if not self._make_room():
                        temporary.unlink()
                        return None
                    fill(file)
                    file.flush()
                    if size is None and not self._make_room():
                        temporary.unlink()
                        return _reopened(file)
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                    path.parent.mkdir(exist_ok=True)
                except BaseException:
                    temporary.unlink()
                    raise
                # From here on the temporary name is free to others.
                temporary.replace(path)
                return _reopened(file)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.tar"

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A temporary file that nobody else has, once whoever has it is done. What a process that
        died has left is free again."""
        temporary = self.folder / _TMP / name
        while True:
            with open(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600), "w+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(file, temporary):
                    yield file, temporary
                    return

    def _make_room(self) -> bool:
        """Remove what was not read for longest until all fits, and before that what processes that
        died have left; whether it does."""
        if self.max_bytes is None:
            return True
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = list(_files(self.folder))
            over = sum(status.st_size for _, status in held) - self.max_bytes
            for path, status in held:
                if over > 0 and path.parent.name == _TMP and _is_left(path):
                    over -= status.st_size
            kept = [(path, status) for path, status in held if path.parent.name != _TMP]
            for path, status in sorted(kept, key=lambda one: one[1].st_mtime_ns):
                if over <= 0:
                    break
                path.unlink(missing_ok=True)
                over -= status.st_size
            return over <= 0

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error.strerror}") from error


class CachedBlobs:
    """A store's backend of which tars are read from a cache, where they fit."""

    is_local = True

    def __init__(self, backend: Backend, cache: ShardCache) -> None:
        self._backend = backend
        self._cache = cache

    def locate(self, name: str) -> str:
        return self._backend.locate(name)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """As ``Backend.read_ranges``, of blobs."""
        out: dict[int, bytes] = {}
        by_name: dict[str, list[int]] = {}
        for number, wanted in enumerate(ranges):
            by_name.setdefault(wanted.name, []).append(number)
        for name, numbers in by_name.items():
            wanted_here = [ranges[number] for number in numbers]
            out.update(zip(numbers, self._read(name, wanted_here), strict=True))
        return [out[number] for number in range(len(ranges))]

    def _read(self, name: str, ranges: list[Range]) -> list[bytes]:
        digest = name.rpartition("/")[2].partition(".")[0]
        file = self._cache.blob(self._backend, name, digest)
        if file is None:
            return self._backend.read_ranges(ranges)
        with file:
            read = [os.pread(file.fileno(), r.stop - r.start, r.start) for r in ranges]
        if any(len(data) < r.stop - r.start for data, r in zip(read, ranges, strict=True)):
            # Somebody, or the disk, has cut it short; else the store says what is wrong.
            self._cache.drop(digest)
            return self._backend.read_ranges(ranges)
        return read


def _gone(backend: Backend, name: str) -> NotFoundError:
    return NotFoundError(f"{backend.locate(name)} is gone; build again to make it anew")


def _opened(path: Path) -> BinaryIO:
    # Not every filesystem keeps the times of reads. Another user's file stays as it is.
    with contextlib.suppress(PermissionError):
        os.utime(path)
    return cast(BinaryIO, open(path, "rb", buffering=0))


def _reopened(file: BinaryIO) -> BinaryIO:
    """The same file from its beginning, whatever becomes of its name."""
    file.seek(0)
    return cast(BinaryIO, open(os.dup(file.fileno()), "rb", buffering=0))


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_left(temporary: Path) -> bool:
    """Remove a temporary file, if whoever made it is dead; whether that is so."""
    with contextlib.suppress(OSError), open(temporary, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who waits for it sees that it is there no more, and makes another.
        temporary.unlink(missing_ok=True)
        return True
    return False


def _copied(
    pieces: Iterator[bytes], file: BinaryIO, see: Callable[[bytes], object] = lambda piece: None
) -> int:
    size = 0
    for piece in pieces:
        file.write(piece)
        see(piece)
        size += len(piece)
    return size


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()
