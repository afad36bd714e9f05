"""Plans of clips: what they promise, and that they are TorchCodec's, draw for draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reelmill.loading.samplers import plan  # noqa: E402

torch.set_num_threads(1)


@dataclass(frozen=True)
class Video:
    num_frames: int = 100
    begin_seconds: float = 0.0
    end_seconds: float | None = 4.0
    average_fps: float | None = 25.0


def seeded(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


class Recorder:
    """A decoder that decodes nothing, and keeps what it is asked for."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self.asked: list[float] = []
        self.metadata = SimpleNamespace(
            begin_stream_seconds=video.begin_seconds,
            end_stream_seconds=video.end_seconds,
            average_fps=video.average_fps,
        )

    def __len__(self) -> int:
        return self.video.num_frames

    def get_frames_at(self, indices: Any) -> Any:
        return self._batch(indices)

    def get_frames_played_at(self, seconds: Any) -> Any:
        return self._batch(seconds)

    def _batch(self, asked: Any) -> Any:
        from torchcodec import FrameBatch

        self.asked = [float(one) for one in asked]
        times = torch.zeros(len(self.asked))
        return FrameBatch(torch.zeros(len(self.asked), 1, 1, 1), times, times)


def theirs(kind: str, video: Video, params: dict[str, Any], seed: int) -> list[list[float]]:
    samplers = pytest.importorskip("torchcodec.samplers")
    decoder = Recorder(video)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clips = getattr(samplers, f"clips_at_{kind}")(decoder, **params)
    length = clips.pts_seconds.shape[1]
    return [decoder.asked[at : at + length] for at in range(0, len(decoder.asked), length)]


def ours(kind: str, video: Video, params: dict[str, Any], seed: int) -> list[list[float]]:
    drawing = {"generator": seeded(seed)} if kind.startswith("random") else {}
    clips = getattr(plan, kind)(video, **params, **drawing)
    return [[float(one) for one in clip] for clip in clips]


def compare(kind: str, video: Video, params: dict[str, Any], seed: int) -> None:
    """The same plan; or an error where theirs is one."""
    try:
        wanted = theirs(kind, video, params, seed)
    except ValueError:
        with pytest.raises(ValueError):
            ours(kind, video, params, seed)
        return
    assert ours(kind, video, params, seed) == wanted


policies = st.sampled_from(["repeat_last", "wrap", "error"])
seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 60), policies, seeds)
def test_clips_by_index_are_those_of_torchcodec(
    data: Any, frames: int, policy: str, seed: int
) -> None:
    bounds = st.integers(-frames, frames + 10)
    params = {
        "num_clips": data.draw(st.integers(0, 12)),
        "num_frames_per_clip": data.draw(st.integers(0, 12)),
        "num_indices_between_frames": data.draw(st.integers(0, 6)),
        "sampling_range_start": data.draw(st.one_of(st.just(0), bounds)),
        "sampling_range_end": data.draw(st.one_of(st.none(), st.integers(-70, 70))),
        "policy": policy,
    }
    for kind in ("random_indices", "regular_indices"):
        compare(kind, Video(num_frames=frames), params, seed)


@st.composite
def videos(draw: Any) -> Video:
    frames = draw(st.integers(1, 300))
    fps = draw(st.one_of(st.sampled_from([24.0, 25.0, 30000 / 1001]), st.floats(1, 120)))
    begin = draw(st.one_of(st.just(0.0), st.floats(-2, 5)))
    return Video(frames, begin, begin + frames / fps, fps)


@settings(max_examples=60, deadline=None)
@given(st.data(), videos(), policies, seeds)
def test_clips_by_time_are_those_of_torchcodec(
    data: Any, video: Video, policy: str, seed: int
) -> None:
    assert video.end_seconds is not None
    steps = st.one_of(st.floats(-0.1, 4), st.sampled_from([1 / 3, 1 / 3 - 1e-9, 0.1, 0.04]))
    bounds = st.one_of(
        st.none(),
        st.floats(video.begin_seconds - 0.2, video.end_seconds + 0.2),
        st.sampled_from([video.begin_seconds, video.end_seconds]),
    )
    common = {
        "num_frames_per_clip": data.draw(st.integers(0, 12)),
        "seconds_between_frames": data.draw(st.one_of(st.none(), steps)),
        "sampling_range_start": data.draw(bounds),
        "sampling_range_end": data.draw(bounds),
        "policy": policy,
    }
    compare("random_timestamps", video, common | {"num_clips": data.draw(st.integers(0, 9))}, seed)
    # Not millions of clips.
    step = data.draw(steps.filter(lambda value: not 0 < value < 0.02))
    compare("regular_timestamps", video, common | {"seconds_between_clip_starts": step}, seed)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 60), st.sampled_from(["repeat_last", "wrap"]), seeds)
def test_a_plan_by_index_keeps_its_promises(data: Any, frames: int, policy: Any, seed: int) -> None:
    clips, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    between = data.draw(st.integers(1, 4))
    first = data.draw(st.integers(0, frames - 1))
    end = data.draw(st.integers(first + 1, frames + 5))
    found = plan.random_indices(
        Video(num_frames=frames),
        num_clips=clips,
        num_frames_per_clip=length,
        num_indices_between_frames=between,
        sampling_range_start=first,
        sampling_range_end=end,
        policy=policy,
        generator=seeded(seed),
    )
    assert [len(clip) for clip in found] == [length] * clips
    for clip in found:
        assert first <= clip[0] < end
        whole = range(clip[0], frames, between)[:length]
        rest = whole if policy == "wrap" else [whole[-1]]
        assert clip == [*whole, *(rest[at % len(rest)] for at in range(length - len(whole)))]


def test_the_end_of_the_range_is_open_whatever_floats_are_rounded_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    almost = math.nextafter(1, 0)
    video = Video(end_seconds=4.0)
    asked = {"sampling_range_start": 3.0, "sampling_range_end": 3.1}
    assert almost * (3.1 - 3.0) + 3.0 >= 3.1
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([almost]).double())
    assert plan.random_timestamps(video, **asked) == [[math.nextafter(3.1, 0)]]
    # arange(0, 1, 1/3 - …) of torch's own goes to the end.
    found = plan.regular_timestamps(
        Video(10, 0.0, 1.0, 10.0), seconds_between_clip_starts=1 / 3 - 1e-9, sampling_range_end=1.0
    )
    assert all(clip[0] < 1 for clip in found)
    assert len(found) == 4


def test_draws_follow_each_other_in_one_generator_and_leave_that_of_torch_alone() -> None:
    state = torch.get_rng_state()
    generator = seeded(7)
    first, second = (plan.random_indices(Video(), generator=generator) for _ in range(2))
    assert first == plan.random_indices(Video(), generator=seeded(7))
    assert first != second
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert [plan.random_indices(Video()) for _ in range(2)] == [first, second]


@pytest.mark.parametrize(
    ("kind", "params", "told"),
    [
        ("random_indices", {"num_clips": 0}, "num_clips (0) must be > 0"),
        (
            "regular_indices",
            {"num_frames_per_clip": 0},
            "num_frames_per_clip (0) must be strictly positive",
        ),
        (
            "random_indices",
            {"num_indices_between_frames": 0},
            "num_indices_between_frames (0) must be strictly positive: 1 is every frame",
        ),
        (
            "random_indices",
            {"policy": "loop"},
            "Invalid policy (loop): there are repeat_last, wrap, error",
        ),
        (
            "random_indices",
            {"sampling_range_start": -101},
            "sampling_range_start (-101) must be at least -100: the video has 100 frames",
        ),
        (
            "random_indices",
            {"sampling_range_start": 100},
            "sampling_range_start (100) must be smaller than the number of frames (100)",
        ),
        (
            "random_indices",
            {"num_frames_per_clip": 5, "sampling_range_start": -4},
            "We determined that sampling_range_end should be 96, so that clips of 5 frames end "
            "within the 100 of the video, but sampling_range_start (96) is not smaller: give "
            "sampling_range_end, or ask for shorter clips",
        ),
        (
            "random_indices",
            {"sampling_range_start": -10, "sampling_range_end": -10},
            "sampling_range_start (90) must be smaller than sampling_range_end (90), which is open",
        ),
        (
            "regular_indices",
            {"num_frames_per_clip": 3, "sampling_range_start": 98, "sampling_range_end": 99}
            | {"policy": "error"},
            "a clip that starts at 98 asks for 1 frames beyond the number of frames in the video",
        ),
        (
            "random_timestamps",
            {"sampling_range_start": -1},
            "sampling_range_start (-1) must be at least 0.0: frames begin",
        ),
        (
            "random_timestamps",
            {"sampling_range_start": 4},
            "sampling_range_start (4) must be smaller than 4.0: frames end",
        ),
        (
            "random_timestamps",
            {"sampling_range_end": 0},
            "sampling_range_end (0) must be at least 0.0, and more: it is open",
        ),
        (
            "random_timestamps",
            {"num_frames_per_clip": 6, "seconds_between_frames": 1.0},
            "sampling_range_start (0.0) must be smaller than sampling_range_end (-1.0), which was "
            "determined so that clips of 6 frames, 1 s apart, end within a video of 4 s: give "
            "sampling_range_end, or ask for shorter clips",
        ),
        (
            "random_timestamps",
            {"sampling_range_start": math.nan},
            "sampling_range_start (nan) must be at least 0.0",
        ),
        (
            "random_timestamps",
            {"seconds_between_frames": 0.0},
            "seconds_between_frames (0.0) must be > 0, and a number of seconds",
        ),
        (
            "regular_timestamps",
            {"seconds_between_clip_starts": math.inf},
            "seconds_between_clip_starts (inf) must be > 0, and a number of seconds",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(
    kind: str, params: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError) as caught:
        ours(kind, Video(), params, 0)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("video", "told"),
    [
        (Video(average_fps=None), "Could not infer average fps"),
        (Video(end_seconds=None), "Could not infer stream end"),
        (Video(num_frames=0), "a video must have at least one frame, found 0 frames"),
    ],
)
def test_a_video_of_which_too_little_is_known_is_refused(video: Video, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        ours("random_timestamps", video, {}, 0)
    assert str(caught.value).startswith(told)
