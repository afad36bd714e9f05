"""Samplers: clips of frames out of a video, at random or regular places, by frame or by time."""

from __future__ import annotations

from reelmill.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"samplers give tensors of torch, which is not installed (no module {error.name}): "
        "pip install 'reelmill[torch]'"
    ) from error

from reelmill.loading.samplers.pipeline import SampleClips, sample_clips
from reelmill.loading.samplers.plan import Policy
from reelmill.loading.samplers.sampling import (
    clips_at_random_indices,
    clips_at_random_timestamps,
    clips_at_regular_indices,
    clips_at_regular_timestamps,
)

__all__ = [
    "Policy",
    "SampleClips",
    "clips_at_random_indices",
    "clips_at_random_timestamps",
    "clips_at_regular_indices",
    "clips_at_regular_timestamps",
    "sample_clips",
]
