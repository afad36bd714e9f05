"""What a build would do and what that would cost, worked out and put in words."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from reelmill.digest import SHORT
from reelmill.flows.again import find_due
from reelmill.flows.costs import Cost, costs, whole
from reelmill.flows.drive import Build, Grown, prepare
from reelmill.flows.explain import Explanation, Outlook, explain, foresee
from reelmill.flows.profile import Profile
from reelmill.flows.reading import shown
from reelmill.recipe import Recipe
from reelmill.store import Store
from reelmill.tasks.estimate import Time
from reelmill.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Plan:
    """A build that is only looked at: ``checks`` counts shards of whose addresses it is asked first
    whether they changed; ``seconds`` is how long all of it takes, where that is known."""

    build: Build
    explained: list[Explanation]
    outlook: Outlook
    checks: Counter[str]
    costs: dict[str, Cost]
    seconds: Time | None


def make_plan(
    recipe: Recipe,
    store: Store,
    where: Profile,
    *,
    only: Sequence[str] = (),
    console: Console | None = None,
) -> Plan:
    """Plan a build; nothing is written. ``console`` shows how far the reading of a table is."""
    with shown(console) as watch:
        build = prepare(recipe, store, only=only, run="plan", write=False, watch=watch)
    due = find_due(recipe, store, build.names, "plan", claim=False)
    found = costs(build, where)
    return Plan(
        build=build,
        explained=explain(build),
        outlook=foresee(build),
        checks=Counter(one.version.name for one in due),
        costs=found,
        seconds=whole(found),
    )


def plan_json(plan: Plan) -> list[dict[str, Any]]:
    """A plan for scripts: an entry for each dataset."""
    return [
        {
            "dataset": one.name,
            "stage": one.stage,
            "shards": one.expected,
            "there": one.have,
            "to_make": one.ready,
            "waiting": one.waiting,
            "waits_for": one.waits_for,
            "reasons": dict(one.reasons),
            "problem": plan.outlook.problems.get(one.name),
            "moves_to": plan.outlook.moves.get(one.name),
            "checks": plan.checks[one.name],
            "cost": _cost_json(plan.costs[one.name]),
        }
        for one in plan.explained
    ]


def _cost_json(cost: Cost) -> dict[str, Any]:
    one = cost.estimate
    rests_on = one.evidence and {
        "shards": len(one.evidence.made),
        "of": one.evidence.where,
        "newest": one.evidence.newest,
        "same_parameters": one.evidence.alike,
    }
    return {
        "shards": one.shards,
        "reads_bytes": cost.reads,
        "reads_at_most": cost.at_most,
        "samples": one.samples,
        "samples_exact": one.exact,
        "rough": one.rough,
        "writes_bytes": cost.writes,
        "worker_seconds": one.busy and _time_json(one.busy),
        "workers": cost.workers,
        "seconds": cost.seconds and _time_json(cost.seconds),
        "rests_on": rests_on,
    }


def _time_json(seconds: Time) -> dict[str, float]:
    return {name: round(value, 1) for name, value in asdict(seconds).items()}


def show_plan(plan: Plan, out: Console) -> None:
    """Print a plan for people."""
    for grown in plan.build.grown:
        out.print(f"[bold]{grown.name}[/]  {_growth(grown)}")
    for one in plan.explained:
        total = "?" if one.expected is None else str(one.expected)
        complete = one.have == one.expected and one.name not in plan.outlook.problems
        state = "[green]complete[/]" if complete else f"{one.have} of {total} there"
        out.print(f"[bold]{one.name}[/]  {one.stage}: {state}")
        for line in _lines(plan, one):
            out.print(f"    {line}", markup=False)
    for problem in plan.outlook.problems.values():
        out.print(problem, markup=False)
    if not plan.build.missing and not plan.outlook.problems:
        rest = " but what changed at its address" if plan.checks else ""
        out.print(f"All shards exist; a build would make nothing{rest}.")
    elif plan.seconds and sum(cost.estimate.shards != 0 for cost in plan.costs.values()) > 1:
        out.print(f"All of it: {_time(plan.seconds)}")


def _lines(plan: Plan, one: Explanation) -> Iterator[str]:
    if moves := plan.outlook.moves.get(one.name):
        yield f"{one.name}@latest would be {one.name}@{moves[:SHORT]}"
    if asked := plan.checks[one.name]:
        yield f"first it is asked whether the addresses of {asked} shards changed"
    for reason, count in one.reasons.most_common():
        yield f"{count} to make: {reason}"
    cost = plan.costs[one.name]
    if one.waits_for and one.waiting != 0:
        rest = "some" if one.waiting is None else str(one.waiting)
        if one.waiting is None and cost.estimate.shards is not None:
            rest = f"about {cost.estimate.shards - one.ready}"
        yield f"{rest} to make after {' and '.join(one.waits_for)}"
    if cost.estimate.shards != 0:
        yield _amounts(cost, waits=one.waiting != 0)
        yield _duration(one.stage, cost)


def _amounts(cost: Cost, *, waits: bool) -> str:
    """``reads 1.2 GiB, makes 3,400 samples, about 220 MiB``."""
    one = cost.estimate
    about = "perhaps" if one.rough else "about"
    parts = []
    if cost.reads:
        reads = f"{'at most ' * cost.at_most}{f'{about} ' * waits}{format_bytes(cost.reads)}"
        parts.append(f"reads {reads}")
    if one.samples is None:
        parts.append("makes an unknown number of samples")
    else:
        samples = _rounded(one.samples, exact=one.exact)
        parts.append(f"makes {'' if one.exact else f'{about} '}{samples}")
    if cost.writes is not None:
        parts.append(f"{about} {format_bytes(cost.writes)}")
    return ", ".join(parts)


def _rounded(count: int, *, exact: bool) -> str:
    digits = len(str(count))
    shown = count if exact else round(count, min(0, 3 - digits))
    return f"{shown:,} sample{'s' * (shown != 1)}"


def _duration(stage: str, cost: Cost) -> str:
    """``takes about 3m (2m to 5m) on 2 workers, by 12 shards of clips made on 2026-11-20``."""
    one = cost.estimate
    if one.evidence is None:
        return f"time unknown: no shard of stage {stage} was made in this store yet"
    if one.busy is None:
        return "time unknown: it depends on what it waits for"
    many = len(one.evidence.made)
    day = time.strftime("%Y-%m-%d", time.gmtime(one.evidence.newest))
    rests = f"{many} shard{'s' * (many != 1)} of {one.evidence.where} made on {day}"
    if not one.evidence.alike:
        rests += " with other parameters"
    guess = "a rough guess: takes" if one.rough else "takes"
    if cost.seconds is None or cost.workers is None:
        return f"{guess} {_time(one.busy)} of one worker's time, by {rests}"
    workers = f"{cost.workers} worker{'s' * (cost.workers != 1)}"
    return f"{guess} {_time(cost.seconds)} on {workers}, by {rests}"


def _time(seconds: Time) -> str:
    low, likely, high = (_about(one) for one in (seconds.low, seconds.likely, seconds.high))
    about = likely if likely.startswith("less") else f"about {likely}"
    return about if low == high else f"{about} ({low} to {high})"


def _about(seconds: float) -> str:
    """A time to two digits: ``less than 1s``, ``8s``, ``12m``, ``1h30m``."""
    if seconds < 1:
        return "less than 1s"
    step = next(
        step
        for limit, step in ((60, 1), (600, 10), (3600, 60), (36_000, 600), (math.inf, 3600))
        if seconds < limit
    )
    return format_seconds(round(seconds / step) * step)


def _growth(grown: Grown) -> str:
    parts = [f"{grown.rows:,} rows"]
    if grown.new:
        parts.append(f"{grown.new:,} new")
    if grown.rejects:
        parts.append(f"{grown.rejects:,} unusable ('reelmill show {grown.name} --rejects')")
    if grown.gone:
        fate = "no longer count" if grown.dropped else "are kept"
        parts.append(f"{grown.gone:,} of before are no longer in the table and {fate}")
    if grown.back:
        parts.append(f"{grown.back:,} that were gone are there again")
    return ", ".join(parts)
