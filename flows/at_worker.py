"""What a Dask worker runs around a call. Workers import it, so it imports next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``. What it raises tells by its attribute ``worker`` where that was."""
    try:
        try:
            return function(*args)
        except (SystemExit, KeyboardInterrupt) as error:
            # They would end the worker.
            raise RuntimeError(f"its code tried to end the process: {error!r}") from error
    except Exception as error:
        from distributed import get_worker

        error.worker = get_worker().address  # type: ignore[attr-defined]
        raise
