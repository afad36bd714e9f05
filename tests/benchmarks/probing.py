"""Probing and describing, against opening and demuxing with PyAV alone, and a plain read.

Long videos are the same packets in each container; small ones are what many downloads are.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import av

from reelmill.media.describe import describe
from reelmill.media.probe import probe
from tests.benchmarks.clips import ffmpeg, make_video
from tests.benchmarks.harness import compare, show_costs

ROUNDS = 3
REPEATED = 40
"""The generated video, end to end, is a long one."""

OURS = "ours, describe"
FFPROBE = shutil.which("ffprobe")


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        short = make_video(folder / "short.mp4")
        small = folder / "small.mp4"
        ffmpeg("-i", short, "-t", "2", "-vf", "scale=160:-2", "-c:a", "copy", small)
        _compare(small, 50)
        for ending in ("mp4", "mkv", "ts"):
            path = folder / f"long.{ending}"
            ffmpeg("-stream_loop", str(REPEATED - 1), "-i", short, "-c", "copy", path)
            _compare(path, 1)


def _compare(path: Path, times: int) -> None:
    subjects = {
        OURS: describe,
        "ours, probe": probe,
        "PyAV, open": _opened,
        "PyAV, open and demux": _demuxed,
        "plain read": _read,
        "sha256": _hashed,
    }
    if FFPROBE is not None:
        subjects["ffprobe, streams and packets"] = _ffprobed
    costs = compare(
        {name: _again(work, path, times) for name, work in subjects.items()}, rounds=ROUNDS
    )
    title = f"{path.name} ({path.stat().st_size / 1e6:.2f} MB)"
    show_costs(title, costs, "1,000 files", times / 1000, OURS)


def _again(work: Callable[[Path], object], path: Path, times: int) -> Callable[[Path], object]:
    def repeated(_: Path) -> None:
        for _ in range(times):
            work(path)

    return repeated


def _opened(path: Path) -> None:
    with path.open("rb") as file, av.open(file):
        pass


def _demuxed(path: Path) -> None:
    with path.open("rb") as file, av.open(file) as container:
        assert sum(1 for _ in container.demux(container.streams.video[0])) > 1


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _hashed(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _ffprobed(path: Path) -> None:
    shown = ("-show_streams", "-show_format", "-show_packets", "-select_streams", "v")
    subprocess.run([str(FFPROBE), "-v", "error", "-of", "json", *shown, path], capture_output=True)
