"""Copies made from an MP4's index alone are those that FFmpeg makes of its packets."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from reelmill.media.cut import Clip, CutFailure, boxes, cut_spans, plan
from reelmill.media.cut import copy as module
from reelmill.media.probe import probe
from reelmill.media.spans import Span, fixed

from .media_samples import real_media, sample

F = Fraction
INDEXED = ("plain.mp4", "fast.mp4", "silent.mp4", "late.mp4", "rotated.mp4")
SPANS = [*fixed(F(0), F(3), F(1, 2)), (F(0), F(3)), (F(1), F(3))]


def _copy(source: Path, spans: list[Span], out: Path) -> list[Clip | CutFailure]:
    out.mkdir()
    return cut_spans(source, spans, out, mode="copy", timeout_s=60)


def _both(
    source: Path, spans: list[Span], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[Clip | CutFailure]]:
    """What becomes of ``spans`` by tables, and by packets."""
    written: list[Path] = []

    def counted(path: Path, *arguments: Any) -> int:
        written.append(path)
        return boxes.write_mp4(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_mp4", counted)
        ours = _copy(source, spans, folder / "ours")
    assert len(written) >= sum(isinstance(clip, Clip) for clip in ours) > 0
    with monkeypatch.context() as patch:
        patch.setattr(plan, "_from_tables", lambda *_: None)
        return [ours, _copy(source, spans, folder / "theirs")]


def _packets(path: Path) -> list[tuple[Any, ...]]:
    with av.open(str(path)) as container:
        found = [
            (
                packet.stream.type,
                packet.pts * packet.time_base,
                packet.dts * packet.time_base,
                packet.duration * packet.time_base,
                packet.is_keyframe,
                bytes(packet),
            )
            for packet in container.demux()
            if packet.size
        ]
    return sorted(found, key=lambda one: (one[0], one[2]))


def _facts(outcome: Clip | CutFailure) -> Clip | CutFailure:
    if isinstance(outcome, CutFailure):
        return outcome
    return replace(outcome, path=Path(outcome.path.name), size=0)


@pytest.mark.parametrize("name", INDEXED)
def test_both_ways_give_the_same_packets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = _both(sample(name), SPANS, tmp_path, monkeypatch)
    _assert_same(ours, theirs)


@pytest.mark.parametrize(
    "path", [one for one in real_media() if one.suffix == ".mp4"], ids=lambda path: path.name
)
def test_real_clips_too(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(path, check=False)
    spans = [(F(0), info.duration / 2), (info.duration / 2, info.duration)]
    index = plan.read_index(path, True)
    if not index.laid:
        pytest.skip("its index leaves room for doubt")
    ours, theirs = _both(path, spans, tmp_path, monkeypatch)
    _assert_same(ours, theirs)


def _assert_same(ours: list[Clip | CutFailure], theirs: list[Clip | CutFailure]) -> None:
    assert list(map(_facts, ours)) == list(map(_facts, theirs))
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Clip) and isinstance(other, Clip):
            assert one.size == one.path.stat().st_size
            _assert_same_packets(one.path, other.path)
            # As an opened file says it, with all that the index holds.
            mine, its = (
                replace(probe(path), size_bytes=0, container_bit_rate=None)
                for path in (one.path, other.path)
            )
            assert mine == its


def _assert_same_packets(one: Path, other: Path) -> None:
    ours, theirs = _packets(one), _packets(other)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine[0] == its[0]
        assert mine[3:] == its[3:]
        # FFmpeg's muxer begins late sound at a whole millisecond.
        slack = F(1, 1000) if mine[0] == "audio" else F(0)
        assert abs(mine[1] - its[1]) <= slack
        assert abs(mine[2] - its[2]) <= slack


@pytest.mark.parametrize("name", INDEXED)
def test_both_ways_read_the_same_index(name: str) -> None:
    by_tables = plan.read_index(sample(name), True)
    by_packets = plan._from_packets(sample(name), True)
    assert by_tables.laid
    assert not by_packets.laid
    for one, other in zip(by_tables.tables, by_packets.tables, strict=True):
        for column in ("pts", "dts", "duration", "keyframe", "hidden"):
            assert np.array_equal(getattr(one, column), getattr(other, column)), column
    assert np.array_equal(by_tables.changes, by_packets.changes)


@pytest.mark.parametrize("name", ["open.mp4", "hidden.mp4", "trimmed.mp4", "plain.mkv", "odd.mp4"])
def test_others_are_left_to_ffmpeg_or_come_out_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = _copy(sample(name), [(F(0), F(1))], tmp_path / "ours")
    monkeypatch.setattr(plan, "_from_tables", lambda *_: None)
    theirs = _copy(sample(name), [(F(0), F(1))], tmp_path / "theirs")
    assert list(map(_facts, ours)) == list(map(_facts, theirs))


@pytest.mark.parametrize("junk", [b"\xff", b"\0"])
def test_clip_that_begins_with_junk_is_rejected(junk: bytes, tmp_path: Path) -> None:
    """Each clip's first packet is looked at, though only one is decoded."""
    index = plan.read_index(sample("silent.mp4"), False)
    places = index.video.cut_points.tolist()
    bad = places[1]
    data = bytearray(sample("silent.mp4").read_bytes())
    # All of the GOP, so that nothing in it can be decoded.
    begin, stop = int(index.laid[0].offset[bad]), int(index.laid[0].offset[places[2]])
    data[begin:stop] = junk * (stop - begin)
    source = tmp_path / "damaged.mp4"
    source.write_bytes(data)
    edges = [int(pts) * index.video.time_base for pts in index.video.pts[places]]
    spans = list(zip(edges, [*edges[1:], F(3)], strict=True))
    outcomes = _copy(source, spans, tmp_path / "out")
    assert [getattr(one, "reason", None) for one in outcomes] == [
        "undecodable" if number == 1 else None for number in range(len(spans))
    ]
    assert not list((tmp_path / "out").glob("000001.*"))


def test_samples_that_share_bytes_are_left_to_ffmpeg() -> None:
    index = plan.read_index(sample("silent.mp4"), False)
    laid = index.laid[0]
    size = sample("silent.mp4").stat().st_size
    assert plan._can_copy([(index.video, laid)], size)
    longer = laid.size.copy()
    longer[3] += 1
    assert not plan._can_copy([(index.video, replace(laid, size=longer))], size)
    assert not plan._can_copy([(index.video, laid)], int(laid.offset[-1]))
    assert not plan._can_copy([(index.video, replace(laid, offset=laid.offset[::-1]))], size)
    assert not plan._can_copy([(index.video, replace(laid, format=b"encv"))], size)
