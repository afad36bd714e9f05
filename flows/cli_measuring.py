"""Commands that measure.

Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reelmill.errors import one_line
from reelmill.flows.cli_shared import (
    LOOKING,
    AsJSON,
    app,
    err,
    escaped,
    out,
    print_json,
    write_file,
)

if TYPE_CHECKING:
    from reelmill.loading.bench import Report

bench = typer.Typer(
    help="Measure on this machine, with your own files.", no_args_is_help=True, add_completion=False
)
app.add_typer(bench, name="bench", rich_help_panel=LOOKING)


@bench.callback()
def _group() -> None:
    """So that a command of the group is named, even where it is the only one."""


@bench.command()
def readers(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Videos.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Only this one (repeatable); else all there are.",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="The most of each file that follow each other.")
    ] = 300,
    every: Annotated[
        int, typer.Option("--every", min=2, help="Of these also every so many-th.")
    ] = 10,
    singles: Annotated[
        int, typer.Option("--singles", min=1, help="Single frames anywhere in a file.")
    ] = 16,
    clips: Annotated[int, typer.Option("--clips", min=1, help="Clips anywhere in a file.")] = 2,
    clip_frames: Annotated[
        int, typer.Option("--clip-frames", "-t", min=1, help="Frames of a clip.")
    ] = 16,
    rounds: Annotated[
        int, typer.Option("--rounds", "-r", min=1, help="In which all take turns.")
    ] = 3,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="A PNG to write: the frames a second as bars.")
    ] = None,
    width: Annotated[int, typer.Option(min=800, max=8000, help="Of the PNG, in pixels.")] = 1600,
    as_json: AsJSON = False,
) -> None:
    """Measure how fast each library that decodes reads your videos: in order, and here and there.

    Beside them stands what ffmpeg takes to decode the same frames, which is the limit on a CPU.
    """
    from reelmill.flows.bench import draw
    from reelmill.loading.bench import Access, measure

    access = Access(frames, every, singles, clips, clip_frames)
    with err.status("measuring") as status:
        report = measure(
            files,
            access,
            backends=backend or (),
            rounds=rounds,
            progress=lambda done, total: status.update(f"measuring: {done:,} of {total:,}"),
        )
    if plot is not None:
        write_file(plot, draw(report, width))
    if as_json:
        print_json({**report.as_json(), "plot": plot and str(plot)})
        return
    _show(report)
    if plot is not None:
        out.print(str(plot), markup=False)


def _show(report: Report) -> None:
    from rich.table import Table

    from reelmill.flows.bench import by_pattern, summary, title

    out.print(one_line(summary(report)), markup=False)
    for pattern, rows in by_pattern(report):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("backend", "mode", "device"):
            table.add_column(heading, no_wrap=True)
        for heading in ("frames/s", "by ffmpeg's", "CPU ms/frame", "by ffmpeg's", "files"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                row.subject.backend,
                row.subject.mode,
                row.subject.device,
                f"{row.frames_per_second:,.0f}",
                _ratio(row.speed_by_ffmpeg),
                f"{1000 * row.cpu_seconds_per_frame:.2f}",
                _ratio(row.cpu_by_ffmpeg),
                f"{row.files:,}",
            )
        out.print(f"\n[bold]{escaped(title(pattern, report.access))}[/]")
        out.print(table)
    # One line for the two modes of a backend.
    told = list(
        dict.fromkeys(
            f"cannot read {file}: {subject.backend} on {subject.device}: {why}"
            for (subject, file), why in report.failed.items()
        )
    )
    told += [f"not here: {name}: {why}" for name, why in report.missing.items()]
    for line in told:
        out.print(one_line(line), markup=False)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
