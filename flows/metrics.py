"""Metrics for Prometheus, from a process that serves flows and outlives their runs.

Each run is a process of its own. It writes what happens as JSON lines into a file, which it keeps
locked for as long as it lives; the serving process counts the lines. So no counter goes down when
a run ends, and a run that was killed is known by its file, which nobody holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import Metric

from reelmill.errors import ReelmillError
from reelmill.flows.drive import Build, StoppedError
from reelmill.flows.terminal import Events
from reelmill.store import Store

FOLDER = "REELMILL_METRICS"
"""The environment variable that names the folder for what runs write."""

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""Seconds: from a shard that is copied to one that is encoded for hours."""


class _Record(Events):
    _build: Build | None = None

    def follow(self, build: Build) -> None:
        self._build = build
        build.listeners.append(self)

    def write(self, event: str, **values: Any) -> None:
        # A full disk must not end a build that has none of its files there.
        with contextlib.suppress(OSError):
            super().write(event, **values)

    @property
    def outcome(self) -> str:
        error = self._build.error if self._build else None
        if isinstance(error, StoppedError):
            return "stopped"
        return "failed" if error else "completed"


_record: ContextVar[_Record | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Have the build that the body runs counted, where somebody asked for it."""
    file = _open()
    if file is None:
        yield
        return
    record = _Record(file)
    token = _record.set(record)
    outcome = "failed"
    try:
        yield
        outcome = record.outcome
    except (asyncio.CancelledError, KeyboardInterrupt):
        outcome = "stopped"
        raise
    finally:
        _record.reset(token)
        record.write("ended", outcome=outcome)
        with contextlib.suppress(OSError):
            file.close()


def _open() -> TextIO | None:
    folder = os.environ.get(FOLDER)
    if folder is None:
        return None
    name = secrets.token_hex(8)
    hidden = Path(folder, f".{name}")
    try:
        file = hidden.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Under its final name it is locked from the first moment.
        hidden.rename(Path(folder, f"{name}.jsonl"))
    except OSError:
        return None
    return file


def follow(build: Build) -> None:
    """Count what happens in a build within ``counted``."""
    if record := _record.get():
        record.follow(build)


@dataclass
class _Followed:
    """A run's file, read up to where it is written."""

    file: BinaryIO
    ended: bool = False

    def is_dead(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lines(self) -> Iterator[dict[str, Any]]:
        while (line := self.file.readline()).endswith(b"\n"):
            with contextlib.suppress(ValueError):
                yield json.loads(line)
        # Half a line is read again when it is whole.
        self.file.seek(-len(line), os.SEEK_CUR)


class Metrics:
    """What the runs that write into ``folder`` have done, as Prometheus counts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followed: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        # The first to be collected, so that the others know of all that happened.
        self.registry.register(self)
        about = ("dataset", "stage")
        self._shards = self._count(
            Counter, "shards", "Shards that were made, or could not be.", *about, "outcome"
        )
        self._samples = self._count(Counter, "samples", "Samples in shards made.", *about)
        self._rejects = self._count(Counter, "rejects", "Samples rejected.", *about, "reason")
        self._bytes = self._count(Counter, "bytes", "Bytes of shards made.", *about)
        self._seconds = self._count(
            Histogram, "shard_seconds", "From a shard's start to its end.", "stage", buckets=BUCKETS
        )
        self._builds = self._count(Counter, "builds", "Builds that ended.", "outcome")
        self._running = self._count(Gauge, "builds_running", "Builds that go on now.")
        self._dataset = self._count(
            Gauge, "dataset_samples", "Samples of a dataset's last version.", "dataset", "store"
        )
        for outcome in ("completed", "failed", "stopped", "crashed"):
            self._builds.labels(outcome)

    def _count(self, kind: Any, name: str, about: str, *labels: str, **more: Any) -> Any:
        return kind(f"reelmill_{name}", about, labels, registry=self.registry, **more)

    def know(self, store: Store) -> None:
        """Count the samples of the versions that a store has already."""
        for name in store.datasets():
            if last := store.latest(name):
                self._dataset.labels(name, store.url).set(last.counted.samples)

    def collect(self) -> Iterator[Metric]:
        """What a registry calls before it tells the metrics; has none itself."""
        self.update()
        return iter(())

    def update(self) -> None:
        """Count what runs have written since the last time."""
        with self._lock:
            for path in self._folder.glob("*.jsonl"):
                if path not in self._followed:
                    self._followed[path] = _Followed(path.open("rb"))
            for path, followed in list(self._followed.items()):
                # Asked before the last lines are read: what dies in between is seen next time.
                dead = followed.is_dead()
                for line in followed.lines():
                    followed.ended |= line["event"] == "ended"
                    self._take(line)
                if dead:
                    if not followed.ended:
                        self._builds.labels("crashed").inc()
                    del self._followed[path]
                    followed.file.close()
                    path.unlink(missing_ok=True)
            self._running.set(sum(not one.ended for one in self._followed.values()))

    def _take(self, line: dict[str, Any]) -> None:
        match line["event"]:
            case "shard made":
                self._take_shard(line)
            case "shard failed":
                self._shards.labels(line["dataset"], line["stage"], "failed").inc()
            case "committed":
                self._dataset.labels(line["dataset"], line["store"]).set(line["samples"])
            case "ended":
                self._builds.labels(line["outcome"]).inc()

    def _take_shard(self, line: dict[str, Any]) -> None:
        about = line["dataset"], line["stage"]
        self._shards.labels(*about, "made").inc()
        self._samples.labels(*about).inc(line["samples"])
        self._bytes.labels(*about).inc(line["bytes"])
        self._seconds.labels(line["stage"]).observe(line["seconds"])
        for reason, count in line["rejects"].items():
            self._rejects.labels(*about, reason).inc(count)


@contextlib.contextmanager
def serve_metrics(address: str) -> Iterator[Metrics]:
    """Have the runs of this process's children counted, and answer Prometheus at ``address``.

    Args:
        address: a port, of the loopback interface, or a host and a port.

    Raises:
        ReelmillError: nothing can listen there.
    """
    host, _, port = address.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="reelmill-metrics-") as folder:
        metrics = Metrics(Path(folder))
        try:
            server, thread = start_http_server(int(port), host or "127.0.0.1", metrics.registry)
        except (OSError, OverflowError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "give a port, or HOST:PORT"
            raise ReelmillError(f"metrics cannot be had at {address}: {reason}") from None
        os.environ[FOLDER] = folder
        try:
            yield metrics
        finally:
            del os.environ[FOLDER]
            server.shutdown()
            server.server_close()
            thread.join()
