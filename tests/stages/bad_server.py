"""An HTTP server on loopback that misbehaves on the wire, byte by byte as each test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self


@dataclass
class Exchange:
    """One request, and the wire to answer on. The connection closes when its handler returns."""

    path: str
    headers: dict[str, str]
    number: int
    """How many requests this path has had, this one included."""
    _writer: asyncio.StreamWriter
    connection: int = 0
    """Number of the connection that it came by."""
    _kept: bool = False

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, **headers: object) -> None:
        """Send the status and the headers; an underscore in a name stands for a hyphen."""
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Odd"
        lines = [f"HTTP/1.1 {status} {phrase}"] + ["Connection: close"] * (not self._kept)
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def reply(self, status: int = 200, body: bytes = b"", **headers: object) -> None:
        await self.head(status, **{"Content_Length": len(body), **headers})
        await self.send(body)

    async def reset(self) -> None:
        """Break the connection off with a TCP reset, after what was sent has arrived."""
        await asyncio.sleep(0.1)
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def range_start(self) -> int | None:
        value = self.headers.get("range")
        return int(value.removeprefix("bytes=").removesuffix("-")) if value else None


Handler = Callable[[Exchange], Awaitable[None]]


class ThreadServer:
    """A server on a free port of ``host``, in the event loop of a thread of its own, while its
    ``with`` block lasts."""

    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, self.host, 0, ssl=self.tls, backlog=512)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


@dataclass
class BadServer(ThreadServer):
    """Answers as its tests have it."""

    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    keep_alive: bool = False
    """Whether a connection serves further requests; all replies must then tell their length."""
    requests: list[Exchange] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    _handlers: dict[str, Handler] = field(default_factory=dict)
    _hits: Counter[str] = field(default_factory=Counter)

    def on(self, path: str, handler: Handler | None = None, **reply: Any) -> str:
        """Answer ``path`` (its query ignored) with a handler or a plain reply; return its URL."""

        async def plain(exchange: Exchange) -> None:
            await exchange.reply(**reply)

        self._handlers[path] = handler or plain
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{path}"

    def seen(self, path: str) -> list[Exchange]:
        return [request for request in self.requests if request.path == path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        gone = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            start = await reader.readexactly(1)
            if start == b"\x16":
                # What real servers say to a TLS handshake on a plain port.
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                writer.close()
                return
            await self._answer(start + await reader.readuntil(b"\r\n\r\n"), writer, number)
            while self.keep_alive:
                await self._answer(await reader.readuntil(b"\r\n\r\n"), writer, number)
        writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter, number: int) -> None:
        head = request.decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1].partition("?")[0]
        headers = {}
        for line in filter(None, head[1:]):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._hits[path] += 1
        exchange = Exchange(path, headers, self._hits[path], writer, number, self.keep_alive)
        self.requests.append(exchange)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._handlers[path](exchange)
        finally:
            self.in_flight -= 1
