"""Reservations are honoured for as long as their run lives, and lead to no dead end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from reelmill.store import Store, reserve
from reelmill.store.lease import AHEAD, DEAD_AFTER, is_alive, lease, live_runs
from reelmill.store.model import LeaseRecord
from reelmill.store.place import place
from reelmill.store.reserve import Reservations

KEY = "ab" * 32


@pytest.fixture
def store(store_url: str) -> Store:
    return Store.open(store_url, create=True)


def left(store: Store) -> list[str]:
    return [entry.name for entry in store.backend.list("reserved/")]


def test_one_run_has_an_action_until_it_gives_it_free(store: Store) -> None:
    first, second = Reservations(store, "first"), Reservations(store, "second")
    with lease(store, "first"), lease(store, "second"):
        assert first.take(KEY)
        assert first.take(KEY)
        assert not second.take(KEY)
        assert second.take("cd" * 32)
        first.release(KEY)
        assert second.take(KEY)
        assert not first.take(KEY)


def test_a_run_that_ended_holds_nobody_up(store: Store) -> None:
    with lease(store, "first"):
        assert Reservations(store, "first").take(KEY)
    with lease(store, "second"):
        assert Reservations(store, "second").take(KEY)


def test_a_run_that_has_an_action_for_too_long_holds_nobody_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(store, "stuck"), lease(store, "second"):
        assert Reservations(store, "stuck").take(KEY)
        monkeypatch.setattr(reserve, "LONGEST", -1)
        assert Reservations(store, "second").take(KEY)


def test_a_sweep_removes_what_dead_runs_left_and_nothing_else(store: Store) -> None:
    with lease(store, "alive"):
        alive = Reservations(store, "alive")
        assert alive.take(KEY)
        assert Reservations(store, "dead").take("cd" * 32)
        alive.sweep()
        assert left(store) == [f"reserved/{KEY}.json"]


def test_what_is_no_reservation_holds_nobody_up(store: Store) -> None:
    store.backend.put(f"reserved/{KEY}.json", b"no JSON")
    assert Reservations(store, "first").take(KEY)


def record(pid: int, beat: float, where: str = "") -> LeaseRecord:
    where = where or place()
    return LeaseRecord(run="r", host="films", place=where, pid=pid, started=0, beat=int(beat))


def test_a_run_is_alive_while_its_heart_beats_and_its_process_is_there() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    now = time.time()
    assert is_alive(record(os.getppid(), now))
    assert not is_alive(record(ended.pid, now))
    # Another container on a host of the same name: its numbers mean nothing here.
    assert is_alive(record(ended.pid, now, where="another"))
    assert not is_alive(record(os.getppid(), now - DEAD_AFTER - 2))
    # A clock may be ahead, but not by a year.
    assert is_alive(record(os.getppid(), now + AHEAD - 10))
    assert not is_alive(record(os.getppid(), now + AHEAD + 10))


@pytest.mark.parametrize(
    "text",
    [
        '{"run": "a", "time": 1%s}' % ("0" * 400),
        '{"run": "a\\u0000b", "time": 1}',
        '{"run": "../a", "time": 1}',
        '{"run": "later", "time": 9999999999}',
    ],
    ids=["digits", "nul", "path", "future"],
)
def test_what_somebody_forged_holds_nobody_up(store: Store, text: str) -> None:
    forged = LeaseRecord(run="later", host="h", pid=1, started=0, beat=9999999999)
    store.backend.put("leases/later.json", forged.as_bytes())
    store.backend.put(f"reserved/{KEY}.json", text.encode())
    first = Reservations(store, "first")
    first.sweep()
    assert first.take(KEY)


def test_a_lease_from_the_future_is_none(store: Store) -> None:
    now = int(time.time())
    forged = LeaseRecord(run="collect-x", host="h", pid=1, started=now, beat=now + 10**7)
    store.backend.put("leases/collect-x.json", forged.as_bytes())
    store.backend.put(
        "leases/wild.json", forged.as_bytes().replace(b'"pid":1', b'"pid":' + b"9" * 30)
    )
    assert live_runs(store) == []
    assert not store.claim(["blobs/x"])


def test_a_store_in_a_folder_keeps_no_reservation_of_a_run_that_ended(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    with lease(store, "first"):
        first = Reservations(store, "first")
        first.take(KEY)
        first.release(KEY)
    assert left(store) == []
    assert live_runs(store) == []
