"""Have a recipe's shards made by processes that do nothing else: ``… pool RECIPE PROCESSES``."""

from __future__ import annotations

import multiprocessing
import sys

from reelmill.tasks.frame import execute


def main(recipe: str, processes: int) -> None:
    # The processes import this module too, and need no planner.
    from tests.benchmarks.peers import orders_of

    orders = orders_of(recipe)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(execute, orders, chunksize=1)
        pool.close()
        pool.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
