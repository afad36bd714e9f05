"""Which frames make up clips: pure, from what is known of a video and what is asked of it.

The draws are those of TorchCodec's samplers, number for number: the same generator gives the same
clips there and here.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

Policy: TypeAlias = Literal["repeat_last", "wrap", "error"]
"""How a clip that reaches beyond the end of the video is filled up: with its last frame, with its
frames over again, or not at all."""

POLICIES: tuple[Policy, ...] = get_args(Policy)

T = TypeVar("T", int, float)


class Extent(Protocol):
    """What is known of a video before a frame is decoded; ``VideoMetadata`` is one.

    A rate or an end of None is one that its header does not give.
    """

    @property
    def num_frames(self) -> int: ...
    @property
    def begin_seconds(self) -> float: ...
    @property
    def end_seconds(self) -> float | None: ...
    @property
    def average_fps(self) -> float | None: ...


def random_indices(
    video: Extent,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
    generator: Any = None,
) -> list[list[int]]:
    """Frame numbers of clips that begin anywhere, each start as likely as any other.

    ``generator`` is a ``torch.Generator``; without one torch's own state is drawn from. For the
    rest see :func:`~reelmill.loading.clips_at_random_indices`.

    Raises:
        ValueError: it makes no sense, or not for this video.
    """
    import torch

    first, end = index_range(
        video,
        num_clips=num_clips,
        num_frames_per_clip=num_frames_per_clip,
        num_indices_between_frames=num_indices_between_frames,
        sampling_range_start=sampling_range_start,
        sampling_range_end=sampling_range_end,
        policy=policy,
    )
    starts = torch.randint(low=first, high=end, size=(num_clips,), **_drawn(generator))
    return _index_clips(
        starts.tolist(), video, num_frames_per_clip, num_indices_between_frames, policy
    )


def regular_indices(
    video: Extent,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> list[list[int]]:
    """Frame numbers of clips whose starts are evenly spread, both ends of the range included;
    where there are more clips than frames to begin at, starts repeat. Raises ValueError as
    :func:`random_indices` does."""
    import torch

    first, end = index_range(
        video,
        num_clips=num_clips,
        num_frames_per_clip=num_frames_per_clip,
        num_indices_between_frames=num_indices_between_frames,
        sampling_range_start=sampling_range_start,
        sampling_range_end=sampling_range_end,
        policy=policy,
    )
    # Of whole numbers, linspace rounds in a way of its own: torch's is the one to follow.
    starts = torch.linspace(first, end - 1, steps=num_clips, dtype=torch.int, device="cpu")
    return _index_clips(
        starts.tolist(), video, num_frames_per_clip, num_indices_between_frames, policy
    )


def random_timestamps(
    video: Extent,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
    generator: Any = None,
) -> list[list[float]]:
    """Seconds of clips that begin at any time, each as likely as any other. Raises ValueError as
    :func:`random_indices` does."""
    import torch

    start, end, between = time_range(
        video,
        num_clips=num_clips,
        num_frames_per_clip=num_frames_per_clip,
        seconds_between_frames=seconds_between_frames,
        sampling_range_start=sampling_range_start,
        sampling_range_end=sampling_range_end,
        policy=policy,
    )
    drawn = torch.rand(num_clips, dtype=torch.float64, **_drawn(generator))
    # The share is below 1, and yet a sum of floats may be rounded up to the end, which is open.
    last = math.nextafter(end, -math.inf)
    starts = [min(share * (end - start) + start, last) for share in drawn.tolist()]
    return _time_clips(starts, video, num_frames_per_clip, between, policy)


def regular_timestamps(
    video: Extent,
    *,
    seconds_between_clip_starts: float,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> list[list[float]]:
    """Seconds of clips that begin every ``seconds_between_clip_starts``, as many as the range has
    room for. Raises ValueError as :func:`random_indices` does."""
    import torch

    start, end, between = time_range(
        video,
        seconds_between_clip_starts=seconds_between_clip_starts,
        num_frames_per_clip=num_frames_per_clip,
        seconds_between_frames=seconds_between_frames,
        sampling_range_start=sampling_range_start,
        sampling_range_end=sampling_range_end,
        policy=policy,
    )
    steps = torch.arange(start, end, seconds_between_clip_starts, dtype=torch.float64, device="cpu")
    # arange says itself that rounding may take its last value to the end, or beyond.
    starts = [step for step in steps.tolist() if step < end]
    return _time_clips(starts, video, num_frames_per_clip, between, policy)


def index_range(
    video: Extent,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> tuple[int, int]:
    """The first frame that a clip may begin at, and the one behind the last: both from 0 up.

    Raises:
        ValueError: there is none, or a parameter makes no sense.
    """
    count = video.num_frames
    _check_clips(count, num_frames_per_clip, policy)
    _check_count("num_clips", num_clips)
    if num_indices_between_frames < 1:
        raise ValueError(
            f"num_indices_between_frames ({num_indices_between_frames}) must be strictly positive: "
            "1 is every frame"
        )
    start = sampling_range_start + (count if sampling_range_start < 0 else 0)
    if start < 0:
        raise ValueError(
            f"sampling_range_start ({sampling_range_start}) must be at least {-count}: the video "
            f"has {count} frames"
        )
    if start >= count:
        raise ValueError(
            f"sampling_range_start ({start}) must be smaller than the number of frames ({count})"
        )
    if sampling_range_end is None:
        span = num_indices_between_frames * (num_frames_per_clip - 1) + 1
        end = max(count - span + 1, 1)
        if start >= end:
            raise ValueError(
                f"We determined that sampling_range_end should be {end}, so that clips of {span} "
                f"frames end within the {count} of the video, but sampling_range_start ({start}) "
                "is not smaller: give sampling_range_end, or ask for shorter clips"
            )
        return start, end
    end = min(sampling_range_end + (count if sampling_range_end < 0 else 0), count)
    if start >= end:
        raise ValueError(
            f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end}), "
            "which is open"
        )
    return start, end


def time_range(
    video: Extent,
    *,
    num_clips: int = 1,
    seconds_between_clip_starts: float = 1.0,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> tuple[float, float, float]:
    """When clips may begin: from (included) and until (not included); and the time between two
    frames of a clip. All in seconds, on the video's clock.

    Raises:
        ValueError: there is no such time, or a parameter makes no sense.
    """
    _check_clips(video.num_frames, num_frames_per_clip, policy)
    _check_seconds("seconds_between_clip_starts", seconds_between_clip_starts)
    _check_count("num_clips", num_clips)
    if not video.average_fps:
        raise ValueError(
            "Could not infer average fps from video metadata: use a sampler by indices instead"
        )
    if video.end_seconds is None:
        raise ValueError(
            "Could not infer stream end from video metadata: use a sampler by indices instead"
        )
    between = 1 / video.average_fps if seconds_between_frames is None else seconds_between_frames
    _check_seconds("seconds_between_frames", between)
    begin, over = video.begin_seconds, video.end_seconds
    start = begin if sampling_range_start is None else sampling_range_start
    if not start >= begin:
        raise ValueError(f"sampling_range_start ({start}) must be at least {begin}: frames begin")
    if sampling_range_start is not None and start >= over:
        raise ValueError(f"sampling_range_start ({start}) must be smaller than {over}: frames end")
    end = sampling_range_end
    if end is None:
        end = over - (num_frames_per_clip - 1) * between
    elif not end > begin:
        raise ValueError(
            f"sampling_range_end ({end}) must be at least {begin}, and more: it is open"
        )
    if start >= end:
        raise ValueError(
            f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end})"
            + _for_short(video, num_frames_per_clip, between, sampling_range_end)
        )
    return start, min(end, over), between


def _for_short(video: Extent, frames: int, between: float, asked: float | None) -> str:
    """What to do about a video that is too short for its clips."""
    if asked is not None:
        return ", which is open"
    assert video.end_seconds is not None
    length = video.end_seconds - video.begin_seconds
    return (
        f", which was determined so that clips of {frames} frames, {between:g} s apart, end within "
        f"a video of {length:g} s: give sampling_range_end, or ask for shorter clips"
    )


def _check_clips(frames: int, num_frames_per_clip: int, policy: str) -> None:
    if frames < 1:
        raise ValueError(f"a video must have at least one frame, found {frames} frames")
    if num_frames_per_clip < 1:
        raise ValueError(f"num_frames_per_clip ({num_frames_per_clip}) must be strictly positive")
    if policy not in POLICIES:
        raise ValueError(f"Invalid policy ({policy}): there are {', '.join(POLICIES)}")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be > 0")


def _check_seconds(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} ({value}) must be > 0, and a number of seconds")


def _drawn(generator: Any) -> dict[str, Any]:
    """Keywords of torch's functions that draw."""
    return {} if generator is None else {"generator": generator, "device": generator.device}


def _index_clips(
    starts: list[int], video: Extent, frames: int, between: int, policy: Policy
) -> list[list[int]]:
    span = between * (frames - 1) + 1
    return [
        _filled(list(range(start, min(start + span, video.num_frames), between)), frames, policy)
        for start in starts
    ]


def _time_clips(
    starts: list[float], video: Extent, frames: int, between: float, policy: Policy
) -> list[list[float]]:
    over = video.end_seconds
    assert over is not None
    return [
        _filled(
            [at for number in range(frames) if (at := start + number * between) < over],
            frames,
            policy,
        )
        for start in starts
    ]


def _filled(clip: list[T], frames: int, policy: Policy) -> list[T]:
    """``clip``, of at least one frame, with as many as it should have."""
    missing = frames - len(clip)
    if missing == 0:
        return clip
    if policy == "error":
        raise ValueError(
            f"a clip that starts at {clip[0]} asks for {missing} frames beyond the number of "
            "frames in the video, and the policy is 'error': leave sampling_range_end to its "
            "default, or take policy 'repeat_last' or 'wrap'"
        )
    if policy == "wrap":
        return [clip[number % len(clip)] for number in range(frames)]
    return clip + [clip[-1]] * missing
