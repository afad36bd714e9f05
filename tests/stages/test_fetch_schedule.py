"""Which file is fetched next, by a clock that the tests turn."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.fetch.schedule import Limits, Schedule

LIMITS = Limits(per_host=2, rate=None, host_failures=3, host_pause_s=10.0, host_trials=2)


def schedule(limits: Limits = LIMITS, **rows: list[object]) -> Schedule[object]:
    """A schedule with these rows of each host at time 0."""
    made: Schedule[object] = Schedule(lambda _: limits)
    for host, own in rows.items():
        for row in own:
            made.add(host, row, 0.0)
    return made


def taken(made: Schedule[object], now: float) -> list[object]:
    """All that may begin at ``now``."""
    rows = []
    while (row := made.take(now)) is not None:
        rows.append(row)
    return rows


def test_hosts_take_turns_and_keep_their_limits() -> None:
    made = schedule(a=["a1", "a2", "a3"], b=["b1"], c=["c1", "c2", "c3"])
    assert taken(made, 0) == ["a1", "b1", "c1", "a2", "c2"]
    assert made.wake() is None
    assert made.waiting == 2
    made.reached("c", 1)
    assert taken(made, 1) == ["c3"]
    made.ended("a", "a1", 2)
    assert taken(made, 2) == ["a3"]
    assert made.waiting == 0


def test_one_dead_host_holds_up_nobody() -> None:
    made = schedule(dead=["d1", "d2", "d3"], alive=[f"a{n}" for n in range(50)])
    began: Counter[str] = Counter()
    for _ in range(60):
        row = made.take(0)
        if row is not None:
            began[str(row)[0]] += 1
            if str(row).startswith("a"):
                made.reached("alive", 0)
    assert began == {"d": 2, "a": 50}


def test_a_rate_spaces_requests_evenly() -> None:
    made = schedule(replace(LIMITS, rate=4.0, per_host=100), a=list("uvwxyz"))
    times = []
    now = 0.0
    while made.waiting:
        times += [now] * len(taken(made, now))
        wake = made.wake()
        if wake is None:
            break
        assert wake > now
        now = wake
    assert times == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_a_row_put_off_comes_before_new_ones_and_not_too_early() -> None:
    made = schedule(replace(LIMITS, per_host=1), a=["a1", "a2", "a3"])
    assert taken(made, 0) == ["a1"]
    made.reached("a", 1)
    made.put_off("a", "a1", 5.0, 1)
    assert taken(made, 1) == ["a2"]
    made.reached("a", 6)
    assert taken(made, 6) == ["a1"]
    made.put_off("a", "a1", 20.0, 7)
    made.reached("a", 7)
    assert taken(made, 7) == ["a3"]
    made.reached("a", 8)
    assert taken(made, 8) == []
    assert made.wake() == 20.0
    assert taken(made, 20) == ["a1"]


def test_a_pause_is_the_whole_hosts_and_no_others() -> None:
    made = schedule(a=["a1", "a2", "a3"], b=["b1"])
    made.pause("a", 30.0)
    assert taken(made, 0) == ["b1"]
    assert made.wake() == 30.0
    made.pause("a", 10.0)
    assert taken(made, 29.9) == []
    assert taken(made, 30) == ["a1", "a2"]


def open_breaker() -> Schedule[object]:
    """A schedule whose host ``a`` has just been left alone at time 1."""
    # Rows are told apart by identity, which equal literals share with interned strings.
    made = schedule(a=[sys.intern(f"a{n}") for n in range(10)])
    for row in taken(made, 0):
        assert not made.missed("a", row, 1)
    (third, _) = taken(made, 1)
    assert not made.missed("a", third, 1)
    made.ended("a", "a3", 1)
    return made


def test_a_host_that_cannot_be_reached_is_left_alone_and_tried_once() -> None:
    made = open_breaker()
    assert taken(made, 10.9) == []
    assert made.wake() == 11.0
    assert taken(made, 11) == ["a4"]
    assert not made.missed("a", "a4", 12)
    assert made.wake() == 32.0
    assert taken(made, 32) == ["a5"]
    assert made.missed("a", "a5", 33)
    assert made.give_up("a") == ["a6", "a7", "a8", "a9"]
    assert made.waiting == 0
    assert taken(made, 10**6) == []


def test_a_trial_that_reaches_its_host_lets_all_go_on() -> None:
    made = open_breaker()
    assert taken(made, 11) == ["a4"]
    made.reached("a", 12)
    assert taken(made, 12) == ["a5", "a6"]
    # The count begins anew.
    assert not made.missed("a", "a5", 13)
    assert not made.missed("a", "a6", 13)
    assert taken(made, 13) == ["a7", "a8"]


def test_a_trial_that_says_nothing_is_followed_by_another() -> None:
    made = open_breaker()
    assert taken(made, 11) == ["a4"]
    made.ended("a", "a4", 12)
    assert taken(made, 12) == ["a5"]


def test_one_row_alone_opens_no_breaker() -> None:
    row = object()
    made = schedule(a=[row, "other"])
    assert taken(made, 0) == [row, "other"]
    for now in range(1, 9):
        made.missed("a", row, now)
        made.put_off("a", row, now, now)
        assert taken(made, now) == [row]


def test_rows_under_way_when_the_breaker_opens_are_no_trials() -> None:
    made = schedule(replace(LIMITS, per_host=4), a=["a1", "a2", "a3", "a4", "a5"])
    assert len(taken(made, 0)) == 4
    for row in ("a1", "a2", "a3"):
        made.missed("a", row, 1)
    assert taken(made, 11) == []  # a4 is still out
    assert not made.missed("a", "a4", 12)
    assert taken(made, 12) == ["a5"]


def test_all_can_be_given_up() -> None:
    made = schedule(a=["a1", "a2", "a3"], b=["b1"])
    assert taken(made, 0) == ["a1", "b1", "a2"]
    made.reached("b", 1)
    made.put_off("b", "b1", 5.0, 1)
    assert made.give_up() == ["a3", "b1"]
    made.reached("a", 2)
    assert taken(made, 99) == []
    assert made.waiting == 0


EVENTS = st.lists(st.sampled_from(["reached", "missed", "ended", "later", "wait"]), max_size=60)


@settings(max_examples=60)
@given(EVENTS, st.integers(1, 3), st.sampled_from([None, 2.0]), st.integers(1, 12))
def test_no_row_is_lost_or_begun_twice(
    events: list[str], per_host: int, rate: float | None, rows: int
) -> None:
    limits = replace(LIMITS, per_host=per_host, rate=rate)
    mine = [(host, number) for number in range(rows) for host in "ab"]
    made: Schedule[tuple[str, int]] = Schedule(lambda _: limits)
    for row in mine:
        made.add(row[0], row, 0.0)
    out: list[tuple[str, int]] = []
    done: list[tuple[str, int]] = []
    now = 0.0
    for event in [*events, *["reached", "wait"] * 200]:
        while (row := made.take(now)) is not None:
            assert row not in out
            assert row not in done
            out.append(row)
        assert all(sum(row[0] == host for row in out) <= per_host for host in "ab")
        if event == "wait" or not out:
            wake = made.wake()
            assert wake is not None or out or not made.waiting
            now = max(now, wake or now)
            continue
        row = out.pop(0)
        if event == "missed":
            if made.missed(row[0], row, now):
                done += made.give_up(row[0])
            done.append(row)
        elif event == "later":
            made.reached(row[0], now)
            made.put_off(row[0], row, now + 3, now)
        else:
            (made.ended if event == "ended" else lambda host, _, at: made.reached(host, at))(
                row[0], row, now
            )
            done.append(row)
    assert sorted(done) == sorted(mine)
