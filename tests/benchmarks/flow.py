"""Flow from pictures and from clips, against bare loops of the same calls.

DIS in its fast preset, at 640x360, on one thread on both sides. ``.flo`` costs next to nothing to
write, so that its lines show what a stage adds to DIS itself; KITTI's PNG costs more than DIS. The
last table is the peak of memory for a clip and for one ten times as long.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tests.benchmarks.harness import compare, show, show_costs

ROUNDS = 3
TRIPLETS = 15
SIDE = 640

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
                show_costs(f"Flow {what}, {name}", costs, "pair", pairs, next(iter(subjects)))
                _show_speed(costs)
        _show_memory(Path(folder))


def _clip(path: Path) -> InputSample:
    """A clip that stage ``split`` found to be of one scene: no cuts are looked for in it."""
    fields = {"mp4": path.read_bytes(), "json": b'{"one_scene":true}'}
    return InputSample("000000000_000", fields, {})


def _from_pictures(samples: Sequence[InputSample]) -> Subjects:
    grays = [_grays(one) for one in samples]

    def dis(_: Path) -> list[NDArray[np.float32]]:
        return [_dis(*pair) for group in grays for pair in pairwise(group)]

    def same(encoder: Callable[[Any], bytes]) -> Callable[[Path], None]:
        def loop(_: Path) -> None:
            for one in samples:
                for pair in pairwise(_grays(one)):
                    encoder(_dis(*pair))

        return loop

    def ours(form: str) -> Callable[[Path], object]:
        params = FlowParams.model_validate({"format": form})
        return lambda _: [_count(params, one) for one in samples]

    return {
        "ours, .flo": ours("flo"),
        "DIS alone, on decoded arrays": dis,
        "bare: JPEG, DIS, .flo": same(encode_flo),
        "ours, KITTI": ours("kitti"),
        "bare: JPEG, DIS, KITTI": same(encode_kitti),
    }


def _from_clip(clip: InputSample, count: int) -> Subjects:
    grays = list(_scaled(clip, count))
    groups = [grays[start : start + 3] for start in range(0, count, 3)]

    def dis(_: Path) -> list[NDArray[np.float32]]:
        return [_dis(*pair) for group in groups for pair in pairwise(group)]

    def same(encoder: Callable[[Any], bytes]) -> Callable[[Path], None]:
        def loop(_: Path) -> None:
            frames = iter(_scaled(clip, count))
            for group in zip(frames, frames, frames, strict=True):
                for pair in pairwise(group):
                    encoder(_dis(*pair))

        return loop

    def ours(form: str) -> Callable[[Path], object]:
        asked = {"format": form, "max_side": SIDE, "max_samples": count // 3, "keep_frames": False}
        params = FlowParams.model_validate(asked)
        return lambda _: _count(params, clip)

    return {
        "ours, .flo": ours("flo"),
        "DIS alone, on decoded arrays": dis,
        "bare: decode, scale, DIS, .flo": same(encode_flo),
        "ours, KITTI": ours("kitti"),
        "bare: decode, scale, DIS, KITTI": same(encode_kitti),
    }


def _show_speed(costs: Mapping[str, Any]) -> None:
    """Each of ours against the bare loops: times their speed."""
    names = list(costs)
    rows = []
    for ours, bare in ((0, 1), (0, 2), (3, 1), (3, 4)):
        mine, other = costs[names[ours]].median, costs[names[bare]].median
        cpu, wall = other.cpu / mine.cpu, other.wall / mine.wall
        rows.append([names[ours], names[bare], f"{cpu:.2f}", f"{wall:.2f}"])
    show("Speed", ["ours", "against", "x its speed, CPU", "wall"], rows)


def _grays(sample: InputSample) -> list[Gray]:
    return [decode_gray(sample.fields[field]) for _, field in pictures_of(sample.fields)]


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
