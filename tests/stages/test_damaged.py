"""Damaged files: each gives its reason, and harms nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reelmill.errors import Rejected
from reelmill.media.decode import frames
from reelmill.media.describe import describe
from reelmill.media.probe import probe

from .damaged import DAMAGED, damaged
from .media_samples import sample
from .test_stages import Bench, fixed

GOOD = ("plain.mp4", "uneven.mkv", "plain.ts", "vp9.webm")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_gives_its_reason(name: str) -> None:
    reason = DAMAGED[name].reason
    if reason is None:
        assert describe(damaged(name)).timing.frames
        return
    with pytest.raises(Rejected) as caught:
        describe(damaged(name))
    assert caught.value.reason == reason, caught.value.message


@pytest.mark.parametrize("name", DAMAGED)
def test_the_header_and_the_first_frame_tell_all_but_the_times(name: str) -> None:
    reason = DAMAGED[name].reason
    if reason in (None, "timestamps"):
        assert probe(damaged(name)).width
        return
    with pytest.raises(Rejected) as caught:
        probe(damaged(name))
    assert caught.value.reason == reason, caught.value.message


@pytest.mark.parametrize("name", [name for name, one in DAMAGED.items() if one.reason is None])
def test_frames_with_times_can_be_had_of_what_is_not_rejected(name: str) -> None:
    stamps = [frame.pts for frame in frames(damaged(name))]
    assert len(stamps) > 10
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("cut", ["exact", "copy"])
def test_each_reject_has_its_reason_and_all_else_is_cut(tmp_path: Path, cut: str) -> None:
    bench = Bench(tmp_path)
    paths = [*map(damaged, DAMAGED), *map(sample, GOOD)]
    wanted = {f"{n:09d}": one.reason for n, one in enumerate(DAMAGED.values()) if one.reason}
    videos = bench.videos(*paths)
    assert bench.rejects(videos) == wanted
    assert videos.samples == len(paths) - len(wanted)
    taken = set(bench.samples(videos))
    assert taken == {f"{n:09d}" for n in range(len(paths))} - wanted.keys()

    clips = bench.make("split", videos, **fixed("1s", cut=cut, min_seconds="0s"))
    made = {key.split("_")[0] for key in bench.samples(clips)}
    lost = {key.split("_")[0] for key in bench.rejects(clips)}
    assert made | lost == taken
    assert {f"{n:09d}" for n in range(len(DAMAGED), len(paths))} <= made - lost
    # Copies need keyframes where the clips begin, which some damage leaves none of.
    assert set(bench.rejects(clips).values()) <= {"no_frames", "no_keyframe", "container"}
    assert cut == "copy" or made == taken


def test_without_the_packets_broken_clocks_come_through(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    names = ("all_at_once.mp4", "half.mp4")
    lines = "".join(f"file://{damaged(name)}\n" for name in names)
    rows = bench.rows("url\n" + lines)
    shard = bench.make("download", rows, allow_files=True, probe="header")
    assert bench.rejects(shard) == {"000000001": "truncated"}
    (made,) = bench.samples(shard).values()
    assert (made.columns["frames"], made.columns["vfr"], made.columns["keyframes"]) == (
        90,
        None,
        None,
    )
