"""Flow from pictures and from clips, against bare loops of the same calls.

DIS in its fast preset, at 640x360, on one thread on both sides. ``.flo`` costs next to nothing to
write, so that its lines show what a stage adds to DIS itself; what decoding alone costs is measured
beside it and subtracted in a line of its own. The last table is the peak of memory for a clip and
for one ten times as long.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from reelmill.media import decode
from reelmill.media.flow import encode_flo, encode_kitti
from reelmill.media.flow.plain import use_plain_opencv
from reelmill.media.images import decode_gray
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Sample
from reelmill.tasks.flow import Flow, FlowParams
from reelmill.tasks.frames import Frames, FramesParams
from reelmill.tasks.media_fields import pictures_of
from tests.benchmarks.clips import ffmpeg, videos
from tests.benchmarks.harness import Costs, compare, show, show_costs

ROUNDS = int(os.environ.get("REELMILL_BENCH_ROUNDS", "3"))
TRIPLETS = 20
SIDE = 640

OURS_FLO, OURS_KITTI = "ours, .flo", "ours, KITTI"
DIS, SHIPPED = "DIS alone, on decoded arrays", "the same, OpenCV's kernels for this CPU"
DECODING = "decoding alone"
BARE_FLO, BARE_KITTI = "bare: decoding, DIS, .flo", "bare: decoding, DIS, KITTI"
BARE_OPENCV = "the same, PNG by OpenCV"

Subjects = Mapping[str, Callable[[Path], object]]
Gray = NDArray[np.uint8]


def run() -> None:
    use_plain_opencv()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        found = videos(Path(folder))
        for name, path in (next(iter(found.items())), list(found.items())[-1]):
            clip = _clip(path)
            chosen = FramesParams.model_validate({"max_side": SIDE, "max_samples": TRIPLETS})
            triplets = [
                InputSample(one.key, cast(dict[str, bytes], one.fields), {})
                for one in _outputs(Frames(), chosen, clip)
            ]
            pairs = 2 * len(triplets)
            for what, subjects in (
                ("from pictures", _from_pictures(triplets)),
                ("from a clip", _from_clip(clip, 3 * len(triplets))),
            ):
                costs = compare(subjects, rounds=ROUNDS, warm=False)
                show_costs(f"Flow {what}, {name}", costs, "pair", pairs, OURS_FLO)
                _show_speed(costs)
        _show_memory(Path(folder))


def _clip(path: Path) -> InputSample:
    """A clip that stage ``split`` found to be of one scene: no cuts are looked for in it."""
    fields = {"mp4": path.read_bytes(), "json": b'{"one_scene":true}'}
    return InputSample("000000000_000", fields, {})


def _from_pictures(samples: Sequence[InputSample]) -> Subjects:
    def decoded() -> Iterator[Sequence[Gray]]:
        for one in samples:
            yield [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)]

    def ours(form: str) -> None:
        params = FlowParams.model_validate({"format": form})
        for one in samples:
            _count(params, one)

    return _subjects(ours, decoded)


def _from_clip(clip: InputSample, count: int) -> Subjects:
    def decoded() -> Iterator[Sequence[Gray]]:
        frames = _scaled(clip, count)
        return zip(frames, frames, frames, strict=True)

    def ours(form: str) -> None:
        asked = {"format": form, "max_side": SIDE, "max_samples": count // 3, "keep_frames": False}
        _count(FlowParams.model_validate(asked), clip)

    return _subjects(ours, decoded)


def _subjects(
    ours: Callable[[str], None], decoded: Callable[[], Iterable[Sequence[Gray]]]
) -> Subjects:
    """What the stage does, and loops over the groups of gray pictures that it decodes."""
    groups = list(decoded())

    def dis(_: Path) -> None:
        for group in groups:
            for pair in pairwise(group):
                _dis(*pair)

    def shipped(folder: Path) -> None:
        cv2.setUseOptimized(True)
        dis(folder)
        cv2.setUseOptimized(False)

    def bare(encoder: Callable[[Any], bytes]) -> Callable[[Path], None]:
        def loop(_: Path) -> None:
            for group in decoded():
                for pair in pairwise(group):
                    encoder(_dis(*pair))

        return loop

    return {
        OURS_FLO: lambda _: ours("flo"),
        DIS: dis,
        SHIPPED: shipped,
        DECODING: lambda _: [None for _ in decoded()],
        BARE_FLO: bare(encode_flo),
        OURS_KITTI: lambda _: ours("kitti"),
        BARE_KITTI: bare(encode_kitti),
        BARE_OPENCV: bare(_opencv_kitti),
    }


def _opencv_kitti(flow: NDArray[np.float32]) -> bytes:
    """As ``encode_kitti`` by OpenCV's quickest PNG."""
    steps = np.rint(flow * 64) + np.float32(32768)
    image = np.ones((*flow.shape[:2], 3), np.uint16)
    image[..., 1:] = steps[..., ::-1]
    quick = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
    return bytes(cv2.imencode(".png", image, quick)[1])


def _show_speed(costs: Mapping[str, Costs]) -> None:
    """Each of ours against the bare loops: times their speed."""
    rows = []
    for ours, bare in (
        (OURS_FLO, DIS),
        (OURS_FLO, BARE_FLO),
        (OURS_KITTI, DIS),
        (OURS_KITTI, BARE_KITTI),
        (OURS_KITTI, BARE_OPENCV),
    ):
        for less in (0, 1) if bare == DIS else (0,):
            mine = costs[ours].median.cpu - less * costs[DECODING].median.cpu
            least = costs[ours].least_cpu - less * costs[DECODING].least_cpu
            other = costs[bare]
            name = f"{ours}, {DECODING} subtracted" if less else ours
            ratios = [f"{other.median.cpu / mine:.2f}", f"{other.least_cpu / least:.2f}"]
            rows.append([name, bare, *ratios])
    show("Speed", ["ours", "against", "x its speed, CPU", "least CPU"], rows)


def _dis(first: Gray, second: Gray) -> NDArray[np.float32]:
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return cast(NDArray[np.float32], engine.calc(first, second, None))


def _scaled(clip: InputSample, count: int) -> Iterator[Gray]:
    """The first frames of a clip, by PyAV alone."""
    scaler = VideoReformatter()
    with av.open(io.BytesIO(clip.fields["mp4"])) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for _, frame in zip(range(count), container.decode(stream), strict=False):
            side = SIDE / max(frame.width, frame.height)
            size = round(frame.width * side), round(frame.height * side)
            yield scaler.reformat(
                frame, *size, "gray", interpolation=decode._INTERPOLATION, threads=1
            ).to_ndarray()


def _outputs(stage: Frames | Flow, params: Any, sample: InputSample) -> Iterator[Any]:
    return stage.each(Job(cast(Any, None), cast(Any, None), params, {}, Path()), sample)


def _count(params: FlowParams, sample: InputSample) -> int:
    """How many samples of flow there are. None is kept, as a shard's writer keeps none."""
    return sum(isinstance(one, Sample) for one in _outputs(Flow(), params, sample))


_MEMORY_SECONDS = (20, 200)


def _show_memory(folder: Path) -> None:
    """Peaks of processes that make flow of a whole clip and keep nothing of it."""
    rows = []
    for seconds in _MEMORY_SECONDS:
        path = folder / f"{seconds}.mp4"
        pattern = f"testsrc2=size=320x180:rate=10:duration={seconds}"
        ffmpeg("-f", "lavfi", "-i", pattern, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path))
        command = [sys.executable, "-m", "tests.benchmarks.flow", str(path)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append([f"{seconds} s", str(10 * seconds), f"{peak / 1024:.0f}"])
    show("Flow from a clip, overlapping samples: memory", ["clip", "frames", "peak, MiB"], rows)


def _peak(path: Path) -> int:
    """The most KiB that this process held while it made flow of a clip."""
    clip = _clip(path)
    params = FlowParams.model_validate({"preset": "ultrafast", "step": 1})
    assert _count(params, clip)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(_peak(Path(sys.argv[1])))
