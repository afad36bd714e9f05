"""Flow, against bare loops of the same calls.

All codecs run on one thread on both sides, as the media stages do for equal bytes; figures are per
second of video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from reelmill.media.flow import encode_kitti
from reelmill.media.images import decode_gray
from reelmill.media.probe import probe
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Params, Sample
from reelmill.tasks.flow import Flow, FlowParams
from reelmill.tasks.frames import Frames, FramesParams
from reelmill.tasks.media_fields import pictures_of
from tests.benchmarks.clips import videos
from tests.benchmarks.harness import compare, show_costs

ROUNDS = 3
PICTURES = FramesParams(count=3, stride=1, max_side=320, max_samples=60)

Subjects = Mapping[str, Callable[[Path], object]]


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        for name, path in videos(Path(folder)).items():
            info = probe(path, check=False)
            sample = InputSample("000000000_000", {"mp4": path.read_bytes()}, {})
            pictures = _pictures(sample)
            made = sum(len(pictures_of(one.fields)) for one in pictures)
            _compare("flow", name, _flow(pictures), made / float(info.fps))


def _compare(what: str, name: str, subjects: Subjects, seconds: float) -> None:
    costs = compare(subjects, rounds=ROUNDS, warm=False)
    title = f"{what.capitalize()}, {name} ({seconds:.1f} s)"
    show_costs(title, costs, "s of video", seconds, next(iter(subjects)))


def _flow(samples: list[InputSample]) -> Subjects:
    grays = [
        [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)] for one in samples
    ]

    def dis(_: Path) -> list[NDArray[np.float32]]:
        return [_dis(first, second) for group in grays for first, second in pairwise(group)]

    def shipped(folder: Path) -> None:
        """With OpenCV's kernels for this CPU, which the stage does without for equal bits."""
        cv2.setUseOptimized(True)
        dis(folder)
        cv2.setUseOptimized(False)

    def same_calls(_: Path) -> None:
        for one in samples:
            group = [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)]
            for first, second in pairwise(group):
                encode_kitti(_dis(first, second))

    return {
        "ours, stage flow": lambda _: _made(Flow(), FlowParams(), samples),
        "bare loop: JPEG, DIS, KITTI PNG": same_calls,
        "bare loop: DIS alone": dis,
        "DIS alone, OpenCV as shipped, 1 thread": shipped,
    }


def _dis(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return cast(NDArray[np.float32], engine.calc(first, second, None))


def _pictures(sample: InputSample) -> list[InputSample]:
    made = _made(Frames(), PICTURES, [sample])
    return [InputSample(one.key, cast(dict[str, bytes], one.fields), {}) for one in made]


def _made(stage: Frames | Flow, params: Params, samples: list[InputSample]) -> list[Sample]:
    job: Any = Job(cast(Any, None), cast(Any, None), params, {}, Path())
    return [one for sample in samples for one in stage.each(job, sample) if isinstance(one, Sample)]
