"""Files over HTTP(S), from servers that nobody vouches for."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from reelmill.errors import Rejected
from reelmill.fetch.addresses import is_public
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer, media_type
from reelmill.fetch.urls import host_of, join

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_WHOLE: Final = frozenset({200, 203})
_TRANSIENT: Final = frozenset({408, 425, 429})
# What is read from the socket ahead of the hash and the disk, and handed to them at once.
_BLOCK_BYTES: Final = 256 << 10
_GZIP: Final = b"\x1f\x8b"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")


class _PrivateAddressError(OSError):
    """A connection to an address that is not public."""


def _public_socket(addr_info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    # The address here is the one that gets connected: after name resolution, after redirects, and
    # for IP literals too, which never see a resolver.
    family, kind, protocol, _, address = addr_info
    if not is_public(str(address[0])):
        raise _PrivateAddressError("the address is not public")
    return socket.socket(family, kind, protocol)


class HTTPSource:
    """One HTTP session with the manners and the guards of a policy."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        policy = self._policy
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ttl_dns_cache=60,
                    socket_factory=None if policy.allow_private else _public_socket,
                ),
                headers={
                    "Accept": "*/*",
                    "Accept-Encoding": "identity",
                    "User-Agent": policy.user_agent,
                },
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    connect=policy.connect_timeout_s, sock_read=policy.idle_timeout_s
                ),
                read_bufsize=_BLOCK_BYTES,
                auto_decompress=False,
                trust_env=False,
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt to bring ``transfer`` to its end, from where it stands.

        Raises:
            AttemptError: The attempt failed.
            StageError: The scratch directory cannot be written.
        """
        url = transfer.url
        headers: dict[str, str] = {}
        if transfer.size and transfer.etag:
            headers = {"Range": f"bytes={transfer.size}-", "If-Range": transfer.etag}
        for _ in range(self._policy.max_redirects + 1):
            started = False
            try:
                async with self._session.get(
                    URL(url, encoded=True), headers=headers, allow_redirects=False
                ) as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        started = True
                        transfer.final_url = url
                        await _receive(response, transfer)
                        return
            except aiohttp.ClientError as error:
                raise _failure(error, host_of(url), started) from error
            url = _redirected(url, location)
        raise AttemptError("redirect_loop", f"more than {self._policy.max_redirects} redirects")


def _redirected(url: str, location: str) -> str:
    try:
        target = join(url, location)
    except Rejected as rejected:
        raise AttemptError("bad_url", f"redirected to a bad URL: {rejected.message}") from rejected
    if not target.startswith(("http://", "https://")):
        raise AttemptError("bad_url", "redirected to a URL that is neither http nor https")
    return target


async def _receive(response: aiohttp.ClientResponse, transfer: Transfer) -> None:
    total = _begin(response, transfer)
    coding = _coding(response.headers)
    decoder = None if coding == "identity" else _Decoder(coding)
    waiting: list[bytes] = []
    size = 0

    async def hand_over() -> None:
        block = b"".join(waiting)
        waiting.clear()
        for piece in [block] if decoder is None else decoder.decode(block):
            await transfer.receive(piece)

    try:
        async for data in response.content.iter_any():
            waiting.append(data)
            size += len(data)
            if size >= _BLOCK_BYTES:
                size = 0
                await hand_over()
    except aiohttp.ClientError:
        # A further attempt resumes behind what came before the connection broke.
        await hand_over()
        raise
    await hand_over()
    if decoder is not None:
        decoder.end()
    if total is not None and transfer.size < total:
        raise _truncated()


class _Decoder:
    """Undoes a ``Content-Encoding``, a bounded piece at a time whatever the bytes expand to."""

    def __init__(self, coding: str) -> None:
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise AttemptError("bad_encoding", f"the body has the content encoding {coding:.40}")
        self._coding = coding
        self._inflate: zlib._Decompress | None = None
        self._rest = b""
        self._padding = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        data = self._rest + data
        self._rest = b""
        while data and not self._padding:
            if self._inflate is None:
                self._inflate = zlib.decompressobj(self._window_bits(data))
            elif self._inflate.eof:
                # A gzip file may have further members; anything else behind its end is padding.
                if len(data) < len(_GZIP):
                    self._rest = data
                    return
                self._padding = self._coding == "deflate" or not data.startswith(_GZIP)
                self._inflate = self._inflate if self._padding else None
                continue
            try:
                yield (piece := self._inflate.decompress(data, _BLOCK_BYTES))
                data = self._inflate.unconsumed_tail
                while len(piece) == _BLOCK_BYTES and not (data or self._inflate.eof):
                    yield (piece := self._inflate.decompress(b"", _BLOCK_BYTES))
            except zlib.error as error:
                raise _bad_encoding() from error
            data = data or self._inflate.unused_data

    def end(self) -> None:
        if self._inflate is not None and not self._inflate.eof:
            raise _bad_encoding()

    def _window_bits(self, data: bytes) -> int:
        if self._coding != "deflate":
            return 16 + zlib.MAX_WBITS
        # Some servers leave out the zlib header that the name stands for.
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS


def _begin(response: aiohttp.ClientResponse, transfer: Transfer) -> int | None:
    """Check the head of a reply against what was asked; return the whole size, if it is told."""
    status, headers = response.status, response.headers
    asked_for_rest = "Range" in response.request_info.headers
    if asked_for_rest and status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if (
            match is None
            or int(match[1]) != transfer.size
            or headers.get("ETag", transfer.etag) != transfer.etag
            or _coding(headers) != "identity"
        ):
            transfer.restart()
            raise _truncated()
        total = None if match[2] == "*" else int(match[2])
    elif asked_for_rest and status == 416:
        transfer.restart()
        raise _truncated()
    elif status in _WHOLE:
        transfer.restart()
        total = None
        etag = headers.get("ETag", "")
        if etag.startswith('"') and _coding(headers) == "identity":
            transfer.etag = etag
    else:
        raise AttemptError(
            f"http_{status}",
            _status_line(status),
            transient=status in _TRANSIENT or 500 <= status < 600,
            retry_after_s=_retry_after(headers),
        )
    transfer.check(transfer.size + (response.content_length or 0))
    transfer.content_type = media_type(headers.get("Content-Type"))
    return total


def _coding(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Encoding", "").strip().lower() or "identity"


def _bad_encoding() -> AttemptError:
    return AttemptError("bad_encoding", "the body is not encoded as its header says")


def _truncated() -> AttemptError:
    return AttemptError("truncated", "the body ended before its announced end", transient=True)


def _status_line(status: int) -> str:
    try:
        return f"the server answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the server answered {status}"


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else 0.0


def _failure(error: aiohttp.ClientError, host: str, started: bool) -> AttemptError:
    match error:
        case aiohttp.ClientConnectorDNSError():
            again = error.os_error.errno == socket.EAI_AGAIN
            return AttemptError("dns", f"{host} does not resolve", transient=again)
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", "") or "refused"
            return AttemptError("tls", f"the certificate of {host} is not valid: {why}")
        case aiohttp.ClientSSLError():
            return AttemptError("tls", f"{host} does not speak TLS as it should")
        case aiohttp.ClientConnectorError():
            if isinstance(error.os_error, _PrivateAddressError):
                return AttemptError("private_address", f"{host} has no public address")
            number = error.os_error.errno
            why = f": {os.strerror(number).lower()}" if number else ""
            return AttemptError("connect", f"cannot connect to {host}{why}", transient=True)
        case aiohttp.ConnectionTimeoutError():
            return AttemptError("connect", f"{host} was not reached in time", transient=True)
        case aiohttp.ServerTimeoutError():
            return AttemptError("timeout", f"{host} sent nothing for too long", transient=True)
        case aiohttp.ClientPayloadError():
            return _truncated()
        case aiohttp.ClientConnectionError() if started:
            return _truncated()
        case aiohttp.ClientConnectionError():
            return AttemptError("reset", f"{host} closed the connection", transient=True)
        case _:
            return AttemptError("bad_response", f"the reply of {host} is not valid HTTP")
