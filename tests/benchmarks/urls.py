"""A hundred thousand addresses at fifty hosts, some dead in many ways, and everything killed.

Five addresses of a hundred are at dead hosts. The table is built twice, by the local profile with
six workers, which wait for the dead more than they work: once undisturbed, while the memory of the
workers is read; and once killed by SIGKILL at random moments, flow and workers alike, and built
again until it is done. Every address has to be accounted for once, both times.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from reelmill.dataset import Version, open_version
from reelmill.tasks.frame import TRACE
from tests.benchmarks.harness import cpu_seconds, show
from tests.benchmarks.orchestration import COMMAND, SETTLE_SECONDS, children_cpu, prefect
from tests.host_farm import HostFarm, Way, account, ways_of

URLS = 100_000
HOSTS, DEAD_IN_EACH_WAY = 50, 2
DEAD = 0.05
ROWS_PER_SHARD = 1000
WORKERS = 6
KILLS = 5
READ_SECONDS = 0.5

_RECIPE = """
store: {folder}/store
sources:
  urls: {{path: {folder}/urls.csv, rows_per_shard: {rows}}}
datasets:
  videos:
    {{stage: download, from: urls, allow_private: true, concurrency: 64, timeout: 10s, attempts: 3}}
"""


def run() -> None:
    if sys.platform != "linux":
        print("left out: it takes all of 127.0.0.0/8, which only Linux has")
        return
    with (
        tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made,
        tempfile.TemporaryDirectory(prefix="reelmill-bench-") as home,
        prefect(home) as environ,
        HostFarm(ways_of(HOSTS, each=DEAD_IN_EACH_WAY)) as farm,
    ):
        table = farm.urls(URLS, DEAD)
        undisturbed = _Site(Path(made, "undisturbed"), table, environ)
        _undisturbed(undisturbed, farm)
        killed = _Site(Path(made, "killed"), table, environ)
        _killed(killed)
        _compare(undisturbed.version, killed.version)


@dataclass(frozen=True)
class _Site:
    """A folder in which the table is built."""

    folder: Path
    table: Mapping[str, Way]
    environ: Mapping[str, str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "urls.csv").write_text("\n".join(["url", *self.table, ""]))
        recipe = _RECIPE.format(folder=self.folder, rows=ROWS_PER_SHARD)
        (self.folder / "recipe.yaml").write_text(recipe)

    @property
    def trace(self) -> list[dict[str, object]]:
        path = self.folder / "trace.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def version(self) -> Version:
        return open_version(str(self.folder / "store"), "videos")

    def start(self) -> subprocess.Popen[bytes]:
        """Build, in a process group of its own."""
        command = [sys.executable, str(COMMAND), "build", str(self.folder / "recipe.yaml")]
        return subprocess.Popen(
            [*command, "--json", "--workers", str(WORKERS)],
            env={**self.environ, TRACE: str(self.folder / "trace.jsonl")},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def _shards() -> int:
    return URLS // ROWS_PER_SHARD


def _undisturbed(site: _Site, farm: HostFarm) -> None:
    cpu, of_farm, started = _all_cpu(), farm.cpu_seconds(), time.perf_counter()
    process = site.start()
    resident = list(_resident(process))
    assert process.returncode == 0
    wall = time.perf_counter() - started
    time.sleep(SETTLE_SECONDS)
    of_farm = farm.cpu_seconds() - of_farm
    cpu = _all_cpu() - cpu - of_farm
    _account(site)
    quarter = len(resident) // 4
    quarters = [resident[n * quarter : (n + 1) * quarter] for n in range(4)]
    rows = [
        [f"{n + 1}", f"{statistics.median(some) / 1e6:.0f}", f"{max(some) / 1e6:.0f}"]
        for n, some in enumerate(quarters)
    ]
    show("Memory of a worker", ["quarter of the run", "MB, median", "MB, most"], rows)
    made = sum(float(str(line["cpu_seconds"])) for line in site.trace)
    print(
        f"\n{URLS:,} addresses: {wall:.0f} s, {URLS / wall:,.0f} a second; {cpu:.0f} CPU-s in all "
        f"processes but the hosts' own ({of_farm:.0f}), {made:.0f} of it in the making of shards: "
        f"{1000 * made / URLS:.2f} ms for an address"
    )


def _resident(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """The memory of each worker in bytes, read until the build ends."""
    flow = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(READ_SECONDS)
        for child in flow.children(recursive=True):
            try:
                if "spawn_main" in " ".join(child.cmdline()):
                    yield child.memory_info().rss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue


def _killed(site: _Site) -> None:
    chance = random.Random(7)
    # The moments are spread over the run by how much was made before.
    moments = sorted(chance.sample(range(_shards() * 9 // 10), KILLS))
    for moment in moments:
        process = site.start()
        while process.poll() is None and len(site.trace) < moment:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 3))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert site.start().wait() == 0
    _account(site)
    made = [str(line["label"]) for line in site.trace]
    assert len(made) == len(set(made)), "made twice"
    print(f"\nkilled after {', '.join(map(str, moments))} shards, and built again: none made twice")


def _account(site: _Site) -> None:
    version = site.version
    shards = [shard.id for shard in version.manifest.shards]
    assert shards == [f"{number:05d}" for number in range(_shards())]
    tables = (shard.table.select(["key", "url", "status", "reason"]) for shard in version.shards())
    rows = list(itertools.chain.from_iterable(table.to_pylist() for table in tables))
    outcomes = account(rows, site.table)
    totals = version.totals
    assert len({row["key"] for row in rows}) == totals.samples + totals.rejects == URLS
    listed = [[reason, f"{count:,}"] for reason, count in outcomes.most_common()]
    show(f"Outcomes, {site.folder.name}", ["outcome", "addresses"], listed)
    print(
        f"\n{URLS:,} addresses in = {totals.samples:,} samples + {totals.rejects:,} rejects, "
        f"in {totals.shards} shards without a gap"
    )


def _compare(one: Version, other: Version) -> None:
    """What was fetched is the same; which reason a dead host's rows get may be a matter of time."""
    pairs = list(zip(one.manifest.shards, other.manifest.shards, strict=True))
    assert all(first.tar == second.tar for first, second in pairs)
    equal = sum(first.index == second.index for first, second in pairs)
    print(f"\nthe same tars in both; the same indexes in {equal} of {len(pairs)} shards")


def _all_cpu() -> float:
    """CPU-seconds of the processes that live, the servers', and of those waited for."""
    return children_cpu() + cpu_seconds()
