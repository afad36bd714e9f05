"""The store on an S3 that loses, cuts and delays answers: nothing is lost, nothing half there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reelmill.digest import sha256
from reelmill.errors import StoreError
from reelmill.store import Store, remote
from reelmill.store.backend import Range
from reelmill.store.lease import lease, live_runs
from reelmill.store.local import scratch_name
from reelmill.store.model import Action, Blob, Ref, Result, action_name, blob_name
from tests.s3_server import Delay, Fault, Faults, Happening

LOST = Fault.RESET_AFTER


@pytest.fixture
def store(impatient_s3_url: str, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose driver does not hide faults by tries of its own, and that waits briefly."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    store = Store.open(impatient_s3_url, create=True)
    s3_faults.clear()
    return store


@pytest.fixture
def stubborn_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that no storm wears down by mere chance."""
    monkeypatch.setattr(remote, "ATTEMPTS", 14)
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.1)
    return store


def an_action(name: object) -> Action:
    return Action(stage="test", version=1, params={"name": str(name)}, inputs={})


def a_ref(version: str, run: str, event: str = "commit") -> Ref:
    return Ref.model_validate(
        {
            "event": event,
            "version": version,
            "tags": ("latest",),
            "time": "2000-01-01T00:00:00+00:00",
            "run": run,
            "stage": "test",
            "totals": {"shards": 1, "samples": 1, "rejects": 0, "bytes": 1},
        }
    )


# A storm


WRITERS = 8
ROUNDS = 12


def _work(store: Store, writer: int) -> dict[str, Any]:
    """What one writer of several does in the storm, and what the store told it."""
    chance = random.Random(writer)
    told: dict[str, Any] = {"blobs": {}, "results": {}, "refs": []}
    for turn in range(ROUNDS):
        data = chance.randbytes(chance.choice([0, 1, 700, 40_000]))
        index = store.put_blob(data, "parquet")
        if turn % 3 == 0:
            path = scratch_name(store.backend.scratch())
            path.write_bytes(data)
            store.put_blob_file(path, Blob(digest=sha256(data), size=len(data)), "tar")
            told["blobs"][blob_name(sha256(data), "tar")] = data
        told["blobs"][blob_name(index.digest, "parquet")] = data
        result = Result(index=index, samples=writer, rejects=turn)
        action = an_action(turn)
        told["results"][action.key] = store.commit(action, result, {"writer": writer})
        if turn % 4 == 0:
            run = f"{writer}.{turn}"
            store.commit_ref("clips", a_ref(sha256(run.encode()), run))
            told["refs"].append(run)
        recalled = store.recall([action.key])
        assert recalled == {action.key: told["results"][action.key]}
        assert store.read_blob(index.digest, "parquet") == data
        assert store.hash_blob(index.digest, "parquet") == index.digest
    return told


def test_a_storm_loses_nothing_and_leaves_nothing_half_visible(
    stubborn_store: Store, s3_faults: Faults
) -> None:
    store = stubborn_store
    s3_faults.storm(0.2, seed=1)
    with ThreadPoolExecutor(WRITERS) as pool:
        told = list(pool.map(lambda writer: _work(store, writer), range(WRITERS)))
    struck, requests = s3_faults.struck(), len(s3_faults.log)
    s3_faults.clear()
    assert requests > 1000
    assert 0.14 < sum(struck.values()) / requests < 0.26
    assert len(struck) >= 5

    blobs = {name: data for each in told for name, data in each["blobs"].items()}
    listed = {entry.name: entry.size for entry in store.backend.list("blobs/")}
    assert listed == {name: len(data) for name, data in blobs.items()}
    for name, data in blobs.items():
        assert store.backend.read(name) == data
        assert Path(name).stem == sha256(data)

    keys = [an_action(turn).key for turn in range(ROUNDS)]
    recalled = store.recall(keys)
    assert set(recalled) == set(keys)
    assert [entry.name for entry in store.backend.list("actions/")] == sorted(
        map(action_name, keys)
    )
    for each in told:
        assert each["results"] == recalled

    runs = [ref.run for ref in store.log("clips")]
    names = [entry.name for entry in store.backend.list("refs/clips/")]
    assert names == [f"refs/clips/{n:020d}.json" for n in range(len(names))]
    assert sorted(runs) == sorted(run for each in told for run in each["refs"])
    for each in told:
        assert [run for run in runs if run in each["refs"]] == each["refs"]
    assert live_runs(store) == []


def test_opening_and_leasing_withstand_a_storm(stubborn_store: Store, s3_faults: Faults) -> None:
    store = stubborn_store
    s3_faults.storm(0.3, seed=3)
    for n in range(5):
        opened = Store.open(store.url, create=True)
        assert opened.shareable
        with lease(opened, f"run{n}"):
            assert [record.run for record in live_runs(store)] == [f"run{n}"]
    s3_faults.clear()
    assert [entry.name for entry in store.backend.list("")] == ["store.json"]


# A put-if-absent


@pytest.mark.parametrize(
    "happenings",
    [
        [LOST],
        [Fault.CONFLICT, LOST],
        [Fault.RESET_BEFORE, LOST],
        [Fault.ERROR_500],
        [Fault.SLOW_DOWN],
        [Fault.RESET_BEFORE],
        [Fault.CONFLICT, Fault.CONFLICT, Fault.CONFLICT],
        [Delay(0.9)],
        [Fault.CONFLICT, Delay(0.9)],
    ],
    ids=lambda happenings: "-".join(getattr(h, "name", "DELAY") for h in happenings),
)
def test_a_put_that_fails_or_whose_answer_is_lost_is_still_ours(
    store: Store, s3_faults: Faults, happenings: list[Happening]
) -> None:
    s3_faults.script("PUT", "refs/x", happenings)
    assert store.backend.create("refs/x", b"ours")
    puts = [request.happening for request in s3_faults.log if request.conditional]
    assert puts[: len(happenings)] == happenings
    s3_faults.clear()
    assert store.backend.read("refs/x") == b"ours"


@pytest.mark.parametrize(
    "happenings",
    [
        [Fault.NONE],
        [LOST],
        [Fault.RESET_BEFORE, LOST],
        [Fault.CONFLICT, Fault.ERROR_500],
        [Delay(0.9)],
    ],
    ids=lambda happenings: "-".join(getattr(h, "name", "DELAY") for h in happenings),
)
def test_a_put_where_another_was_first_is_lost_and_changes_nothing(
    store: Store, s3_faults: Faults, happenings: list[Happening]
) -> None:
    assert store.backend.create("refs/x", b"theirs")
    s3_faults.script("PUT", "refs/x", happenings)
    assert not store.backend.create("refs/x", b"ours")
    s3_faults.clear()
    assert store.backend.read("refs/x") == b"theirs"


def test_every_put_if_absent_carries_the_condition(store: Store, s3_faults: Faults) -> None:
    store.backend.create("refs/x", b"ours")
    store.backend.create("refs/x", b"ours again")
    puts = [request for request in s3_faults.log if request.method == "PUT"]
    assert [request.headers.get("if-none-match") for request in puts] == ["*", "*"]


def test_a_put_that_the_driver_repeats_by_itself_is_still_ours(
    s3_url: str, s3_faults: Faults
) -> None:
    store = Store.open(s3_url, create=True)
    s3_faults.clear()
    s3_faults.script("PUT", "refs/x", [LOST])
    assert store.backend.create("refs/x", b"ours")
    assert s3_faults.count("PUT") == 2
    assert not store.backend.create("refs/x", b"other")


def test_an_empty_object_in_the_way_is_another_writers(store: Store) -> None:
    store.backend.put("refs/x", b"")
    assert not store.backend.create("refs/x", b"ours")


def test_a_lost_answer_read_back_in_part_is_still_ours(store: Store, s3_faults: Faults) -> None:
    s3_faults.script("PUT", "refs/x", [LOST])
    s3_faults.script("GET", "refs/x", [Fault.SHORT_BODY, Fault.CUT_BODY])
    assert store.backend.create("refs/x", b'{"run":"ours"}')


def test_a_record_whose_answer_was_lost_is_adopted_by_its_own_writer(
    store: Store, s3_faults: Faults
) -> None:
    result = Result(index=store.put_blob(b"index", "parquet"), samples=1, rejects=0)
    s3_faults.script("PUT", "actions/", [LOST])
    assert store.commit(an_action("x"), result, {"run": "one"}) == result
    other = Result(index=store.put_blob(b"other", "parquet"), samples=2, rejects=0)
    s3_faults.script("PUT", "actions/", [LOST])
    assert store.commit(an_action("x"), other, {"run": "two"}) == result
    record = store.record(an_action("x").key)
    assert record is not None
    assert record.how["run"] == "one"


@pytest.mark.parametrize("event", ["commit", "tag"])
def test_a_ref_whose_answer_was_lost_is_in_the_log_once(
    store: Store, s3_faults: Faults, event: str
) -> None:
    s3_faults.script("PUT", "refs/", [LOST, Fault.NONE, LOST])
    for n in range(3):
        store.commit_ref("clips", a_ref(sha256(b"%d" % n), f"run{n}", event))
    assert [ref.run for ref in store.log("clips")] == ["run0", "run1", "run2"]


# Reads


CUTS: list[list[Happening]] = [
    [Fault.CUT_BODY],
    [Fault.SHORT_BODY],
    [Fault.SHORT_BODY, Fault.CUT_BODY, Fault.ERROR_500, Fault.RESET_BEFORE],
    [LOST],
    [Delay(0.9)],
]


def _ids(happenings: Iterable[Happening]) -> str:
    return "-".join(getattr(happening, "name", "DELAY") for happening in happenings)


@pytest.mark.parametrize("cuts", CUTS, ids=_ids)
def test_ranges_that_came_cut_are_read_again(
    store: Store, s3_faults: Faults, cuts: list[Happening]
) -> None:
    data = random.Random(0).randbytes(10_000)
    name = blob_name(store.put_blob(data, "tar").digest, "tar")
    s3_faults.clear()
    s3_faults.script("GET", name, cuts)
    ranges = [Range(name, 0, 5000), Range(name, 7000, 7001), Range(name, 9000, 10_000)]
    assert store.backend.read_ranges(ranges) == [data[r.start : r.stop] for r in ranges]
    # What came whole is not read again.
    assert s3_faults.count("GET") == len(ranges) + len(cuts)


@pytest.mark.parametrize("cuts", CUTS, ids=_ids)
def test_blobs_and_documents_that_came_cut_are_read_again(
    store: Store, s3_faults: Faults, cuts: list[Happening]
) -> None:
    result = Result(index=store.put_blob(b"index" * 100, "parquet"), samples=1, rejects=0)
    store.commit(an_action("x"), result, {})
    digest = store.put_blob(b"data" * 1000, "json").digest
    s3_faults.clear()
    for pattern in ("blobs/", "actions/", "store.json"):
        s3_faults.script("GET", pattern, cuts[:2])
    assert store.read_blob(digest, "json") == b"data" * 1000
    assert store.recall([an_action("x").key]) == {an_action("x").key: result}
    assert Store.open(store.url, probe=False).url == store.url
    assert sum(s3_faults.struck().values()) == 3 * len(cuts[:2])


@pytest.mark.parametrize("cuts", CUTS, ids=_ids)
def test_a_stream_and_a_listing_that_came_cut_are_read_again(
    store: Store, s3_faults: Faults, cuts: list[Happening]
) -> None:
    data = random.Random(1).randbytes(50_000)
    blob = store.put_blob(data, "tar")
    store.commit_ref("clips", a_ref("a" * 64, "run"))
    s3_faults.script("GET", blob.digest, cuts)
    s3_faults.script("GET", "list-type=2", cuts)
    assert store.hash_blob(blob.digest, "tar") == blob.digest
    assert store.datasets() == ["clips"]
    assert sum(s3_faults.struck().values()) == 2 * len(cuts)


def test_a_live_run_is_not_taken_for_dead_by_a_cut_answer(store: Store, s3_faults: Faults) -> None:
    with lease(store, "run"):
        s3_faults.script("GET", "leases/", [Fault.SHORT_BODY, Fault.CUT_BODY, Fault.SHORT_BODY])
        assert [record.run for record in live_runs(store)] == ["run"]


def test_a_late_answer_is_waited_for(store: Store, s3_faults: Faults) -> None:
    digest = store.put_blob(b"data", "json").digest
    s3_faults.clear()
    s3_faults.script("GET", digest, [Delay(0.2)])
    started = time.monotonic()
    assert store.read_blob(digest, "json") == b"data"
    assert time.monotonic() - started >= 0.2
    assert s3_faults.count("GET", digest) == 1


# Puts of blobs


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize(
    "happenings",
    [[LOST, LOST], [Fault.ERROR_500, Fault.RESET_BEFORE, Fault.SLOW_DOWN], [Delay(0.9)]],
    ids=_ids,
)
def test_a_blob_arrives_in_spite_of_faults(
    store: Store, s3_faults: Faults, happenings: list[Happening], size: int
) -> None:
    data = random.Random(size).randbytes(size)
    path = scratch_name(store.backend.scratch())
    path.write_bytes(data)
    s3_faults.script("PUT", "blobs/", happenings)
    store.put_blob_file(path, Blob(digest=sha256(data), size=size), "tar")
    assert not path.exists()
    assert s3_faults.struck()
    assert store.read_blob(sha256(data), "tar") == data


def test_a_delete_whose_answer_was_lost_is_done(store: Store, s3_faults: Faults) -> None:
    store.backend.create("refs/x", b"data")
    s3_faults.script("DELETE", "refs/x", [LOST, Fault.ERROR_500])
    store.backend.delete("refs/x")
    assert store.backend.size("refs/x") is None


# Faults that do not end


def _always(happening: Happening) -> Iterable[Happening]:
    while True:
        yield happening


@pytest.mark.parametrize(
    "fault",
    [Fault.ERROR_500, Fault.SLOW_DOWN, Fault.RESET_BEFORE, Fault.SHORT_BODY, Fault.CUT_BODY],
    ids=lambda fault: fault.name,
)
def test_an_outage_ends_in_one_line_and_nothing_is_half_there(
    store: Store, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    name = blob_name(store.put_blob(b"kept" * 100, "tar").digest, "tar")
    calls: list[Callable[[], object]] = [
        lambda: store.backend.read_ranges([Range(name, 0, 400)]),
        lambda: store.hash_blob(sha256(b"kept" * 100), "tar"),
    ]
    if fault is not Fault.SHORT_BODY:
        calls.append(lambda: store.backend.read(name))
    if fault not in (Fault.SHORT_BODY, Fault.CUT_BODY):
        calls += [
            lambda: store.put_blob(b"new", "json"),
            lambda: store.commit_ref("clips", a_ref("a" * 64, "run")),
        ]
    for method in ("GET", "PUT"):
        s3_faults.script(method, "", _always(fault))
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        line = str(caught.value)
        assert line.isprintable()
        assert store.url in line
        assert "after 3 attempts" in line
    s3_faults.clear()
    assert [entry.name for entry in store.backend.list("")] == [name, "store.json"]
    assert store.put_blob(b"new", "json").size == 3
    assert store.commit_ref("clips", a_ref("a" * 64, "run")).run == "run"
    assert len(store.log("clips")) == 1


def test_a_refusal_is_not_tried_again(store: Store, s3_faults: Faults) -> None:
    s3_faults.script("PUT", "", _always(Fault.DENIED))
    s3_faults.script("GET", "refs/y", _always(Fault.DENIED))
    calls: list[Callable[[], object]] = [
        lambda: store.put_blob(b"new", "json"),
        lambda: store.backend.create("refs/x", b"new"),
        lambda: store.backend.read("refs/y"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"access denied.*credentials") as caught:
            call()
        assert str(caught.value).isprintable()
    assert s3_faults.struck()[Fault.DENIED] == len(calls)


def test_missing_credentials_are_named(
    s3_url: str, new_s3_client: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    new_s3_client()
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID") as caught:
        Store.open(s3_url)
    assert str(caught.value).isprintable()
