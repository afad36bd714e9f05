"""What a flow run does besides its work when `reelmill serve` runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

PARENT = "REELMILL_SERVED_BY"
"""The environment variable with the number of the process that serves."""

_POLL_SECONDS = 1.0


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Let the run die with the process that serves it, and leave it the signals of the terminal.

    Does nothing for a run that is not served.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        yield
        return
    with contextlib.suppress(OSError):
        # Ctrl-C is for the one that serves: it stops its runs, each once, and waits for them.
        os.setpgid(0, 0)
    threading.Thread(target=_die_with, args=(int(parent),), daemon=True).start()
    yield


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    # Without a word: whoever finds the lease of a dead process tells Prefect, whose server may be
    # gone too.
    os.kill(os.getpid(), signal.SIGKILL)
