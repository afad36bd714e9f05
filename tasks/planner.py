"""The plan of a build, in pure code: which shards can be made now, and which datasets are done.

Nothing here reads a store or knows of Prefect. A driver asks for what is ready, looks it up or
has it made, and tells the planner; the answers decide the rest, since the key of an action holds
the digests of what came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from reelmill.errors import MissingDependencyError, RecipeError, StageError
from reelmill.recipe import Kind, unfit
from reelmill.store.model import (
    Action,
    Blob,
    Generation,
    Lineage,
    LineageEntry,
    Manifest,
    Result,
    Shard,
)
from reelmill.tasks.contract import (
    HISTORY,
    Params,
    Scope,
    Slot,
    Stage,
    action_of,
    generation_input,
    history_input,
    label,
)

Renamed = Callable[[Blob, str], Blob]
"""Gives the blob of removed rows that has a text before the keys of another's."""


@dataclass(frozen=True, slots=True)
class Node:
    """A dataset of the build: its stage, and the datasets or sources that fill its roles."""

    name: str
    stage: Stage[Any]
    params: Params
    parents: Mapping[str, str]
    salt: str = ""
    max_rejects: Decimal = Decimal(1)
    max_holes: Decimal = Decimal(0)

    @property
    def scope(self) -> Scope:
        return self.stage.scope_of(self.params)


@dataclass(frozen=True, slots=True)
class Todo:
    """One shard that can be made now."""

    dataset: str
    generation: int
    slot: Slot
    action: Action
    depth: int

    @property
    def shard(self) -> str:
        return self.slot.shard_id

    @property
    def label(self) -> str:
        return label(self.action.stage, self.dataset, self.shard)


@dataclass(slots=True)
class _Growth:
    """One generation of a dataset as it fills up."""

    planned: dict[str, str] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    holes: dict[str, str] = field(default_factory=dict)
    closed: bool = False

    @property
    def complete(self) -> bool:
        return self.closed and len(self.results) + len(self.holes) == len(self.planned)

    def shards(self) -> list[Shard]:
        return [self.results[shard_id].shard(shard_id) for shard_id in sorted(self.results)]


@dataclass(slots=True)
class _State:
    node: Node
    depth: int
    growths: list[_Growth]
    merged: int
    tools: dict[str, str]
    failure: str | None = None
    reported: bool = False

    def reads(self, number: int) -> range:
        """The generations of its inputs that one generation is made of."""
        return (
            range(self.merged)
            if number == 0
            else range(number + self.merged - 1, number + self.merged)
        )

    def made_of(self, generation: int) -> int:
        """The generation that a generation of its inputs goes into."""
        return max(0, generation - self.merged + 1)


def by_count(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons of rejects, the most frequent first."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def _tools(node: Node) -> dict[str, str]:
    """What a node's bytes depend on of its host. Raises as its stage does, and names the node."""
    try:
        return node.stage.tools(node.params)
    except (MissingDependencyError, StageError) as error:
        raise type(error)(f"{node.name}: {error}") from error


def _kind(manifest: Manifest) -> Kind | None:
    """What a version holds; None if that is nothing."""
    shard = next((shard for shard in manifest.shards if shard.samples), None)
    if shard is None:
        return None
    return "samples" if shard.tar else "rows"


def _union(removed: Iterable[tuple[Blob, ...]]) -> tuple[Blob, ...]:
    blobs = {blob.digest: blob for some in removed for blob in some}
    return tuple(blobs[digest] for digest in sorted(blobs))


class Planner:
    """The state of one build.

    Args:
        nodes: the datasets, parents before children.
        sources: the manifests of the tables that the build starts from.
        retried: how many rows of a table were rejects and are rows once more, so that their first
            rejection no longer counts.
        renamed: the blob of removed rows that are those of another with so much before their keys:
            for stages that put a prefix before keys.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        sources: Mapping[str, Manifest],
        retried: Mapping[str, int] | None = None,
        renamed: Renamed | None = None,
    ) -> None:
        self._renamed = renamed
        self._retried = retried or {}
        self._given = sources
        self._given_shards = {name: sum(1 for _ in m.shards) for name, m in sources.items()}
        self._removed = {name: manifest.removed for name, manifest in sources.items()}
        self._states: dict[str, _State] = {}
        self._children: dict[str, list[str]] = {}
        self._woken: list[str] = []
        self._listed: dict[str, list[tuple[str, bytes]]] = {}
        for node in nodes:
            self._refuse_misfit(node)
            counts = {self._grew(parent) for parent in node.parents.values()}
            if len(counts) > 1 and not node.stage.uneven:
                raise RecipeError(
                    f"{node.name}: its inputs grew differently ({min(counts)} and {max(counts)} "
                    "generations); datasets are joined only if they come from the same source"
                )
            depth = 1 + max(
                (self._states[p].depth for p in node.parents.values() if p in self._states),
                default=-1,
            )
            merged = max(1, min(node.stage.merges(node.params), max(counts)))
            growths = [_Growth() for _ in range(max(counts) - merged + 1)]
            self._states[node.name] = _State(node, depth, growths, merged, _tools(node))
            self._removed[node.name] = _union(
                self._removed_of(node, role, parent) for role, parent in node.parents.items()
            )
            for parent in dict.fromkeys(node.parents.values()):
                self._children.setdefault(parent, []).append(node.name)

    def _refuse_misfit(self, node: Node) -> None:
        """Raise ``RecipeError`` if a version that fills a role is rows where its stage takes
        samples, or samples where it takes rows, or if parameters name a role that is none."""
        try:
            node.stage.refuse_roles(node.params, node.parents)
        except StageError as error:
            raise RecipeError(f"{node.name}: {error}") from error
        for role, parent in node.parents.items():
            kind = _kind(self._given[parent]) if parent in self._given else None
            if kind is not None and (problem := unfit(node.stage, role, parent, kind)):
                raise RecipeError(f"{node.name}: {problem}")

    def _removed_of(self, node: Node, role: str, parent: str) -> tuple[Blob, ...]:
        removed = self._removed[parent]
        prefix = node.stage.prefix(node.params, role)
        if not prefix or not removed:
            return removed
        assert self._renamed is not None
        return tuple(self._renamed(blob, prefix) for blob in removed)

    def start(self) -> list[Todo]:
        """What can be made before anything else is."""
        return self._advance_all(
            (name, None)
            for name, state in self._states.items()
            if all(parent in self._given for parent in state.node.parents.values())
        )

    def done(self, todo: Todo, result: Result) -> list[Todo]:
        """Take in a shard's result; what can be made now that could not before."""
        growth = self._states[todo.dataset].growths[todo.generation]
        growth.results[todo.shard] = result
        return self._wake(todo)

    def failed(self, todo: Todo, message: str, *, may_be_hole: bool = True) -> list[Todo]:
        """Take in that a shard cannot be made; what can be made now that could not before.

        Its dataset and what derives from it stay open, unless the dataset may have holes and this
        may be one: then what derives from it goes on without that shard.
        """
        state = self._states[todo.dataset]
        if not (state.node.max_holes and may_be_hole):
            state.failure = state.failure or f"{todo.label}: {message}"
            return []
        state.growths[todo.generation].holes[todo.shard] = message
        return self._wake(todo)

    def _wake(self, todo: Todo) -> list[Todo]:
        children = self._children.get(todo.dataset, ())
        return self._advance_all((child, todo) for child in children)

    def _advance_all(self, causes: Iterable[tuple[str, Todo | None]]) -> list[Todo]:
        """What can be made in datasets whose input has changed, and in those that this wakes."""
        ready: list[Todo] = []
        waiting = deque(causes)
        while waiting:
            ready += self._advance(*waiting.popleft())
            waiting.extend((child, None) for child in self._woken)
            self._woken.clear()
        return ready

    def finished(self) -> Iterator[tuple[str, Manifest, Lineage]]:
        """Datasets that became complete since the last call, each with its version."""
        failed: set[str] = set()
        # Parents come before children.
        for name, state in self._states.items():
            if state.failure or not failed.isdisjoint(state.node.parents.values()):
                failed.add(name)
                continue
            if state.reported or not all(g.complete for g in state.growths):
                continue
            state.reported = True
            state.failure = (
                self._too_many_holes(state)
                or self._lost_samples(state)
                or self._too_many_rejects(state)
            )
            if state.failure is None:
                yield name, self.manifest(name), self._lineage(state)
            else:
                failed.add(name)

    def problems(self) -> dict[str, str]:
        """Why datasets could not be completed, by name."""
        return {n: state.failure for n, state in self._states.items() if state.failure}

    def holes(self, name: str) -> dict[str, str]:
        """The shards that a dataset has to do without, and why."""
        growths = self._states[name].growths
        return {shard: message for g in growths for shard, message in sorted(g.holes.items())}

    def expected(self) -> dict[str, int | None]:
        """How many shards each dataset will have; ``None`` before its input is known."""
        found: dict[str, int | None] = {**self._given_shards}
        # Parents come before children.
        for name, state in self._states.items():
            found[name] = None
            if all(growth.closed for growth in state.growths):
                found[name] = sum(len(growth.planned) for growth in state.growths)
            elif state.node.scope != "generation":
                counts = [found[parent] for parent in state.node.parents.values()]
                if None not in counts:
                    found[name] = min(count for count in counts if count is not None)
        return found

    def results(self, name: str) -> Iterator[tuple[str, Result]]:
        """The results of a dataset so far, by shard ID."""
        for growth in self._states[name].growths:
            yield from sorted(growth.results.items())

    def keys(self, name: str) -> dict[str, str]:
        """The action keys of a dataset's shards so far, by shard ID."""
        return {shard: key for g in self._states[name].growths for shard, key in g.planned.items()}

    def planned(self, name: str, generation: int) -> int:
        """How many shards a generation of a dataset has so far."""
        return len(self._states[name].growths[generation].planned)

    def shards(self, name: str) -> Iterator[Shard]:
        """The shards of a dataset or source that are there."""
        for number in range(self._grew(name)):
            yield from self._available(name, number, None)

    def unplanned(self, name: str) -> dict[str, list[Shard]]:
        """By role, the input shards that are there of what waits for others."""
        state = self._states[name]
        found: dict[str, list[Shard]] = {role: [] for role in state.node.parents}
        for number, growth in enumerate(state.growths):
            if growth.closed:
                continue
            taken = growth.planned if state.node.stage.scope != "generation" else ()
            for role, shards in self._inputs(state, number, None).items():
                found[role] += [shard for shard in shards if shard.id not in taken]
        return found

    def passing(self) -> Iterator[str]:
        """Keys of actions worth another try: in datasets with too many rejects, those whose
        rejects have reasons that may pass."""
        for state in self._states.values():
            if not state.reported or state.failure is None:
                continue
            for growth in state.growths:
                for shard_id, result in growth.results.items():
                    if any(state.node.stage.may_pass(reason) for reason in result.reasons):
                        yield growth.planned[shard_id]

    def manifest(self, name: str) -> Manifest:
        """The version that a complete dataset is."""
        growths = self._states[name].growths
        fields = {f for growth in growths for r in growth.results.values() for f in r.fields}
        return Manifest(
            fields=tuple(sorted(fields)),
            generations=tuple(Generation(shards=tuple(g.shards())) for g in growths),
            removed=self._removed[name],
        )

    def _lineage(self, state: _State) -> Lineage:
        return Lineage(
            shards=tuple(
                LineageEntry(shard=shard_id, action=growth.planned[shard_id], result=result)
                for growth in state.growths
                for shard_id, result in sorted(growth.results.items())
            )
        )

    def _too_many_holes(self, state: _State) -> str | None:
        holes = self.holes(state.node.name)
        planned = sum(len(growth.planned) for growth in state.growths)
        if not holes or (len(holes) < planned and len(holes) <= state.node.max_holes * planned):
            return None
        shard, message = next(iter(holes.items()))
        allowed = (
            "and a version of none is none"
            if len(holes) == planned
            else f"more than max_holes ({state.node.max_holes:%}) allows"
        )
        return (
            f"{label(state.node.stage.name, state.node.name, shard)}: {message}; "
            f"{len(holes)} of {planned} shards could not be made, {allowed}"
        )

    def _lost_samples(self, state: _State) -> str | None:
        stage = state.node.stage
        if not stage.conserves or any(growth.holes for growth in state.growths):
            return None
        name = state.node.name
        roles = stage.roles[:1] or tuple(state.node.parents)
        taken = sum(self._samples(state.node.parents[role]) for role in roles)
        made = self.manifest(name).totals()
        if taken == made.samples + made.rejects:
            return None
        if lacking := self._lacking(state):
            return lacking
        return (
            f"{name}: {taken} samples in, {made.samples} and {made.rejects} rejects out; "
            "this is a fault in the stage, no version was committed"
        )

    def _lacking(self, state: _State) -> str | None:
        """Which of a dataset's inputs has no shard to go with another's."""
        if state.node.scope != "shard":
            return None
        places = {parent: self._places(parent) for parent in state.node.parents.values()}
        every = {place for some in places.values() for place in some}
        for number, shard_id in sorted(every):
            lacking = [p for p, some in places.items() if (number, shard_id) not in some]
            if lacking:
                has = next(parent for parent in places if parent not in lacking)
                elsewhere = any(shard_id == other for _, other in places[lacking[0]])
                return (
                    f"{state.node.name}: {has} has a shard {shard_id} and {lacking[0]} has none"
                    f"{f' in generation {number + 1}' if elsewhere else ''}, so its samples cannot "
                    "be put together; no version was committed"
                )
        return None

    def _places(self, name: str) -> set[tuple[int, str]]:
        """The number of its generation and the ID of each shard."""
        manifest = self._given[name] if name in self._given else self.manifest(name)
        generations = enumerate(manifest.generations)
        return {(number, shard.id) for number, one in generations for shard in one.shards}

    def _samples(self, name: str) -> int:
        return (self._given[name] if name in self._given else self.manifest(name)).totals().samples

    def _too_many_rejects(self, state: _State) -> str | None:
        totals = self.manifest(state.node.name).totals()
        retried = sum(self._retried.get(parent, 0) for parent in set(state.node.parents.values()))
        asked = sum(
            count
            for growth in state.growths
            for result in growth.results.values()
            for reason, count in result.reasons.items()
            if reason in state.node.stage.intended
        )
        rejects = totals.rejects - retried - asked
        seen = totals.samples + rejects
        if not seen or Decimal(rejects) <= state.node.max_rejects * seen:
            return None
        reasons: dict[str, int] = {}
        for growth in state.growths:
            for result in growth.results.values():
                for reason, count in result.reasons.items():
                    if reason not in state.node.stage.intended:
                        reasons[reason] = reasons.get(reason, 0) + count
        worst = ", ".join(f"{reason} {count}" for reason, count in by_count(reasons))
        return (
            f"{state.node.name}: {rejects} of {seen} samples were rejected ({worst}), more "
            f"than max_rejects ({state.node.max_rejects:%}) allows; no version was committed"
        )

    def _advance(self, name: str, cause: Todo | None = None) -> Iterator[Todo]:
        state = self._states[name]
        if state.node.scope != "shard":
            yield from self._plan_generations(state)
        elif cause is not None:
            yield from self._plan_shards(state, state.made_of(cause.generation), cause.shard)
        else:
            for number in range(len(state.growths)):
                yield from self._plan_shards(state, number, None)

    def _plan_shards(self, state: _State, number: int, shard_id: str | None) -> Iterator[Todo]:
        if not state.growths[number].closed:
            inputs = self._inputs(state, number, shard_id)
            yield from self._take(state, number, self._slots(state, inputs, 0))
            if self._is_whole(state, number):
                self._close(state, number)

    def _plan_generations(self, state: _State) -> Iterator[Todo]:
        node = state.node
        for number, growth in enumerate(state.growths):
            if growth.closed:
                continue
            # Shards may be numbered through, and a generation may know those before it.
            if any(not earlier.closed for earlier in state.growths[:number]):
                return
            if not self._is_whole(state, number):
                return
            inputs = self._inputs(state, number, None)
            first = sum(len(earlier.planned) for earlier in state.growths[:number])
            recalled = range(number) if node.stage.recalls else ()
            earlier = [self._inputs(state, one, None) for one in recalled]
            slots = self._slots(state, inputs, first, earlier)
            if node.scope == "history":
                slots = self._knowing(node.parents[node.stage.roles[0]], number, slots)
            yield from self._take(state, number, slots)
            self._close(state, number)

    @staticmethod
    def _slots(
        state: _State,
        inputs: Mapping[str, Sequence[Shard]],
        first: int,
        earlier: Sequence[Mapping[str, Sequence[Shard]]] = (),
    ) -> list[Slot]:
        """What a stage makes of these inputs; nothing where it refuses them."""
        stage, params = state.node.stage, state.node.params
        try:
            slots = stage.plan(params, inputs, first)
            return stage.recalling(params, slots, [*earlier, inputs]) if stage.recalls else slots
        except StageError as error:
            state.failure = state.failure or f"{state.node.name}: {error}"
            return []

    def _knowing(self, parent: str, number: int, slots: Sequence[Slot]) -> list[Slot]:
        """Slots whose actions also read the parent's generations up to ``number``."""
        listed = self._listed.setdefault(parent, [])
        for one in range(len(listed), number + 1):
            listed.append(generation_input(self._available(parent, one, None)))
        digest, documents = history_input(dict(listed[: number + 1]))
        known = {HISTORY: {"generations": digest}}
        return [
            replace(slot, inputs={**slot.inputs, **known}, documents=documents) for slot in slots
        ]

    def _take(self, state: _State, number: int, slots: Sequence[Slot]) -> Iterator[Todo]:
        growth = state.growths[number]
        node = state.node
        for slot in slots:
            if slot.shard_id not in growth.planned:
                action = action_of(node.stage, node.params, slot, node.salt, state.tools)
                growth.planned[slot.shard_id] = action.key
                yield Todo(node.name, number, slot, action, state.depth)

    def _close(self, state: _State, number: int) -> None:
        growth = state.growths[number]
        growth.closed = True
        if growth.complete:
            # No more results of this generation will ever come to wake its children.
            self._woken += self._children.get(state.node.name, ())

    def _inputs(self, state: _State, number: int, shard_id: str | None) -> dict[str, list[Shard]]:
        return {
            role: [s for g in state.reads(number) for s in self._available(parent, g, shard_id)]
            for role, parent in state.node.parents.items()
            if state.reads(number).start < self._grew(parent)
        }

    def _is_whole(self, state: _State, number: int) -> bool:
        """Whether all is there that a generation is made of."""
        return all(
            self._complete(parent, generation)
            for parent in state.node.parents.values()
            for generation in state.reads(number)
        )

    def _grew(self, name: str) -> int:
        """How many generations a dataset or source has."""
        if name in self._given:
            return len(self._given[name].generations)
        return len(self._states[name].growths)

    def _available(self, name: str, number: int, shard_id: str | None) -> list[Shard]:
        if number >= self._grew(name):
            return []
        if name in self._given:
            shards = self._given[name].generations[number].shards
            return [s for s in shards if shard_id is None or s.id == shard_id]
        results = self._states[name].growths[number].results
        ids = sorted(results) if shard_id is None else [shard_id]
        return [results[i].shard(i) for i in ids if i in results]

    def _complete(self, name: str, number: int) -> bool:
        if name in self._given or number >= self._grew(name):
            return True
        return self._states[name].growths[number].complete
