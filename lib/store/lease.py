"""Leases: the heartbeat of a live run, so that others know that it lives."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

from pydantic import ValidationError

from reelmill.errors import StoreError
from reelmill.store.model import LeaseRecord
from reelmill.store.store import Store

BEAT = 20.0
"""Seconds between two heartbeats."""

DEAD_AFTER = 120
"""Seconds without a heartbeat after which a run counts as dead."""

_READ_ATTEMPTS = 3


def live_runs(store: Store) -> list[LeaseRecord]:
    """The leases of runs that gave a sign of life within ``DEAD_AFTER`` seconds."""
    records = [_read(store, entry.name) for entry in store.backend.list("leases/")]
    return [record for record in records if record and time.time() - record.beat < DEAD_AFTER]


@contextlib.contextmanager
def lease(store: Store, run: str) -> Iterator[None]:
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

    def beat() -> None:
        record = LeaseRecord(
            run=run,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=started,
            beat=int(time.time()),
        )
        store.backend.put(name, record.as_bytes())

    def keep_beating() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(StoreError):
                beat()

    beat()
    thread = threading.Thread(target=keep_beating, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(StoreError):
            store.backend.delete(name)


def _read(store: Store, name: str) -> LeaseRecord | None:
    # More than once: to take a live run for a dead one, because of an answer that was cut short
    # on its way, may cost that run its data.
    for _ in range(_READ_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, ValidationError):
            return LeaseRecord.model_validate_json(store.backend.read(name))
    return None
