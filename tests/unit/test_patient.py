"""A store that fails for a while is waited for; one that fails for good is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reelmill.errors import StoreError
from reelmill.store import Store, patient
from reelmill.store.patient import Patience


class Flaky:
    """Fails so many times, and works then."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, value: int = 0, *, more: int = 0) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise StoreError("the disk is asleep")
        return value + more


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "_POLL", 0.01)


def test_a_call_is_made_again_until_it_works_and_whoever_watches_is_told() -> None:
    told: list[str] = []
    flaky = Flaky(3)
    assert Patience(60, told.append, lambda: False).persist(flaky, 4, more=1) == 5
    assert flaky.calls == 4
    assert told == ["waiting for the store: the disk is asleep"] * 3 + [""]


def test_patience_ends_and_begins_anew_when_the_store_has_worked() -> None:
    patience = Patience(0.05, lambda _: None, lambda: False)
    with pytest.raises(StoreError, match="asleep"):
        patience.persist(Flaky(10**6))
    began = time.monotonic()
    with pytest.raises(StoreError, match="asleep"):
        patience.persist(Flaky(10**6))
    assert time.monotonic() - began < 0.05
    assert patience.persist(Flaky(0)) == 0
    assert patience.persist(Flaky(2)) == 0


def test_a_stopped_run_does_not_wait() -> None:
    flaky = Flaky(5)
    with pytest.raises(StoreError):
        Patience(60, lambda _: None, lambda: True).persist(flaky)
    assert flaky.calls == 1


def test_what_is_not_there_is_an_answer(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    backend = Patience(60, lambda _: None, lambda: False).with_store(store).backend
    with pytest.raises(FileNotFoundError):
        backend.read("refs/none")
    assert backend.size("refs/none") is None
    assert backend.url == store.url


def test_a_failure_is_remembered_with_its_time(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    patience = Patience(60, lambda _: None, lambda: False)
    waiting = patience.with_store(store)
    began = time.time()
    assert not patience.has_failed(waiting, began)
    patience.persist(Flaky(1))
    assert patience.has_failed(waiting, began)
    assert not patience.has_failed(waiting, time.time())
    assert list(store.backend.list("leases/")) == []
