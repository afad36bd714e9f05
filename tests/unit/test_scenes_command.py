"""What ``reelmill scenes`` refuses before it reads a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelmill.errors import ReelmillError
from reelmill.flows.scenes import chosen_detectors, look
from reelmill.media.scenes import ContentDetector


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"threshold": "-1"}, "--threshold: it must be greater than or equal to 0, not -1"),
        ({"threshold": "abc"}, "--threshold: 'abc' is not a number"),
        ({"min_scene": "-1s"}, "--min-scene: '-1s' is below zero"),
        ({"weights": Path("net.pth")}, "--weights is for detector transnetv2: give -d transnetv2"),
        ({"kinds": ["transnetv2"]}, "detector transnetv2 needs --weights"),
        ({"kinds": ["content", "hash"], "threshold": "1"}, "--threshold is for one detector"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(asked: dict[str, Any], told: str) -> None:
    plain = {"kinds": ["content"], "threshold": None, "min_scene": "1s"}
    assert chosen_detectors(**plain)
    with pytest.raises(ReelmillError) as caught:
        chosen_detectors(**plain | asked)
    assert str(caught.value).startswith(told)
    assert "Value error" not in str(caught.value)


def test_a_card_looks_at_all_frames() -> None:
    with pytest.raises(ReelmillError, match="--cuda at all of them: leave one out"):
        look(Path("any.mp4"), [ContentDetector()], jobs=1, exact=False, device="cuda")
