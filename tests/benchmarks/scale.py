"""Ten thousand shards in one flow run: memory, cost per shard, and how busy the workers are.

The memory of the flow's process is read from the kernel as shards are made: if it is flat, what it
holds for a shard is next to nothing. The CPU is that of all processes, the server's included. How
busy workers are is the time that shards took on them, of the time between the first and the last.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from reelmill.tasks.frame import TRACE
from tests.benchmarks.harness import cpu_seconds, show
from tests.benchmarks.orchestration import COMMAND, SETTLE_SECONDS, children_cpu, prefect
from tests.benchmarks.projects import use_plugin, write_project

SHARDS = 10_000
STEPS = 10
NAPS, NAP_SHARDS = (0.05, 0.5), 100
WORKERS = 2
READ_SECONDS = 0.5


def run() -> None:
    use_plugin()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as home, prefect(home) as environ:
        _memory(environ)
        rows = [_busy(environ, nap) for nap in NAPS]
    show("Workers", ["shards that sleep, s", "shards", "busy"], rows)


def _memory(environ: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        recipe = write_project(Path(made), SHARDS, 1)
        before, started = _all_cpu(), time.perf_counter()
        process = _start(recipe, environ, made)
        rows: list[list[str]] = []
        flow = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(READ_SECONDS)
            done = _lines(Path(made, "trace.jsonl"))
            if done * STEPS >= SHARDS * (len(rows) + 1):
                rows.append(_reading(flow, done))
        assert process.returncode == 0
        seconds = time.perf_counter() - started
        time.sleep(SETTLE_SECONDS)
        cpu = _all_cpu() - before
        worked = sum(line["cpu_seconds"] for line in _trace(made))
    show("Memory of one flow run", ["shards made", "flow, MB", "workers, MB each"], rows)
    print(
        f"\n{SHARDS:,} shards: {1000 * cpu / SHARDS:.1f} ms of CPU each in all processes, "
        f"{1000 * worked / SHARDS:.1f} of it their making; {1000 * seconds / SHARDS:.1f} ms wall"
    )


def _all_cpu() -> float:
    """CPU-seconds of the processes that live, the server's, and of those waited for."""
    return children_cpu() + cpu_seconds()


def _reading(flow: psutil.Process, done: int) -> list[str]:
    workers = [
        child.memory_info().rss
        for child in flow.children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    each = sum(workers) / len(workers) / 1e6 if workers else 0
    return [f"{done:,}", f"{flow.memory_info().rss / 1e6:.0f}", f"{each:.0f}"]


def _busy(environ: Mapping[str, str], nap: float) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        recipe = write_project(Path(made), NAP_SHARDS, 1)
        text = recipe.read_text().replace("stage: bench_rows", f"stage: bench_nap, seconds: {nap}")
        recipe.write_text(text)
        assert _start(recipe, environ, made).wait() == 0
        lines = _trace(made)
    first = min(line["started"] for line in lines)
    last = max(line["started"] + line["seconds"] for line in lines)
    busy = sum(line["seconds"] for line in lines) / (WORKERS * (last - first))
    return [f"{nap}", f"{len(lines)}", f"{busy:.0%}"]


def _start(recipe: Path, environ: Mapping[str, str], folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(COMMAND), "build", str(recipe), "--json", "-w", str(WORKERS)]
    return subprocess.Popen(
        command,
        env={**environ, TRACE: str(Path(folder, "trace.jsonl"))},
        stdout=subprocess.DEVNULL,
    )


def _trace(folder: str) -> list[dict[str, float]]:
    text = Path(folder, "trace.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
