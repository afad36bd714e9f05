"""Scores of whole videos: one decode for any number of measures, on as many cores as wished."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from reelmill.errors import Rejected
from reelmill.media.decode import Device
from reelmill.media.probe import Source, demux, open_media, video_stream
from reelmill.media.scenes.contract import Clock, Detector, Measure, Row, Scorer, Scores
from reelmill.media.scenes.measures import PairScorer, Pairwise


class Scoring:
    """All measures of one video, fed by one decode: frames in, whole rows out."""

    def __init__(self, measures: Iterable[Measure]) -> None:
        asked = list(dict.fromkeys(measures))
        pairwise = [one for one in asked if isinstance(one, Pairwise)]
        others = [one for one in asked if not isinstance(one, Pairwise)]
        self.pairs = PairScorer(pairwise)
        self.columns = tuple(chain.from_iterable(one.columns for one in (*pairwise, *others)))
        scorers: list[Scorer] = [self.pairs] if pairwise else []
        scorers += [one.start() for one in others]
        self._scorers = [(scorer, deque[Row]()) for scorer in scorers]

    def feed(self, frame: Any) -> list[Row]:
        """Take the next frame; the rows that are now whole, in order of frames and of columns."""
        for scorer, ready in self._scorers:
            ready += scorer.feed(frame)
        return list(self._whole())

    def finish(self) -> list[Row]:
        """The rows still owed."""
        for scorer, ready in self._scorers:
            ready += scorer.finish()
        return list(self._whole())

    def _whole(self) -> Iterator[Row]:
        while self._scorers and all(ready for _, ready in self._scorers):
            parts = (ready.popleft() for _, ready in self._scorers)
            yield tuple(chain.from_iterable(parts))


@dataclass(frozen=True)
class Piece:
    """Rows of consecutive frames of a video, scored by a scoring of their own."""

    pts: list[int]
    rows: list[Row]
    end: int
    scoring: Scoring


def score(
    source: Source,
    detectors: Sequence[Detector],
    *,
    jobs: int = 1,
    exact: bool = True,
    device: Device = "cpu",
) -> Scores:
    """All that ``detectors`` need to know of the best video stream of ``source``.

    With several ``jobs`` a long video is decoded in as many pieces at a time, on threads; the
    scores are the same. A file object is read by one. Unless ``exact``, only some frames are
    looked at: see :mod:`~reelmill.media.scenes.skim`.

    With the device ``cuda`` a card decodes and scores it, unless it cannot: then the CPU does. The
    scores are the same, but for the last digits of TransNetV2's.

    Raises ``ValueError`` where ``exact`` is needed: a detector finds its cuts among all frames, or
    needs scores that are not of two pictures, or a card is to score. Raises
    :class:`~reelmill.errors.Rejected` as :func:`~reelmill.media.probe.probe` does, and
    ``undecodable`` where no frame can be decoded or converted; with ``cuda`` also
    :class:`~reelmill.errors.StageError` or :class:`~reelmill.errors.MissingDependencyError` where
    there is no card or a package is missing.
    """
    measures = needed(detectors)
    if not exact:
        from reelmill.media.scenes.skim import skim

        if device == "cuda":
            raise ValueError("a card looks at all frames: say device: cpu, or leave scores exact")
        if needing := [one.kind for one in detectors if not one.skims]:
            raise ValueError(f"detector {' and '.join(needing)} must look at all frames")
        skimmed = skim(source, measures)
        return _on_cpu(source, measures, jobs) if skimmed is None else skimmed
    if device == "cpu":
        return _on_cpu(source, measures, jobs)
    # Imported here: with NVIDIA's packages, and torch.
    from reelmill.media.gpu import scoring, sources

    return sources.on_device(
        device,
        lambda: scoring.score(source, measures),
        lambda: _on_cpu(source, measures, jobs),
    )


def _on_cpu(source: Source, measures: Sequence[Measure], jobs: int) -> Scores:
    from reelmill.media.scenes.ranges import in_ranges

    pieces = in_ranges(source, measures, jobs)
    if pieces is None:
        with open_media(source) as container:
            stream = video_stream(container)
            clock = clock_of(stream)
            pieces = clock, [one_pass(container, stream, measures)]
    return _joined(*pieces)


def needed(detectors: Sequence[Detector]) -> list[Measure]:
    """The measures that detectors read, each once."""
    return list(dict.fromkeys(chain.from_iterable(one.measures for one in detectors)))


def clock_of(stream: Any) -> Clock:
    """How a PyAV video stream tells time, as PySceneDetect takes it."""
    rate = Fraction(stream.guessed_rate or stream.average_rate or 25)
    return Clock(Fraction(stream.time_base), rate, stream.start_time or 0)


def one_pass(container: Any, stream: Any, measures: Sequence[Measure]) -> Piece:
    """Score a stream from where its container stands to its end."""
    piece = Piece([], [], 0, Scoring(measures))
    end = stream.start_time or 0
    for packet in demux(container, [stream]):
        for frame in decoded(stream, packet):
            pts = end if frame.pts is None else frame.pts
            end = pts + max(frame.duration or 0, 1)
            piece.pts.append(pts)
            piece.rows.extend(piece.scoring.feed(frame))
    piece.rows.extend(piece.scoring.finish())
    return Piece(piece.pts, piece.rows, end, piece.scoring)


def decoded(stream: Any, packet: Any | None) -> Any:
    """The frames that a packet completes, or that are left in the decoder behind the last (None):
    none where it is damaged."""
    try:
        return stream.decode(packet)
    except av.FFmpegError:
        return []


def _joined(clock: Clock, pieces: Sequence[Piece]) -> Scores:
    rows: list[Row] = []
    before: tuple[Any, ...] | None = None
    for piece in pieces:
        pairs = piece.scoring.pairs
        if before is not None and piece.rows:
            # The first row of a piece knew of no frame before it; what scorers saw of both is kept.
            assert pairs.first is not None
            piece.rows[0] = pairs.compare(before, pairs.first)
        rows += piece.rows
        before = pairs.last
    pts = np.array([at for piece in pieces for at in piece.pts], dtype=np.int64)
    if not len(pts):
        raise Rejected("undecodable", "no frame of the video can be decoded")
    columns = pieces[0].scoring.columns
    values = np.array(rows, dtype=np.float64).reshape(len(pts), len(columns))
    end = max(pieces[-1].end, int(pts.max()) + 1)
    by_name = {name: values[:, i].copy() for i, name in enumerate(columns)}
    return Scores(clock, pts, end, by_name)
