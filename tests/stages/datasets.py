"""A store with small datasets that grow, and builds of what is made of them, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from reelmill.dataset import Version, open_version
from reelmill.flows.drive import renamed
from reelmill.recipe import Recipe
from reelmill.shards.index import BASE
from reelmill.shards.reader import Sample, ShardReader
from reelmill.shards.verify import verify_shard
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.model import Blob, Generation, Manifest, Ref, Result, Shard
from reelmill.tasks import Stages, get_stage
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source
from reelmill.tasks.planner import Node, Planner, Todo

Cells = Mapping[str, Any]
"""A sample: its fields, which are bytes, and the values of its columns; without any field, the row
of a table."""


class World:
    """``build`` makes datasets of a recipe from those of ``given``; ``made`` then has the labels of
    the shards that were executed, ``problems`` why datasets got no version."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.store = Store.open(url or str(folder / "store"), create=True)
        self.given: dict[str, Manifest] = {}
        self.made: list[str] = []
        self.problems: dict[str, str] = {}

    def grow(
        self, name: str, columns: Mapping[str, str], *shards: Mapping[str, Cells], first: int = 0
    ) -> None:
        """Add a generation to a given dataset: for each shard, its samples by key."""
        before = self.given.get(name, Manifest(fields=(), generations=()))
        first += sum(1 for _ in before.shards)
        schema = pa.schema([(n, pa.type_for_alias(kind)) for n, kind in columns.items()])
        made = [self._shard(f"{first + n:05d}", schema, some) for n, some in enumerate(shards)]
        generations = (*before.generations, Generation(shards=tuple(made)))
        self.given[name] = Manifest(fields=(), generations=generations, removed=before.removed)

    def commit(self, name: str, parents: Mapping[str, str] | None = None) -> Version:
        """A given dataset as a version that can be opened by its name."""
        manifest = self.given[name]
        ref = Ref(
            event="commit",
            version=self.store.put_manifest(manifest),
            tags=("latest",),
            time="2026-01-01T00:00:00+00:00",
            run="test",
            stage="test",
            parents=dict(parents or {}),
            totals=manifest.totals(),
        )
        self.store.commit_ref(name, ref)
        return open_version(self.store, name)

    def _shard(self, shard_id: str, schema: pa.Schema, samples: Mapping[str, Cells]) -> Shard:
        writer = ShardWriter(self.store.backend.scratch(), schema)
        for key, cells in samples.items():
            fields = {n: d for n, d in cells.items() if isinstance(d, bytes)}
            columns = {n: v for n, v in cells.items() if n not in fields}
            if fields:
                writer.add(key, fields, columns)
            else:
                writer.row(key, columns)
        return put_shard(self.store, writer.close()).shard(shard_id)

    def remove(self, name: str, blob: Blob) -> None:
        """Let rows of a given dataset no longer count."""
        self.given[name] = self.given[name].model_copy(update={"removed": (blob,)})

    def recipe(self, datasets: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """A recipe of datasets that are made of the given ones."""
        sources = {name: {"version": name} for name in self.given}
        return Recipe.build(
            store=self.store.url,
            sources=sources,
            datasets=datasets,
            stages=Stages(),
            source_model=Source,
            base=self.folder,
        )

    def planner(self, recipe: Recipe) -> Planner:
        nodes = [
            Node(name, get_stage(one.stage), one.params, one.inputs, max_rejects=one.max_rejects)  # type: ignore[arg-type]
            for name in recipe.order()
            for one in [recipe.datasets[name]]
        ]
        return Planner(nodes, self.given, renamed=partial(renamed, self.store, True))

    def build(
        self,
        datasets: Mapping[str, Mapping[str, Any]],
        pick: Callable[[list[Todo]], Todo] = lambda waiting: waiting.pop(0),
    ) -> dict[str, Manifest]:
        recipe = self.recipe(datasets)
        planner = self.planner(recipe)
        waiting, versions, self.made = planner.start(), {}, []
        while waiting:
            todo = pick(waiting)
            if not self.store.recall([todo.action.key]):
                self.made.append(todo.label)
            waiting += planner.done(todo, self.execute(recipe, todo))
            versions |= {name: manifest for name, manifest, _ in planner.finished()}
        versions |= {name: manifest for name, manifest, _ in planner.finished()}
        self.problems = planner.problems()
        return versions

    def execute(self, recipe: Recipe, todo: Todo) -> Result:
        order = order_of(self.store, todo, recipe.datasets[todo.dataset].params)
        return Result.model_validate_json(execute(order))

    def one(self, stage: str, source: Any, **params: Any) -> Manifest:
        """The one dataset that a stage makes."""
        return self.build({"out": {"stage": stage, "from": source, **params}})["out"]

    def samples(self, manifest: Manifest) -> dict[str, Sample]:
        """The samples by key; their shards are whole."""
        for shard in manifest.shards:
            assert list(verify_shard(self.store, shard)) == []
        readers = [ShardReader(self.store, shard) for shard in manifest.shards]
        return {one.key: one for reader in readers for one in reader.samples()}

    def rejects(self, manifest: Manifest) -> dict[str, tuple[str, str]]:
        """Reasons and messages by key."""
        rows = [r for s in manifest.shards for r in ShardReader(self.store, s).rows("rejected")]
        return {row["key"]: (row["reason"], row["message"]) for row in rows}

    def columns(self, manifest: Manifest) -> dict[str, str]:
        """Names and types of the columns beyond those of every index."""
        schema = ShardReader(self.store, next(manifest.shards)).table.schema
        return {field.name: str(field.type) for field in schema if field.name not in BASE.names}


def order_of(store: Store, todo: Todo, params: BaseModel) -> str:
    """The order of a shard, what it refers to being in the store."""
    for data in todo.slot.documents.values():
        store.put_blob(data, "json")
    order = Order(
        store=store.url,
        run="test",
        dataset=todo.dataset,
        shard=todo.shard,
        action=todo.action,
        params=params.model_dump(mode="json"),
        shards=dict(todo.slot.shards),
    )
    return order.model_dump_json()


def keys(shard: int, count: int) -> Sequence[str]:
    return [f"{shard:05d}{place:04d}" for place in range(count)]
