"""A store behind fsspec: S3 and its kin, with conditional puts, retries and checked lengths."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from reelmill.errors import MissingDependencyError, StoreError, one_line
from reelmill.store.backend import Entry, Range
from reelmill.store.local import sweep_scratch

T = TypeVar("T")

CONDITIONAL_PUT = frozenset({"s3", "s3a"})
"""Protocols whose fsspec driver sends a real conditional put for ``mode="create"``. The base
class's looks first and writes then, which two writers can both pass."""

ATTEMPTS = 7
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_PIECE = 8 << 20
_SINGLE_PUT = 64 << 20
_PART = 16 << 20
_FEW = 64
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
_PERMANENT_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}
)


class RemoteBackend:
    """Objects below ``url``, through the fsspec filesystem of its scheme.

    Credentials and endpoints come from the environment, as the scheme's driver reads them
    (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …), and so are never part of a recipe.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = self.url.partition("://")[0]
        try:
            # Listings change under other writers' hands: a cached one would lie.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise MissingDependencyError(f"{scheme}:// needs one more package: {error}") from error
        except ValueError as error:
            known = ", ".join(sorted({"file", "s3", *CONDITIONAL_PUT}))
            raise StoreError(f"{self.url}: {error}; common schemes are {known}") from error
        self.conditional = scheme in CONDITIONAL_PUT
        # One request for a whole object, where s3fs by default looks up its size first. Every
        # reader of a whole object checks what it got: by its digest, or by parsing it.
        self._at_once = {"max_concurrency": 1} if self.conditional else {}
        # Parts of a large upload that are in memory together: by default s3fs holds 500 MB of them.
        self._parts = {"chunksize": _PART, "max_concurrency": 4} if self.conditional else {}

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        last: BaseException | None = None
        for attempt in range(ATTEMPTS):
            try:
                self._fs.pipe_file(path, data, mode="create")
            except Exception as error:
                # 412, 409, a time-out, a reset: any of them may follow a put that went through.
                # What lies there now is the only witness.
                held = self._peek(name)
                if held == data:
                    return True
                if held is not None and self.size(name) == len(held):
                    return False
                if _is_permanent(error):
                    raise self._explain("write", name, error) from error
                last = error
                _pause(attempt)
            else:
                return True
        raise self._explain("write", name, last) from last

    def put(self, name: str, data: bytes) -> None:
        self._retry("write", name, lambda: self._fs.pipe_file(self._path(name), data))

    def put_file(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        if size <= _SINGLE_PUT:
            self.put(name, path.read_bytes())
        else:
            self._retry(
                "write",
                name,
                lambda: self._fs.put_file(str(path), self._path(name), **self._parts),
            )
        if (stored := self.size(name)) != size:
            raise StoreError(
                f"{self.locate(name)} holds {stored} bytes after an upload of {size}; "
                "build again, the shard is not committed"
            )
        path.unlink()

    def read(self, name: str) -> bytes:
        data: bytes = self._retry("read", name, lambda: self._whole(name))
        return data

    def read_ranges(self, ranges: list[Range]) -> list[bytes]:
        # HTTP has no way to ask for no bytes.
        out: list[bytes | None] = [None if r.stop > r.start else b"" for r in ranges]
        missing = [i for i, data in enumerate(out) if data is None]
        last: BaseException | None = None
        for attempt in range(ATTEMPTS if missing else 0):
            answers = self._fs.cat_ranges(
                [self._path(ranges[i].name) for i in missing],
                [ranges[i].start for i in missing],
                [ranges[i].stop for i in missing],
                on_error="return",
            )
            for i, answer in zip(missing, answers, strict=True):
                wanted = ranges[i]
                if isinstance(answer, FileNotFoundError):
                    raise answer
                if isinstance(answer, BaseException):
                    if _is_permanent(answer):
                        raise self._explain("read", wanted.name, answer) from answer
                    last = answer
                elif len(answer) == wanted.stop - wanted.start:
                    out[i] = answer
                else:
                    last = OSError(errno.EIO, f"{len(answer)} bytes of a longer range")
            missing = [i for i in missing if out[i] is None]
            if not missing:
                break
            _pause(attempt)
        if missing:
            raise self._explain("read", ranges[missing[0]].name, last) from last
        return [data for data in out if data is not None]

    def stream(self, name: str) -> Iterator[bytes]:
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(self.locate(name))
        for start in range(0, size, _PIECE):
            yield self.read_ranges([Range(name, start, min(start + _PIECE, size))])[0]

    def size(self, name: str) -> int | None:
        entry = self.entry(name)
        return entry.size if entry else None

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = set(names)
        if len(wanted) <= _FEW:
            with ThreadPoolExecutor(16) as pool:
                found = zip(wanted, pool.map(self.size, wanted), strict=True)
                return {name: size for name, size in found if size is not None}
        # A page of a listing answers for a thousand names at the price of one.
        folders = {name.rpartition("/")[0].rpartition("/")[0] + "/" for name in wanted}
        return {
            entry.name: entry.size
            for folder in folders
            for entry in self.list(folder)
            if entry.name in wanted
        }

    def entry(self, name: str) -> Entry | None:
        try:
            info = self._retry("look up", name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        if info["type"] == "directory":
            return None
        return Entry(name, int(info["size"]), _modified(info), str(info.get("ETag", "")))

    def folders(self, prefix: str) -> list[str]:
        def look() -> list[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self._fs.ls(self._path(prefix), detail=True)
            except FileNotFoundError:
                return []
            return found

        found = self._retry("list", prefix, look)
        paths = [info["name"].rstrip("/") for info in found if info["type"] == "directory"]
        return sorted(f"{prefix}{path.rpartition('/')[2]}/" for path in paths)

    def list(self, prefix: str) -> Iterator[Entry]:
        def look() -> dict[str, Any]:
            try:
                found: dict[str, Any] = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
            return found

        offset = len(self._root.rstrip("/")) + 1
        entries = [
            Entry(path[offset:], int(info["size"] or 0), _modified(info))
            for path, info in self._retry("list", prefix, look).items()
            # Where the listing was empty, s3fs looks the folder up, and may find that it has
            # objects by now.
            if info["type"] != "directory"
        ]
        return iter(sorted(entries, key=lambda entry: entry.name))

    def delete(self, name: str) -> None:
        def remove() -> None:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._retry("delete", name, remove)

    def delete_all(self, names: Sequence[str]) -> None:
        if not self.conditional:
            for name in names:
                self.delete(name)
            return
        # Not by the driver's own bulk delete, which takes names for patterns and hides refusals.
        keys = [self._fs.split_path(self._path(name)) for name in names]
        request = {
            "Bucket": keys[0][0],
            "Delete": {"Objects": [{"Key": key} for _, key, _ in keys], "Quiet": True},
        }

        def remove() -> None:
            answer = self._fs.call_s3("delete_objects", **request)
            for refused in answer.get("Errors", []):
                kind = PermissionError if refused.get("Code") == "AccessDenied" else OSError
                raise kind(f"{refused.get('Code')}: {refused.get('Message')}")

        self._retry("delete", names[0], remove)

    def locate(self, name: str) -> str:
        return f"{self.url}/{name}"

    def scratch(self) -> Path:
        return self._scratch

    def sweep(self, before: float | None = None) -> None:
        sweep_scratch(self._scratch, before)

    @cached_property
    def _scratch(self) -> Path:
        folder = Path(tempfile.gettempdir(), f"reelmill-{os.getuid()}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror}; set TMPDIR") from error
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise StoreError(f"{folder} belongs to another user; set TMPDIR to a folder of yours")
        return folder

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _whole(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name), **self._at_once)
        return data

    def _peek(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def _retry(self, verb: str, name: str, call: Callable[[], T]) -> T:
        last: BaseException | None = None
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except Exception as error:
                if isinstance(error, FileNotFoundError) and verb != "write":
                    raise
                if _is_permanent(error):
                    raise self._explain(verb, name, error) from error
                last = error
                _pause(attempt)
        raise self._explain(verb, name, last) from last

    def _explain(self, verb: str, name: str, error: BaseException | None) -> StoreError:
        where = self.locate(name)
        if isinstance(error, FileNotFoundError):
            advice = "there is no such bucket or folder; create it first"
        elif isinstance(error, PermissionError):
            advice = f"access denied ({error}); check the credentials and the bucket's policy"
        elif type(error).__name__ in _PERMANENT_NAMES:
            advice = f"{error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
        else:
            advice = f"{error!r} after {ATTEMPTS} attempts; build again when the store answers"
        return StoreError(one_line(f"cannot {verb} {where}: {advice}"))


def _is_permanent(error: BaseException) -> bool:
    return isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES


def _pause(attempt: int) -> None:
    longest = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
    time.sleep(longest * (0.5 + random.random() / 2))  # noqa: S311 - jitter, not a secret


def _modified(info: dict[str, Any]) -> float:
    moment = info.get("LastModified") or info.get("created") or info.get("mtime")
    if moment is None:
        return 0.0
    return float(moment.timestamp()) if hasattr(moment, "timestamp") else float(moment)
