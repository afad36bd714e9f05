"""Tells how far the reading of a recipe's tables is, which for a long one takes minutes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from reelmill.flows.drive import Watch

SECONDS = 10.0
"""How often a line is written where there is no screen, and how long reading may take unsaid."""


def told(tell: Callable[[str], object], *, seconds: float = SECONDS) -> Watch:
    """Has a line told of an ingest now and then, but not of one that is over at once."""
    last = time.monotonic()

    def watch(source: str, what: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(f"{source}: {what}, {rows:,} so far")

    return watch


@contextlib.contextmanager
def shown(console: Console | None) -> Iterator[Watch | None]:
    """Shows how far an ingest is while the body runs, if there is somewhere to."""
    if console is None:
        yield None
    elif not console.is_terminal:
        yield told(lambda text: console.print(text, markup=False))
    else:
        with console.status("reading the tables ...") as status:
            yield told(lambda text: status.update(f"{text} ..."), seconds=0.25)
