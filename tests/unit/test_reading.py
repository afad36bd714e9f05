"""How far the reading of a long table is."""

from __future__ import annotations

import io

from rich.console import Console

from reelmill.flows.reading import shown, told


def test_a_line_comes_now_and_then_and_not_at_once() -> None:
    lines: list[str] = []
    watch = told(lines.append, seconds=0)
    watch("urls", "reading rows", 1_000_000)
    assert lines == ["urls: reading rows, 1,000,000 so far"]
    patient = told(lines.append, seconds=1000)
    patient("urls", "reading rows", 2_000_000)
    assert len(lines) == 1


def test_a_screen_has_a_status_and_nothing_else_has() -> None:
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True)) as watch:
        assert watch is not None
    assert "reading the tables" in screen.getvalue()
    log = io.StringIO()
    with shown(Console(file=log)) as watch:
        assert watch is not None
        watch("urls", "reading rows", 1)
    assert log.getvalue() == ""
    with shown(None) as watch:
        assert watch is None
