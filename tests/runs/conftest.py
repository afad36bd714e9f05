from __future__ import annotations

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from reelmill.flows.demo import ensure_media
from reelmill.flows.server import own_server
from tests.runs.project import PLUGIN, Project
from tests.runs.serving import Serving, serving

sys.path.append(str(PLUGIN))

REAL_MEDIA = Path(__file__).parents[2].parent / "shared" / "media"


Shared = Callable[[str, Callable[[Path], object]], Path]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A machine that others use may be slower than any patience: servers and clusters get two
    # more chances, and the summary tells of each that took one.
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Has a folder filled once, for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = common / name
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                half = common / f"{name}.half"
                half.mkdir()
                fill(half)
                half.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def demo_media(shared: Shared) -> Path:
    return shared("media", lambda folder: ensure_media(folder, Console(quiet=True)))


@pytest.fixture(scope="session")
def web(demo_media: Path) -> Iterator[str]:
    """The address at which the demonstration's videos are served."""
    handler = functools.partial(Quiet, directory=str(demo_media))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def real_media() -> Path:
    if not REAL_MEDIA.is_dir():
        pytest.skip("no real clips beside this checkout")
    return REAL_MEDIA


@pytest.fixture(scope="session")
def blank_prefect(shared: Shared) -> Path:
    """A home of Prefect with an empty database, to be copied: to make one takes a server long."""

    def upgrade(home: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
            env={**os.environ, "PREFECT_HOME": str(home)},
            check=True,
            capture_output=True,
        )

    return shared("blank-prefect", upgrade)


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory, blank_prefect: Path) -> Iterator[str]:
    """One Prefect server for all runs, with a database of its own."""
    home = shutil.copytree(blank_prefect, tmp_path_factory.mktemp("prefect") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        with own_server() as url:
            yield url


@pytest.fixture
def project(tmp_path: Path, prefect_url: str) -> Project:
    return Project(tmp_path, prefect_url)


@pytest.fixture
def make_project(
    tmp_path_factory: pytest.TempPathFactory, prefect_url: str
) -> Callable[[], Project]:
    return lambda: Project(tmp_path_factory.mktemp("project"), prefect_url)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, demo_media: Path, blank_prefect: Path
) -> Iterator[Serving]:
    """A small recipe that `reelmill serve` serves, with a Prefect server of its own."""
    with serving(tmp_path_factory.mktemp("served"), demo_media, blank_prefect) as it:
        yield it
