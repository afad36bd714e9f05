"""Dense optical flow: how far each pixel moves from one picture to another, in pixels, x then y."""

from __future__ import annotations

from reelmill.media.flow.dense import MIN_SIDE, FlowMethod, Gray, flow
from reelmill.media.flow.estimators import (
    PRESETS,
    RAFT_BATCH,
    Dense,
    Estimator,
    Method,
    estimator,
)
from reelmill.media.flow.fields import (
    Flow,
    Mask,
    encode_mask,
    mean_motion,
    occluded,
    rescaled,
    rescaled_mask,
)
from reelmill.media.flow.formats import (
    ENDINGS,
    Format,
    decode,
    decode_flo,
    decode_kitti,
    decode_npy,
    encode,
    encode_flo,
    encode_kitti,
    encode_npy,
)

__all__ = [
    "ENDINGS",
    "MIN_SIDE",
    "PRESETS",
    "RAFT_BATCH",
    "Dense",
    "Estimator",
    "Flow",
    "FlowMethod",
    "Format",
    "Gray",
    "Mask",
    "Method",
    "decode",
    "decode_flo",
    "decode_kitti",
    "decode_npy",
    "encode",
    "encode_flo",
    "encode_kitti",
    "encode_mask",
    "encode_npy",
    "estimator",
    "flow",
    "mean_motion",
    "occluded",
    "rescaled",
    "rescaled_mask",
]
