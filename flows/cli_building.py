"""Commands that make datasets.

Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

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

if TYPE_CHECKING:
    from reelmill.flows.derivation import Asked
    from reelmill.store import Store

T = TypeVar("T")


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
    recipe: RecipePath,
    only: Only = None,
    overrides: Overrides = None,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    as_json: AsJSON = False,
) -> None:
    """Show what a build would make, why each shard is not there yet, and what that would cost.

    Times rest on earlier work of the same stages in this store, for the workers of --profile.
    """
    from reelmill.flows.plan import make_plan, plan_json, show_plan
    from reelmill.flows.profile import load_profile
    from reelmill.flows.run import planning_store

    where = load_profile(profile, workers)
    loaded = load(recipe, overrides)
    with planning_store(loaded.store) as store:
        planned = make_plan(loaded, store, where, only=only or (), console=None if as_json else err)
    if as_json:
        print_json(plan_json(planned))
    else:
        show_plan(planned, out)


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
    dataset: Annotated[
        str | None, typer.Argument(metavar="NAME", help="What the new dataset is called.")
    ] = None,
    parents: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            "-f",
            metavar="[ROLE=]DATASET[@VERSION|@TAG]",
            help="The version to start from; repeatable, for a stage that reads several.",
        ),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="Such as frames or shuffle.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the stage (repeatable)."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The same as NAME.")] = None,
    max_rejects: Annotated[
        str, typer.Option(metavar="SHARE", help="With more of its samples rejected: no version.")
    ] = "50%",
    max_holes: Annotated[
        str, typer.Option(metavar="SHARE", help="With more of its shards impossible: no version.")
    ] = "0%",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be made, and what it costs.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Append the dataset to the recipe when it is made.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="RECIPE", help="The recipe for --save, if not recipe.yaml."
        ),
    ] = None,
    store: StoreURL = None,
    profile: ProfileName = "local",
    workers: WorkerCount = None,
    quiet: Quiet = False,
    json_log: JSONLog = False,
    as_json: AsJSON = False,
) -> None:
    """Make one more dataset from a finished version, without a recipe.

    What is set is read as YAML, and a point leads into a group of parameters. For example:

    reelmill derive triplets --from clips@latest --stage frames --set count=3 --set stride=2

    reelmill derive small --from clips@v1 --stage split --set video.codec=av1

    reelmill derive cuts --from videos --from scenes=scenes@v1 --stage split

    reelmill derive flow --from triplets --stage flow --dry-run

    reelmill derive pairs --from clips --stage frames --set count=2 --save
    """
    from reelmill.flows.derivation import Asked
    from reelmill.flows.run import run_derive

    if name and dataset and name != dataset:
        raise ReelmillError(f"two names for one dataset, {dataset} and {name}; give one of them")
    if recipe and not save:
        raise ReelmillError("--recipe says where --save appends the dataset; give both")
    given = dataset or name
    asked = Asked(
        name=_needed(given, "what is the new dataset called? reelmill derive NAME ..."),
        parents=_needed(tuple(parents or ()), "from which version? --from DATASET, or DATASET@TAG"),
        stage=_needed(stage, f"what is made of it? --stage with one of {_stages()}"),
        overrides=tuple(parameters or ()),
        max_rejects=_share("--max-rejects", max_rejects),
        max_holes=_share("--max-holes", max_holes),
    )
    saved_in = Path(recipe or "recipe.yaml") if save else None
    opened = open_store(store or (load(recipe, None).store if recipe else None))
    if dry_run:
        _show_derivation(asked, opened, saved_in, profile, workers, as_json)
        return
    run_derive(
        opened,
        asked,
        saved_in=saved_in,
        profile=profile,
        workers=workers,
        show=shown_by(quiet, json_log, as_json),
    )


def _needed(given: T | None, question: str) -> T:
    if not given:
        raise ReelmillError(f"{question}; see 'reelmill derive --help'")
    return given


def _stages() -> str:
    from reelmill.flows.derivation import derivable

    return ", ".join(derivable())


def _share(option: str, text: str) -> Decimal:
    from reelmill.units import parse_share

    try:
        return parse_share(text)
    except ValueError as error:
        raise ReelmillError(f"{option} {text}: {error}") from None


def _show_derivation(
    asked: Asked,
    store: Store,
    saved_in: Path | None,
    profile: str,
    workers: int | None,
    as_json: bool,
) -> None:
    from reelmill.flows.derivation import refuse_misfit
    from reelmill.flows.plan import make_plan, plan_json, show_plan
    from reelmill.flows.profile import load_profile
    from reelmill.flows.save import Saving

    where = load_profile(profile, workers)
    wanted = asked.recipe(store.url)
    refuse_misfit(wanted, store)
    addition = Saving(saved_in, asked, store).addition() if saved_in else None
    planned = make_plan(wanted, store, where)
    if as_json:
        print_json(plan_json(planned))
        return
    show_plan(planned, out)
    if saved_in:
        said = f"{saved_in} would get" if addition else f"{saved_in} has it already"
        out.print(said if not addition else f"{said}:\n{addition}", markup=False)


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
