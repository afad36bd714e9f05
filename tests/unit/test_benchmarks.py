"""Benchmarks are run by hand: here, that each can be imported, is listed, and is documented."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from tests.benchmarks.__main__ import ALL

ROOT = Path(__file__).parents[2]


def test_every_module_imports_and_each_with_a_run_is_listed() -> None:
    stems = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")} - {"__main__"}
    modules = {stem: importlib.import_module(f"tests.benchmarks.{stem}") for stem in stems}
    assert {stem for stem, module in modules.items() if hasattr(module, "run")} == set(ALL)
    assert all(modules[name].__doc__ for name in ALL)


def test_the_documentation_has_a_row_for_each() -> None:
    text, *_ = (ROOT / "docs" / "benchmarks.md").read_text().partition("## What we saw")
    assert sorted(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == sorted(ALL)
