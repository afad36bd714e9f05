"""Frames: triplets against bare loops of the same calls, ways to choose, and memory by length.

All codecs run on one thread on both sides, as the media stages do for equal bytes. The bare loops
open the same bytes, decode, scale, and encode JPEGs by the fastest calls that give right colours;
they number no frame, know no scene, and write nothing. REELMILL_BENCH_HOURS sets the length of the
long video, 0.1 if not given.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter

from reelmill.media.decode import _FULL_CHROMA, _FULL_LUMA, _INTERPOLATION
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.probe import probe
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Sample
from reelmill.tasks.frames import Frames, FramesParams
from tests.benchmarks.clips import videos
from tests.benchmarks.harness import compare, show, show_costs

ROUNDS = int(os.environ.get("REELMILL_BENCH_ROUNDS", "5"))
HOURS = float(os.environ.get("REELMILL_BENCH_HOURS", "0.1"))
SIDE = 320
MOST = 120
"""Frames of each clip."""

ONE_SCENE = b'{"one_scene":true}'


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        for name, path in videos(Path(folder)).items():
            _triplets(name, path)
        _choices(Path(folder))


def _triplets(name: str, path: Path) -> None:
    data = path.read_bytes()
    count = min(sum(1 for _ in _decoded(data)), MOST) // 3 * 3
    params = FramesParams(count=3, max_side=SIDE, max_samples=count // 3)
    subjects: Mapping[str, Callable[[Path], object]] = {
        "ours, clips of one scene": lambda _: _made(data, params, ONE_SCENE),
        "ours, cuts looked for": lambda _: _made(data, params, b"{}"),
        "bare loop, best calls": lambda _: _bare(data, count, params),
        "bare loop by way of packed RGB": lambda _: _usual(data, count, params),
        "decoding alone": lambda _: [None for _ in _first(data, count)],
    }
    costs = compare(subjects, rounds=ROUNDS, warm=False)
    seconds = count / float(probe(path, check=False).fps)
    title = f"Triplets, {name}, {count} frames, at most {SIDE} pixels a side"
    show_costs(title, costs, "s of video", seconds, next(iter(subjects)))
    ours, bare = costs["ours, clips of one scene"], costs["bare loop, best calls"]
    cpu, wall = bare.least_cpu / ours.least_cpu, bare.median.wall / ours.median.wall
    print(f"\nSpeed of the bare loop that triplets keep: {cpu:.2f} by CPU, {wall:.2f} by wall")


def _made(data: bytes, params: FramesParams, about: bytes) -> list[Sample]:
    job: Any = Job(cast(Any, None), cast(Any, None), params, {}, Path())
    sample = InputSample("clip", {"mp4": data, "json": about}, {})
    return [one for one in Frames().each(job, sample) if isinstance(one, Sample)]


def _bare(data: bytes, count: int, params: FramesParams) -> None:
    scaler = VideoReformatter()
    for frame in _first(data, count):
        width, height = params.fit(frame.width, frame.height).scaled
        full = frame.color_range == 2 or frame.format.name.startswith("yuvj")
        if frame.colorspace in (2, 5, 6):
            layout = "yuvj420p" if full else "yuv420p"
            kept = {"dst_colorspace": 5, "dst_color_range": 2 if full else 1}
            y, u, v = _planes(scaler, frame, (width, height), layout, **kept)
            if not full:
                y, u, v = cv2.LUT(y, _FULL_LUMA), cv2.LUT(u, _FULL_CHROMA), cv2.LUT(v, _FULL_CHROMA)
            planes = [np.ascontiguousarray(plane) for plane in (y, u, v)]
            simplejpeg.encode_jpeg_yuv_planes(*planes, params.quality, fastdct=False)
        else:
            green, blue, red = _planes(scaler, frame, (width, height), "gbrp")
            rgb = cv2.merge([red, green, blue])
            simplejpeg.encode_jpeg(rgb, params.quality, "RGB", "420", fastdct=False)


def _planes(
    scaler: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int], layout: str, **more: int
) -> list[Any]:
    made = scaler.reformat(
        frame, *size, layout, interpolation=_INTERPOLATION, threads=1, **cast(Any, more)
    )
    return [
        np.frombuffer(cast(Any, plane), np.uint8).reshape(plane.height, -1)[:, : plane.width]
        for plane in made.planes
    ]


def _usual(data: bytes, count: int, params: FramesParams) -> None:
    scaler = VideoReformatter()
    for frame in _first(data, count):
        size = params.fit(frame.width, frame.height).scaled
        rgb = scaler.reformat(
            frame, *size, "rgb24", interpolation=_INTERPOLATION, threads=1
        ).to_ndarray()
        simplejpeg.encode_jpeg(rgb, params.quality, "RGB", "420", fastdct=False)


def _decoded(data: bytes) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield from container.decode(stream)


def _first(data: bytes, count: int) -> Iterator[av.VideoFrame]:
    for number, frame in enumerate(_decoded(data), 1):
        yield frame
        if number == count:
            break


# Ways to choose, and memory: each in a process of its own, at two lengths

CHOICES = (
    "{'count': 1, 'random': 8}",
    "{'count': 3, 'random': 8, 'cuts': 'ignore'}",
    "{'count': 1, 'times': ('10s', '100s', '200s')}",
    "{'count': 1, 'fps': '1/10'}",
    "{'count': 1, 'keyframes': True}",
    "{'count': 3, 'fps': 2, 'step': 1}",
    "{'count': 3, 'step': 500}",
)

_CHILD = """
import resource, sys, time
from pathlib import Path
from tests.benchmarks import frames
def most():
    line = next(l for l in open('/proc/self/status') if l.startswith('VmHWM'))
    return int(line.split()[1]) * 1024
data = Path(sys.argv[1]).read_bytes()
job = frames.Job(None, None, frames.FramesParams(max_side=160, **eval(sys.argv[2])), {}, Path())
sample = frames.InputSample('clip', {'mp4': data, 'json': b'{}'}, {})
before, began = most(), time.process_time()
made = sum(isinstance(one, frames.Sample) for one in frames.Frames().each(job, sample))
print(made, time.process_time() - began, most() - before)
"""


def _choices(folder: Path) -> None:
    short, long = (_looped(folder, HOURS * share) for share in (0.25, 1))
    rows = []
    for choice in CHOICES:
        found = [_child(path, choice) for path in (short, long)]
        (made, cpu, _), (peak, most) = found[1], (found[0][2], found[1][2])
        rows.append(
            [
                choice.strip("{}").replace("'", ""),
                f"{made:.0f}",
                f"{cpu:.2f}",
                f"{peak / 2**20:.0f}",
                f"{most / 2**20:.0f}",
            ]
        )
    title = (
        f"Of a video of {60 * HOURS:.0f} min; memory beside the video itself, also at a quarter of "
        "that length"
    )
    show(title, ["chosen", "samples", "CPU-s", "peak MiB, a quarter", "peak MiB"], rows)


def _child(path: Path, choice: str) -> tuple[float, float, float]:
    command = [sys.executable, "-c", _CHILD, str(path), choice]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    made, cpu, peak = map(float, done.stdout.split())
    return made, cpu, peak


def _looped(folder: Path, hours: float) -> Path:
    """A minute of a test card, again and again."""
    base, path = folder / "minute.mp4", folder / f"{hours}.mp4"
    quiet = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y"]
    if not base.exists():
        card = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=60"]
        coded = ["-c:v", "libx264", "-preset", "veryfast", "-g", "250", "-threads", "1"]
        subprocess.run([*quiet, *card, *coded, "-pix_fmt", "yuv420p", base], check=True)
    again = ["-stream_loop", str(max(0, round(60 * hours) - 1)), "-i", base]
    subprocess.run([*quiet, *again, "-c", "copy", path], check=True)
    return path
