"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from reelmill import __version__
from reelmill.errors import ReelmillError, one_line

if TYPE_CHECKING:
    from reelmill.dataset import Version
    from reelmill.flows.run import Show
    from reelmill.recipe import Recipe
    from reelmill.rejects import Selection
    from reelmill.store import Store

app = typer.Typer(
    name="reelmill",
    help="Build video datasets: from a list of URLs to clips, frames and optical flow in "
    "reproducible WebDataset shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
WIDE = 200
"""Columns where there is no screen to fit into: a pipe or a file must not lose half a table."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDE
)

BUILDING = "Build"
LOOKING = "Look"
USING = "Use"

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe: a YAML or Python file.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="NAME", help="Only this dataset and what it needs (repeatable)."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME.KEY=VALUE", help="Change a value of the recipe (repeatable)."
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="Where the workers are: local, gpu, address, slurm, kubernetes, or a YAML file.",
    ),
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, help="Local worker processes.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
JSONLog = Annotated[
    bool, typer.Option("--json-log", help="Progress as JSON lines on standard error.")
]
Spec = Annotated[
    str,
    typer.Argument(metavar="DATASET[@VERSION|@TAG]", help="A dataset; its latest version if none."),
]
Reasons = Annotated[
    str | None,
    typer.Option(
        "--reason", metavar="NAME,...", help="Only these reasons: timeout,http_429; http is any."
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST", help="Only this host and those below it (repeatable)."),
]
MaxAge = Annotated[
    str | None,
    typer.Option(
        "--max-age", metavar="TIME", help="Only what was tried within this time: 7d, 12h."
    ),
]
StoreURL = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        envvar="REELMILL_STORE",
        help="The store: a folder or s3://bucket/prefix. Without it, that of ./recipe.yaml.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)  # noqa: T201
        raise typer.Exit


@app.command(rich_help_panel=BUILDING)
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put it.")]) -> None:
    """Write a commented starter recipe and a table of URLs to fill in."""
    import importlib.resources

    folder.mkdir(parents=True, exist_ok=True)
    starters = importlib.resources.files("reelmill.configs")
    for name in ("recipe.yaml", "urls.csv"):
        target = folder / name
        if target.exists():
            raise ReelmillError(f"{target} exists already; choose another folder or remove it")
    for name in ("recipe.yaml", "urls.csv"):
        text = (starters / "starter" / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    out.print(
        f"Wrote {folder / 'recipe.yaml'} and {folder / 'urls.csv'}.\n"
        f"Put your addresses into {folder / 'urls.csv'}, then run: "
        f"reelmill build {folder / 'recipe.yaml'}",
        markup=False,
    )


@app.command(rich_help_panel=BUILDING)
def plan(
    recipe: RecipePath, only: Only = None, overrides: Overrides = None, as_json: AsJSON = False
) -> None:
    """Show what a build would make, by dataset, and why each shard is not there yet."""
    from collections import Counter

    from reelmill.digest import SHORT
    from reelmill.flows.again import find_due
    from reelmill.flows.drive import prepare
    from reelmill.flows.explain import explain, foresee
    from reelmill.flows.reading import shown

    loaded = _load(recipe, overrides)
    with _planning_store(loaded.store) as store:
        with shown(None if as_json else err) as watch:
            build = prepare(loaded, store, only=only or (), run="plan", write=False, watch=watch)
        explained = explain(build)
        outlook = foresee(build)
        checks = Counter(
            one.version.name for one in find_due(loaded, store, build.names, "plan", claim=False)
        )
    problems = outlook.problems
    if as_json:
        _print_json(
            [
                {
                    "dataset": one.name,
                    "stage": one.stage,
                    "shards": one.expected,
                    "there": one.have,
                    "to_make": one.ready,
                    "waiting": one.waiting,
                    "waits_for": one.waits_for,
                    "reasons": dict(one.reasons),
                    "problem": problems.get(one.name),
                    "moves_to": outlook.moves.get(one.name),
                    "checks": checks[one.name],
                }
                for one in explained
            ]
        )
        return
    for grown in build.grown:
        out.print(f"[bold]{grown.name}[/]  {_growth(grown)}")
    for one in explained:
        total = "?" if one.expected is None else str(one.expected)
        complete = one.have == one.expected and one.name not in problems
        state = "[green]complete[/]" if complete else f"{one.have} of {total} there"
        out.print(f"[bold]{one.name}[/]  {one.stage}: {state}")
        if moves := outlook.moves.get(one.name):
            out.print(f"    {one.name}@latest would be {one.name}@{moves[:SHORT]}", markup=False)
        if asked := checks[one.name]:
            out.print(f"    first it is asked whether the addresses of {asked} shards changed")
        for reason, count in one.reasons.most_common():
            out.print(f"    {count} to make: {reason}", markup=False)
        if one.waits_for and one.waiting != 0:
            rest = "some" if one.waiting is None else str(one.waiting)
            out.print(f"    {rest} to make after {' and '.join(one.waits_for)}")
    for problem in problems.values():
        out.print(problem, markup=False)
    if not build.missing and not problems:
        rest = " but what changed at its address" if checks else ""
        out.print(f"All shards exist; a build would make nothing{rest}.")


@app.command(rich_help_panel=BUILDING)
def build(
    recipe: RecipePath,
    only: Only = None,
    overrides: Overrides = None,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    quiet: Quiet = False,
    json_log: JSONLog = False,
    as_json: AsJSON = False,
) -> None:
    """Make every shard that does not exist yet, and commit the versions.

    A build that was stopped goes on where it was: run the same command again.
    """
    from reelmill.flows.run import run_build

    run_build(
        recipe,
        only=only or [],
        overrides=overrides or [],
        profile=profile,
        workers=workers,
        show=_show(quiet, json_log, as_json),
    )


@app.command(rich_help_panel=BUILDING)
def retry(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A dataset that is made of a table's rows.")
    ],
    reason: Reasons = None,
    host: Hosts = None,
    max_age: MaxAge = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="RECIPE", help="The recipe that made it.")
    ] = "recipe.yaml",
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be fetched again.")
    ] = False,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    quiet: Quiet = False,
    json_log: JSONLog = False,
    as_json: AsJSON = False,
) -> None:
    """Fetch the rejects of a dataset again, and nothing else.

    Without --reason, those whose reason may pass, such as a time-out or a host that was down.

    What comes in this time is added as a new generation; no shard that exists is made again.

    For example: reelmill retry videos --reason timeout,http_429 --max-age 7d
    """
    from collections import Counter

    from reelmill.flows.again import choose, chosen_reasons, refuse_changed
    from reelmill.flows.report import reasons_text
    from reelmill.flows.run import run_retry
    from reelmill.store import Store

    selection = _selection(chosen_reasons(reason), host, max_age)
    if dry_run:
        loaded = _load(recipe, overrides)
        opened = Store.open(loaded.store)
        refuse_changed(loaded, opened, dataset)
        found = choose(loaded, opened, dataset, selection)
        reasons = Counter(one.reason for one in found)
        if as_json:
            _print_json({"dataset": dataset, "rows": len(found), "reasons": dict(reasons)})
        else:
            what = f": {reasons_text(reasons)}" if reasons else ""
            out.print(f"{len(found):,} would be fetched again{what}", markup=False)
        return
    build = run_retry(
        recipe,
        dataset,
        selection,
        overrides=overrides or [],
        profile=profile,
        workers=workers,
        show=_show(quiet, json_log, as_json),
    )
    if build is None:
        if as_json:
            _print_json({"dataset": dataset, "rows": 0, "reasons": {}})
        else:
            advice = f"'reelmill rejects {dataset}' lists what was rejected and why"
            out.print(f"Nothing of {dataset} is to be fetched again; {advice}.", markup=False)


@app.command(rich_help_panel=BUILDING)
def derive(
    parent: Annotated[
        str, typer.Argument(metavar="DATASET[@VERSION|@TAG]", help="The version to start from.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the new dataset is called.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Such as frames, flow or shuffle.")],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Its parameters, such as count=3."),
    ] = None,
    store: StoreURL = None,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    quiet: Quiet = False,
    json_log: JSONLog = False,
    as_json: AsJSON = False,
) -> None:
    """Make one more dataset from a finished version, without a recipe.

    For example: reelmill derive clips@latest triplets frames count=3 max_side=640
    """
    from reelmill.flows.run import run_derive

    run_derive(
        _store(store).url,
        parent,
        name,
        stage,
        overrides=parameters or [],
        profile=profile,
        workers=workers,
        show=_show(quiet, json_log, as_json),
    )


@app.command(rich_help_panel=BUILDING)
def serve(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to build.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Build now and then again: 1d, 6h, 30m.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="CRON", help="Build at these times (UTC): '0 3 * * *'.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", "-s", metavar="URL", help="One more store, to derive from."),
    ] = None,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where Prefect listens, if none is configured.")
    ] = 4200,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Where Prometheus finds metrics; no host: here."),
    ] = None,
) -> None:
    """Have recipes built by schedule, and from Prefect's UI, until Ctrl-C.

    Uses the configured Prefect server, or starts one on this machine.
    """
    from datetime import timedelta

    from reelmill.units import parse_seconds

    try:
        interval = timedelta(seconds=float(parse_seconds(every))) if every else None
    except ValueError as error:
        raise ReelmillError(f"--every {every}: {error}") from None
    from reelmill.flows.serve import run_serve

    run_serve(
        recipes or [],
        store=store,
        every=interval,
        cron=cron,
        profile=profile,
        workers=workers,
        metrics=metrics,
        port=port,
        limit=limit,
        console=err,
    )


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

    opened = _store(store)
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
        _print_json(
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
            _escaped(one_line(ref.stage)),
            f"{totals.shards:,}",
            f"{totals.samples:,}",
            f"{totals.rejects:,}",
            format_bytes(totals.bytes) if ref.version in there else "collected",
            _escaped(one_line(ref.time)),
        )
    out.print(table)


@app.command(rich_help_panel=LOOKING)
def show(
    dataset: Spec,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="List every reject: key, reason, message.")
    ] = False,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Show one version: what it holds, where it came from, what was rejected and why."""
    from collections import Counter

    from reelmill.flows.report import reasons_text
    from reelmill.units import format_bytes

    version = _version(store, dataset)
    found = list(version.rejects())
    if rejects:
        if as_json:
            _print_json(found)
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
        _print_json(
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
        "made by": f"{ref.stage}, {ref.time}",
        "from": ", ".join(ref.parents.values()) or "a table",
        "fields": ", ".join(manifest.fields) or "none: rows of a table",
        "shards": f"{totals.shards:,}, generations: {generations:,}",
        "samples": f"{totals.samples:,}",
        "rejects": f"{totals.rejects:,}" + (f" ({reasons_text(reasons)})" if reasons else ""),
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

    version = _version(store, dataset)
    named = [part.strip() for part in (reason or "").split(",") if part.strip()]
    found = rejecting.rejects(version, _selection(named, host, max_age))
    if export:
        count = rejecting.export(found, export)
        out.print(f"{count:,} rejects of {version} are in {export}", markup=False)
        return
    tally = rejecting.tally(found)
    reasons = rejecting.by_reason(tally)
    if as_json:
        _print_json(
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
            head = (_escaped(one_line(name)), f"{hosts.total():,}") if number == 0 else ("", "")
            table.add_row(*head, _escaped(one_line(one)), f"{count:,}")
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

    version = _version(store, dataset)
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
        _print_json({"version": str(version), "shards": len(shards), "problems": problems})
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

    data = draw_sheet(_version(store, dataset), count, width)
    _write(output, data)
    out.print(str(output), markup=False)


@app.command(rich_help_panel=USING)
def urls(
    dataset: Spec,
    pipe: Annotated[
        bool,
        typer.Option("--pipe", help="For S3: as webdataset reads it, through the aws command."),
    ] = False,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Print where each shard's tar lies, for webdataset or any reader of tars."""
    version = _version(store, dataset)
    found = version.urls()
    if version.removed:
        advice = f"'reelmill view {dataset} DIR' lays the tars out without them"
        err.print(f"These tars still hold samples that were removed; {advice}.", markup=False)
    if pipe:
        if not all(url.startswith("s3://") for url in found):
            raise ReelmillError("--pipe is for a store on S3; this one is read by its plain paths")
        found = [f"pipe:aws s3 cp {url} -" for url in found]
    if as_json:
        _print_json(found)
    else:
        for url in found:
            print(url)  # noqa: T201


@app.command(rich_help_panel=USING)
def view(
    dataset: Spec,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link the store's own files even as root, whom nothing keeps "
            "from writing into them.",
        ),
    ] = False,
    store: StoreURL = None,
) -> None:
    """Lay a version out as DIR/00000.tar, 00001.tar, … for tools that read a folder."""
    from reelmill.flows.view import make_view

    made = make_view(_version(store, dataset), folder, link=link)
    out.print(made, markup=False)


@app.command(rich_help_panel=USING)
def tag(
    dataset: Spec,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The tag, such as v1.")],
    store: StoreURL = None,
) -> None:
    """Put a tag on a version; a tag that is on another one moves."""
    import re

    from reelmill.store.store import now

    version = _version(store, dataset)
    if name == "latest" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,62}", name):
        raise ReelmillError(
            f"'{name}' cannot be a tag: letters, digits, '.', '_' and '-', beginning with a "
            "letter; 'latest' moves by itself"
        )
    version.store.claim_version(version.digest)
    update = {"event": "tag", "tags": (name,), "time": now(), "run": "tag"}
    version.store.commit_ref(version.name, version.ref.model_copy(update=update))
    out.print(f"{version.name}@{name} is {version}", markup=False)


@app.command(rich_help_panel=USING)
def collect(
    keep_versions: Annotated[
        int,
        typer.Option(
            "--keep-versions", metavar="N", min=1, help="Newest versions of a dataset that stay."
        ),
    ] = 3,
    keep: Annotated[
        str,
        typer.Option(
            "--keep", metavar="TIME", help="How long something must have been of no use: 7d, 12h."
        ),
    ] = "30d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    store: StoreURL = None,
    as_json: AsJSON = False,
) -> None:
    """Remove superseded versions, and whatever else no version needs any more.

    Tagged versions stay, and so does all that runs in progress need.
    """
    import dataclasses

    from rich.table import Table

    from reelmill.store import collect as collecting
    from reelmill.units import format_bytes, format_seconds, parse_seconds

    try:
        seconds = parse_seconds(keep)
    except ValueError as error:
        raise ReelmillError(f"--keep {keep}: {error}") from None
    if seconds < collecting.SHORTEST_KEEP:
        shortest = format_seconds(collecting.SHORTEST_KEEP)
        raise ReelmillError(f"--keep {keep} is too short to be safe; say {shortest} or more")
    policy = collecting.Policy(keep_versions=keep_versions, keep=seconds)
    run = collecting.plan_collection if dry_run else collecting.collect
    with err.status("looking ...") as status:

        def watch(found: collecting.Collection) -> None:
            size = format_bytes(found.total.bytes)
            status.update(f"{found.total.count:,} objects of no use, {size}")

        found = run(_store(store), policy, watch)
    if as_json:
        _print_json({**dataclasses.asdict(found), "dry_run": dry_run})
        return
    done = "would be removed" if dry_run else "removed"
    for version in found.versions:
        out.print(f"{version} {done}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(done, no_wrap=True)
    table.add_column("objects", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for kind, tally in found.removed.items():
        if tally.count:
            table.add_row(kind, f"{tally.count:,}", format_bytes(tally.bytes))
    if table.rows:
        out.print(table)
    gone, stay = format_bytes(found.total.bytes), format_bytes(found.kept.bytes)
    out.print(f"{gone} {done}; {stay} stay", markup=False)


@app.command(rich_help_panel=BUILDING)
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to build it.")] = Path(
        "reelmill-demo"
    ),
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Local worker processes.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", "-s", metavar="URL", help="Instead of DIR/store.")
    ] = None,
) -> None:
    """Run the main job on a dozen generated videos, served on this machine."""
    from reelmill.flows.demo import run_demo

    run_demo(folder, workers=workers, store=store, out=out, err=err)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The ``reelmill`` command: one line on standard error and a code other than 0 on failure."""
    from reelmill.flows.exits import Interrupted

    def stop(number: int, _frame: object) -> NoReturn:
        raise Interrupted("stopped; what was finished is kept", number)

    # Until a build's own handler takes over, so that the Prefect server it starts is not left.
    signal.signal(signal.SIGTERM, stop)
    try:
        app(args=arguments, standalone_mode=True)
    except Interrupted as stopped:
        err.print(str(stopped), markup=False)
        sys.exit(stopped.code)
    except ReelmillError as error:
        err.print(f"[bold red]error:[/] {_escaped(str(error))}")
        sys.exit(1)
    sys.exit(0)


def _show(quiet: bool, json_log: bool, as_json: bool) -> Show:
    from reelmill.flows.run import Show

    return Show(
        console=None if quiet or json_log or as_json else err,
        report=_print_json if as_json else out,
        events=sys.stderr if json_log else None,
    )


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from reelmill.recipe import load_recipe
    from reelmill.tasks import Stages
    from reelmill.tasks.ingest import Source

    return load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides or ())


def _selection(reasons: Sequence[str], hosts: list[str] | None, max_age: str | None) -> Selection:
    import time

    from reelmill.rejects import Selection
    from reelmill.units import parse_seconds

    try:
        since = None if max_age is None else time.time() - float(parse_seconds(max_age))
    except ValueError as error:
        raise ReelmillError(f"--max-age {max_age}: {error}") from None
    return Selection(tuple(reasons), tuple(name.lower() for name in hosts or ()), since)


def _planning_store(url: str) -> Any:
    from reelmill.flows.run import planning_store

    return planning_store(url)


def _store(url: str | None) -> Store:
    from reelmill.store import Store

    if url is None:
        if not Path("recipe.yaml").exists():
            raise ReelmillError(
                "which store? give --store or set REELMILL_STORE, or go to a folder with a "
                "recipe.yaml"
            )
        url = _load("recipe.yaml", None).store
    return Store.open(url)


def _version(url: str | None, spec: str) -> Version:
    from reelmill.dataset import open_version

    return open_version(_store(url), spec)


def _removed(version: Version) -> str:
    from collections import Counter

    from reelmill.flows.report import reasons_text

    reasons = Counter(why.reason for why in version.removed.values())
    return f"{len(version.removed):,} rows no longer count ({reasons_text(reasons)})"


def _growth(grown: Any) -> str:
    parts = [f"{grown.rows:,} rows"]
    if grown.new:
        parts.append(f"{grown.new:,} new")
    if grown.rejects:
        parts.append(f"{grown.rejects:,} unusable ('reelmill show {grown.name} --rejects')")
    if grown.gone:
        fate = "no longer count" if grown.dropped else "are kept"
        parts.append(f"{grown.gone:,} of before are no longer in the table and {fate}")
    if grown.back:
        parts.append(f"{grown.back:,} that were gone are there again")
    return ", ".join(parts)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ReelmillError(f"cannot write {path}: {error.strerror}") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))  # noqa: T201
