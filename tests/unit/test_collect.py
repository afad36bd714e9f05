"""A collection removes what is of no use and nothing else: in a folder and on S3 alike."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill.dataset import open_version
from reelmill.digest import sha256
from reelmill.errors import NotFoundError, StoreError
from reelmill.store import Store
from reelmill.store import collect as collecting
from reelmill.store import lease as leases
from reelmill.store.backend import Backend, Entry
from reelmill.store.collect import Collection, Policy, collect, plan_collection
from reelmill.store.lease import DEAD_AFTER, Lease, lease, live_runs
from reelmill.store.local import scratch_name
from reelmill.store.model import (
    Action,
    Generation,
    LeaseRecord,
    Lineage,
    LineageEntry,
    Manifest,
    Ref,
    Result,
    action_name,
    blob_name,
)
from tests.s3_server import Fault, Faults

DAY = 86400
YEAR = 365 * DAY
ONE_MONTH = Policy(keep_versions=1, keep="30d")


class Past:
    """A backend that says of everything it held when ``grow_old`` was called that it is old."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._old: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def grow_old(self) -> None:
        self._old = {entry.name: entry.modified for entry in self._backend.list("")}

    def list(self, prefix: str) -> Iterator[Entry]:
        return map(self._aged, self._backend.list(prefix))

    def entry(self, name: str) -> Entry | None:
        entry = self._backend.entry(name)
        return self._aged(entry) if entry else None

    def _aged(self, entry: Entry) -> Entry:
        if self._old.get(entry.name) != entry.modified:
            return entry
        return Entry(entry.name, entry.size, entry.modified - YEAR)


@pytest.fixture
def past(store_url: str) -> Any:
    backend: Any = Past(Store.open(store_url, create=True).backend)
    return backend


@pytest.fixture
def store(past: Any) -> Store:
    return Store(past)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def an_action(name: object) -> Action:
    return Action(stage="test", version=1, params={"name": str(name)}, inputs={})


def make(store: Store, name: object) -> Result:
    """Make a shard as a worker does, unless it was made."""
    action = an_action(name)
    if made := store.recall([action.key]):
        return made[action.key]
    result = Result(
        tar=store.put_blob(f"tar of {name}".encode(), "tar"),
        index=store.put_blob(f"index of {name}".encode(), "parquet"),
        samples=1,
        rejects=0,
        fields=("mp4",),
    )
    return store.commit(action, result, {})


def manifest_of(results: Sequence[Result]) -> Manifest:
    shards = tuple(result.shard(f"{place:05d}") for place, result in enumerate(results))
    return Manifest(fields=("mp4",), generations=(Generation(shards=shards),))


def commit(
    store: Store, dataset: str, names: Sequence[object], days_ago: float = 0, **changes: object
) -> str:
    """Make a version of some shards as a build does; its digest."""
    results = [make(store, name) for name in names]
    manifest = manifest_of(results)
    lineage = Lineage(
        shards=tuple(
            LineageEntry(shard=f"{place:05d}", action=an_action(name).key, result=result)
            for place, (name, result) in enumerate(zip(names, results, strict=True))
        )
    )
    version = store.put_manifest(manifest)
    ref = {
        "event": "commit",
        "version": version,
        "tags": ("latest",),
        "time": days_before_now(days_ago),
        "run": "run",
        "stage": "test",
        "lineage": store.put_blob(lineage.as_bytes(), "json").digest,
        "totals": manifest.totals(),
        **changes,
    }
    store.commit_ref(dataset, Ref.model_validate(ref))
    return version


def tag(store: Store, spec: str, name: str, days_ago: float = 0) -> None:
    dataset, ref = store.resolve(spec)
    update = {"event": "tag", "tags": (name,), "time": days_before_now(days_ago)}
    store.commit_ref(dataset, ref.model_copy(update=update))


def days_before_now(days: float) -> str:
    return datetime.fromtimestamp(time.time() - days * DAY, UTC).isoformat(timespec="seconds")


def assert_whole(store: Store, dataset: str, version: str) -> None:
    """Every byte of a version is there and right, and it can be opened."""
    for shard in open_version(store, f"{dataset}@{version}").manifest.shards:
        assert shard.tar is not None
        assert store.hash_blob(shard.tar.digest, "tar") == shard.tar.digest
        assert store.hash_blob(shard.index.digest, "parquet") == shard.index.digest


def is_there(store: Store, version: str) -> bool:
    return bool(store.present([version]))


def names(store: Store, prefix: str = "") -> set[str]:
    found = {entry.name for entry in store.backend.list(prefix)}
    return {name for name in found if not name.startswith("tmp/")}


def counts(found: Collection) -> dict[str, int]:
    """How many objects of each kind were removed, but for claims."""
    removed = {kind: tally.count for kind, tally in found.removed.items() if tally.count}
    removed.pop("claims", None)
    return removed


# What stays and what goes


def test_superseded_versions_go_after_a_while_and_the_newest_stay(store: Store, past: Any) -> None:
    versions = [commit(store, "clips", [n, "common"], 100 - n) for n in range(5)]
    past.grow_old()
    found = collect(store, Policy(keep_versions=2, keep="30d"))
    assert found.versions == sorted(f"clips@{version[:12]}" for version in versions[:3])
    assert counts(found) == {"tars": 3, "indexes": 3, "documents": 6, "action records": 3}
    for version in versions[:3]:
        assert not is_there(store, version)
    for version in versions[3:]:
        assert_whole(store, "clips", version)
    assert found.kept.count == 2 * 3 + 2 * 2
    again = collect(store, Policy(keep_versions=2, keep="30d"))
    assert (again.versions, again.total.count, again.kept) == ([], 0, found.kept)


def test_a_version_stays_for_a_while_after_it_was_superseded(store: Store, past: Any) -> None:
    old = commit(store, "clips", ["old"], 90)
    commit(store, "clips", ["new"], 20)
    past.grow_old()
    assert collect(store, ONE_MONTH).total.count == 0
    assert collect(store, Policy(keep_versions=1, keep="10d")).versions == [f"clips@{old[:12]}"]


def test_a_tag_keeps_a_version_until_it_has_moved_for_a_while(store: Store, past: Any) -> None:
    first = commit(store, "clips", ["first"], 100)
    tag(store, "clips", "v1", 99)
    second = commit(store, "clips", ["second"], 90)
    third = commit(store, "clips", ["third"], 80)
    past.grow_old()
    assert collect(store, ONE_MONTH).versions == [f"clips@{second[:12]}"]
    assert_whole(store, "clips", first)
    assert open_version(store, "clips@v1").manifest.totals().samples == 1
    tag(store, "clips@latest", "v1", 40)
    past.grow_old()
    assert collect(store, ONE_MONTH).versions == [f"clips@{first[:12]}"]
    assert_whole(store, "clips", third)


def test_a_plan_says_what_a_collection_does_and_writes_nothing(store: Store, past: Any) -> None:
    for n in range(4):
        commit(store, "clips", [n], 100 - n)
    make(store, "unfinished")
    past.grow_old()
    before = names(store)
    planned = plan_collection(store, ONE_MONTH)
    assert names(store) == before
    assert planned.total.bytes > 0
    assert collect(store, ONE_MONTH) == planned
    assert len(before) - len(names(store)) == planned.total.count


def test_unfinished_work_stays_for_a_while(store: Store, past: Any) -> None:
    make(store, "unfinished")
    orphan = store.put_blob(b"of a build that died", "tar")
    before = names(store)
    assert collect(store, ONE_MONTH).total.count == 0
    assert names(store) == before
    past.grow_old()
    assert counts(collect(store, ONE_MONTH)) == {"action records": 1, "indexes": 1, "tars": 2}
    assert store.recall([an_action("unfinished").key]) == {}
    assert store.hash_blob(orphan.digest, "tar") is None


def test_a_record_whose_blobs_all_stay_is_remembered(store: Store, past: Any) -> None:
    commit(store, "clips", ["kept"], 100)
    other, half = an_action("other way to the same"), an_action("half of the same")
    same = make(store, "kept")
    store.commit(other, same, {})
    lost = same.model_copy(update={"tar": store.put_blob(b"lost", "tar")})
    store.commit(half, lost, {})
    past.grow_old()
    assert counts(collect(store, ONE_MONTH)) == {"action records": 1, "tars": 1}
    assert store.recall([other.key, half.key]) == {other.key: same}


def test_what_two_datasets_share_stays_while_one_needs_it(store: Store, past: Any) -> None:
    version = commit(store, "clips", ["same"], 100)
    assert commit(store, "copies", ["same"], 100) == version
    commit(store, "clips", ["other"], 90)
    past.grow_old()
    found = collect(store, ONE_MONTH)
    assert (found.versions, counts(found)) == ([], {})
    assert_whole(store, "clips", version)


def test_a_source_remembers_how_it_was_ingested(store: Store, past: Any) -> None:
    manifest = manifest_of([make(store, "rows")])
    data = manifest.as_bytes()
    blob = store.put_blob(data, "json")
    ingest = an_action("ingest")
    store.commit(ingest, Result(manifest=blob, samples=1, rejects=0), {})
    commit(store, "urls", ["rows"], 100, lineage=None, action=ingest.key)
    past.grow_old()
    collect(store, ONE_MONTH)
    assert store.record(ingest.key) is not None
    assert_whole(store, "urls", blob.digest)


def test_a_live_run_holds_back_the_horizon_and_a_dead_one_does_not(store: Store, past: Any) -> None:
    old = commit(store, "clips", ["old"], 90)
    commit(store, "clips", ["new"], 60)
    past.grow_old()
    then = int(time.time()) - 40 * DAY
    run = LeaseRecord(run="long", host=socket.gethostname(), pid=1, started=then, beat=then)
    live = run.model_copy(update={"beat": int(time.time())})
    store.backend.put("leases/long.json", live.as_bytes())
    assert collect(store, ONE_MONTH).total.count == 0
    store.backend.put("leases/long.json", run.as_bytes())
    assert collect(store, ONE_MONTH).versions == [f"clips@{old[:12]}"]


def test_signs_of_life_go_when_they_are_old(store: Store, past: Any) -> None:
    store.claim(["blobs/x"])
    store.backend.put("leases/dead.json", b"{}")
    store.backend.put("leases/probe-0a", b"first")
    assert collect(store, ONE_MONTH).total.count == 0
    past.grow_old()
    found = collect(store, ONE_MONTH)
    assert (found.removed["claims"].count, found.removed["leases"].count) == (1, 2)
    assert names(store) == {"store.json"}


def test_files_that_others_left_are_left(store: Store, past: Any) -> None:
    strays = {
        "blobs/notes.txt",
        "blobs/sha256/ab/.DS_Store",
        "blobs/sha256/ab/" + "cd" * 32 + ".tar",
        "actions/sha256/ab/readme.json",
        "claims/.DS_Store",
        "leases/.DS_Store",
        "views/x.tar",
    }
    for name in strays:
        store.backend.put(name, b"stray")
    past.grow_old()
    assert collect(store, ONE_MONTH).total.count == 0
    assert names(store) == {*strays, "store.json"}


def test_scratch_of_other_hosts_goes_when_nobody_touched_it_for_long(local: Store) -> None:
    scratch = local.backend.scratch()
    folder, young, mine = scratch / "else~1~a", scratch / "else~1~b", scratch_name(scratch)
    folder.mkdir()
    (folder / "half").write_bytes(b"half")
    for path in (folder, young):
        (path / "half" if path.is_dir() else path).write_bytes(b"half")
    mine.write_bytes(b"half")
    then = time.time() - YEAR
    for path in (folder / "half", folder, mine):
        os.utime(path, (then, then))
    collect(local, ONE_MONTH)
    assert set(scratch.iterdir()) == {young, mine}


def test_a_collection_tells_how_far_it_is(store: Store, past: Any) -> None:
    for n in range(3):
        make(store, n)
    past.grow_old()
    seen: list[int] = []
    collect(store, ONE_MONTH, lambda found: seen.append(found.total.count))
    assert seen == sorted(seen)
    assert seen[-1] == 9


@pytest.mark.parametrize("policy", [{"keep": "59m"}, {"keep_versions": 0}, {"keeps": 1}])
def test_a_policy_that_is_not_safe_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy(**policy)


# Versions that were collected


def test_a_collected_version_is_told_apart_and_says_so(store: Store, past: Any) -> None:
    old = commit(store, "clips", ["old"], 100)
    new = commit(store, "clips", ["new"], 90)
    past.grow_old()
    collect(store, ONE_MONTH)
    assert [ref.version for ref, _ in store.history("clips")] == [new, old]
    assert store.present([new, old]) == {new}
    version = open_version(store, f"clips@{old[:12]}")
    with pytest.raises(NotFoundError) as caught:
        version.urls()
    assert f"clips@{old[:12]} is no longer in {store.url}" in str(caught.value)
    assert "reelmill ls clips" in str(caught.value)
    with pytest.raises(NotFoundError):
        store.claim_version(old)


def test_a_collected_version_can_be_made_again(store: Store, past: Any) -> None:
    old = commit(store, "clips", ["old", "common"], 100)
    commit(store, "clips", ["new", "common"], 90)
    past.grow_old()
    collect(store, ONE_MONTH)
    gone = [an_action(name).key for name in ("old", "common")]
    assert set(store.recall(gone)) == {an_action("common").key}
    assert commit(store, "clips", ["old", "common"]) == old
    assert_whole(store, "clips", old)


# Any history


@dataclass
class World:
    """What became of datasets, day by day. ``lines`` are (day, dataset, version, tags)."""

    lines: list[tuple[int, str, str, tuple[str, ...]]] = field(default_factory=list)
    shards: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def kept(self, keep_versions: int, horizon: float) -> set[str]:
        """The definition, step by step: what was of use at some time since the horizon."""
        before = sum(line[0] >= horizon for line in self.lines)
        return {
            version
            for steps in range(before, len(self.lines) + 1)
            for dataset in {line[1] for line in self.lines}
            for version in self._of_use(dataset, keep_versions, steps)
        }

    def _of_use(self, dataset: str, keep_versions: int, steps: int) -> set[str]:
        then = [line for line in self.lines[:steps] if line[1] == dataset]
        tags = {tag: version for _, _, version, tags in then for tag in tags}
        newest: list[str] = []
        for _, _, version, put in reversed(then):
            if "latest" in put and version not in newest:
                newest.append(version)
        return {*tags.values(), *newest[:keep_versions]}


STEP = st.tuples(
    st.integers(0, 20),  # days until the next
    st.sampled_from(["clips", "flow"]),
    st.one_of(
        st.sampled_from(["v1", "v2"]),
        st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    ),
)
HISTORY = st.lists(STEP, max_size=12)


def check_history(
    url: str,
    steps: list[tuple[int, str, Any]],
    keep_versions: int,
    keep: int,
    run: int | None,
    claimed: set[int],
) -> None:
    past: Any = Past(Store.open(url, create=True).backend)
    store = Store(past)
    world = World()
    day = sum(step[0] for step in steps)
    for wait, dataset, what in steps:
        day -= wait
        if isinstance(what, str):
            if not (latest := store.latest(dataset)):
                continue
            tag(store, dataset, what, day + 0.5)
            world.lines.append((day, dataset, latest.version, (what,)))
        else:
            version = commit(store, dataset, what, day + 0.5)
            world.shards[version] = tuple(what)
            world.lines.append((day, dataset, version, ("latest",)))
    for number in range(6):
        make(store, number)
    past.grow_old()
    for number in claimed:
        store.recall([an_action(number).key])
    if run is not None:
        record = LeaseRecord(
            run="run",
            host=socket.gethostname(),
            pid=1,
            started=int(time.time()) - run * DAY,
            beat=int(time.time()),
        )
        store.backend.put("leases/run.json", record.as_bytes())

    policy = Policy(keep_versions=keep_versions, keep=f"{keep}d")
    planned = plan_collection(store, policy)
    assert collect(store, policy) == planned

    kept = world.kept(keep_versions, keep + (run or 0))
    for _, dataset, version, _ in world.lines:
        if version in kept:
            assert_whole(store, dataset, version)
    assert store.present(world.shards) == kept
    shards = {number for version in kept for number in world.shards[version]} | claimed
    tars = {blob_name(sha256(f"tar of {n}".encode()), "tar") for n in shards}
    assert {name for name in names(store, "blobs/") if name.endswith(".tar")} == tars
    # What is gone is made again, and nothing else.
    keys = {n: an_action(n).key for n in range(6)}
    assert set(store.recall(keys.values())) == {keys[n] for n in shards}
    for _, dataset, version, _ in world.lines:
        commit(store, dataset, world.shards[version])
        assert_whole(store, dataset, version)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    HISTORY,
    st.integers(1, 3),
    st.integers(1, 60),
    st.none() | st.integers(0, 40),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_of_any_history_exactly_what_is_of_use_stays(
    tmp_path: Path,
    steps: list[tuple[int, str, Any]],
    keep_versions: int,
    keep: int,
    run: int | None,
    claimed: set[int],
) -> None:
    url = str(tmp_path / secrets.token_hex(8))
    check_history(url, steps, keep_versions, keep, run, claimed)


def test_of_a_history_on_s3_exactly_what_is_of_use_stays(s3_url: str) -> None:
    chance = random.Random(1)
    steps: list[tuple[int, str, Any]] = [
        (
            chance.randrange(20),
            chance.choice(["clips", "flow"]),
            chance.choice([chance.choice(["v1", "v2"]), chance.sample(range(6), 2)]),
        )
        for _ in range(6)
    ]
    check_history(s3_url, steps, 1, 20, 5, {chance.randrange(6)})


# Runs that use what is being collected


@dataclass(frozen=True)
class UnderWay:
    """A collection that is under way until ``end`` is called; and whether somebody saw it."""

    end: Callable[[], None]
    seen: threading.Event


@pytest.fixture
def under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnderWay]:
    monkeypatch.setattr(leases, "_POLL", 0.01)
    over = threading.Event()
    begun = threading.Event()
    seen = threading.Event()
    look = leases.live_runs

    def watched(*arguments: Any) -> Any:
        found = look(*arguments)
        if found:
            seen.set()
        return found

    monkeypatch.setattr(leases, "live_runs", watched)

    def hold() -> None:
        with lease(store, "collect-test"):
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)

    def end() -> None:
        over.set()
        thread.join()

    yield UnderWay(end, seen)
    end()


def during(store: Store, work: Callable[[], Any], gone: Sequence[str], under_way: UnderWay) -> Any:
    """What ``work`` comes to if the collection removes ``gone`` while it waits."""
    with ThreadPoolExecutor(1) as pool:
        claims = names(store, "claims/")
        under_way.seen.clear()
        result = pool.submit(work)
        assert under_way.seen.wait(60)
        assert names(store, "claims/") != claims
        assert not result.done()
        store.backend.delete_all(gone)
        under_way.end()
        return result.result(timeout=60)


def test_a_recall_waits_for_a_collection_and_looks_again(store: Store, under_way: UnderWay) -> None:
    key = an_action("x").key
    result = Result(
        tar=store.put_blob(b"tar", "tar"),
        index=store.put_blob(b"index", "parquet"),
        samples=1,
        rejects=0,
    )
    store.commit(an_action("x"), result, {})
    assert store.recall([an_action("none").key]) == {}
    assert store.recall([key], claim=False) == {key: result}
    gone = [action_name(key), *result.blob_names()]
    assert during(store, lambda: store.recall([key]), gone, under_way) == {}


def test_a_blob_that_goes_while_its_writer_waits_is_written(
    store: Store, under_way: UnderWay
) -> None:
    blob = store.put_blob(b"data", "json")
    gone = [blob_name(blob.digest, "json")]
    assert during(store, lambda: store.put_blob(b"data", "json"), gone, under_way) == blob
    assert store.read_blob(blob.digest, "json") == b"data"


def test_a_file_whose_blob_goes_while_its_writer_waits_is_taken_over(
    store: Store, under_way: UnderWay
) -> None:
    path = scratch_name(store.backend.scratch())
    path.write_bytes(b"data")
    blob = store.put_blob(b"data", "tar")
    gone = [blob_name(blob.digest, "tar")]
    during(store, lambda: store.put_blob_file(path, blob, "tar"), gone, under_way)
    assert store.read_blob(blob.digest, "tar") == b"data"
    assert not path.exists()


def test_a_result_that_goes_while_the_loser_waits_is_not_adopted(
    store: Store, under_way: UnderWay
) -> None:
    action = an_action("x")

    def result(text: str) -> Result:
        return Result(index=store.put_blob(text.encode(), "parquet"), samples=1, rejects=0)

    first, second = result("first"), result("second")
    store.commit(action, first, {})
    gone = [action_name(action.key), *first.blob_names()]
    assert during(store, lambda: store.commit(action, second, {}), gone, under_way) == second
    assert store.recall([action.key]) == {action.key: second}


def test_a_version_that_goes_while_its_reader_waits_is_not_claimed(
    store: Store, under_way: UnderWay
) -> None:
    manifest = Manifest(fields=(), generations=())
    version = store.put_manifest(manifest)
    with pytest.raises(NotFoundError):
        during(
            store,
            lambda: store.claim_version(version),
            [blob_name(version, "json")],
            under_way,
        )


def test_what_was_claimed_stays_until_the_claim_is_old(store: Store, past: Any) -> None:
    version = commit(store, "clips", ["old"], 100)
    commit(store, "clips", ["new"], 90)
    key = an_action("unfinished").key
    result = make(store, "unfinished")
    past.grow_old()
    store.claim_version(version)
    assert store.recall([key]) == {key: result}
    assert collect(store, ONE_MONTH).versions == []
    assert_whole(store, "clips", version)
    assert store.recall([key], claim=False) == {key: result}
    past.grow_old()
    assert collect(store, ONE_MONTH).versions == [f"clips@{version[:12]}"]
    assert store.recall([key], claim=False) == {}


def test_a_version_that_is_being_committed_again_stays(store: Store, past: Any) -> None:
    version = commit(store, "clips", ["old"], 100)
    commit(store, "clips", ["new"], 90)
    past.grow_old()
    manifest = store.manifest(version)
    store.put_manifest(manifest)
    assert collect(store, ONE_MONTH).versions == []
    assert_whole(store, "clips", version)
    store.backend.delete(blob_name(version, "json"))
    past.grow_old()
    store.put_manifest(manifest)
    assert collect(store, ONE_MONTH).versions == []
    assert_whole(store, "clips", version)


class Slow:
    """A backend that gives others a chance before everything that a collection does."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if name in ("list", "entry", "delete_all"):
            time.sleep(random.random() / 200)
        return found


def use(url: str, seed: int, over: Callable[[], bool]) -> list[tuple[str, str]]:
    """Commit versions of shards that are there already, and check each; the versions."""
    chance = random.Random(seed)
    store = Store.open(url)
    made = []
    with lease(store, f"run-{seed}"):
        while not over():
            dataset = f"set{chance.randrange(100)}"
            shards = chance.sample(range(GARBAGE), 3)
            version = commit(store, dataset, shards)
            assert_whole(store, dataset, version)
            made.append((dataset, version))
    return made


GARBAGE = 60


def test_builds_and_collections_at_the_same_time_lose_nothing(
    store: Store, past: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_POLL", 0.01)
    monkeypatch.setattr(collecting, "DELETED_AT_ONCE", 2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: make(store, number), range(GARBAGE)))
    # On S3, what is written again within the second looks as old as it was.
    time.sleep(0 if store.backend.is_local else 1.1)
    past.grow_old()
    over = threading.Event()
    slow: Any = Slow(past)
    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use, store.url, seed, over.is_set) for seed in range(3)]
        try:
            removed = collect(Store(slow), ONE_MONTH).total.count
        finally:
            over.set()
        made = [version for user in users for version in user.result(timeout=60)]
    assert made
    assert removed
    for dataset, version in made:
        assert_whole(store, dataset, version)


_USERS = """
import os, sys
from reelmill.store import lease
from tests.unit.test_collect import use

lease._POLL = 0.01
flag = sys.argv[2]
made = use(sys.argv[1], int(sys.argv[3]), lambda: os.path.exists(flag))
print(len(made))
"""


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def grow_old(store: Store) -> None:
    """Make a local store's objects old for every process."""
    then = time.time() - YEAR
    for entry in store.backend.list(""):
        os.utime(store.backend.locate(entry.name), (then, then))


def test_processes_that_build_while_others_collect_lose_nothing(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "DELETED_AT_ONCE", 2)
    for number in range(GARBAGE):
        make(local, number)
    grow_old(local)
    flag = tmp_path / "over"
    users = [run_python(_USERS, local.url, str(flag), str(seed)) for seed in range(3)]
    try:
        while not live_runs(local):
            time.sleep(0.01)
        slow: Any = Slow(local.backend)
        removed = sum(collect(Store(slow), ONE_MONTH).total.count for _ in range(3))
    finally:
        flag.touch()
        ends = [(*user.communicate(timeout=100), user.returncode) for user in users]
    assert [code for _, _, code in ends] == [0] * len(users), ends
    assert removed
    assert sum(int(out) for out, _, _ in ends)
    for dataset in local.datasets():
        for ref, _ in local.history(dataset):
            assert_whole(local, dataset, ref.version)


# Collections that fail


class Death(BaseException):
    """The end of a process between two steps."""


class Dying(Past):
    """A backend whose process ends when it has removed so many objects."""

    left = 0

    def delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            if self.left == 0:
                raise Death
            self.left -= 1
            self._backend.delete(name)


def test_a_collection_may_die_after_any_step(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "_THREADS", 1)
    dying: Any = Dying(Store.open(store_url, create=True).backend)
    store = Store(dying)
    gone = [commit(store, "clips", [n, "common"], 100 - n) for n in range(2)]
    kept = commit(store, "clips", ["kept", "common"], 80)
    keys = [an_action(name).key for name in (0, 1, "common", "kept")]
    dying.grow_old()
    steps = plan_collection(store, ONE_MONTH).total.count
    assert steps == 2 + 2 * 2 + 2 * 2 + len(names(store, "claims/"))
    stride = 1 if store.backend.is_local else 3
    for _ in range(0, steps - stride, stride):
        dying.left = stride
        with pytest.raises(Death):
            collect(store, ONE_MONTH)
        # No record promises what is gone, and no version looks whole that is not.
        records = {Path(name).stem for name in names(store, "actions/")}
        assert set(store.recall(keys, claim=False)) == records
        for version in (kept, *store.present(gone)):
            assert_whole(store, "clips", version)
    dying.left = stride
    assert 0 < collect(store, ONE_MONTH).total.count <= stride
    assert not store.present(gone)
    assert len(names(store, "blobs/")) == 2 * 2 + 2


_COLLECTOR = """
import sys, time
from reelmill.store import Store, collect
from reelmill.store.local import LocalBackend

collect.DELETED_AT_ONCE = 1
delete_all = LocalBackend.delete_all

def slowly(self, names):
    delete_all(self, names)
    print("removed", flush=True)
    time.sleep(0.01)

LocalBackend.delete_all = slowly
collect.collect(Store.open(sys.argv[1]), collect.Policy(keep_versions=1))
"""


def test_a_killed_collection_holds_up_others_until_it_counts_as_dead(local: Store) -> None:
    for number in range(40):
        make(local, number)
    version = commit(local, "clips", ["kept"], 100)
    grow_old(local)
    killed = run_python(_COLLECTOR, local.url)
    try:
        assert killed.stdout is not None
        assert "removed" in killed.stdout.readline()
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    with pytest.raises(StoreError, match=f"being collected by process {killed.pid}"):
        collect(local, ONE_MONTH)
    (record,) = live_runs(local)
    aged = record.model_copy(update={"beat": record.beat - DEAD_AFTER})
    local.backend.put(f"leases/{record.run}.json", aged.as_bytes())
    found = collect(local, ONE_MONTH)
    assert 0 < found.total.count < 40 * 3
    assert_whole(local, "clips", version)
    assert len(names(local, "blobs/")) == 2 + 2
    assert len(names(local, "actions/")) == 1


def test_one_collection_at_a_time(store: Store, under_way: UnderWay) -> None:
    with pytest.raises(StoreError, match="is being collected by process"):
        collect(store, ONE_MONTH)
    assert [one.run for one in live_runs(store)] == ["collect-test"]
    under_way.end()
    collect(store, ONE_MONTH)


def test_a_collection_that_lost_touch_with_the_store_removes_nothing(
    store: Store, past: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "unfinished")
    past.grow_old()
    before = names(store)
    monkeypatch.setattr(leases, "DEAD_AFTER", 0)
    with pytest.raises(StoreError, match="no heartbeat"):
        collect(store, ONE_MONTH)
    assert names(store) == before


def test_a_heart_that_stood_still_for_long_is_not_trusted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Lease()
    held.check()
    clock = time.time() + DEAD_AFTER
    monkeypatch.setattr(leases.time, "time", lambda: clock)
    held.beaten()
    with pytest.raises(StoreError, match="no heartbeat"):
        held.check()


def test_a_manifest_that_cannot_be_read_stops_a_collection(store: Store, past: Any) -> None:
    version = commit(store, "clips", ["kept"], 100)
    make(store, "unfinished")
    store.backend.put(blob_name(version, "json"), b"{}")
    past.grow_old()
    before = names(store)
    with pytest.raises(StoreError, match="is damaged"):
        collect(store, ONE_MONTH)
    assert names(store) == before


def test_a_lost_manifest_does_not_cost_its_shards(store: Store, past: Any) -> None:
    version = commit(store, "clips", ["kept"], 100)
    store.backend.delete(blob_name(version, "json"))
    past.grow_old()
    assert collect(store, ONE_MONTH).total.count == 0
    assert set(store.recall([an_action("kept").key])) == {an_action("kept").key}


def test_a_record_that_cannot_be_read_stays(store: Store, past: Any) -> None:
    name = action_name("ab" * 32)
    store.backend.put(name, b"{")
    past.grow_old()
    assert collect(store, ONE_MONTH).total.count == 0
    assert name in names(store)


def test_hosts_that_share_a_folder_are_given_time_to_see_each_other(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(collecting.time, "sleep", naps.append)
    collect(local, ONE_MONTH)
    now = int(time.time())
    record = LeaseRecord(run="there", host="elsewhere", pid=1, started=now, beat=now)
    local.backend.put("leases/there.json", record.as_bytes())
    assert not naps
    collect(local, ONE_MONTH)
    assert sum(naps) == 60


# What a collection needs of a backend


def test_an_entry_is_what_a_listing_says(store: Store) -> None:
    name = blob_name(store.put_blob(b"data", "json").digest, "json")
    (listed,) = store.backend.list("blobs/")
    entry = store.backend.entry(name)
    assert entry is not None
    assert (entry.name, entry.size) == (name, 4) == (listed.name, listed.size)
    assert abs(entry.modified - listed.modified) < 1
    assert store.backend.entry("blobs/none") is None


def test_folders_are_those_right_below(store: Store) -> None:
    for name in ("refs/a/0", "refs/b/c/0", "refs/0"):
        store.backend.put(name, b"")
    assert store.backend.folders("refs/") == ["refs/a/", "refs/b/"]
    assert store.backend.folders("none/") == []


def test_many_objects_are_removed_at_once(store_url: str, s3_faults: Faults) -> None:
    backend = Store.open(store_url, create=True).backend
    wanted = [f"claims/{n}" for n in range(20)]
    for name in ("claims/stays", "claims/[0-9]", "claims/*", *wanted):
        backend.put(name, b"x")
    s3_faults.clear()
    backend.delete_all([*wanted, "claims/*", "claims/[0-9]", "claims/none"])
    assert [entry.name for entry in backend.list("claims/")] == ["claims/stays"]
    assert s3_faults.count("DELETE") == 0
    assert s3_faults.count("POST") == (0 if backend.is_local else 1)


def test_a_refusal_to_remove_is_an_error(
    s3_url: str, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reelmill.store.remote.ATTEMPTS", 2)
    backend = Store.open(s3_url, create=True).backend
    backend.put("claims/x", b"x")
    s3_faults.script("POST", "delete", [Fault.DENIED] * 9)
    with pytest.raises(StoreError, match="cannot delete"):
        backend.delete_all(["claims/x"])


def test_a_place_without_bulk_removal_works() -> None:
    backend = Store.open(f"memory://{secrets.token_hex(4)}/store", create=True).backend
    for name in ("claims/a", "claims/b"):
        backend.put(name, b"x")
    backend.delete_all(["claims/a", "claims/none"])
    assert [entry.name for entry in backend.list("claims/")] == ["claims/b"]
    assert backend.folders("") == ["claims/"]
    entry = backend.entry("claims/b")
    assert entry is not None
    assert entry.size == 1
