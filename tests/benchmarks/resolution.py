"""Size and rate of clips, against ffmpeg's command line and video2dataset; and what keyframes cost.

All write H.264 by x264's preset medium at crf 23, which video2dataset cannot change, without sound,
which it drops. Ours and the bare command are on one thread; video2dataset's ffmpeg, the same build,
takes as many as it likes. Figures are per second of video. For the keyframes, each access seeks to
a frame at random, with PyAV on one thread, and decodes up to it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av

from reelmill.media.cut import Audio, Clip, Encoding, Size, Video, cut_spans
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import packet_table, probe
from tests.benchmarks.clips import ffmpeg, videos
from tests.benchmarks.download import PEER, peer
from tests.benchmarks.harness import Cost, Costs, measure, show, show_costs

ROUNDS = 3
HEIGHT = 360
FPS = 15
ACCESSES = 30
ENCODER = ("-c:v", "libx264", "-crf", "23", "-preset", "medium", "-pix_fmt", "yuv420p", "-an")
OURS, BARE, THEIRS = "ours, cut_spans", "bare ffmpeg command", "video2dataset's subsamplers"
TRAINING = {
    "x264's own choice": Video(),
    "gop: 12": Video(gop=12),
    "gop: 12, bframes: 0": Video(gop=12, bframes=0),
    "gop: 1": Video(gop=1),
}

Work = Callable[[Path], Cost]


def run() -> None:
    python = peer()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        # Where video2dataset looks for ffmpeg.
        (folder / "ffmpeg").symlink_to(ffmpeg_exe())
        for name, path in videos(folder).items():
            seconds = float(probe(path, check=False).duration)
            for fps in (None, FPS):
                subjects = {OURS: _ours(path, fps), BARE: _bare(path, fps)}
                if python is not None:
                    subjects[THEIRS] = _theirs(python, path, fps, folder)
                what = f"{HEIGHT} lines" + (f" at {fps} fps" if fps else "")
                title = f"To {what}, {name} ({seconds:.1f} s)"
                show_costs(title, _alternating(subjects), "s of video", seconds, OURS)
            _show_keyframes(name, path, folder)


def _alternating(subjects: dict[str, Work]) -> dict[str, Costs]:
    """As the harness does, for subjects that tell their own costs."""
    costs: dict[str, list[Cost]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, work in subjects.items():
            with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
                costs[name].append(work(Path(folder)))
    return {name: Costs.of(of_one) for name, of_one in costs.items()}


def _ours(path: Path, fps: int | None) -> Work:
    size = Size(height=HEIGHT, upscale=True)
    video = Video(crf=23, preset="medium", size=size, fps=None if fps is None else str(fps))
    encoding = Encoding(video=video, audio=Audio(keep=False))
    return lambda folder: measure(lambda: _whole(path, folder, encoding))


def _whole(path: Path, folder: Path, encoding: Encoding) -> Clip:
    (clip,) = cut_spans(
        path,
        [(Fraction(-1), Fraction(10**6))],
        folder,
        mode="exact",
        encoding=encoding,
        timeout_s=600,
    )
    assert isinstance(clip, Clip)
    return clip


def _bare(path: Path, fps: int | None) -> Work:
    chain = (f"fps={fps}," if fps else "") + f"scale=-2:{HEIGHT}"
    options = ("-filter_threads", "1", "-vf", chain, *ENCODER, "-threads", "1")
    return lambda folder: measure(
        lambda: ffmpeg("-threads", "1", "-i", path, *options, folder / "made.mp4")
    )


def _theirs(python: Path, path: Path, fps: int | None, programs: Path) -> Work:
    command = [
        python,
        PEER / "resolution.py",
        path,
        str(HEIGHT),
        *([] if fps is None else [str(fps)]),
    ]
    search = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(PEER)}

    def work(_: Path) -> Cost:
        done = subprocess.run(
            command, env={**os.environ, **search}, check=True, capture_output=True, text=True
        )
        told = json.loads(done.stdout.splitlines()[-1])
        return Cost(told["cpu"], told["wall"])

    return work


def _show_keyframes(name: str, path: Path, folder: Path) -> None:
    """Size, and what a frame at random costs, of each choice of keyframes."""
    clips: dict[str, Clip] = {}
    for number, (choice, video) in enumerate(TRAINING.items()):
        out = folder / f"{path.stem}-{number}"
        out.mkdir()
        encoding = Encoding(video=video, audio=Audio(keep=False))
        clips[choice] = _whole(path, out, encoding)
    costs = _alternating(
        {
            choice: lambda _, clip=clip: measure(lambda: _access(clip.path))  # type: ignore[misc]
            for choice, clip in clips.items()
        }
    )
    first = next(iter(clips))
    rows = [
        [
            choice,
            f"{clip.size / clips[first].size:.2f}",
            f"{costs[choice].median.cpu / ACCESSES * 1000:.1f}",
            f"{costs[first].median.cpu / costs[choice].median.cpu:.1f}",
        ]
        for choice, clip in clips.items()
    ]
    header = ["keyframes", "size / first", "CPU-ms per random frame", "times faster"]
    show(f"Random access, {name}", header, rows)


def _access(path: Path) -> None:
    shown = packet_table(path).shown.tolist()
    order = random.Random(0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for pts in order.choices(shown, k=ACCESSES):
            container.seek(pts, stream=stream)
            assert next(frame.pts for frame in container.decode(stream) if frame.pts >= pts) == pts
