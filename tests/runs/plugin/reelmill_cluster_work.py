"""Work for Dask workers that shows where it was done, or does harm to them."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def where(seconds: float = 0) -> str:
    """The name of the worker, after a rest."""
    time.sleep(seconds)
    return os.environ.get("WORKER", "")


def say(topic: str, message: str) -> None:
    """Tell it to whoever listens."""
    from distributed import get_worker

    get_worker().log_event(topic, message)


def stay(marker: str) -> str:
    """Leave this process's number in ``marker`` and never come back; the name of the worker if
    another process has been here before."""
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return where()
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    time.sleep(600)
    raise AssertionError("nobody came")


def note(path: str) -> None:
    """Leave a mark."""
    Path(path).touch()


def eat() -> None:
    """Take memory until somebody ends it."""
    held = []
    while True:
        held.append(b"\1" * (8 << 20))
        time.sleep(0.01)


def loaded() -> list[str]:
    """The packages that this process has imported."""
    return sorted({name.partition(".")[0] for name in sys.modules})


def children() -> list[str]:
    """What the processes that this one started are called."""
    started = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in started]


def variable(name: str) -> str | None:
    """A variable of the worker's environment."""
    return os.environ.get(name)


def load(modules: Sequence[str], heavy: Sequence[str]) -> tuple[float, int, int, tuple[str, ...]]:
    """Import modules; seconds, this process's RSS and PSS in bytes, and the heavy ones it has."""
    started = time.perf_counter()
    for module in modules:
        importlib.import_module(module)
    seconds = time.perf_counter() - started
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    found = tuple(name for name in heavy if name in sys.modules)
    return seconds, sizes["Rss"], sizes["Pss"], found
