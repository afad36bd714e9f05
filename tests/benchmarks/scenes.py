"""Scene cuts: CPU against decoding alone, PySceneDetect and video2dataset; what skimming misses.

All decode on one thread but where it says so, and PySceneDetect runs in this process: no start-up
is counted. video2dataset shrinks pictures to about 64 pixels, so its cuts are others.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import av

from reelmill.flows.demo_media import make_demo_media
from reelmill.media.probe import demux, open_media, probe, video_stream
from reelmill.media.scenes import ContentDetector, Detector, detect, find, score
from tests.benchmarks.clips import REAL_MEDIA, ffmpeg
from tests.benchmarks.download import PEER, peer
from tests.benchmarks.harness import Cost, Costs, compare, show, show_costs

ROUNDS = 3
CONTENT: list[Detector] = [ContentDetector()]
NEAR = 0.2
"""Seconds by which a skimmed cut may miss."""

_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "23")
ENCODES: Mapping[str, tuple[str, ...]] = {
    "keyframes at cuts, 250 at most": (),
    "keyframes every 48, none at cuts": ("-g", "48", "-sc_threshold", "0"),
    "keyframes at cuts, 12 at most": ("-g", "12"),
}


def run() -> None:
    python = peer()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        source = _source(folder)
        for height in (720, 1080, 360):
            path = folder / f"{height}.mp4"
            ffmpeg("-i", source, "-t", "12", "-vf", f"scale=-2:{height}", *_X264, path)
            _compare(f"{height}p", path, python)
        rows = []
        for name, options in ENCODES.items():
            path = folder / "skimmed.mp4"
            ffmpeg("-i", source, *_X264, *options, path)
            rows.append([name, *_skimmed(path)])
        header = ["encoded with", "cuts", "exact / skimmed, CPU", "recall", "precision"]
        show("Skimming, 720p, content", header, rows)


def _source(folder: Path) -> Path:
    """Several scenes of real clips, or of the demonstration, one after the other: 720p."""
    names = ("bikes", "cup", "bigbuckbunny", "nasa_13013")
    clips = [path for name in names if (path := REAL_MEDIA / f"{name}.mp4").is_file()]
    if not clips:
        make_demo_media(folder / "demo")
        clips = sorted((folder / "demo").glob("*.mp4"))
    inputs = [argument for clip in clips for argument in ("-i", clip)]
    shape = "scale=1280:720,setsar=1,fps=25,format=yuv420p"
    graph = ";".join(f"[{i}:v]{shape}[v{i}]" for i in range(len(clips)))
    joined = "".join(f"[v{i}]" for i in range(len(clips))) + f"concat=n={len(clips)}"
    path = folder / "source.mkv"
    coded = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "14")
    ffmpeg(*inputs, "-filter_complex", f"{graph};{joined}", "-an", *coded, path)
    return path


def _compare(name: str, path: Path, python: Path | None) -> None:
    subjects: dict[str, Callable[[Path], object]] = {
        "ours": lambda _: detect(path, CONTENT),
        "ours, on all cores": lambda _: detect(path, CONTENT, jobs=os.cpu_count() or 1),
        "ours, skimmed": lambda _: detect(path, CONTENT, exact=False),
        "decoding alone": lambda _: _decode(path),
        "scenedetect (on OpenCV)": lambda _: _scenedetect(path, "opencv"),
        "scenedetect on PyAV": lambda _: _scenedetect(path, "pyav"),
    }
    costs = compare(subjects, rounds=ROUNDS)
    if python is not None:
        costs["video2dataset's subsampler"] = _video2dataset(python, path)
    seconds = float(probe(path, check=False).duration)
    show_costs(f"Scene cuts, {name} ({seconds:.1f} s)", costs, "s of video", seconds, "ours")


def _decode(path: Path) -> int:
    with open_media(path) as container:
        stream = video_stream(container)
        return sum(len(packet.decode()) for packet in demux(container, [stream]))


def _scenedetect(path: Path, backend: str) -> None:
    import scenedetect

    video = scenedetect.open_video(str(path), backend=backend)
    manager = scenedetect.SceneManager()
    manager.add_detector(scenedetect.ContentDetector())
    manager.detect_scenes(video)
    # PySceneDetect has turned FFmpeg's log on for the whole process.
    av.logging.set_level(None)


def _video2dataset(python: Path, path: Path) -> Costs:
    command = [str(python), str(PEER / "cuts.py"), str(path), str(ROUNDS)]
    environ = {**os.environ, "PYTHONPATH": str(PEER), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    rounds = [line.split() for line in done.stdout.splitlines()]
    return Costs.of([Cost(float(cpu), float(wall)) for cpu, wall, _ in rounds])


def _skimmed(path: Path) -> list[str]:
    costs = compare(
        {
            "exact": lambda _: score(path, CONTENT),
            "skimmed": lambda _: score(path, CONTENT, exact=False),
        },
        rounds=ROUNDS,
    )
    wanted, found = (_cuts(path, exact=exact) for exact in (True, False))
    hits = sum(any(abs(cut - one) <= NEAR for one in found) for cut in wanted)
    right = sum(any(abs(cut - one) <= NEAR for one in wanted) for cut in found)
    ratio = costs["exact"].least_cpu / costs["skimmed"].least_cpu
    recall, precision = f"{hits} of {len(wanted)}", f"{right} of {len(found)}"
    return [str(len(wanted)), f"{ratio:.1f}", recall, precision]


def _cuts(path: Path, *, exact: bool) -> list[float]:
    scores = score(path, CONTENT, exact=exact)
    return [float(cut * scores.clock.time_base) for cut in find(scores, CONTENT)]
