"""Commands that hand out what there is, and clear away what is of no use.

Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelmill.errors import ReelmillError
from reelmill.flows.cli_shared import (
    USING,
    AsJSON,
    Spec,
    StoreURL,
    app,
    err,
    open_store,
    out,
    print_json,
    version_of,
)
from reelmill.loading.views import Format


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
    version = version_of(store, dataset)
    found = version.urls()
    if version.removed:
        advice = f"'reelmill view {dataset} DIR' lays the tars out without them"
        err.print(f"These tars still hold samples that were removed; {advice}.", markup=False)
    if pipe:
        if not all(url.startswith("s3://") for url in found):
            raise ReelmillError("--pipe is for a store on S3; this one is read by its plain paths")
        found = [f"pipe:aws s3 cp {url} -" for url in found]
    if as_json:
        print_json(found)
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
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--for", help="Write what this library needs to load the folder (repeatable)."
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="NAME=DATASET",
            help="With --for, another dataset that the folder shows beside: its split of that "
            "name (repeatable).",
        ),
    ] = None,
    urls: Annotated[
        str | None,
        typer.Option(
            "--urls",
            metavar="URL",
            help="With --for wids, hf or croissant, lay out no tars but name those of the store "
            "below this address, at which others find it by HTTP.",
        ),
    ] = None,
    store: StoreURL = None,
) -> None:
    """Lay a version out as DIR/00000.tar, 00001.tar, … for tools that read a folder.

    With --for it is one that a library loads directly; the lines say by which expression.
    """
    from reelmill.flows.view import make_view

    others = {}
    for one in split or ():
        name, separator, spec = one.partition("=")
        if not separator:
            raise ReelmillError(
                f"--split {one}: give a name and a dataset, such as test=clips_test"
            )
        others[name] = version_of(store, spec)
    version = version_of(store, dataset)
    lines = make_view(version, folder, link=link, formats=formats or (), others=others, base=urls)
    for line in lines:
        out.print(line, markup=False)


@app.command(rich_help_panel=USING)
def tag(
    dataset: Spec,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The tag, such as v1.")],
    store: StoreURL = None,
) -> None:
    """Put a tag on a version; a tag that is on another one moves."""
    import re

    from reelmill.store.store import now

    version = version_of(store, dataset)
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

        found = run(open_store(store), policy, watch)
    if as_json:
        print_json({**dataclasses.asdict(found), "dry_run": dry_run})
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
