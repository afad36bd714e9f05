"""Motion: CPU against decoding alone, memory by length; converting against ffmpeg's command line.

Every video is of H.264, on one thread. Memory is the peak of a process of its own that measures
one video, and of another that only imports what it takes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from reelmill.media.cut import Audio, Encoding, Size, Video, cut_spans
from reelmill.media.motion import measure
from reelmill.media.probe import demux, open_media, packet_table, probe, video_stream
from tests.benchmarks.clips import REAL_MEDIA, ffmpeg, make_video
from tests.benchmarks.harness import compare, show, show_costs

ROUNDS = 3
SECONDS = 10
LENGTHS = (10, 300)
_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-an")
_PEAK = """
import sys
from pathlib import Path
from reelmill.media.motion import measure
for path in sys.argv[1:]:
    measure(path)
# The peak since exec: that of getrusage counts the process that this one came from, too.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        source = _source(folder)
        for height in (1080, 720, 360):
            path = folder / f"{height}.mp4"
            ffmpeg(*_long(source, SECONDS), "-vf", f"scale=-2:{height}", *_X264, path)
            _against_decoding(f"{height}p", path)
        _memory(folder, folder / "360.mp4")
        _converting(folder / "720.mp4")


def _source(folder: Path) -> Path:
    """A real video of 10 seconds with several scenes, or a generated one."""
    real = REAL_MEDIA / "bikes.mp4"
    return real if real.is_file() else make_video(folder / "source.mp4")


def _long(source: Path, seconds: int) -> tuple[str | Path, ...]:
    return ("-stream_loop", "-1", "-i", source, "-t", str(seconds))


def _against_decoding(name: str, path: Path) -> None:
    subjects: dict[str, Callable[[Path], object]] = {
        "motion": lambda _: measure(path),
        "motion, a pair a second": lambda _: measure(path, Fraction(1)),
        "decoding alone": lambda _: _decode(path),
    }
    seconds = float(probe(path, check=False).duration)
    costs = compare(subjects, rounds=ROUNDS)
    show_costs(
        f"Motion and looks, {name} ({seconds:.1f} s)", costs, "s of video", seconds, "motion"
    )


def _decode(path: Path) -> int:
    with open_media(path) as container:
        stream = video_stream(container)
        return sum(len(packet.decode()) for packet in demux(container, [stream]))


def _memory(folder: Path, source: Path) -> None:
    rows = [["none", "", f"{_peak() / 1024:.0f}"]]
    for seconds in LENGTHS:
        path = folder / f"long-{seconds}.mp4"
        ffmpeg(*_long(source, seconds), "-c", "copy", path)
        frames = len(packet_table(path).shown)
        rows.append([f"{seconds} s", str(frames), f"{_peak(path) / 1024:.0f}"])
    show("Peak memory of motion, 360p", ["video", "frames", "MB"], rows)


def _peak(*paths: Path) -> int:
    """Kilobytes."""
    command = [sys.executable, "-c", _PEAK, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def _converting(path: Path) -> None:
    table = packet_table(path)
    whole = (int(table.shown[0]) * table.time_base, table.end_pts * table.time_base)
    half = Encoding(video=Video(size=Size(height=360)), audio=Audio(keep=False))
    options = ("-vf", "scale=-2:360", "-c:v", "libx264", "-preset", "veryfast", "-crf", "18")
    subjects: dict[str, Callable[[Path], object]] = {
        "convert": lambda out: cut_spans(path, [whole], out, encoding=half, timeout_s=600),
        "ffmpeg's command line": lambda out: ffmpeg(
            *("-threads", "1", "-i", path, *options, "-threads", "1", "-an", out / "out.mp4")
        ),
    }
    costs = compare(subjects, rounds=3)
    seconds = float(probe(path, check=False).duration)
    show_costs("720p to 360p, x264 veryfast", costs, "s of video", seconds, "convert")
