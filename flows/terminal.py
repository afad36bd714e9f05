"""Progress in the terminal: a live table on a screen, a line now and then in a log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reelmill.flows.drive import GRACE_SECONDS, Build, Progress
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
def _logged(console: Console, build: Build) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        while not over.wait(LOG_SECONDS):
            console.print("  ".join(_brief(p) for p in build.progress.values()), highlight=False)

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _brief(progress: Progress) -> str:
    expected = "?" if progress.expected is None else progress.expected
    return f"{progress.name} {progress.have}/{expected}"


def _screen(build: Build) -> RenderableType:
    shown = Table.grid(padding=(0, 2))
    for numeric in (False, False, True, True, True, False):
        shown.add_column(justify="right" if numeric else "left", no_wrap=True)
    for progress in build.progress.values():
        expected = progress.expected
        share = progress.have / expected if expected else 0.0
        count = f"{progress.have}/{'?' if expected is None else expected}"
        notes = []
        if progress.rejects:
            notes.append(f"[yellow]{progress.rejects:,} rejected[/]")
        if progress.failed:
            notes.append(f"[red]{progress.failed} failed[/]")
        if progress.running:
            left = "" if progress.left is None else f", {format_seconds(progress.left)} left"
            notes.append(f"{progress.running} running{left}")
        shown.add_row(
            f"[bold]{progress.name}[/]",
            ProgressBar(total=1.0, completed=share, width=_BAR_WIDTH),
            count,
            f"{progress.samples:,} samples",
            format_bytes(progress.bytes),
            Text.from_markup(", ".join(notes)),
        )
    if build.stopping:
        shown_below = f"stopping: up to {GRACE_SECONDS:.0f} s for running shards; again: at once"
        return Group(shown, Text(shown_below, style="yellow"))
    return Group(shown)
