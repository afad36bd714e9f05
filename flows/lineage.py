"""What versions were made of, down to their sources, as lines of text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from reelmill.dataset import Version, open_version
from reelmill.errors import NotFoundError
from reelmill.flows.origin import parameters


def lineage_lines(versions: Iterable[Version]) -> list[str]:
    """A line for each version and each that it derives from: its stage, and what that was given.

    Parameters are told where they are not the stage's own; what was collected is left out.
    """
    lines: dict[str, str] = {}
    waiting = list(versions)
    while waiting:
        version = waiting.pop(0)
        label = str(version)
        if label in lines:
            continue
        parents = version.ref.parents.values()
        given = [*parents]
        with contextlib.suppress(NotFoundError):
            given += parameters(version)
        lines[label] = f"{label} = {version.ref.stage}({', '.join(given)})"
        for parent in parents:
            with contextlib.suppress(NotFoundError):
                waiting.append(open_version(version.store, parent))
    return list(lines.values())
