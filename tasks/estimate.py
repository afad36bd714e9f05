"""What shards that are to be made will cost, by what shards like them have cost. Pure code.

All of it rests on ratios of sums over shards that were made: time and bytes written for each byte
that was read, or for each sample where nothing with bytes was; samples out for each sample in. So
large shards count for more than small ones, whose fixed costs say little of them.
"""

from __future__ import annotations

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

_OTHER_PARAMS = 2.0
"""How many times more or less shards with other parameters may take."""

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
    """

    shards: int | None
    taken: Volume | None
    given: Volume | None
    samples: int | None
    exact: bool
    busy: Time | None
    evidence: Evidence | None


def estimate(
    shards: int | None,
    taken: Volume | None,
    evidence: Evidence | None,
    *,
    conserves: bool,
    known: bool,
) -> Estimate:
    """What it takes to make shards of some data.

    Args:
        conserves: whether each sample comes out again, or is a reject.
        known: whether ``taken`` is what there is, and no estimate itself.
    """
    if shards == 0:
        nothing = Volume()
        return Estimate(0, nothing, nothing, 0, exact=True, busy=Time(0, 0, 0), evidence=None)
    samples = bytes_ = busy = None
    if taken is not None and evidence is not None:
        made = evidence.made
        read = sum(one.taken.samples for one in made)
        if read:
            samples = taken.samples * sum(one.samples for one in made) / read
        if (by := _measure(evidence, taken)) is not None:
            bytes_ = _ratio(evidence, by, [one.bytes for one in made]) * getattr(taken, by)
            busy = _busy(evidence, by, getattr(taken, by), shards or len(made))
    exact = conserves and known and taken is not None
    if exact and evidence is not None:
        exact = not any(one.rejects for one in evidence.made)
    if taken is not None and conserves and (exact or samples is None):
        samples = taken.samples
    given = None
    if shards is not None and samples is not None and bytes_ is not None:
        given = Volume(shards, samples, bytes_)
    count = None if samples is None else round(samples)
    return Estimate(shards, taken, given, count, exact=exact, busy=busy, evidence=evidence)


def _measure(evidence: Evidence, taken: Volume) -> str | None:
    """What time and output are taken to grow with."""
    for name in ("bytes", "samples", "shards"):
        if getattr(taken, name) and all(getattr(one.taken, name) for one in evidence.made):
            return name
    return None


def _ratio(evidence: Evidence, by: str, values: Sequence[float]) -> float:
    total: float = sum(getattr(one.taken, by) for one in evidence.made)
    return sum(values) / total


def _busy(evidence: Evidence, by: str, amount: float, shards: int) -> Time:
    seconds = [one.milliseconds / 1000 for one in evidence.made]
    likely = _ratio(evidence, by, seconds) * amount
    rates = [
        second / getattr(one.taken, by) for second, one in zip(seconds, evidence.made, strict=True)
    ]
    mean = statistics.fmean(rates)
    differ = statistics.pstdev(rates) / mean if mean else 0.0
    if len(rates) < _FEW:
        differ = max(differ, _DIFFER)
    # Twice the standard error of a sum over so many, known from so many.
    doubt = _DOUBT + 2 * differ * math.sqrt(1 / len(rates) + 1 / shards)
    factor = (1 + doubt) * (1 if evidence.alike else _OTHER_PARAMS)
    return Time(likely / factor, likely, likely * factor)


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
