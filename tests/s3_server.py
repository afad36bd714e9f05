"""A real S3 server on loopback, and a proxy before it that breaks the network on demand."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import re
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""The program of a server: prints its port, and ends when its standard input does."""


class Fault(enum.Enum):
    """What can become of one request."""

    ERROR_500 = "500 InternalError; the request was not carried out"
    SLOW_DOWN = "503 SlowDown; the request was not carried out"
    CONFLICT = "409 ConditionalRequestConflict; the request was not carried out"
    DENIED = "403 AccessDenied; the request was not carried out"
    RESET_BEFORE = "the connection breaks; the request was not carried out"
    RESET_AFTER = "the connection breaks; the request was carried out, its answer is lost"
    CUT_BODY = "the body ends before the Content-Length"
    SHORT_BODY = "the body is shorter, and so say all the headers"
    NONE = "no fault"


@dataclass(frozen=True)
class Delay:
    """The answer comes late, by so many seconds."""

    seconds: float


Happening = Fault | Delay

_ERRORS = {
    Fault.ERROR_500: (500, "InternalError", "We encountered an internal error."),
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.DENIED: (403, "AccessDenied", "Access Denied"),
    Fault.CONFLICT: (409, "ConditionalRequestConflict", "A conflicting operation occurred."),
}
STORM = (
    Fault.ERROR_500,
    Fault.SLOW_DOWN,
    Fault.CONFLICT,
    Fault.RESET_BEFORE,
    Fault.RESET_AFTER,
    Fault.CUT_BODY,
    Fault.SHORT_BODY,
)


@dataclass(frozen=True)
class Request:
    """One request that reached the proxy, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    happening: Happening

    @property
    def conditional(self) -> bool:
        return self.method == "PUT" and "if-none-match" in self.headers


@dataclass
class _Script:
    method: str
    pattern: re.Pattern[str]
    happenings: Iterator[Happening]


@dataclass
class Faults:
    """Which requests fail, and how. Safe to change while requests are under way.

    A script holds what becomes of the first, second, ... request that fits it; after its end it
    is inert. Where no script applies, a storm strikes at random: the same requests for the same
    seed, whatever the order in which threads send them. A storm shortens only ranges, whose
    length the reader knows.
    """

    log: list[Request] = field(default_factory=list)
    _scripts: list[_Script] = field(default_factory=list)
    _rate: float = 0.0
    _seed: int = 0
    _kinds: tuple[Happening, ...] = STORM
    _seen: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def script(self, method: str, pattern: str, happenings: Iterable[Happening]) -> None:
        """Let ``happenings`` befall the requests of ``method`` whose path ``pattern`` finds."""
        with self._lock:
            self._scripts.append(_Script(method, re.compile(pattern), iter(happenings)))

    def storm(self, rate: float, seed: int, kinds: Collection[Happening] = STORM) -> None:
        """Let ``rate`` of all requests fail from now on, with one of ``kinds`` each."""
        with self._lock:
            self._rate, self._seed, self._kinds = rate, seed, tuple(kinds)
            self._seen.clear()

    def clear(self) -> None:
        """From now on nothing fails; the log is empty."""
        with self._lock:
            self._scripts.clear()
            self._rate = 0.0
            self.log.clear()

    def struck(self) -> Counter[Happening]:
        """How often each fault has struck since the log was last empty."""
        return Counter(r.happening for r in list(self.log) if r.happening is not Fault.NONE)

    def count(self, method: str, pattern: str = "") -> int:
        """Requests of ``method`` whose path ``pattern`` finds, faults included."""
        found = re.compile(pattern)
        return sum(r.method == method and bool(found.search(r.path)) for r in list(self.log))

    def judge(self, method: str, path: str, headers: dict[str, str]) -> Happening:
        with self._lock:
            happening = self._choose(method, path, headers)
            self.log.append(Request(method, path, headers, happening))
            return happening

    def _choose(self, method: str, path: str, headers: dict[str, str]) -> Happening:
        for script in self._scripts:
            if script.method == method and script.pattern.search(path):
                happening = next(script.happenings, None)
                if happening is not None:
                    return happening
        if not self._rate:
            return Fault.NONE
        spot = f"{self._seed} {method} {path} {headers.get('range')}"
        self._seen[spot] += 1
        chance = random.Random(f"{spot} {self._seen[spot]}")
        if chance.random() >= self._rate:
            return Fault.NONE
        return chance.choice([kind for kind in self._kinds if _fits(kind, method, headers)])


def _fits(kind: Happening, method: str, headers: dict[str, str]) -> bool:
    if kind is Fault.CONFLICT:
        return method == "PUT" and "if-none-match" in headers
    if kind is Fault.SHORT_BODY:
        return method == "GET" and "range" in headers
    return kind is not Fault.CUT_BODY or method == "GET"


class S3Server:
    """A moto server in a process of its own behind the faulty proxy; a context manager.

    The proxy carries out one conditional put at a time: moto looks first and writes then, which
    two requests could both pass, and S3 promises that they cannot.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.endpoint = ""
        self._upstream = 0
        self._loop = asyncio.new_event_loop()
        self._puts = asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3", daemon=True)

    def __enter__(self) -> Self:
        # The server ends when its standard input does, and so never outlives the tests.
        self._moto = subprocess.Popen(
            [sys.executable, "-c", MOTO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._moto.stdout is not None
        self._upstream = int(self._moto.stdout.readline())
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(timeout=30)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()
        self._moto.communicate(timeout=30)

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket, past the faults."""
        put = self._exchange("PUT", f"/{name}", {"host": "127.0.0.1"}, b"")
        status, _, _ = asyncio.run_coroutine_threadsafe(put, self._loop).result(timeout=30)
        assert status == 200

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection lives on."""
        first, headers = _parse(await reader.readuntil(b"\r\n\r\n"))
        method, path, _ = first.split(" ", 2)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _read_body(reader, headers)
        happening = self.faults.judge(method, path, headers)
        if happening is Fault.RESET_BEFORE:
            return _reset(writer)
        if happening in _ERRORS:
            status, answer_headers, answer = _error(_ERRORS[happening])
        else:
            status, answer_headers, answer = await self._exchange(method, path, headers, body)
        if happening is Fault.RESET_AFTER:
            return _reset(writer)
        if isinstance(happening, Delay):
            await asyncio.sleep(happening.seconds)
        cut = happening in (Fault.CUT_BODY, Fault.SHORT_BODY) and method == "GET" and answer
        sent = answer[: len(answer) // 2] if cut else answer
        if cut and happening is Fault.SHORT_BODY:
            drop = ("x-amz-checksum-", "etag", "content-range")
            answer_headers = {k: v for k, v in answer_headers.items() if not k.startswith(drop)}
            answer_headers["content-length"] = str(len(sent))
        if method == "HEAD":
            sent = b""
        lines = [f"{name}: {value}" for name, value in answer_headers.items()]
        writer.write("\r\n".join([f"HTTP/1.1 {status} -", *lines, "", ""]).encode() + sent)
        await writer.drain()
        return happening is not Fault.CUT_BODY

    async def _exchange(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request to the server behind and read its whole answer."""
        one_by_one = self._puts if method in ("PUT", "DELETE") else contextlib.nullcontext()
        async with one_by_one:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            try:
                passed = {
                    **{k: v for k, v in headers.items() if k not in ("expect", "connection")},
                    "content-length": str(len(body)),
                    "connection": "close",
                }
                passed.pop("transfer-encoding", None)
                lines = [f"{name}: {value}" for name, value in passed.items()]
                head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
                writer.write(head.encode("latin-1") + body)
                await writer.drain()
                first, answered = _parse(await reader.readuntil(b"\r\n\r\n"))
                answer = b"" if method == "HEAD" else await reader.read()
            finally:
                writer.close()
        assert "transfer-encoding" not in answered
        answered.pop("connection", None)
        if method != "HEAD":
            answered["content-length"] = str(len(answer))
        return int(first.split(" ")[1]), answered, answer


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _error(kind: tuple[int, str, str]) -> tuple[int, dict[str, str], bytes]:
    status, code, message = kind
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    ).encode()
    return status, {"content-type": "application/xml", "content-length": str(len(body))}, body


def _reset(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
