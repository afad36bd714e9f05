"""The demonstration: what a person runs first."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reelmill.flows import demo
from tests.runs.project import Project


@pytest.fixture
def shown(project: Project, demo_media: Path) -> Project:
    shutil.copytree(demo_media, project.folder / "demo" / "media")
    return project


@pytest.fixture
def port_taken() -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", demo.PORT))
            listener.listen()
        except OSError:
            pass
        yield


def test_the_demo_ends_with_its_table_its_sheets_and_a_line_that_opens_a_shard(
    shown: Project, port_taken: None
) -> None:
    done = shown.run("demo", "demo", "--workers", "2")
    assert done.returncode == 0, done.stderr
    for name in ("videos", "clips", "shuffled", "triplets", "flow"):
        assert re.search(rf"^{name} +{name}@[0-9a-f]{{12}} +\d+ +\d+ ", done.stdout, re.M)
    assert "rejects of videos: 1 http_404, 1 truncated" in done.stdout
    sheet = re.search(r"contact sheet of clips: (\S+\.png)", done.stdout)
    assert sheet
    assert (shown.folder / sheet[1]).read_bytes().startswith(b"\x89PNG")
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    opened = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert "'000000.flow.png'" in opened.stdout, opened.stderr

    again = shown.run("demo", "demo")
    assert again.returncode == 0, again.stderr
    assert "All 20 shards exist; nothing was made." in again.stdout
    assert "starting ..." in done.stderr
    assert "starting" not in again.stderr
