"""Which rows of a table are fetched again: rejects that somebody wants to have another try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from reelmill.dataset import open_version
from reelmill.errors import RecipeError, ReelmillError
from reelmill.flows.drive import may_pass
from reelmill.recipe import Recipe
from reelmill.rejects import Reject, Selection, rejects
from reelmill.shards.removed import RETRIED, source_key
from reelmill.store import Store
from reelmill.tasks import get_stage
from reelmill.tasks.again import commit_again
from reelmill.tasks.ingest import Source

MAY_PASS = "passing"  # noqa: S105 - a word for reasons
"""Stands for all reasons that may turn out well another time."""


def readers(recipe: Recipe) -> dict[str, str]:
    """The datasets that are made of a table's rows, each with the name of its table."""
    found = {}
    for name, dataset in recipe.datasets.items():
        for parent in dataset.inputs.values():
            if get_stage(dataset.stage).takes == "rows" and isinstance(
                recipe.sources.get(parent), Source
            ):
                found[name] = parent
    return found


def choose(recipe: Recipe, store: Store, dataset: str, selection: Selection) -> list[Reject]:
    """The rejects of a dataset that a retry would fetch again.

    ``MAY_PASS`` among the reasons stands for all that may turn out well another time.

    Raises:
        ReelmillError: the dataset is not made of a table's rows, or was never built.
    """
    source = _source(recipe, dataset)
    stage = recipe.datasets[dataset].stage
    named = replace(selection, reasons=[one for one in selection.reasons if one != MAY_PASS])
    passing = replace(selection, reasons=())
    version = open_version(store, dataset)
    latest = store.latest(source)
    known = version.ref.parents.values()
    if latest is None or latest.stage != "ingest":
        raise ReelmillError(
            f"{dataset}: it was made of {', '.join(known)}, and {store.url} has no table {source}"
        )
    return [
        one
        for one in rejects(version, passing)
        if source_key(one.key) == one.key
        and (
            (MAY_PASS in selection.reasons and may_pass(stage, one.reason))
            or (bool(named.reasons) and named.has(one))
        )
    ]


def retry(
    recipe: Recipe, store: Store, dataset: str, selection: Selection, run: str
) -> Counter[str]:
    """Let the chosen rejects enter their table once more, as a new generation that the next build
    fetches; how many, by reason.

    Raises:
        ReelmillError: as :func:`choose`.
    """
    chosen = choose(recipe, store, dataset, selection)
    if chosen:
        name = _source(recipe, dataset)
        source = recipe.sources[name]
        assert isinstance(source, Source)
        keys = [one.key for one in chosen]
        commit_again(store, name, keys, RETRIED, source.rows_per_shard, run)
    return Counter(one.reason for one in chosen)


def _source(recipe: Recipe, dataset: str) -> str:
    known = readers(recipe)
    if dataset in known:
        return known[dataset]
    there = ", ".join(known) or "none in this recipe"
    if dataset in recipe.datasets:
        stage = recipe.datasets[dataset].stage
        raise RecipeError(
            f"{dataset} is made by {stage}; only what is made of a table's rows can be tried "
            f"again: {there}"
        )
    raise RecipeError(f"the recipe has no dataset {dataset!r}; can be tried again: {there}")


def chosen_reasons(text: str | None) -> Sequence[str]:
    """The reasons in ``timeout,http_429``; those that may pass if there are none."""
    named = [part.strip() for part in (text or "").split(",") if part.strip()]
    return named or [MAY_PASS]
