"""What the commands share: the application, the screens, options, and what they mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from reelmill.errors import ReelmillError

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


def shown_by(quiet: bool, json_log: bool, as_json: bool) -> Show:
    """What a command shows of a build."""
    from reelmill.flows.run import Show

    return Show(
        console=None if quiet or json_log or as_json else err,
        report=print_json if as_json else out,
        events=sys.stderr if json_log else None,
    )


def escaped(text: str) -> str:
    """Text that means no markup."""
    from rich.markup import escape

    return escape(text)


def load(recipe: str, overrides: list[str] | None) -> Recipe:
    """The recipe of a file."""
    from reelmill.recipe import load_recipe
    from reelmill.tasks import Stages
    from reelmill.tasks.ingest import Source

    return load_recipe(recipe, stages=Stages(), source_model=Source, overrides=overrides or ())


def selected(reasons: Sequence[str], hosts: list[str] | None, max_age: str | None) -> Selection:
    """The rejects that options mean."""
    import time

    from reelmill.rejects import Selection
    from reelmill.units import parse_seconds

    try:
        since = None if max_age is None else time.time() - float(parse_seconds(max_age))
    except ValueError as error:
        raise ReelmillError(f"--max-age {max_age}: {error}") from None
    return Selection(tuple(reasons), tuple(name.lower() for name in hosts or ()), since)


def open_store(url: str | None) -> Store:
    """The store that is named, or that of the recipe in the current folder."""
    from reelmill.store import Store

    if url is None:
        if not Path("recipe.yaml").exists():
            raise ReelmillError(
                "which store? give --store or set REELMILL_STORE, or go to a folder with a "
                "recipe.yaml"
            )
        url = load("recipe.yaml", None).store
    return Store.open(url)


def version_of(url: str | None, spec: str) -> Version:
    """The version that a command is about."""
    from reelmill.dataset import open_version

    return open_version(open_store(url), spec)


def print_json(value: Any) -> None:
    """Print for scripts."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201


def write_file(path: Path, data: bytes) -> None:
    """Write what a command was asked to, its folder included; ReelmillError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ReelmillError(f"cannot write {path}: {error.strerror}") from None
