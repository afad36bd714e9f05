"""The second build of a finished recipe, against the first one and against stat of its blobs.

Both run in this process: planner, driver, frame and a local store, without Prefect and Dask. The
larger recipe is only planned: its store is filled with made-up results, which is not measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from unittest import mock

from reelmill.flows.drive import commit_versions
from reelmill.store import Store
from reelmill.store.model import Result
from reelmill.tasks.frame import Order
from reelmill.tasks.planner import Todo
from tests.benchmarks.harness import Costs, compare, measure, show
from tests.benchmarks.projects import build, plan, use_plugin, write_project

DEPTH = 4
BUILT = 500
PLANNED = 2500


def run() -> None:
    use_plugin()
    rows = []
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        recipe = write_project(Path(made), BUILT, DEPTH)
        first = measure(lambda: build(recipe))
        shards, costs = _again(recipe)
        second = costs["second build"].median
        rows.append(["first build", f"{shards:,}", *_figures(Costs.of([first]), shards)])
        rows += [[name, f"{shards:,}", *_figures(cost, shards)] for name, cost in costs.items()]
        ratios = [first.cpu / second.cpu, first.wall / second.wall]
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        recipe = write_project(Path(made), PLANNED, DEPTH)
        with mock.patch("os.fsync"):
            build(recipe, _made_up(Store.open(f"{made}/store", create=True)))
        shards, costs = _again(recipe)
        rows += [[name, f"{shards:,}", *_figures(cost, shards)] for name, cost in costs.items()]
    header = ["", "shards", "CPU-s", "wall s", "shards per wall s"]
    show(f"Builds of {DEPTH} datasets in a row", header, rows)
    print(f"\nfirst / second build: {ratios[0]:.0f} × CPU, {ratios[1]:.0f} × wall")


def _again(recipe: Path) -> tuple[int, dict[str, Costs]]:
    """The shards of a finished recipe, and the costs of building it again."""
    done = plan(recipe)
    assert done.is_complete
    store = done.store
    results = [result for name in done.names for _, result in done.planner.results(name)]
    paths = [store.backend.locate(name) for result in results for name in result.blob_names()]

    def second(_: Path) -> None:
        planned = plan(recipe)
        assert planned.is_complete
        assert len(commit_versions(planned, "bench")) == DEPTH

    subjects: dict[str, Callable[[Path], object]] = {
        "second build": second,
        "stat of its blobs": lambda _: [os.stat(path) for path in paths],  # noqa: PTH116
    }
    return len(results), compare(subjects, rounds=3)


def _figures(cost: Costs, shards: int) -> list[str]:
    middle = cost.median
    return [f"{middle.cpu:.3f}", f"{middle.wall:.3f}", f"{shards / middle.wall:,.0f}"]


def _made_up(store: Store) -> Callable[..., object]:
    """Commits a result for every order, each with a blob of its own, and executes nothing."""
    numbers = count()

    async def submit(todo: Todo, order: str) -> str:
        action = Order.model_validate_json(order).action
        blob = store.put_blob(b"%d" % next(numbers), "parquet")
        result = Result(index=blob, samples=1, rejects=0)
        return store.commit(action, result, {"run": "bench"}).model_dump_json()

    return submit
