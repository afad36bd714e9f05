"""Small videos, each with bytes of its own, and an nginx on loopback that serves them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reelmill.flows.server import free_port
from tests.benchmarks.clips import ffmpeg

NGINX_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"


@dataclass(frozen=True, slots=True)
class Kind:
    """What the videos of a kind have in common; ``kilobits`` is the rate of the pictures."""

    count: int
    films: int
    size: str
    seconds: int
    kilobits: int


_CONFIG = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    types {{ video/mp4 mp4; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root};
    }}
}}
"""


def nginx() -> str | None:
    """The nginx of this machine, if it has one."""
    return shutil.which("nginx") or shutil.which("nginx", path=NGINX_PLACES)


def make_videos(folder: Path, kind: Kind) -> list[str]:
    """Names of MP4s in ``folder``: few films, but no two equal files.

    Each copy of a film ends with a ``free`` box of its own, which every reader skips.
    """
    films = [_film(folder / f"film-{number}.mp4", kind, number) for number in range(kind.films)]
    names = []
    for number in range(kind.count):
        name = f"{number:05d}.mp4"
        box = (16).to_bytes(4) + b"free" + number.to_bytes(8)
        (folder / name).write_bytes(films[number % kind.films] + box)
        names.append(name)
    return names


def _film(path: Path, kind: Kind, number: int) -> bytes:
    seconds = kind.seconds + number % 3
    picture = f"testsrc2=size={kind.size}:rate=25:duration={seconds},hue=h={18 * number}"
    noise = f"noise=alls=5:allf=t:all_seed={number}"
    sound = f"sine=frequency={220 + 20 * number}:duration={seconds}"
    rate = ("-b:v", f"{kind.kilobits}k", "-maxrate", f"{kind.kilobits}k", "-bufsize", "200k")
    ffmpeg(
        *("-f", "lavfi", "-i", f"{picture},{noise}", "-f", "lavfi", "-i", sound),
        *("-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast", *rate),
        *("-c:a", "aac", "-b:a", "32k", "-movflags", "+faststart", path),
    )
    data = path.read_bytes()
    path.unlink()
    return data


@contextmanager
def served(program: str, root: Path, folder: Path) -> Iterator[str]:
    """The address at which nginx serves the files of ``root``; its own files lie in ``folder``."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(user=root.owner(), folder=folder, root=root, port=port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config), "-e", "stderr"])
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("nginx does not start")
