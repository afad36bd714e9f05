"""Clips out of a video, by four ways to place them: TorchCodec's samplers, over every reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from reelmill.loading.batch import FrameBatch
from reelmill.loading.readers import VideoReader
from reelmill.loading.samplers import plan
from reelmill.loading.samplers.plan import Policy
from reelmill.loading.samplers.sources import is_decoder, opened

Kind: TypeAlias = Literal[
    "random_indices", "regular_indices", "random_timestamps", "regular_timestamps"
]


def clips_at_random_indices(
    source: Any,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **opening: Any,
) -> FrameBatch:
    """Clips that begin at random frames.

    Parameters, defaults and draws are those of TorchCodec's sampler of the same name, which is
    what is called where the video is a decoder of TorchCodec's, or a reader over one.

    Args:
        source: a ``VideoReader``; a ``torchcodec.decoders.VideoDecoder``; what ``open_video`` takes
            (a path, bytes, a file, a shard and a sample of it); or a sample with one field that is
            a video.
        num_clips: how many clips.
        num_frames_per_clip: how many frames each has.
        num_indices_between_frames: 1 takes every frame, 2 every second one.
        sampling_range_start: the first frame that a clip may begin at; negative from the end.
        sampling_range_end: the frame behind the last that a clip may begin at; negative from the
            end. None: so that every clip ends within the video.
        policy: how a clip that reaches beyond the end is filled up: ``repeat_last`` repeats its
            last frame, ``wrap`` its frames from the first on, ``error`` raises.
        seed: of a generator of its own. The same one gives the same clips whatever decodes them.
        generator: to draw from, in turn with others. Without either, torch's own is drawn from.
        opening: keywords of ``open_video`` for a ``source`` that is not open yet: ``backend``,
            ``device``, ``mode``, ``output_format``.

    Returns:
        ``data`` of shape (num_clips, num_frames_per_clip, C, H, W), or (…, H, W, C) where the
        reader gives frames so; the times of shape (num_clips, num_frames_per_clip). A frame that
        several clips hold is decoded once.

    Raises:
        ValueError: a parameter makes no sense, or not for this video.
        Rejected: ``undecodable`` where a frame cannot be decoded; ``no_video`` for a sample that
            has none.
        ReelmillError: a sample has several videos, or one that has been decoded already.
        And as ``open_video`` does where the video is opened here.
    """
    return _sampled(
        "random_indices",
        source,
        {
            "num_clips": num_clips,
            "num_frames_per_clip": num_frames_per_clip,
            "num_indices_between_frames": num_indices_between_frames,
            "sampling_range_start": sampling_range_start,
            "sampling_range_end": sampling_range_end,
            "policy": policy,
        },
        generator_of(seed, generator),
        opening,
    )


def clips_at_regular_indices(
    source: Any,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
    **opening: Any,
) -> FrameBatch:
    """Clips that begin at evenly spread frames, the ends of the range included; starts repeat where
    there are more clips than frames to begin at. As :func:`clips_at_random_indices` otherwise."""
    return _sampled(
        "regular_indices",
        source,
        {
            "num_clips": num_clips,
            "num_frames_per_clip": num_frames_per_clip,
            "num_indices_between_frames": num_indices_between_frames,
            "sampling_range_start": sampling_range_start,
            "sampling_range_end": sampling_range_end,
            "policy": policy,
        },
        None,
        opening,
    )


def clips_at_random_timestamps(
    source: Any,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **opening: Any,
) -> FrameBatch:
    """Clips that begin at random times: the frames that are shown then.

    As :func:`clips_at_random_indices`, but for:

    Args:
        seconds_between_frames: from one frame of a clip to the next; None: ``1 / average_fps``.
        sampling_range_start: when the first clip may begin, in seconds; None: with the video.
        sampling_range_end: until when clips may begin, not included. None: so that every clip ends
            within the video.
    """
    return _sampled(
        "random_timestamps",
        source,
        {
            "num_clips": num_clips,
            "num_frames_per_clip": num_frames_per_clip,
            "seconds_between_frames": seconds_between_frames,
            "sampling_range_start": sampling_range_start,
            "sampling_range_end": sampling_range_end,
            "policy": policy,
        },
        generator_of(seed, generator),
        opening,
    )


def clips_at_regular_timestamps(
    source: Any,
    *,
    seconds_between_clip_starts: float,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
    **opening: Any,
) -> FrameBatch:
    """Clips that begin every ``seconds_between_clip_starts``, as many as there is room for. As
    :func:`clips_at_random_timestamps` otherwise."""
    return _sampled(
        "regular_timestamps",
        source,
        {
            "seconds_between_clip_starts": seconds_between_clip_starts,
            "num_frames_per_clip": num_frames_per_clip,
            "seconds_between_frames": seconds_between_frames,
            "sampling_range_start": sampling_range_start,
            "sampling_range_end": sampling_range_end,
            "policy": policy,
        },
        None,
        opening,
    )


def generator_of(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    """What to draw from; None for torch's own. Raises ValueError where both are given."""
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError("seed and generator both say what to draw from: give one of them")
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class _Way:
    """One way to place clips: its plan, the checks that come before it, and whether it draws."""

    planned: Callable[..., list[list[Any]]]
    checked: Callable[..., object]
    draws: bool
    by_time: bool


_WAYS: dict[Kind, _Way] = {
    "random_indices": _Way(plan.random_indices, plan.index_range, True, False),
    "regular_indices": _Way(plan.regular_indices, plan.index_range, False, False),
    "random_timestamps": _Way(plan.random_timestamps, plan.time_range, True, True),
    "regular_timestamps": _Way(plan.regular_timestamps, plan.time_range, False, True),
}


def _sampled(
    kind: Kind,
    source: Any,
    params: Mapping[str, Any],
    generator: torch.Generator | None,
    opening: Mapping[str, Any],
) -> FrameBatch:
    way = _WAYS[kind]
    with opened(source, opening) as video:
        if (decoder := _decoder_of(video)) is not None:
            way.checked(_extent(decoder), **params)
            return _by_torchcodec(kind, decoder, params, generator)
        drawing = {"generator": generator} if way.draws else {}
        clips = way.planned(video.metadata, **params, **drawing)
        return _read(video, clips, way.by_time)


def _read(reader: VideoReader, clips: list[list[Any]], by_time: bool) -> FrameBatch:
    """The frames of clips, given by number or by time; the reader sees to it that one which several
    clips hold is decoded once."""
    flat = [one for clip in clips for one in clip]
    numbers = reader.indices_at(flat) if by_time else flat
    data = reader.read_frames(numbers)
    shape = len(clips), len(clips[0])
    begins, durations = (times.reshape(shape) for times in reader.times(numbers))
    return FrameBatch(data.reshape(*shape, *data.shape[1:]), begins, durations)


class _Metadata(NamedTuple):
    """Of a video, under the names that TorchCodec has for it."""

    begin_stream_seconds: float
    end_stream_seconds: float | None
    average_fps: float | None


class _Extent(NamedTuple):
    """The same under ours; see :class:`~reelmill.loading.samplers.plan.Extent`."""

    num_frames: int
    begin_seconds: float
    end_seconds: float | None
    average_fps: float | None


class _AsDecoder:
    """A reader over TorchCodec's decoder, in the shape of the decoder.

    So the sampler is TorchCodec's, and what a reader adds stays: it makes sure that frames are the
    ones that were asked for, and may be shared and sent to other processes.
    """

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader
        about = reader.metadata
        self.metadata = _Metadata(about.begin_seconds, about.end_seconds, about.average_fps)

    def __len__(self) -> int:
        return len(self._reader)

    def get_frames_at(self, indices: list[int]) -> FrameBatch:
        return FrameBatch(self._reader.read_frames(indices), *self._reader.times(indices))

    def get_frames_played_at(self, seconds: list[Any]) -> FrameBatch:
        # TorchCodec gives a tensor for each.
        return self.get_frames_at(self._reader.indices_at([float(one) for one in seconds]))


def _decoder_of(video: Any) -> Any:
    """What TorchCodec's samplers are to be called with, if they are."""
    if is_decoder(video):
        return video
    return _AsDecoder(video) if video.backend == "torchcodec" else None


def _extent(decoder: Any) -> _Extent:
    about = decoder.metadata
    end, rate = about.end_stream_seconds, about.average_fps
    return _Extent(len(decoder), about.begin_stream_seconds, end, rate)


def _by_torchcodec(
    kind: Kind, decoder: Any, params: Mapping[str, Any], generator: torch.Generator | None
) -> FrameBatch:
    from torchcodec import samplers

    drawing: AbstractContextManager[object] = (
        nullcontext() if generator is None else _DrawnFrom(generator)
    )
    with drawing:
        clips = getattr(samplers, f"clips_at_{kind}")(decoder, **params)
    return FrameBatch(clips.data, clips.pts_seconds, clips.duration_seconds)


class _DrawnFrom(TorchFunctionMode):  # type: ignore[misc]
    """Within it, what is drawn in this thread comes from a generator: torch's own state, which
    other threads draw from at the same time, is never touched."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if function in (torch.rand, torch.randint):
            keywords |= {"generator": self.generator, "device": self.generator.device}
        return function(*args, **keywords)
