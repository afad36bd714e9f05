"""Fifty hosts on loopback, some of them dead, each in its own way: one process serves them all.

Host ``n`` is the address 127.0.1.(n + 1); that all of 127.0.0.0/8 is this machine is Linux's way.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FILMS = 8
DRIP_SECONDS = 0.2


class Way(enum.StrEnum):
    """What a host does with a request."""

    GOOD = "sends a video of a few kB, whose bytes no other address has"
    FLAKY = "answers 503 to the first request for each video, and sends it at the second"
    REFUSES = "refuses the connection"
    SILENT = "accepts the connection and never answers"
    RESETS = "breaks the connection off"
    ERRORS = "answers 500"
    BUSY = "answers 429, and asks for a second's patience"
    MISSING = "answers 404"
    PAGE = "sends a page that says so, with status 200"
    CUTS = "closes the connection in the middle of a video"
    DRIPS = "sends a byte now and then"
    LOOPS = "redirects to where it was asked"
    BABBLES = "does not speak HTTP"
    TORN = "sends the first half of a video as if it were all"

    @property
    def is_alive(self) -> bool:
        return self in (Way.GOOD, Way.FLAKY)


DEAD = tuple(way for way in Way if not way.is_alive)

REASONS: dict[Way, str] = {
    Way.REFUSES: "connect",
    Way.SILENT: "timeout",
    Way.RESETS: "reset",
    Way.ERRORS: "http_500",
    Way.BUSY: "http_429",
    Way.MISSING: "http_404",
    Way.PAGE: "not_video",
    Way.CUTS: "truncated",
    Way.DRIPS: "timeout",
    Way.LOOPS: "redirect_loop",
    Way.BABBLES: "bad_response",
    Way.TORN: "truncated",
}
"""The reason that rejects have, by what their host does."""

IN_TIME = {"timeout", "host_down"}
"""Reasons that any dead host's rejects may have: the time for all attempts was up, or the host was
given up before it was asked for all that it should have."""


def account(rows: Iterable[Mapping[str, Any]], table: Mapping[str, Way]) -> Counter[str]:
    """How many rows of the indexes have each outcome, a reason or ``ok``.

    Every address of the table must have one row, and an outcome that its host can bring about.
    """
    urls: Counter[str] = Counter()
    outcomes: Counter[tuple[Way, str]] = Counter()
    for row in rows:
        urls[row["url"]] += 1
        outcomes[table[row["url"]], row["reason"] or row["status"]] += 1
    assert urls == Counter(list(table))
    odd = {
        (way.name, outcome): count
        for (way, outcome), count in outcomes.items()
        if not (outcome == "ok" if way.is_alive else outcome in IN_TIME | {REASONS[way]})
    }
    assert odd == {}, odd
    total: Counter[str] = Counter()
    for (_, outcome), count in outcomes.items():
        total[outcome] += count
    return total


def ways_of(hosts: int, *, each: int = 1) -> list[Way]:
    """So many hosts dead in each way, and flaky ones; the rest of the hosts are good."""
    ways = [*DEAD, Way.FLAKY] * each
    return [*ways, *[Way.GOOD] * (hosts - len(ways))]


@dataclass
class HostFarm:
    """Serves on one port of all hosts while its ``with`` block lasts."""

    ways: Sequence[Way]

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="reelmill-farm-")
        _make_films(Path(self._folder.name))
        # It ends when its standard input does, and so never outlives the tests.
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._folder.name, *(way.name for way in self.ways)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def cpu_seconds(self) -> float:
        """CPU-seconds of the process that serves, so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def urls(self, count: int, dead: float) -> dict[str, Way]:
        """So many addresses in no order, a share of them at dead hosts; with what to expect.

        Each is a host's own: the n-th video of a host is at no other one.
        """
        groups = [
            [host for host, way in enumerate(self.ways) if way.is_alive == alive]
            for alive in (True, False)
        ]
        broken = round(count * dead)
        hosts = [
            group[number % len(group)]
            for group, some in zip(groups, (count - broken, broken), strict=True)
            for number in range(some)
        ]
        random.Random(5).shuffle(hosts)
        return {
            f"http://{_address(host)}:{self.port}/{number}.mp4": self.ways[host]
            for number, host in enumerate(hosts)
        }


def _make_films(folder: Path) -> None:
    # The process that serves needs none of this.
    from tests.stages.media_samples import make_video

    for number in range(FILMS):
        options = {"preset": "veryfast", "crf": str(24 + number)}
        make_video(folder / f"{number}.mp4", 10 + number, size=(96, 64), options=options)


def _address(host: int) -> str:
    return f"127.0.1.{host + 1}"


class _Connection(asyncio.Protocol):
    """One connection to a host, kept open from request to request."""

    def __init__(self, way: Way, films: Sequence[bytes], seen: set[str]) -> None:
        self._way = way
        self._films = films
        self._seen = seen
        self._waiting = b""
        self._drip: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._drip is not None:
            self._drip.cancel()

    def data_received(self, data: bytes) -> None:
        *requests, self._waiting = (self._waiting + data).split(b"\r\n\r\n")
        for request in requests:
            self._answer(request.split(b" ", 2)[1].decode("ascii"))

    def _answer(self, path: str) -> None:
        video = self._video(path)
        match self._way:
            case Way.GOOD:
                self._reply("200 OK", video)
            case Way.FLAKY if path in self._seen:
                self._reply("200 OK", video)
            case Way.FLAKY:
                self._seen.add(path)
                self._reply("503 Service Unavailable")
            case Way.RESETS:
                peer = self._transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            case Way.ERRORS:
                self._reply("500 Internal Server Error", b"something went wrong")
            case Way.BUSY:
                self._reply("429 Too Many Requests", b"", "Retry-After: 1")
            case Way.MISSING:
                self._reply("404 Not Found", b"no such video")
            case Way.PAGE:
                page = b"<!doctype html><html><title>Not found</title></html>"
                self._reply("200 OK", page, "Content-Type: text/html")
            case Way.CUTS:
                self._head("200 OK", len(video))
                self._transport.write(video[: len(video) // 2])
                self._transport.close()
            case Way.DRIPS:
                self._head("200 OK", 1 << 20)
                self._send_a_byte()
            case Way.LOOPS:
                self._reply("302 Found", b"", f"Location: {path}")
            case Way.BABBLES:
                self._transport.write(b"\x00\x01 what? \r\n\r\n")
                self._transport.close()
            case Way.TORN:
                self._reply("200 OK", video[: len(video) // 2])

    def _video(self, path: str) -> bytes:
        """The video at a path; a ``free`` box, which every reader skips, makes it the only one."""
        number = int(path.removeprefix("/").removesuffix(".mp4"))
        return self._films[number % FILMS] + (16).to_bytes(4) + b"free" + number.to_bytes(8)

    def _reply(self, status: str, body: bytes = b"", *headers: str) -> None:
        self._head(status, len(body), *headers)
        self._transport.write(body)

    def _head(self, status: str, size: int, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers, "", ""]
        self._transport.write("\r\n".join(lines).encode("ascii"))

    def _send_a_byte(self) -> None:
        self._transport.write(b"\0")
        loop = asyncio.get_running_loop()
        self._drip = loop.call_later(DRIP_SECONDS, self._send_a_byte)


async def _serve(folder: Path, ways: Sequence[Way]) -> None:
    films = [(folder / f"{number}.mp4").read_bytes() for number in range(FILMS)]
    loop = asyncio.get_running_loop()
    servers, port = [], 0
    for host, way in enumerate(ways):
        if way is not Way.REFUSES:
            seen: set[str] = set()
            server = await loop.create_server(
                lambda way=way, seen=seen: _Connection(way, films, seen),  # type: ignore[misc]
                _address(host),
                port,
                backlog=1024,
            )
            port = server.sockets[0].getsockname()[1]
            servers.append(server)
    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), [Way[name] for name in sys.argv[2:]]))
