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
import pyarrow as pa
import pytest
from pydantic import ValidationError

from reelmill.errors import RecipeError, Rejected
from reelmill.flows.derivation import derivation
from reelmill.media.cut import encode
from reelmill.media.cut.output import CODECS
from reelmill.media.scenes import (
    KINDS,
    AdaptiveDetector,
    ContentDetector,
    detect,
    find,
    kept,
    ranges,
)
from reelmill.shards import parquet
from reelmill.shards.reader import Sample, ShardReader
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
    assert key(split({**several, "detector": "content"})) == key(split(several))
    assert key(split({"jobs": 3})) == key(split({}))
    assert key(split({**several, "method": "spans"})) == key(split({"method": "spans"}))
    assert key(split({"threshold": 27})) == key(split({})) != key(split({"threshold": 26}))
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
        (SplitParams, {"method": "fixed", "seconds": "0.5"}, "less than min_seconds (1s)"),
        (SplitParams, {"detectors": ["hash"], "threshold": 20}, "within them"),
        (SplitParams, {"detectors": ["hash"], "detector": "adaptive"}, "within them"),
        (ScenesParams, {"detectors": ["hash"], "min_scene": 2}, "within them"),
        (SplitParams, {"weights": "/net.pth"}, "weights are for detector transnetv2"),
        (ScoresParams, {"weights": "/net.pth"}, "weights are for detector transnetv2"),
        (SplitParams, {"cut": "copy", "crf": 20}, "cut 'copy' leaves clips as they are"),
        (SplitParams, {"cut": "copy", "preset": "fast"}, "cut 'copy' leaves clips as they are"),
    ],
)
def test_params_that_cannot_work_are_refused(model: Any, params: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(params)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"video": "fast"}, "clips.video: must be a mapping, not 'fast'"),
        ({"detectors": "content"}, "clips.detectors: must be a list, not 'content'"),
        ({"detectors": [{"threshold": 3}]}, "clips.detectors[0]: has no kind, which says what it"),
        ({"detectors": ["sharp"]}, "clips.detectors[0]: must be one of 'content', 'adaptive', "),
        (
            {"detectors": [{"kind": "hash", "bits": 1}]},
            "clips.detectors[0].bits: unknown parameter of stage split; choose from min_scene, "
            "min_frames, kind, threshold, size, lowpass",
        ),
        (
            {"detectors": [{"kind": "content", "weights": [1, 2]}]},
            "clips.detectors[0].weights: has too few values",
        ),
    ],
)
def test_what_is_wrong_in_a_nested_parameter_is_said_in_words_of_yaml(
    params: Any, told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        derivation("./store", ["videos@v1"], "clips", "split", params)
    assert told in str(caught.value)
    assert "more)" not in str(caught.value)


@pytest.mark.parametrize(("crf", "codec"), [(60, "av1"), (51, "h264")])
def test_the_short_forms_have_the_bounds_of_the_codec(crf: int, codec: str) -> None:
    preset = CODECS[codec].presets[-1]
    short = {"video": {"codec": codec}, "crf": crf, "preset": preset}
    long = {"video": {"codec": codec, "crf": crf, "preset": preset}}
    split = SplitParams.model_validate
    assert key_params(split(short)) == key_params(split(long))
    with pytest.raises(ValidationError, match="crf is 0 to 51 for hevc"):
        split({"video": {"codec": "hevc"}, "crf": 52})


def test_scenes_are_exact_in_any_time_base(bench: Bench) -> None:
    shard = bench.make("scenes", bench.make("scores", bench.videos(sample("late.mp4"))))
    (key,) = bench.samples(shard)
    ((start, end),) = scenes_of(ShardReader(bench.store, shard), key)
    assert (start, end) == (Fraction(45, 30), Fraction(105, 30))


CLOCK = {"time_base": "1/30", "rate": "30", "origin": 0, "end": 3}


def _scores(clock: Any = CLOCK, **columns: Any) -> bytes:
    """A file of scores that is made by hand."""
    table = pa.table({"pts": pa.array([0, 1, 2]), "hash": pa.array([0.0, 1.0, 0.0]), **columns})
    return parquet.write(table.replace_schema_metadata({b"clock": json.dumps(clock).encode()}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        _scores([]),
        _scores({}),
        _scores({**CLOCK, "rate": "1e999999999"}),
        _scores({**CLOCK, "rate": "1/0"}),
        _scores({**CLOCK, "time_base": 1 / 30}),
        _scores({**CLOCK, "time_base": "0"}),
        _scores({**CLOCK, "origin": 1e300}),
        _scores({**CLOCK, "end": 10**30}),
        _scores({**CLOCK, "end": 2}),
        _scores(pts=pa.array([0, None, 2])),
        _scores(pts=pa.array([0.0, 1.0, 2.0])),
        _scores(hash=pa.array(["0", "1", "2"])),
        _scores(hash=pa.array([[0.0] * 10, [], []])),
        parquet.write(pa.table({"hash": pa.array([0.0])})),
    ],
)
def test_scores_of_strangers_are_rejected(data: bytes) -> None:
    assert len(kept.unpack(_scores())) == 3
    with pytest.raises(Rejected) as caught:
        kept.unpack(data)
    assert caught.value.reason == "bad_scores"


def test_scores_that_unpack_into_more_than_memory_holds_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "MAX_VALUES", 6)
    assert len(kept.unpack(_scores())) == 3
    monkeypatch.setattr(kept, "MAX_VALUES", 5)
    with pytest.raises(Rejected):
        kept.unpack(_scores())


def test_clocks_beyond_the_integers_of_json_are_kept(bench: Bench) -> None:
    path = make_video(
        bench.folder / "far.mkv", 30, pts=range(2**54, 2**54 + 30), time_base=Fraction(1, 1000)
    )
    videos = bench.videos(path)
    assert bench.rejects(videos) == {}
    shard = bench.make("scenes", bench.make("scores", videos))
    (key,) = bench.samples(shard)
    ((start, _),) = scenes_of(ShardReader(bench.store, shard), key)
    assert start == Fraction(2**54, 1000)


@pytest.mark.parametrize(
    "about",
    [
        {"time_base": "1e999999999", "edges": [0, 1]},
        {"time_base": "1/30", "edges": [0, 10**30]},
        {"time_base": "1/30", "edges": ["0", "9" * 4000]},
        {"time_base": "9" * 4000, "edges": [0, 1]},
        {"time_base": "1/30", "edges": [0, 1e400]},
        {"time_base": "1/30", "edges": [1, 0]},
        {"time_base": "1/30", "edges": 1},
    ],
)
def test_scenes_of_strangers_are_rejected(about: Any) -> None:
    class Reader:
        def samples(self, *_: Any) -> Any:
            yield Sample("a", {"json": json.dumps(about).encode()}, {})

    with pytest.raises(Rejected) as caught:
        scenes_of(Reader(), "a")  # type: ignore[arg-type]
    assert caught.value.reason == "bad_scenes"
