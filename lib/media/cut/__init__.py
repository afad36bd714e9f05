"""Cut clips out of a video: by stream copy at keyframes, or frame-exact by encoding anew."""

from reelmill.media.cut.copy import copy_spans
from reelmill.media.cut.encode import encode_spans
from reelmill.media.cut.output import Audio, Encoding, Size, Variant, Video
from reelmill.media.cut.plan import Clip, CutFailure

__all__ = [
    "Audio",
    "Clip",
    "CutFailure",
    "Encoding",
    "Size",
    "Variant",
    "Video",
    "copy_spans",
    "encode_spans",
]
