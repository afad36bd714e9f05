"""One file on its way in: the limits, the bytes as they arrive, and the two ways it can end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Final, Self

from reelmill.errors import StageError
from reelmill.fetch.rules import SITES
from reelmill.fetch.site_options import SiteOptions

# Hashing or writing less than this costs less than handing it to a thread.
_INLINE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The limits of fetching. None of them changes the bytes of a file that arrives."""

    concurrency: int = 16
    """Files on their way or waiting for the consumer, at most."""
    timeout_s: float = 300.0
    """Seconds for one file, all attempts and pauses included."""
    connect_timeout_s: float = 10.0
    """Seconds for one connection: name resolution, TCP and TLS."""
    idle_timeout_s: float = 30.0
    """Seconds without a byte after which an attempt is given up."""
    max_bytes: int = 4 << 30
    """Size in bytes of the largest file, after decompression."""
    attempts: int = 4
    """Attempts for a failure that may pass, the first included."""
    backoff_s: float = 0.5
    """Seconds before the second attempt; doubled for each further one, and jittered."""
    max_redirects: int = 5
    allow_private: bool = False
    """Whether ``http`` may reach loopback, private, link-local and metadata addresses."""
    allow_file: bool = False
    """Whether ``file`` URLs may be read."""
    rules: tuple[tuple[str, str], ...] = SITES
    """Domains or globs of URLs, and the source that fetches them instead of their scheme's. The
    first that matches counts."""
    sites: SiteOptions = field(default_factory=SiteOptions)
    """What is taken from video sites, and how."""
    user_agent: str = "reelmill"
    memory_bytes: int = 8 << 20
    """Size in bytes above which a body is kept in a file instead of memory."""

    def __post_init__(self) -> None:
        if min(self.concurrency, self.attempts) < 1:
            raise ValueError("concurrency and attempts are at least 1")


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """A file that could not be had.

    ``reason`` is one of ``bad_url``, ``bad_encoding``, ``bad_response``, ``connect``, ``denied``,
    ``dns``, ``file_not_found``, ``http_<status>``, ``not_a_file``, ``object_not_found``,
    ``private_address``, ``redirect_loop``, ``reset``, ``timeout``, ``tls``, ``too_large``,
    ``truncated`` and ``unreadable``. ``message`` depends on the URL and the reply alone.
    ``attempts`` is zero where the URL was refused unseen. ``transient`` says that a later run may
    fare better.
    """

    reason: str
    message: str
    attempts: int
    transient: bool


class AttemptError(Exception):
    """One attempt that failed; `FetchFailure` explains ``reason`` and ``message``."""

    def __init__(
        self, reason: str, message: str, *, transient: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.transient = transient
        self.retry_after_s = retry_after_s


class Fetched:
    """A file that arrived whole. Close it (or leave its ``with`` block) to delete its spill file.

    Attributes:
        url: The normalised URL that was asked for.
        final_url: The one that answered, after redirects.
        content_type: The media type that the server claims, lower case, without parameters.
        size: Bytes.
        sha256: Digest of the bytes, in hex.
        path: Where the bytes are, or None when they are in memory.
        extras: Further fields that came with it, by name; files among them are deleted with it.
    """

    __slots__ = (
        "_data",
        "content_type",
        "extras",
        "final_url",
        "key",
        "path",
        "sha256",
        "size",
        "url",
    )

    def __init__(
        self,
        *,
        key: str,
        url: str,
        final_url: str,
        content_type: str | None,
        size: int,
        sha256: str,
        body: bytes | Path,
        extras: Mapping[str, bytes | Path] = MappingProxyType({}),
    ) -> None:
        self.key = key
        self.url = url
        self.final_url = final_url
        self.content_type = content_type
        self.size = size
        self.sha256 = sha256
        self.path = body if isinstance(body, Path) else None
        self.extras = extras
        self._data = b"" if isinstance(body, Path) else body

    def open(self) -> BinaryIO:
        """Return a new seekable reader of the bytes, positioned at their start."""
        return io.BytesIO(self._data) if self.path is None else open(self.path, "rb")

    def read(self) -> bytes:
        """Return all bytes, which for a file on disk may be many."""
        return self._data if self.path is None else self.path.read_bytes()

    def close(self) -> None:
        """Delete the spill file, if there is one, and the files among the extras."""
        for path in (self.path, *self.extras.values()):
            if isinstance(path, Path):
                path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fetched({self.key!r}, {self.url!r}, {self.size} bytes, sha256 {self.sha256})"


def media_type(header: str | None) -> str | None:
    """Return the media type in a ``Content-Type`` header, lower case, without parameters."""
    return (header or "").partition(";")[0].strip().lower() or None


class Transfer:
    """The bytes of one file as they arrive, over as many attempts as it takes.

    `append` and `close` may be called from different threads: a thread that outlives its cancelled
    task finds the transfer closed and stops.
    """

    def __init__(self, key: str, url: str, policy: FetchPolicy, scratch: Path) -> None:
        self.key = key
        self.url = url
        self.final_url = url
        self.content_type: str | None = None
        self.etag: str | None = None
        """Strong validator of the bytes so far, with which a further attempt may resume."""
        self.size = 0
        self.policy = policy
        self.scratch = scratch
        self._lock = threading.Lock()
        self._closed = False
        self._sha256 = hashlib.sha256()
        self._memory = io.BytesIO()
        self._file: io.FileIO | None = None
        self._path: Path | None = None
        self._extras: dict[str, bytes | Path] = {}

    def check(self, size: int) -> None:
        """Refuse a body of ``size`` bytes if that is more than the policy allows.

        Raises:
            AttemptError: ``too_large``.
        """
        if size > self.policy.max_bytes:
            raise AttemptError("too_large", f"larger than {self.policy.max_bytes} bytes")

    def append(self, data: bytes) -> None:
        """Add bytes. Blocks on the disk.

        Raises:
            AttemptError: ``too_large``.
            StageError: The scratch directory cannot be written.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the transfer is closed")
            self.check(self.size + len(data))
            self._sha256.update(data)
            if self._file is None and self.size + len(data) <= self.policy.memory_bytes:
                self._memory.write(data)
            else:
                self._spill(data)
            self.size += len(data)

    async def receive(self, data: bytes) -> None:
        """Do `append` without blocking the event loop."""
        if len(data) <= _INLINE_BYTES:
            self.append(data)
        else:
            await asyncio.get_running_loop().run_in_executor(None, self.append, data)

    def restart(self) -> None:
        """Drop what arrived."""
        with self._lock:
            self._discard()
            self.size = 0
            self.etag = None
            self._sha256 = hashlib.sha256()

    def attach(self, name: str, value: bytes | Path) -> None:
        """Add a further field; a file, which the transfer owns from now on, or its bytes."""
        with self._lock:
            replaced = self._extras.get(name)
            self._extras[name] = value
            if self._closed or (isinstance(replaced, Path) and replaced != value):
                self._delete(value if self._closed else replaced)

    def finish(self) -> Fetched:
        """Return the file, which owns the bytes from now on."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
            return Fetched(
                key=self.key,
                url=self.url,
                final_url=self.final_url,
                content_type=self.content_type,
                size=self.size,
                sha256=self._sha256.hexdigest(),
                body=self._path or self._memory.getvalue(),
                extras=MappingProxyType(self._extras),
            )

    def close(self) -> None:
        """Drop what arrived, for good, unless `finish` handed it over."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._discard()
                for value in self._extras.values():
                    self._delete(value)

    @staticmethod
    def _delete(value: bytes | Path | None) -> None:
        if isinstance(value, Path):
            value.unlink(missing_ok=True)

    def _discard(self) -> None:
        self._memory = io.BytesIO()
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = self._path = None

    def _spill(self, data: bytes) -> None:
        try:
            if self._file is None:
                descriptor, name = tempfile.mkstemp(prefix="fetch-", dir=self.scratch)
                self._file, self._path = io.FileIO(descriptor, "wb"), Path(name)
                self._write(self._file, self._memory.getbuffer())
                self._memory = io.BytesIO()
            self._write(self._file, memoryview(data))
        except OSError as error:
            raise StageError(f"{self.scratch}: {error.strerror}") from error

    @staticmethod
    def _write(file: io.FileIO, data: memoryview) -> None:
        while data:
            data = data[file.write(data) :]
