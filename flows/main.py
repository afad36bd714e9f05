"""Where the ``reelmill`` command begins.

A worker on this machine imports this module once more, as every process does that Python spawns: so
it imports nothing that a worker has no use for.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import NoReturn

_OBJECTS = 50_000


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The ``reelmill`` command: one line on standard error and a code other than 0 on failure."""
    # A build imports a few hundred thousand objects that stay. To look for garbage among them after
    # every 700 is a tenth of its start.
    gc.set_threshold(_OBJECTS)
    from reelmill.flows.cli import main as run

    run(arguments)
