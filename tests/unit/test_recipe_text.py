"""Entries put into the text of a recipe: all else stays, and it reads as it should."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.recipe import read_document
from reelmill.recipe_text import append

FLOW = """\
# Films.
store: ./store   # here
sources:
  urls:  {path: urls.csv}

# What is made.
datasets:
  videos:   {stage: download, from: urls}   # all
  # clips: later

# The end.
"""
BLOCK = """\
store: ./store
datasets:
    clips:
        stage: split
        max_seconds: 8s     # short

# Tables.
sources:
    urls:
        path: urls.csv
"""
JSON = """\
{"store": "s", "datasets": {
  "a": {"stage": "x"},
  "b": {"stage": "y"}
}}
"""
ENTRY = {"stage": "frames", "from": "clips", "count": 3}


def added(text: str, section: str = "datasets", **value: Any) -> str:
    before = read_document(text, "recipe.yaml", {})
    after = append(text, section, "more", value or ENTRY, file="recipe.yaml")
    expected = before | {section: {**(before.get(section) or {}), "more": value or ENTRY}}
    assert read_document(after, "recipe.yaml", {}) == expected
    return after


def only_line(before: str, after: str) -> str:
    """The one line that is new."""
    old, new = before.splitlines(), after.splitlines()
    (line,) = [line for line in new if line not in old]
    assert [one for one in new if one != line] == old
    return line


def test_an_entry_looks_like_the_one_before_it() -> None:
    after = added(FLOW)
    assert only_line(FLOW, after) == "  more:     {stage: frames, from: clips, count: 3}"
    assert "  # clips: later\n  more:" in after
    assert after.endswith("\n\n# The end.\n")
    block = added(BLOCK)
    assert "# short\n    more:\n        stage: frames\n        from: clips\n" in block
    assert "        count: 3\n\n# Tables.\n" in block
    long = added(FLOW, **{f"parameter_{n}": "a long value" for n in range(5)})
    assert '\n  more:\n    parameter_0: "a long value"\n' in long


def test_json_gets_json() -> None:
    after = added(JSON)
    assert '"b": {"stage": "y"},\n  "more": {"stage": "frames", "from": "clips"' in after
    assert after.endswith('"count": 3}\n}}\n')
    assert '"sources": {"more"' in added(JSON, "sources", version="clips@v1")


def test_a_section_that_is_absent_comes_before_the_datasets_and_their_comment() -> None:
    text = "store: s\n\n# What is made.\ndatasets:\n  a: {stage: x}\n"
    after = added(text, "sources", version="clips@v1")
    assert after == text.replace("# What", "sources:\n  more: {version: clips@v1}\n# What")


@pytest.mark.parametrize(
    "text",
    [
        "datasets:\n  a: {stage: x}",
        "datasets: {a: {stage: x}}\n",
        "datasets: {a: {stage: x},}\n",
        "datasets: {\n  a: {stage: x},  # why\n}\n",
        "datasets: {}\n",
        "datasets:\n",
        "datasets:\n\nstore: s\n",
        "datasets:\n  a:\n    note: |\n      # no comment\n      text\n\nstore: s\n",
        "datasets:\n  a:\n    note: >-\n      text\n",
        "datasets:\n  a: [1,\n    2]\n# end\n",
        "datasets:\r\n  a: {stage: x}\r\nstore: s\r\n",
        "\ufeffdatasets:\n  a: {stage: x}\n",
        "---\ndatasets:\n  a: {stage: x}\n...\n",
        "datasets:\n  'a': {stage: x}\n",
        'datasets: {"ä": {stage: x}}\n',
    ],
)
def test_whatever_the_layout(text: str) -> None:
    after = added(text)
    assert ("\r\n" in after) == ("\r\n" in text)
    assert after.replace("\r\n", "").count("\r") == 0
    assert after.startswith("\ufeff") == text.startswith("\ufeff")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(value=st.dictionaries(st.sampled_from(["stage", "with", "from"]), VALUES, min_size=1))
@pytest.mark.parametrize("text", [FLOW, BLOCK, JSON])
def test_every_value_is_read_as_it_was(text: str, value: dict[str, Any]) -> None:
    added(text, **value)
