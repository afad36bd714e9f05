"""What a build would cost: what its plan leaves to make, by what a store knows of shards like it.

Few documents are read, however many shards there are: the log of each dataset, one lineage and a
dozen action records for each stage.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reelmill.dataset import open_version
from reelmill.errors import ReelmillError
from reelmill.flows.drive import Build
from reelmill.flows.profile import (
    GpuProfile,
    KubernetesProfile,
    LocalProfile,
    Profile,
    SlurmProfile,
)
from reelmill.store.model import Action, ActionRecord, Generation, Ref, Result, Shard
from reelmill.tasks import get_stage
from reelmill.tasks.contract import MAX_COUNT, Params, Stage, key_params
from reelmill.tasks.estimate import (
    Estimate,
    Evidence,
    Made,
    Time,
    Volume,
    estimate,
    imagined,
    on_workers,
    together,
    volume,
)
from reelmill.tasks.planner import Todo

_ENOUGH = 12
"""Shards whose records are read, of one stage."""

_DATASETS = 100
"""Datasets of a store that are looked at for one stage's work."""

_IMAGINED = 1_000_000
"""Shards of one dataset, at most, that are planned with before they are there."""

_VERSIONS = 6
"""Versions that are looked at for work with the same parameters."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What making a dataset's missing shards costs.

    ``reads`` is in bytes, ``None`` if they come from elsewhere; ``at_most`` if the stage reads some
    fields only. ``workers`` can make its shards, where that is known; ``seconds`` is how long they
    take.
    """

    estimate: Estimate
    reads: int | None
    at_most: bool
    workers: int | None
    seconds: Time | None

    @property
    def writes(self) -> int | None:
        """Bytes of tars and indexes."""
        given = self.estimate.given
        return None if given is None else round(given.bytes)


def costs(build: Build, where: Profile) -> dict[str, Cost]:
    """The cost of each dataset's missing shards, by name; of one that waits for others, by what is
    expected of them."""
    past = _Past(build)
    found: dict[str, Cost] = {}
    for name in build.names:
        found[name] = _cost(build, name, found, past, where)
    return found


def _cost(build: Build, name: str, found: Mapping[str, Cost], past: _Past, where: Profile) -> Cost:
    dataset = build.recipe.datasets[name]
    stage, params = get_stage(dataset.stage), dataset.params
    assert isinstance(params, Params)
    todos = [todo for todo in build.missing if todo.dataset == name]
    ready = _ready(build, stage, todos)
    amount: Volume | None = ready
    count, sure, rough = _count(build, name), True, False
    if count != len(todos):
        waiting = _waiting(build, name, found)
        parents = [found[parent] for parent in dataset.inputs.values() if parent in found]
        sure = all(parent.estimate.exact for parent in parents)
        rough = any(parent.estimate.rough for parent in parents)
        if waiting is None:
            amount = None
        else:
            amount = ready + _taken(stage, waiting)
            more = _outputs(stage, params, waiting) if count is None else None
            count = count if more is None else len(todos) + more
    evidence = past.of(name, stage, params) if count != 0 else None
    # Where a stage leaves out what it was asked to, who knows how much that is.
    keeps = stage.conserves and not stage.leaves_out(params)
    one = estimate(count, amount, evidence, conserves=keeps, known=sure, rough=rough)
    workers = _workers(where, on_gpu="GPU" in stage.needs(params))
    seconds = None
    if one.busy is not None and count is not None and workers is not None:
        seconds = on_workers(one.busy, count, workers)
    return Cost(
        estimate=one,
        reads=_reads(one),
        at_most=stage.reads is not None,
        workers=workers,
        seconds=seconds,
    )


def whole(found: Mapping[str, Cost]) -> Time | None:
    """How long a build takes, if that is known of each dataset that has shards to make."""
    parts = [cost for cost in found.values() if cost.estimate.shards != 0]
    if not parts or any(cost.seconds is None for cost in parts):
        return None
    workers = max(cost.workers or 1 for cost in parts)
    times = [(cost.estimate.busy, cost.estimate.shards) for cost in parts]
    return together([(busy, count) for busy, count in times if busy and count], workers)


def _count(build: Build, name: str) -> int | None:
    """How many shards of a dataset are to be made, if that is known."""
    expected = build.progress[name].expected
    return None if expected is None else expected - build.progress[name].have


def _reads(one: Estimate) -> int | None:
    if one.taken is None or (one.taken.samples and not one.taken.bytes):
        return None
    return round(one.taken.bytes)


def _ready(build: Build, stage: Stage[Any], todos: Sequence[Todo]) -> Volume:
    """What the shards that can be made now are made of."""
    total = Volume()
    generations: dict[str, Volume] = {}
    for todo in todos:
        if todo.slot.shards:
            total += _taken(stage, {role: [s] for role, s in todo.slot.shards.items()})
            continue
        for digest, data in todo.slot.documents.items():
            if digest not in generations:
                shards = Generation.model_validate_json(data).shards
                parts = build.planner.planned(todo.dataset, todo.generation)
                generations[digest] = volume(shards).shared(parts)
            total += generations[digest]
    return total


def _taken(stage: Stage[Any], inputs: Mapping[str, Sequence[Shard]]) -> Volume:
    """How much input shards hold: bytes of all, samples of those that the stage goes by."""
    amounts = {role: volume(shards) for role, shards in inputs.items()}
    counted = stage.roles[:1] or tuple(amounts)
    return Volume(
        shards=max((amount.shards for amount in amounts.values()), default=0),
        samples=sum(amounts[role].samples for role in counted),
        bytes=sum(amount.bytes for amount in amounts.values()),
    )


def _waiting(build: Build, name: str, found: Mapping[str, Cost]) -> dict[str, list[Shard]] | None:
    """By role, what waiting shards will be made of, as far as it is there and as it is expected;
    ``None`` if nothing tells what becomes of a parent."""
    inputs = build.planner.unplanned(name)
    for role, parent in build.recipe.datasets[name].inputs.items():
        cost = found.get(parent)
        if cost is None or cost.estimate.shards == 0:
            continue
        given = cost.estimate.given
        if given is None or given.shards > _IMAGINED:
            return None
        inputs[role] += imagined(given)
    return inputs


def _outputs(
    stage: Stage[Any], params: Params, inputs: Mapping[str, Sequence[Shard]]
) -> int | None:
    """How many shards a stage would make of such input, as far as it can say."""
    with contextlib.suppress(Exception):  # a stage's own code, with shards that do not exist
        return stage.outputs(params, inputs)
    return None


def _workers(where: Profile, *, on_gpu: bool) -> int | None:
    """How many shards the workers of a profile make at once, where it says so."""
    match where:
        case GpuProfile() if on_gpu:
            return len(where.gpus) if where.gpus else None
        case LocalProfile() | GpuProfile():
            return where.workers or os.cpu_count() or 1
        case SlurmProfile():
            jobs = where.workers or (where.adapt.max if where.adapt else 1)
            return jobs if where.gpus else None if on_gpu else jobs * where.cores
        case KubernetesProfile():
            if on_gpu:
                return where.gpu.workers if where.gpu else None
            return where.workers or (where.adapt.max if where.adapt else 1)
    return None


def _unlike(action: Action, stage: Stage[Any], params: Mapping[str, Any]) -> int:
    """In how many parameters an action differs, and in its stage's version."""
    names = {*action.params, *params}
    differ = sum(action.params.get(name) != params.get(name) for name in names)
    return differ + (action.version != stage.version)


class _Past:
    """Shards that stages made, in what a build has of a dataset, or in the store's versions."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._store = build.store
        self._generations: dict[str, Volume] = {}
        self._latest: list[tuple[str, Ref]] | None = None

    def of(self, name: str, stage: Stage[Any], params: Params) -> Evidence | None:
        """The work of a stage whose parameters are most alike, the newest of such."""
        planner = self._build.planner
        keys = planner.keys(name)
        results = [(keys[shard_id], result) for shard_id, result in planner.results(name)]
        parents = self._build.recipe.datasets[name].inputs.values()
        shards = [shard for parent in set(parents) for shard in planner.shards(parent)]
        if made := tuple(self._made(stage, results, shards)):
            return Evidence(made, alike=True, where=name)
        return self._of_versions(name, stage, key_params(params))

    def _of_versions(self, name: str, stage: Stage[Any], params: dict[str, Any]) -> Evidence | None:
        best: tuple[int, Evidence] | None = None
        fitting = [(n, ref) for n, ref in self._refs(name) if ref.stage == stage.name]
        for dataset, ref in fitting[:_VERSIONS]:
            # What a collection removed tells nothing, and is no fault.
            with contextlib.suppress(ReelmillError):
                assert ref.lineage is not None
                entries = self._store.lineage(ref.lineage).shards
                record = self._store.record(entries[-1].action) if entries else None
                if record is None:
                    continue
                unlike = _unlike(record.action, stage, params)
                if best is not None and unlike >= best[0]:
                    continue
                results = [(entry.action, entry.result) for entry in entries]
                if made := tuple(self._made(stage, results, list(self._inputs(ref)))):
                    best = unlike, Evidence(made, unlike == 0, f"{dataset}@{ref.short}")
            if best is not None and best[0] == 0:
                break
        return best[1] if best else None

    def _refs(self, name: str) -> list[tuple[str, Ref]]:
        """The newest versions of datasets, the newest first."""
        if self._latest is None:
            names = self._store.datasets()[:_DATASETS]
            latest = [(one, self._store.latest(one)) for one in dict.fromkeys((name, *names))]
            found = [(one, ref) for one, ref in latest if ref is not None and ref.lineage]
            self._latest = sorted(found, key=lambda pair: pair[1].time, reverse=True)
        return self._latest

    def _inputs(self, ref: Ref) -> Iterator[Shard]:
        for parent in set(ref.parents.values()):
            yield from open_version(self._store, parent).manifest.shards

    def _made(
        self, stage: Stage[Any], results: Sequence[tuple[str, Result]], inputs: Sequence[Shard]
    ) -> Iterator[Made]:
        by_index = {shard.index.digest: shard for shard in inputs} if results else {}
        # From all over, since those that lie together were made under the same load.
        step = max(1, len(results) // _ENOUGH)
        for key, result in results[::-1][::step][:_ENOUGH]:
            record = self._store.record(key)
            took = record and record.how.get("milliseconds")
            # A clock that was set back in between says nothing.
            if record is None or not isinstance(took, int) or not 0 <= took <= MAX_COUNT:
                continue
            taken = self._taken_by(stage, record, by_index)
            if taken is None:
                continue
            started = record.how.get("started")
            yield Made(
                taken=taken,
                samples=result.samples,
                rejects=result.rejects,
                bytes=sum(blob.size for blob in (result.tar, result.index) if blob),
                milliseconds=took,
                started=started if isinstance(started, int) else 0,
            )

    def _taken_by(
        self, stage: Stage[Any], record: ActionRecord, by_index: Mapping[str, Shard]
    ) -> Volume | None:
        inputs: dict[str, list[Shard]] = {}
        for role, digests in record.action.inputs.items():
            if digest := digests.get("shards"):
                return self._share(digest, record)
            shard = by_index.get(digests.get("index") or "")
            if shard is not None:
                inputs[role] = [shard]
        if not inputs or any(role not in inputs for role in stage.roles[:1]):
            return None
        return _taken(stage, inputs)

    def _share(self, digest: str, record: ActionRecord) -> Volume | None:
        """The part of a generation that went into one of equal shards."""
        parts = record.action.slot.get("outputs")
        if not isinstance(parts, int) or parts < 1:
            return None
        if digest not in self._generations:
            data = self._store.read_blob(digest, "json")
            shards = Generation.model_validate_json(data).shards
            self._generations[digest] = volume(shards)
        return self._generations[digest].shared(parts)
