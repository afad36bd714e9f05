"""``python -m tests.benchmarks [NAME …]``: run the benchmarks, all of them or those named."""

from __future__ import annotations

import argparse
import importlib
import time

NAMES = (
    "shards",
    "shuffle",
    "functions",
    "second_build",
    "orchestration",
    "scale",
    "workers",
    "frames",
    "flow",
    "cutting",
    "resolution",
    "probing",
    "scenes",
    "sequences",
    "motion",
    "ingest",
    "loading",
    "download",
)
LONG = ("readers_conformance", "samplers", "urls", "gpu", "gpu_flow", "shuffle_memory")
"""Run if they are named only."""
ALL = (*NAMES, *LONG)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in ALL]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    for name in chosen.names or (ALL if chosen.list else NAMES):
        module = importlib.import_module(f"tests.benchmarks.{name}")
        summary = str(module.__doc__).splitlines()[0]
        print(f"{name}: {summary}" if chosen.list else f"\n# {name}: {summary}", flush=True)
        if not chosen.list:
            started = time.perf_counter()
            module.run()
            print(f"\n({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
