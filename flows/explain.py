"""Why a shard is not there yet: what ``reelmill plan`` says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reelmill.digest import SHORT, sha256
from reelmill.errors import ReelmillError
from reelmill.flows.drive import Build
from reelmill.store import Store
from reelmill.store.model import Action
from reelmill.tasks.planner import Todo

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MANY = 200
"""Shards of a dataset whose reasons are looked up one by one; the rest are alike in practice."""


@dataclass(slots=True)
class Explanation:
    """What is to be made of one dataset. ``reasons`` counts shards by why they are missing."""

    name: str
    stage: str
    expected: int | None
    have: int
    ready: int
    reasons: Counter[str] = field(default_factory=Counter)
    waits_for: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> int | None:
        """Shards whose input must be made first; ``None`` where their number depends on it."""
        return None if self.expected is None else self.expected - self.have - self.ready


def explain(build: Build) -> list[Explanation]:
    """What is missing, by dataset in the order of the recipe."""
    found = []
    for name in build.names:
        missing = [todo for todo in build.missing if todo.dataset == name]
        progress = build.progress[name]
        one = Explanation(name, progress.stage, progress.expected, progress.have, len(missing))
        history = _History(build.store, name)
        for todo in missing[:_MANY]:
            one.reasons[history.reason(todo)] += 1
        if len(missing) > _MANY:
            one.reasons["and others, for like reasons"] += len(missing) - _MANY
        if one.waiting is None or one.waiting > 0:
            inputs = build.recipe.datasets[name].inputs.values()
            one.waits_for = [p for p in dict.fromkeys(inputs) if p in build.progress]
        found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would become of the datasets whose shards all exist, by their names: those that would
    get no version, and why; and those whose latest version would be another one, and which."""

    problems: dict[str, str]
    moves: dict[str, str]


def foresee(build: Build) -> Outlook:
    """What a build would commit without making a shard."""
    moves = {}
    for name, manifest, _ in build.planner.finished():
        version = sha256(manifest.as_bytes())
        last = build.store.latest(name)
        if last is None or last.version != version:
            moves[name] = version
    return Outlook(build.planner.problems(), moves)


class _History:
    """The newest version of a dataset: which action made each of its shards."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        ref = store.latest(name)
        self._actions: dict[str, str] = {}
        self.exists = ref is not None
        if ref and ref.lineage:
            try:
                lineage = store.lineage(ref.lineage)
            except ReelmillError:
                return
            self._actions = {entry.shard: entry.action for entry in lineage.shards}

    def reason(self, todo: Todo) -> str:
        if not self.exists:
            return "never built"
        earlier = self._actions.get(todo.shard)
        if earlier is None:
            return "new shard"
        if earlier == todo.action.key:
            return "its bytes are gone from the store"
        record = self._store.record(earlier)
        if record is None:
            return "changed"
        return "; ".join(differences(record.action, todo.action)) or "changed"


def differences(old: Action, new: Action) -> Iterator[str]:
    """What changed between two actions for the same shard, in words."""
    if old.stage != new.stage:
        yield f"stage {old.stage} is now {new.stage}"
        return
    if old.version != new.version:
        yield f"version of stage {new.stage}: {old.version} is now {new.version}"
    yield from _changed("", old.params, new.params)
    for role in sorted({*old.inputs, *new.inputs}):
        if old.inputs.get(role) != new.inputs.get(role):
            yield "its input changed" if role == "source" else f"its input {role} changed"
    yield from _changed("", old.slot, new.slot)
    yield from _changed("tool ", old.tools, new.tools)
    if old.salt != new.salt:
        yield "salt changed"


def _changed(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed(f"{prefix}{name}.", before, after)
        elif before != after:
            yield f"{prefix}{name}: {_shown(before)} is now {_shown(after)}"


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text[:SHORT] if _DIGEST.fullmatch(text) else text
