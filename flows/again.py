"""Which rows of a table are fetched again: rejects that are to have another try, and addresses
behind which there may be other bytes now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from reelmill.dataset import Version, open_version
from reelmill.errors import RecipeError, ReelmillError
from reelmill.flows.drive import may_pass
from reelmill.flows.explain import differences
from reelmill.recipe import Recipe
from reelmill.rejects import Reject, Selection, named_reasons, rejects
from reelmill.shards import index
from reelmill.shards.removed import CHANGED, RETRIED, source_key
from reelmill.store import Store
from reelmill.store.model import Action, Result
from reelmill.tasks import CHECK, get_stage
from reelmill.tasks.again import commit_again
from reelmill.tasks.check import Known
from reelmill.tasks.contract import Params, action_of, key_params
from reelmill.tasks.due import IF_CHANGED, NEVER, due
from reelmill.tasks.frame import Order
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
    """The rejects of a dataset that a retry would fetch again; none that entered its table again
    already, or left it.

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
    table = open_version(store, source)
    return [
        one
        for one in rejects(version, passing)
        if source_key(one.key) == one.key
        and table.counts(one.key)
        and (
            (MAY_PASS in selection.reasons and may_pass(stage, one.reason))
            or (bool(named.reasons) and named.has(one))
        )
    ]


def refuse_changed(recipe: Recipe, store: Store, dataset: str) -> None:
    """Refuse to fetch some rows of a dataset again by a recipe that would make all of it anew.

    Raises:
        ReelmillError: the dataset was made otherwise than the recipe now says.
    """
    _source(recipe, dataset)
    version, given = open_version(store, dataset), recipe.datasets[dataset]
    records = (store.record(entry.action) for entry in version.lineage.values())
    record = next((one for one in records if one), None)
    if record is None:
        return
    stage = get_stage(given.stage)
    assert isinstance(given.params, Params)
    ours = {
        "stage": stage.name,
        "version": stage.version,
        "params": key_params(given.params),
        "tools": dict(stage.tools(given.params)),
        "salt": given.salt,
    }
    if changed := "; ".join(differences(record.action, record.action.model_copy(update=ours))):
        raise ReelmillError(
            f"{version} was made otherwise ({changed}), so that all of it would be made anew: "
            "give the --set that it was built with, or build it first"
        )


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
        commit_again(store, name, keys, RETRIED, source.shard_rows, run)
    return Counter(one.reason for one in chosen)


def waiting(recipe: Recipe, store: Store, dataset: str) -> int:
    """How many rejects of a dataset entered its table again and were not fetched since."""
    table, version = open_version(store, _source(recipe, dataset)), open_version(store, dataset)
    again = (key for key, why in table.removed.items() if why.reason == RETRIED)
    return sum(key not in version.removed for key in again)


@dataclass(frozen=True, slots=True)
class Due:
    """The check of one shard of a version, and what it came to if it was made before."""

    version: Version
    source: str
    order: Order
    result: Result | None


def find_due(
    recipe: Recipe, store: Store, names: Sequence[str], run: str, *, claim: bool = True
) -> list[Due]:
    """The checks that are due before some datasets of a recipe are built.

    Those that an interrupted build made are among them, since nobody may have acted on them.

    Args:
        claim: whether they will be relied on; a mere plan does not.
    """
    found: list[Due] = []
    moment = int(time.time())
    for name, parent in readers(recipe).items():
        source = recipe.sources[parent]
        ref = store.latest(name)
        if not isinstance(source, Source) or source.refresh == NEVER:
            continue
        if name in names and ref and ref.lineage and ref.stage == recipe.datasets[name].stage:
            version = open_version(store, name)
            found += _due(recipe, version, parent, source.refresh, moment, run, claim)
    return found


def _due(
    recipe: Recipe,
    version: Version,
    source: str,
    refresh: str,
    moment: int,
    run: str,
    claim: bool,
) -> Iterator[Due]:
    store, stage = version.store, get_stage(CHECK)
    given = recipe.datasets[version.name].params
    params = stage.params.model_validate(given.model_dump(include=set(stage.params.model_fields)))
    actions: dict[str, tuple[Action, Known]] = {}
    for shard in version.manifest.shards:
        entry = version.lineage.get(shard.id)
        if entry is None or not shard.samples:
            continue
        # A check that is made at every build need not be told since when.
        made = None if refresh == IF_CHANGED else version.made(shard)
        slot = due(refresh, made or 0, moment)
        if slot is not None:
            origins = entry.result.provenance
            known = Known(shard, origins.digest if origins else None, slot)
            action = action_of(stage, params, known.order(), "", {})
            actions[action.key] = action, known
    results = store.recall(actions, claim=claim) if refresh != IF_CHANGED else {}
    for key, (action, known) in actions.items():
        order = _order(store, run, version, params, action, known)
        yield Due(version, source, order, results.get(key))


def _order(
    store: Store, run: str, version: Version, params: Params, action: Action, known: Known
) -> Order:
    return Order(
        store=store.url,
        run=run,
        dataset=version.name,
        shard=known.shard.id,
        action=action,
        params=params.model_dump(mode="json"),
        shards={"source": known.shard},
    )


def take_changed(
    recipe: Recipe, store: Store, results: Sequence[tuple[Due, Result]], run: str
) -> dict[str, int]:
    """Let rows whose bytes changed, as checks found, enter their tables once more; how many, by
    table."""
    by_source: dict[str, set[str]] = {}
    for one, result in results:
        keys = by_source.setdefault(one.source, set())
        if result.index and result.reasons.get(CHANGED):
            data = store.read_blob(result.index.digest, "parquet")
            rows = index.decode(data, ["key", "reason"]).to_pylist()
            keys.update(row["key"] for row in rows if row["reason"] == CHANGED)
    counts = {}
    for name, keys in by_source.items():
        source, table = recipe.sources[name], open_version(store, name)
        assert isinstance(source, Source)
        # A check that was made before may have been acted on.
        current = sorted(key for key in keys if table.counts(key))
        if current:
            commit_again(store, name, current, CHANGED, source.shard_rows, run)
        counts[name] = len(current)
    return counts


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
    return named_reasons(text) or [MAY_PASS]
