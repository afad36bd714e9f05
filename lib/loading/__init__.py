"""From shards to training tensors: readers of video, samplers of clips, iterable datasets.

What is here gives ``torch`` tensors and needs the extra ``reelmill[torch]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.loading.batch import FrameBatch
    from reelmill.loading.dataset import Dataset, Stream, load
    from reelmill.loading.loader import Loader, collate
    from reelmill.loading.random_access import RandomAccess
    from reelmill.loading.readers import VideoMetadata, VideoReader
    from reelmill.loading.trace import Trace

_PUBLIC = {
    "Dataset": "reelmill.loading.dataset",
    "FrameBatch": "reelmill.loading.batch",
    "Loader": "reelmill.loading.loader",
    "RandomAccess": "reelmill.loading.random_access",
    "Stream": "reelmill.loading.dataset",
    "Trace": "reelmill.loading.trace",
    "VideoMetadata": "reelmill.loading.readers",
    "VideoReader": "reelmill.loading.readers",
    "collate": "reelmill.loading.loader",
    "load": "reelmill.loading.dataset",
}

__all__ = [
    "Dataset",
    "FrameBatch",
    "Loader",
    "RandomAccess",
    "Stream",
    "Trace",
    "VideoMetadata",
    "VideoReader",
    "collate",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reelmill.loading' has no attribute '{name}'")
