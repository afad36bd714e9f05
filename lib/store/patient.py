"""A store that fails for a while is waited for."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from reelmill.errors import StoreError
from reelmill.store.backend import Backend
from reelmill.store.store import Store

P = ParamSpec("P")
R = TypeVar("R")

_POLL = 1.0


class Patience:
    """Waits for a store that fails, and knows when it last did.

    Args:
        seconds: how long the store may fail without a break.
        tell: gets a line when the waiting begins, and an empty one when it is over.
        is_over: whether there is no reason to wait any more.
    """

    def __init__(
        self, seconds: float, tell: Callable[[str], None], is_over: Callable[[], bool]
    ) -> None:
        self._seconds = seconds
        self._tell = tell
        self._is_over = is_over
        self._began: float | None = None
        self._last = 0.0

    def with_store(self, store: Store) -> Store:
        """``store``, but what it asks of its backend is asked again for as long as that fails."""
        return Store(cast(Backend, _Patient(store.backend, self)), shareable=store.shareable)

    def has_failed(self, store: Store, since: float) -> bool:
        """Whether the store has failed since a moment (seconds since the epoch), or does so now;
        then this waits until it can be written again.

        Args:
            store: what ``with_store`` gave.

        Raises:
            StoreError: it fails for too long.
        """
        name = f"leases/probe-{secrets.token_hex(8)}"
        store.backend.put(name, b"")
        store.backend.delete(name)
        return self._last >= since

    def persist(self, call: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        """What ``call`` returns when it raises no ``StoreError``, or has done so for too long."""
        while True:
            try:
                found = call(*args, **named)
            except StoreError as error:
                self._last = time.time()
                self._began = self._began or time.monotonic()
                if self._is_over() or time.monotonic() - self._began > self._seconds:
                    raise
                self._tell(f"waiting for the store: {error}")
                time.sleep(_POLL)
            else:
                if self._began is not None:
                    self._began = None
                    self._tell("")
                return found


class _Patient:
    def __init__(self, backend: Backend, patience: Patience) -> None:
        self._backend = backend
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        return functools.partial(self._patience.persist, value) if callable(value) else value
