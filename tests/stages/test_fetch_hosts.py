"""Many files from many hosts: limits, dead hosts, deadlines, rules, extras, and manners."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from protego import Protego

from reelmill.errors import Rejected, StageError
from reelmill.fetch import manners, sources
from reelmill.fetch.drivers import FsspecSource
from reelmill.fetch.fetcher import (
    Fetched,
    FetchFailure,
    FetchPolicy,
    fetch_all,
    fetch_iter,
)
from reelmill.fetch.patterns import matcher
from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import REASONS, AttemptError, Transfer

from .bad_server import BadServer, Exchange

POLICY = FetchPolicy(
    timeout_s=20, connect_timeout_s=2, idle_timeout_s=2, backoff_s=0.01, allow_private=True
)


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as running:
        yield running


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def outcomes(urls: list[str], scratch: Path, **changes: Any) -> dict[str, Any]:
    """What becomes of each URL."""
    found = {}
    policy = replace(POLICY, **changes)
    for url, outcome in fetch_iter([(url, url) for url in urls], policy, scratch):
        if isinstance(outcome, Fetched):
            outcome.close()
        found[url] = outcome
    assert len(found) == len(urls)
    return found


def reasons(found: dict[str, Any]) -> Counter[str]:
    return Counter(getattr(outcome, "reason", "fetched") for outcome in found.values())


# --- Hosts -----------------------------------------------------------------------------------


def test_each_host_has_its_limit(tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        await exchange.reply()

    with BadServer() as one, BadServer() as two:
        urls = [server.on(f"/{n}", handler) for n in range(20) for server in (one, two)]
        assert reasons(outcomes(urls, tmp_path, per_host=3)) == {"fetched": 40}
        assert (one.max_in_flight, two.max_in_flight) == (3, 3)


def test_a_slow_host_holds_up_no_other(server: BadServer, tmp_path: Path) -> None:
    order = []

    async def slow(exchange: Exchange) -> None:
        while len(order) < 30:
            await asyncio.sleep(0.01)
        await exchange.reply()

    with BadServer() as quick:
        urls = [server.on(f"/s{n}", slow) for n in range(30)]
        urls += [quick.on(f"/q{n}") for n in range(30)]
        policy = replace(POLICY, concurrency=8, per_host=4)
        for url, _ in fetch_iter([(url, url) for url in urls], policy, tmp_path):
            order.append(url)
    assert all("/q" in url for url in order[:30])


def test_a_pause_of_one_host_holds_no_place(server: BadServer, tmp_path: Path) -> None:
    order = []

    async def busy(exchange: Exchange) -> None:
        await exchange.reply(503 if len(server.requests) == 1 else 200, Retry_After=1)

    with BadServer() as other:
        urls = [server.on(f"/busy{n}", busy) for n in range(3)]
        urls += [other.on(f"/{n}") for n in range(20)]
        policy = replace(POLICY, concurrency=1)
        for url, outcome in fetch_iter([(url, url) for url in urls], policy, tmp_path):
            assert isinstance(outcome, Fetched)
            order.append(url)
    assert all("/busy" not in url for url in order[:20])
    # The refusal paused its whole host, and the file that was refused goes first.
    assert [request.path for request in server.requests[:2]] == ["/busy0"] * 2


def test_a_dead_host_is_given_up(server: BadServer, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    urls = [f"{dead}/{n}" for n in range(200)] + [server.on(f"/{n}") for n in range(50)]
    found = outcomes(urls, tmp_path, attempts=1, host_pause_s=0.01, per_host=1)
    # Five to open its breaker, two trials.
    assert reasons(found) == {"fetched": 50, "connect": 7, "host_down": 193}
    down = found[f"{dead}/199"]
    host = dead.removeprefix("http://")
    assert down == FetchFailure(
        "host_down",
        f"{host} is given up: request after request failed",
        0,
        True,
    )
    assert REASONS["host_down"].transient


def test_what_is_not_asked_for_is_no_sign_of_life(tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    urls = [f"{dead}/{kind}/{n}" for n in range(50) for kind in ("public", "private")]
    few = {"attempts": 1, "host_pause_s": 0.01, "per_host": 1}
    found = outcomes(urls, tmp_path, opt_out=("*/private/*",), **few)
    assert reasons(found) == {"connect": 7, "opted_out": 50, "host_down": 43}


def test_a_host_that_comes_back_is_used_again(server: BadServer, tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        if len(server.requests) > 6:
            await exchange.reply()

    urls = [server.on(f"/{n}", handler) for n in range(30)]
    found = outcomes(urls, tmp_path, attempts=1, host_pause_s=0.01, per_host=1)
    assert reasons(found) == {"reset": 6, "fetched": 24}


def test_an_answer_of_any_kind_is_a_sign_of_life(server: BadServer, tmp_path: Path) -> None:
    urls = [server.on(f"/{n}", status=404 if n % 2 else 500) for n in range(40)]
    found = outcomes(urls, tmp_path, attempts=1, host_pause_s=60)
    assert reasons(found) == {"http_404": 20, "http_500": 20}


def test_a_deadline_ends_all_that_is_left(server: BadServer, tmp_path: Path) -> None:
    async def hang(exchange: Exchange) -> None:
        await exchange.head(Content_Length=100)
        await exchange.send(b"x" * 10)
        await asyncio.sleep(60)

    urls = [server.on("/good", body=b"x")]
    urls += [server.on(f"/{n}", hang) for n in range(10)]
    urls += [f"http://127.0.0.1:{closed_port()}/"]
    patient = {"idle_timeout_s": 60, "backoff_s": 60, "timeout_s": 600}
    found = outcomes(urls, tmp_path, deadline_s=1.0, concurrency=4, **patient)
    assert reasons(found) == {"fetched": 1, "deadline": 11}
    assert {found[url].attempts for url in urls[1:]} == {0, 1}
    assert all(found[url].transient for url in urls[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_rate(server: BadServer, tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    urls = [server.on(f"/{n}") for n in range(5)]
    start = loop.time()
    outcomes(urls, tmp_path, rate=20.0)
    assert loop.time() - start >= 4 / 20
    loop.close()


# --- Sources ---------------------------------------------------------------------------------


class Fake(OpenSource):
    """A source of files with extras, of which a test can see what became of them."""

    opened: ClassVar[list[str]] = []

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy

    async def __aenter__(self) -> Self:
        self.opened.append("opened")
        return self

    async def close(self) -> None:
        self.opened.append("closed")

    @asynccontextmanager
    async def turn(self, url: str) -> AsyncIterator[None]:
        assert url.startswith("https://")
        # Longer than the file's own time.
        await asyncio.sleep(0.6)
        yield

    async def fetch(self, transfer: Transfer) -> None:
        transfer.restart()
        path = transfer.scratch / f"{transfer.key}-{transfer.attempts}"
        path.write_bytes(b"subtitles")
        transfer.attach("vtt", path)
        transfer.attach("title", b"a title")
        if transfer.url.endswith("/private"):
            raise AttemptError("private", "this one is for friends")
        if transfer.url.endswith("/rejected"):
            raise Rejected("too_short", "3 s")
        if transfer.attempts == 1:
            raise AttemptError("reset", "once", transient=True)
        transfer.append(b"video")


def test_a_rule_names_the_source(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SOURCES", {**sources.SOURCES, "fake": f"{__name__}:Fake"})
    Fake.opened.clear()
    plain = server.on("/a", body=b"plain")
    urls = {
        "one": "https://www.video.example/watch?v=1",
        "two": "https://video.example/private",
        "three": "https://video.example/rejected",
        "plain": plain,
    }
    rules = (("video.example", "fake"), ("*.example/*", "http"))
    policy = replace(POLICY, rules=rules, timeout_s=0.5)
    found = dict(fetch_iter(urls.items(), policy, tmp_path))
    one = found["one"]
    assert isinstance(one, Fetched)
    assert one.read() == b"video"
    assert one.provenance.extractor == "fake"
    assert one.extras["title"] == b"a title"
    # What a first attempt brought is gone; what the others did, too.
    assert [path.name for path in tmp_path.iterdir()] == ["one-2"]
    assert one.extras["vtt"] == tmp_path / "one-2"
    one.close()
    assert list(tmp_path.iterdir()) == []
    assert found["two"] == FetchFailure("private", "this one is for friends", 1, False)
    assert found["three"] == FetchFailure("too_short", "3 s", 1, False)
    assert found["plain"].read() == b"plain"
    assert found["plain"].extras == {}
    assert Fake.opened == ["opened", "closed"]


def test_rules_that_make_no_sense(tmp_path: Path) -> None:
    policy = replace(POLICY, rules=(("a.example", "teleport"),))
    with pytest.raises(StageError, match=r"no source is called 'teleport'; choose from http, s3"):
        list(fetch_iter([("k", "http://a.example/")], policy, tmp_path))
    policy = replace(POLICY, opt_out=("not a domain",))
    with pytest.raises(StageError, match="neither a domain nor a glob"):
        list(fetch_iter([("k", "http://a.example/")], policy, tmp_path))


@pytest.mark.parametrize(
    ("pattern", "url", "matches"),
    [
        ("example.com", "https://example.com/a", True),
        ("Example.COM", "https://a.b.example.com:8080/a", True),
        (".example.com", "https://example.com./a", True),
        ("example.com", "https://notexample.com/a", False),
        ("example.com", "https://example.com.evil.org/a", False),
        ("bücher.example", "https://www.xn--bcher-kva.example/", True),
        ("127.0.0.1", "http://127.0.0.1:80/", True),
        ("https://example.com/private/*", "https://example.com/private/a", True),
        ("https://example.com/private/*", "https://example.com/public/a", False),
        ("*.m3u8", "http://h/a.m3u8", True),
        ("*.m3u8", "http://h/a.m3u8?x", False),
        ("*.MP4", "http://h/a.mp4", False),
    ],
)
def test_patterns(pattern: str, url: str, matches: bool) -> None:
    assert matcher([pattern])(url) is matches
    assert matcher(["other.org", "ftp:*", pattern])(url) is matches


class FakeStore(MemoryFileSystem):  # type: ignore[misc]
    """Objects in memory, which may be hard to get at."""

    protocol = ("gs", "hf")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").lstrip("/")

    def info(self, path: str, **kwargs: Any) -> Any:
        if path.endswith("denied"):
            raise PermissionError(path)
        if path.endswith("odd"):
            raise ValueError("something of the driver")
        found = super().info(path, **kwargs)
        if path.endswith("short"):
            found["size"] += 1
        return found | {"ETag": '"e"', "contentType": "Video/MP4"}


def test_further_object_stores(tmp_path: Path) -> None:
    fsspec.register_implementation("gs", FakeStore, clobber=True)
    body = bytes(range(256)) * 10_000
    store = FakeStore()
    for name in ("a b?#.mp4", "denied", "odd", "short", "large"):
        store.pipe(f"/bucket/{name}", body if name != "large" else body * 2)
    found = outcomes(
        [f"gs://bucket/{name}" for name in ("denied", "odd", "short", "large", "none", "")]
        + ["gcs://bucket/a b?#.mp4"],
        tmp_path,
        attempts=2,
        max_bytes=3_000_000,
    )
    named = {url.rpartition("/")[2]: outcome for url, outcome in found.items()}
    assert {name: getattr(outcome, "reason", "fetched") for name, outcome in named.items()} == {
        "a b?#.mp4": "fetched",
        "denied": "denied",
        "odd": "unreadable",
        "short": "truncated",
        "large": "too_large",
        "none": "object_not_found",
        "": "bad_url",
    }
    file = found["gcs://bucket/a b?#.mp4"]
    assert (file.url, file.size, file.content_type) == (
        "gs://bucket/a b?#.mp4",
        len(body),
        "video/mp4",
    )
    assert (file.provenance.extractor, file.provenance.etag) == ("fsspec", '"e"')
    assert found["gs://bucket/odd"].message == "the object cannot be read: ValueError"
    assert list(tmp_path.iterdir()) == []


def test_parts_of_objects(tmp_path: Path) -> None:
    fsspec.register_implementation("gs", FakeStore, clobber=True)
    FakeStore().pipe("/bucket/parts", bytes(range(100)))

    async def main() -> list[bytes | None]:
        async with FsspecSource(POLICY) as source:
            whole, none = (
                Transfer("k", f"gs://bucket/{n}", POLICY, tmp_path) for n in ("parts", "b")
            )
            parts = [(whole, 5, 9), (whole, 95, 105), (none, 0, 9)]
            return [await source.read_range(*part) for part in parts]

    assert asyncio.run(main()) == [bytes(range(5, 9)), None, None]


def test_a_driver_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(scheme: str) -> Any:
        raise ImportError(scheme)

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    (outcome,) = outcomes(["az://container/a.mp4"], tmp_path).values()
    message = "az: URLs need a driver; pip install adlfs"
    assert outcome == FetchFailure("no_driver", message, 1, False)


# --- Manners ---------------------------------------------------------------------------------


def test_robots_are_asked_for_once(tmp_path: Path) -> None:
    rules = b"User-agent: other\nDisallow: /\n\nUser-agent: reelmill\nDisallow: /private\n"
    with ExitStack() as stack:
        one, two = (stack.enter_context(BadServer()) for _ in range(2))
        one.on("/robots.txt", body=rules)
        two.on("/robots.txt", status=404)
        urls = [one.on(f"/{n}") for n in range(10)] + [two.on(f"/private{n}") for n in range(10)]
        urls += [one.on(f"/private/{n}") for n in range(5)]
        # A redirect leads to another site, which has rules of its own.
        urls += [two.on("/moved", status=302, Location=one.url("/private/0"))]
        found = outcomes(urls, tmp_path, robots=True, user_agent="reelmill/1.0 (+https://x.y)")
        assert reasons(found) == {"fetched": 20, "robots": 6}
        assert len(one.seen("/robots.txt")) == len(two.seen("/robots.txt")) == 1
        assert not any(one.seen(f"/private/{n}") for n in range(5))
        assert one.seen("/robots.txt")[0].headers["user-agent"] == "reelmill/1.0 (+https://x.y)"


def test_robots_behind_a_redirect(server: BadServer, tmp_path: Path) -> None:
    server.on("/robots.txt", status=301, Location="/other.txt")
    server.on("/other.txt", body=b"\xef\xbb\xbfUser-agent: *\n# \xff\nDisallow: /a\n")
    urls = [server.on("/a"), server.on("/b")]
    assert reasons(outcomes(urls, tmp_path, robots=True)) == {"robots": 1, "fetched": 1}


def test_a_site_without_answer_disallows_for_now(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manners, "_RETRY_S", -1.0)

    async def handler(exchange: Exchange) -> None:
        if exchange.number > 1:
            await exchange.reply(200, b"User-agent: *\nAllow: /\n")

    server.on("/robots.txt", handler)
    (outcome,) = outcomes([server.on("/a")], tmp_path, robots=True, attempts=3).values()
    assert isinstance(outcome, Fetched)
    assert outcome.provenance.attempts == 2
    dead = f"http://127.0.0.1:{closed_port()}/a"
    failure = outcomes([dead], tmp_path, robots=True, attempts=2)[dead]
    assert failure == FetchFailure(
        "robots_unreachable",
        "the site's robots.txt could not be had: cannot connect to 127.0.0.1: connection refused",
        2,
        True,
    )


def test_robots_do_not_open_what_is_private(server: BadServer, tmp_path: Path) -> None:
    server.on("/robots.txt", body=b"")
    url = server.on("/a", body=b"secret")
    assert outcomes([url], tmp_path, robots=True, allow_private=False)[url].reason == (
        "private_address"
    )
    assert server.connections == 0


def test_a_robots_txt_of_many_agents_and_rules() -> None:
    """Each rule counts for each agent of its group: what fits into 500 kB would take hours."""
    agents = "".join(f"User-agent:a{number}\n" for number in range(20_000))
    rules = "".join(f"Disallow:/{number}\n" for number in range(12_000))
    parsed = manners._rules(f"{agents}user agent Reelmill # we\n{rules}".encode(), "reelmill/1 (x)")
    assert not parsed.can_fetch("http://h/11999", "reelmill/1 (x)")
    assert parsed.can_fetch("http://h/x", "reelmill/1 (x)")


@pytest.mark.parametrize(
    "text",
    [
        "User-agent: *\nDisallow: /\n\nUser-agent: a\nUser-agent: reelmill\nAllow: /a",
        "User-agent: a\nDisallow: /\nUser-agent: b\nUser-agent: *\nDisallow: /b",
        "User-agent: a\nUser-agent: b\nDisallow: /\nuseragent REEL*mill\nDisallow: /b #",
        "Disallow: /\nUser-agent: mill\nDisallow: /\nUser agent: other\nDisallow: /a",
    ],
)
def test_what_is_said_to_others_changes_no_rule_of_ours(text: str) -> None:
    whole, ours = Protego.parse(text), manners._rules(text.encode(), "reelmill/1.0")
    for path in ("/", "/a", "/b", "/c"):
        url = f"http://h{path}"
        assert ours.can_fetch(url, "reelmill/1.0") == whole.can_fetch(url, "reelmill/1.0")


def test_the_rules_of_some_sites_are_remembered() -> None:
    asked: Counter[str] = Counter()

    async def read(url: str) -> bytes:
        asked[url] += 1
        return b"User-agent: *\nDisallow: /b\n" + b"#" * (1 << 20)

    async def main() -> None:
        policy = replace(POLICY, robots=True)
        polite = manners.Manners(policy, read)
        for number in (*range(20), 19, 0):
            await polite.admit(f"http://h{number}/a")
        assert len(polite._robots) < 10
        await polite.close()

    asyncio.run(main())
    assert {url for url, count in asked.items() if count > 1} == {"http://h0/robots.txt"}


def test_a_robots_txt_without_end(server: BadServer, tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.head()
        while True:
            await exchange.send(b"# nothing\n" * 10_000)

    server.on("/robots.txt", handler)
    (outcome,) = outcomes([server.on("/a")], tmp_path, robots=True, attempts=1).values()
    assert outcome.reason == "robots_unreachable"


@pytest.mark.parametrize(
    ("header", "out"),
    [
        ("", False),
        ("noindex, nofollow", False),
        ("noai", True),
        ("NoIndex, NoImageAI", True),
        ("none", True),
        ("otherbot: noai", False),
        ("otherbot: noindex, noai", False),
        ("otherbot: noai, reelmill: noai", True),
        ("reelmill: noindex, noai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        ("max-snippet: 5, noindex", False),
    ],
)
def test_x_robots_tag(header: str, out: bool) -> None:
    assert manners.opts_out(header, "reelmill") is out


@pytest.mark.parametrize("url", ["https://youtube.com/watch?v=x", "file:///etc/hostname"])
def test_opt_outs_hold_for_every_source(tmp_path: Path, url: str) -> None:
    policy = replace(POLICY, opt_out=("youtube.com", "file:*"), allow_file=True)
    ((_, outcome),) = fetch_iter([("k", url)], policy, tmp_path)
    assert outcome == FetchFailure("opted_out", "the policy opts this URL out", 0, False)


def test_opt_outs_are_never_asked(server: BadServer, tmp_path: Path) -> None:
    server.on("/moved", status=302, Location="/private/b")
    urls = [server.on("/a"), server.on("/private/a"), server.url("/moved")]
    urls += ["http://video.example/a"]
    found = outcomes(urls, tmp_path, opt_out=("video.example", "*/private/*"))
    assert [getattr(found[url], "reason", "fetched") for url in urls] == [
        "fetched",
        *["opted_out"] * 3,
    ]
    assert sorted(request.path for request in server.requests) == ["/a", "/moved"]


def test_headers_do_not_matter_unless_they_should(server: BadServer, tmp_path: Path) -> None:
    url = server.on("/a", X_Robots_Tag="noai")
    assert reasons(outcomes([url], tmp_path)) == {"fetched": 1}
    assert reasons(outcomes([url], tmp_path, noai=True)) == {"opted_out": 1}


# --- Early inspection ------------------------------------------------------------------------


class Inspector:
    """Wants ``tail`` and rejects what begins with ``no`` or has ``no`` there."""

    head_bytes = 1000

    def __init__(self, tail: tuple[int, int] | None = None) -> None:
        self.tail = tail
        self.seen: list[tuple[int, int | None, tuple[int, bytes] | None]] = []

    def __call__(
        self, head: bytes, size: int | None, tail: tuple[int, bytes] | None
    ) -> tuple[int, int] | None:
        self.seen.append((len(head), size, tail))
        if head.startswith(b"no"):
            raise Rejected("unwanted", "by its head")
        if tail is None:
            return self.tail
        if tail[1].startswith(b"no"):
            raise Rejected("unwanted", "by its tail")
        return None


def stalling(body: bytes, sent: int, **headers: Any) -> Any:
    """Send the beginning of a body, then nothing; but any range of it at once."""

    async def handler(exchange: Exchange) -> None:
        asked = exchange.headers.get("range")
        if asked is not None:
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            span = f"bytes {start}-{end}/{len(body)}"
            await exchange.reply(206, body[start : end + 1], Content_Range=span)
            return
        await exchange.head(Content_Length=len(body), **headers)
        await exchange.send(body[:sent])
        if sent < len(body):
            await asyncio.sleep(60)

    return handler


def test_what_is_rejected_by_its_head_is_not_waited_for(server: BadServer, tmp_path: Path) -> None:
    inspector = Inspector()
    url = server.on("/a", stalling(b"no" + bytes(9998), 2000))
    found = outcomes([url], tmp_path, inspector=inspector, idle_timeout_s=60, memory_bytes=0)
    assert found[url] == FetchFailure("unwanted", "by its head", 1, False)
    assert inspector.seen == [(1000, 10_000, None)]
    assert list(tmp_path.iterdir()) == []


def test_what_decides_may_be_fetched_on_its_own(server: BadServer, tmp_path: Path) -> None:
    inspector = Inspector((9000, 99_999))
    body = b"yes" + bytes(8997) + b"no" + bytes(998)
    url = server.on("/a", stalling(body, 2000, Accept_Ranges="bytes", ETag='"v"'))
    found = outcomes([url], tmp_path, inspector=inspector, idle_timeout_s=60)
    assert found[url] == FetchFailure("unwanted", "by its tail", 1, False)
    assert inspector.seen[1:] == [(1000, 10_000, (9000, body[9000:]))]
    part = server.requests[1]
    assert (part.headers["range"], part.headers["if-range"]) == ("bytes=9000-9999", '"v"')


@pytest.mark.parametrize("memory_bytes", [0, 8 << 20])
def test_a_fast_body_is_judged_all_the_same(
    server: BadServer, tmp_path: Path, memory_bytes: int
) -> None:
    """Whether a file is rejected must not depend on which of two threads is quicker."""
    body = b"yes" + bytes(8997) + b"no" + bytes(998)
    for handler in (stalling(body, 10_000), stalling(body, 10_000, Accept_Ranges="bytes")):
        url = server.on("/a", handler)
        changes = {"inspector": Inspector((9000, 9500)), "memory_bytes": memory_bytes}
        assert outcomes([url], tmp_path, **changes)[url].reason == "unwanted"


def test_files_that_pass_inspection(server: BadServer, tmp_path: Path) -> None:
    inspector = Inspector((5000, 5010))
    urls = [
        server.on("/long", body=bytes(10_000)),
        server.on("/short", body=b"no" + bytes(998)),
        server.on("/empty", body=b""),
        server.on("/none", status=404, body=b"no" * 9999),
    ]
    found = outcomes(urls, tmp_path, inspector=inspector)
    assert reasons(found) == {"fetched": 3, "http_404": 1}
    assert inspector.seen == [(1000, 10_000, None), (1000, 10_000, (5000, bytes(10)))]


@pytest.mark.parametrize("tail", [(0, 0), (20_000, 30_000), (5, 4), (0, 17 << 20)])
def test_ranges_that_are_not_fetched(
    server: BadServer, tmp_path: Path, tail: tuple[int, int]
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.head(Accept_Ranges="bytes", **({} if tail[1] > 1 << 20 else length))
        await exchange.send(bytes(10_000))

    length = {"Content_Length": 10_000}
    inspector = Inspector(tail)
    url = server.on("/a", handler)
    assert reasons(outcomes([url], tmp_path, inspector=inspector)) == {"fetched": 1}
    assert len(inspector.seen) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 200, "body": bytes(10_000)},
        {"status": 206, "body": b"no"},
        {"status": 206, "body": b"no", "Content_Range": "bytes 0-1/10000"},
        {"status": 206, "body": b"no", "Content_Range": "bytes 9000-9001/9999"},
        {"status": 206, "body": b"no" * 9999, "Content_Range": "bytes 9000-9001/10000"},
        {"status": 404},
    ],
)
def test_ranges_that_come_wrong_change_nothing(
    server: BadServer, tmp_path: Path, answer: dict[str, Any]
) -> None:
    asked = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if "range" in exchange.headers:
            await exchange.reply(**answer)
            asked.set()
        else:
            await exchange.head(Content_Length=10_000, Accept_Ranges="bytes")
            await exchange.send(bytes(2000))
            await asked.wait()
            await exchange.send(bytes(8000))

    inspector = Inspector((9000, 9002))
    url = server.on("/a", handler)
    assert reasons(outcomes([url], tmp_path, inspector=inspector)) == {"fetched": 1}
    assert len(inspector.seen) == 1


def test_local_files_and_objects_are_inspected_too(tmp_path: Path) -> None:
    fsspec.register_implementation("gs", FakeStore, clobber=True)
    FakeStore().pipe("/bucket/inspected", b"yes" + bytes(9997))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "a").write_bytes(b"no" + bytes(9998))
    inspector = Inspector((9000, 9010))
    urls = [(tmp_path / "a").as_uri(), "gs://bucket/inspected"]
    found = outcomes(urls, scratch, inspector=inspector, allow_file=True)
    assert reasons(found) == {"unwanted": 1, "fetched": 1}
    assert (1000, 10_000, (9000, bytes(10))) in inspector.seen


def test_an_inspector_that_breaks_ends_the_stage(server: BadServer, tmp_path: Path) -> None:
    class Broken(Inspector):
        def __call__(self, head: bytes, size: int | None, tail: Any) -> None:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        outcomes([server.on("/a", body=bytes(10_000))], tmp_path, inspector=Broken())
    assert list(tmp_path.iterdir()) == []


def test_an_async_consumer_may_stop_early(server: BadServer, tmp_path: Path) -> None:
    urls = [(str(n), server.on(f"/{n}", body=bytes(2000))) for n in range(20)]

    async def consume() -> None:
        outcomes = fetch_all(urls, replace(POLICY, memory_bytes=10), tmp_path)
        async for _, outcome in outcomes:
            assert isinstance(outcome, Fetched)
            outcome.close()
            break
        await outcomes.aclose()

    asyncio.run(consume())
    assert list(tmp_path.iterdir()) == []
