from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reelmill.flows.server import answers, free_port, start_server, wait_until_up
from tests.conftest import Shared, in_turn
from tests.runs.project import PLUGIN, Project
from tests.runs.serving import Serving, serving

sys.path.append(str(PLUGIN))

REAL_MEDIA = Path(__file__).parents[2].parent / "shared" / "media"


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
def prefect_url(common: Path, blank_prefect: Path) -> Iterator[str]:
    """One Prefect server for all processes that run tests: who needs it first starts it.

    It ends when its standard input does, a pipe that each of them holds open: it outlives none.
    """
    home, users = common / "prefect", common / "prefect-users"
    with in_turn(common, "prefect"):
        url, *others = users.read_text().split() if users.exists() else [""]
        if others:
            pipe = os.open(home / "pipe", os.O_WRONLY | os.O_NONBLOCK)
        else:
            url, pipe = _start_prefect(home, blank_prefect)
        users.write_text(" ".join([url, *others, str(os.getpid())]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        yield url
    with in_turn(common, "prefect"):
        os.close(pipe)
        url, *others = users.read_text().split()
        others.remove(str(os.getpid()))
        users.write_text(" ".join([url, *others]))
        # Nobody shall come upon a server that is about to end.
        while not others and answers(url):
            time.sleep(0.1)


def _start_prefect(home: Path, blank: Path) -> tuple[str, int]:
    """The address of a server, and the end of its pipe that keeps it alive."""
    if not home.exists():
        shutil.copytree(blank, home)
        os.mkfifo(home / "pipe")
    reading = os.open(home / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    pipe = os.open(home / "pipe", os.O_WRONLY)
    os.set_blocking(reading, True)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        process = start_server(port, home / "server.log", stdin=reading)
    os.close(reading)
    url = f"http://127.0.0.1:{port}/api"
    wait_until_up(process, url, home / "server.log")
    return url, pipe


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
