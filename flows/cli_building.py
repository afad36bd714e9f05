"""Commands that make datasets.

Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reelmill.errors import ReelmillError
from reelmill.flows.cli_shared import (
    BUILDING,
    AsJSON,
    Hosts,
    JSONLog,
    MaxAge,
    Only,
    Overrides,
    ProfileName,
    Quiet,
    Reasons,
    RecipePath,
    StoreURL,
    WorkerCount,
    app,
    err,
    load,
    open_store,
    out,
    print_json,
    selected,
    shown_by,
)


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

    loaded = load(recipe, overrides)
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
        print_json(
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
        show=shown_by(quiet, json_log, as_json),
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

    selection = selected(chosen_reasons(reason), host, max_age)
    if dry_run:
        loaded = load(recipe, overrides)
        opened = Store.open(loaded.store)
        refuse_changed(loaded, opened, dataset)
        found = choose(loaded, opened, dataset, selection)
        reasons = Counter(one.reason for one in found)
        if as_json:
            print_json({"dataset": dataset, "rows": len(found), "reasons": dict(reasons)})
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
        show=shown_by(quiet, json_log, as_json),
    )
    if build is None:
        if as_json:
            print_json({"dataset": dataset, "rows": 0, "reasons": {}})
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
        open_store(store).url,
        parent,
        name,
        stage,
        overrides=parameters or [],
        profile=profile,
        workers=workers,
        show=shown_by(quiet, json_log, as_json),
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


def _planning_store(url: str) -> Any:
    from reelmill.flows.run import planning_store

    return planning_store(url)


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
