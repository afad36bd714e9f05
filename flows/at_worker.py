"""What a Dask worker runs around a call. Workers import it, so it imports next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.tasks.frame import Order

SAMPLES = "reelmill-samples"
"""Dask's topic of how far shards are: the run, the dataset and the shard, how many of its input
samples are ``done`` and ``of`` how many."""

TELL_SECONDS = 5.0
"""How often a worker tells how far its shard is."""


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


def make(order: str) -> str:
    """Make the shard of an ``Order``, as :func:`reelmill.tasks.frame.execute` does, and say how far
    it is every ``TELL_SECONDS``; of a shard that takes less, nothing."""
    # Imported here: whoever asks a worker for something else has no need of it.
    from distributed import get_worker

    from reelmill.tasks.frame import execute

    worker = get_worker()
    told = time.monotonic()

    def tell(task: Order, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told < TELL_SECONDS:
            return
        told = time.monotonic()
        about = {"run": task.run, "dataset": task.dataset, "shard": task.shard}
        worker.log_event(SAMPLES, {**about, "done": done, "of": total})

    return execute(order, tell)
