"""Most cuts for a fraction of the work: keyframes first, then only what they leave in doubt.

An encoder says a good deal about cuts. Many put a keyframe at each one, and where they do not, the
first packet of a new scene is large, since nothing before it helps to predict it. So keyframes
alone are decoded, and packets are weighed; a group of pictures is looked into where a packet in it
stands out, without the frames that no other refers to. Fades and slow changes are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from reelmill.media.probe import Source, demux, open_media, video_stream
from reelmill.media.scenes.contract import Clock, Measure, Row, Scores
from reelmill.media.scenes.measures import Content, PairScorer, Pairwise
from reelmill.media.scenes.scores import clock_of, decoded

LARGE = 0.5
"""A packet of this share of its keyframe's size may begin a scene."""

SPIKE = 2.0
"""So may one that is larger by this factor than any of those just before it."""

NEAR = 5
"""Packets about a large one in which frames are looked at one by one."""

SAME = 20.0
"""Keyframes whose hue, saturation and value differ by less than this on average (0 to 255) are of
one scene: what stands out between them is no cut."""

SHORT = 12
"""Frames of a group of pictures that is taken to be cut at its end if it is cut at all."""


@dataclass(frozen=True)
class _Group:
    """A keyframe and the packets up to the next: how many, and which of them stand out."""

    start: int
    packets: int
    large: tuple[int, ...]


def skim(source: Source, measures: Sequence[Measure]) -> Scores | None:
    """Scores of some frames of a video, each compared with the last that was looked at; None where
    its packets do not tell enough, and all frames must be looked at.

    Raises ``ValueError`` where a measure does not compare pictures, and otherwise as
    :func:`~reelmill.media.scenes.scores.score` does.
    """
    pairwise = [one for one in measures if isinstance(one, Pairwise)]
    if len(pairwise) < len(measures):
        raise ValueError("only scores that compare two pictures can be had of some frames alone")
    with open_media(source) as container:
        stream = video_stream(container)
        clock = clock_of(stream)
        # Smoothed edges of blocks would hardly change what is scored.
        stream.codec_context.options |= {"skip_loop_filter": "all"}
        groups, end = _weigh(container, stream)
        rows = _keyframes(container, stream, groups, pairwise) if groups else {}
        if not groups or len(rows) < len(groups):
            # Damaged, or without timestamps, or not to be sought in.
            return None
        seen = dict(rows)
        usual = max(group.packets for group in groups)
        for number, group in enumerate(groups):
            behind = groups[number + 1].start if number + 1 < len(groups) else None
            was_due = SHORT < group.packets == usual
            if was_due and behind is not None:
                # The keyframe behind is no cut, and compared with the one before only a far look.
                rows.pop(behind, None)
            if group.large and not (behind in seen and _is_one_scene(seen[behind], pairwise)):
                rows |= _inside(container, stream, group, None if was_due else behind, pairwise)
    return _scores(clock, rows, end, PairScorer(pairwise))


def _is_one_scene(row: Row, measures: Sequence[Pairwise]) -> bool:
    """Whether a keyframe, by its row, surely shows the scene of the one before."""
    names = [name for measure in measures for name in measure.columns]
    if any(name not in names for name in Content.columns):
        return False
    changes = [row[names.index(name)] for name in Content.columns]
    return sum(changes) / len(changes) < SAME


def _weigh(container: Any, stream: Any) -> tuple[list[_Group], int]:
    """The groups of pictures of a stream, and the pts behind its last frame."""
    starts: list[int] = []
    sizes: list[list[int]] = []
    end = 0
    for packet in demux(container, [stream]):
        if not packet.size or packet.pts is None:
            continue
        if packet.is_keyframe:
            starts.append(packet.pts)
            sizes.append([])
        if starts:
            sizes[-1].append(packet.size)
            end = max(end, packet.pts + max(packet.duration or 0, 1))
    groups = [
        _Group(start, len(of_one), tuple(_large(of_one)))
        for start, of_one in zip(starts, sizes, strict=True)
    ]
    return groups, end


def _large(sizes: Sequence[int]) -> Iterator[int]:
    """The places of packets that stand out in a group of pictures, of which the first is whole."""
    for place in range(1, len(sizes)):
        before = sizes[max(1, place - NEAR) : place]
        spike = len(before) == NEAR and sizes[place] >= SPIKE * max(before)
        if spike or sizes[place] >= LARGE * sizes[0]:
            yield place


def _keyframes(
    container: Any, stream: Any, groups: Sequence[_Group], measures: Sequence[Pairwise]
) -> dict[int, Row]:
    """Rows of keyframes by pts, each compared with the keyframe before."""

    def packets() -> Iterator[Any]:
        container.seek(groups[0].start, stream=stream)
        yield from (packet for packet in demux(container, [stream]) if packet.is_keyframe)

    stream.codec_context.skip_frame = "NONKEY"
    scorer = PairScorer(measures)
    return {frame.pts: scorer.feed(frame)[0] for frame in _frames(stream, packets())}


def _inside(
    container: Any,
    stream: Any,
    group: _Group,
    behind: int | None,
    measures: Sequence[Pairwise],
) -> dict[int, Row]:
    """Rows of the frames in a group up to the last packet that stands out, or up to the keyframe
    ``behind``, each compared with the one before. Away from those packets, frames that no other
    refers to are passed over."""
    last = group.packets if behind is not None else min(group.packets, group.large[-1] + NEAR)

    def packets() -> Iterator[Any]:
        container.seek(group.start, stream=stream)
        given = 0
        for packet in demux(container, [stream]):
            if packet.size and (given or (packet.pts == group.start and packet.is_keyframe)):
                near = any(abs(place - given) <= NEAR for place in group.large)
                stream.codec_context.skip_frame = "DEFAULT" if near else "NONREF"
                yield packet
                given += 1
            if given > last:
                return

    scorer = PairScorer(measures)
    rows: dict[int, Row] = {}
    for frame in _frames(stream, packets()):
        if frame.pts >= group.start and (behind is None or frame.pts <= behind):
            rows[frame.pts] = scorer.feed(frame)[0]
    rows.pop(group.start, None)
    return rows


def _frames(stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
    with suppress(av.FFmpegError):
        for packet in packets:
            yield from (frame for frame in decoded(stream, packet) if frame.pts is not None)
    yield from (frame for frame in decoded(stream, None) if frame.pts is not None)


def _scores(clock: Clock, rows: dict[int, Row], end: int, scorer: PairScorer) -> Scores:
    pts = np.array(sorted(rows), dtype=np.int64)
    values = np.array([rows[int(at)] for at in pts], dtype=np.float64).reshape(len(pts), -1)
    names = [name for measure in scorer.measures for name in measure.columns]
    columns = {name: values[:, i].copy() for i, name in enumerate(names)}
    return Scores(clock, pts, max(end, int(pts[-1]) + 1), columns)
