from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from reelmill.flows.demo import ensure_media
from reelmill.flows.server import own_server
from tests.runs.project import PLUGIN, Project

sys.path.append(str(PLUGIN))

REAL_MEDIA = Path(__file__).parents[2].parent / "shared" / "media"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(scope="session")
def demo_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    ensure_media(folder, Console(quiet=True))
    return folder


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
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Prefect server for all runs, with a database of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
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
