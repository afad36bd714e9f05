"""Measuring alternatives side by side: CPU-seconds and wall, alternating rounds, medians."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of CPU (user and system, of this process and the children it waited for) and wall."""

    cpu: float
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall)

    def per(self, count: float) -> Cost:
        return Cost(self.cpu / count, self.wall / count)


def cpu_seconds() -> float:
    """CPU-seconds so far of this process, its threads, and the children it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(work: Callable[[], object]) -> Cost:
    """What one call of ``work`` costs."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return Cost(cpu_seconds() - cpu, time.perf_counter() - wall)


@dataclass(frozen=True, slots=True)
class Costs:
    """What the rounds of one subject cost: medians, and the least CPU of any round."""

    median: Cost
    least_cpu: float

    @classmethod
    def of(cls, rounds: Sequence[Cost]) -> Costs:
        middle = Cost(
            statistics.median(cost.cpu for cost in rounds),
            statistics.median(cost.wall for cost in rounds),
        )
        return cls(middle, min(cost.cpu for cost in rounds))


def compare(
    subjects: Mapping[str, Callable[[Path], object]],
    *,
    rounds: int = ROUNDS,
    warm: bool = True,
    reset: Callable[[], object] = lambda: None,
) -> dict[str, Costs]:
    """What each subject costs.

    Rounds alternate (A B C, A B C, …), so that what else the machine does falls on all alike. Each
    call gets an empty folder of its own; that, and ``reset``, which runs before every call, are
    outside of the measurement.

    Args:
        warm: call a subject twice in a row and measure the second call. A virtual machine pays
            for the first touch of memory that its host took back, and would charge whoever comes
            after an idle moment with it.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, work in subjects.items():
            for measured in (False, True) if warm else (True,):
                reset()
                with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
                    folder = Path(made)
                    cost = measure(lambda work=work, folder=folder: work(folder))
                if measured:
                    costs[name].append(cost)
    return {name: Costs.of(of_one) for name, of_one in costs.items()}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is also Markdown."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print(f"| {' | '.join(cells)} |")


def show_costs(title: str, costs: Mapping[str, Costs], unit: str, count: float, ours: str) -> None:
    """Print costs per unit, of which there were ``count``, and ours divided by each peer's."""
    mine = costs[ours]
    rows = []
    for name, cost in costs.items():
        one = cost.median.per(count)
        ratios = [
            f"{mine.median.cpu / cost.median.cpu:.2f}",
            f"{mine.least_cpu / cost.least_cpu:.2f}",
            f"{mine.median.wall / cost.median.wall:.2f}",
        ]
        rows.append(
            [name, f"{one.cpu:.3f}", f"{one.wall:.3f}", *(ratios if name != ours else "   ")]
        )
    header = [f"per {unit}", "CPU-s", "wall s", "ours / it, CPU", "least CPU", "wall"]
    show(title, header, rows)
