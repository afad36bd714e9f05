"""libcurl in an event loop: GET requests, one after another on connections that are kept."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import certifi
import pycurl

MAX_HEAD_BYTES: Final = 64 << 10
"""Size in bytes of all headers of one request, above which its reply is no HTTP to us."""

_BUFFER_BYTES: Final = 512 << 10
# A body that nobody wants is read to its end all the same, so that the connection can be used
# again, if that takes no more than this.
_DRAIN_BYTES: Final = 64 << 10
_DRAIN_S: Final = 2.0
_SHORT = re.compile(r"[0-9]{1,8}")
_STATUS = re.compile(r"HTTP/[0-9.]+ ([0-9]{3})(?![0-9])")
_SYSTEM_CERTIFICATES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_STALLED: Final = -1


class Head(NamedTuple):
    """The status and the headers of a reply; names in lower case, repeated ones joined."""

    status: int
    headers: dict[str, str]
    address: str


class Receiver(Protocol):
    """Takes a reply in as it arrives. What a method raises ends the request, and reaches it."""

    def head(self, head: Head) -> bool:
        """Take the head of the reply; return whether its body is wanted."""

    def data(self, data: bytes) -> None:
        """Take the next bytes of the body, as they were sent."""


class CurlError(Exception):
    """A request that got no whole reply.

    Attributes:
        code: libcurl's.
        why: What libcurl says.
        errno: Of the operating system, or 0.
        stalled: Nothing came for too long.
        too_long: The head of the reply was too long.
        refused: No address was allowed.
    """

    def __init__(self, handle: _Handle, code: int) -> None:
        self.code = code
        self.why: str = handle.curl.errstr()
        self.errno: int = handle.curl.getinfo(pycurl.OS_ERRNO)
        self.stalled = code == _STALLED
        self.too_long = handle.head_bytes > MAX_HEAD_BYTES
        self.refused = handle.refused and not handle.opened
        super().__init__(f"{code}: {self.why}")


def certificates() -> str:
    """Return the file of the authorities to trust: ``SSL_CERT_FILE``, the system's, certifi's."""
    # A directory would serve too, but libcurl then reads it anew for every connection.
    stated = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    for path in filter(None, (stated, *_SYSTEM_CERTIFICATES)):
        if Path(path).is_file():
            return path
    return certifi.where()


class Session:
    """Requests in the running loop, over connections that live as long as the session.

    Args:
        user_agent: Printable ASCII.
        connect_timeout_s: Seconds for TCP and TLS.
        idle_timeout_s: Seconds without a byte after which a request is given up.
        connections: Kept open for further requests, at most.
        guard: Says of an address, before it is connected, whether it may be; None: any may.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        connect_timeout_s: float,
        idle_timeout_s: float,
        connections: int,
        guard: Callable[[str], bool] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_timeout_s = idle_timeout_s
        self._guard = guard
        authorities = certificates()
        self._options = (
            (pycurl.USERAGENT, user_agent),
            (pycurl.CONNECTTIMEOUT_MS, max(1, round(connect_timeout_s * 1000))),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.HTTP09_ALLOWED, 0),
            (pycurl.HTTP_CONTENT_DECODING, 0),
            (pycurl.NETRC, pycurl.NETRC_IGNORED),
            # Whoever asks says whether there is a proxy: by libcurl's own reading of no_proxy a
            # request would leave it, and with it the guard.
            (pycurl.NOPROXY, ""),
            (pycurl.CAINFO, authorities),
            (pycurl.PROXY_CAINFO, authorities),
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.BUFFERSIZE, _BUFFER_BYTES),
            (pycurl.PATH_AS_IS, 1),
            (pycurl.NOSIGNAL, 1),
            (pycurl.NOPROGRESS, 1),
        )
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._watched: dict[int, int] = {}
        self._timer: asyncio.Handle | None = None
        self._sweeper: asyncio.Handle | None = None
        self._idle: list[_Handle] = []
        self._active: dict[Any, _Handle] = {}

    def close(self) -> None:
        """Close the connections. No request may be under way."""
        assert not self._active
        for handle in self._idle:
            handle.curl.close()
        self._multi.close()
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        for descriptor in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, descriptor, None, None)

    async def get(
        self,
        url: str,
        headers: Sequence[str],
        receiver: Receiver,
        *,
        resolved: str = "",
        proxy: str = "",
    ) -> None:
        """Send one request, and give the reply to ``receiver``.

        Args:
            url: Normalised, ``http`` or ``https``.
            headers: Whole lines, without their ends.
            receiver: Called in this thread, while this coroutine waits.
            resolved: ``host:port:address,...``: the addresses of the URL's host.
            proxy: URL of the proxy to use, whose address is not guarded; empty: none.

        Raises:
            CurlError: There was no whole reply; its head may have been received all the same.
        """
        handle = self._idle.pop() if self._idle else _Handle(self._options, self._guard)
        curl = handle.curl
        handle.begin(receiver, self._loop.create_future(), bool(proxy))
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.PROXY, proxy)
        curl.setopt(pycurl.RESOLVE, [resolved] if resolved else [])
        self._active[curl] = handle
        self._multi.add_handle(curl)
        if self._sweeper is None:
            self._sweep()
        try:
            code = await handle.ended
        finally:
            if self._active.pop(curl, None) is not None:
                self._multi.remove_handle(curl)
            error = handle.error
            verdict = handle.draining is not None
            handle.error = handle.receiver = None
            self._idle.append(handle)
        if error is not None:
            raise error
        if code and not verdict:
            raise CurlError(handle, code)

    # What libcurl wants of the loop.

    def _watch(self, what: int, descriptor: int, _multi: Any, _data: Any) -> None:
        wanted = 0 if what == pycurl.POLL_REMOVE else what
        changed = wanted ^ self._watched.get(descriptor, 0)
        if changed & pycurl.POLL_IN:
            if wanted & pycurl.POLL_IN:
                self._loop.add_reader(descriptor, self._act, descriptor, pycurl.CSELECT_IN)
            else:
                self._loop.remove_reader(descriptor)
        if changed & pycurl.POLL_OUT:
            if wanted & pycurl.POLL_OUT:
                self._loop.add_writer(descriptor, self._act, descriptor, pycurl.CSELECT_OUT)
            else:
                self._loop.remove_writer(descriptor)
        if wanted:
            self._watched[descriptor] = wanted
        else:
            self._watched.pop(descriptor, None)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds == 0:
            self._timer = self._loop.call_soon(self._act, pycurl.SOCKET_TIMEOUT, 0)
        elif milliseconds > 0:
            self._timer = self._loop.call_later(
                milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0
            )

    # What the loop tells libcurl.

    def _act(self, descriptor: int, events: int) -> None:
        _, running = self._multi.socket_action(descriptor, events)
        if running < len(self._active):
            self._collect()

    def _collect(self) -> None:
        more = 1
        while more:
            more, whole, broken = self._multi.info_read()
            for curl in whole:
                self._end(self._active[curl], 0)
            for curl, code, _ in broken:
                self._end(self._active[curl], code)

    def _sweep(self) -> None:
        now = monotonic()
        for handle in list(self._active.values()):
            if handle.is_late(now, self._idle_timeout_s):
                self._end(handle, _STALLED)
        interval = min(1.0, self._idle_timeout_s / 4)
        self._sweeper = self._loop.call_later(interval, self._sweep) if self._active else None

    def _end(self, handle: _Handle, code: int) -> None:
        del self._active[handle.curl]
        self._multi.remove_handle(handle.curl)
        if not handle.ended.done():
            handle.ended.set_result(code)


class _Handle:
    """One of libcurl's handles, and the request that it is at.

    Nothing may be raised in a callback: libcurl would not hear of it. What goes wrong is kept.
    """

    def __init__(
        self, options: Sequence[tuple[int, Any]], guard: Callable[[str], bool] | None
    ) -> None:
        self.curl = pycurl.Curl()
        for option, value in options:
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.PREREQFUNCTION, self._on_request)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_data)
        if guard is not None:
            self._guard = guard
            self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)

    def begin(self, receiver: Receiver, ended: asyncio.Future[int], proxied: bool) -> None:
        self.receiver: Receiver | None = receiver
        self.ended = ended
        self.proxied = proxied
        self.error: BaseException | None = None
        self.opened = self.refused = False
        self.head_bytes = 0
        self.draining: float | None = None
        """When the body turned out to be of no interest."""
        self._address = ""
        self._lines: list[bytes] = []
        self._has_head = False
        self._drained = 0
        self._touched: float | None = None

    def is_late(self, now: float, idle_timeout_s: float) -> bool:
        """Whether the server has been silent for too long, or drags out what nobody wants."""
        if self.draining is not None and now - self.draining > _DRAIN_S:
            return True
        return self._touched is not None and now - self._touched >= idle_timeout_s

    def _open_socket(self, _purpose: int, address: Any) -> socket.socket | int:
        # The address here is the one that gets connected: after name resolution, after redirects,
        # and for IP literals too, which never see a resolver.
        try:
            if not self.proxied and not self._guard(str(address.addr[0])):
                self.refused = True
                return int(pycurl.SOCKET_BAD)
            opened = socket.socket(address.family, address.socktype, address.protocol)
        except (OSError, ValueError):
            return int(pycurl.SOCKET_BAD)
        self.opened = True
        return opened

    def _on_request(self, address: str, *_: object) -> int:
        # The connection stands: from now on the server is to say something.
        self._address = "" if self.proxied else address
        self._touched = monotonic()
        return int(pycurl.PREREQFUNC_OK)

    def _on_header(self, line: bytes) -> int | None:
        self.head_bytes += len(line)
        if self.head_bytes > MAX_HEAD_BYTES:
            return 0
        self._lines.append(line)
        if len(line) > 2:
            return None
        # An empty line ends the head; or what a proxy says before there is a connection to the
        # server; or what may come behind a body.
        counts = self._touched is not None and not self._has_head
        taken = not counts or self._on_head()
        self._lines.clear()
        return None if taken else 0

    def _on_head(self) -> bool:
        self._touched = monotonic()
        head = _parse(self._lines, self._address)
        if 100 <= head.status < 200:
            return True
        self._has_head = True
        assert self.receiver is not None
        try:
            wanted = self.receiver.head(head)
        except BaseException as error:
            self.error = error
            wanted = False
        if not wanted:
            self.draining = monotonic()
            size = head.headers.get("content-length", "0")
            return bool(_SHORT.fullmatch(size)) and int(size) <= _DRAIN_BYTES
        return True

    def _on_data(self, data: bytes) -> int:
        if self.draining is not None:
            self._drained += len(data)
            return len(data) if self._drained <= _DRAIN_BYTES else 0
        self._touched = monotonic()
        assert self.receiver is not None
        try:
            self.receiver.data(data)
        except BaseException as error:
            self.error = error
            return 0
        return len(data)


def _parse(lines: Sequence[bytes], address: str) -> Head:
    first, *rest = b"".join(lines).decode("utf-8", "surrogateescape").split("\n")
    status = _STATUS.match(first)
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Head(int(status[1]) if status else 0, headers, address)
