"""Many addresses at many hosts, some of them dead: each is accounted for once, whatever is killed.

The same at 100,000 addresses is the benchmark ``urls``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reelmill.dataset import Version, open_version
from tests.host_farm import HostFarm, Way, account, ways_of
from tests.runs.project import Project, wait_for

URLS, HOSTS, DEAD, ROWS = 600, 20, 0.1, 100
ROOT = Path(__file__).parents[2]

RECIPE = f"""
store: ./store
sources:
  urls: {{path: urls.csv, rows_per_shard: {ROWS}}}
datasets:
  videos:
    {{stage: download, from: urls, allow_private: true, concurrency: 64, timeout: 4s, attempts: 2}}
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")


@pytest.fixture(scope="module")
def farm() -> Iterator[HostFarm]:
    with HostFarm(ways_of(HOSTS)) as running:
        yield running


@pytest.fixture
def table(farm: HostFarm) -> dict[str, Way]:
    return farm.urls(URLS, DEAD)


def make_project(folder: Path, table: dict[str, Way]) -> Project:
    folder.mkdir()
    project = Project(folder, "")
    project.write(RECIPE, list(table))
    return project


def version_of(project: Project) -> Version:
    return open_version(str(project.folder / "store"), "videos")


def check(version: Version, table: dict[str, Way]) -> None:
    """Every address is a sample or a reject with a reason that fits, once; shards have no gaps."""
    rows = [row for shard in version.shards() for row in shard.table.to_pylist()]
    outcomes = account(rows, table)
    assert outcomes["ok"] == version.totals.samples == round(URLS * (1 - DEAD))
    assert version.totals.samples + version.totals.rejects == URLS
    assert len({row["key"] for row in rows}) == URLS
    shards = [shard.id for shard in version.manifest.shards]
    assert shards == [f"{number:05d}" for number in range(URLS // ROWS)]


def start(project: Project) -> subprocess.Popen[bytes]:
    """Have the shards made by two processes, in a group of their own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.pool", str(project.recipe), "2"],
        cwd=ROOT,
        env=project.environ,
        start_new_session=True,
    )


def test_hosts_dead_in_all_ways_and_everything_killed(
    tmp_path: Path, table: dict[str, Way]
) -> None:
    undisturbed = make_project(tmp_path / "undisturbed", table)
    undisturbed.build_here()
    whole = version_of(undisturbed)
    check(whole, table)

    killed = make_project(tmp_path / "killed", table)
    process = start(killed)
    try:
        wait_for(killed.trace.exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = len(killed.trace.read_text().splitlines())
    assert 0 < made < URLS // ROWS
    killed.build_here()
    assert max(killed.executed().values()) == 1, "made twice"
    resumed = version_of(killed)
    check(resumed, table)
    for before, after in zip(whole.manifest.shards, resumed.manifest.shards, strict=True):
        assert before.tar == after.tar
