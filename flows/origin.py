"""How a version was made, as a person would ask for it again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from reelmill.dataset import Version
from reelmill.errors import NotFoundError, RecipeError, ReelmillError
from reelmill.flows.derivation import Asked, derivable, field_key
from reelmill.recipe_text import inline
from reelmill.store.model import Action
from reelmill.tasks import Stages
from reelmill.tasks.contract import Params, key_params


def parameters(version: Version) -> list[str]:
    """The parameters of the stage that made a version, as ``key=value``, as far as they are not
    the stage's own; none where nobody knows."""
    action = _action(version)
    return [] if action is None else _overrides(action)


def asked_for(version: Version) -> Asked:
    """What to ask for to derive a version again.

    Raises:
        ReelmillError: nothing tells, or it cannot be derived.
    """
    action = _action(version)
    if action is None:
        raise NotFoundError(f"{version}: nothing in the store says with which parameters it came")
    stage = action.stage
    if stage not in Stages() or stage not in derivable():
        raise ReelmillError(f"{version} was made by {stage}, which makes no derived dataset")
    ref = version.ref
    roles = Stages()[stage].roles
    plain = tuple(ref.parents) == roles[:1]
    parents = tuple(label if plain else f"{role}={label}" for role, label in ref.parents.items())
    asked = Asked(version.name, parents, stage, tuple(_overrides(action)))
    if action.salt or not _comes_to(asked, version, action):
        raise ReelmillError(
            f"{version}: no command says how it was made: stage {stage} has other parameters now, "
            "it took a part of a split or used a file of its own, or a recipe gave it a salt"
        )
    return asked


def _comes_to(asked: Asked, version: Version, action: Action) -> bool:
    """Whether what is asked for has the parameters of an action."""
    try:
        dataset = asked.recipe(version.store.url).datasets[version.name]
    except RecipeError:
        return False
    assert isinstance(dataset.params, Params)
    return key_params(dataset.params) == action.params


def _action(version: Version) -> Action | None:
    """The action of a version's last shard."""
    for entry in reversed(version.lineage.values()):
        record = version.store.record(entry.action)
        return record.action if record else None
    return None


def _overrides(action: Action) -> list[str]:
    own: Mapping[str, Any] = {}
    names: dict[str, str] = {}
    if action.stage in Stages():
        model = Stages()[action.stage].params
        names = {name: field_key(name, info) for name, info in model.model_fields.items()}
        # Of a stage with parameters that must be given, all are told.
        with contextlib.suppress(ValueError):
            own = key_params(model())
    return [
        f"{names.get(name, name)}={inline(value)}"
        for name, value in action.params.items()
        if value != own.get(name)
    ]
