"""Commands that look at what there is.

Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reelmill.errors import ReelmillError, one_line
from reelmill.flows.cli_shared import (
    LOOKING,
    AsJSON,
    Hosts,
    MaxAge,
    Reasons,
    Spec,
    StoreURL,
    app,
    err,
    escaped,
    open_store,
    out,
    print_json,
    selected,
    version_of,
    write_file,
)

if TYPE_CHECKING:
    from reelmill.dataset import Version


@app.command(name="ls", rich_help_panel=LOOKING)
def list_datasets(
    dataset: Annotated[str | None, typer.Argument(help="List this dataset's versions.")] = None,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """List the datasets of a store, or the versions of one."""
    from rich.table import Table

    from reelmill.errors import NotFoundError
    from reelmill.units import format_bytes

    opened = open_store(store)
    found = [
        (name, ref, tags)
        for name in ([dataset] if dataset else opened.datasets())
        for ref, tags in opened.history(name)
        if dataset or "latest" in tags
    ]
    there = opened.present({ref.version for _, ref, _ in found})
    if dataset and not found:
        raise NotFoundError(f"no dataset '{dataset}' in {opened.url}")
    if as_json:
        print_json(
            [
                {
                    "dataset": name,
                    **ref.model_dump(mode="json", exclude={"uncounted"}),
                    "totals": ref.counted.model_dump(),
                    "tags": tags,
                    "collected": ref.version not in there,
                }
                for name, ref, tags in found
            ]
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (
        "version",
        "tags",
        "stage",
        "from",
        "shards",
        "samples",
        "rejects",
        "bytes",
        "committed",
    ):
        right = heading in ("shards", "samples", "rejects", "bytes")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for name, ref, tags in found:
        totals = ref.counted
        table.add_row(
            f"{name}@{ref.short}",
            ", ".join(tags),
            escaped(one_line(ref.stage)),
            escaped(one_line(", ".join(dict.fromkeys(ref.parents.values())))),
            f"{totals.shards:,}",
            f"{totals.samples:,}",
            f"{totals.rejects:,}",
            format_bytes(totals.bytes) if ref.version in there else "collected",
            escaped(one_line(ref.time)),
        )
    out.print(table)


@app.command(rich_help_panel=LOOKING)
def show(
    dataset: Spec,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="List every reject: key, reason, message.")
    ] = False,
    command: Annotated[
        bool, typer.Option("--command", help="Print the command that derives the same again.")
    ] = False,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Show one version: what it holds, where it came from, what was rejected and why."""
    import shlex
    from collections import Counter

    from reelmill.flows.origin import asked_for, parameters
    from reelmill.flows.report import reasons_text
    from reelmill.units import format_bytes

    version = version_of(store, dataset)
    if command:
        words = asked_for(version).command
        if as_json:
            print_json(words)
        else:
            out.print(shlex.join(words), markup=False)
        return
    found = list(version.rejects())
    if rejects:
        if as_json:
            print_json(found)
        for row in [] if as_json else found:
            where = f"  {row['url']}" if row.get("url") else ""
            told = f"{row['key']}  {row['reason']}: {row['message']}{where}"
            out.print(one_line(told), markup=False)
        return
    reasons = Counter(row["reason"] for row in found)
    tags = next(
        tags for ref, tags in version.store.history(version.name) if ref.version == version.digest
    )
    ref, manifest = version.ref, version.manifest
    if as_json:
        print_json(
            {
                "dataset": version.name,
                "tags": tags,
                "ref": ref.model_dump(mode="json"),
                "manifest": manifest.model_dump(mode="json"),
                "rejects": dict(reasons),
                "removed": dict(Counter(why.reason for why in version.removed.values())),
            }
        )
        return
    totals = ref.counted
    generations = len(manifest.generations)
    rows = {
        "version": f"{version.name}@{version.digest}",
        "tags": ", ".join(tags),
        "made by": f"{' '.join((ref.stage, *parameters(version)))}, {ref.time}",
        "from": _parents(ref.parents) or "a table",
        "fields": ", ".join(manifest.fields) or "none: rows of a table",
        "shards": f"{totals.shards:,}, generations: {generations:,}",
        "samples": f"{totals.samples:,}",
        "rejects": f"{totals.rejects:,}"
        + (f" ({reasons_text(reasons, ref.stage)})" if reasons else ""),
        **({"removed": _removed(version)} if manifest.removed else {}),
        "bytes": format_bytes(totals.bytes),
        "store": version.store.url,
    }
    for shard, message in ref.holes.items():
        rows[f"no {shard}"] = message
    for name, text in rows.items():
        out.print(f"[bold]{name:<9}[/]", end="")
        out.print(one_line(text), markup=False)


@app.command(rich_help_panel=LOOKING)
def rejects(
    dataset: Spec,
    reason: Reasons = None,
    host: Hosts = None,
    max_age: MaxAge = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", "-o", metavar="FILE", help="Write them to a .csv, .tsv, .jsonl or .parquet."
        ),
    ] = None,
    most: Annotated[int, typer.Option("--top", min=1, help="Hosts to print for each reason.")] = 5,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Count what was rejected, by reason and host, or write it to a table."""
    from rich.table import Table

    from reelmill import rejects as rejecting

    version = version_of(store, dataset)
    named = rejecting.named_reasons(reason)
    found = rejecting.rejects(version, selected(named, host, max_age))
    if export:
        count = rejecting.export(found, export)
        out.print(f"{count:,} rejects of {version} are in {export}", markup=False)
        return
    tally = rejecting.tally(found)
    reasons = rejecting.by_reason(tally)
    if as_json:
        print_json(
            {
                "version": str(version),
                "rejects": tally.total(),
                "reasons": {name: dict(hosts.most_common()) for name, hosts in reasons.items()},
            }
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("reason", False),
        ("rejects", True),
        ("host", False),
        ("of them", True),
    ):
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for name, hosts in reasons.items():
        first = hosts.most_common(most)
        rest = hosts.total() - sum(count for _, count in first)
        lines = [(one or "no host", count) for one, count in first]
        if rest:
            lines.append((f"{len(hosts) - len(first):,} other hosts", rest))
        for number, (one, count) in enumerate(lines):
            head = (escaped(one_line(name)), f"{hosts.total():,}") if number == 0 else ("", "")
            table.add_row(*head, escaped(one_line(one)), f"{count:,}")
    if table.rows:
        out.print(table)
    out.print(f"{version}: {tally.total():,} rejects", markup=False)


@app.command(rich_help_panel=LOOKING)
def verify(
    dataset: Spec,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what is damaged, so that a build makes it anew."),
    ] = False,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Read a version back: every byte against its digest, every sample against its index."""
    from rich.progress import track

    from reelmill.shards.verify import remove_damaged, verify_shard

    version = version_of(store, dataset)
    shards = list(version.manifest.shards)
    problems: list[dict[str, str]] = []
    checking = track(
        shards, f"checking {version}", console=err, transient=True, disable=not err.is_terminal
    )
    for shard in checking:
        problems += [
            {"shard": shard.id, "problem": problem}
            for problem in verify_shard(version.store, shard)
        ]
    if as_json:
        print_json({"version": str(version), "shards": len(shards), "problems": problems})
    else:
        for problem in problems:
            out.print(f"{version.name}/{problem['shard']}: {problem['problem']}", markup=False)
    if problems:
        damaged = [s for s in shards if s.id in {problem["shard"] for problem in problems}]
        if repair:
            for shard in damaged:
                remove_damaged(version.store, shard)
            advice = "they were removed: build the recipe again to make them anew"
        else:
            advice = f"'reelmill verify {dataset} --repair' removes them for a build to make anew"
        raise ReelmillError(
            f"{len(damaged)} of {len(shards)} shards of {version} are damaged; {advice}"
        )
    if not as_json:
        totals = version.totals
        out.print(
            f"{version}: {totals.shards:,} shards, {totals.samples:,} samples, all bytes are right"
        )


@app.command(rich_help_panel=LOOKING)
def preview(
    dataset: Spec,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many samples.")] = 24,
    width: Annotated[int, typer.Option("--width", min=400, max=8000, help="In pixels.")] = 1600,
    store: StoreURL = None,
) -> None:
    """Draw a contact sheet of some samples: clips, frames or optical flow."""
    from reelmill.flows.preview import draw_sheet

    data = draw_sheet(version_of(store, dataset), count, width)
    write_file(output, data)
    out.print(str(output), markup=False)


@app.command(rich_help_panel=LOOKING)
def scenes(
    file: Annotated[Path, typer.Argument(help="A video file.")],
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector",
            "-d",
            help="content (if none is given), adaptive, threshold, hash, histogram or transnetv2; "
            "repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option("--threshold", "-t", help="The detector's, if not its own.")
    ] = None,
    min_scene: Annotated[
        str, typer.Option("--min-scene", "-m", help="The shortest scene.")
    ] = "600ms",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="TransNetV2's, for PyTorch.")
    ] = None,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Decode and score on an NVIDIA card.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="A PNG to write: the scores, the cuts, a picture of each."),
    ] = None,
    width: Annotated[int, typer.Option(min=400, max=8000, help="Of the PNG, in pixels.")] = 1600,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Look at few frames only: most cuts, a fraction of the work."),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, max=256, help="Cores; all, if not given.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Find the scenes of one video, as stage split does, and see why they are cut there."""
    import os

    from reelmill.flows.scenes import chosen_detectors, draw, look

    detectors = chosen_detectors(detector or ["content"], threshold, min_scene, weights)
    scores, found = look(
        file,
        detectors,
        jobs=jobs or os.cpu_count() or 1,
        exact=not fast,
        device="cuda" if cuda else "cpu",
    )
    if plot is not None:
        write_file(plot, draw(file, scores, found, detectors, width))
    if as_json:
        print_json({"file": str(file), "scenes": found, "plot": plot and str(plot)})
        return
    _show_scenes(found)
    if plot is not None:
        out.print(str(plot), markup=False)


def _show_scenes(found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("scene", "start", "end", "seconds", "frames"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, scene in enumerate(found, 1):
        start, end, frames = scene["start"], scene["end"], scene["frames"]
        counted = "" if frames is None else f"{frames:,}"
        table.add_row(str(number), f"{start:.3f}", f"{end:.3f}", f"{end - start:.3f}", counted)
    out.print(table)


@app.command(rich_help_panel=LOOKING)
def probe(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Videos on this machine.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON for each file, for scripts.")
    ] = False,
) -> None:
    """Say what is in video files, or what is wrong with them: streams, colours, rate, keyframes.

    Ends with code 1 if any of them cannot be used.
    """
    import json

    from reelmill.errors import Rejected
    from reelmill.flows.summary import summary
    from reelmill.media.describe import describe

    damaged = 0
    for file in files:
        try:
            found = describe(file)
        except (Rejected, OSError) as trouble:
            damaged += 1
            reason, message = _trouble(trouble)
            told: dict[str, object] = {"file": file, "reason": reason, "message": message}
            lines = [f"{file}: {reason}: {message}"]
        else:
            told = {"file": file, **found.as_json()}
            rows = summary(found)
            lines = [file, *(f"  {name:<10} {text}" for name, text in rows.items())]
        if as_json:
            print(json.dumps(told))  # noqa: T201
        for line in [] if as_json else lines:
            out.print(one_line(line), markup=False)
    if damaged:
        raise ReelmillError(f"{damaged} of {len(files)} files cannot be used")


def _trouble(trouble: Exception) -> tuple[str, str]:
    from reelmill.errors import Rejected

    if isinstance(trouble, Rejected):
        return trouble.reason, trouble.message
    return "unreadable", getattr(trouble, "strerror", None) or str(trouble)


def _parents(parents: Mapping[str, str]) -> str:
    if len(parents) == 1:
        return next(iter(parents.values()))
    return ", ".join(f"{role} {parent}" for role, parent in parents.items())


def _removed(version: Version) -> str:
    from collections import Counter

    from reelmill.flows.report import reasons_text

    reasons = Counter(why.reason for why in version.removed.values())
    return f"{len(version.removed):,} rows no longer count ({reasons_text(reasons)})"
