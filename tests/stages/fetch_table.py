"""What a server can do, and what becomes of the file: the table of docs/fetching.md.

``python -m tests.stages.fetch_table`` brings the tables in that document up to date.
"""

from __future__ import annotations

import asyncio
import datetime
import gzip
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from reelmill.fetch.transfer import REASONS

from .bad_server import BadServer, Exchange, Handler
from .certificates import Authority

DOCUMENT = Path(__file__).parents[2] / "docs" / "fetching.md"
BODY = bytes(range(256)) * 1024  # 256 KiB
FILE = "the file"


class Arena:
    """Servers for one case: a plain one, and others that it may start."""

    def __init__(self, authority: Authority, stack: ExitStack) -> None:
        self.authority = authority
        self._stack = stack
        self.server = self.start()

    def start(self, **options: Any) -> BadServer:
        return self._stack.enter_context(BadServer(**options))

    def tls(self, **options: Any) -> BadServer:
        return self.start(tls=self.authority.context(**options))


@dataclass(frozen=True)
class Case:
    """``does`` completes "The server …"; ``becomes`` is a reason, or `FILE`."""

    does: str
    becomes: str
    attempts: int
    serve: Callable[[Arena], str]
    policy: dict[str, Any] = field(default_factory=dict)
    public: str | None = None
    """The only address that counts as public; None: all may be reached."""


def raw(*pieces: bytes | float, then: str = "close") -> Handler:
    """Send bytes, and wait for seconds, as told; then close, reset or hang."""

    async def handler(exchange: Exchange) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                await exchange.send(piece)
            else:
                await asyncio.sleep(piece)
        if then == "reset":
            await exchange.reset()
        elif then == "hang":
            await asyncio.sleep(60)

    return handler


def trickle(head: bytes, piece: bytes) -> Handler:
    async def handler(exchange: Exchange) -> None:
        await exchange.send(head)
        while True:
            await exchange.send(piece)
            await asyncio.sleep(0.02)

    return handler


def endless(head: bytes) -> Handler:
    async def handler(exchange: Exchange) -> None:
        await exchange.send(head)
        while True:
            await exchange.send(BODY)

    return handler


def first(status: int, **headers: Any) -> Handler:
    """Refuse the first request, and serve the file from then on."""

    async def handler(exchange: Exchange) -> None:
        if exchange.number == 1:
            made = {name: value() if callable(value) else value for name, value in headers.items()}
            await exchange.reply(status, **made)
        else:
            await exchange.reply(200, BODY)

    return handler


def broken(etag: str | None, ranges: bool = True) -> Handler:
    """Break the first body off, then serve what is asked for."""

    async def handler(exchange: Exchange) -> None:
        headers = {"ETag": etag} if etag else {}
        start = exchange.range_start()
        if exchange.number == 1:
            await exchange.head(Content_Length=len(BODY), **headers)
            await exchange.send(BODY[:100_000])
            await exchange.reset()
        elif start is None or not ranges:
            await exchange.reply(200, BODY, **headers)
        else:
            span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
            await exchange.reply(206, BODY[start:], Content_Range=span, **headers)

    return handler


def moment() -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    return format_datetime(at, usegmt=True)


def bomb() -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()


def on(handler: Handler | None = None, **reply: Any) -> Callable[[Arena], str]:
    return lambda arena: arena.server.on("/a", handler, **reply)


def to(location: str) -> Callable[[Arena], str]:
    return on(status=302, Location=location)


def inside(arena: Arena) -> str:
    secret = arena.start(host="127.0.0.2").on("/secret", body=b"secret")
    return arena.server.on("/a", status=302, Location=secret)


def over_tls(**options: Any) -> Callable[[Arena], str]:
    return lambda arena: arena.tls(**options).on("/a", body=BODY)


def robots(rules: bytes, status: int = 200) -> Callable[[Arena], str]:
    def serve(arena: Arena) -> str:
        arena.server.on("/robots.txt", status=status, body=rules)
        return arena.server.on("/a", body=BODY)

    return serve


OK = b"HTTP/1.1 200 OK\r\n"
SOON = {"idle_timeout_s": 0.3}
DENIED = b"User-agent: *\nDisallow: /a\n"

CASES = [
    Case("sends the file", FILE, 1, on(body=BODY)),
    Case("sends it over TLS", FILE, 1, over_tls()),
    Case("sends a page instead (200, `text/html`)", FILE, 1, on(body=b"<html>Log in</html>")),
    Case("sends one byte of its head after another", "timeout", 2, on(trickle(OK, b"x")), SOON),
    Case(
        "sends one byte of the body after another",
        "timeout",
        1,
        on(trickle(OK + b"Content-Length: 9999\r\n\r\n", b"x")),
        {"timeout_s": 0.6},
    ),
    Case("accepts, and says nothing", "timeout", 2, on(raw(then="hang")), SOON),
    Case("closes before it answers", "reset", 2, on(raw())),
    Case("resets the connection before it answers", "reset", 2, on(raw(then="reset"))),
    Case("closes within its head", "reset", 2, on(raw(b"HTTP/1.1 200 OK\r\nContent-"))),
    Case("breaks off once; a strong `ETag`: the rest is asked for", FILE, 2, on(broken('"v"'))),
    Case("breaks off once, and refuses ranges", FILE, 2, on(broken('"v"', ranges=False))),
    Case("breaks off once, without a strong `ETag`: it starts anew", FILE, 2, on(broken('W/"v"'))),
    Case(
        "sends less than its `Content-Length`",
        "truncated",
        2,
        on(body=b"short", Content_Length=100),
    ),
    Case(
        "sends more than its `Content-Length`: what is too much is left",
        FILE,
        1,
        on(raw(OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + b"more")),
    ),
    Case(
        "ends within a chunk",
        "truncated",
        2,
        on(raw(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello")),
    ),
    Case("sends without end", "too_large", 1, on(endless(OK + b"\r\n"))),
    Case(
        "announces a file that is too large, and sends nothing",
        "too_large",
        1,
        on(raw(OK + b"Content-Length: 99999999999\r\n\r\n", then="hang")),
    ),
    Case(
        "sends a gzip bomb",
        "too_large",
        1,
        on(body=bomb(), Content_Encoding="gzip"),
    ),
    Case(
        "packs the body with gzip", FILE, 1, on(body=gzip.compress(BODY), Content_Encoding="gzip")
    ),
    Case("says gzip, and sends none", "bad_encoding", 1, on(body=BODY, Content_Encoding="gzip")),
    Case("uses an encoding that is not ours", "bad_encoding", 1, on(Content_Encoding="br")),
    Case("speaks no HTTP", "bad_response", 1, on(raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", then="hang"))),
    Case(
        "sends a head of 100 kB",
        "bad_response",
        1,
        on(raw(OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n", then="hang")),
    ),
    Case(
        "sends headers without end",
        "bad_response",
        1,
        on(trickle(OK, b"X: y\r\n" * 1000)),
    ),
    Case(
        "contradicts itself in two `Content-Length`",
        "bad_response",
        1,
        on(raw(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")),
    ),
    Case("redirects to itself", "redirect_loop", 1, to("/a")),
    Case("redirects to a private address", "private_address", 1, inside, {}, "127.0.0.1"),
    Case("redirects to `file:`", "bad_url", 1, to("file:///etc/passwd"), {"allow_file": True}),
    Case("redirects to a URL with a password", "bad_url", 1, to("http://me:secret@127.0.0.1/")),
    Case(
        "redirects to where the policy opts out",
        "opted_out",
        1,
        to("http://a.example/"),
        {"opt_out": ("example",)},
    ),
    Case("is at a private address", "private_address", 1, on(body=BODY), {}, "192.0.2.1"),
    Case("answers 429 with `Retry-After` in seconds", FILE, 2, on(first(429, Retry_After=1))),
    Case("answers 429 with `Retry-After` as a date", FILE, 2, on(first(429, Retry_After=moment))),
    Case("answers 503 once", FILE, 2, on(first(503))),
    Case("answers 503 always", "http_503", 2, on(status=503)),
    Case("answers 429 always", "http_429", 2, on(status=429)),
    Case("answers 404", "http_404", 1, on(status=404)),
    Case("answers 403", "http_403", 1, on(status=403)),
    Case("answers 401", "login", 1, on(status=401)),
    Case("answers 410", "removed", 1, on(status=410)),
    Case("answers 451", "geo", 1, on(status=451)),
    Case("has a certificate that has expired", "tls", 1, over_tls(days=-1)),
    Case("has a certificate that nobody signed", "tls", 1, over_tls(signed=False)),
    Case("has another host's certificate", "tls", 1, over_tls(host="other.example")),
    Case(
        "speaks no TLS at an `https:` address",
        "tls",
        1,
        lambda arena: arena.server.on("/a", body=BODY).replace("http:", "https:"),
    ),
    Case("disallows it in `robots.txt`", "robots", 1, robots(DENIED), {"robots": True}),
    Case("has no `robots.txt` (4xx)", FILE, 1, robots(b"", 404), {"robots": True}),
    Case(
        "answers 503 for `robots.txt`",
        "robots_unreachable",
        2,
        robots(b"", 503),
        {"robots": True},
    ),
    Case(
        "opts out by `X-Robots-Tag: noai`",
        "opted_out",
        1,
        on(body=BODY, X_Robots_Tag="noindex, noai"),
        {"noai": True},
    ),
]


def behaviours() -> str:
    """The table of behaviours in Markdown."""
    rows = ["| The server … | becomes | attempts |", "|---|---|---|"]
    for case in CASES:
        becomes = case.becomes if case.becomes == FILE else f"`{case.becomes}`"
        attempts = "1" if case.attempts == 1 else "more"
        rows.append(f"| {case.does} | {becomes} | {attempts} |")
    return "\n".join(rows)


def reasons() -> str:
    """The table of reasons in Markdown."""
    rows = ["| reason | meaning | may pass |", "|---|---|---|"]
    for name, reason in REASONS.items():
        passes = "some" if "<" in name else "yes" if reason.transient else "no"
        rows.append(f"| `{name}` | {reason.meaning} | {passes} |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """The document ``text`` with its tables as they should be."""
    for name, table in (("behaviours", behaviours()), ("reasons", reasons())):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        assert start, name
        assert end, name
        text = f"{before}{start}{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
