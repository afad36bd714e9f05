"""Cutting in each mode, against video2dataset's clipping and one ffmpeg command for the same clips.

All encode with x264 at the same preset and quality, video2dataset's own; it is called directly, its
start left out. We and it begin with the video's bytes in memory and end with the clips' there. It
runs x264 on as many threads as ffmpeg likes, the others on one. Figures are per second of clips.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from reelmill.media.cut import CutFailure, Encoding, Mode, Video, cut_spans
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import packet_table, probe
from reelmill.media.scenes import detect
from reelmill.media.spans import Span
from tests.benchmarks.clips import ffmpeg
from tests.benchmarks.harness import Cost, Costs, measure, show

ROUNDS = int(os.environ.get("REELMILL_BENCH_ROUNDS", "3"))
SECONDS = 40
PEER = Path(__file__).parent / "video2dataset_peer"
PEER_PYTHON = "VIDEO2DATASET_PYTHON"
"""Environment variable: the Python of an environment that has video2dataset."""

ENCODING = Encoding(video=Video(crf=23, preset="medium"))
ENCODER = ("-c:v", "libx264", "-crf", "23", "-preset", "medium", "-pix_fmt", "yuv420p")
MUXER = ("-c:a", "aac", "-threads", "1", "-fps_mode", "passthrough", "-movflags", "+faststart")
SCENES = 12

Subject = Callable[[Path], Cost]


def run() -> None:
    python = os.environ.get(PEER_PYTHON)
    if not python:
        print(f"video2dataset is left out: {PEER_PYTHON} names no Python that has it;")
        print(f"{PEER}/requirements.txt says how to make one")
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        for title, (video, spans, modes, copied) in _cases(folder).items():
            subjects = _subjects(video, spans, modes, copied, python)
            _compare(title, subjects, float(sum(end - start for start, end in spans)))
        _memory(folder)


Case = tuple[Path, list[Span], Sequence[Mode], bool]


def _cases(folder: Path) -> dict[str, Case]:
    """Videos and spans, the modes to compare (the first one against the others), and whether the
    peers copy too."""
    second = _video(folder / "second.mp4", "-g", "30", "-sc_threshold", "0")
    default = _video(folder / "default.mp4")
    scenes = _scenes(folder / "scenes.mp4")
    # video2dataset finds no last segment where that ends with the video: that one is left out.
    ends = [(F(2 * i), F(2 * i + 2)) for i in range(SECONDS // 2)]
    sparse = [(F(10 * i + j), F(10 * i + j + 1)) for i in range(SECONDS // 10) for j in (1, 4, 7)]
    apart = [(F(8 * i) + F(4, 10), F(8 * i + 7)) for i in range(SECONDS // 8)]
    return {
        "copies of 2 s, end to end, a keyframe every second": (second, ends[:-1], ["copy"], True),
        "encodes of 2 s, end to end, x264's keyframes": (default, ends[:-1], ["exact"], False),
        "3 x 1 s of every 10 s, x264's keyframes": (default, sparse, ["exact", "smart"], False),
        "3 x 1 s of every 10 s, a keyframe every second": (
            second,
            sparse,
            ["smart", "auto", "exact"],
            False,
        ),
        "6.6 s of every 8 s, beside a keyframe every second": (
            second,
            apart,
            ["smart", "auto", "exact"],
            False,
        ),
        "scenes, x264's keyframes": (
            scenes,
            detect(scenes)[:-1],
            ["auto", "smart", "exact"],
            False,
        ),
    }


F = Fraction


def _video(path: Path, *keyframes: str) -> Path:
    picture = f"testsrc2=size=640x360:rate=30:duration={SECONDS},noise=alls=6:allf=t"
    sound = f"sine=frequency=330:duration={SECONDS}"
    ffmpeg(
        *("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p"),
        *("-c:v", "libx264", "-preset", "veryfast", "-crf", "23", *keyframes),
        *("-c:a", "aac", path),
    )
    return path


def _scenes(path: Path) -> Path:
    """Scenes of 2 to 4 seconds, each a camera that moves over a picture, with keyframes where x264
    itself finds that they change."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(SCENES):
            grain = draw.integers(0, 120, (100, 160, 3), dtype=np.uint8)
            grain[..., number % 3] += 120
            picture = cv2.resize(grain, (1000, 500), interpolation=cv2.INTER_CUBIC)
            for at in range(int(draw.integers(60, 120))):
                shown = np.ascontiguousarray(picture[at : at + 360, 2 * at : 2 * at + 640])
                out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def _subjects(
    video: Path, spans: list[Span], modes: Sequence[Mode], copied: bool, python: str | None
) -> dict[str, Subject]:
    data = video.read_bytes()
    subjects: dict[str, Subject] = {
        f"ours, {mode}": partial(_ours, data, spans, mode) for mode in modes
    }
    command = _segments if copied else _one_command
    subjects["one ffmpeg command"] = lambda folder: measure(lambda: command(video, spans, folder))
    for precision in ("low", "keyframe_adjusted", "exact") if copied else ("exact",):
        if python:
            name = f"video2dataset, {precision}"
            subjects[name] = partial(_video2dataset, python, video, spans, precision)
    return subjects


def _ours(data: bytes, spans: list[Span], mode: Mode, folder: Path) -> Cost:
    def work() -> None:
        source = folder / "source"
        source.write_bytes(data)
        made = cut_spans(source, spans, folder, mode=mode, encoding=ENCODING, timeout_s=600)
        for clip in made:
            assert not isinstance(clip, CutFailure), clip
            clip.path.read_bytes()

    return measure(work)


def _one_command(video: Path, spans: list[Span], folder: Path) -> None:
    """One process, one decode, all clips."""
    audio = probe(video, check=False).has_audio
    count = len(spans)
    graph = [f"[0:v]split={count}" + "".join(f"[s{i}]" for i in range(count))]
    if audio:
        graph.append(f"[0:a]asplit={count}" + "".join(f"[t{i}]" for i in range(count)))
    outputs: list[str | Path] = []
    for i, (start, end) in enumerate(spans):
        span = f"start={float(start)}:end={float(end)}"
        graph.append(f"[s{i}]trim={span},setpts=PTS-STARTPTS[v{i}]")
        outputs += ["-map", f"[v{i}]"]
        if audio:
            graph.append(f"[t{i}]atrim={span},asetpts=PTS-STARTPTS[a{i}]")
            outputs += ["-map", f"[a{i}]"]
        outputs += [*ENCODER, *MUXER, folder / f"{i}.mp4"]
    complete = ("-filter_complex_threads", "1", "-filter_complex", ";".join(graph))
    ffmpeg("-threads", "1", "-i", video, *complete, *outputs)


def _segments(video: Path, spans: list[Span], folder: Path) -> None:
    times = ",".join(str(float(end)) for _, end in spans)
    options = ("-f", "segment", "-segment_times", times, "-reset_timestamps", "1")
    options += ("-segment_format_options", "movflags=+faststart")
    ffmpeg("-i", video, "-c", "copy", *options, folder / "%d.mp4")


def _video2dataset(
    python: str, video: Path, spans: list[Span], precision: str, folder: Path
) -> Cost:
    table = packet_table(video)
    keyframes = [float(pts * table.time_base) for pts in table.pts[table.keyframe]]
    clips = json.dumps([[[float(a), float(b)] for a, b in spans], keyframes])
    # The same build of ffmpeg, under the name that video2dataset calls.
    (folder / "bin").mkdir()
    (folder / "bin" / "ffmpeg").symlink_to(ffmpeg_exe())
    environ = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(PEER),
    }
    command = [python, str(PEER / "cut.py"), str(video), precision, clips, str(folder)]
    answer = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    return Cost(**json.loads(answer.stdout.splitlines()[-1]))


def _compare(title: str, subjects: Mapping[str, Subject], seconds: float) -> None:
    rounds: dict[str, list[Cost]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, subject in subjects.items():
            with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
                rounds[name].append(subject(Path(made)))
    costs = {name: Costs.of(of_one) for name, of_one in rounds.items()}
    ours = next(iter(costs))
    rows = []
    for name, cost in costs.items():
        ratios = [
            cost.median.cpu / costs[ours].median.cpu,
            cost.median.wall / costs[ours].median.wall,
        ]
        each = [f"{cost.median.cpu / seconds:.4f}", f"{cost.median.wall / seconds:.4f}"]
        rows.append([name, *each, *(f"{ratio:.2f}" for ratio in ratios)])
    header = ["per s of clips", "CPU-s", "wall s", f"it / {ours}, CPU", "wall"]
    show(f"{title.capitalize()} ({seconds:.0f} s)", header, rows)


def _memory(folder: Path) -> None:
    """What a video of two hours takes, and one of a minute, to cut clips out of all of it."""
    minute, hours = folder / "minute.mp4", folder / "hours.mp4"
    picture = "testsrc=size=160x90:rate=30:duration=60"
    sound = "sine=frequency=330:duration=60"
    ffmpeg(
        *("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p"),
        *("-c:v", "libx264", "-preset", "veryfast", "-g", "60", "-c:a", "aac", minute),
    )
    ffmpeg("-stream_loop", "119", "-i", minute, "-c", "copy", hours)
    rows = []
    for name, video, count in (("a minute", minute, 30), ("two hours", hours, 120)):
        for mode in ("copy", "smart", "exact"):
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.cutting",
                str(video),
                mode,
                str(count),
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks = json.loads(answer.stdout)
            rows.append([name, mode, *(f"{peaks[key]:.0f}" for key in ("ours", "ffmpeg", "disk"))])
    header = ["", "", "peak MB, ours", "ffmpeg", "clips on disk, MB"]
    show("Memory, beyond what Python takes at the start", header, rows)


def _peaks(video: Path, mode: Mode, count: int) -> dict[str, float]:
    """The most memory that this process and any ffmpeg of its took, in MB, for ``count`` clips."""
    step = probe(video, check=False).duration / count
    spans = [(step * i + F(3, 10), step * i + F(18, 10)) for i in range(count)]
    before = _high_water("self")
    most = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with contextlib.suppress(OSError):
                    if "ffmpeg" in Path(f"/proc/{pid}/comm").read_text():
                        most = max(most, _high_water(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        outcomes = cut_spans(video, spans, Path(made), mode=mode, timeout_s=600)
        disk = sum(path.stat().st_size for path in Path(made).iterdir()) / 1e6
    over.set()
    watcher.join()
    assert not any(isinstance(outcome, CutFailure) for outcome in outcomes)
    return {"ours": _high_water("self") - before, "ffmpeg": most, "disk": disk}


def _high_water(pid: str) -> float:
    """MB of memory that a process has held at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    print(json.dumps(_peaks(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))  # type: ignore[arg-type]
