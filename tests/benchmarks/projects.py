"""Recipes of many tiny shards, and building them in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from reelmill.flows.drive import Build, Stop, drive, order_of, prepare
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source
from reelmill.tasks.planner import Todo

PLUGIN = Path(__file__).parent / "plugin"


def use_plugin() -> None:
    """Let this process find the stages of the plugin."""
    if str(PLUGIN) not in sys.path:
        sys.path.append(str(PLUGIN))


def write_project(folder: Path, shards: int, depth: int) -> Path:
    """A recipe of ``depth`` datasets in a row, each of ``shards`` shards of one sample."""
    urls = "".join(f"https://bench.invalid/{number:06d}.mp4\n" for number in range(shards))
    (folder / "urls.csv").write_text(f"url\n{urls}")
    lines = [
        f"store: {folder}/store",
        "sources:",
        f"  urls: {{path: {folder}/urls.csv, rows_per_shard: 1}}",
        "datasets:",
        "  d0: {stage: bench_rows, from: urls}",
        *(f"  d{place}: {{stage: bench_pass, from: d{place - 1}}}" for place in range(1, depth)),
    ]
    recipe = folder / "recipe.yaml"
    recipe.write_text("\n".join(lines) + "\n")
    return recipe


def plan(recipe: Path) -> Build:
    """What is there and what is missing."""
    loaded = load_recipe(recipe, stages=Stages(), source_model=Source)
    return prepare(loaded, Store.open(loaded.store, create=True), run="bench")


def orders_of(recipe: str) -> list[str]:
    """What is missing of a recipe, as workers get it."""
    planned = plan(Path(recipe))
    return [str(order_of(planned, todo, "bench")) for todo in planned.missing]


async def execute_here(todo: Todo, order: str) -> str:
    """Make a shard in a thread of this process."""
    return await asyncio.to_thread(execute, order)


def build(recipe: Path, submit: Callable[[Todo, str], Awaitable[str]] = execute_here) -> Build:
    """Plan and make what is missing: planner, driver and frame, without Prefect and Dask."""
    planned = plan(recipe)
    asyncio.run(drive(planned, submit, window=lambda: 2, run="bench", stop=Stop()))
    return planned
