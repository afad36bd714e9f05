"""Opening shards by address, wherever they are: every byte of them, or an error.

Connections that break are made anew, and go on where they broke, of the same file only. No command
is run unless that is asked for, and never by a shell.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import random
import re
import shlex
import ssl
import string
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import xxhash

from reelmill.errors import LoadError, NotFoundError, ReelmillError, ShardError, StoreError
from reelmill.loading.cache import Opened, ShardCache
from reelmill.loading.samples import shown
from reelmill.loading.tars import checked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Opener: TypeAlias = Callable[[str], BinaryIO]
"""Opens an address as a binary file that is read from first to last byte."""

ATTEMPTS: Final = 7
"""In a row without a byte, before a server is given up."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE: Final = 5.0
_LONGEST_WISH: Final = 60.0
"""Seconds that a server may have us wait (``Retry-After``)."""
_IDLE: Final = 30.0
"""Seconds without a byte."""
_PIECE: Final = 1 << 20
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE: Final = frozenset({404, 410})
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_SHELL: Final = frozenset("|&;<>`$(){}\n")


class ShardOpener:
    """Opens shards; to be called with an address. What it gives is whole, or reading it raises
    ``ShardError``; packed tars are unpacked.

    Known are paths, ``file``, ``http``, ``https``, ``s3`` and whatever else fsspec opens (``hf``,
    ``gs``, with their packages). Credentials come from the environment, as each driver reads them.

    Args:
        openers: functions that open addresses, by scheme, which come before what is known; or one
            for all addresses.
        cache: where shards of other machines are kept, or the folder for that. What ``openers``
            give is not kept.
        allow_pipe: whether ``pipe:command`` runs a command, without a shell, for its output. Do not
            allow it for addresses that others wrote.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener] | Opener | None = None,
        *,
        cache: ShardCache | str | Path | None = None,
        allow_pipe: bool = False,
    ) -> None:
        self._openers = {} if openers is None or callable(openers) else dict(openers)
        self._opener = openers if callable(openers) else None
        self._cache = ShardCache.at(cache)
        self._allow_pipe = allow_pipe

    def __call__(self, url: str) -> BinaryIO:
        """Open a shard for reading from first to last byte.

        Raises:
            NotFoundError: there is none.
            StoreError: it cannot be reached.
            ShardError: it is no tar.
            LoadError: nothing opens such an address.
        """
        scheme = _scheme(url)
        name = shown(url)
        if opener := self._openers.get(scheme, self._opener):
            return checked(opener(url), name)
        if scheme == "file":
            return checked(_open_file(url), name)
        if scheme == "pipe":
            return checked(self._run(url), name)
        opened = open_http(url) if scheme in ("http", "https") else _open_object(url)
        file = opened.file if self._cache is None else self._cache.keep(url, opened)
        return checked(file, name)

    def seekable(self, url: str) -> BinaryIO:
        """Open a shard for reading anywhere in it: no more is read of one on another machine than
        is asked for, unless there is a cache, which keeps all of it. Nothing is unpacked.

        Raises:
            NotFoundError: there is none.
            StoreError: it cannot be reached.
            LoadError: one cannot seek in what opens there, or nothing opens such an address.
        """
        scheme = _scheme(url)
        if opener := self._openers.get(scheme, self._opener):
            file = opener(url)
        elif scheme == "file":
            file = _open_file(url)
        elif scheme == "pipe":
            raise LoadError(f"{shown(url)}: in what a command writes one cannot seek")
        elif self._cache is None:
            file = _open_ranges(url)
        else:
            opened = open_http(url) if scheme in ("http", "https") else _open_object(url)
            file = self._cache.keep(url, opened)
        if not file.seekable():
            file.close()
            raise LoadError(f"{shown(url)}: in what its opener gives one cannot seek")
        return file

    def stage(
        self,
        sources: Iterable[str | Mapping[str, Any]],
        handler: Callable[[Exception], bool] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """A stage of a webdataset pipeline, between a list of shards and ``tar_file_expander``.

        Args:
            handler: says of an error whether to go on with the next shard, as webdataset's do.
        """
        for source in sources:
            url = source if isinstance(source, str) else source["url"]
            try:
                stream = self(url)
            except ReelmillError as error:
                if handler is None or not handler(error):
                    raise
                continue
            with stream:
                yield {"url": url, "stream": stream}

    def _run(self, url: str) -> BinaryIO:
        command = url.partition(":")[2]
        if not self._allow_pipe:
            raise LoadError(
                f"pipe: runs a command, which is not allowed: {shown(command)}; where you trust "
                "the address, pass ShardOpener(allow_pipe=True)"
            )
        words = shlex.split(command)
        if not words or any(word[0] in _SHELL for word in words if word):
            raise LoadError(f"pipe: runs one command without a shell, and not: {shown(command)}")
        return cast(BinaryIO, _Output(words))


def _scheme(url: str) -> str:
    if url.startswith("pipe:"):
        return "pipe"
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else "file"


def _open_file(url: str) -> BinaryIO:
    path = url[len("file://") :] if "://" in url else url
    try:
        return cast(BinaryIO, open(path, "rb", buffering=0))
    except FileNotFoundError:
        raise NotFoundError(f"there is no {shown(url)}") from None
    except OSError as error:
        raise StoreError(f"cannot read {shown(url)}: {error.strerror}") from error


class _Output(io.RawIOBase):
    """What a command writes; reading to its end raises if the command fails."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise StoreError(f"cannot run {words[0]}: {error.strerror}") from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        assert self._process.stdout is not None
        count: int = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined]
        if not count and (status := self._process.wait()):
            raise StoreError(f"{self._words[0]} ended with status {status}")
        return count

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
        super().close()


def _open_ranges(url: str) -> BinaryIO:
    """What fsspec opens, of which it reads a few MiB around what is asked for."""
    import fsspec

    try:
        opened: BinaryIO = fsspec.open(url, "rb").open()
    except FileNotFoundError as error:
        # Of a web server fsspec says so whatever went wrong.
        cause = error.__cause__ if _scheme(url) in ("http", "https") else None
        is_gone = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in _GONE
        if isinstance(cause, Exception) and not is_gone:
            raise _unreachable(url, cause) from None
        raise NotFoundError(f"there is no {shown(url)}") from None
    except ImportError as error:
        raise StoreError(f"cannot open {shown(url)}: {error}") from error
    except Exception as error:
        raise _unreachable(url, error) from None
    return cast(BinaryIO, _Ranges(opened, url))


def _unreachable(url: str, error: Exception) -> StoreError:
    """Without what a driver says, which may hold the address with all that is secret in it."""
    status = getattr(error, "status", None)
    why = _status(status) if isinstance(status, int) else type(error).__name__
    return StoreError(f"cannot read {shown(url)}: {why}")


class _Ranges(io.RawIOBase):
    """A file of fsspec's; whatever its driver raises becomes ``StoreError``."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            raise _unreachable(self._url, error) from None

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


# Object stores


def _open_object(url: str) -> Opened:
    from reelmill.store.remote import RemoteBackend

    folder, _, name = url.rpartition("/")
    try:
        backend = RemoteBackend(folder)
        entry = backend.entry(name)
    except StoreError as error:
        raise StoreError(str(error).replace(folder, shown(folder))) from None
    except OSError as error:
        raise _unreachable(url, error) from None
    if entry is None:
        raise NotFoundError(f"there is no {shown(url)}")

    def pieces() -> Iterator[bytes]:
        try:
            yield from backend.stream(name)
            now = backend.entry(name)
        except FileNotFoundError:
            now = None
        if now != entry or now.tag != entry.tag:
            raise ShardError(f"{shown(url)} changed while it was read")

    file = cast(BinaryIO, _Ahead(pieces()))
    return Opened(file, entry.size, entry.tag or str(entry.modified))


class _Ahead(io.RawIOBase):
    """Pieces as a file; the next one comes while the last is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")
        self._pool = ThreadPoolExecutor(1)
        self._next: Future[bytes] | None = None
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._held and not self._ended:
            # The first is not asked for before somebody reads.
            coming = self._next or self._ask()
            self._held = memoryview(coming.result())
            self._ended = not self._held
            self._next = None if self._ended else self._ask()
        count = min(len(view), len(self._held))
        view[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def _ask(self) -> Future[bytes]:
        return self._pool.submit(next, self._pieces, b"")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


# HTTP


def open_http(url: str) -> Opened:
    """A file of a web server. Its size is known where the server tells it, its tag where that has
    an ETag or a date, and tells where the file ends.

    Raises:
        NotFoundError, StoreError, LoadError: as :class:`ShardOpener`.
    """
    file = _Resuming(url)
    return Opened(cast(BinaryIO, file), file.total, file.validator if file.is_told else None)


class _Broken(Exception):  # noqa: N818 - an attempt, not the end
    """An attempt that failed and may go better the next time."""

    def __init__(self, why: str, wish: float = 0.0) -> None:
        super().__init__(why)
        self.wish = wish


class _Resuming(io.RawIOBase):
    """A file of a web server, read from first to last byte however often the connection breaks.

    It goes on by a range of the same file, as the server's ETag or date vouches for. A server that
    gives no ranges sends it from the beginning, and the part that was read must be the same.
    """

    def __init__(self, url: str) -> None:
        self._url, self._name = url, shown(url)
        self._place = 0
        self._digest = xxhash.xxh3_128()
        self._failures = 0
        self._body: http.client.HTTPResponse | None = None
        self.total: int | None = None
        self.validator: str | None = None
        self.is_told = False
        self._body = self._persist(self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        count: int = self._persist(lambda: self._read(view))
        return count

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        super().close()

    def _persist(self, attempt: Callable[[], Any]) -> Any:
        while True:
            try:
                return attempt()
            except _Broken as error:
                self._failures += 1
                if self._body is not None:
                    self._body.close()
                    self._body = None
                if self._failures == ATTEMPTS:
                    raise StoreError(
                        f"cannot read {self._name}: {error} after {self._place:,} bytes, "
                        f"{ATTEMPTS} attempts in a row"
                    ) from error
                longest = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
                jitter = random.random()  # noqa: S311 - no secret
                time.sleep(max(longest * (0.5 + jitter / 2), min(error.wish, _LONGEST_WISH)))

    def _read(self, view: memoryview) -> int:
        self._body = self._body or self._connect()
        with _breaking():
            count = self._body.readinto(view)
        if not count and self.total is not None and self._place < self.total:
            raise _Broken(f"the body ended {self.total - self._place:,} bytes too early")
        self._place += count
        self._digest.update(view[:count])
        self._failures = 0 if count else self._failures
        return count

    def _connect(self) -> http.client.HTTPResponse:
        """A reply whose next byte is the one at our place."""
        request = _request(self._url)
        if self._place and self.validator:
            request.add_header("Range", f"bytes={self._place}-")
            request.add_header("If-Range", self.validator)
        with _breaking():
            reply = self._ask(request)
            start, total = self._begin(reply)
            self._begun(reply, total)
            if start == 0 and self._place:
                self._pass_by(reply)
        return reply

    def _ask(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            reply: http.client.HTTPResponse = _client().open(request, timeout=_IDLE)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _GONE:
                raise NotFoundError(f"there is no {self._name}: {error.code}") from None
            why = _status(error.code)
            if error.code in _TRANSIENT:
                wish = error.headers.get("Retry-After", "")
                raise _Broken(why, float(wish) if _LENGTH.fullmatch(wish) else 0.0) from None
            if error.code == 416:
                raise self._changed() from None
            raise StoreError(f"cannot read {self._name}: {why}") from None
        except (http.client.InvalidURL, ValueError):
            raise LoadError(
                f"{self._name} is no address of the web, or the server redirects to none"
            ) from None
        return reply

    def _begin(self, reply: http.client.HTTPResponse) -> tuple[int, int | None]:
        """Where a reply's body begins in the file, and the file's size."""
        if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise StoreError(f"cannot read {self._name}: the server packed it as it was not asked")
        if reply.status == 206:
            match = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self._place:
                raise _Broken("the server sent another range than it was asked for")
            return self._place, self.total if match[2] == "*" else int(match[2])
        length = _LENGTH.fullmatch(reply.headers.get("Content-Length", ""))
        return 0, int(length[0]) if length else None

    def _begun(self, reply: http.client.HTTPResponse, total: int | None) -> None:
        etag = reply.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else reply.headers.get("Last-Modified")
        # A body that ends when the connection does may be any part of the file.
        self.is_told = total is not None or reply.chunked
        if self._place and (total != self.total or validator != self.validator):
            raise self._changed()
        self.total, self.validator = total, validator

    def _pass_by(self, reply: http.client.HTTPResponse) -> None:
        """Read again what was read already, and see that it is the same."""
        again = xxhash.xxh3_128()
        left = self._place
        while left:
            data = reply.read(min(left, _PIECE))
            if not data:
                raise _Broken("the body ended too early")
            again.update(data)
            left -= len(data)
        if again.digest() != self._digest.digest():
            raise self._changed()

    def _changed(self) -> ShardError:
        return ShardError(f"{self._name} changed while it was read")


class _breaking:  # noqa: N801 - used as a function
    """Turns what breaks a connection into `_Broken`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # URLError is an OSError; so are time-outs, resets and what TLS says.
        if isinstance(error, OSError | http.client.HTTPException):
            why = getattr(error, "reason", None) or error
            if isinstance(why, ssl.SSLCertVerificationError):
                raise StoreError(f"the server is not trusted: {why.verify_message}") from error
            raise _Broken(str(why) or type(why).__name__) from error


def _status(code: int) -> str:
    """What a server answered; in our words, for its own may hold anything."""
    if 300 <= code < 400:
        return f"the server redirects ({code}) in a circle, or to no address of the web"
    known = {status.value: status.phrase for status in HTTPStatus}
    return f"the server answered {code} {known.get(code, '')}".rstrip()


def _request(url: str) -> urllib.request.Request:
    """A request; user and password of the address are for its own server, wherever that redirects
    to."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise LoadError(f"{shown(url)} is no address of the web") from None
    if not parts.hostname:
        raise LoadError(f"{shown(url)} has no host")
    userinfo, _, host = parts.netloc.rpartition("@")
    path, query = (quote(part, string.punctuation) for part in (parts.path, parts.query))
    bare = urlunsplit((parts.scheme, host, path, query, ""))
    request = urllib.request.Request(bare)  # noqa: S310 - http or https
    request.add_header("Accept-Encoding", "identity")
    if userinfo:
        secret = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


@functools.lru_cache(maxsize=1)
def _client() -> urllib.request.OpenerDirector:
    """What opens http and https, by the proxies of the environment, and nothing else, wherever a
    server redirects to."""
    client = urllib.request.OpenerDirector()
    for kind in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        client.add_handler(kind())
    return client
