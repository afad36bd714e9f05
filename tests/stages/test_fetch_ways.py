"""The ways to a server: kept connections, HTTP/2, TLS, proxies; and what may not be on them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.fetch import addresses, curl, http, manners
from reelmill.fetch.addresses import Resolver, is_public
from reelmill.fetch.curl import CurlError, Session
from reelmill.fetch.fetcher import (
    Fetched,
    FetchFailure,
    FetchPolicy,
    Request,
    Unchanged,
    fetch_iter,
)
from reelmill.fetch.http import HTTPSource
from reelmill.fetch.transfer import AttemptError, Transfer

from .bad_server import BadServer, Exchange, ThreadServer
from .certificates import Authority

POLICY = FetchPolicy(
    timeout_s=20, connect_timeout_s=2, idle_timeout_s=2, backoff_s=0.01, allow_private=True
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as running:
        yield running


def only(url: str, scratch: Path, policy: FetchPolicy = POLICY, **changes: Any) -> Any:
    ((_, outcome),) = fetch_iter([("key", url)], replace(policy, **changes), scratch)
    return outcome


# --- Connections -----------------------------------------------------------------------------


def test_connections_are_kept(tmp_path: Path) -> None:
    with BadServer(keep_alive=True) as server:
        # Neither a status nor a redirect costs a connection, as long as the body is short.
        urls = [
            server.on("/a", body=b"x" * 5000),
            server.on("/none", status=404, body=b"not here"),
            server.on("/moved", status=302, body=b"go there", Location="/a"),
        ]
        requests = [(str(n), urls[n % 3]) for n in range(30)]
        outcomes = dict(fetch_iter(requests, replace(POLICY, concurrency=2), tmp_path))
        assert len(server.requests) == 40
        assert {exchange.connection for exchange in server.requests} == set(
            range(1, server.connections + 1)
        )
        assert server.connections <= 2
    assert sum(isinstance(outcome, Fetched) for outcome in outcomes.values()) == 20


def test_a_kept_connection_that_the_server_closed_costs_no_attempt(tmp_path: Path) -> None:
    async def close(exchange: Exchange) -> None:
        await exchange.reply(200, b"x")
        exchange._writer.close()

    with BadServer(keep_alive=True) as server:
        url = server.on("/a", close)
        outcomes = fetch_iter([(str(n), url) for n in range(5)], POLICY, tmp_path)
        assert [outcome.provenance.attempts for _, outcome in outcomes] == [1] * 5


def test_a_body_that_nobody_wants_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.head(404, Content_Length=10**6)
        await asyncio.sleep(60)

    with BadServer(keep_alive=True) as server:
        assert only(server.on("/a", silent), tmp_path, idle_timeout_s=60).reason == "http_404"


# --- HTTP/2 ----------------------------------------------------------------------------------


@dataclass
class H2Server:
    """Serves HTTP/2 over TLS; remembers the version of HTTP that each request came by."""

    certificate: Path
    versions: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.certfile = config.keyfile = str(self.certificate)
        config.accesslog = config.errorlog = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, config: Config) -> None:
        asyncio.set_event_loop(self._loop)
        main = serve(self._answer, config, shutdown_trigger=self._stop.wait)  # type: ignore[arg-type]
        self._loop.run_until_complete(main)
        self._loop.close()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.versions.append(scope["http_version"])
        body = scope["path"].encode() * 20_000
        headers = [(b"content-length", b"%d" % len(body)), (b"etag", b'"v"')]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def test_http_2(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with H2Server(authority.certificate()) as server:
        requests = [(f"/{n}", f"https://127.0.0.1:{server.port}/{n}") for n in range(20)]
        for key, outcome in fetch_iter(requests, replace(POLICY, memory_bytes=10), tmp_path):
            assert isinstance(outcome, Fetched)
            with outcome:
                assert outcome.read() == key.encode() * 20_000
            assert outcome.provenance.etag == '"v"'
    assert server.versions == ["2"] * 20


def test_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert curl.certificates() == str(own)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(curl, "_SYSTEM_CERTIFICATES", (str(tmp_path / "none"), str(own)))
    paths = curl.ssl.get_default_verify_paths()._replace(cafile=None)
    monkeypatch.setattr(curl.ssl, "get_default_verify_paths", lambda: paths)
    assert curl.certificates() == str(own)
    own.unlink()
    assert curl.certificates() == curl.certifi.where()


# --- What is sent ----------------------------------------------------------------------------


def test_a_known_file_is_asked_for_if_it_changed(server: BadServer, tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.headers.get("if-none-match") == 'W/"v1"':
            await exchange.reply(304, ETag='W/"v1"')
        else:
            await exchange.reply(200, b"new", ETag='"v2"', Last_Modified="yesterday")

    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    url = server.on("/a", handler)
    requests = [Request("same", url, 'W/"v1"', date), Request("other", url, '"v0"')]
    outcomes = dict(fetch_iter(requests, replace(POLICY, concurrency=1), tmp_path))
    assert isinstance(outcomes["same"], Unchanged)
    assert outcomes["same"].provenance.status == 304
    assert server.requests[0].headers["if-modified-since"] == date
    assert isinstance(outcomes["other"], Fetched)
    assert outcomes["other"].provenance.etag == '"v2"'
    assert outcomes["other"].provenance.last_modified == "yesterday"
    assert "if-modified-since" not in server.requests[1].headers


def test_a_known_file_whose_first_attempt_broke(server: BadServer, tmp_path: Path) -> None:
    """What arrived of it before says nothing: nobody waits for a verdict on that."""

    async def handler(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.head(Content_Length=1 << 20)
            await exchange.send(bytes(1 << 19))
            await exchange.reset()
        else:
            await exchange.reply(304)

    class Inspect:
        head_bytes = 1000

        def __call__(self, head: bytes, size: int | None, tail: object) -> None:
            return None

    request = Request("k", server.on("/a", handler), last_modified="Mon, 01 Jan 2024 00:00:00 GMT")
    policy = replace(POLICY, inspector=Inspect())
    ((_, outcome),) = fetch_iter([request], policy, tmp_path)
    assert isinstance(outcome, Unchanged)


def test_provenance(server: BadServer, tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(503 if exchange.number == 1 else 200, Content_Type="Video/MP4;x=y")

    server.on("/b", handler)
    outcome = only(server.on("/a", status=307, Location="/b"), tmp_path)
    told = outcome.provenance
    assert (told.extractor, told.final_url, told.attempts) == ("http", server.url("/b"), 2)
    assert (told.status, told.content_type, told.address) == (200, "video/mp4", "127.0.0.1")
    assert told.ended > 1.7e9


@pytest.mark.parametrize("value", ['"a"\r\nX-Injected: 1', '"a"\nX: 1', '"\x00"', '"é"', ""])
def test_no_header_can_be_smuggled_in(server: BadServer, tmp_path: Path, value: str) -> None:
    url = server.on("/a", body=b"x")
    ((_, outcome),) = fetch_iter([Request("k", url, value, value)], POLICY, tmp_path)
    assert isinstance(outcome, Fetched)
    (request,) = server.requests
    assert set(request.headers) == {"host", "user-agent", "accept", "accept-encoding"}


def test_no_header_can_be_smuggled_in_by_addresses(server: BadServer, tmp_path: Path) -> None:
    url = server.on("/a%0D%0AX-Injected:%201", status=302, Location="/b%0d%0aX-Injected:1")
    server.on("/b%0D%0AX-Injected:1", body=b"x")
    assert isinstance(only(url, tmp_path), Fetched)
    assert all("x-injected" not in request.headers for request in server.requests)
    assert only(server.url("/a\r\nX-Injected: 1"), tmp_path).reason == "bad_url"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user_agent": "a\r\nX: y"}, "user_agent"),
        ({"user_agent": ""}, "user_agent"),
        ({"proxy": "ftp://h/"}, "proxy"),
        ({"proxy": "http://h/\r\n"}, "proxy"),
        ({"proxy": "socks5://h:1"}, "proxy"),
        ({"rate": 0.0}, "rate"),
        ({"per_host": 0}, "per_host"),
        ({"host_failures": 0}, "host_failures"),
    ],
)
def test_senseless_policies(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(POLICY, **changes)


def test_no_netrc(server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(only(server.on("/a", body=b"x"), tmp_path), Fetched)
    assert "authorization" not in server.requests[0].headers


ODD = ("9" * 5000, "-1", "²", "٣", "0", "", "bytes 1-2/3", "bytes */5", "gzip", '"v"')
NAMES = (
    "Content-Length Content-Range Content-Encoding Content-Type ETag Last-Modified Location "
    "Retry-After X-Robots-Tag Accept-Ranges X:"
)
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.from_regex(r"bytes [0-9]+-[0-9]+/([0-9]+|[*])", fullmatch=True),
    st.text(max_size=20),
)


@settings(max_examples=300)
@given(
    st.sampled_from([0, 200, 203, 206, 301, 304, 404, 416, 429, 503, 999]),
    st.lists(st.tuples(st.sampled_from(["", *NAMES.split()]), VALUES), max_size=6),
    st.booleans(),
)
def test_no_head_is_more_than_a_failure(
    status: int, headers: list[tuple[str, str]], resumes: bool
) -> None:
    lines = [f"HTTP/1.1 {status} X\r\n".encode()]
    lines += [f"{name}: {value}\r\n".encode("utf-8", "replace") for name, value in headers]
    head = curl._parse([*lines, b"\r\n"], "127.0.0.1")
    assert head.status == (status if status >= 100 else 0)
    policy = replace(POLICY, noai=True)
    transfer = Transfer("k", "http://h/", policy, Path(), ('"a"', None))
    if resumes:
        transfer.append(b"some")
        transfer.validator = '"v"'

    async def read(url: str) -> bytes:
        raise AssertionError(url)

    reply = http._Reply("http://h/", transfer, manners.Manners(policy, read))
    for line in reply.conditions():
        assert line.isprintable()
    with contextlib.suppress(AttemptError):
        reply.head(head)
        reply.end()
        for told in (transfer.etag, transfer.last_modified, transfer.content_type):
            assert told is None or (told.isascii() and told.isprintable())
    if reply.location is not None:
        with contextlib.suppress(AttemptError):
            http._redirected("http://h/", reply.location)


# --- Addresses -------------------------------------------------------------------------------


def test_the_address_that_was_checked_is_the_one_that_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is looked up first, and then loopback."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    asked = []

    def look_up(host: str) -> list[str]:
        asked.append(host)
        return next(answers)

    monkeypatch.setattr(http, "is_public", "127.0.0.2".__eq__)
    policy = replace(POLICY, allow_private=False)
    with BadServer() as inner, BadServer(host="127.0.0.2") as outer:
        # The name is looked up twice, for either server has a port of its own.
        inner.on("/a", body=b"secret")
        url = outer.on("/a", status=302, Location=f"http://moving.example:{inner.port}/a")
        url = url.replace("127.0.0.2", "moving.example")

        async def main() -> AttemptError:
            async with HTTPSource(policy, Resolver(2, look_up, ttl_s=0)) as source:
                with pytest.raises(AttemptError) as caught:
                    await source.fetch(Transfer("k", url, policy, tmp_path))
                return caught.value

        error = asyncio.run(main())
        assert (error.reason, error.message) == (
            "private_address",
            "moving.example has no public address",
        )
        assert (outer.connections, inner.connections) == (1, 0)
    assert asked == ["moving.example"] * 2


def test_the_guard_needs_no_resolver(server: BadServer) -> None:
    """Even what libcurl resolves by itself is checked at its socket."""
    received = []

    class Receiver:
        def head(self, head: Any) -> bool:
            received.append(head)
            return True

        def data(self, data: bytes) -> None:
            received.append(data)

    async def main() -> CurlError:
        session = Session(
            user_agent="test",
            connect_timeout_s=2,
            idle_timeout_s=2,
            connections=2,
            guard=is_public,
        )
        try:
            url = server.on("/a", body=b"secret").replace("127.0.0.1", "localhost")
            with pytest.raises(CurlError) as caught:
                await session.get(url, [], Receiver())
            return caught.value
        finally:
            session.close()

    assert asyncio.run(main()).refused
    assert (server.connections, received) == (0, [])


def test_names_are_looked_up_once(server: BadServer, tmp_path: Path) -> None:
    asked = []

    def look_up(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    url = server.on("/a", body=b"x").replace("127.0.0.1", "a.example")

    async def main() -> None:
        async with HTTPSource(POLICY, Resolver(2, look_up)) as source:
            transfers = [Transfer(str(n), url, POLICY, tmp_path) for n in range(8)]
            await asyncio.gather(*map(source.fetch, transfers))

    asyncio.run(main())
    assert asked == ["a.example"]
    assert len(server.requests) == 8


def test_a_look_up_that_hangs(tmp_path: Path) -> None:
    hang = threading.Event()

    def look_up(_: str) -> list[str]:
        hang.wait(30)
        return []

    async def main() -> AttemptError:
        with pytest.raises(AttemptError) as caught:
            await Resolver(0.05, look_up).addresses("a.example")
        hang.set()
        return caught.value

    error = asyncio.run(main())
    assert (error.reason, error.message) == ("dns", "a.example was not resolved in time")
    assert error.transient


@pytest.mark.parametrize(
    ("host", "literal"),
    [("127.0.0.1", True), ("::1", True), ("a1.example4", False), ("a.example.", False)],
)
def test_is_address(host: str, literal: bool) -> None:
    assert addresses.is_address(host) is literal


# --- Proxies ---------------------------------------------------------------------------------


@dataclass
class Proxy(ThreadServer):
    """An HTTP and SOCKS5 proxy on loopback, for which every name is 127.0.0.1."""

    refuse: bool = False
    asked: list[str] = field(default_factory=list)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            start = await reader.readexactly(1)
            if start == b"\x05":
                await self._socks(reader, writer)
            else:
                await self._http(start + await reader.readuntil(b"\r\n\r\n"), reader, writer)
        writer.close()

    async def _http(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, target, _ = head.split(b" ", 2)
        self.asked.append(target.decode())
        if self.refuse:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        elif method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Welcome\r\nX-Proxy: yes\r\n\r\n")
            await self._pipe(int(target.rpartition(b":")[2]), b"", reader, writer)
        else:
            port = int(target.split(b"/")[2].rpartition(b":")[2])
            path = b"/" + target.split(b"/", 3)[3]
            await self._pipe(port, head.replace(target, path, 1), reader, writer)

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x00")
        kind = (await reader.readexactly(4))[3]
        assert kind == 3, "a name, which is not resolved beforehand"
        name = await reader.readexactly((await reader.readexactly(1))[0])
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{name.decode()}:{port}")
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await self._pipe(port, b"", reader, writer)

    async def _pipe(
        self, port: int, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", port)
        ours.write(first)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(copy(reader, ours), copy(theirs, writer), return_exceptions=True)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        yield running


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_a_proxy_fetches_for_us(server: BadServer, proxy: Proxy, tmp_path: Path, kind: str) -> None:
    url = server.on("/a", body=b"x").replace("127.0.0.1", "far.example")
    # The proxy itself may be private, and the name is the proxy's to resolve.
    policy = replace(POLICY, allow_private=False, proxy=f"{kind}://127.0.0.1:{proxy.port}")
    outcome = only(url, tmp_path, policy)
    assert isinstance(outcome, Fetched)
    assert outcome.provenance.address is None
    asked = url if kind == "http" else f"far.example:{server.port}"
    assert proxy.asked == [asked]


def test_tls_goes_through_a_proxy(
    authority: Authority, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with BadServer(tls=authority.context(host="far.example")) as server:
        url = server.on("/a", body=b"x", Content_Type="a/b").replace("127.0.0.1", "far.example")
        outcome = only(url, tmp_path, proxy=f"http://127.0.0.1:{proxy.port}", allow_private=False)
    assert isinstance(outcome, Fetched)
    assert outcome.content_type == "a/b"
    assert proxy.asked == [f"far.example:{server.port}"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "[::1]", "localhost"])
def test_a_proxy_is_not_asked_for_what_is_private(proxy: Proxy, tmp_path: Path, host: str) -> None:
    policy = replace(POLICY, allow_private=False, proxy=f"http://127.0.0.1:{proxy.port}")
    assert only(f"http://{host}/a", tmp_path, policy).reason == "private_address"
    assert proxy.asked == []


def test_no_proxy_leads_past_the_proxy_and_the_guard(
    server: BadServer, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public and private, and that the environment exempts from proxies."""
    url = server.on("/a", body=b"secret").replace("127.0.0.1", "localhost")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr(http, "is_public", lambda address: True)
    policy = replace(POLICY, allow_private=False, proxy=f"http://127.0.0.1:{proxy.port}")
    assert isinstance(only(url, tmp_path, policy), Fetched)
    assert proxy.asked == [url]


def test_a_name_with_a_private_address_among_others_is_no_proxys_business(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(2, 1, 6, "", (address, 0)) for address in ("9.9.9.9", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: found)
    policy = replace(POLICY, allow_private=False, proxy=f"http://127.0.0.1:{proxy.port}")
    assert only("http://both.example/a", tmp_path, policy).reason == "private_address"
    assert proxy.asked == []


def test_a_redirect_through_a_proxy_is_checked_too(
    server: BadServer, proxy: Proxy, tmp_path: Path
) -> None:
    url = server.on("/a", status=302, Location="http://169.254.169.254/latest")
    policy = replace(POLICY, allow_private=False, proxy=f"http://127.0.0.1:{proxy.port}")
    outcome = only(url.replace("127.0.0.1", "far.example"), tmp_path, policy)
    assert outcome.reason == "private_address"
    assert len(proxy.asked) == 1


def test_proxies_of_the_environment(
    server: BadServer, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1,near.example")
    url = server.on("/a", body=b"x")
    far = url.replace("127.0.0.1", "far.example")
    assert isinstance(only(url, tmp_path, proxy="env"), Fetched)
    assert proxy.asked == []
    assert isinstance(only(far, tmp_path, proxy="env"), Fetched)
    assert proxy.asked == [far]
    assert only(far, tmp_path, attempts=1).reason == "dns"
    assert only(far, tmp_path, attempts=1, proxy="").reason == "dns"


def test_proxies_that_fail(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    policy = replace(POLICY, attempts=2)
    gone = only("http://far.example/a", tmp_path, policy, proxy=f"http://127.0.0.1:{port}")
    assert gone == FetchFailure("proxy", "the proxy was not reached", 2, True)
    unknown = only("http://far.example/a", tmp_path, policy, proxy="http://proxy.invalid:1")
    assert unknown.reason == "proxy"
    with Proxy(refuse=True) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        refused = only("https://far.example/a", tmp_path, policy, proxy=url)
        assert refused == FetchFailure("proxy", "the proxy refuses far.example", 2, True)
        assert only("http://far.example/a", tmp_path, policy, proxy=url).reason == "http_403"
