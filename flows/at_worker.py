"""What a Dask worker runs around a call. Workers import it, so it imports next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``. What it raises tells by its attribute ``worker`` where that was."""
    try:
        return function(*args)
    except Exception as error:
        from distributed import get_worker

        error.worker = get_worker().address  # type: ignore[attr-defined]
        raise
