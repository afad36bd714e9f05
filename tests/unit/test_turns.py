"""Files come in the order that is wanted, as far as that is cheap."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reelmill.fetch.transfer import Fetched, FetchFailure, Provenance
from reelmill.fetch.turns import in_turn


class File(Fetched):
    """A file that knows whether it is closed."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__(
            key=key,
            url="",
            size=size,
            sha256="",
            body=b"",
            provenance=Provenance(),
        )
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def keys(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_all_come_in_turn_where_none_is_slow() -> None:
    arriving = keys(200)
    for start in range(0, 200, 8):
        part = arriving[start : start + 8]
        random.Random(start).shuffle(part)
        arriving[start : start + 8] = part
    passed = in_turn([(key, File(key, 1)) for key in arriving], keys(200))
    assert [key for key, _ in passed] == keys(200)


def test_failures_hold_nothing_up() -> None:
    failure = FetchFailure("dns", "", 1, True)
    late = [(key, File(key, 1)) for key in keys(6)[1:]]
    assert [key for key, _ in in_turn([*late, ("0", failure)], keys(6))] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
    ]


def test_one_that_is_slow_holds_up_only_so_many() -> None:
    passed: list[str] = []
    ahead = []
    order = [*keys(50)[1:], "0"]
    for number, (key, _) in enumerate(in_turn(map(_file, order), keys(50), max_held=10)):
        passed.append(key)
        ahead.append(number)
    assert passed[:39] == keys(50)[1:40]
    assert sorted(passed, key=int) == keys(50)
    large = [(key, File(key, 30)) for key in order]
    assert next(key for key, _ in in_turn(large, keys(50), max_held_bytes=100)) == "1"


def _file(key: str) -> tuple[str, File]:
    return key, File(key, 1)


@given(st.permutations(keys(12)), st.integers(0, 5), st.sets(st.sampled_from(keys(12))))
def test_every_outcome_comes_once(order: list[str], held: int, failed: set[str]) -> None:
    failure = FetchFailure("dns", "", 1, True)
    outcomes = [(key, failure if key in failed else File(key, 1)) for key in order]
    assert sorted(in_turn(outcomes, keys(12), max_held=held), key=lambda o: order.index(o[0])) == (
        outcomes
    )


def test_what_is_held_is_closed_with_the_generator(tmp_path: Path) -> None:
    files = [File(key, 1) for key in keys(4)]
    passing = in_turn([(file.key, file) for file in (files[0], *files[2:])], keys(4))
    assert next(passing)[0] == "0"
    assert next(passing)[0] == "2"
    passing.close()
    assert [file.is_closed for file in files] == [False, False, False, True]
