"""What a contact sheet shows of a clip."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from reelmill.flows import preview
from reelmill.media.decode import frames
from reelmill.media.flow import encode, encode_mask
from reelmill.shards.reader import Sample
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


def test_a_mask_stands_behind_its_flow() -> None:
    white = encode_mask(np.ones((32, 32), bool))
    still = encode(np.zeros((32, 32, 2), np.float32), "kitti")
    fields = {
        "000000.flow.png": still,
        "000000.image.png": white,
        "000000.occluded.png": white,
        "000001.depth.png": white,
        "000001.flow_back.png": still,
        "000001.image.png": white,
        "000001.occluded_back.png": white,
    }
    pictures, labels = preview._pictures(Sample("key", fields, {}))
    first, second = ["0", "from 0", "occluded"], ["1", "1 depth", "back from 1", "occluded"]
    assert labels == [*first, *second]
    assert len(pictures) == len(labels)
