"""Stage flow, from pictures and straight from clips, on videos whose frames carry their number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from reelmill.errors import Rejected, StageError
from reelmill.media.decode import frames, to_luma
from reelmill.media.flow import Dense, FlowMethod, decode, flow, occluded
from reelmill.media.images import decode_gray, decode_image, encode_png
from reelmill.shards.reader import Sample
from reelmill.tasks import get_stage
from reelmill.tasks.contract import Job, key_params
from reelmill.tasks.flow import Flow, FlowParams
from reelmill.tasks.media_fields import flows_of, pictures_of

from .media_samples import CUTS, NUMBERED, make_video, number_of, sample
from .test_flow import moved, plane
from .test_stages import Bench

FAST = {"preset": "ultrafast", "format": "flo"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def lumas(path: Path) -> list[np.ndarray]:
    return [to_luma(frame) for frame in frames(path)]


def fields_of(one: Sample) -> dict[str, np.ndarray]:
    return {name: decode(one.fields[name], name[-3:]) for _, name in flows_of(one.fields)}


@pytest.mark.parametrize("name", NUMBERED)
def test_flow_of_a_clip_leads_between_the_very_frames_that_it_names(
    bench: Bench, name: str
) -> None:
    """Numbers are read from the pictures, and the flow is that of the frames of these numbers."""
    path = sample(name)
    asked = {"count": 3, "stride": 2, "step": 1, "pictures": {"format": "png"}, **FAST}
    made = bench.samples(bench.make("flow", bench.videos(path), **asked))
    shown = lumas(path)
    burnt = [number_of(one) for one in shown]
    assert len(made) == len(shown) - 4
    for one in made.values():
        about = json.loads(one.fields["json"])
        first = about["frames"][0]
        assert about["frames"] == [first, first + 2, first + 4]
        read = [number_of(decode_gray(one.fields[field])) for _, field in pictures_of(one.fields)]
        assert read == [burnt[number] for number in about["frames"]]
        for place, field in enumerate(("000000.flow.flo", "000001.flow.flo")):
            start = first + 2 * place
            expected = flow(shown[start], shown[start + 2], FlowMethod.DIS_ULTRAFAST)
            assert (decode(one.fields[field], "flo") == expected).all()


@pytest.mark.parametrize("name", ["open.mp4", "uneven.mkv"])
def test_a_sample_of_a_clip_is_that_of_stage_frames_with_flow(bench: Bench, name: str) -> None:
    clips = bench.make(
        "split", bench.videos(sample(name)), method="fixed", seconds="1s", min_seconds="0s"
    )
    asked = {"count": 2, "step": 3, "max_side": 100}
    pictures = bench.samples(bench.make("frames", clips, **asked))
    for kept in (True, False):
        made = bench.samples(bench.make("flow", clips, keep_frames=kept, **asked, **FAST))
        assert made.keys() == pictures.keys()
        for key, one in made.items():
            about = json.loads(one.fields["json"])
            described = about.pop("flow")
            assert about == json.loads(pictures[key].fields["json"])
            assert (described["method"], described["estimated_at"]) == ("dis", [100, 75])
            shown = {field: one.fields[field] for _, field in pictures_of(one.fields)}
            expected = {k: v for k, v in pictures[key].fields.items() if k != "json"}
            assert shown == (expected if kept else {})


def test_no_pair_spans_a_cut_unless_asked(bench: Bench) -> None:
    videos = bench.videos(sample("scenes.mkv"))
    asked = {"count": 2, "step": 1, "keep_frames": False, **FAST}
    pairs = {"auto": set[int](), "ignore": set[int]()}
    for cuts, found in pairs.items():
        made = bench.samples(bench.make("flow", videos, cuts=cuts, **asked))
        found |= {json.loads(one.fields["json"])["frames"][0] for one in made.values()}
    assert pairs["ignore"] == set(range(89))
    assert pairs["auto"] == set(range(89)) - {cut - 1 for cut in CUTS}


def test_frames_are_chosen_as_stage_frames_chooses_them(bench: Bench) -> None:
    videos = bench.videos(sample("uneven.mkv"))
    for chosen in ({"indices": [3, -2]}, {"fps": 10, "max_samples": 4}, {"random": 3, "seed": 5}):
        asked = {"count": 2, **chosen}
        made = bench.make("flow", videos, keep_frames=False, **asked, **FAST)
        pictures = bench.make("frames", videos, **asked)
        assert bench.samples(made).keys() == bench.samples(pictures).keys()
        assert bench.rejects(made) == bench.rejects(pictures)


def moving(path: Path, u: int, v: int) -> Path:
    """A texture that moves by (u, v) pixels from frame to frame, kept without loss."""
    texture = plane(160, 200)
    return make_video(
        path,
        4,
        size=(200, 160),
        codec="ffv1",
        draw=lambda number: moved(texture, np.array([[1.0, 0, u * number], [0, 1, v * number]])),
    )


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("form", ["kitti", "flo", "npy"])
def test_a_known_motion_in_either_direction(
    bench: Bench, tmp_path: Path, method: str, form: str
) -> None:
    videos = bench.videos(moving(tmp_path / "a.mkv", 3, -2))
    pictures = bench.make("frames", videos, count=4, format="png")
    for source in (videos, pictures):
        asked = {"count": 4} if source is videos else {}
        made = bench.make("flow", source, method=method, format=form, direction="both", **asked)
        (one,) = bench.samples(made).values()
        found = fields_of(one)
        assert len(found) == 6
        for name, field in found.items():
            expected = (-3, 2) if "_back" in name else (3, -2)
            middle = field[40:-40, 40:-40].reshape(-1, 2)
            assert np.median(middle, axis=0) == pytest.approx(expected, abs=0.15), name
        assert one.columns["pairs"] == 3
        # More comes in over the border than the frame before can tell of.
        assert one.columns["mean_motion"] == pytest.approx(math.hypot(3, 2), rel=0.15)


def test_vectors_are_stored_at_the_size_that_is_asked_for(bench: Bench, tmp_path: Path) -> None:
    videos = bench.videos(moving(tmp_path / "a.mkv", 4, 0))
    asked = {"count": 2, "max_samples": 1, "format": "flo", "max_side": 100}
    for output, size, u in (({}, (80, 100), 2), ({"size": [50, 80]}, (80, 50), 1)):
        (one,) = bench.samples(bench.make("flow", videos, output=output, **asked)).values()
        field = decode(one.fields["000000.flow.flo"], "flo")
        assert field.shape[:2] == size
        assert decode_image(one.fields["000000.image.jpg"]).shape[:2] == size
        assert (one.columns["height"], one.columns["width"]) == size
        assert np.median(field[20:-20, 10:-10, 0]) == pytest.approx(u, abs=0.1)
        assert json.loads(one.fields["json"])["flow"]["estimated_at"] == [100, 80]


def test_pictures_pair_up_at_a_stride(bench: Bench) -> None:
    pictures = bench.make("frames", bench.videos(sample("silent.mp4")), count=4, max_samples=1)
    made = bench.make("flow", pictures, stride=2, direction="both", **FAST)
    (one,) = bench.samples(made).values()
    shown = [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)]
    expected = {
        "000000.flow.flo": (0, 2),
        "000001.flow.flo": (1, 3),
        "000002.flow_back.flo": (2, 0),
        "000003.flow_back.flo": (3, 1),
    }
    assert fields_of(one).keys() == expected.keys()
    for name, (a, b) in expected.items():
        field = flow(shown[a], shown[b], FlowMethod.DIS_ULTRAFAST)
        assert (decode(one.fields[name], "flo") == field).all()
    assert json.loads(one.fields["json"])["flow"]["pairs"] == [[0, 2], [1, 3]]


def test_masks_go_with_the_flow_that_is_stored(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    asked = {"count": 2, "max_samples": 2, "occlusions": True, **FAST}
    names = {
        "forward": ["000000.occluded.png"],
        "backward": ["000001.occluded_back.png"],
        "both": ["000000.occluded.png", "000001.occluded_back.png"],
    }
    shown = lumas(sample("silent.mp4"))
    for direction, expected in names.items():
        made = bench.samples(bench.make("flow", videos, direction=direction, **asked))
        for one in made.values():
            start = json.loads(one.fields["json"])["frames"][0]
            there = flow(shown[start], shown[start + 1], FlowMethod.DIS_ULTRAFAST)
            back = flow(shown[start + 1], shown[start], FlowMethod.DIS_ULTRAFAST)
            masks = {"000000.occluded.png": occluded(there, back)}
            masks["000001.occluded_back.png"] = occluded(back, there)
            assert sorted(name for name in one.fields if "occluded" in name) == expected
            for name in expected:
                data = np.frombuffer(one.fields[name], np.uint8)
                assert (cv2.imdecode(data, cv2.IMREAD_UNCHANGED) == 255 * masks[name]).all()
            share = np.mean([masks[name].mean() for name in expected])
            assert one.columns["occluded"] == pytest.approx(share, abs=1e-4)


def test_a_pair_in_several_samples_is_estimated_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0

    def count(self: Dense, pairs: Any) -> list[np.ndarray]:
        nonlocal counted
        counted += len(pairs)
        return [np.zeros((*first.shape, 2), np.float32) for first, _ in pairs]

    monkeypatch.setattr(Dense, "__call__", count)
    videos = bench.videos(sample("silent.mp4"))
    made = bench.make("flow", videos, count=4, step=1, keep_frames=False)
    assert made.samples == 87
    assert counted == 89


def test_bytes_do_not_depend_on_what_was_made_before(bench: Bench) -> None:
    paths = [sample("silent.mp4"), sample("scenes.mkv")]
    asked = {"occlusions": True, "output": {"max_side": 64}, "max_samples": 3}
    found = []
    for order in (paths, paths[::-1]):
        made = [bench.samples(bench.make("flow", bench.videos(path), **asked)) for path in order]
        found.append({order[n].name: one for n, one in enumerate(made)})
        cv2.setNumThreads(4)
        cv2.setUseOptimized(True)
    assert found[0] == found[1]


def test_what_cannot_be_paired_is_a_reject(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"), sample("grown.ts"))
    made = bench.make("flow", videos, count=2, step=1, keep_frames=False, cuts="ignore", **FAST)
    assert bench.rejects(made) == {"000000001": "sizes_differ"}
    assert bench.rejects(bench.make("flow", videos, count=1000)) == {
        "000000000": "too_short",
        "000000001": "too_short",
    }
    small = bench.make("flow", bench.videos(sample("silent.mp4")), max_side=32)
    assert bench.rejects(small) == {"000000000": "too_small"}


def test_pictures_of_which_there_are_two_are_a_reject() -> None:
    gray = encode_png(np.zeros((40, 40), np.uint8))
    fields = {"000000.image.jpg": gray, "000000.image.png": gray, "000001.image.png": gray}
    job: Any = Job(cast(Any, None), cast(Any, None), FlowParams(), {}, Path())
    with pytest.raises(Rejected, match=r"000000\.image\.jpg and 000000\.image\.png") as said:
        list(Flow().each(job, Sample("a", fields, {})))
    assert said.value.reason == "same_number"


def test_flow_that_would_fill_memory_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reelmill.media.flow.fields.MAX_PIXELS", 64 * 64)
    videos = bench.videos(sample("silent.mp4"))
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"max_side": 64, "output": {"width": 100, "upscale": True}},
    )
    for asked in choices:
        made = bench.make("flow", videos, keep_frames=False, **asked)
        assert bench.rejects(made) == {"000000000": "too_large"}


def test_pictures_are_not_chosen_from_again(bench: Bench) -> None:
    pictures = bench.make("frames", bench.videos(sample("silent.mp4")), max_samples=1)
    with pytest.raises(StageError, match="count and random would choose frames of clips"):
        bench.make("flow", pictures, count=2, random=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "slow"}, "preset of method 'dis' is one of fast, ultrafast, medium"),
        ({"method": "farneback", "preset": "fast"}, "preset of method 'farneback' has no effect"),
        ({"method": "raft", "preset": "fast"}, "is one of large, small"),
        ({"batch": 4}, "batch is for method 'raft'"),
        ({"device": "cpu"}, "device is for method 'raft'"),
        ({"weights": "/a.pth"}, "weights is for method 'raft'"),
        ({"method": "nvof", "pictures": {"format": "png", "bits": 16}}, "pictures of 16 bits"),
        ({"output": {"size": [10, 10], "mode": "crop"}}, "output scales flow"),
        ({"count": 1}, "greater than or equal to 2"),
    ],
)
def test_parameters_without_effect_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        get_stage("flow").params.model_validate(asked)


def test_parameters_that_mean_the_same_have_one_key() -> None:
    def key(**asked: Any) -> dict[str, Any]:
        return key_params(get_stage("flow").params.model_validate(asked))

    raft = {"method": "raft"}
    assert key() == key(preset="fast") == key(output={}) == key(count=3, step=3)
    assert key(**raft) == key(**raft, preset="large", device="cuda", batch=8, weights="/a.pth")
    assert key(keep_frames=False) == key(keep_frames=False, pictures={"quality": 9})
    png = {"format": "png"}
    assert key(pictures=png) == key(pictures={**png, "quality": 9})
    assert key() == key(pictures={"hdr": "sdr"}) != key(pictures={"hdr": "keep"})
    different = [
        key(),
        key(direction="both"),
        key(occlusions=True),
        key(format="flo"),
        key(max_side=99),
        key(output={"max_side": 99}),
        key(pictures=png),
        key(**raft),
        key(**raft, device="cpu"),
        key(**raft, batch=4),
        key(method="nvof"),
        key(cuts="ignore"),
    ]
    assert len({json.dumps(one, default=str, sort_keys=True) for one in different}) == 12


def test_only_cards_need_cards() -> None:
    stage = get_stage("flow")

    def needs(**asked: Any) -> dict[str, float]:
        return dict(stage.needs(stage.params.model_validate(asked)))

    assert needs() == needs(method="farneback") == needs(method="raft", device="cpu") == {}
    assert needs(method="raft") == needs(method="nvof") == {"GPU": 1}
