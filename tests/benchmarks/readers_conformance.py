"""Frames of every backend of readers beside PyAV's, over videos of each awkward kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from reelmill.loading import backends, open_video
from reelmill.loading.readers import Mode, OutputFormat
from tests.benchmarks.harness import show
from tests.stages.media_samples import real_media
from tests.stages.reader_samples import KINDS, REFUSALS, Compared, compared, picks, reference


def conformance_table() -> None:
    """Print, for each video and backend that can be used here: ``exact``; or the largest difference
    of any value of any frame, in levels of 255, and the mean one; or ``unsupported``.

    Frames are asked for in no order, by both modes and in both layouts of tensors, which must come
    to the same. That they are the frames with these numbers is seen by what they show: another
    frame of a numbered video differs from PyAV's by hundreds of levels.
    """
    names, absent = [], []
    for one in backends().values():
        here = [(one.name, device) for device in one.devices]
        names += here
        absent += [
            (f"{one.name} on {device}", reason) for device, reason in one.why_not.items() if reason
        ]
    rows = []
    for title, path in _videos():
        cells = [_cell(path, name, device) for name, device in names]
        rows.append([title, *cells])
    header = [
        "video",
        *(name if device == "cpu" else f"{name} on {device}" for name, device in names),
    ]
    show("frames beside PyAV's: exact, or the largest (and mean) difference", header, rows)
    if absent:
        show("backends that are not here", ["backend", "why"], absent)


def _videos() -> Iterator[tuple[str, Path]]:
    yield from ((kind, make()) for kind, make in KINDS.items())
    yield from ((path.name, path) for path in real_media())


def _cell(path: Path, backend: Any, device: str) -> str:
    numbers = picks(len(reference(path)))
    found = set()
    for mode in get_args(Mode):
        for output_format in get_args(OutputFormat):
            try:
                with open_video(path, backend, device, mode, output_format) as reader:
                    found.add(compared(reader, path, numbers))
            except REFUSALS:
                found.add(None)
    if len(found) > 1:
        return f"differs by mode or layout: {', '.join(map(str, found))}"
    one: Compared | None = found.pop()
    return "unsupported" if one is None else str(one)


def run() -> None:
    conformance_table()
