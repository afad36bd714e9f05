"""Shot boundaries, found by PySceneDetect's detectors."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import av
import numpy as np

from reelmill.errors import Rejected
from reelmill.media.probe import Source, demux, open_media, video_stream
from reelmill.media.spans import Span

Detector: TypeAlias = Literal["content", "adaptive", "threshold", "hash", "histogram"]


def detect(
    source: Source,
    *,
    detector: Detector = "content",
    threshold: float | None = None,
    min_scene_seconds: float = 0.6,
) -> list[Span]:
    """The scenes of the best video stream: gap-free ``[start, end)`` spans in seconds on its own
    clock, from its first frame to the end of its last; a single one where nothing is cut.

    Every start is the pts of a frame, so spans stay exact at variable frame rates. ``threshold`` is
    the detector's own (None: its default); after a cut, ``min_scene_seconds`` pass before the next.
    The cuts are those of ``scenedetect.detect`` on its PyAV backend. Raises
    :class:`~reelmill.errors.Rejected` as :func:`~reelmill.media.probe.probe` does.
    """
    # Imported here: OpenCV is not needed to list or copy clips.
    from scenedetect import FrameTimecode
    from scenedetect.common import Timecode

    finder = _detector(detector, threshold, min_scene_seconds)
    cuts: list[Any] = []
    shown: list[int] = []
    with open_media(source) as container:
        stream = video_stream(container)
        time_base = Fraction(stream.time_base)
        origin = stream.start_time or 0
        rate = Fraction(stream.guessed_rate or stream.average_rate or 25)
        position = None
        end = origin
        for frame, picture in _pictures(container, stream):
            pts = end if frame.pts is None else frame.pts
            shown.append(pts)
            end = pts + max(frame.duration or 0, 1)
            position = FrameTimecode(Timecode(pts - origin, time_base), rate)
            cuts += finder.process_frame(position, picture)
        if position is None:
            raise Rejected("undecodable", "no frame of the video can be decoded")
        cuts += finder.post_process(position)
    stamps = np.array(sorted(set(shown)), dtype=np.int64)
    at = sorted({_nearest(stamps, origin + cut.pts * cut.time_base / time_base) for cut in cuts})
    edges = [int(stamps[0]), *(pts for pts in at if pts > stamps[0]), max(end, int(stamps[-1]) + 1)]
    return [(a * time_base, b * time_base) for a, b in pairwise(edges)]


def _detector(name: Detector, threshold: float | None, min_scene_seconds: float) -> Any:
    import scenedetect

    kinds = {
        "content": (scenedetect.ContentDetector, "threshold"),
        "adaptive": (scenedetect.AdaptiveDetector, "adaptive_threshold"),
        "threshold": (scenedetect.ThresholdDetector, "threshold"),
        "hash": (scenedetect.HashDetector, "threshold"),
        "histogram": (scenedetect.HistogramDetector, "threshold"),
    }
    kind, parameter = kinds[name]
    chosen = {} if threshold is None else {parameter: threshold}
    return kind(min_scene_len=float(min_scene_seconds), **chosen)


def _pictures(container: Any, stream: Any) -> Any:
    """Each decodable frame with its BGR picture, shrunk as PySceneDetect shrinks it.

    PySceneDetect's own PyAV stream is not used: it takes the first video stream rather than the
    best one, and turns FFmpeg's log on or leaves its threads to chance.
    """
    import cv2
    from scenedetect.scene_manager import compute_downscale_factor

    width, height = stream.codec_context.width, stream.codec_context.height
    factor = compute_downscale_factor(max(width, height))
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    for packet in demux(container, [stream]):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            try:
                picture = frame.to_ndarray(format="bgr24", width=width, height=height)
            except (av.FFmpegError, ValueError) as error:
                raise Rejected("undecodable", "its colours cannot be converted to RGB") from error
            if factor > 1.0:
                picture = cv2.resize(picture, small, interpolation=cv2.INTER_LINEAR)
            yield frame, picture


def _nearest(stamps: np.ndarray[Any, np.dtype[np.int64]], pts: Fraction) -> int:
    # A fade is placed by frame number, which between uneven frames is no frame's own time.
    right = min(int(np.searchsorted(stamps, float(pts))), len(stamps) - 1)
    left = max(right - 1, 0)
    return int(min(stamps[left], stamps[right], key=lambda stamp: (abs(stamp - pts), stamp)))
