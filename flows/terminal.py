"""Progress in the terminal: a live table on a screen, a line now and then in a log."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reelmill.flows.drive import GRACE_SECONDS, Build, Progress
from reelmill.flows.report import intended
from reelmill.store.model import Result
from reelmill.store.store import now
from reelmill.tasks.planner import Todo
from reelmill.units import format_bytes, format_seconds

LOG_SECONDS = 10.0
"""How often progress is written where there is no screen."""

_BAR_WIDTH = 28


@contextlib.contextmanager
def show_progress(console: Console, build: Build) -> Iterator[None]:
    """Show how far a build is while the body runs."""
    if console.is_terminal:
        with Live(get_renderable=lambda: _screen(build), console=console, refresh_per_second=4):
            yield
    else:
        with _logged(console, build):
            yield


@contextlib.contextmanager
def write_events(file: TextIO, build: Build) -> Iterator[None]:
    """Write a JSON line to ``file`` for every shard and version of a build, and at both ends."""
    events = Events(file)
    events.write(
        "started",
        store=build.store.url,
        datasets={
            name: {"shards": p.expected, "have": p.have} for name, p in build.progress.items()
        },
    )
    build.listeners.append(events)
    try:
        yield
    finally:
        events.write(
            "ended",
            error=str(build.error) if build.error else None,
            made=sum(progress.made for progress in build.progress.values()),
            reused=sum(progress.reused for progress in build.progress.values()),
        )


class Events:
    """Writes what happens in a build to ``file``, a JSON line each."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, event: str, **values: Any) -> None:
        line = {"time": now(), "event": event, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def shard_ended(self, build: Build, todo: Todo, seconds: float, outcome: Result | str) -> None:
        about = {"dataset": todo.dataset, "shard": todo.shard, "stage": todo.action.stage}
        took = {"seconds": round(seconds, 3)}
        if isinstance(outcome, str):
            self.write("shard failed", **about, **took, error=outcome)
            return
        self.write(
            "shard made",
            **about,
            **took,
            samples=outcome.samples,
            rejects=outcome.reasons,
            bytes=sum(outcome.blob_names().values()),
        )

    def committed(self, build: Build, name: str) -> None:
        progress = build.progress[name]
        self.write(
            "committed",
            dataset=name,
            version=progress.version,
            moved=progress.moved,
            store=build.store.url,
            samples=progress.samples,
            holes=build.planner.holes(name),
        )


@contextlib.contextmanager
def _logged(console: Console, build: Build) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        while not over.wait(LOG_SECONDS):
            brief = "  ".join(_brief(build, p) for p in build.progress.values())
            console.print(f"{brief}  {build.note}".rstrip(), highlight=False)

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _brief(build: Build, progress: Progress) -> str:
    expected = "?" if progress.expected is None else progress.expected
    done, total = build.sampled(progress.name)
    inside = f" (+ {done:,}/{total:,} samples)" if total else ""
    return f"{progress.name} {progress.have}/{expected}{inside}"


def _screen(build: Build) -> RenderableType:
    shown = Table.grid(padding=(0, 2))
    for numeric in (False, False, True, True, True, False):
        shown.add_column(justify="right" if numeric else "left", no_wrap=True)
    for progress in build.progress.values():
        expected = progress.expected
        share = progress.have / expected if expected else 0.0
        count = f"{progress.have}/{'?' if expected is None else expected}"
        notes = []
        asked = sum(progress.reasons.get(reason, 0) for reason in intended(progress.stage))
        if progress.rejects > asked:
            notes.append(f"[yellow]{progress.rejects - asked:,} rejected[/]")
        if asked:
            notes.append(f"{asked:,} left out")
        if progress.failed:
            notes.append(f"[red]{progress.failed} failed[/]")
        if progress.running:
            done, total = build.sampled(progress.name)
            inside = f": {done:,} of {total:,} samples" if total else ""
            left = "" if progress.left is None else f", {format_seconds(progress.left)} left"
            notes.append(f"{progress.running} running{inside}{left}")
        shown.add_row(
            f"[bold]{progress.name}[/]",
            ProgressBar(total=1.0, completed=share, width=_BAR_WIDTH),
            count,
            f"{progress.samples:,} samples",
            format_bytes(progress.bytes),
            Text.from_markup(", ".join(notes)),
        )
    if build.note:
        return Group(shown, Text(build.note, style="yellow"))
    if build.stopping:
        shown_below = f"stopping: up to {GRACE_SECONDS:.0f} s for running shards; again: at once"
        return Group(shown, Text(shown_below, style="yellow"))
    return Group(shown)
