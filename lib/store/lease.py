"""Leases: the heartbeat of a live run, so that others know that it lives."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

from reelmill.errors import StoreError
from reelmill.store.model import LeaseRecord
from reelmill.store.store import Store

BEAT = 20.0
"""Seconds between two heartbeats."""

DEAD_AFTER = 120
"""Seconds without a heartbeat after which a run counts as dead."""


def live_runs(store: Store) -> list[LeaseRecord]:
    """The leases of runs that gave a sign of life within ``DEAD_AFTER`` seconds."""
    records = []
    for entry in store.backend.list("leases/"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            records.append(LeaseRecord.model_validate_json(store.backend.read(entry.name)))
    return [record for record in records if time.time() - record.beat < DEAD_AFTER]


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
