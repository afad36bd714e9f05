"""What ``reelmill bench readers`` asks for, what it makes of times, and how it shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from reelmill.errors import ReelmillError
from reelmill.flows.bench import draw, summary
from reelmill.loading import VideoMetadata, bench
from reelmill.loading.bench import (
    LIMIT,
    PATTERNS,
    REQUEST,
    Access,
    Cost,
    Report,
    Subject,
    measure,
)
from tests.stages.media_samples import sample

PYAV, CARD = Subject("pyav", "cpu", "seek"), Subject("vali", "cuda", "seek")


def video(frames: int) -> VideoMetadata:
    return VideoMetadata(frames, 64, 48, 0.0, frames / 25, 25.0, "h264")


def test_frames_that_follow_each_other_are_asked_for_a_bounded_number_at_a_time() -> None:
    access = Access(frames=75, every=4)
    requests = access.requests("sequential", video(1000))
    assert [number for request in requests for number in request] == list(range(75))
    assert [len(request) for request in requests] == [REQUEST, REQUEST, 75 - 2 * REQUEST]
    assert access.requests("every_nth", video(1000)) == [list(range(0, 75, 4))]
    assert [len(request) for request in access.requests("sequential", video(40))] == [32, 8]


def test_frames_that_are_anywhere_are_the_same_for_all() -> None:
    access = Access(singles=9, clips=3, clip_frames=5)
    (singles,) = access.requests("random", video(1000))
    assert len(singles) == 9
    assert singles != sorted(singles)
    assert access.requests("random", video(1000)) == [singles]
    assert Access(singles=9, seed=1).requests("random", video(1000)) != [singles]
    (clips,) = access.requests("clips", video(1000))
    assert [clips[at + 1] - clips[at] for at in range(14) if at % 5 < 4] == [1] * 12
    # A video that is shorter than a clip.
    assert access.requests("clips", video(2)) == [[0, 1] * 3]


def report(**more: Any) -> Report:
    costs = {
        (LIMIT, "sequential", "/a.mp4"): Cost(100, 1.0, 1.0),
        (LIMIT, "sequential", "/b.mp4"): Cost(100, 3.0, 1.0),
        (PYAV, "sequential", "/a.mp4"): Cost(100, 2.0, 2.0),
        (PYAV, "sequential", "/b.mp4"): Cost(100, 6.0, 6.0),
        (CARD, "sequential", "/a.mp4"): Cost(100, 0.5, 0.25),
        (CARD, "sequential", "/b.mp4"): Cost(why_not="no 10-bit H.264"),
        (PYAV, "random", "/a.mp4"): Cost(10, 2.0, 1.0),
    }
    files = ["/a.mp4", "/b.mp4"]
    return Report(files, Access(), 3, costs | more.pop("costs", {}), {"opencv on cpu": "pip it"})


def test_speeds_are_over_all_files_that_are_read_and_ratios_over_the_same_ones() -> None:
    rows = report().rows
    assert [(row.pattern, row.subject) for row in rows] == [
        ("sequential", LIMIT),
        ("sequential", CARD),
        ("sequential", PYAV),
        ("random", PYAV),
    ]
    limit, card, pyav, random = rows
    assert (limit.frames_per_second, limit.cpu_seconds_per_frame) == (50, 0.01)
    assert (limit.speed_by_ffmpeg, limit.cpu_by_ffmpeg) == (1, 1)
    assert (pyav.files, pyav.frames_per_second, pyav.cpu_seconds_per_frame) == (2, 25, 0.04)
    assert (pyav.speed_by_ffmpeg, pyav.cpu_by_ffmpeg) == (0.5, 4)
    assert (card.files, card.frames_per_second) == (1, 200)
    assert (card.speed_by_ffmpeg, card.cpu_by_ffmpeg) == (2, 0.25)
    assert (random.frames_per_second, random.speed_by_ffmpeg) == (5, 0.05)
    assert report().failed == {(CARD, "/b.mp4"): "no 10-bit H.264"}


def test_without_the_limit_there_are_no_ratios() -> None:
    broken = {(LIMIT, "sequential", "/b.mp4"): Cost(why_not="ffmpeg cannot decode it")}
    rows = {(row.pattern, row.subject): row for row in report(costs=broken).rows}
    assert rows["sequential", PYAV].speed_by_ffmpeg is None
    assert rows["sequential", PYAV].frames_per_second == 25
    assert rows["random", PYAV].cpu_by_ffmpeg == 10
    assert rows["sequential", LIMIT].files == 1


def test_json_has_the_rows_and_what_they_were_made_of() -> None:
    told = report().as_json()
    assert told["rows"][2] == {
        "pattern": "sequential",
        "backend": "pyav",
        "device": "cpu",
        "mode": "seek",
        "files": 2,
        "frames_per_second": 25,
        "cpu_seconds_per_frame": 0.04,
        "speed_by_ffmpeg": 0.5,
        "cpu_by_ffmpeg": 4,
    }
    assert told["missing"] == {"opencv on cpu": "pip it"}
    assert {"why_not": "no 10-bit H.264", "file": "/b.mp4"}.items() <= told["by_file"][5].items()


def test_the_plot_shows_the_limit_where_bars_can_be_compared_with_it() -> None:
    red = (248, 81, 73)

    def limit_by_column(wall: float) -> list[int]:
        """How many pixels of the first panel's bars are in the limit's colour."""
        costs = {(LIMIT, "sequential", file): Cost(100, wall, 1.0) for file in ("/a.mp4", "/b.mp4")}
        data = draw(report(costs=costs), 1600)
        assert data == draw(report(costs=costs), 1600)
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert pixels.shape[1:] == (1600, 3)
        found: list[int] = (pixels[200:270] == red).all(axis=-1).sum(axis=0).tolist()
        return found

    near, far = limit_by_column(0.5), limit_by_column(0.01)
    assert max(near) > 20
    assert max(far) == 0
    # It is as fast as what has the longest bar.
    assert 800 < near.index(max(near)) < 1400


def test_a_summary_names_the_one_file() -> None:
    one = Report(["/x/a.mp4"], Access(frames=1200), 1, {}, {})
    assert summary(one) == "a.mp4, at most 1,200 frames, 1 round"
    assert summary(report()) == "2 files, at most 300 frames each, medians of 3 rounds"


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(ReelmillError, match="no backend decord: there are pyav"):
        measure([tmp_path / "a.mp4"], Access(), backends=["decord"])
    with pytest.raises(ReelmillError, match=r"cannot read .*/a.mp4: No such file"):
        measure([tmp_path / "a.mp4"], Access(), backends=["pyav"])
    (tmp_path / "b.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(ReelmillError, match=r"/b.mp4: not_video"):
        measure([tmp_path / "b.mp4"], Access(), backends=["pyav"])


def test_all_take_turns_and_what_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Any]] = []

    def read(task: Any) -> Cost:
        asked.append((task.subject.backend, task.pattern, task.requests))
        if len(asked) > 18 and (task.subject, task.pattern) == (CARD, "random"):
            raise RuntimeError("the card fell off")
        return Cost(task.frames, float(len(asked)), 1.0)

    monkeypatch.setattr(bench, "_subjects", lambda _: ([PYAV, CARD], {}))
    monkeypatch.setattr(bench, "_read", read)
    monkeypatch.setattr(bench, "_decoded", read)
    told: list[tuple[int, int]] = []
    file = sample("silent.mp4")
    found = measure([file, file], Access(), rounds=3, progress=lambda *so_far: told.append(so_far))
    turns = [(one, pattern) for pattern in PATTERNS for one in ("pyav", "vali")]
    turns.insert(0, ("ffmpeg", "sequential"))
    assert len(turns) == 9
    # Once for the first frame, so that no first use is measured; then in rounds.
    assert [asked[at][:2] for at in range(18)] == turns * 2
    assert all(requests == ((0,),) for _, _, requests in asked[:9])
    assert all(requests != ((0,),) for _, _, requests in asked[9:])
    # In its second round the card fails, and is asked no more.
    failing = turns.index(("vali", "random"))
    left = [turn for turn in turns if turn[0] != "vali"]
    rest = turns[: failing + 1] + [turn for turn in turns[failing + 1 :] if turn in left] + left
    assert [turn[:2] for turn in asked[18:]] == rest
    assert told == [(done, 27) for done in range(1, 28)]
    assert found.failed == {(CARD, str(file)): "RuntimeError: the card fell off"}
    rows = {(row.pattern, row.subject): row for row in found.rows}
    assert set(rows) == {(pattern, PYAV) for pattern in PATTERNS} | {("sequential", LIMIT)}
    # The median of the three, of which the first took 10 seconds and the second 19.
    assert found.costs[LIMIT, "sequential", str(file)].wall == 19
