"""Files over HTTP(S), from servers that nobody vouches for."""

from __future__ import annotations

import os
import re
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

import pycurl

from reelmill.errors import Rejected
from reelmill.fetch.addresses import Resolver, is_address, is_public
from reelmill.fetch.curl import CurlError, Head, Session
from reelmill.fetch.manners import MAX_ROBOTS_BYTES, Manners
from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer, media_type
from reelmill.fetch.urls import join

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_WHOLE: Final = frozenset({200, 203})
_TRANSIENT: Final = frozenset({408, 425, 429})
_NAMED: Final = {401: "login", 407: "login", 410: "removed", 451: "geo"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# What is decoded at once, at most.
_BLOCK_BYTES: Final = 256 << 10
_GZIP: Final = b"\x1f\x8b"
# No number is longer than those of files: Python refuses to read very long ones.
_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_VERIFIED = re.compile(r"(?:verify result|problem): (.+?)(?: \([0-9]+\))?$")
# What servers say of their files is kept, and sent back to them, if it is nothing but text.
_TEXT = re.compile(r"[\x20-\x7e]{1,1000}")


class _CURLE:
    """Codes that pycurl has no names for."""

    PROXY: Final = 97
    TOO_LARGE: Final = 100


class HTTPSource(OpenSource):
    """Files by ``http`` and ``https`` URL, with the manners and the guards of a policy.

    Args:
        policy: The limits.
        resolver: Resolves the names of hosts; through a proxy, those which it can.
    """

    def __init__(self, policy: FetchPolicy, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._resolver = resolver or Resolver(policy.connect_timeout_s)
        self._manners = Manners(policy, self._read_robots)

    async def __aenter__(self) -> Self:
        policy = self._policy
        self._session = Session(
            user_agent=policy.user_agent,
            connect_timeout_s=policy.connect_timeout_s,
            idle_timeout_s=policy.idle_timeout_s,
            connections=2 * policy.concurrency,
            guard=None if policy.allow_private else is_public,
        )
        return self

    async def close(self) -> None:
        await self._manners.close()
        self._session.close()

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt to bring ``transfer`` to its end, from where it stands.

        Raises:
            AttemptError: The attempt failed.
            StageError: The scratch directory cannot be written.
        """
        await self._follow(transfer, self._manners)

    async def admit(self, url: str) -> None:
        """See whether the policy and the site let a normalised URL be asked for.

        Raises:
            AttemptError: as `Manners.admit`.
        """
        await self._manners.admit(url)

    async def read_range(self, transfer: Transfer, start: int, end: int) -> bytes | None:
        """Return bytes of the file of ``transfer``, whose head has arrived; None: not possible."""
        if not transfer.takes_ranges or transfer.total is None:
            return None
        part = _Part(transfer, start, end)
        try:
            await self._ask(transfer.final_url, part.conditions(), part)
        except AttemptError:
            return None
        return part.whole()

    async def _follow(self, transfer: Transfer, manners: Manners | None) -> None:
        url = transfer.url
        for _ in range(self._policy.max_redirects + 1):
            if manners is not None:
                await manners.admit(url)
            reply = _Reply(url, transfer, manners)
            await self._ask(url, reply.conditions(), reply)
            reply.end()
            if reply.location is None:
                return
            url = _redirected(url, reply.location)
        raise AttemptError("redirect_loop", f"more than {self._policy.max_redirects} redirects")

    async def _read_robots(self, url: str) -> bytes:
        policy = replace(self._policy, max_bytes=MAX_ROBOTS_BYTES, memory_bytes=MAX_ROBOTS_BYTES)
        transfer = Transfer("", url, policy, Path())
        await self._follow(transfer, None)
        return transfer.peek(0, transfer.size)

    async def _ask(self, url: str, headers: list[str], reply: _Reply | _Part) -> None:
        origin = _origin("/".join(url.split("/", 3)[:3]))
        host = origin.host
        proxy = _proxy(self._policy.proxy, origin.scheme, origin.netloc)
        resolved = await self._resolve(host, bool(proxy))
        if resolved:
            resolved = f"{host}:{origin.port}:{resolved}"
        try:
            await self._session.get(
                url, [*_HEADERS, *headers], reply, resolved=resolved, proxy=proxy
            )
        except CurlError as error:
            raise _failure(error, host, reply.begun, bool(proxy)) from error

    async def _resolve(self, host: str, proxied: bool) -> str:
        """Return the addresses to connect to, where these are ours to find."""
        if not proxied:
            if is_address(host):
                return ""
            return ",".join(map(_bracketed, await self._resolver.addresses(host)))
        if not self._policy.allow_private:
            # The proxy resolves the name itself, and may find what we do not; but what we know may
            # be private it is not asked for.
            try:
                found = [host] if is_address(host) else await self._resolver.addresses(host)
            except AttemptError:
                found = []
            if not all(map(is_public, found)):
                raise _private(host)
        return ""


class _Origin(NamedTuple):
    scheme: str
    netloc: str
    host: str
    port: int


@lru_cache(maxsize=4096)
def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return _Origin(parts.scheme, parts.netloc, parts.hostname or "", port)


_HEADERS: Final = ("Accept: */*", "Accept-Encoding: identity")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _proxy(policy: str | None, scheme: str, netloc: str) -> str:
    """Return the URL of the proxy for an address; empty: none."""
    if policy != "env":
        return policy or ""
    proxies = urllib.request.getproxies_environment()
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    if bypass(netloc, proxies):
        return ""
    return proxies.get(scheme) or proxies.get("all") or ""


def _redirected(url: str, location: str) -> str:
    try:
        target = join(url, location)
    except Rejected as rejected:
        raise AttemptError("bad_url", f"redirected to a bad URL: {rejected.message}") from rejected
    if not target.startswith(("http://", "https://")):
        raise AttemptError("bad_url", "redirected to a URL that is neither http nor https")
    return target


class _Reply:
    """What answers one request for a transfer: a redirect, or the file or its rest."""

    def __init__(self, url: str, transfer: Transfer, manners: Manners | None) -> None:
        self.location: str | None = None
        self.begun = False
        """Whether the head of the final reply has come."""
        self._url = url
        self._transfer = transfer
        self._manners = manners
        self._asked_for_rest = bool(transfer.size and transfer.validator)
        self._asked_if_new = False
        self._total: int | None = None
        self._decoder: _Decoder | None = None

    def conditions(self) -> list[str]:
        """Return the headers that make the request conditional."""
        transfer = self._transfer
        if self._asked_for_rest:
            return [f"Range: bytes={transfer.size}-", f"If-Range: {transfer.validator}"]
        names = ("If-None-Match", "If-Modified-Since")
        conditions = [
            f"{name}: {value}"
            for name, value in zip(names, transfer.known, strict=True)
            if value and _TEXT.fullmatch(value)
        ]
        self._asked_if_new = bool(conditions)
        return conditions

    def head(self, head: Head) -> bool:
        if self._manners is not None:
            self._manners.judge(head.headers)
        if head.status in _REDIRECTS and "location" in head.headers:
            self.location = head.headers["location"]
            return False
        self.begun = True
        transfer, headers = self._transfer, head.headers
        transfer.final_url = self._url
        transfer.status = head.status
        transfer.address = head.address or None
        if head.status == 304 and self._asked_if_new:
            transfer.restart()
            transfer.unchanged = True
            return False
        coding = _coding(headers)
        self._total = self._begin(head.status, headers, coding)
        length = _LENGTH.fullmatch(headers.get("content-length", ""))
        announced = transfer.size + int(length[0]) if length else None
        transfer.check(announced or 0)
        if coding == "identity":
            transfer.total = self._total or announced
            transfer.takes_ranges = headers.get("accept-ranges", "").lower() == "bytes"
        else:
            self._decoder = _Decoder(coding)
        transfer.content_type = media_type(_text(headers, "content-type"))
        transfer.etag = _text(headers, "etag")
        transfer.last_modified = _text(headers, "last-modified")
        return True

    def data(self, data: bytes) -> None:
        if self._decoder is None:
            self._transfer.append(data)
        else:
            for piece in self._decoder.decode(data):
                self._transfer.append(piece)

    def end(self) -> None:
        """See to it that the body is whole."""
        if self.location is None and not self.begun:
            raise _closed(urlsplit(self._url).hostname or "")
        if self._decoder is not None:
            self._decoder.end()
        if self._total is not None and self._transfer.size != self._total:
            if self._transfer.size > self._total:
                self._transfer.restart()
            raise _truncated()

    def _begin(self, status: int, headers: Mapping[str, str], coding: str) -> int | None:
        """Check the status against what was asked; return the whole size, if a range tells it."""
        transfer = self._transfer
        if self._asked_for_rest and status == 206:
            match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            # A server that heeds no If-Range, or an address that leads elsewhere now, would have
            # two files made into one.
            if (
                match is None
                or int(match[1]) != transfer.size
                or match[2] not in ("*", str(transfer.total or match[2]))
                or headers.get("etag") != transfer.validator
                or _without_query(self._url) != _without_query(transfer.validated_url)
                or coding != "identity"
            ):
                transfer.restart()
                raise _truncated()
            return transfer.total if match[2] == "*" else int(match[2])
        if self._asked_for_rest and status == 416:
            transfer.restart()
            raise _truncated()
        if status not in _WHOLE:
            raise AttemptError(
                _NAMED.get(status, f"http_{status}"),
                _status_line(status),
                transient=status in _TRANSIENT or 500 <= status < 600,
                retry_after_s=_retry_after(headers) if status in (429, 503) else 0.0,
            )
        transfer.restart()
        etag = _text(headers, "etag")
        if etag is not None and etag.startswith('"') and coding == "identity":
            transfer.validator, transfer.validated_url = etag, self._url
        return None


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


class _Part:
    """What answers a request for a range of a file whose head is known."""

    def __init__(self, transfer: Transfer, start: int, end: int) -> None:
        self.begun = False
        self._transfer = transfer
        self._start = start
        self._end = end
        self._data = bytearray()

    def conditions(self) -> list[str]:
        validator = self._transfer.validator
        condition = [f"If-Range: {validator}"] if validator else []
        return [f"Range: bytes={self._start}-{self._end - 1}", *condition]

    def head(self, head: Head) -> bool:
        self.begun = True
        match = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        return (
            head.status == 206
            and match is not None
            and int(match[1]) == self._start
            and match[2] in ("*", str(self._transfer.total))
            and _coding(head.headers) == "identity"
        )

    def data(self, data: bytes) -> None:
        if len(self._data) + len(data) > self._end - self._start:
            raise AttemptError("bad_response", "more bytes than were asked for")
        self._data += data

    def whole(self) -> bytes | None:
        """Return the bytes, if they are all there."""
        return bytes(self._data) if len(self._data) == self._end - self._start else None


def _without_query(url: str) -> str:
    """The part of a URL that stays when it is signed anew."""
    return url.partition("?")[0]


def _text(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name, "")
    return value if _TEXT.fullmatch(value) else None


def _coding(headers: Mapping[str, str]) -> str:
    return headers.get("content-encoding", "").lower() or "identity"


def _bad_encoding() -> AttemptError:
    return AttemptError("bad_encoding", "the body is not encoded as its header says")


def _truncated() -> AttemptError:
    return AttemptError("truncated", "the body ended before its announced end", transient=True)


def _closed(host: str) -> AttemptError:
    return AttemptError("reset", f"{host} closed the connection", transient=True)


def _private(host: str) -> AttemptError:
    return AttemptError("private_address", f"{host} has no public address")


def _status_line(status: int) -> str:
    try:
        return f"the server answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the server answered {status}"


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else 0.0


def _failure(error: CurlError, host: str, begun: bool, proxied: bool) -> AttemptError:
    if error.refused:
        return _private(host)
    if error.too_long:
        return AttemptError("bad_response", f"the reply of {host} is not valid HTTP")
    if error.stalled:
        return AttemptError("timeout", f"{host} sent nothing for too long", transient=True)
    match error.code:
        case pycurl.E_COULDNT_RESOLVE_HOST:
            return AttemptError("dns", f"{host} does not resolve", transient=True)
        case pycurl.E_PEER_FAILED_VERIFICATION:
            match = _VERIFIED.search(error.why)
            why = match[1] if match else "it is for another host"
            return AttemptError("tls", f"the certificate of {host} is not valid: {why}")
        case pycurl.E_SSL_CACERT_BADFILE:
            return AttemptError("tls", "the file of trusted authorities cannot be read")
        case pycurl.E_SSL_CONNECT_ERROR if not error.errno:
            return AttemptError("tls", f"{host} does not speak TLS as it should")
        case _ if proxied and error.why.startswith("CONNECT"):
            return AttemptError("proxy", f"the proxy refuses {host}", transient=True)
        case pycurl.E_COULDNT_RESOLVE_PROXY | pycurl.E_COULDNT_CONNECT | _CURLE.PROXY if proxied:
            return AttemptError("proxy", "the proxy was not reached", transient=True)
        case pycurl.E_COULDNT_CONNECT:
            why = f": {os.strerror(error.errno).lower()}" if error.errno else ""
            return AttemptError("connect", f"cannot connect to {host}{why}", transient=True)
        case pycurl.E_OPERATION_TIMEDOUT:
            return AttemptError("connect", f"{host} was not reached in time", transient=True)
        case pycurl.E_UNSUPPORTED_PROTOCOL | pycurl.E_FTP_WEIRD_SERVER_REPLY | _CURLE.TOO_LARGE:
            return AttemptError("bad_response", f"the reply of {host} is not valid HTTP")
        case _ if begun:
            return _truncated()
        case _:
            return _closed(host)
