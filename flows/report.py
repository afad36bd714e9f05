"""What people read about a build: the table of datasets, in the terminal and in Prefect."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from reelmill.digest import SHORT
from reelmill.errors import ReelmillError, one_line
from reelmill.flows.drive import Build, Progress
from reelmill.shards.index import REJECTED
from reelmill.shards.reader import ShardReader
from reelmill.tasks import Stages, get_stage
from reelmill.tasks.planner import by_count
from reelmill.units import format_bytes

_MARKED = re.compile(r"[\\`*_{}\[\]()#+!<>&|~$]")

_MOST_SHARDS = 50
"""Shards in which examples of rejects are looked for."""

HEADINGS = ("dataset", "version", "shards", "made", "samples", "rejects", "bytes", "time")


def rows(build: Build) -> list[tuple[str, ...]]:
    """A row of text per dataset, in the order of ``HEADINGS``."""
    return [_row(progress) for progress in build.progress.values()]


def _row(progress: Progress) -> tuple[str, ...]:
    expected = progress.expected
    shards = str(progress.have) if progress.version else f"{progress.have} of {expected or '?'}"
    version = f"{progress.name}@{progress.version[:SHORT]}" if progress.version else "incomplete"
    return (
        progress.name,
        version,
        shards,
        str(progress.made),
        f"{progress.samples:,}",
        f"{progress.rejects:,}",
        format_bytes(progress.bytes),
        f"{progress.seconds:.1f} s" if progress.made else "-",
    )


def table(build: Build) -> Table:
    """The datasets for the terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        left = heading in ("dataset", "version")
        shown.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows(build):
        shown.add_row(*row)
    return shown


def reasons_text(reasons: Mapping[str, int], stage: str = "") -> str:
    """``3 http_404, 1 truncated``; what a stage was to leave out is ``20 filtered as asked``."""
    asked = intended(stage)
    return ", ".join(
        f"{count:,} {one_line(reason)}{' as asked' if reason in asked else ''}"
        for reason, count in by_count(reasons)
    )


def intended(stage: str) -> frozenset[str]:
    """The reasons for which a stage of that name, if there is one here, rejects as it is asked."""
    return get_stage(stage).intended if stage in Stages() else frozenset()


def reject_lines(build: Build) -> list[str]:
    """A line per dataset with rejects: how many, for which reasons."""
    tables = [f"{g.name}: {g.rejects:,} rows of the table" for g in build.grown if g.rejects]
    return tables + [
        f"{progress.name}: {reasons_text(progress.reasons, progress.stage)}"
        for progress in build.progress.values()
        if progress.reasons
    ]


def example_lines(build: Build) -> list[str]:
    """A reject of each reason, in full, of datasets that got no version in which to look."""
    lines = []
    for name in build.planner.problems():
        wanted = set(build.progress[name].reasons)
        for row in _rejects(build, name, wanted):
            if row["reason"] in wanted:
                wanted.remove(row["reason"])
                what = " ".join(filter(None, (row["message"], row.get("url"))))
                lines.append(one_line(f"{name}: {row['reason']}: {what}"))
    return lines


def _rejects(build: Build, name: str, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    for shard, result in itertools.islice(build.planner.results(name), _MOST_SHARDS):
        if any(reason in wanted for reason in result.reasons):
            # The store may be what failed.
            with contextlib.suppress(ReelmillError, OSError):
                yield from ShardReader(build.store, result.shard(shard)).rows(REJECTED)


def hole_lines(build: Build) -> list[str]:
    """A line per shard that a dataset has to do without, which its recipe allows."""
    return [
        f"{name}/{shard}: {message}"
        for name in build.names
        for shard, message in build.planner.holes(name).items()
    ]


def markdown_report(build: Build, pages: Mapping[str, str]) -> str:
    """The datasets as a markdown table, with the reasons of rejects and of failures.

    Args:
        pages: links for versions, by their labels: ``clips@3fa9c1d20b7e``.
    """
    lines = [
        f"| {' | '.join(HEADINGS)} |",
        "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2),
        *(f"| {' | '.join(_unbroken(_linked(row, pages)))} |" for row in rows(build)),
    ]
    for heading, texts in (
        ("Rejects", reject_lines(build)),
        ("Such as", example_lines(build)),
        ("Shards that could not be made", hole_lines(build)),
        ("Not built", build.planner.problems().values()),
    ):
        if texts:
            lines += ["", f"**{heading}**", "", *(f"- {plain(text)}" for text in texts)]
    return "\n".join(lines)


def plain(text: str) -> str:
    """``text``, which may hold what strangers wrote, as markdown that shows it as it is."""
    return _MARKED.sub(r"\\\g<0>", one_line(text))


def markdown_link(label: str, pages: Mapping[str, str]) -> str:
    """A version's label, as a link where there is one."""
    return f"[{label}]({pages[label]})" if label in pages else label


def _linked(row: tuple[str, ...], pages: Mapping[str, str]) -> list[str]:
    return [markdown_link(cell, pages) for cell in row]


def _unbroken(row: Sequence[str]) -> list[str]:
    return [cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row]


def as_json(build: Build) -> dict[str, Any]:
    """The outcome for scripts."""
    return {
        "store": build.store.url,
        "datasets": {
            name: {**asdict(progress), "have": progress.have, "holes": build.planner.holes(name)}
            for name, progress in build.progress.items()
        },
        "problems": build.planner.problems(),
    }
