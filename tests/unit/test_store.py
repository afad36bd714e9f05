"""The store keeps its promises in a folder and on S3 alike: one suite, both places."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reelmill.dataset import open_version
from reelmill.digest import sha256
from reelmill.errors import NotFoundError, ReelmillError, StoreError
from reelmill.store import Store
from reelmill.store import lease as leases
from reelmill.store.backend import Backend, Range, open_backend
from reelmill.store.lease import DEAD_AFTER, lease, live_runs
from reelmill.store.local import LocalBackend, scratch_name
from reelmill.store.model import (
    Action,
    Blob,
    Generation,
    LeaseRecord,
    Manifest,
    Ref,
    Result,
    Shard,
    action_name,
    blob_name,
)
from reelmill.store.place import place
from tests.s3_server import Faults

CONTENDERS = 16


@pytest.fixture
def store(store_url: str) -> Store:
    return Store.open(store_url, create=True)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def an_action(name: object) -> Action:
    return Action(stage="test", version=1, params={"name": str(name)}, inputs={})


def a_result(store: Store, text: str, samples: int = 1) -> Result:
    """A result whose blobs are in the store."""
    return Result(
        tar=store.put_blob(f"tar of {text}".encode(), "tar"),
        index=store.put_blob(f"index of {text}".encode(), "parquet"),
        samples=samples,
        rejects=0,
        fields=("mp4",),
    )


def a_ref(version: str, *tags: str, event: str = "commit", run: str = "run") -> Ref:
    return Ref.model_validate(
        {
            "event": event,
            "version": version,
            "tags": tags or ("latest",),
            "time": "2000-01-01T00:00:00+00:00",
            "run": run,
            "stage": "test",
            "totals": {"shards": 1, "samples": 1, "rejects": 0, "bytes": 1},
        }
    )


def a_manifest(*results: Result) -> Manifest:
    shards = tuple(result.shard(f"{place:05d}") for place, result in enumerate(results))
    return Manifest(fields=("mp4",), generations=(Generation(shards=shards),))


def scratch_files(store: Store) -> list[Path]:
    """What this process has under way in the store's scratch folder."""
    mine = f"~{os.getpid()}~"
    return [path for path in store.backend.scratch().iterdir() if mine in path.name]


def names(store: Store, prefix: str = "") -> list[str]:
    return [entry.name for entry in store.backend.list(prefix) if not entry.name.startswith("tmp")]


@contextlib.contextmanager
def one_line_error(kind: type[ReelmillError], *parts: str) -> Iterator[None]:
    """The body raises ``kind`` with one short printable line in which all ``parts`` occur."""
    with pytest.raises(kind) as caught:
        yield
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    for part in parts:
        assert part in line


# Opening


def test_a_store_that_was_made_opens_again(store_url: str) -> None:
    made = Store.open(store_url, create=True)
    blob = made.put_blob(b"kept", "json")
    assert Store.open(store_url).read_blob(blob.digest, "json") == b"kept"
    assert Store.open(store_url, create=True).read_blob(blob.digest, "json") == b"kept"


def test_a_store_that_was_made_can_be_shared_between_writers(store: Store) -> None:
    assert store.shareable


def test_opening_leaves_nothing_but_the_stores_own_record(store: Store) -> None:
    assert names(store) == ["store.json"]


def test_a_missing_store_is_an_error_and_is_not_made(store_url: str) -> None:
    with one_line_error(StoreError, store_url, "no store", "reelmill build"):
        Store.open(store_url)
    assert not Store.is_at(store_url)
    assert "://" in store_url or not Path(store_url).exists()


def test_a_store_is_found_where_one_is(store: Store) -> None:
    assert Store.is_at(store.url)


def test_a_store_of_another_format_is_refused_and_left_as_it_is(store: Store) -> None:
    for record in (
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"format":1',
        b'{"digest":"sha256","format":2}',
        b'{"digest":"md5","format":1}',
        b'{"digest":"sha256","format":1,"more":1}',
    ):
        store.backend.put("store.json", record)
        for create in (False, True):
            with one_line_error(StoreError, store.url, "format"):
                Store.open(store.url, create=create)
        assert store.backend.read("store.json") == record


@pytest.mark.parametrize("url", ["", "s3://", "s3:///", "file://"])
def test_an_address_of_nothing_is_refused(url: str) -> None:
    with one_line_error(StoreError, "address"):
        Store.open(url, create=True)


def test_an_unknown_scheme_is_refused() -> None:
    with one_line_error(StoreError, "nosuch"):
        Store.open("nosuch://place/store")


def test_a_file_in_the_stores_place_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "store"
    file.write_text("not a folder")
    for create in (False, True):
        with one_line_error(StoreError, str(file), "a file"):
            Store.open(str(file), create=create)
    with one_line_error(StoreError, str(file), "a file"):
        Store.is_at(str(file))


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    Store.open(f"file://{tmp_path}/store", create=True).put_blob(b"data", "json")
    assert Store.open(str(tmp_path / "store")).read_blob(sha256(b"data"), "json") == b"data"


def test_a_missing_bucket_is_named(s3_url: str) -> None:
    with one_line_error(StoreError, "s3://no-such-bucket/store", "no such bucket"):
        Store.open("s3://no-such-bucket/store", create=True)
    with one_line_error(StoreError, "s3://no-such-bucket/store", "no such bucket"):
        open_backend("s3://no-such-bucket/store").put("blobs/x", b"data")


def test_an_s3_endpoint_that_is_down_is_named(
    s3_url: str, new_s3_client: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("reelmill.store.remote.ATTEMPTS", 2)
    new_s3_client()
    with one_line_error(StoreError, s3_url, "Could not connect"):
        Store.open(s3_url)


def test_a_filesystem_without_put_if_absent_is_not_shared() -> None:
    url = f"memory://{secrets.token_hex(4)}/store"
    store = Store.open(url, create=True)
    assert not store.shareable
    result = a_result(store, "data")
    assert store.commit(an_action("x"), result, {}) == result
    assert store.recall([an_action("x").key]) == {an_action("x").key: result}


def test_a_folder_without_hard_links_works_and_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = Store.open(str(tmp_path / "store"), create=True)
    assert not store.shareable
    assert store.backend.create("refs/x", b"first")
    assert not store.backend.create("refs/x", b"second")
    assert store.backend.read("refs/x") == b"first"
    assert scratch_files(store) == []


# Blobs


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * (3 << 12)])
def test_a_blob_comes_back_as_it_went_in(store: Store, data: bytes) -> None:
    blob = store.put_blob(data, "json")
    assert blob == Blob(digest=sha256(data), size=len(data))
    assert store.read_blob(blob.digest, "json") == data
    assert store.hash_blob(blob.digest, "json") == blob.digest
    assert b"".join(store.backend.stream(blob_name(blob.digest, "json"))) == data


def test_a_file_becomes_a_blob_and_leaves_scratch(store: Store) -> None:
    data = secrets.token_bytes(100_000)
    for _ in range(2):
        path = scratch_name(store.backend.scratch())
        path.write_bytes(data)
        store.put_blob_file(path, Blob(digest=sha256(data), size=len(data)), "tar")
        assert scratch_files(store) == []
    assert store.read_blob(sha256(data), "tar") == data


def test_a_blob_that_is_there_is_not_written_again(store_url: str, s3_faults: Faults) -> None:
    store = Store.open(store_url, create=True)
    blob = store.put_blob(b"data", "json")
    before = next(store.backend.list("blobs/"))
    s3_faults.clear()
    store.put_blob(b"data", "json")
    assert s3_faults.count("PUT", "/blobs/") == 0
    assert list(store.backend.list("blobs/")) == [before]
    assert before.size == blob.size


def test_a_document_on_s3_is_read_with_one_request(s3_url: str, s3_faults: Faults) -> None:
    store = Store.open(s3_url, create=True)
    store.commit(an_action("x"), a_result(store, "data"), {})
    s3_faults.clear()
    assert store.record(an_action("x").key)
    assert len(s3_faults.log) == 1


def test_ranges_come_in_the_order_asked_and_exactly_as_long(store: Store) -> None:
    one, two = bytes(range(256)) * 8, b"second" * 100
    first = blob_name(store.put_blob(one, "tar").digest, "tar")
    second = blob_name(store.put_blob(two, "tar").digest, "tar")
    asked = [
        Range(second, 6, 12),
        Range(first, 0, len(one)),
        Range(first, 5, 5),
        Range(first, len(one), len(one)),
        Range(first, 100, 300),
        Range(first, len(one) - 1, len(one)),
        Range(second, 0, 6),
        Range(first, 250, 260),
    ]
    whole = {first: one, second: two}
    assert store.backend.read_ranges(asked) == [whole[r.name][r.start : r.stop] for r in asked]
    assert store.backend.read_ranges([]) == []


def test_a_range_beyond_the_end_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelmill.store.remote.ATTEMPTS", 2)
    name = blob_name(store.put_blob(b"short", "tar").digest, "tar")
    with one_line_error(StoreError, name):
        store.backend.read_ranges([Range(name, 0, 6)])


def test_reading_what_is_not_there_says_so(store: Store) -> None:
    absent = sha256(b"absent")
    with one_line_error(NotFoundError, absent, "build again"):
        store.read_blob(absent, "json")
    assert store.hash_blob(absent, "json") is None
    assert store.backend.size(blob_name(absent, "json")) is None
    with pytest.raises(FileNotFoundError):
        store.backend.read(blob_name(absent, "json"))
    with pytest.raises(FileNotFoundError):
        store.backend.read_ranges([Range(blob_name(absent, "tar"), 0, 1)])
    store.backend.delete(blob_name(absent, "json"))


@pytest.mark.parametrize("many", [False, True])
def test_sizes_are_of_those_objects_that_exist(store: Store, many: bool) -> None:
    made = {blob_name(store.put_blob(b"x" * n, "json").digest, "json"): n for n in range(3)}
    absent = {blob_name(sha256(b"absent %d" % n), "json") for n in range(100 if many else 3)}
    assert store.backend.sizes([*made, *absent]) == made
    assert store.backend.sizes([]) == {}


def test_a_listing_is_sorted_and_of_its_folder_only(store: Store) -> None:
    wanted = [f"refs/clips/{n:020d}.json" for n in (0, 1, 9, 10, 100)]
    for name in [*reversed(wanted), "refs/clips2/00000000000000000000.json", "refs/cli.json"]:
        store.backend.put(name, name.encode())
    entries = list(store.backend.list("refs/clips/"))
    assert [entry.name for entry in entries] == wanted
    assert [entry.size for entry in entries] == [len(name) for name in wanted]
    assert all(abs(entry.modified - time.time()) < 60 for entry in entries)
    assert list(store.backend.list("refs/none/")) == []


def test_a_damaged_blob_is_found(store: Store) -> None:
    blob = store.put_blob(b"intact", "tar")
    for damaged in (b"tarred", b"tar", b"", b"tarred and feathered"):
        store.backend.put(blob_name(blob.digest, "tar"), damaged)
        with one_line_error(StoreError, blob.digest, "damaged"):
            store.read_blob(blob.digest, "tar")
        assert store.hash_blob(blob.digest, "tar") == sha256(damaged)


def test_a_blob_of_the_wrong_size_is_replaced(store: Store) -> None:
    data = b"whole and intact"
    blob = Blob(digest=sha256(data), size=len(data))
    for torn in (b"", data[:-1]):
        store.backend.put(blob_name(blob.digest, "tar"), torn)
        path = scratch_name(store.backend.scratch())
        path.write_bytes(data)
        store.put_blob_file(path, blob, "tar")
        assert store.read_blob(blob.digest, "tar") == data
        store.backend.put(blob_name(blob.digest, "json"), torn)
        store.put_blob(data, "json")
        assert store.read_blob(blob.digest, "json") == data


def test_all_that_lies_in_a_folder_is_read_only(local: Store) -> None:
    result = a_result(local, "data")
    path = scratch_name(local.backend.scratch())
    path.write_bytes(b"a file")
    local.put_blob_file(path, Blob(digest=sha256(b"a file"), size=6), "tar")
    local.commit(an_action("x"), result, {})
    local.commit_ref("clips", a_ref(local.put_manifest(a_manifest(result))))
    files = [path for path in Path(local.url).rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}


def test_replacing_an_object_leaves_a_readers_open_file_as_it_was(local: Store) -> None:
    local.backend.put("leases/x.json", b"first")
    with open(local.backend.locate("leases/x.json"), "rb") as reader:
        local.backend.put("leases/x.json", b"second")
        assert reader.read() == b"first"


# Put-if-absent


def test_only_the_first_put_if_absent_succeeds(store: Store) -> None:
    assert store.backend.create("refs/x", b"first")
    assert not store.backend.create("refs/x", b"second")
    assert store.backend.read("refs/x") == b"first"
    store.backend.delete("refs/x")
    assert store.backend.create("refs/x", b"third")
    assert scratch_files(store) == []


_RACE = """
import json, os, sys
from reelmill.store import Store
from tests.unit.test_store import contend

store = Store.open(sys.argv[1])
waiting, go = os.pipe()
for number in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.close(go)
        os.read(waiting, 1)
        os.write(1, (json.dumps(contend(store, number, int(sys.argv[3]))) + "\\n").encode())
        os._exit(0)
os.close(waiting)
os.close(go)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def contend(store: Store, number: int, turns: int) -> dict[str, Any]:
    """What one of the contenders in a race does, and what it believes to be the outcome."""
    created = store.backend.create("refs/race", f"by {number}".encode())
    result = a_result(store, f"contender {number}", samples=number)
    stands = store.commit(an_action("race"), result, {"run": str(number)})
    refs = [a_ref(sha256(b"%d %d" % (number, n)), run=f"{number}.{n}") for n in range(turns)]
    for ref in refs:
        store.commit_ref("clips", ref)
    return {"number": number, "created": created, "stands": stands.samples}


def race_of_processes(url: str, turns: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", _RACE, url, str(CONTENDERS), str(turns)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def race_of_threads(url: str, turns: int) -> list[dict[str, Any]]:
    barrier = threading.Barrier(CONTENDERS)

    def start(number: int) -> dict[str, Any]:
        store = Store.open(url)
        barrier.wait()
        return contend(store, number, turns)

    with ThreadPoolExecutor(CONTENDERS) as pool:
        return list(pool.map(start, range(CONTENDERS)))


def test_a_race_has_one_winner_that_all_losers_adopt_and_loses_no_line_of_the_log(
    store: Store,
) -> None:
    race, turns = (race_of_processes, 3) if store.backend.is_local else (race_of_threads, 1)
    beliefs = race(store.url, turns)
    assert sorted(belief["number"] for belief in beliefs) == list(range(CONTENDERS))
    winners = [belief["number"] for belief in beliefs if belief["created"]]
    assert len(winners) == 1
    assert store.backend.read("refs/race") == f"by {winners[0]}".encode()
    stands = {belief["stands"] for belief in beliefs}
    assert len(stands) == 1
    key = an_action("race").key
    assert {result.samples for result in store.recall([key]).values()} == stands
    record = store.record(key)
    assert record is not None
    assert record.how["run"] == str(stands.pop())
    # Nor did the log, to which all of them appended, lose a line or get a gap.
    log = names(store, "refs/clips/")
    assert log == [f"refs/clips/{n:020d}.json" for n in range(turns * CONTENDERS)]
    runs = [ref.run for ref in store.log("clips")]
    assert sorted(runs) == sorted(f"{n}.{m}" for n in range(CONTENDERS) for m in range(turns))
    for number in range(CONTENDERS):
        own = [run for run in runs if run.startswith(f"{number}.")]
        assert own == [f"{number}.{n}" for n in range(turns)]


# Actions


def test_what_was_committed_is_recalled_by_every_run(store: Store) -> None:
    result = a_result(store, "data")
    assert store.recall([an_action("x").key]) == {}
    assert store.commit(an_action("x"), result, {"run": "r"}) == result
    again = Store.open(store.url)
    assert again.recall([an_action("x").key, an_action("y").key]) == {an_action("x").key: result}
    record = again.record(an_action("x").key)
    assert record is not None
    assert (record.action, record.result) == (an_action("x"), result)
    assert record.how["run"] == "r"


def test_the_loser_adopts_the_winners_result(store: Store) -> None:
    first, second = a_result(store, "first", 1), a_result(store, "second", 2)
    assert store.commit(an_action("x"), first, {}) == first
    assert Store.open(store.url).commit(an_action("x"), second, {}) == first
    assert store.recall([an_action("x").key]) == {an_action("x").key: first}


@pytest.mark.parametrize("lost", ["tar", "index"])
@pytest.mark.parametrize("how", ["gone", "torn"])
def test_a_hit_whose_blobs_are_lost_is_a_miss_and_can_be_made_anew(
    store: Store, lost: str, how: str
) -> None:
    key = an_action("x").key
    result = a_result(store, "data")
    store.commit(an_action("x"), result, {})
    blob = result.tar if lost == "tar" else result.index
    assert blob is not None
    name = blob_name(blob.digest, "tar" if lost == "tar" else "parquet")
    if how == "gone":
        store.backend.delete(name)
    else:
        store.backend.put(name, b"torn")
    assert store.recall([key]) == {}
    anew = a_result(store, "other data", 2)
    assert store.commit(an_action("x"), anew, {}) == anew
    assert store.recall([key]) == {key: anew}


def test_a_result_made_anew_with_the_same_bytes_is_whole(store: Store) -> None:
    key = an_action("x").key
    result = a_result(store, "data")
    store.commit(an_action("x"), result, {})
    for name in result.blob_names():
        store.backend.delete(name)
    assert store.recall([key]) == {}
    assert store.commit(an_action("x"), a_result(store, "data"), {}) == result
    assert store.recall([key]) == {key: result}


def test_a_forgotten_action_is_a_miss(store: Store) -> None:
    store.commit(an_action("x"), a_result(store, "data"), {})
    store.forget(an_action("x").key)
    store.forget(an_action("x").key)
    assert store.recall([an_action("x").key]) == {}


def test_recall_of_many_finds_exactly_those_that_are_whole(store: Store) -> None:
    count = 60

    def make(n: int) -> tuple[str, Result]:
        result = a_result(store, f"data {n}", n)
        return an_action(n).key, store.commit(an_action(n), result, {})

    with ThreadPoolExecutor(8) as pool:
        made = dict(pool.map(make, range(count)))
    for n in range(0, count, 10):
        tar = made.pop(an_action(n).key).tar
        assert tar is not None
        store.backend.delete(blob_name(tar.digest, "tar"))
    asked = [an_action(n).key for n in range(count + 30)] * 2
    assert store.recall(asked) == made


# The order of writes


class Death(BaseException):
    """The end of a process between two steps."""


class Dying:
    """A backend whose process ends at its n-th write, just before it or just after."""

    def __init__(self, backend: Backend, step: int, after: bool) -> None:
        self._backend = backend
        self._left = step
        self._after = after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return self._writing(found) if name in ("create", "put", "put_file", "delete") else found

    def _writing(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Death
            done = write(*arguments)
            if self._left == 0:
                raise Death
            return done

        return step


WRITES = ("tar", "index", "action", "manifest", "lineage", "ref")


def build(store: Store, name: str) -> str:
    """All the writes of a dataset of one shard; its version."""
    tar = f"tar of {name}".encode()
    path = scratch_name(store.backend.scratch())
    path.write_bytes(tar)
    blob = Blob(digest=sha256(tar), size=len(tar))
    store.put_blob_file(path, blob, "tar")
    index = store.put_blob(f"index of {name}".encode(), "parquet")
    result = Result(tar=blob, index=index, samples=1, rejects=0)
    stands = store.commit(an_action(name), result, {})
    version = store.put_manifest(a_manifest(stands))
    lineage = store.put_blob(f'{{"format":1,"shards":[],"x":"{name}"}}'.encode(), "json")
    store.commit_ref(name, a_ref(version).model_copy(update={"lineage": lineage.digest}))
    return version


@pytest.mark.parametrize("after", [False, True])
def test_a_writer_may_die_between_any_two_steps(store: Store, after: bool) -> None:
    for step, write in enumerate(WRITES, 1):
        name = f"{write}-{after}".lower()
        dying: Any = Dying(store.backend, step, after)
        with pytest.raises(Death):
            build(Store(dying), name)
        assert scratch_files(store) == []
        done = step if after else step - 1
        key = an_action(name).key
        later = Store.open(store.url)
        recalled = later.recall([key])
        assert bool(recalled) == (done >= 1 + WRITES.index("action"))
        for result in recalled.values():
            assert_whole(later, result)
        if done == len(WRITES):
            assert open_version(later, name).manifest.totals().samples == 1
        else:
            assert name not in later.datasets()
            with pytest.raises(NotFoundError):
                later.resolve(name)
        version = build(later, name)
        assert later.resolve(name)[1].version == version
        assert len(later.log(name)) == 1
        assert set(later.recall([key])) == {key}


def assert_whole(store: Store, result: Result | Shard) -> None:
    assert result.tar is not None
    assert result.index is not None
    assert store.hash_blob(result.tar.digest, "tar") == result.tar.digest
    assert store.hash_blob(result.index.digest, "parquet") == result.index.digest


_KILLED = """
import os, signal, sys, time
from reelmill.store import Store
from tests.unit.test_store import build

store = Store.open(sys.argv[1])
heard, tell = os.pipe()
for life in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for n in range(10**6):
            build(store, f"life{life}-{n}")
            os.write(tell, b".")
    os.read(heard, 1)
    time.sleep(0.004 * life)
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_what_killed_processes_leave_is_whole_or_invisible(local: Store) -> None:
    lives = 12
    subprocess.run(
        [sys.executable, "-c", _KILLED, local.url, str(lives)],
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=120,
    )
    datasets = local.datasets()
    assert len(datasets) >= lives
    for name in datasets:
        version = open_version(local, name)
        assert local.recall([an_action(name).key])
        for shard in version.manifest.shards:
            assert_whole(local, shard)
    records = names(local, "actions/")
    keys = [Path(name).stem for name in records]
    assert set(local.recall(keys)) == set(keys)
    Store.open(local.url, create=True)
    assert list(local.backend.scratch().iterdir()) == []


# Refs


def test_a_log_tells_what_was_committed_oldest_first(store: Store) -> None:
    first, second = a_ref("a" * 64), a_ref("b" * 64, "latest", "v1")
    store.commit_ref("clips", first)
    store.commit_ref("clips", second)
    store.commit_ref("videos", first)
    assert store.log("clips") == [first, second]
    assert store.log("none") == []
    assert store.latest("clips") == second
    assert store.latest("none") is None
    assert store.datasets() == ["clips", "videos"]


def test_committing_the_same_version_again_adds_no_line(store: Store) -> None:
    first = store.commit_ref("clips", a_ref("a" * 64, run="one"))
    assert store.commit_ref("clips", a_ref("a" * 64, run="two")) == first
    assert store.log("clips") == [first]


def test_going_back_to_an_older_version_is_a_line_of_its_own(store: Store) -> None:
    for version in "aba":
        store.commit_ref("clips", a_ref(version * 64))
    assert [ref.version[0] for ref in store.log("clips")] == ["a", "b", "a"]
    assert store.resolve("clips")[1].version == "a" * 64


def test_more_than_ten_lines_stay_in_order(store: Store) -> None:
    versions = [sha256(b"%d" % n) for n in range(12)]
    for version in versions:
        store.commit_ref("clips", a_ref(version))
    assert [ref.version for ref in store.log("clips")] == versions


@pytest.fixture
def tagged(store: Store) -> Store:
    store.commit_ref("clips", a_ref("abcd1" + "0" * 59, "latest", "v1"))
    store.commit_ref("clips", a_ref("abcd2" + "0" * 59))
    store.commit_ref("clips", a_ref("ef" * 32))
    store.commit_ref("clips", a_ref("abcd2" + "0" * 59, "best", "abcd1", event="tag"))
    return store


def test_a_spec_stands_for_a_version_and_a_tag_wins_over_a_prefix(tagged: Store) -> None:
    for spec, version in {
        "clips": "efefef",
        "clips@": "efefef",
        "clips@latest": "efefef",
        "clips@v1": "abcd10",
        "clips@best": "abcd20",
        "clips@efef": "efefef",
        "clips@" + "ef" * 32: "efefef",
        "clips@abcd10": "abcd10",
        "clips@abcd1": "abcd20",
    }.items():
        name, ref = tagged.resolve(spec)
        assert (name, ref.version[:6]) == ("clips", version), spec
        assert open_version(tagged, spec).digest == ref.version


def test_of_two_versions_that_grow_from_one_the_second_is_refused(store: Store) -> None:
    first, second, third = (sha256(name) for name in (b"1", b"2", b"3"))
    assert store.grow_ref("table", a_ref(first), None)
    assert not store.grow_ref("table", a_ref(second), None)
    assert store.grow_ref("table", a_ref(second), first)
    assert store.grow_ref("table", a_ref(second), first), "whoever did the same"
    assert not store.grow_ref("table", a_ref(third), first)
    assert [ref.version for ref in store.log("table")] == [first, second]


def test_a_spec_that_fits_none_or_several_is_refused(tagged: Store) -> None:
    for spec, part in {
        "clips@abcd": "2 versions begin with 'abcd'",
        "clips@efe": "no version or tag 'efe'",
        "clips@v2": "no version or tag 'v2'",
        "clips@EFEF": "no version or tag 'EFEF'",
        "clip": "there are: clips",
        "../clips": "there are: clips",
        "": "there are: clips",
        "@latest": "there are: clips",
        "clips@a\nb": "no version or tag",
        "a\x1b[31mb": "no dataset",
    }.items():
        with one_line_error(NotFoundError, part):
            tagged.resolve(spec)


def test_a_tag_moves_to_the_version_that_got_it_last(tagged: Store) -> None:
    tagged.commit_ref("clips", a_ref("ef" * 32, "v1", event="tag"))
    assert tagged.resolve("clips@v1")[1].version == "ef" * 32


def test_an_empty_store_has_no_datasets(store: Store) -> None:
    assert store.datasets() == []
    with one_line_error(NotFoundError, "none yet"):
        store.resolve("clips")


def test_files_that_others_left_in_the_store_do_no_harm(store: Store) -> None:
    for name in (
        "refs/notes.txt",
        "refs/clips/.DS_Store",
        "refs/clips/zzz.json",
        "refs/Not A Name/00000000000000000000.json",
        "refs/clips/99999.json",
        "leases/.DS_Store",
        "leases/probe-0",
        "views/readme.txt",
    ):
        store.backend.put(name, b"stray")
    assert store.datasets() == []
    store.commit_ref("clips", a_ref("a" * 64))
    store.commit_ref("clips", a_ref("b" * 64))
    assert [ref.version[0] for ref in store.log("clips")] == ["a", "b"]
    assert store.resolve("clips")[1].version == "b" * 64
    assert store.datasets() == ["clips"]
    assert live_runs(store) == []


# What strangers wrote


GOOD_SHARD = {
    "id": "00000",
    "tar": {"digest": "a" * 64, "size": 1},
    "index": {"digest": "b" * 64, "size": 1},
    "samples": 1,
    "rejects": 0,
}


def _forged(**changes: object) -> dict[str, object]:
    shard = {**GOOD_SHARD, **changes}
    return {"format": 1, "fields": ["mp4"], "generations": [{"shards": [shard]}]}


FORGED = {
    "parent folder": _forged(tar={"digest": "../" * 21 + "x", "size": 1}),
    "absolute path": _forged(index={"digest": "/etc/passwd", "size": 1}),
    "line end": _forged(tar={"digest": "a" * 64 + "\n", "size": 1}),
    "upper case": _forged(tar={"digest": "A" * 64, "size": 1}),
    "short digest": _forged(tar={"digest": "a" * 63, "size": 1}),
    "digest of wrong type": _forged(tar={"digest": 1, "size": 1}),
    "negative size": _forged(tar={"digest": "a" * 64, "size": -1}),
    "size of wrong type": _forged(tar={"digest": "a" * 64, "size": "many"}),
    "no index": _forged(index=None),
    "shard of wrong type": {"format": 1, "fields": [], "generations": [{"shards": "00000"}]},
    "shard id with a path": _forged(id="../00000"),
    "shard id with a line end": _forged(id="00000\n"),
    "shard id in other digits": _forged(id="٠٠٠٠٠"),
    "samples of wrong type": _forged(samples=[]),
    "negative samples": _forged(samples=-1),
    "unknown key": _forged(more=1),
    "unknown key with line ends": _forged(**{"evil\n\x1b[2Jkey\u202e" * 50: 1}),
    "later format": {"format": 2, "fields": [], "generations": []},
    "nothing": {},
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("document", FORGED.values(), ids=FORGED.keys())
def test_a_forged_manifest_is_refused_with_one_line(local: Store, document: object) -> None:
    blob = local.put_blob(json.dumps(document).encode(), "json")
    with one_line_error(StoreError, blob.digest, "Manifest"):
        local.manifest(blob.digest)


def test_the_manifest_that_the_forgeries_were_made_from_is_accepted(store: Store) -> None:
    blob = store.put_blob(json.dumps(_forged()).encode(), "json")
    assert store.manifest(blob.digest).totals().bytes == 2


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"format":1e999}', b"\xff", b"\x00", b"{}{}"])
def test_what_is_no_json_is_refused_with_one_line(local: Store, data: bytes) -> None:
    blob = local.put_blob(data, "json")
    with one_line_error(StoreError, blob.digest, "Manifest"):
        local.manifest(blob.digest)
    with one_line_error(StoreError, blob.digest, "Lineage"):
        local.lineage(blob.digest)


def test_a_truncated_action_record_is_named(store: Store) -> None:
    key = an_action("x").key
    store.commit(an_action("x"), a_result(store, "data"), {})
    whole = store.backend.read(action_name(key))
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        store.backend.put(action_name(key), whole[:length])
        with one_line_error(StoreError, action_name(key), "ActionRecord"):
            store.recall([key])
    store.backend.put(action_name(key), whole)
    assert store.recall([key])


def test_a_truncated_ref_is_named(store: Store) -> None:
    store.commit_ref("clips", a_ref("a" * 64))
    (name,) = names(store, "refs/clips/")
    store.backend.put(name, store.backend.read(name)[:-1])
    for look in (store.resolve, store.log, store.latest):
        with one_line_error(StoreError, name, "Ref"):
            look("clips")


@pytest.mark.parametrize("version", ["../" * 10 + "etc/passwd", "a" * 63, "a" * 64 + "\n", 1])
def test_a_ref_to_something_else_than_a_digest_is_refused(local: Store, version: object) -> None:
    forged = {**a_ref("a" * 64).model_dump(mode="json"), "version": version}
    local.backend.put(f"refs/clips/{0:020d}.json", json.dumps(forged).encode())
    with one_line_error(StoreError, "version"):
        local.resolve("clips")


# A folder that refuses


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users may look into, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


_STRANGER = """
import os, sys
from reelmill.errors import ReelmillError
from reelmill.store import Store
from reelmill.store.local import LocalBackend
from tests.unit.test_store import a_ref

url = sys.argv[1]
store = Store.open(url)
store.read_blob(sys.argv[2], "json")
ref = a_ref("a" * 64)
ref.as_bytes()  # whatever this imports, a stranger may not be able to read
if os.getuid() == 0:
    os.setuid(65534)
def attempt(what):
    try:
        what()
        print("no error")
    except ReelmillError as error:
        print(f"{type(error).__name__}: {error}")
attempt(lambda: store.put_blob(b"new", "json"))
attempt(lambda: store.backend.create("refs/x", b"new"))
attempt(lambda: store.backend.delete("store.json"))
attempt(lambda: store.commit_ref("clips", ref))
attempt(lambda: Store.open(url, create=True))
attempt(lambda: Store.open(url + "/../other", create=True))
attempt(lambda: list(store.backend.list("refs/hidden/")))
attempt(lambda: store.datasets())
store.read_blob(sys.argv[2], "json")
print("readable")
"""


def test_a_folder_that_may_not_be_written_to_gives_one_clear_line(public_folder: Path) -> None:
    store = Store.open(str(public_folder / "store"), create=True)
    blob = store.put_blob(b"old", "json")
    store.backend.put("refs/hidden/x", b"secret")
    hidden = public_folder / "store" / "refs" / "hidden"
    hidden.chmod(0)
    folders = [public_folder, *(path for path in public_folder.rglob("*") if path.is_dir())]
    if os.getuid() != 0:
        for folder in folders:
            if folder != hidden:
                folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _STRANGER, store.url, blob.digest],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.stderr == ""
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 8
    for line in refusals:
        assert line.startswith("StoreError: cannot ")
        assert line.endswith("Permission denied; choose a folder that you may write to")
        assert str(public_folder) in line
    assert last == "readable"
    assert list(store.backend.scratch().iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only an administrator may mount a small filesystem")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def test_a_full_disk_gives_one_clear_line_and_keeps_what_was_there(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "store"), create=True)
    kept = store.put_blob(b"kept", "json")
    full: tuple[type[StoreError], str] = (StoreError, "the disk is full")
    with one_line_error(*full):
        store.put_blob(secrets.token_bytes(2 << 20), "tar")
    assert scratch_files(store) == []
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with one_line_error(*full):
        store.backend.create("refs/clips/x", b"data")
    with one_line_error(*full):
        store.commit(an_action("x"), Result(index=kept, samples=0, rejects=0), {})
    with one_line_error(*full), lease(store, "run"):
        pytest.fail("the lease was not refused")
    assert scratch_files(store) == []
    assert store.read_blob(kept.digest, "json") == b"kept"
    assert store.recall([an_action("x").key]) == {}
    filler.unlink()
    assert store.put_blob(b"data", "json").size == 4
    store.commit(an_action("x"), Result(index=kept, samples=0, rejects=0), {})


@pytest.mark.parametrize(
    "call", ["os.fsync", "os.link", "pathlib.Path.replace", "pathlib.Path.chmod"]
)
@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "error")],
)
def test_a_write_that_fails_at_any_call_leaves_nothing(
    local: Store, monkeypatch: pytest.MonkeyPatch, call: str, number: int, advice: str
) -> None:
    before = names(local)
    scratch = scratch_name(local.backend.scratch())
    scratch.write_bytes(b"file")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    writes: list[Callable[[], object]] = [
        lambda: local.put_blob(b"data", "json"),
        lambda: local.put_blob_file(scratch, Blob(digest=sha256(b"file"), size=4), "tar"),
        lambda: local.backend.create("refs/x", b"data"),
    ]
    lines = []
    with monkeypatch.context() as patched:
        patched.setattr(call, fail)
        for write in writes:
            try:
                write()
            except StoreError as error:
                lines.append(str(error).lower())
    assert len(lines) == {"os.link": 1, "pathlib.Path.replace": 2}.get(call, 3)
    assert all(advice in line and line.isprintable() for line in lines)
    assert scratch_files(local) == []
    if call == "pathlib.Path.chmod":
        assert names(local) == before
    for write in writes[::2]:
        write()


def test_a_store_that_was_removed_under_a_writer_gives_one_clear_line(local: Store) -> None:
    away = Path(local.url).rename(local.url + "-away")
    Path(local.url).write_text("something else")
    for write in (
        lambda: local.put_blob(b"data", "json"),
        lambda: local.backend.create("refs/x", b"data"),
        lambda: local.backend.scratch(),
    ):
        with one_line_error(StoreError, "cannot ", "a file lies where"):
            write()
    Path(local.url).unlink()
    away.rename(local.url)


def test_a_scratch_folder_that_was_removed_is_made_again(local: Store) -> None:
    local.backend.scratch().rmdir()
    assert local.read_blob(local.put_blob(b"data", "json").digest, "json") == b"data"


def test_a_file_from_elsewhere_does_not_enter_a_folder(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "store")
    other = tmp_path / "other"
    other.write_bytes(b"data")
    with pytest.raises(ValueError, match="scratch"):
        backend.put_file("blobs/x", other)


# Scratch


def test_scratch_of_dead_processes_is_swept_and_that_of_others_is_kept(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = Store.open(store_url, create=True).backend.scratch()
    here = place()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = {
        f"{here}~{os.getpid()}~a",
        f"elsewhere~{ended.pid}~b",
        f"{socket.gethostname()}~{ended.pid}~g",
        "notes.txt",
        f"{here}~x~c",
    }
    for name in {*kept, f"{here}~{ended.pid}~d", f"{here}~{10**30}~e"}:
        (scratch / name).write_bytes(b"half")
    folder = scratch / f"{here}~{ended.pid}~f"
    folder.mkdir()
    (folder / "half").write_bytes(b"half")
    Store.open(store_url)
    assert folder.exists()
    Store.open(store_url, create=True)
    assert {path.name for path in scratch.iterdir()} == kept


def test_scratch_that_another_user_prepared_is_not_used(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend = open_backend(s3_url)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"reelmill-{os.getuid()}").symlink_to(elsewhere)
    with one_line_error(StoreError, "another user", "TMPDIR"):
        backend.scratch()


# Leases


def _beat(store: Store, run: str, seconds_ago: float) -> None:
    then = int(time.time() - seconds_ago)
    record = LeaseRecord(run=run, host="elsewhere", pid=1, started=then, beat=then)
    store.backend.put(f"leases/{run}.json", record.as_bytes())


def test_a_run_is_live_while_it_holds_its_lease(store: Store) -> None:
    assert live_runs(store) == []
    with lease(store, "one"), lease(Store.open(store.url), "two"):
        assert [record.run for record in live_runs(store)] == ["one", "two"]
        assert {record.pid for record in live_runs(store)} == {os.getpid()}
    assert names(store, "leases/") == []


def test_a_lease_ends_with_a_run_that_fails(store: Store) -> None:
    with pytest.raises(KeyError), lease(store, "run"):
        raise KeyError
    assert live_runs(store) == []


def test_a_run_without_a_heartbeat_is_dead_after_a_while(store: Store) -> None:
    _beat(store, "dead", DEAD_AFTER + 2)
    _beat(store, "live", DEAD_AFTER - 30)
    assert [record.run for record in live_runs(store)] == ["live"]


def test_a_heart_beats_on_after_a_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    put = store.backend.put
    beats: list[bool] = []

    def fail_at_first(name: str, data: bytes) -> None:
        beats.append(True)
        if len(beats) == 2:
            raise StoreError("the store is away")
        put(name, data)

    monkeypatch.setattr(store.backend, "put", fail_at_first)
    with lease(store, "run"):
        deadline = time.monotonic() + 10
        while len(beats) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(beats) >= 4
        assert [record.run for record in live_runs(store)] == ["run"]


def test_a_store_that_cannot_be_shared_refuses_a_second_writer(store: Store) -> None:
    alone = Store(store.backend, shareable=False)
    _beat(store, "dead", DEAD_AFTER + 2)
    with lease(alone, "first"):
        with (
            one_line_error(StoreError, store.url, "first", socket.gethostname()),
            lease(alone, "second"),
        ):
            pytest.fail("the second writer was let in")
        assert [record.run for record in live_runs(store)] == ["first"]
    with lease(alone, "third"):
        pass


def test_a_damaged_lease_does_no_harm(store: Store) -> None:
    store.backend.put("leases/torn.json", b'{"format":1,"run":"x')
    store.backend.put("leases/odd.json", b"\xff")
    with lease(store, "run"):
        assert [record.run for record in live_runs(store)] == ["run"]


def test_a_killed_run_leaves_a_lease_that_dies(local: Store) -> None:
    code = (
        "import sys, time; from reelmill.store import Store; from reelmill.store.lease import lease"
        "\nwith lease(Store.open(sys.argv[1]), 'killed'): print(flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, local.url], stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    assert [record.run for record in live_runs(local)] == ["killed"]
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    (record,) = live_runs(local)
    assert record.pid == run.pid
    aged = record.model_copy(update={"beat": record.beat - DEAD_AFTER})
    local.backend.put("leases/killed.json", aged.as_bytes())
    assert live_runs(local) == []
