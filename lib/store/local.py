"""A store in a folder: atomic, durable, read-only objects made by hard links."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reelmill.errors import StoreError
from reelmill.store.backend import Entry, Range
from reelmill.store.place import is_running, place

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_READ_ONLY = 0o444
_PIECE = 4 << 20


class LocalBackend:
    """Objects as files below ``root``.

    An object is written to ``tmp/``, synced, made read-only, and linked to its final name: a
    link appears whole or not at all, and exactly one writer of a race gets it. What may be
    replaced is renamed to it. ``conditional`` turns false where links cannot be made.
    """

    is_local = True

    def __init__(self, root: Path) -> None:
        self.conditional = True
        self.root = root.expanduser().resolve()
        self.url = str(self.root)
        self._tmp = self.root / "tmp"
        self._made: set[Path] = set()

    def create(self, name: str, data: bytes) -> bool:
        with self._failing("write", name):
            return self._publish(name, self._write_tmp(data))

    def put(self, name: str, data: bytes) -> None:
        with self._failing("write", name):
            self._replace(name, self._write_tmp(data))

    def put_file(self, name: str, path: Path) -> None:
        with self._failing("write", name):
            if path.parent != self.scratch():
                raise ValueError("a file enters a local store from the store's own scratch folder")
            with path.open("rb") as file:
                os.fsync(file.fileno())
            self._replace(name, path)

    def read(self, name: str) -> bytes:
        with self._failing("read", name):
            return (self.root / name).read_bytes()

    def read_ranges(self, ranges: list[Range]) -> list[bytes]:
        out = []
        opened: dict[str, int] = {}
        try:
            for wanted in ranges:
                with self._failing("read", wanted.name):
                    if wanted.name not in opened:
                        opened[wanted.name] = os.open(self.locate(wanted.name), os.O_RDONLY)
                    data = _pread(opened[wanted.name], wanted.start, wanted.stop)
                if len(data) != wanted.stop - wanted.start:
                    raise StoreError(
                        f"{self.locate(wanted.name)} is shorter than its index says; "
                        "run 'reelmill verify' to see what is damaged"
                    )
                out.append(data)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return out

    def stream(self, name: str) -> Iterator[bytes]:
        with self._failing("read", name), (self.root / name).open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                yield piece

    def size(self, name: str) -> int | None:
        try:
            with self._failing("look up", name):
                return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = ((name, self.size(name)) for name in names)
        return {name: size for name, size in found if size is not None}

    def entry(self, name: str) -> Entry | None:
        try:
            with self._failing("look up", name):
                stat = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return Entry(name, stat.st_size, stat.st_mtime)

    def folders(self, prefix: str) -> list[str]:
        with self._failing("list", prefix), contextlib.suppress(FileNotFoundError):
            found = (path for path in (self.root / prefix).iterdir() if path.is_dir())
            return sorted(f"{path.relative_to(self.root).as_posix()}/" for path in found)
        return []

    def list(self, prefix: str) -> Iterator[Entry]:
        top = self.root / prefix
        found = []
        with self._failing("list", prefix), contextlib.suppress(FileNotFoundError):
            for folder, _, files in os.walk(top, onerror=_unless_gone):
                for file in files:
                    path = Path(folder, file)
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        name = path.relative_to(self.root).as_posix()
                        found.append(Entry(name, stat.st_size, stat.st_mtime))
        return iter(sorted(found, key=lambda entry: entry.name))

    def delete(self, name: str) -> None:
        with self._failing("delete", name):
            (self.root / name).unlink(missing_ok=True)

    def delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.delete(name)

    def locate(self, name: str) -> str:
        # pathlib takes several times as long, and readers of samples ask for each.
        return os.path.join(self.url, name)  # noqa: PTH118

    def scratch(self) -> Path:
        """``tmp/`` on the store's own filesystem, so that a finished file moves by a link."""
        with self._failing("write", "tmp"):
            self._make_folder(self._tmp)
        return self._tmp

    def sweep(self, before: float | None = None) -> None:
        sweep_scratch(self._tmp, before)

    def _write_tmp(self, data: bytes) -> Path:
        path = scratch_name(self.scratch())
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _publish(self, name: str, tmp: Path) -> bool:
        target = self.root / name
        try:
            self._make_folder(target.parent)
            tmp.chmod(_READ_ONLY)
            won = self._link(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return won

    def _replace(self, name: str, tmp: Path) -> None:
        target = self.root / name
        try:
            self._make_folder(target.parent)
            tmp.chmod(_READ_ONLY)
            tmp.replace(target)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _link(self, tmp: Path, target: Path) -> bool:
        try:
            os.link(tmp, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (exFAT, some network mounts). A rename is still all or nothing,
            # but two writers may both believe they won.
            self.conditional = False
            if target.exists():
                return False
            tmp.rename(target)
        return True

    def _make_folder(self, folder: Path) -> None:
        if folder in self._made and folder.exists():
            return
        if not folder.exists():
            if folder != self.root:
                self._make_folder(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(folder.parent)
        self._made.add(folder)

    @contextlib.contextmanager
    def _failing(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb != "write":
                raise
            raise StoreError(f"cannot {verb} {self.locate(name)}: {_advice(error)}") from error


def scratch_name(folder: Path) -> Path:
    """A fresh name in ``folder`` that tells which process of which place owns it."""
    return folder / f"{place()}~{os.getpid()}~{secrets.token_hex(8)}"


def sweep_scratch(folder: Path, before: float | None = None) -> None:
    """Remove what processes of this place left in ``folder`` when they were killed, and what
    those of other places have not touched since ``before``."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            owner, _, rest = path.name.partition("~")
            pid = rest.partition("~")[0]
            if not pid.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if owner == place():
                    left = not is_running(int(pid))
                else:
                    left = before is not None and _last_touched(path) < before
                if left:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _last_touched(path: Path) -> float:
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    data = os.pread(descriptor, stop - start, start)
    if len(data) == stop - start:
        return data
    # Linux returns at most 2 GiB - 4 KiB from one call.
    parts = [data]
    while data and (start := start + len(data)) < stop:
        data = os.pread(descriptor, stop - start, start)
        parts.append(data)
    return b"".join(parts)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and build again, finished shards are kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{os.strerror(error.errno)}; choose a folder that you may write to"
    if isinstance(error, NotADirectoryError):
        return "a file lies where a folder must be; choose another folder for the store"
    return error.strerror or str(error)
