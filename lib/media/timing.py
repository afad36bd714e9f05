"""When frames are shown: even or not, where keyframes are, and whether it can be believed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reelmill.errors import Rejected
from reelmill.media.packets import PacketTable
from reelmill.media.probe import ratio

MAX_RATE: Final = 10_000
"""Frames a second on average beyond which a stream's clock is broken: cameras of the highest speed
are played back slowly, and what is left of a broken clock is often a tick a frame."""

MAX_STILL: Final = 3600
"""Seconds for which one frame may be shown where others take less than one, if that is longer than
all of them together. Slides and covers of talks, where few frames stand for hours, are no such."""

_REORDER: Final = 16
"""How many packets a codec may hold back to bring pictures into order (H.264's and HEVC's most)."""

_PYRAMID: Final = 4
"""How many packets encoders do hold back, and more."""

_LONGEST: Final = 2**62
"""Ticks that a stream may last: so that they can be counted in 64 bits."""

_TICK: Final = 1.001
"""How far from even spacing a time may lie, in ticks: both it and the line through the first and
the last frame are rounded, each by half a tick, or cut off, by up to one. The rest is for what a
float cannot hold."""


@dataclass(frozen=True, eq=False)
class Timing:
    """When the frames of a stream are shown. Times are in seconds but for ``keyframes``.

    ``frames`` counts those shown, ``hidden`` those that an edit list keeps back. ``is_vfr`` is None
    where times repeat or go back, which ``is_ordered`` tells: decoding mends them. ``shortest`` and
    ``longest`` are the steps from a frame to the next. ``keyframes`` are the pts of the shown
    keyframes, int64 in units of ``time_base``, in order; of their GOPs, ``closed_gops`` can be cut
    without decoding, and the longest has ``longest_gop`` frames. ``bit_rate`` is what the packets
    have, in bits a second; None where they take no time, or next to none.
    """

    time_base: Fraction
    frames: int
    hidden: int
    start: Fraction
    duration: Fraction
    is_ordered: bool
    is_vfr: bool | None
    shortest: Fraction
    longest: Fraction
    keyframes: NDArray[np.int64]
    closed_gops: int
    longest_gop: int
    bit_rate: int | None

    @property
    def keyframe_seconds(self) -> list[float]:
        """The times of the keyframes in seconds, to the microsecond."""
        base = self.time_base
        seconds = self.keyframes.astype(np.float64) * base.numerator / base.denominator
        found: list[float] = np.round(seconds, 6).tolist()
        return found

    @property
    def is_all_intra(self) -> bool:
        """Whether every frame is a keyframe."""
        return self.longest_gop == 1

    def as_json(self) -> dict[str, object]:
        """Plain JSON values; times in seconds, to the microsecond."""
        found: dict[str, object] = {}
        for name, value in vars(self).items():
            found[name] = round(float(value), 6) if isinstance(value, Fraction) else value
        return found | {
            "time_base": ratio(self.time_base),
            "keyframes": self.keyframe_seconds,
        }


def timing_of(table: PacketTable) -> Timing:
    """When the frames of a stream are shown.

    Raises :class:`~reelmill.errors.Rejected` (``timestamps``) where no honest times can be had: the
    container gives none for most frames, most frames share one with another, they go back and forth
    beyond what reordering explains, one frame stands for hours, or there are thousands a second.
    What decoding mends (a repeated time, a clock that was set back) is no such case.
    """
    shown, base = table.shown, table.time_base
    length = int(shown[-1]) - int(shown[0])
    if length > _LONGEST:
        raise _broken(f"the last frame would come {float(length * base):.0f} s after the first")
    steps = np.diff(shown)
    is_ordered = _is_ordered(table)
    duration = max(table.end_pts - int(shown[0]), 0) * base
    if len(shown) > 1:
        _check(table, steps, duration, is_ordered)
    starts = np.flatnonzero(table.keyframe)
    bounds = np.concatenate(([0], starts, [len(table)]))
    return Timing(
        time_base=base,
        frames=len(shown),
        hidden=int(table.hidden.sum()),
        start=int(shown[0]) * base,
        duration=duration,
        is_ordered=is_ordered,
        is_vfr=is_uneven(shown) if is_ordered else None,
        shortest=int(steps.min(initial=np.iinfo(np.int64).max)) * base if len(steps) else duration,
        longest=int(steps.max()) * base if len(steps) else duration,
        keyframes=np.sort(table.pts[table.keyframe & ~table.hidden]),
        closed_gops=len(table.cut_points),
        longest_gop=int(np.diff(bounds).max()),
        bit_rate=_bit_rate(table.size_bytes, duration),
    )


def is_uneven(shown: NDArray[np.int64]) -> bool:
    """Whether the rate varies: whether any of the times, in order, lies more than a tick beside a
    constant one. Even frames of 1/30 s, written in milliseconds, are 33 and 34 ms apart."""
    if len(shown) < 3:
        return False
    times = shown.astype(np.float64) - float(shown[0])
    even = np.arange(len(times)) * (times[-1] / (len(times) - 1))
    return bool((np.abs(times - even) > _TICK).any())


def _check(
    table: PacketTable, steps: NDArray[np.int64], duration: Fraction, is_ordered: bool
) -> None:
    count = len(steps) + 1
    if 2 * table.unstamped > len(table):
        raise _broken(f"{table.unstamped} of {len(table)} packets have no time")
    if not is_ordered:
        runs = list(_runs(table.pts[~table.hidden].tolist()))
        repeated, back = count - sum(len(set(run)) for run in runs), len(runs) - 1
        if 2 * repeated > count:
            raise _broken(f"{repeated} of {count} frames have the time of the one before")
        if 10 * back > count:
            raise _broken(f"the time goes back at {back} of {count} frames")
    if duration and count / duration > MAX_RATE:
        raise _broken(f"{count} frames within {float(duration):.6f} s")
    check_stills(steps, duration, table.time_base)


def check_stills(steps: NDArray[np.int64], duration: Fraction, time_base: Fraction) -> None:
    """Raise Rejected ``timestamps`` where one frame would stand for hours: see ``MAX_STILL``.

    Args:
        steps: from each frame to the next, in units of ``time_base`` seconds; one at least.
    """
    still = int(steps.max()) * time_base
    if still > MAX_STILL and 2 * still > duration and float(np.median(steps)) * time_base < 1:
        raise _broken(f"one frame would stand for {float(still):.0f} s")


def _bit_rate(size: int, duration: Fraction) -> int | None:
    rate = round(8 * size / duration) if duration else 0
    return rate if 0 < rate < 2**53 else None


def _broken(message: str) -> Rejected:
    return Rejected("timestamps", message)


def _is_ordered(table: PacketTable) -> bool:
    """Whether all shown frames have times of their own, which come as early as codecs allow."""
    pts = table.pts[~table.hidden]
    before = np.maximum.accumulate(pts)[: max(0, len(pts) - _REORDER)]
    return bool((np.diff(table.shown) > 0).all() and (before <= pts[_REORDER:]).all())


def _runs(stamps: list[int]) -> Iterator[list[int]]:
    """Times in decode order as runs in the order of presentation, as far as B-frames explain it. A
    new one begins where the clock was set back to before what was already shown: at seams of joined
    recordings, and with times at random at every eighth frame."""
    run: list[int] = []
    waiting: list[int] = []
    for stamp in stamps:
        if run and stamp < run[-1]:
            yield run + sorted(waiting)
            run, waiting = [], []
        heapq.heappush(waiting, stamp)
        if len(waiting) > _PYRAMID:
            run.append(heapq.heappop(waiting))
    yield run + sorted(waiting)
