"""From shards to training tensors: readers of video, samplers of clips, iterable datasets.

What is here gives ``torch`` tensors and needs the extra ``reelmill[torch]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.loading.batch import FrameBatch
    from reelmill.loading.readers import VideoMetadata, VideoReader
    from reelmill.loading.samplers import (
        clips_at_random_indices,
        clips_at_random_timestamps,
        clips_at_regular_indices,
        clips_at_regular_timestamps,
        sample_clips,
    )

_PUBLIC = {
    "FrameBatch": "reelmill.loading.batch",
    "VideoMetadata": "reelmill.loading.readers",
    "VideoReader": "reelmill.loading.readers",
    "clips_at_random_indices": "reelmill.loading.samplers",
    "clips_at_random_timestamps": "reelmill.loading.samplers",
    "clips_at_regular_indices": "reelmill.loading.samplers",
    "clips_at_regular_timestamps": "reelmill.loading.samplers",
    "sample_clips": "reelmill.loading.samplers",
}

__all__ = [
    "FrameBatch",
    "VideoMetadata",
    "VideoReader",
    "clips_at_random_indices",
    "clips_at_random_timestamps",
    "clips_at_regular_indices",
    "clips_at_regular_timestamps",
    "sample_clips",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reelmill.loading' has no attribute '{name}'")
