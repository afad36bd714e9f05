"""Where sequences lie: a folder or an archive, on a disk or in a store, and its members' bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

import fsspec

from reelmill.errors import Rejected, StageError, told
from reelmill.sequences import zips
from reelmill.sequences.members import Member, counted, extension, safe_name
from reelmill.shards.foreign import read_entries, truncated
from reelmill.shards.reader import MAX_GAP, coalesce

ARCHIVES: Final = frozenset({"zip", "tar"})
"""Extensions of archives."""

_BLOCK: Final = 1 << 20
# There is no request to save on a disk: more at once only costs fresh memory.
_LOCAL_BATCH: Final = 1 << 20
_STORED_BATCH: Final = 16 << 20
_MAX_DEPTH: Final = 64

Part = tuple[int, int] | None
"""The bytes of an archive in which members are told of; all of them, if None."""


class Place(Protocol):
    """A folder or an archive that is open. ``batch`` is how many bytes are best read at once."""

    @property
    def batch(self) -> int: ...

    def members(self, part: Part = None) -> Iterator[Member]:
        """Its regular files, in its order; of a folder, sorted.

        Raises:
            Rejected: it cannot be read, or not to its end; after the last member before that.
        """

    def read(self, members: Sequence[Member]) -> list[bytes | Rejected]:
        """What each of some members holds, or why it cannot be had. None has a ``problem``.

        Raises:
            Rejected: nothing can be read there any more.
        """


class Ranges(Protocol):
    """A file that is read by ranges; ``batch`` is as of a place."""

    size: int
    batch: int

    def open(self) -> BinaryIO:
        """A new seekable reader."""

    def read(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each half-open span; fewer where the file ends."""


class LocalFile:
    """A regular file of this machine.

    Raises:
        Rejected: with the reasons of fetching, if there is none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _local_errors():
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("not_a_file", "not a regular file")
        self.size = status.st_size
        self.batch = _LOCAL_BATCH

    def open(self) -> BinaryIO:
        with _local_errors():
            return open(self._path, "rb", buffering=0)

    def read(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        with self.open() as file, _local_errors():
            return [os.pread(file.fileno(), stop - start, start) for start, stop in spans]


class StoredFile:
    """An object of a store, or a file on a web server that gives ranges of it.

    Raises:
        Rejected: with the reasons of fetching, if there is none that can be read.
        StageError: the store is not to be reached.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        with stored_errors(url):
            self._files, self._inner = fsspec.core.url_to_fs(url)
            info = self._files.info(self._inner)
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise Rejected("not_a_file", "not an object of a known size")
        self.size: int = info["size"]
        self.batch = _STORED_BATCH

    def open(self) -> BinaryIO:
        with stored_errors(self._url):
            file = self._files.open(self._inner, "rb", block_size=_BLOCK, cache_type="readahead")
        return _Stored(file, self._url)  # type: ignore[return-value]

    def read(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        # A store refuses to give nothing.
        asked = [(start, min(stop, self.size)) for start, stop in spans if start < stop]
        paths = [self._inner] * len(asked)
        with stored_errors(self._url):
            found = self._files.cat_ranges(
                paths,
                [start for start, _ in asked],
                [stop for _, stop in asked],
                on_error="raise",
            )
        given = iter(found)
        return [bytes(next(given)) if start < stop else b"" for start, stop in spans]


class _Stored:
    """A reader whose errors are ours."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def seek(self, place: int) -> int:
        return int(self._file.seek(place))

    def read(self, size: int) -> bytes:
        with stored_errors(self._url):
            return bytes(self._file.read(size))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Zip:
    """A zip."""

    def __init__(self, file: Ranges) -> None:
        self._file = file
        self.batch = file.batch

    def members(self, part: Part = None) -> Iterator[Member]:
        with self._file.open() as file:
            start, stop = part or zips.directory(file, self._file.size)
            yield from counted(zips.read_directory(file, start, stop))

    def read(self, members: Sequence[Member]) -> list[bytes | Rejected]:
        end = self._file.size
        spans = [(min(m.start, end), min(m.start + m.header + m.packed, end)) for m in members]
        return [
            _attempt(self._unpacked, member, data)
            for member, data in zip(members, _read_spans(self._file, spans), strict=True)
        ]

    def _unpacked(self, member: Member, data: bytes) -> bytes:
        place = zips.data_place(member, data)
        packed = data[place : place + member.packed]
        if len(packed) < member.packed:
            start = member.start + place
            (packed,) = self._file.read([(start, start + member.packed)])
        return zips.unpack(member, packed)


class Tar:
    """An uncompressed tar."""

    def __init__(self, file: Ranges) -> None:
        self._file = file
        self.batch = file.batch

    def members(self, part: Part = None) -> Iterator[Member]:
        start, stop = part or (0, self._file.size)
        with self._file.open() as file:
            for entry in read_entries(file, start):
                end = entry.part.offset + entry.part.size
                if end > self._file.size:
                    raise truncated()
                name = safe_name(entry.name)
                problem = None if entry.whole else ("damaged", f"{name[:200]!r} is a sparse file")
                yield Member(
                    name,
                    size=entry.part.size,
                    packed=entry.part.size,
                    start=entry.part.offset,
                    listed=(entry.begin, end),
                    problem=problem,
                )
                # What is behind the part may be torn, which says nothing of it.
                if part and end >= stop:
                    return

    def read(self, members: Sequence[Member]) -> list[bytes | Rejected]:
        spans = [(member.start, member.start + member.packed) for member in members]
        return [
            _attempt(_whole, member, data)
            for member, data in zip(members, _read_spans(self._file, spans), strict=True)
        ]


class LocalFolder:
    """A folder of this machine. Links are followed if they stay within it."""

    batch = _LOCAL_BATCH

    def __init__(self, path: Path, nested: bool) -> None:
        with _local_errors():
            self._root = path.resolve(strict=True)
        self._nested = nested

    def members(self, part: Part = None) -> Iterator[Member]:
        return counted(self._below("", _MAX_DEPTH if self._nested else 1))

    def read(self, members: Sequence[Member]) -> list[bytes | Rejected]:
        return [_attempt(self._content, member, b"") for member in members]

    def _below(self, folder: str, depth: int) -> Iterator[Member]:
        with _local_errors(), os.scandir(self._root / folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{folder}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                if depth > 1 and entry.name[:1] not in (".", "_"):
                    yield from self._below(name, depth - 1)
            elif entry.name[:1] != ".":
                yield self._member(name, entry)

    def _member(self, name: str, entry: os.DirEntry[str]) -> Member:
        try:
            size = entry.stat().st_size
            leads_out = entry.is_symlink() and not self._holds(Path(entry.path))
            regular = entry.is_file()
        except OSError:
            return Member(name, 0, problem=("unreadable", f"{name[:200]!r} cannot be read"))
        problem = None
        if leads_out:
            problem = ("unsafe_name", f"{name[:200]!r} is a link out of the sequence's folder")
        elif not regular:
            problem = ("not_a_file", f"{name[:200]!r} is not a regular file")
        return Member(name, size, size, problem=problem)

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)

    def _content(self, member: Member, _: bytes) -> bytes:
        with _local_errors():
            descriptor = os.open(self._root / member.name, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                return _whole(member, file.read(member.size + 1) if member.size else b"")


class StoredFolder:
    """All objects below a prefix of a store, or those that no further slash follows."""

    batch = _STORED_BATCH

    def __init__(self, url: str, nested: bool) -> None:
        self._url = url
        self._nested = nested
        with stored_errors(url):
            self._files, inner = fsspec.core.url_to_fs(url)
        self._root = inner.rstrip("/")

    def members(self, part: Part = None) -> Iterator[Member]:
        with stored_errors(self._url):
            found = self._files.find(self._root, maxdepth=None if self._nested else 1, detail=True)
        if not found:
            raise Rejected("object_not_found", "the object store holds no such folder")
        return counted(self._each(found))

    def _each(self, found: dict[str, Any]) -> Iterator[Member]:
        for path in sorted(found):
            name = path[len(self._root) + 1 :]
            size = found[path].get("size")
            if name and isinstance(size, int) and not name.rpartition("/")[2].startswith("."):
                yield Member(safe_name(name), size, size)

    def read(self, members: Sequence[Member]) -> list[bytes | Rejected]:
        paths = [f"{self._root}/{member.name}" for member in members]
        with stored_errors(self._url):
            found = self._files.cat(paths, on_error="raise") if paths else {}
        # One path is not a mapping of paths.
        data = [found] if isinstance(found, bytes) else [found[path] for path in paths]
        return [_attempt(_whole, *pair) for pair in zip(members, data, strict=True)]


def open_archive(name: str, file: Ranges) -> Place:
    """An archive of the kind that its name tells."""
    return Zip(file) if extension(name) == "zip" else Tar(file)


def open_folder(url: str, nested: bool) -> Place:
    """The folder at a URL; ``nested`` is whether its members lie in folders of it as well.

    Raises:
        Rejected: with the reasons of fetching, if there is none that can be read.
        StageError: the store is not to be reached.
    """
    path = local_path(url)
    return StoredFolder(url, nested) if path is None else LocalFolder(path, nested)


def open_file(url: str) -> Ranges:
    """The file at a URL; raises as ``open_folder`` does."""
    path = local_path(url)
    return StoredFile(url) if path is None else LocalFile(path)


def local_path(url: str) -> Path | None:
    """The path of a ``file`` URL."""
    if not url.startswith("file:"):
        return None
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))


def _whole(member: Member, data: bytes) -> bytes:
    if len(data) != member.size:
        message = f"{member.name[:200]!r} has another size than when it was listed"
        raise Rejected("changed", message)
    return data


def _attempt(
    read: Callable[[Member, bytes], bytes], member: Member, data: bytes
) -> bytes | Rejected:
    try:
        return read(member, data)
    except Rejected as rejected:
        return rejected


def _read_spans(file: Ranges, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of spans, which may touch or overlap, read in few runs."""
    if isinstance(file, LocalFile):
        yield from file.read(spans)
        return
    runs = coalesce(spans, MAX_GAP)
    blocks = dict(zip(runs, file.read(runs), strict=True))
    for start, stop in spans:
        run = next(run for run in runs if run[0] <= start and stop <= run[1])
        yield blocks[run][start - run[0] : stop - run[0]]


@contextmanager
def _local_errors() -> Iterator[None]:
    """Turn what goes wrong on a disk into the reasons that fetching has for it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("file_not_found", "no such file or folder") from error
    except PermissionError as error:
        raise Rejected("denied", "the file may not be read") from error
    except OSError as error:
        why = (error.strerror or "unknown error").lower()
        raise Rejected("unreadable", f"the file cannot be read: {why}") from error


@contextmanager
def stored_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong with a store into the reasons that fetching has for it."""
    try:
        yield
    except (Rejected, StageError):
        raise
    except FileNotFoundError as error:
        raise Rejected("object_not_found", "the object store holds no such object") from error
    except PermissionError as error:
        raise Rejected("denied", "the object store denies access to the object") from error
    # Drivers raise the errors of the libraries that they stand on.
    except Exception as error:
        raise StageError(f"{url}: {told(error)}") from error
