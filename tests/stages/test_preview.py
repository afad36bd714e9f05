"""What a contact sheet shows of a clip."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from reelmill.flows import preview
from reelmill.media.decode import frames
from tests.stages.media_samples import number_of, numbers, sample


def test_a_clip_is_shown_by_pictures_spread_over_it_and_no_other_is_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted: list[int] = []

    def to_rgb(frame: Any, size: tuple[int, int]) -> Any:
        converted.append(frame.pts)
        return convert(frame, size)

    convert = preview.to_rgb
    monkeypatch.setattr(preview, "to_rgb", to_rgb)
    path = sample("plain.mp4")
    there = numbers(path)
    shown = preview.clip_pictures(path.read_bytes())
    places = [len(there) // 6, len(there) // 2, 5 * len(there) // 6]
    assert [number_of(picture.mean(axis=2)) for picture in shown] == [there[n] for n in places]
    assert len(converted) == 3


def test_a_clip_that_breaks_off_is_shown_by_what_comes_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preview, "frames", lambda video: islice(frames(video), 4))
    [picture] = preview.clip_pictures(sample("plain.mp4").read_bytes())
    assert number_of(picture.mean(axis=2)) == 3
