"""TorchCodec's tutorial "How to sample video clips", with the numbers that it was published with.

Its video (13.8 seconds of 640×360 at 25 frames a second) is on the internet; one with the same
properties is made here. Where the tutorial draws clips, the published times are of the release that
the tests use, 0.13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from reelmill.loading import (  # noqa: E402
    clips_at_random_indices,
    clips_at_random_timestamps,
    clips_at_regular_timestamps,
)
from tests.stages.media_samples import make_video  # noqa: E402
from tests.stages.test_samplers import Decoded  # noqa: E402

torch.set_num_threads(1)

FRAMES, FPS, WIDTH, HEIGHT = 345, 25, 640, 360

RANDOM = [
    [11.36, 11.48, 11.60, 11.72],
    [10.20, 10.32, 10.44, 10.56],
    [9.80, 9.92, 10.04, 10.16],
    [9.60, 9.72, 9.84, 9.96],
    [8.44, 8.56, 8.68, 8.80],
]
REGULAR = [[2.00, 2.48, 3.00, 3.48], [3.00, 3.48, 4.00, 4.48], [4.00, 4.48, 5.00, 5.48]]
LAST = [[13.76] * 5]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("tutorial") / "dog.mp4"
    options = {"preset": "ultrafast", "x264-params": "keyint=50"}
    size = (WIDTH, HEIGHT)
    made = make_video(path, FRAMES, fps=FPS, size=size, options=options, draw=_flat)
    return made.read_bytes()


def _flat(number: int) -> NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH), number % 256, dtype=np.uint8)


@pytest.fixture(scope="module", params=["torchcodec", "pyav"])
def video(request: pytest.FixtureRequest, data: bytes) -> Any:
    """The tutorial's ``decoder``: TorchCodec's own, and a reader of ours."""
    if request.param == "torchcodec":
        return pytest.importorskip("torchcodec.decoders").VideoDecoder(data)
    return Decoded(data)


def check(clips: Any, times: list[list[float]]) -> None:
    shape = len(times), len(times[0])
    assert clips.data.shape == (*shape, 3, HEIGHT, WIDTH)
    assert clips.data.dtype == torch.uint8
    torch.testing.assert_close(clips.pts_seconds, torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(clips.duration_seconds, torch.full(shape, 0.04, dtype=torch.float64))


def test_sampling_basics_and_indexing(video: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clips = clips_at_random_indices(
            video, num_clips=5, num_frames_per_clip=4, num_indices_between_frames=3
        )
    check(clips, RANDOM)
    clip_starts = clips.pts_seconds[:, 0]
    check(clips[clip_starts > 5], RANDOM)
    check(clips[clip_starts > 10], RANDOM[:2])
    check(clips[::2], RANDOM[::2])
    assert clips[0].data.shape == (4, 3, HEIGHT, WIDTH)
    assert [len(clip) for clip in clips] == [4] * 5


def test_a_seed_in_place_of_the_state_of_torch(video: Any) -> None:
    clips = clips_at_random_indices(
        video, num_clips=5, num_frames_per_clip=4, num_indices_between_frames=3, seed=0
    )
    check(clips, RANDOM)


def test_sampling_range(video: Any) -> None:
    clips = clips_at_regular_timestamps(
        video,
        seconds_between_clip_starts=1,
        num_frames_per_clip=4,
        seconds_between_frames=0.5,
        sampling_range_start=2,
        sampling_range_end=5,
    )
    check(clips, REGULAR)


@pytest.mark.parametrize("policy", ["repeat_last", "wrap"])
def test_policy(video: Any, policy: Any) -> None:
    end_of_video = 13.8
    clips = clips_at_random_timestamps(
        video,
        num_clips=1,
        num_frames_per_clip=5,
        seconds_between_frames=0.4,
        sampling_range_start=end_of_video - 1,
        sampling_range_end=end_of_video,
        policy=policy,
        seed=0,
    )
    check(clips, LAST)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("repeat_last", [13.28, 13.68, 13.68, 13.68, 13.68]),
        ("wrap", [13.28, 13.68, 13.28, 13.68, 13.28]),
    ],
)
def test_what_the_policies_are_said_to_do(video: Any, policy: Any, wanted: list[float]) -> None:
    """As the text of the tutorial has it, which is of an earlier release's draw."""
    clips = clips_at_random_timestamps(
        video,
        num_clips=1,
        num_frames_per_clip=5,
        seconds_between_frames=0.4,
        sampling_range_start=13.29,
        sampling_range_end=13.2901,
        policy=policy,
    )
    check(clips, [wanted])
