"""From scores to cuts, and from cuts to spans."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from reelmill.media.scenes.contract import Clock, Detector, Row, Scores
from reelmill.media.scenes.scores import Scoring, needed
from reelmill.media.spans import Span


class Finder:
    """Finds the cuts of one video while others look at its frames too: an encoder's loop feeds it
    each frame, in presentation order, and learns which cuts are now certain."""

    def __init__(self, detectors: Sequence[Detector], clock: Clock) -> None:
        self._scoring = Scoring(needed(detectors))
        self._searches = [detector.start(clock) for detector in detectors]
        self._pts: deque[int] = deque()
        self._first: int | None = None

    def feed(self, frame: Any, pts: int) -> list[int]:
        """Take the next frame; the pts of cuts that are now certain, each the first frame of a
        scene. Several detectors may give one cut more than once."""
        if self._first is None:
            self._first = pts
        self._pts.append(pts)
        return self._pushed(self._scoring.feed(frame))

    def finish(self) -> list[int]:
        """The cuts that only the end of the video makes certain."""
        cuts = self._pushed(self._scoring.finish())
        cuts += (cut for search in self._searches for cut in search.finish())
        return self._behind_first(cuts)

    @property
    def settled(self) -> int | None:
        """All cuts at or before this pts have been given; None where that is true of no frame."""
        ends = [search.settled for search in self._searches]
        known = [end for end in ends if end is not None]
        return min(known) if len(known) == len(ends) else None

    def _pushed(self, rows: Iterable[Row]) -> list[int]:
        cuts: list[int] = []
        for row in rows:
            pts = self._pts.popleft()
            named = dict(zip(self._scoring.columns, row, strict=True))
            cuts += (cut for search in self._searches for cut in search.push(pts, named))
        return self._behind_first(cuts)

    def _behind_first(self, cuts: Iterable[int]) -> list[int]:
        return [cut for cut in cuts if self._first is not None and cut > self._first]


def find(scores: Scores, detectors: Sequence[Detector]) -> list[int]:
    """The pts of the cuts that any of the detectors finds, ascending: each is that of a frame, the
    first of its scene. The beginning of the video is none."""
    searches = [detector.start(scores.clock) for detector in detectors]
    cuts: set[int] = set()
    names = tuple(scores.columns)
    rows = zip(*(scores.columns[name].tolist() for name in names), strict=True)
    for pts, row in zip(scores.pts.tolist(), rows, strict=True):
        named = dict(zip(names, row, strict=True))
        for search in searches:
            cuts.update(search.push(pts, named))
    for search in searches:
        cuts.update(search.finish())
    first = int(scores.pts.min())
    return sorted(cut for cut in cuts if cut > first)


def spans(scores: Scores, cuts: Sequence[int]) -> list[Span]:
    """Gap-free ``[start, end)`` in seconds on the video's own clock, from its first frame to the
    end of its last, parted at ``cuts``."""
    tick = scores.clock.time_base
    edges = [int(scores.pts.min()), *cuts, scores.end]
    return [(a * tick, b * tick) for a, b in pairwise(edges)]
