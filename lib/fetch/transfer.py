"""One file on its way in: the limits, the bytes as they arrive, and the two ways it can end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Final, NamedTuple, Protocol, Self, TypeAlias

from reelmill.errors import StageError
from reelmill.fetch.rules import SITES
from reelmill.fetch.site_options import SiteOptions

# Hashing or writing less than this costs less than handing it to a thread.
_INLINE_BYTES: Final = 64 << 10
_PRINTABLE = re.compile(r"[\x20-\x7e]+")

PROXY_PATTERN: Final = r"^(|env|(https?|socks5h)://[\x21-\x7e]+)$"
"""What `FetchPolicy.proxy` may be, as a regular expression."""


class Request(NamedTuple):
    """A file that is wanted: ``key`` is passed through, ``url`` may be in any spelling.

    ``etag`` and ``last_modified`` are what the server said of a copy that is already there: where
    it still is the file, the outcome is `Unchanged`.
    """

    key: str
    url: str
    etag: str | None = None
    last_modified: str | None = None


class Reason(NamedTuple):
    """A class of failures; ``transient`` says that a later run may fare better."""

    meaning: str
    transient: bool = False


REASONS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        # The address.
        "bad_url": Reason("the URL, or one it redirects to, is not one that may be fetched"),
        "denied": Reason("the store or the policy denies access"),
        "private_address": Reason("the host has no address in the public internet"),
        "no_driver": Reason("no driver for the URL's scheme is installed", True),
        # Not wanted by those who serve it.
        "opted_out": Reason("the host or the reply opts out of such use"),
        "robots": Reason("the site's robots.txt disallows the URL"),
        "robots_unreachable": Reason("the site's robots.txt could not be had", True),
        # The way there.
        "connect": Reason("no connection could be made", True),
        "dns": Reason("the host's name does not resolve", True),
        "proxy": Reason("the proxy did not let the request through", True),
        "reset": Reason("the connection broke before the reply began", True),
        "timeout": Reason("the file did not arrive in time, or the server fell silent", True),
        "tls": Reason("the server's certificate or its TLS is not valid", True),
        "host_down": Reason("too many requests to the host failed one after another", True),
        "deadline": Reason("the time for all files together was up", True),
        # The answer.
        "bad_encoding": Reason("the body is not encoded as its header says, or unknown to us"),
        "bad_response": Reason("the reply is not valid HTTP, or its head is too large"),
        "geo": Reason("not available here for legal reasons (HTTP 451), or in this country"),
        "login": Reason("the server asks who we are (HTTP 401 or 407)"),
        "private": Reason("the owner shows it to some only"),
        "redirect_loop": Reason("more redirects than the policy allows"),
        "removed": Reason("the file was there, and is gone for good (HTTP 410)"),
        "http_<status>": Reason("the server answered with another status; some pass"),
        # The file.
        "file_not_found": Reason("there is no such local file"),
        "object_not_found": Reason("the object store holds no such object"),
        "not_a_file": Reason("the path is not a regular file"),
        "not_video": Reason("what arrived is a page, a text or another thing that is no video"),
        "too_large": Reason("the file is larger than the policy allows"),
        "truncated": Reason("the body ended before its announced end", True),
        "unreadable": Reason("the file or object cannot be read just now", True),
        # A page of a video site.
        "archived": Reason("the video is in the archive of those not to take"),
        "crash": Reason("yt-dlp broke off or hung", True),
        "drm": Reason("the video is encrypted"),
        "live": Reason("the video is being broadcast, or will be"),
        "no_format": Reason("the site has the video in no format that is allowed"),
        "playlist": Reason("the page shows several videos"),
        "remux_failed": Reason("picture and sound could not be put into one file"),
        "site_error": Reason("yt-dlp failed for a reason that has no name here"),
        "unsupported_url": Reason("yt-dlp finds no video there"),
    }
)
"""All reasons why a file cannot be had. What an extractor or an inspector finds may have others."""

_PASSING_STATUS = re.compile(r"http_(408|425|429|5[0-9][0-9])")


def may_pass(reason: str) -> bool:
    """Whether a later run may fare better with a file that failed for ``reason``."""
    known = REASONS.get(reason)
    return known.transient if known else bool(_PASSING_STATUS.fullmatch(reason))


class Inspector(Protocol):
    """Looks at the beginning of a file while the rest arrives, to spare what will be rejected.

    It may be asked or not, and be given a tail or not, as the server and the network have it. So
    that the outcome is the same, it rejects only what the whole file would be rejected for, and
    with the same reason and message.
    """

    @property
    def head_bytes(self) -> int:
        """How much of the beginning is wanted. Files that are no longer are not inspected."""

    def __call__(
        self, head: bytes, size: int | None, tail: tuple[int, bytes] | None
    ) -> tuple[int, int] | None:
        """Judge a file by its first bytes, in a thread.

        Args:
            head: The first ``head_bytes`` bytes.
            size: Of the whole file in bytes, if the server told.
            tail: The bytes that were asked for, and where they begin; None at the first call.

        Returns:
            The range of bytes (start, end) that decides, if one does; None to let the file come.

        Raises:
            Rejected: The file is not wanted.
        """


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The limits of fetching. None of them changes the bytes of a file that arrives."""

    concurrency: int = 16
    """Files on their way or waiting for the consumer, at most."""
    per_host: int = 8
    """Requests under way at one host (or bucket), at most."""
    rate: float | None = None
    """Requests a second to begin at one host, at most; None: as many as there can be."""
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
    deadline_s: float | None = None
    """Seconds for all files together; what has not arrived then fails."""
    host_failures: int = 5
    """Files that fail to reach a host, one after another, before the host is left alone."""
    host_pause_s: float = 2.0
    """Seconds before a host that was left alone is tried again; doubled for each further time."""
    host_trials: int = 2
    """Failures of these trials after which the files that are left at the host are given up."""
    max_redirects: int = 5
    allow_private: bool = False
    """Whether ``http`` may reach loopback, private, link-local and metadata addresses."""
    allow_file: bool = False
    """Whether ``file`` URLs may be read."""
    proxy: str | None = None
    """URL of an HTTP or SOCKS proxy (``http``, ``https``, ``socks5h``) that resolves names and
    connects for us; ``env``: as the environment says; None or empty: none."""
    robots: bool = False
    """Whether a site's ``robots.txt`` is heeded."""
    noai: bool = False
    """Whether ``X-Robots-Tag: noai`` (also ``noimageai``, ``none``) is heeded."""
    opt_out: tuple[str, ...] = ()
    """Domains, with all below them, and globs of URLs that are never asked for."""
    rules: tuple[tuple[str, str], ...] = SITES
    """Domains or globs of URLs, and the source that fetches them instead of their scheme's. The
    first that matches counts."""
    sites: SiteOptions = field(default_factory=SiteOptions)
    """What is taken from video sites, and how."""
    inspector: Inspector | None = None
    user_agent: str = "reelmill"
    memory_bytes: int = 8 << 20
    """Size in bytes above which a body is kept in a file instead of memory."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts", "per_host", "host_failures", "host_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1")
        if self.rate is not None and not self.rate > 0:
            raise ValueError("rate is more than 0 requests a second")
        if not _PRINTABLE.fullmatch(self.user_agent):
            raise ValueError("user_agent is printable ASCII text")
        if not re.fullmatch(PROXY_PATTERN, self.proxy or ""):
            raise ValueError("proxy is env or an http, https or socks5h URL")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the answer for a file came from. What is not known is empty or None."""

    extractor: str = ""
    """The source that fetched it: ``http``, ``s3``, ``file``, ``fsspec``, or another's name."""
    final_url: str = ""
    """The URL that answered, after redirects."""
    attempts: int = 0
    ended: int = 0
    """When the last attempt ended, in seconds since 1970."""
    status: int | None = None
    """Of HTTP."""
    etag: str | None = None
    last_modified: str | None = None
    content_type: str | None = None
    address: str | None = None
    """The IP address that answered; None behind a proxy."""


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """A file that could not be had.

    ``reason`` is one of `REASONS`, or one that an inspector or an extractor found. ``message``
    depends on the URL and the reply alone. ``attempts`` is zero where none was made. ``transient``
    says that another attempt might have fared better.
    """

    reason: str
    message: str
    attempts: int
    transient: bool
    provenance: Provenance = field(default_factory=Provenance, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A file that is still the one whose ``etag`` or ``last_modified`` the request gave."""

    provenance: Provenance


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
        provenance: Where it came from.
    """

    __slots__ = (
        "_data",
        "content_type",
        "extras",
        "final_url",
        "key",
        "path",
        "provenance",
        "sha256",
        "size",
        "url",
    )

    def __init__(
        self,
        *,
        key: str,
        url: str,
        size: int,
        sha256: str,
        body: bytes | Path,
        provenance: Provenance,
        extras: Mapping[str, bytes | Path] = MappingProxyType({}),
    ) -> None:
        self.key = key
        self.url = url
        self.final_url = provenance.final_url
        self.content_type = provenance.content_type
        self.provenance = provenance
        self.extras = extras
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


Outcome: TypeAlias = Fetched | FetchFailure | Unchanged


def media_type(header: str | None) -> str | None:
    """Return the media type in a ``Content-Type`` header, lower case, without parameters."""
    return (header or "").partition(";")[0].strip().lower() or None


class Transfer:
    """The bytes of one file as they arrive, over as many attempts as it takes.

    `append` and `close` may be called from different threads: a thread that outlives its cancelled
    task finds the transfer closed and stops.

    Attributes:
        url: Normalised.
        known: The ``etag`` and ``last_modified`` of the request.
        size: Bytes so far.
        total: Bytes of the whole file, if they are told.
        validator: Strong validator of the bytes so far, with which a further attempt may resume.
        validated_url: Which gave it: elsewhere the same validator may mean other bytes.
        takes_ranges: Whether the server says that it can send parts of the file.
        unchanged: Set by a source instead of any bytes.
        attempts: How many have begun.
        on_head: Called once, in the thread that appends, when more than ``head_bytes`` are there.
    """

    def __init__(
        self,
        key: str,
        url: str,
        policy: FetchPolicy,
        scratch: Path,
        known: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.key = key
        self.url = url
        self.known = known
        self.extractor = ""
        self.final_url = url
        self.status: int | None = None
        self.etag: str | None = None
        self.last_modified: str | None = None
        self.content_type: str | None = None
        self.address: str | None = None
        self.validator: str | None = None
        self.validated_url = url
        self.total: int | None = None
        self.takes_ranges = False
        self.unchanged = False
        self.attempts = 0
        self.size = 0
        self.head_bytes = 0
        self.on_head: Callable[[], None] | None = None
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
            size = self.size + len(data)
            self.check(size)
            self._sha256.update(data)
            if self._file is None and size <= self.policy.memory_bytes:
                self._memory.write(data)
            else:
                self._spill(data)
            self.size = size
        on_head = self.on_head
        if on_head is not None and self.size > self.head_bytes:
            self.on_head = None
            on_head()

    async def receive(self, data: bytes) -> None:
        """Do `append` without blocking the event loop."""
        if len(data) <= _INLINE_BYTES:
            self.append(data)
        else:
            await asyncio.get_running_loop().run_in_executor(None, self.append, data)

    def restart(self) -> None:
        """Drop what arrived."""
        self.validator = self.total = None
        self.takes_ranges = False
        with self._lock:
            if self.size:
                self._discard()
                self.size = 0
                self._sha256 = hashlib.sha256()

    def attach(self, name: str, value: bytes | Path) -> None:
        """Add a further field; a file, which the transfer owns from now on, or its bytes."""
        with self._lock:
            replaced = self._extras.get(name)
            self._extras[name] = value
            if self._closed or (isinstance(replaced, Path) and replaced != value):
                self._delete(value if self._closed else replaced)

    def peek(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``, as far as they have arrived."""
        with self._lock:
            if self._file is None:
                return bytes(self._memory.getbuffer()[start:end])
            return os.pread(self._file.fileno(), max(0, end - start), start)

    def provenance(self) -> Provenance:
        """Say where the file comes from, as far as it is known."""
        return Provenance(
            extractor=self.extractor,
            final_url=self.final_url,
            attempts=self.attempts,
            ended=int(time.time()),
            status=self.status,
            etag=self.etag,
            last_modified=self.last_modified,
            content_type=self.content_type,
            address=self.address,
        )

    def finish(self) -> Fetched | Unchanged:
        """Return the file, which owns the bytes from now on."""
        if self.unchanged:
            return Unchanged(self.provenance())
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
            return Fetched(
                key=self.key,
                url=self.url,
                size=self.size,
                sha256=self._sha256.hexdigest(),
                body=self._path or self._memory.getvalue(),
                provenance=self.provenance(),
                extras=MappingProxyType(self._extras),
            )

    def fail(self, reason: str, message: str, *, transient: bool = False) -> FetchFailure:
        """Return the failure that ends the transfer."""
        return FetchFailure(reason, message, self.attempts, transient, self.provenance())

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
