"""Samplers: clips of frames out of a video, at random or regular places, by frame or by time."""

from __future__ import annotations

from reelmill.loading.tensors import torch_module

torch_module()  # or the line that installs it

from reelmill.loading.samplers.pipeline import SampleClips, sample_clips  # noqa: E402
from reelmill.loading.samplers.plan import Policy  # noqa: E402
from reelmill.loading.samplers.sampling import (  # noqa: E402
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
