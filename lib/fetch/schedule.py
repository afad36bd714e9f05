"""Which file is fetched next: a queue for each host, and what each host may be asked."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one host may be asked; `FetchPolicy` explains the values."""

    per_host: int
    rate: float | None
    host_failures: int
    host_pause_s: float
    host_trials: int


@dataclass(slots=True)
class _Host(Generic[RowT]):
    limits: Limits
    fresh: deque[RowT] = field(default_factory=deque)
    again: list[tuple[float, int, RowT]] = field(default_factory=list)
    """Rows that wait for another attempt, by the time before which it may not begin."""
    active: int = 0
    not_before: float = 0.0
    """Nothing begins before this: the host asked for a pause, or its breaker is open."""
    next_token: float = 0.0
    failed: set[int] = field(default_factory=set)
    """The rows that failed to reach the host since one last did."""
    is_open: bool = False
    trials: int = 0
    """Trials that failed since the breaker opened."""
    trial: int | None = None
    """The row that is the trial now."""
    is_ready: bool = False
    """Whether it is in the queue of those which may begin a row now."""
    later: float | None = None
    """When it joins that queue."""

    def when(self, now: float) -> float | None:
        """When it may begin its next row; None: not before another one ends, or is added."""
        if self.active >= (1 if self.is_open else self.limits.per_host):
            return None
        if self.fresh:
            first = now
        elif self.again:
            first = self.again[0][0]
        else:
            return None
        return max(first, self.not_before, self.next_token)


class Schedule(Generic[RowT]):
    """Rows by host, in order, and each no earlier than it may begin. Knows no clock of its own.

    A host is like an electric circuit: after ``host_failures`` different rows failed to reach it,
    one after another, its breaker opens. Its rows then wait, holding nothing, while one of them
    after a pause is the trial. If that reaches the host, all goes on; each failure doubles the
    pause, and after ``host_trials`` of them the rows that are left are to be given up.

    Rows are told apart by identity.

    Args:
        limits: Says what a host of this name may be asked.
    """

    def __init__(self, limits: Callable[[str], Limits]) -> None:
        self._limits = limits
        self._hosts: dict[str, _Host[RowT]] = {}
        self._ready: deque[_Host[RowT]] = deque()
        self._later: list[tuple[float, int, _Host[RowT]]] = []
        self._numbers = itertools.count()
        self.waiting = 0
        """Rows that have not begun, or wait for another attempt."""

    def add(self, host: str, row: RowT, now: float) -> None:
        """Put a row at the end of its host's queue."""
        at = self._host(host)
        at.fresh.append(row)
        self.waiting += 1
        self._put(at, now)

    def take(self, now: float) -> RowT | None:
        """Begin the next row, of each host in its turn; None: none may begin now."""
        while self._later and self._later[0][0] <= now:
            when, _, host = heapq.heappop(self._later)
            if host.later == when:
                host.later = None
                self._put(host, now)
        while self._ready:
            host = self._ready.popleft()
            host.is_ready = False
            # Since it was found ready it may have been asked for a pause.
            when_now = host.when(now)
            row = self._begin(host, now) if when_now is not None and when_now <= now else None
            self._put(host, now)
            if row is not None:
                return row
        return None

    def wake(self) -> float | None:
        """Return when `take` should be asked again, if nothing ends before; None: never."""
        while self._later and self._later[0][2].later != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def reached(self, host: str, now: float) -> None:
        """Hear that a row, which had begun, is at its end or to be put off: the host answered."""
        at = self._left(host)
        at.failed.clear()
        at.is_open, at.trials, at.trial = False, 0, None
        self._put(at, now)

    def missed(self, host: str, row: RowT, now: float) -> bool:
        """Hear that a row, which had begun, did not reach its host.

        Returns:
            Whether that was the last trial, and the host's rows should be given up.
        """
        at = self._left(host)
        if at.is_open:
            if at.trial == id(row):
                at.trial = None
                at.trials += 1
                self._leave_alone(at, now)
        else:
            at.failed.add(id(row))
            if len(at.failed) >= at.limits.host_failures:
                at.is_open = True
                self._leave_alone(at, now)
        self._put(at, now)
        return at.is_open and at.trials >= at.limits.host_trials

    def ended(self, host: str, row: RowT, now: float) -> None:
        """Hear that a row, which had begun, is at its end, which says nothing of its host."""
        at = self._left(host)
        if at.trial == id(row):
            at.trial = None
        self._put(at, now)

    def put_off(self, host: str, row: RowT, until: float, now: float) -> None:
        """Queue a row for another attempt at ``until`` or later, before rows that are new."""
        at = self._host(host)
        heapq.heappush(at.again, (until, next(self._numbers), row))
        self.waiting += 1
        self._put(at, now)

    def pause(self, host: str, until: float) -> None:
        """Let no row of ``host`` begin before ``until``."""
        at = self._host(host)
        at.not_before = max(at.not_before, until)

    def give_up(self, host: str | None = None) -> list[RowT]:
        """Take out all rows of ``host``, or of all, that wait, and return them."""
        given_up: list[RowT] = []
        for at in self._hosts.values() if host is None else [self._host(host)]:
            given_up += [row for _, _, row in sorted(at.again)]
            given_up += at.fresh
            at.again.clear()
            at.fresh.clear()
        self.waiting -= len(given_up)
        return given_up

    def _host(self, name: str) -> _Host[RowT]:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._limits(name))
        return host

    def _left(self, name: str) -> _Host[RowT]:
        host = self._hosts[name]
        host.active -= 1
        return host

    def _leave_alone(self, host: _Host[RowT], now: float) -> None:
        pause = host.limits.host_pause_s * 2.0**host.trials
        host.not_before = max(host.not_before, now + pause)

    def _put(self, host: _Host[RowT], now: float) -> None:
        """Queue the host for when it may begin its next row."""
        when = host.when(now)
        if when is None:
            host.later = None
        elif when <= now:
            if not host.is_ready:
                host.is_ready = True
                self._ready.append(host)
        elif when != host.later:
            host.later = when
            heapq.heappush(self._later, (when, next(self._numbers), host))

    def _begin(self, host: _Host[RowT], now: float) -> RowT:
        if host.again and host.again[0][0] <= now:
            row = heapq.heappop(host.again)[2]
        else:
            row = host.fresh.popleft()
        host.active += 1
        self.waiting -= 1
        if host.is_open:
            host.trial = id(row)
        if host.limits.rate is not None:
            host.next_token = max(host.next_token, now) + 1 / host.limits.rate
        return row
