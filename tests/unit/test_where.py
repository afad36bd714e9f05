"""Conditions on columns: what they mean, what they say, and what is no condition."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.where import MAX_TEXT, Condition, ConditionError

ROW: dict[str, Any] = {
    "width": 640,
    "height": 360,
    "score": 0.25,
    "codec": "h264",
    "audio": True,
    "caption": "a cat on a mat",
    "tags": ["pet", "indoor"],
    "none": None,
}

HOLDS = [
    "width >= 640",
    "width == 640.0 and height != 640",
    "0 < score <= 0.25",
    "codec in ['h264', 'hevc']",
    "codec not in ('vp9',)",
    "audio",
    "audio == true and not (width < 3)",
    "'cat' in caption",
    "'pet' in tags",
    "none is null",
    "codec is not null",
    "width * height > 200000",
    "width / height == 16 / 9",
    "-score < 0",
    "none > 3 or audio",
    "not (none > 3 and width < 3)",
]

FAILS = {
    "width > 640": "width 640 is not > 640",
    "audio and score > 0.5": "score 0.25 is not > 0.5",
    "codec == 'vp9'": "codec 'h264' is not == 'vp9'",
    "codec in ['vp9', 'av1']": "codec 'h264' is not in ['vp9', 'av1']",
    "'a cat' not in caption": "'a cat' is in caption 'a cat on a mat'",
    "none > 3": "none null is not > 3",
    "not none": "not none does not hold: none null",
    "codec is null": "codec 'h264' is not null",
    "none is not null": "none is null",
    "height > width": "height 360 is not > width 640",
    "width * height < 1000": "width * height 230400 is not < 1000",
    "width < 3 or height < 3": "width < 3 or height < 3 does not hold: height 360, width 640",
    "1 < score < 2": "1 < score < 2 does not hold: score 0.25",
    "not audio": "not audio does not hold: audio true",
    "width / 0 > 1": "width / 0 null is not > 1",
    "false": "false does not hold",
}

REFUSED = {
    "": "is no condition",
    "width >": "is no condition",
    "width = 3": "is no condition",
    "__import__('os')": "may not be in a condition",
    "().__class__": "may not be in a condition",
    "[x for x in tags]": "may not be in a condition",
    "(lambda: 1)()": "may not be in a condition",
    "width ** 9 > 1": "may not be in a condition",
    "f'{width}' == 'a'": "may not be in a condition",
    "codec[0] == 'h'": "may not be in a condition",
    "width is 3": "'is' is for null only",
    "b'x' == codec": "may not be in a condition",
    "not " * 60 + "audio": "nested too deeply",
    "(" * 900 + "1" + ")" * 900: "cannot be read|is no condition",
    "f(" + "-" * 1990 + "x)": "cannot be read|may not be in a condition",
    "a" * (MAX_TEXT + 1): "at most 2000 characters",
    f"width in [{','.join(['1'] * 900)}]": "at most 2000 characters, with spaces after commas",
}

MISFITS = {
    "codec > 3": "codec is a text and 3 is a number",
    "audio == 1": "audio is true or false and 1 is a number",
    "width": "width is 640, which is not true or false",
    "width and audio": "width is 640, which is not true or false",
    "3 in width": "nothing is in width, which is a number",
    "codec * 2 == codec": "codec is a text, not a number",
    "tags < [1]": r"tags is a list and \[1\] is a list: they cannot be compared",
}


@pytest.mark.parametrize("text", HOLDS)
def test_what_holds(text: str) -> None:
    assert Condition.parse(text).failure(ROW) is None


@pytest.mark.parametrize("text", FAILS)
def test_what_does_not_hold_says_why(text: str) -> None:
    assert Condition.parse(text).failure(ROW) == FAILS[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ConditionError, match=REFUSED[text]):
        Condition.parse(text)


@pytest.mark.parametrize("text", MISFITS)
def test_what_cannot_be_compared(text: str) -> None:
    with pytest.raises(ConditionError, match=MISFITS[text]):
        Condition.parse(text).failure(ROW)


def test_columns_are_known_by_name() -> None:
    condition = Condition.parse("widht > 3 and null is null")
    assert condition.names == ("widht",)
    with pytest.raises(ConditionError, match="no column is named widht; did you mean width"):
        condition.refuse_unknown(ROW)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = Condition.parse(text)
    except ConditionError:
        return
    assert Condition.parse(condition.text).text == condition.text
    with contextlib.suppress(ConditionError):
        condition.failure(dict.fromkeys(condition.names, 1))
