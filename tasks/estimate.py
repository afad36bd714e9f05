"""What shards that are to be made will cost, by what shards like them have cost. Pure code.

All of it rests on ratios of sums over shards that were made: of time, samples and bytes that came
out, to bytes or samples that went in, whichever tells more. So large shards count for more than
small ones, whose fixed costs say little of them.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reelmill.store.model import Blob, Shard

_FEW = 4
"""With fewer shards than this, their differences say little of how much shards differ."""

_DIFFER = 0.4
"""By how much shards of few that are known are taken to differ: a share of their mean."""

_DOUBT = 0.15
"""What no number of shards tells, such as other hosts and other load: a share of the time."""

_ROUGH = 3.0
"""How many times more or less shards with other parameters may take, or of unknown input."""

_GROWS_WITH = ("bytes", "samples", "shards")
"""What time and output may grow with, the likeliest first."""

_CLEARLY = 0.8
"""By how much shards must differ less in another measure for that to be taken: a factor."""

_NOWHERE = "0" * 64


@dataclass(frozen=True, slots=True)
class Volume:
    """An amount of data: shards, samples in them, and bytes of their tars."""

    shards: float = 0
    samples: float = 0
    bytes: float = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(
            self.shards + other.shards, self.samples + other.samples, self.bytes + other.bytes
        )

    def shared(self, parts: float) -> Volume:
        """One of equal parts."""
        return Volume(self.shards / parts, self.samples / parts, self.bytes / parts)


def volume(shards: Iterable[Shard]) -> Volume:
    """How much shards hold."""
    total = Volume()
    for shard in shards:
        total += Volume(1, shard.samples, shard.tar.size if shard.tar else 0)
    return total


@dataclass(frozen=True, slots=True)
class Made:
    """A shard that was made: of what, what came of it (bytes of the tar and the index), how long a
    worker was busy with it, and since when (seconds since the epoch)."""

    taken: Volume
    samples: int
    rejects: int
    bytes: int
    milliseconds: int
    started: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Shards that a stage made. ``alike``: with the parameters in question; ``where`` names the
    version that they are of."""

    made: tuple[Made, ...]
    alike: bool
    where: str

    @property
    def newest(self) -> int:
        """When the newest was begun, in seconds since the epoch."""
        return max(one.started for one in self.made)


@dataclass(frozen=True, slots=True)
class Time:
    """A time in seconds, as likely more as less, and what it will hardly be less or more than."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Time) -> Time:
        return Time(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Time:
        return Time(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the shards to make of a dataset will take and give; ``None`` where nothing tells.

    ``taken`` is what they read, ``given`` what comes of them; ``exact``: so many samples and
    rejects, since the stage keeps all. ``busy`` is the time of one worker that makes all of them.
    ``rough``: it rests on work with other parameters, or on input of which that is true.
    """

    shards: int | None
    taken: Volume | None
    given: Volume | None
    samples: int | None
    exact: bool
    rough: bool
    busy: Time | None
    evidence: Evidence | None


def estimate(
    shards: int | None,
    taken: Volume | None,
    evidence: Evidence | None,
    *,
    conserves: bool,
    known: bool = True,
    rough: bool = False,
) -> Estimate:
    """What it takes to make shards of some data.

    Args:
        conserves: whether each sample comes out again, or is a reject.
        known: whether ``taken`` has the samples that there are, and is no estimate itself.
        rough: whether it is a rough one.
    """
    if shards == 0:
        nothing, no_time = Volume(), Time(0, 0, 0)
        return Estimate(0, nothing, nothing, 0, True, False, no_time, None)
    rough = rough or (evidence is not None and not evidence.alike)
    samples = bytes_ = busy = None
    if taken is not None and evidence is not None:
        # A shard that nothing went into says nothing of those that something goes into.
        made = [one for one in evidence.made if one.taken.samples] or list(evidence.made)
        by = ("samples",) if conserves else ("samples", "bytes")
        samples = _scaled(made, taken, [one.samples for one in made], by).amount
        bytes_ = _scaled(made, taken, [one.bytes for one in made], _GROWS_WITH).amount
        seconds = [one.milliseconds / 1000 for one in made]
        time = _scaled(made, taken, seconds, _GROWS_WITH)
        busy = time.around(len(made), shards or len(made), rough=rough)
    exact = conserves and known and taken is not None
    if exact and evidence is not None:
        exact = not any(one.rejects for one in evidence.made)
    if taken is not None and conserves and (exact or samples is None):
        samples = taken.samples
    given = None
    if shards is not None and samples is not None and bytes_ is not None:
        given = Volume(shards, samples, bytes_)
    count = None if samples is None else round(samples)
    return Estimate(shards, taken, given, count, exact, rough, busy, evidence)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """What is expected of some input, and by which share of that shards differ."""

    amount: float | None
    differ: float = 0.0

    def around(self, known: int, shards: int, *, rough: bool) -> Time | None:
        """The time that so many shards will take, known from so many."""
        if self.amount is None:
            return None
        differ = max(self.differ, _DIFFER) if known < _FEW else self.differ
        # Twice the standard error of a sum over so many, known from so many.
        doubt = _DOUBT + 2 * differ * math.sqrt(1 / known + 1 / shards)
        factor = (1 + doubt) * (_ROUGH if rough else 1)
        return Time(self.amount / factor, self.amount, self.amount * factor)


def _scaled(
    made: Sequence[Made], taken: Volume, values: Sequence[float], names: Sequence[str]
) -> _Scaled:
    """What is expected by that one of some measures in which shards differ least: by bytes, clips
    of another length give as many frames as they should, by samples those of another codec."""
    best = _Scaled(None)
    for name in names:
        amounts = [getattr(one.taken, name) for one in made]
        if not getattr(taken, name) or not all(amounts):
            continue
        rates = [value / amount for value, amount in zip(values, amounts, strict=True)]
        mean = statistics.fmean(rates)
        differ = statistics.pstdev(rates) / mean if mean else 0.0
        if best.amount is None or differ < best.differ * _CLEARLY:
            best = _Scaled(sum(values) / sum(amounts) * getattr(taken, name), differ)
    return best


def on_workers(busy: Time, shards: int, workers: int) -> Time:
    """How long workers take for equal shards, of which each makes one at a time."""
    if not shards:
        return busy
    return busy.times(math.ceil(shards / workers) / shards)


def together(parts: Sequence[tuple[Time, int]], workers: int) -> Time:
    """How long workers take for all of several datasets, each given as for ``on_workers``: no
    worker waits while there is work, and no dataset takes less than it would alone."""
    total = sum((busy for busy, _ in parts), Time(0, 0, 0)).times(1 / workers)
    longest = [on_workers(busy, shards, workers) for busy, shards in parts]
    return Time(
        max([total.low, *(one.low for one in longest)]),
        max([total.likely, *(one.likely for one in longest)]),
        max([total.high, *(one.high for one in longest)]),
    )


def imagined(amount: Volume) -> list[Shard]:
    """Equal shards that hold so much, to plan with what is not there yet."""
    count = max(1, round(amount.shards))
    samples, size = round(amount.samples), round(amount.bytes)

    def part(total: int, number: int) -> int:
        return total * (number + 1) // count - total * number // count

    @functools.cache
    def blob(size: int) -> Blob:
        return Blob(digest=_NOWHERE, size=size)

    return [
        Shard(
            id=f"{number:05d}",
            tar=blob(part(size, number)) if part(samples, number) else None,
            index=blob(0),
            samples=part(samples, number),
            rejects=0,
        )
        for number in range(count)
    ]
