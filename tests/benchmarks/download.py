"""Videos from a list of addresses into shards: the download stage against video2dataset and curl.

All fetch the same files from an nginx on loopback, whose own CPU does not count: curl leaves them
in a folder, the others write shards. Reelmill hashes, probes and indexes what it gets;
video2dataset does none of that. One run says what a table costs, start-up included; another, of
four times as many addresses, says what each further file does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks.harness import Cost, Costs, measure, show
from tests.benchmarks.orchestration import COMMAND, SETTLE_SECONDS, children_cpu, prefect
from tests.benchmarks.projects import plan
from tests.benchmarks.web import Kind, make_videos, nginx, served

KINDS = (
    Kind(count=2000, films=20, size="320x240", seconds=2, kilobits=150),
    Kind(count=400, films=6, size="640x360", seconds=9, kilobits=800),
)
TIMES = 4
PROCESSES = 2
ROUNDS = 2
CURL_PARALLEL = 32

PEER = Path(__file__).parent / "video2dataset_peer"
PEER_PYTHON = "VIDEO2DATASET_PYTHON"
"""Environment variable: the Python of an environment that has video2dataset."""

STAGE, BUILD = f"download stage, {PROCESSES} processes", "reelmill build"
CURL, V2D = "curl --parallel", f"video2dataset, {PROCESSES} processes"


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to fetch addresses, so many to a shard, into a folder; and to count what is there."""

    fetch: Callable[[list[str], int, Path], object]
    count: Callable[[Path], int]


def run() -> None:
    program = nginx()
    if program is None or shutil.which("curl") is None:
        print("left out: it takes nginx and curl; on Debian: apt-get install nginx-light curl")
        return
    python = peer()
    with (
        tempfile.TemporaryDirectory(prefix="reelmill-bench-") as home,
        prefect(home) as environ,
    ):
        subjects = {
            STAGE: Subject(_stage, _samples),
            BUILD: Subject(partial(_build, environ), _samples),
            CURL: Subject(_curl, _files),
        }
        if python:
            subjects[V2D] = Subject(partial(_video2dataset, python), _members)
        for kind in KINDS:
            with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
                _compare(subjects, kind, program, Path(made))


def _compare(subjects: Mapping[str, Subject], kind: Kind, program: str, folder: Path) -> None:
    # nginx drops root's rights before it reads.
    folder.chmod(0o755)
    root = folder / "root"
    root.mkdir()
    names = make_videos(root, kind)
    size = sum(path.stat().st_size for path in root.iterdir()) / kind.count
    for time_ in range(TIMES):
        (root / str(time_)).symlink_to(".")
    whole: dict[str, list[Cost]] = {name: [] for name in subjects}
    further: dict[str, list[Cost]] = {name: [] for name in subjects}
    with served(program, root, folder) as address:
        urls = [f"{address}/{time_}/{name}" for time_ in range(TIMES) for name in names]
        for _ in range(ROUNDS):
            for name, subject in subjects.items():
                some, all_ = (_one(subject, kind, part) for part in (urls[: kind.count], urls))
                whole[name].append(some)
                further[name].append((all_ - some).per(TIMES - 1))
    of = f"{kind.count:,} videos of {size / 1e6:.2f} MB"
    for title, costs in ((f"{of}, start-up included", whole), (f"{of} more", further)):
        _show(title, kind.count, {name: Costs.of(of_one) for name, of_one in costs.items()})


def _one(subject: Subject, kind: Kind, urls: list[str]) -> Cost:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        before = children_cpu()
        cost = measure(lambda: subject.fetch(urls, kind.count // PROCESSES, Path(made)))
        # The Prefect server goes on taking in events for a moment.
        time.sleep(SETTLE_SECONDS)
        server = children_cpu() - before
        assert subject.count(Path(made)) == len(urls)
        return Cost(cost.cpu + server, cost.wall)


def _show(title: str, videos: int, costs: Mapping[str, Costs]) -> None:
    rows = []
    mine = costs[STAGE]
    for name, cost in costs.items():
        one = cost.median
        row = [f"{one.cpu:.2f}", f"{one.wall:.2f}", f"{videos / one.cpu:,.0f}"]
        ratios = [f"{mine.median.cpu / one.cpu:.2f}", f"{mine.least_cpu / cost.least_cpu:.2f}"]
        rows.append([name, *row, *(ratios if name != STAGE else ["", ""])])
    header = ["", "CPU-s", "wall s", "videos per CPU-s", "ours / it, CPU", "least CPU"]
    show(title, header, rows)


def _stage(urls: list[str], rows: int, folder: Path) -> None:
    recipe = _recipe(urls, rows, folder)
    _run([sys.executable, "-m", "tests.benchmarks.pool", str(recipe), str(PROCESSES)])


def _build(environ: Mapping[str, str], urls: list[str], rows: int, folder: Path) -> None:
    recipe = _recipe(urls, rows, folder)
    options = ("--json", "--workers", str(PROCESSES))
    _run([sys.executable, str(COMMAND), "build", str(recipe), *options], environ)


def _samples(folder: Path) -> int:
    results = plan(folder / "recipe.yaml").planner.results("videos")
    return sum(result.samples for _, result in results)


def _curl(urls: list[str], rows: int, folder: Path) -> None:
    lines = [f'url = "{url}"\noutput = "{folder}/{n}.mp4"\n' for n, url in enumerate(urls)]
    config = folder / "curl.txt"
    config.write_text("".join(lines))
    flags = ("--silent", "--fail", "--parallel", "--parallel-max", str(CURL_PARALLEL))
    _run(["curl", *flags, "--config", str(config)])


def _files(folder: Path) -> int:
    return len(list(folder.glob("*.mp4")))


def _video2dataset(python: Path, urls: list[str], rows: int, folder: Path) -> None:
    (folder / "urls.csv").write_text("\n".join(["url", *urls, ""]))
    script = [str(PEER / "download.py"), str(folder / "urls.csv"), str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(PEER), "PYTHONWARNINGS": "ignore"}
    _run([str(python), *script, str(rows)], environ)


def _members(folder: Path) -> int:
    count = 0
    for path in (folder / "made").glob("*.tar"):
        with tarfile.open(path) as file:
            count += sum(name.endswith(".mp4") for name in file.getnames())
    return count


def peer() -> Path | None:
    """The Python that has video2dataset, if there is one; otherwise how to make it is printed."""
    python = Path(os.environ.get(PEER_PYTHON, ""))
    if python.is_file():
        return python
    print(
        f"video2dataset is left out: {PEER_PYTHON} names no Python that has it. To make one:\n"
        "  python3 -m venv ~/video2dataset\n"
        "  ~/video2dataset/bin/pip install --no-deps video2dataset==1.3.0 torchdata==0.7.1\n"
        f"  ~/video2dataset/bin/pip install -r {PEER / 'requirements.txt'}\n"
        f"  export {PEER_PYTHON}=~/video2dataset/bin/python"
    )
    return None


def _recipe(urls: list[str], rows: int, folder: Path) -> Path:
    (folder / "urls.csv").write_text("\n".join(["url", *urls, ""]))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"store: {folder}/store\n"
        f"sources: {{urls: {{path: urls.csv, rows_per_shard: {rows}}}}}\n"
        "datasets: {videos: {stage: download, from: urls, allow_private: true}}\n"
    )
    return recipe


def _run(command: list[str], environ: Mapping[str, str] = os.environ) -> None:
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
