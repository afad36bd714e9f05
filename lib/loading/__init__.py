"""From shards to training tensors: readers of video, samplers of clips, iterable datasets.

What is here gives ``torch`` tensors and needs the extra ``reelmill[torch]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.loading.assemble import Assembler
    from reelmill.loading.associate import Associate
    from reelmill.loading.batch import FrameBatch
    from reelmill.loading.cache import ShardCache
    from reelmill.loading.containers import (
        decode_msgpack,
        decode_tenbin,
        encode_msgpack,
        encode_tenbin,
    )
    from reelmill.loading.dataset import Dataset, Stream, load
    from reelmill.loading.decoders import Decoder, decoder
    from reelmill.loading.loader import Loader, collate
    from reelmill.loading.openers import ShardOpener
    from reelmill.loading.pictures import FlowField
    from reelmill.loading.random_access import RandomAccess
    from reelmill.loading.readers import VideoMetadata, VideoReader, backends, open_video
    from reelmill.loading.samplers import (
        clips_at_random_indices,
        clips_at_random_timestamps,
        clips_at_regular_indices,
        clips_at_regular_timestamps,
        sample_clips,
    )
    from reelmill.loading.select import Selection
    from reelmill.loading.trace import Trace
    from reelmill.loading.videos import VideoAndAudio, torch_video, video

_PUBLIC = {
    "Assembler": "reelmill.loading.assemble",
    "Associate": "reelmill.loading.associate",
    "Dataset": "reelmill.loading.dataset",
    "Decoder": "reelmill.loading.decoders",
    "FlowField": "reelmill.loading.pictures",
    "FrameBatch": "reelmill.loading.batch",
    "Loader": "reelmill.loading.loader",
    "RandomAccess": "reelmill.loading.random_access",
    "Selection": "reelmill.loading.select",
    "ShardCache": "reelmill.loading.cache",
    "ShardOpener": "reelmill.loading.openers",
    "Stream": "reelmill.loading.dataset",
    "Trace": "reelmill.loading.trace",
    "VideoAndAudio": "reelmill.loading.videos",
    "VideoMetadata": "reelmill.loading.readers",
    "VideoReader": "reelmill.loading.readers",
    "backends": "reelmill.loading.readers",
    "clips_at_random_indices": "reelmill.loading.samplers",
    "clips_at_random_timestamps": "reelmill.loading.samplers",
    "clips_at_regular_indices": "reelmill.loading.samplers",
    "clips_at_regular_timestamps": "reelmill.loading.samplers",
    "collate": "reelmill.loading.loader",
    "decode_msgpack": "reelmill.loading.containers",
    "decode_tenbin": "reelmill.loading.containers",
    "decoder": "reelmill.loading.decoders",
    "encode_msgpack": "reelmill.loading.containers",
    "encode_tenbin": "reelmill.loading.containers",
    "load": "reelmill.loading.dataset",
    "open_video": "reelmill.loading.readers",
    "sample_clips": "reelmill.loading.samplers",
    "torch_video": "reelmill.loading.videos",
    "video": "reelmill.loading.videos",
}

__all__ = [
    "Assembler",
    "Associate",
    "Dataset",
    "Decoder",
    "FlowField",
    "FrameBatch",
    "Loader",
    "RandomAccess",
    "Selection",
    "ShardCache",
    "ShardOpener",
    "Stream",
    "Trace",
    "VideoAndAudio",
    "VideoMetadata",
    "VideoReader",
    "backends",
    "clips_at_random_indices",
    "clips_at_random_timestamps",
    "clips_at_regular_indices",
    "clips_at_regular_timestamps",
    "collate",
    "decode_msgpack",
    "decode_tenbin",
    "decoder",
    "encode_msgpack",
    "encode_tenbin",
    "load",
    "open_video",
    "sample_clips",
    "torch_video",
    "video",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reelmill.loading' has no attribute '{name}'")
