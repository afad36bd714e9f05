"""Servers that misbehave at random: every row gets one outcome, and every file is one version."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reelmill.errors import Rejected
from reelmill.fetch.fetcher import Fetched, FetchPolicy, Outcome, Request, fetch_all, fetch_iter

from .bad_server import BadServer, Exchange

PATHS = [f"/{number}" for number in range(20)]
SIZES = (0, 10, 5_000, 70_000, 300_000)
VERSIONS = (0, 1)
KINDS = (
    "whole whole cut cut cut cut reset busy away loop noise slow gzip torn short chunked trailers "
    "unasked unchanged missing"
)


def body(path: str, version: int) -> bytes:
    """Two versions of a file; one of a file that is not empty is longer."""
    size = SIZES[int(path[1:]) % len(SIZES)]
    return random.Random(f"{path} {version}").randbytes(size + (version if size else 0))


async def serve_rest(exchange: Exchange, chance: random.Random, data: bytes, etag: str) -> None:
    """Answer a request for a range, heeding its condition or not."""
    first, _, last = exchange.headers["range"].removeprefix("bytes=").partition("-")
    start = int(first)
    part = data[start : int(last) + 1 if last else len(data)]
    if not part:
        await exchange.reply(416)
    elif chance.random() < 0.5 and exchange.headers.get("if-range") != etag:
        await exchange.reply(200, data, ETag=etag)
    else:
        span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        told = {"ETag": etag} if chance.random() < 0.6 else {}
        await exchange.reply(206, part, Content_Range=span, **told)


async def misbehave(exchange: Exchange, chance: random.Random) -> None:
    version = chance.choice(VERSIONS)
    data, etag = body(exchange.path, version), f'"{version}"'
    kind = chance.choice(KINDS.split())
    if "range" in exchange.headers and chance.random() < 0.8:
        await serve_rest(exchange, chance, data, etag)
        return
    match kind:
        case "cut":
            await exchange.head(Content_Length=len(data), ETag=etag, Accept_Ranges="bytes")
            await exchange.send(data[: chance.randrange(len(data) + 1)])
        case "reset":
            await exchange.reset()
        case "busy":
            await exchange.reply(503, Retry_After=chance.choice(["0", "x", "9" * 20]))
        case "away":
            await exchange.reply(302, b"x" * 100_000, Location=f"{exchange.path}?{chance.random()}")
        case "loop":
            await exchange.reply(302, Location=exchange.path)
        case "noise":
            await exchange.send(chance.randbytes(2000))
        case "slow":
            await exchange.head(Content_Length=len(data), ETag=etag)
            await asyncio.sleep(chance.choice([0.01, 1]))
            await exchange.send(data)
        case "gzip" | "torn":
            packed = gzip.compress(data, 1)
            packed = packed if kind == "gzip" else packed[:-5]
            await exchange.reply(200, packed, Content_Encoding="gzip", ETag=etag)
        case "short":
            await exchange.head(Content_Length=len(data) + 100, ETag=etag)
            await exchange.send(data)
        case "chunked" | "trailers":
            await exchange.head(Transfer_Encoding="chunked", ETag=etag)
            await exchange.send(b"%x\r\n%s\r\n" % (len(data), data) if data else b"")
            more = b"X: y\r\n" * 20_000 if kind == "trailers" else b""
            await exchange.send(b"0\r\n" + more + b"\r\n")
        case "unasked":
            await exchange.reply(206, data, ETag=etag)
        case "unchanged":
            await exchange.reply(304)
        case "missing":
            await exchange.reply(404, b"x" * 100_000)
        case _:
            await exchange.reply(200, data, ETag=etag, Accept_Ranges="bytes")


class Inspect:
    """Refuses some files, and wants to see the end of others."""

    head_bytes = 2000

    def __call__(
        self, head: bytes, size: int | None, tail: tuple[int, bytes] | None
    ) -> tuple[int, int] | None:
        if head[0] % 16 == 0:
            raise Rejected("unwanted", "not wanted")
        return (size - 500, size) if size and tail is None and head[0] % 4 == 0 else None


def policy(chance: random.Random) -> FetchPolicy:
    return FetchPolicy(
        concurrency=chance.choice([2, 32]),
        per_host=chance.choice([2, 8]),
        timeout_s=3,
        connect_timeout_s=1,
        idle_timeout_s=0.3,
        attempts=chance.choice([1, 4]),
        backoff_s=0.01,
        deadline_s=chance.choice([None, 0.5]),
        host_failures=chance.choice([2, 20]),
        host_pause_s=0.05,
        max_redirects=2,
        allow_private=True,
        inspector=chance.choice([None, Inspect()]),
        memory_bytes=chance.choice([1000, 1 << 20]),
    )


@pytest.fixture(scope="module")
def servers() -> Iterator[list[BadServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(BadServer(host=f"127.0.0.{n}")) for n in (1, 2, 3)]


@pytest.mark.parametrize("seed", range(12))
def test_every_row_ends_once_and_every_file_is_one(
    servers: list[BadServer], tmp_path: Path, seed: int
) -> None:
    chance, answers = random.Random(seed), random.Random(seed)

    async def answer(exchange: Exchange) -> None:
        await misbehave(exchange, answers)

    urls = [server.on(path, answer) for server in servers for path in PATHS]
    urls += ["http://127.0.0.9:1/x", "no URL", "http://name.invalid/x", "file:///etc/passwd"] * 3
    rows = [
        Request(f"{number}", chance.choice(urls), chance.choice([None, '"0"', '"\r\nX: y"']))
        for number in range(100)
    ]
    stop = chance.choice([None, None, 5])
    ends: Counter[str] = Counter()

    def take(key: str, outcome: Outcome) -> bool:
        ends[key] += 1
        if isinstance(outcome, Fetched):
            with outcome as file:
                path = "/" + file.url.rpartition("/")[2]
                assert file.read() in [body(path, version) for version in VERSIONS]
        return stop is None or len(ends) < stop

    async def consume() -> None:
        found = fetch_all(rows, policy(chance), tmp_path)
        try:
            async for key, outcome in found:
                if not take(key, outcome):
                    break
        finally:
            await found.aclose()

    if chance.random() < 0.3:
        asyncio.run(consume())
    else:
        found = fetch_iter(rows, policy(chance), tmp_path)
        for key, outcome in found:
            if not take(key, outcome):
                break
        found.close()
    assert set(ends.values()) == {1}
    assert stop or len(ends) == len(rows)
    assert list(tmp_path.iterdir()) == []
