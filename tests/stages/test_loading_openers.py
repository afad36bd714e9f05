"""Shards are opened wherever they are, whole or not at all, and kept without being mixed up."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

from reelmill.digest import sha256
from reelmill.errors import LoadError, NotFoundError, ReelmillError, ShardError, StoreError
from reelmill.loading import openers
from reelmill.loading.cache import CachedBlobs, ShardCache
from reelmill.loading.openers import ShardOpener
from reelmill.loading.tars import checked
from reelmill.store import Store
from reelmill.store.backend import Range, open_backend
from reelmill.store.model import blob_name

from ..s3_server import Fault, Faults
from .bad_server import BadServer, Exchange


def tar(count: int = 40, size: int = 10_000, seed: int = 0, **how: Any) -> bytes:
    """A tar of ``count`` samples of one field."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **how) as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:04d}.bin")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes([seed + number & 255]) * size))
    return file.getvalue()


WHOLE = tar()


def everything(file: Any) -> bytes:
    """All that is read in pieces as tarfile reads."""
    with file:
        return b"".join(iter(lambda: file.read(10_240), b""))


def samples(opener: ShardOpener, *urls: str) -> list[dict[str, Any]]:
    """By plain webdataset."""
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(list(urls)), opener.stage, tar_file_expander, group_by_keys
    )
    return list(pipeline)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openers, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr("reelmill.store.remote._FIRST_PAUSE", 0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with BadServer() as running:
        yield running


def serving(
    data: bytes, breaks: Callable[[int], int | None] = lambda number: None, **headers: Any
) -> Callable[[Exchange], Any]:
    """Answers with ``data`` or the range that is asked for; its n-th reply breaks off after so many
    bytes of its body."""

    async def handler(exchange: Exchange) -> None:
        start = exchange.range_start()
        wanted = exchange.headers.get("if-range")
        body, extra = data, dict(headers)
        status = 200
        if start is not None and wanted and wanted in headers.values():
            status, body = 206, data[start:]
            extra["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await exchange.head(status, Content_Length=len(body), **extra)
        await exchange.send(body[: breaks(exchange.number)])

    return handler


# Tars

PLAIN = [
    WHOLE,
    tar(0),
    tar(3, 0),
    tar(format=tarfile.GNU_FORMAT),
    tar(format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 3000}),
    # Only the two blocks of the end mark, and no whole record.
    tar(3, 100)[: 3 * 1024 + 1024],
]
PACKED = [pack(WHOLE) for pack in (gzip.compress, bz2.compress, lzma.compress)]


@pytest.mark.parametrize(
    ("data", "plain"), [*((data, data) for data in PLAIN), *((data, WHOLE) for data in PACKED)]
)
def test_a_whole_tar_is_read_from_any_place(tmp_path: Path, data: bytes, plain: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    for url in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
        assert everything(ShardOpener()(url)) == plain
    assert everything(ShardOpener({"x": lambda url: io.BytesIO(data)})("x://1")) == plain


def test_long_and_odd_names_and_sizes_are_followed(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            folder = tarfile.TarInfo("folder")
            folder.type, folder.size = tarfile.DIRTYPE, 0
            archive.addfile(folder)
            for name in ("a" * 300 + ".bin", "Möwe.bin"):
                member = tarfile.TarInfo(name)
                member.size = 700
                member.pax_headers = {"size": "700"} if form == tarfile.PAX_FORMAT else {}
                archive.addfile(member, io.BytesIO(bytes(700)))
        data = (tmp_path / "a.tar").read_bytes()
        assert everything(ShardOpener()(str(tmp_path / "a.tar"))) == data
        with pytest.raises(ShardError, match="breaks off"):
            everything(checked(io.BytesIO(data[:-20_000]), "it"))


def test_what_webdataset_takes_for_an_end_is_an_error(tmp_path: Path) -> None:
    place = tmp_path / "a.tar"
    cuts = {
        "between two members": (WHOLE[: 10 * 10_752], 10, "breaks off after 107,520 bytes"),
        "in a header": (WHOLE[: 10 * 10_752 + 99], 10, "breaks off"),
        "a header that is none": (
            WHOLE[: 10 * 10_752] + b"?" * 512 + WHOLE[10 * 10_752 + 512 :],
            10,
            "damaged header at byte 107,520",
        ),
        "a header that was wiped out": (
            WHOLE[: 10 * 10_752] + bytes(512) + WHOLE[10 * 10_752 + 512 :],
            10,
            "damaged header at byte 107,520",
        ),
    }
    for data, seen, message in cuts.values():
        place.write_bytes(data)
        # This is why.
        assert len(list(wds.WebDataset(str(place), shardshuffle=False))) == seen
        with pytest.raises(ShardError, match=message):
            samples(ShardOpener(), str(place))
    place.write_bytes(gzip.compress(WHOLE)[:-20])
    with pytest.raises(ShardError, match="cannot be unpacked"):
        everything(ShardOpener()(str(place)))
    place.write_bytes(b"<html>" * 1000)
    with pytest.raises(ShardError, match="is no tar"):
        everything(ShardOpener()(str(place)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"there is no {tmp_path}/a.tar"):
        ShardOpener()(str(tmp_path / "a.tar"))
    with pytest.raises(StoreError, match="directory"):
        everything(ShardOpener()(str(tmp_path)))


# Commands and schemes


def test_commands_run_where_that_is_allowed_and_without_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(WHOLE)
    url = f"pipe:cat '{tmp_path}/a b.tar'"
    with pytest.raises(LoadError, match=r"not allowed.*allow_pipe=True"):
        ShardOpener()(url)
    allowed = ShardOpener(allow_pipe=True)
    assert everything(allowed(url)) == WHOLE
    assert len(samples(allowed, url)) == 40
    for shell in ("cat x | cat", "cat $(ls)", "true; cat x"):
        with pytest.raises((LoadError, StoreError, ShardError)):
            everything(allowed(f"pipe:{shell}"))
    with pytest.raises(StoreError, match="cat ended with status 1"):
        everything(allowed(f"pipe:cat '{tmp_path}/a b.tar' {tmp_path}/absent"))
    with pytest.raises(StoreError, match="cannot run /absent"):
        allowed("pipe:/absent x")


def test_openers_are_given_by_scheme(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE)

    class Reader:
        def __init__(self, url: str) -> None:
            self._file = io.BytesIO((tmp_path / url.removeprefix("mine://")).read_bytes())

        def read(self, size: int) -> bytes:
            return self._file.read(size)

    opener = ShardOpener({"mine": Reader})  # type: ignore[dict-item]
    assert len(samples(opener, "mine://a.tar", str(tmp_path / "a.tar"))) == 80
    with pytest.raises(StoreError, match="unknown://"):
        opener("unknown://a")


def test_a_handler_decides_whether_other_shards_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE)
    seen: list[Exception] = []
    some = [str(tmp_path / "absent.tar"), str(tmp_path / "a.tar")]

    def go_on(error: Exception) -> bool:
        seen.append(error)
        return True

    assert [one["url"] for one in ShardOpener().stage(some, go_on)] == some[1:]
    assert [type(error) for error in seen] == [NotFoundError]
    with pytest.raises(NotFoundError):
        list(ShardOpener().stage(some))


def test_an_opener_can_be_sent_to_workers(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE)
    sent = pickle.loads(pickle.dumps(ShardOpener(cache=ShardCache(tmp_path / "cache"))))
    assert everything(sent(str(tmp_path / "a.tar"))) == WHOLE


# HTTP


@pytest.mark.parametrize(
    "headers", [{"ETag": '"1"'}, {"Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, {}]
)
def test_a_connection_that_breaks_is_gone_on_with(server: BadServer, headers: Any) -> None:
    cuts = [100_000, 100, 99_999]
    handler = serving(WHOLE, lambda n: cuts[n - 1] if n <= len(cuts) else None, **headers)
    assert everything(ShardOpener()(server.on("/a.tar", handler))) == WHOLE
    asked = [one.headers.get("range") for one in server.seen("/a.tar")]
    # By a range of the same file where the server vouches for it; else once more from the start.
    assert asked[1:] == (
        ["bytes=100000-", "bytes=100100-", "bytes=200099-"] if headers else [None] * len(asked[1:])
    )
    assert {one.headers["accept-encoding"] for one in server.seen("/a.tar")} == {"identity"}


@pytest.mark.parametrize("headers", [{"ETag": '"2"'}, {}])
def test_two_files_are_never_made_into_one(server: BadServer, headers: Any) -> None:
    other = tar(seed=1)

    async def handler(exchange: Exchange) -> None:
        first = exchange.number == 1
        etag = {"ETag": '"1"'} if headers else {}
        await serving(
            WHOLE if first else other,
            lambda number: 50_000 if first else None,
            **(etag if first else headers),
        )(exchange)

    with pytest.raises(ShardError, match=r"a.tar changed while it was read"):
        everything(ShardOpener()(server.on("/a.tar", handler)))


async def _refused(exchange: Exchange) -> None:
    await exchange.reset()


@pytest.mark.parametrize(
    ("reply", "error", "what", "times"),
    [
        ({"status": 404}, NotFoundError, "there is no http://.*/a.tar: 404", 1),
        ({"status": 403}, StoreError, "the server answered 403", 1),
        ({"status": 302, "Location": "ftp://127.0.0.1/x"}, StoreError, "cannot read", None),
        ({"status": 302, "Location": "file:///secret"}, StoreError, "cannot read", 1),
        ({"status": 302, "Location": "http://[::1/?secret"}, LoadError, "redirects to none", 1),
        ({"status": 503}, StoreError, "503.*7 attempts in a row", 7),
        ({"body": gzip.compress(WHOLE), "Content_Encoding": "gzip"}, StoreError, "packed", 1),
        ({"body": WHOLE[:300_000]}, ShardError, "breaks off after 300,000", 1),
        ({"body": b"<html>" * 999}, ShardError, "is no tar", 1),
    ],
)
def test_what_a_server_cannot_give_is_told(
    server: BadServer,
    reply: dict[str, Any],
    error: type[ReelmillError],
    what: str,
    times: int | None,
) -> None:
    url = server.on("/a.tar", **reply)
    with pytest.raises(error, match=what) as told:
        everything(ShardOpener()(f"{url}?signature=secret"))
    assert "secret" not in str(told.value)
    assert len(server.seen("/a.tar")) == (times or len(server.seen("/a.tar")))


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/a.tar?secret",
        "http://127.0.0.1:port/a.tar?secret",
        "http:///a.tar?secret",
        "foo://user:secret@host/a.tar",
        "ftp://user:secret@127.0.0.1:1/a.tar",
    ],
)
@pytest.mark.parametrize("way", [ShardOpener.__call__, ShardOpener.seekable])
def test_what_is_no_address_is_told_without_its_secrets(url: str, way: Any) -> None:
    with pytest.raises(ReelmillError) as told:
        way(ShardOpener(), url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (403, StoreError)])
def test_what_a_server_refuses_is_told_without_its_secrets(
    server: BadServer, status: int, error: type[ReelmillError]
) -> None:
    url = server.on("/a.tar", status=status)
    with pytest.raises(error, match=r"/a\.tar") as told:
        ShardOpener().seekable(f"{url}?signature=secret")
    assert "secret" not in str(told.value)


def test_a_range_that_fails_is_told_without_its_secrets(server: BadServer) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.head(Content_Length=len(WHOLE), Accept_Ranges="bytes")
        else:
            await exchange.reply(500)

    url = server.on("/a.tar", handler)
    file = ShardOpener().seekable(f"{url}?signature=secret")
    with pytest.raises(StoreError, match=r"/a\.tar: ") as told:
        file.read(100)
    assert "secret" not in str(told.value)


def test_odd_characters_of_an_address_are_quoted(server: BadServer) -> None:
    url = server.on("/%C3%A9%20%01%25.tar", body=WHOLE)
    odd = url.replace("%C3%A9%20%01", "\u00e9 \x01")
    assert everything(ShardOpener()(f"{odd}?\u00e9=secret")) == WHOLE


def test_a_body_without_a_length_is_not_kept(server: BadServer, tmp_path: Path) -> None:
    async def part(exchange: Exchange) -> None:
        await exchange.head(ETag='"1"')
        await exchange.send(WHOLE[: 10 * 10_752])

    # It ends with the connection, and may be any part of the file.
    url = server.on("/a.tar", part)
    with pytest.raises(ShardError, match="breaks off"):
        ShardOpener(cache=tmp_path)(url).read()
    server.on("/a.tar", body=WHOLE, ETag='"1"')
    assert everything(ShardOpener(cache=tmp_path)(url)) == WHOLE


def test_a_short_answer_is_no_end_of_a_shard(server: BadServer) -> None:
    # At a boundary of members, where webdataset would take it for the end.
    url = server.on("/a.tar", serving(WHOLE, lambda number: 10 * 10_752 if number < 99 else None))
    with pytest.raises(
        StoreError, match=r"ended .* bytes too early after 107,520 bytes, 7 attempts"
    ):
        everything(ShardOpener()(url))


def test_a_server_recovers(server: BadServer) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.number < 3:
            await exchange.reply(503, Retry_After="0")
        else:
            await exchange.reply(body=WHOLE)

    assert everything(ShardOpener()(server.on("/a.tar", handler))) == WHOLE


def test_user_and_password_are_for_the_server_of_the_address(server: BadServer) -> None:
    server.on("/b.tar", body=WHOLE)
    url = server.on("/a.tar", status=302, Location=server.url("/b.tar"))
    signed = url.replace("http://", "http://me:a%40b@")
    assert everything(ShardOpener()(signed)) == WHOLE
    assert server.seen("/a.tar")[0].headers["authorization"] == "Basic bWU6YUBi"
    assert "authorization" not in server.seen("/b.tar")[0].headers


# S3


def test_objects_are_read_in_pieces_with_retries(
    s3_url: str, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reelmill.store.remote._PIECE", 150_000)
    open_backend(s3_url).put("shards/a.tar", WHOLE)
    url = f"{s3_url}/shards/a.tar"
    s3_faults.clear()
    s3_faults.storm(0.4, 3, [Fault.ERROR_500, Fault.RESET_BEFORE, Fault.CUT_BODY, Fault.SHORT_BODY])
    assert len(samples(ShardOpener(), url)) == 40
    assert sum(s3_faults.struck().values()) > 0
    s3_faults.clear()
    with pytest.raises(NotFoundError, match=r"there is no s3://.*/absent.tar"):
        ShardOpener()(f"{s3_url}/absent.tar")


def test_an_object_that_changes_while_it_is_read_is_an_error(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reelmill.store.remote._PIECE", 150_000)
    backend = open_backend(s3_url)
    backend.put("a.tar", WHOLE)
    file = ShardOpener()(f"{s3_url}/a.tar")
    file.read(10)
    backend.put("a.tar", tar(seed=1))
    with pytest.raises(ShardError, match="changed while it was read"):
        everything(file)


# The cache


def two_sets(server: BadServer) -> list[str]:
    """Shards of two datasets by one name, as every dataset has."""
    return [
        server.on(f"/{name}/000000.tar", serving(tar(seed=seed), ETag=f'"{seed}"'))
        for seed, name in enumerate(("cats", "dogs"))
    ]


def test_two_datasets_are_not_mixed(server: BadServer, tmp_path: Path) -> None:
    urls = two_sets(server)
    # webdataset names what it keeps by the last part of the address, and gives out cats for dogs.
    assert len({wds.cache.url_to_cache_name(url) for url in urls}) == 1
    opener = ShardOpener(cache=ShardCache(tmp_path))
    for _ in range(2):
        first, second = (samples(opener, url)[0]["bin"][0] for url in urls)
        assert (first, second) == (0, 1)


def test_a_kept_shard_is_not_read_again_until_it_changes(server: BadServer, tmp_path: Path) -> None:
    sent: list[int] = []

    async def handler(exchange: Exchange) -> None:
        body, etag = (WHOLE, "1") if exchange.number < 3 else (tar(seed=9), "2")
        await exchange.head(Content_Length=len(body), ETag=f'"{etag}"')
        for start in range(0, len(body), 100_000):
            await exchange.send(body[start : start + 100_000])
            sent.append(exchange.number)

    url = server.on("/a.tar", handler)
    opener = ShardOpener(cache=ShardCache(tmp_path))
    found = [everything(opener(url)) for _ in range(3)]
    assert found[0] == found[1] == WHOLE
    assert found[2] == tar(seed=9)
    kept = list(tmp_path.glob("*/*.tar"))
    assert len(kept) == 2
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in kept)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_breaks_leaves_nothing_behind(server: BadServer, tmp_path: Path) -> None:
    url = server.on("/a.tar", serving(WHOLE, lambda number: 100 if number < 99 else None))
    opener = ShardOpener(cache=ShardCache(tmp_path))
    with pytest.raises(StoreError, match="7 attempts"):
        opener(url)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_least_recently_read_goes_when_room_is_needed(
    server: BadServer, tmp_path: Path
) -> None:
    urls = [server.on(f"/{n}.tar", serving(tar(seed=n), ETag=f'"{n}"')) for n in range(4)]
    cache = ShardCache(tmp_path, max_bytes=2 * len(WHOLE) + 1000)
    opener = ShardOpener(cache=cache)

    def kept() -> set[int]:
        seen = set()
        for path in tmp_path.glob("*/*.tar"):
            with tarfile.open(path) as archive:
                seen.add(archive.extractfile("0000.bin").read(1)[0])  # type: ignore[union-attr]
        return seen

    for number in (0, 1, 0, 2):
        assert everything(opener(urls[number])) == tar(seed=number)
        _later(tmp_path)
    assert kept() == {0, 2}
    # One that does not fit is read all the same.
    large = tar(200)
    assert everything(opener(server.on("/large.tar", body=large))) == large
    assert len(list(tmp_path.glob("tmp/*"))) == 0

    # Nor does one whose size nobody knows, as it turns out.
    async def unknown(exchange: Exchange) -> None:
        await exchange.head(ETag='"1"')
        await exchange.send(large)

    assert everything(opener(server.on("/unknown.tar", unknown))) == large
    # Of what a server tells nothing at all nobody would know whether it is still the same.
    before = sorted(tmp_path.glob("*/*"))

    async def silent(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(tar(3, seed=exchange.number))

    url = server.on("/silent.tar", silent)
    assert [everything(opener(url)) for _ in range(2)] == [tar(3, seed=1), tar(3, seed=2)]
    assert sorted(tmp_path.glob("*/*")) == before
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 2 * len(WHOLE) + 1000


def _later(folder: Path) -> None:
    """Have all that was done so far be a second older."""
    for path in folder.glob("*/*.tar"):
        past = path.stat().st_mtime_ns - 10**9
        os.utime(path, ns=(past, past))


READ = """
import sys
from reelmill.loading.cache import ShardCache
from reelmill.loading.openers import ShardOpener
opener = ShardOpener(cache=ShardCache(sys.argv[1]))
sys.stdin.readline()
for url in sys.argv[2:]:
    with opener(url) as file:
        assert sum(len(p) for p in iter(lambda: file.read(10240), b"")) == int(sys.stdin.readline())
"""


def test_processes_and_threads_share_a_cache(server: BadServer, tmp_path: Path) -> None:
    bodies = {"/0.tar": tar(400), "/1.tar": tar(300, seed=5)}
    whole: list[str] = []

    def counted(path: str) -> Callable[[Exchange], Any]:
        async def handler(exchange: Exchange) -> None:
            body = bodies[path]
            await exchange.head(Content_Length=len(body), ETag='"1"')
            for start in range(0, len(body), 65_536):
                await exchange.send(body[start : start + 65_536])
            whole.append(path)

        return handler

    urls = [server.on(path, counted(path)) for path in bodies]
    others = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(tmp_path), *urls], stdin=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    opener = ShardOpener(cache=ShardCache(tmp_path))
    found: list[bytes] = []

    def read() -> None:
        found.extend(everything(opener(url)) for url in urls)

    threads = [threading.Thread(target=read) for _ in range(2)]
    sizes = "\n".join(str(len(body)) for body in bodies.values())
    for other in others:
        assert other.stdin is not None
        other.stdin.write(f"go\n{sizes}\n")
        other.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert sorted(found) == sorted(2 * list(bodies.values()))
    assert len(list(tmp_path.glob("*/*.tar"))) == 2
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_dead_process_left_is_taken_over(server: BadServer, tmp_path: Path) -> None:
    (url, _) = two_sets(server)
    cache = ShardCache(tmp_path)
    name = sha256(f'{url}\n{len(WHOLE)}\n"0"'.encode())
    (tmp_path / "tmp" / name).write_bytes(b"x" * (len(WHOLE) + 999))
    assert everything(ShardOpener(cache=cache)(url)) == WHOLE
    assert (tmp_path / name[:2] / f"{name}.tar").read_bytes() == WHOLE
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_dead_processes_left_takes_no_room(server: BadServer, tmp_path: Path) -> None:
    (url, _) = two_sets(server)
    cache = ShardCache(tmp_path, max_bytes=len(WHOLE) + 1000)
    dead, alive = tmp_path / "tmp" / "dead", tmp_path / "tmp" / "alive"
    dead.write_bytes(bytes(len(WHOLE)))
    alive.write_bytes(bytes(500))
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert everything(ShardOpener(cache=cache)(url)) == WHOLE
    assert list((tmp_path / "tmp").iterdir()) == [alive]
    assert len(list(tmp_path.glob("*/*.tar"))) == 1


def test_a_kept_shard_that_was_cut_short_is_read_anew(server: BadServer, tmp_path: Path) -> None:
    (url, _) = two_sets(server)
    for _ in range(2):
        assert everything(ShardOpener(cache=tmp_path)(url)) == WHOLE
        [kept] = tmp_path.glob("*/*.tar")
        kept.chmod(0o600)
        os.truncate(kept, 100)


def test_shards_of_a_store_are_kept_by_their_digests(
    s3_url: str, s3_faults: Faults, tmp_path: Path
) -> None:
    store = Store.open(s3_url, create=True)
    blob = store.put_blob(WHOLE, "tar")
    name = blob_name(blob.digest, "tar")
    cached = CachedBlobs(store.backend, ShardCache(tmp_path, max_bytes=len(WHOLE)))
    ranges = [Range(name, 5, 99), Range(name, 20_000, 20_001), Range(name, 0, 3)]
    wanted = [WHOLE[r.start : r.stop] for r in ranges]
    assert cached.read_ranges(ranges) == wanted
    s3_faults.clear()
    assert cached.read_ranges(ranges) == wanted
    assert s3_faults.log == []
    kept = tmp_path / blob.digest[:2] / f"{blob.digest}.tar"
    assert kept.read_bytes() == WHOLE
    kept.chmod(0o600)
    os.truncate(kept, 100)
    assert cached.read_ranges(ranges) == wanted
    # What the store holds is looked at before it is kept.
    other = store.put_blob(tar(20), "tar")
    store.backend.delete(blob_name(other.digest, "tar"))
    store.backend.put(blob_name(other.digest, "tar"), tar(20, seed=3))
    with pytest.raises(ShardError, match="not what its name says"):
        cached.read_ranges([Range(blob_name(other.digest, "tar"), 0, 3)])
    # And what does not fit is read where it is.
    large = store.put_blob(tar(100), "tar")
    assert cached.read_ranges([Range(blob_name(large.digest, "tar"), 0, 4)]) == [b"0000"]
    store.backend.delete(blob_name(large.digest, "tar"))
    with pytest.raises(NotFoundError, match="is gone"):
        cached.read_ranges([Range(blob_name(large.digest, "tar"), 0, 4)])


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write .*file"):
        ShardCache(tmp_path / "file")
