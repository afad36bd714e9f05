"""What reading frames costs, for people: a table, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reelmill.loading.bench import Access, Pattern, Report, Row


def title(pattern: Pattern, access: Access) -> str:
    """What is asked for, in words."""
    return {
        "sequential": "one frame after the other",
        "every_nth": f"one frame in {access.every}",
        "random": f"{_counted(access.singles, 'single frame')} anywhere",
        "clips": f"{_counted(access.clips, 'clip')} of {_counted(access.clip_frames, 'frame')} "
        "anywhere",
    }[pattern]


def by_pattern(report: Report) -> Iterator[tuple[Pattern, list[Row]]]:
    """The rows, pattern by pattern in their order."""
    from itertools import groupby

    for pattern, rows in groupby(report.rows, key=lambda row: row.pattern):
        yield pattern, list(rows)


def draw(report: Report, width: int) -> bytes:
    """The frames a second as a PNG, with ffmpeg's speed as the limit of what decodes on the CPU."""
    from reelmill.loading.bench import LIMIT
    from reelmill.report.bars import Bar, Panel, bar_chart

    limits = [row for row in report.rows if row.subject == LIMIT]
    limit = ("ffmpeg, decoding alone:", limits[0].frames_per_second) if limits else None
    panels = [
        Panel(
            title(pattern, report.access),
            [
                Bar(
                    str(row.subject),
                    row.frames_per_second,
                    f"{row.frames_per_second:,.0f} a second, "
                    f"{1000 * row.cpu_seconds_per_frame:.1f} ms of CPU each",
                    row.subject.backend,
                )
                for row in rows
                if row.subject != LIMIT
            ],
            limit,
        )
        for pattern, rows in by_pattern(report)
    ]
    return bar_chart(
        panels,
        title="Frames a second, by what decodes",
        subtitle=f"{summary(report)}; one thread; opening a file included",
        width=width,
    )


def summary(report: Report) -> str:
    """What was measured, in one line."""
    most = f"at most {_counted(report.access.frames, 'frame')}"
    rounds = "1 round" if report.rounds == 1 else f"medians of {report.rounds} rounds"
    if len(report.files) == 1:
        return f"{Path(report.files[0]).name}, {most}, {rounds}"
    return f"{len(report.files):,} files, {most} each, {rounds}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
