"""Which frames of a clip are chosen: a sequence of its frames, and where in it samples begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reelmill.digest import sha256
from reelmill.media.cut.output import Rate
from reelmill.tasks.contract import MAX_COUNT, Seed
from reelmill.tasks.cuts import CutParams
from reelmill.tasks.tuples import TupleParams
from reelmill.units import Seconds, canonical

MAX_CHOSEN = 10_000
"""Indices or times in a list, and random samples of one clip, at most."""

MAX_PLACES = 2**22
"""Frames of one clip at a rate, at most: a header of a few bytes can claim a length of years."""

Index = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]


class SelectionParams(TupleParams, CutParams):
    """Which frames of a clip make samples.

    Frames count as they are, or some of them do: ``keyframes``, or those at a rate of ``fps``. In
    these, ``stride``, ``step`` and ``indices`` count. Samples begin at every step, or at the given
    ``indices`` or ``times``, once in every scene, or at random.
    """

    indices: tuple[Index, ...] = Field(
        (),
        description="numbers of the frames at which samples begin; negative from the end",
        max_length=MAX_CHOSEN,
    )
    times: tuple[Seconds, ...] = Field(
        (),
        description="times at which samples begin, from the first frame on: with the frame that is "
        "shown then",
        max_length=MAX_CHOSEN,
    )
    fps: Rate | None = Field(
        None,
        description="frames a second: those shown at even times from the first one on; all if not "
        "given",
    )
    keyframes: bool = Field(False, description="only keyframes; no other is decoded")
    per_scene: Literal["first", "middle"] | None = Field(
        None, description="one sample of each scene: its first frames, or those in its middle"
    )
    random: Annotated[int, Field(ge=1, le=MAX_CHOSEN)] | None = Field(
        None, description="so many samples of each clip, at random"
    )
    seed: Seed = Field(0, description="for random")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        given = [name for name in ("step", *_STARTS) if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        if self.keyframes and self.fps is not None:
            raise ValueError("give keyframes or fps, not both")
        if self.max_samples is not None and (self.indices or self.times or self.random):
            raise ValueError(f"max_samples has no effect with {given[0]}, which says how many")
        if self.per_scene is not None and self.cuts == "ignore":
            raise ValueError("per_scene needs the cuts that are ignored")
        if self.seed and self.random is None:
            raise ValueError("seed is for random")
        return self

    def effective(self) -> dict[str, Any]:
        return {
            **TupleParams.effective(self),
            **CutParams.effective(self),
            **({} if self.begin_at_steps else {"step": None}),
            "indices": tuple(sorted(set(self.indices))),
            "times": tuple(sorted(set(self.times))),
            "seed": None if self.random is None else self.seed,
        }

    @property
    def minds_cuts(self) -> bool:
        """A single frame spans nothing."""
        return self.cuts == "auto" and (self.count > 1 or self.per_scene is not None)

    @property
    def begin_at_steps(self) -> bool:
        """Whether samples begin at every step: they can be gathered from frames that pass by."""
        return all(getattr(self, name) in (None, ()) for name in _STARTS)

    @property
    def takes_every_frame(self) -> bool:
        """Whether frames count as they are."""
        return not self.keyframes and self.fps is None


_STARTS = ("indices", "times", "per_scene", "random")


@dataclass(frozen=True, slots=True)
class Missed:
    """What was asked for and is not to be had of a clip: a reason class and a message."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Places:
    """A sequence of ``count`` frames of a clip, of which some begin scenes (``cuts``, ascending,
    without the first), for samples that reach ``reach`` places beyond their first."""

    count: int
    reach: int
    cuts: Sequence[int] = ()

    @property
    def ranges(self) -> list[range]:
        """For each scene the places at which a sample may begin."""
        edges = [0, *self.cuts, self.count]
        return [range(a, max(a, b - self.reach)) for a, b in pairwise(edges)]

    def missing(self, start: int) -> Missed | None:
        """Why no sample begins at a place; None if one does."""
        if not 0 <= start < self.count:
            return Missed("beyond_clip", f"there are {self.count} frames")
        if start + self.reach >= self.count:
            return Missed(
                "beyond_clip",
                f"it would reach frame {start + self.reach}, and there are {self.count}",
            )
        if bisect_right(self.cuts, start) < bisect_right(self.cuts, start + self.reach):
            return Missed("scene_cut", f"a scene begins in frames {start} to {start + self.reach}")
        return None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The places at which samples of a clip begin, ascending, and what is not to be had."""

    starts: Sequence[int]
    missed: Sequence[Missed] = ()


def choose(
    params: SelectionParams,
    places: Places,
    key: str,
    place_at: Callable[[Fraction], int | None],
) -> Chosen:
    """Where samples of the clip ``key`` begin; ``place_at`` tells the place that is shown so many
    seconds after the first one, and None behind the last. What is asked for in another order, or
    twice, is the same choice."""
    if params.indices:
        asked = (
            (f"index {n}", n if n >= 0 else places.count + n) for n in sorted(set(params.indices))
        )
        return _each(places, asked)
    if params.times:
        moments = ((f"{canonical(t)} s", place_at(Fraction(t))) for t in sorted(set(params.times)))
        return _each(places, moments)
    if params.per_scene is not None:
        return _per_scene(places, params.per_scene, params.max_samples)
    if params.random is not None:
        return Chosen(_drawn(places, params.random, f"{params.seed}/{key}"))
    steps = range(0, max(0, places.count - places.reach), params.every)
    starts = [start for start in steps if places.missing(start) is None]
    return Chosen(starts[: params.max_samples])


def _each(places: Places, asked: Iterator[tuple[str, int | None]]) -> Chosen:
    """Samples that were asked for one by one; those that begin with one frame are one."""
    starts, missed = set(), []
    for name, start in asked:
        if start is None:
            missed.append(Missed("beyond_clip", f"{name}: the clip ends before that"))
        elif why := places.missing(start):
            missed.append(Missed(why.reason, f"{name}: {why.message}"))
        else:
            starts.add(start)
    return Chosen(sorted(starts), missed)


def _per_scene(places: Places, where: str, most: int | None) -> Chosen:
    starts, missed = [], []
    for number, scene in enumerate(places.ranges[:most]):
        if scene:
            starts.append(scene[0] if where == "first" else scene[(len(scene) - 1) // 2])
        else:
            missed.append(Missed("too_short", f"scene {number} has no {places.reach + 1} frames"))
    return Chosen(starts, missed)


def _drawn(places: Places, count: int, seed: str) -> list[int]:
    """``count`` of the places at which a sample may begin, or all, if there are fewer: each choice
    is as likely (Floyd's algorithm, with a keyed hash for dice)."""
    ranges = [scene for scene in places.ranges if scene]
    ends = list(accumulate(map(len, ranges)))
    total = ends[-1] if ends else 0
    drawn: set[int] = set()
    for last in range(max(0, total - count), total):
        at = int(sha256(f"{seed}/{last}".encode())[:32], 16) % (last + 1)
        drawn.add(last if at in drawn else at)
    found = []
    for at in sorted(drawn):
        scene = bisect_right(ends, at)
        found.append(ranges[scene][at - ends[scene] + len(ranges[scene])])
    return found
