"""Scene cuts: PySceneDetect's, to the frame, from scores that can be kept.

Frames are scored once for all detectors (:func:`score`); detectors then find cuts in the scores
(:func:`find`), which costs next to nothing. :mod:`.contract` says how a new measure or detector
joins in.
"""

from __future__ import annotations

from collections.abc import Sequence

from reelmill.media.decode import Device
from reelmill.media.probe import Source
from reelmill.media.scenes.contract import Clock, Scores
from reelmill.media.scenes.detectors import (
    KINDS,
    AdaptiveDetector,
    AnyDetector,
    ContentDetector,
    Detector,
    HashDetector,
    HistogramDetector,
    Kind,
    ThresholdDetector,
    TransNetV2Detector,
    chosen,
)
from reelmill.media.scenes.find import Finder, find, spans
from reelmill.media.scenes.scores import score
from reelmill.media.spans import Span

__all__ = [
    "KINDS",
    "AdaptiveDetector",
    "AnyDetector",
    "Clock",
    "ContentDetector",
    "Detector",
    "Finder",
    "HashDetector",
    "HistogramDetector",
    "Kind",
    "Scores",
    "ThresholdDetector",
    "TransNetV2Detector",
    "chosen",
    "detect",
    "find",
    "score",
    "spans",
]


def detect(
    source: Source,
    detectors: Sequence[Detector],
    *,
    jobs: int = 1,
    exact: bool = True,
    device: Device = "cpu",
) -> list[Span]:
    """The scenes of the best video stream: gap-free ``[start, end)`` spans in seconds on its own
    clock, from its first frame to the end of its last; a single one where nothing is cut.

    Every start is the pts of a frame, so spans stay exact at variable frame rates. The cuts are
    those of the ``scenedetect`` command on its PyAV backend. ``jobs``, ``exact``, ``device`` and
    what is raised are as in :func:`score`.
    """
    scores = score(source, detectors, jobs=jobs, exact=exact, device=device)
    return spans(scores, find(scores, detectors))
