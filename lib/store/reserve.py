"""Reservations: which run is making what at the moment, so that others wait for it instead.

They are advice. An action's record alone says that it was made, and a run that takes no notice of
reservations does harm to nobody but itself.
"""

from __future__ import annotations

import contextlib
import time

from pydantic import ValidationError

from reelmill.errors import StoreError
from reelmill.store.lease import AHEAD, is_alive, read_lease
from reelmill.store.model import ReservationRecord
from reelmill.store.store import Store

LONGEST = 1800
"""Seconds after which a reservation holds nobody up any more: its run may be stuck."""

_FOLDER = "reserved/"


class Reservations:
    """The reservations of a run that holds a lease."""

    def __init__(self, store: Store, run: str) -> None:
        self._backend = store.backend
        self._store = store
        self._run = run

    def take(self, key: str) -> bool:
        """Reserve an action, by its key; whether it is ours. If not, another run makes it now."""
        name = f"{_FOLDER}{key}.json"
        ours = ReservationRecord(run=self._run, time=int(time.time())).as_bytes()
        if self._backend.create(name, ours):
            return True
        held = self._read(name)
        if held is not None and self._stands(held):
            return held.run == self._run
        self._backend.put(name, ours)
        return True

    def release(self, key: str) -> None:
        """Give an action free, made or not."""
        with contextlib.suppress(StoreError):
            self._backend.delete(f"{_FOLDER}{key}.json")

    def sweep(self) -> None:
        """Remove what dead runs have left."""
        for entry in self._backend.list(_FOLDER):
            held = self._read(entry.name)
            if held is not None and not self._stands(held):
                self._backend.delete(entry.name)

    def _stands(self, held: ReservationRecord) -> bool:
        if not -AHEAD <= time.time() - held.time <= LONGEST:
            return False
        lease = read_lease(self._store, f"leases/{held.run}.json")
        return lease is not None and is_alive(lease)

    def _read(self, name: str) -> ReservationRecord | None:
        with contextlib.suppress(FileNotFoundError, ValidationError):
            return ReservationRecord.model_validate_json(self._backend.read(name))
        return None
