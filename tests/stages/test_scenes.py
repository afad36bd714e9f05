"""Scene cuts: PySceneDetect's, on frame times, over the whole of the best video stream."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import av
import pytest

from reelmill.errors import Rejected
from reelmill.media.probe import packet_table
from reelmill.media.scenes import Detector, detect

from .media_samples import CUTS, UNEVEN, real_media, sample

F = Fraction


def _whole(path: Path) -> tuple[Fraction, Fraction]:
    table = packet_table(path)
    return int(table.shown[0]) * table.time_base, table.end_pts * table.time_base


@pytest.mark.parametrize("detector", ["content", "adaptive", "hash", "histogram"])
def test_cuts_fall_on_the_first_frame_of_each_scene(detector: Detector) -> None:
    path = sample("scenes.mkv")
    spans = detect(path, detector=detector)
    assert [start for start, _ in spans] == [F(UNEVEN[frame], 1000) for frame in (0, *CUTS)]
    assert (spans[0][0], spans[-1][1]) == _whole(path)
    assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_fade_is_cut_at_a_frame() -> None:
    spans = detect(sample("fade.mkv"), detector="threshold")
    assert len(spans) == 2
    assert abs(UNEVEN.index(int(spans[1][0] * 1000)) - 45) <= 3


@pytest.mark.parametrize("name", ["plain.mp4", "late.mp4", "plain.ts", "hidden.mp4"])
def test_video_without_cuts_is_one_scene(name: str) -> None:
    assert detect(sample(name)) == [_whole(sample(name))]


def test_threshold_and_shortest_scene_are_heeded() -> None:
    path = sample("scenes.mkv")
    assert len(detect(path, threshold=255.0)) == 1
    assert len(detect(path, detector="adaptive", threshold=255.0)) == 1
    assert len(detect(path, min_scene_seconds=1.2)) < len(CUTS) + 1


def test_the_best_stream_is_searched_not_the_first() -> None:
    assert len(detect(sample("two.mkv"))) == len(CUTS) + 1


def _reference(path: Path, detector: Detector) -> list[Fraction]:
    import scenedetect

    kinds = {
        "content": scenedetect.ContentDetector,
        "adaptive": scenedetect.AdaptiveDetector,
        "threshold": scenedetect.ThresholdDetector,
        "hash": scenedetect.HashDetector,
        "histogram": scenedetect.HistogramDetector,
    }
    found: Any = scenedetect.detect(
        str(path), kinds[detector](min_scene_len=0.6), start_in_scene=True, backend="pyav"
    )
    # PySceneDetect has turned FFmpeg's log on for the whole process.
    av.logging.set_level(None)
    return [start.pts * start.time_base for start, _ in found]


@pytest.mark.parametrize("detector", get_args(Detector))
@pytest.mark.parametrize("name", ["scenes.mkv", "fade.mkv", "plain.ts", "hidden.mp4"])
def test_cuts_are_those_of_pyscenedetect(name: str, detector: Detector) -> None:
    spans = detect(sample(name), detector=detector)
    begin = spans[0][0]
    # A fade's place is a frame number at the average rate; ours is the frame nearest to it.
    slack = F(1, 20) if detector == "threshold" else 0
    expected = _reference(sample(name), detector)
    assert len(spans) == len(expected)
    for (start, _), wanted in zip(spans, expected, strict=True):
        assert abs(start - begin - wanted) <= slack


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "tree.avi"])
def test_cuts_of_real_clips_are_those_of_pyscenedetect(name: str) -> None:
    path = next((p for p in real_media() if p.name == name), None)
    if path is None:
        pytest.skip("no real clips here")
    for detector in ("content", "hash"):
        starts = [start for start, _ in detect(path, detector=detector)]
        assert starts == _reference(path, detector)


def test_damage_is_passed_over_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(sample("scenes.mkv").read_bytes())
    third = len(data) // 3
    data[third : third + 20] = b"\xa5" * 20
    spans = detect(bytes(data))
    assert spans[0][0] == 0
    assert len(spans) > 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html><body>404</body></html>", "not_video"),
        (b"", "empty"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "undecodable"),
    ],
)
def test_unreadable_source_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        detect(data)
    assert caught.value.reason == reason


def test_source_without_a_decodable_frame_is_rejected() -> None:
    data = bytearray(sample("fast.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = b"\xff" * (len(data) - at)
    with pytest.raises(Rejected) as caught:
        detect(bytes(data))
    assert caught.value.reason == "undecodable"
