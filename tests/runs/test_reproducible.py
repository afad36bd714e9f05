"""The same recipe gives the same digests, wherever and with however many workers it is built."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reelmill.dataset import open_version
from reelmill.flows import demo
from reelmill.shards.verify import verify_shard
from tests.runs.conftest import Quiet
from tests.runs.project import Project

ROOT = Path(__file__).parents[2]

RECIPE = demo.RECIPE.replace("method: scenes", "method: scenes, preset: ultrafast")
VIDEOS = ("city", "court", "damaged", "dunes", "gone", "lights")

REAL = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 4}
datasets:
  videos: {stage: download, from: urls, allow_private: true}
  clips: {stage: split, from: videos, max_seconds: 4s, preset: ultrafast}
  shuffled: {stage: shuffle, from: clips, samples_per_shard: 10}
  triplets: {stage: frames, from: shuffled, max_side: 192, max_samples: 2}
  flow: {stage: flow, from: triplets}
"""


@pytest.fixture(scope="module")
def table(web: str, demo_media: Path) -> str:
    header, *rows = demo.table_of(
        web, json.loads((demo_media / "videos.json").read_text())
    ).splitlines(keepends=True)
    return "".join([header, *(row for row in rows if any(f"/{v}.mp4" in row for v in VIDEOS))])


@pytest.fixture(scope="module")
def digests(
    table: str, prefect_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The versions of a part of the demonstration, built by one worker."""
    project = Project(tmp_path_factory.mktemp("one-worker"), prefect_url)
    project.write(RECIPE.format(store="./store"), table)
    versions = project.build("--workers", "1")
    assert set(versions) == {"videos", "clips", "shuffled", "triplets", "flow"}
    rejects = list(open_version(str(project.folder / "store"), "videos").rejects())
    assert {row["url"].rpartition("/")[2]: row["reason"] for row in rejects} == {
        "damaged.mp4": "truncated",
        "gone.mp4": "http_404",
    }
    return versions


def test_three_workers_and_an_empty_store_give_the_digests_of_one(
    project: Project, table: str, digests: dict[str, str]
) -> None:
    project.write(RECIPE.format(store="./store"), table)
    assert project.build("--workers", "3") == digests


def test_a_store_on_s3_gives_the_digests_of_a_folder(
    project: Project, table: str, digests: dict[str, str], s3_url: str
) -> None:
    project.write(RECIPE.format(store=s3_url), table)
    assert project.build("--workers", "2") == digests
    version = open_version(s3_url, "flow")
    assert [
        p for shard in version.manifest.shards for p in verify_shard(version.store, shard)
    ] == []


def test_an_installed_wheel_gives_the_digests_of_the_checkout(
    project: Project,
    table: str,
    digests: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = install_wheel(tmp_path)
    # Somebody's own folders of the same names must not get in the way, on workers neither.
    for name in ("flows", "tasks", "lib"):
        (project.folder / name).mkdir()
        (project.folder / name / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    project.write(RECIPE.format(store="./store"), table)
    where = subprocess.run(
        [command.parent / "python", "-c", "import reelmill.tasks as t; print(t.__file__)"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in where.stdout
    monkeypatch.setattr("tests.runs.project.COMMAND", command)
    monkeypatch.setattr(sys, "executable", str(command.parent / "python"))
    assert project.build("--workers", "2") == digests


def install_wheel(folder: Path) -> Path:
    """A fresh environment with the wheel in it; the dependencies are those of this one."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    venv.create(home)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    (packages,) = (home / "lib").glob("python*/site-packages")
    # Plain paths, in which no editable install of this environment takes effect.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "reelmill"


@pytest.fixture
def real_web(real_media: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(real_media))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_real_clips_give_equal_digests_on_workers_and_in_one_process(
    real_web: str, real_media: Path, make_project: Callable[[], Project]
) -> None:
    names = sorted(path.name for path in real_media.iterdir() if path.name != "vtest.avi")
    one, two = make_project(), make_project()
    for project in (one, two):
        project.write(REAL, [f"{real_web}/{name}" for name in names])
    build = one.build_here()
    assert two.build("--workers", "2") == build.versions
    assert build.progress["videos"].reasons == {"not_video": 1}
    assert build.progress["flow"].samples > 50
