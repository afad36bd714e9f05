"""Have a recipe's shards made by processes that do nothing else: ``… pool RECIPE PROCESSES``."""

from __future__ import annotations

import multiprocessing
import sys

from reelmill.tasks.frame import execute
from tests.benchmarks.projects import orders_of


def main(recipe: str, processes: int) -> None:
    orders = orders_of(recipe)
    # Forked, so that what is imported is imported once, as by a worker that lives long.
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(execute, orders, chunksize=1)
        pool.close()
        pool.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
