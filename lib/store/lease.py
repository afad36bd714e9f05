"""Leases: the heartbeat of a live run, so that others know that it lives."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from reelmill.errors import StoreError
from reelmill.store.model import LeaseRecord
from reelmill.store.place import is_running, place

if TYPE_CHECKING:
    from reelmill.store.store import Store

BEAT = 20.0
"""Seconds between two heartbeats."""

DEAD_AFTER = 120
"""Seconds without a heartbeat after which a run counts as dead."""

AHEAD = 600
"""Seconds by which another host's clock may be ahead: a heartbeat from further on is none."""

COLLECTION = "collect-"
"""What the names of those runs begin with that remove things from the store."""

_READ_ATTEMPTS = 3
_POLL = 0.5


class Lease:
    """A lease that is held, and how long ago others last saw its heart beat."""

    def __init__(self) -> None:
        self._last = time.time()
        self._lost = False

    def beaten(self) -> None:
        """Take note of a heartbeat that reached the store."""
        self._lost = self._is_late()
        self._last = time.time()

    def check(self) -> None:
        """Raise ``StoreError`` if the heart has ever stood still for so long that others could
        begin to take the run for dead."""
        if self._is_late():
            raise StoreError(
                f"no heartbeat reached the store for more than {DEAD_AFTER // 2} seconds, so that "
                "others may take this run for dead; run it again"
            )

    def _is_late(self) -> bool:
        return self._lost or time.time() - self._last > DEAD_AFTER / 2


def leases(store: Store, prefix: str = "") -> Iterator[tuple[str, LeaseRecord]]:
    """The leases in a store, of live runs and of dead ones, by the names they lie under: those
    of all runs, or of runs whose names begin with ``prefix``."""
    for entry in store.backend.list("leases/"):
        if entry.name.startswith(f"leases/{prefix}") and (record := read_lease(store, entry.name)):
            yield entry.name, record


def live_runs(store: Store, prefix: str = "") -> list[LeaseRecord]:
    """The leases of runs that gave a sign of life within ``DEAD_AFTER`` seconds."""
    return [one for _, one in leases(store, prefix) if _beats(one)]


def await_collections(store: Store) -> bool:
    """Wait until nothing is being collected from the store; whether anything was."""
    waited = False
    while live_runs(store, COLLECTION):
        waited = True
        time.sleep(_POLL)
    return waited


@contextlib.contextmanager
def lease(store: Store, run: str) -> Iterator[Lease]:
    """Hold a lease for ``run`` while the body runs.

    Raises:
        StoreError: the store cannot be shared between writers, and another run is alive.
    """
    if not store.shareable and (others := live_runs(store)):
        raise StoreError(
            f"{store.url} cannot tell two writers apart (no atomic put-if-absent there), and run "
            f"{others[0].run} on {others[0].host} is writing to it; wait for it to end"
        )
    name = f"leases/{run}.json"
    started = int(time.time())
    over = threading.Event()
    held = Lease()

    def beat() -> None:
        record = LeaseRecord(
            run=run,
            host=socket.gethostname(),
            place=place(),
            pid=os.getpid(),
            started=started,
            beat=int(time.time()),
        )
        store.backend.put(name, record.as_bytes())
        held.beaten()

    def keep_beating() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(StoreError):
                beat()

    beat()
    thread = threading.Thread(target=keep_beating, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(StoreError):
            store.backend.delete(name)


def is_alive(record: LeaseRecord) -> bool:
    """Whether a run gave a sign of life of late, and has not ended since as far as can be seen."""
    if record.place == place() and not is_running(record.pid):
        return False
    return _beats(record)


def _beats(record: LeaseRecord) -> bool:
    return -AHEAD <= time.time() - record.beat <= DEAD_AFTER


def read_lease(store: Store, name: str) -> LeaseRecord | None:
    """The lease that lies under a name; ``None`` if there is none that can be read."""
    # More than once: to take a live run for a dead one, because of an answer that was cut short
    # on its way, may cost that run its data.
    for _ in range(_READ_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, ValidationError):
            return LeaseRecord.model_validate_json(store.backend.read(name))
    return None
