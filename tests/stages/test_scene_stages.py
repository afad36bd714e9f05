"""Stages scores and scenes: decode once, then look for cuts as often as one likes."""

from __future__ import annotations

import json
import threading
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from reelmill.errors import Rejected
from reelmill.media.cut import encode
from reelmill.media.scenes import (
    KINDS,
    AdaptiveDetector,
    ContentDetector,
    detect,
    find,
    kept,
    ranges,
)
from reelmill.shards.reader import ShardReader
from reelmill.tasks.contract import key_params
from reelmill.tasks.scenes import ScenesParams, scenes_of
from reelmill.tasks.scores import FIELD, ScoresParams
from reelmill.tasks.split import SplitParams

from .media_samples import CUTS, UNEVEN, make_video, picture, sample, x264
from .test_stages import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_scores_are_kept_and_cuts_found_in_them(bench: Bench) -> None:
    path = sample("scenes.mkv")
    scored = bench.make("scores", bench.videos(path, sample("audio.m4a")))
    (made,) = bench.samples(scored).values()
    assert made.columns["frames"] == len(UNEVEN)
    assert set(bench.rejects(bench.make("scores", bench.videos(path)))) == set()
    scenes = bench.make("scenes", scored)
    (found,) = bench.samples(scenes).values()
    about = json.loads(found.fields["json"])
    assert about["source"]["url"].endswith(path.name)
    assert [span["start"] for span in about["spans"]] == [UNEVEN[i] / 1000 for i in (0, *CUTS)]
    assert (found.columns["scenes"], found.columns["frames"]) == (len(CUTS) + 1, len(UNEVEN))
    assert scenes_of(ShardReader(bench.store, scenes), found.key) == detect(
        path, [ContentDetector()]
    )


def test_every_detector_is_served_by_what_is_scored_without_being_asked(bench: Bench) -> None:
    scored = bench.make("scores", bench.videos(sample("fade.mkv")))
    (made,) = bench.samples(scored).values()
    scores = kept.unpack(made.fields[FIELD])
    # All but the network, whose weights must be given.
    kinds = {name: kind for name, kind in KINDS.items() if name != "transnetv2"}
    for name, kind in kinds.items():
        shard = bench.make("scenes", scored, detector=name)
        (found,) = bench.samples(shard).values()
        assert found.columns["scenes"] == len(find(scores, [kind()])) + 1


def test_same_cuts_are_same_bytes_whatever_found_them(bench: Bench) -> None:
    scored = bench.make("scores", bench.videos(sample("scenes.mkv")))
    ways: list[dict[str, Any]] = [
        {},
        {"threshold": 20},
        {"detector": "hash"},
        {"detectors": ["content", {"kind": "adaptive", "threshold": 2}]},
    ]
    made = [bench.make("scenes", scored, **way) for way in ways]
    assert len({shard.tar.digest for shard in made if shard.tar}) == 1
    assert len({shard.index.digest for shard in made}) == 1
    other = bench.make("scenes", scored, threshold=255)
    assert other.tar != made[0].tar


def test_what_was_not_scored_is_said(bench: Bench) -> None:
    scored = bench.make("scores", bench.videos(sample("silent.mp4")), detectors=["hash"])
    assert list(bench.rejects(bench.make("scenes", scored)).values()) == ["no_scores"]
    videos = bench.videos(sample("silent.mp4"))
    assert list(bench.rejects(bench.make("scenes", videos)).values()) == ["no_scores"]
    with pytest.raises(Rejected) as caught:
        scenes_of(ShardReader(bench.store, scored), "another")
    assert caught.value.reason == "no_scenes"
    key = next(iter(bench.samples(scored)))
    with pytest.raises(Rejected) as caught:
        scenes_of(ShardReader(bench.store, scored), key)
    assert caught.value.reason == "bad_scenes"


def test_skimmed_scores_find_what_stands_at_keyframes(bench: Bench) -> None:
    videos = bench.videos(sample("scenes.mkv"))
    scored = bench.make("scores", videos, detectors=["content"], exact=False)
    (made,) = bench.samples(scored).values()
    assert made.columns["frames"] < len(UNEVEN)
    (found,) = bench.samples(bench.make("scenes", scored)).values()
    starts = [edge for edge, _ in pairwise(json.loads(found.fields["json"])["edges"])]
    assert starts == [UNEVEN[i] for i in (0, *CUTS)]


def test_stages_on_several_cores_have_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "LEAST_FRAMES", 10)
    monkeypatch.setattr(encode, "MAX_GROUP", 2)
    path = make_video(
        tmp_path / "scenes.mp4",
        90,
        draw=lambda number: picture(number) ^ np.uint8(255 * (number >= 43)),
        options=x264(),
    )
    decoders: list[threading.Thread] = []
    encoders: list[int] = []
    piece, run_each = ranges._piece, encode.run_each

    def watched_piece(*args: Any) -> Any:
        decoders.append(threading.current_thread())
        return piece(*args)

    def watched_run(*args: Any, jobs: int, **more: Any) -> Any:
        encoders.append(jobs)
        return run_each(*args, jobs=jobs, **more)

    monkeypatch.setattr(ranges, "_piece", watched_piece)
    monkeypatch.setattr(encode, "run_each", watched_run)
    made = []
    for jobs in (1, 3):
        bench = Bench(tmp_path / str(jobs))
        videos = bench.videos(path)
        split = bench.make("split", videos, cut="exact", seconds="0.3s", min_seconds=0, jobs=jobs)
        clips = bench.samples(split).values()
        assert len(clips) == 11
        assert 43 in {clip.columns["start_frame"] for clip in clips}
        made.append((split, bench.make("scores", videos, jobs=jobs)))
    assert made[0] == made[1]
    assert encoders == [1, 3]
    # Three pieces for each of the two stages.
    assert len(decoders) == 6
    assert threading.current_thread() not in decoders


def test_params_with_one_meaning_have_one_key() -> None:
    def key(params: Any) -> dict[str, Any]:
        return key_params(params)

    assert key(ScenesParams(threshold=Decimal(20))) == key(
        ScenesParams.model_validate({"detectors": [{"kind": "content", "threshold": "20"}]})
    )
    assert key(ScenesParams()) != key(ScenesParams(threshold=Decimal(20)))
    scored = ScoresParams.model_validate
    assert key(scored({"detectors": ["hash", "adaptive"], "bins": 64, "jobs": 4})) == key(
        scored({"detectors": ["content", "hash"], "kernel_size": 5})
    )
    split = SplitParams.model_validate
    several = {"detectors": ["adaptive"]}
    assert key(split({**several, "detector": "hash"})) == key(split(several))
    assert key(split({"jobs": 3})) == key(split({}))
    assert key(split({**several, "method": "spans"})) == key(split({"method": "spans"}))
    assert AdaptiveDetector() in split(several).detectors


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (ScenesParams, {"detector": "hash", "threshold": 27}, "less than or equal to 1"),
        (ScenesParams, {"detectors": ["sharp"]}, "sharp"),
        (ScoresParams, {"exact": False}, "threshold need exact: true"),
        (ScoresParams, {"kernel_size": 6, "edges": True}, "odd"),
        (ScoresParams, {"detectors": []}, "at least 1"),
        (SplitParams, {"detector": "adaptive", "exact_scenes": False}, "exact_scenes: true"),
        (SplitParams, {"threshold": 300}, "255"),
    ],
)
def test_params_that_cannot_work_are_refused(model: Any, params: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(params)
    assert message in str(caught.value)


def test_scenes_are_exact_in_any_time_base(bench: Bench) -> None:
    shard = bench.make("scenes", bench.make("scores", bench.videos(sample("late.mp4"))))
    (key,) = bench.samples(shard)
    ((start, end),) = scenes_of(ShardReader(bench.store, shard), key)
    assert (start, end) == (Fraction(45, 30), Fraction(105, 30))
