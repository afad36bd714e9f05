"""Each stage through the real frame, on videos whose frames carry their own number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelmill.digest import order_hash
from reelmill.errors import StageError
from reelmill.media.decode import frames
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.flow import decode_kitti, decode_npy
from reelmill.media.images import decode_image
from reelmill.media.probe import probe
from reelmill.shards.reader import Sample, ShardReader
from reelmill.store import Store
from reelmill.store.model import Result, Shard
from reelmill.tasks import get_stage
from reelmill.tasks.contract import action_of
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source, commit_ingest, ingest, ingest_action

from .media_samples import NUMBERED, UNEVEN, grey, number_of, sample


class Bench:
    """A store, and stages run on it shard by shard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.store = Store.open(str(folder / "store"), create=True)

    def rows(self, csv: str, **source: Any) -> Shard:
        path = self.folder / "table.csv"
        path.write_text(csv)
        found = ingest(
            Source(path=str(path), **source),
            None,
            lambda digest: b"",
            lambda data: self.store.put_blob(data, "parquet"),
        )
        commit_ingest(self.store, ingest_action(Source(path="x"), "0" * 64, None), found, {})
        return found.manifest.generations[0].shards[0]

    def order(
        self, name: str, shard: Shard, extra: Mapping[str, Shard] | None = None, **params: Any
    ) -> Order:
        """An order for a shard; ``extra`` are those of further roles."""
        stage = get_stage(name)
        values = stage.params.model_validate(params)
        given = {"source": [shard], **{role: [one] for role, one in (extra or {}).items()}}
        (slot,) = stage.plan(values, given, 0)
        for data in slot.documents.values():
            self.store.put_blob(data, "json")
        return Order(
            store=self.store.url,
            run="test",
            dataset=name,
            shard=slot.shard_id,
            action=action_of(stage, values, slot, "", stage.tools(values)),
            params=values.model_dump(mode="json"),
            shards=dict(slot.shards),
        )

    def make(self, name: str, shard: Shard, **params: Any) -> Shard:
        order = self.order(name, shard, **params)
        return Result.model_validate_json(execute(order.model_dump_json())).shard(order.shard)

    def videos(self, *paths: Path, spans: Mapping[str, str] | None = None) -> Shard:
        lines = [f"file://{path},{(spans or {}).get(path.name, '')}" for path in paths]
        shard = self.rows("\n".join(["url,spans", *lines]) + "\n", spans="spans")
        return self.make("download", shard, allow_files=True)

    def samples(self, shard: Shard) -> dict[str, Sample]:
        return {sample.key: sample for sample in ShardReader(self.store, shard).samples()}

    def rejects(self, shard: Shard) -> dict[str, str]:
        rows = ShardReader(self.store, shard).rows("rejected")
        return {row["key"]: row["reason"] for row in rows}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def numbers(video: bytes) -> list[int]:
    return [number_of(grey(frame)) for frame in frames(video)]


def test_a_download_is_hashed_probed_and_kept_with_its_row(bench: Bench) -> None:
    path = sample("silent.mp4")
    shard = bench.videos(path, path.with_name("missing.mp4"), spans={path.name: "0.5-1"})
    (made,) = bench.samples(shard).values()
    about = json.loads(made.fields["json"])
    assert made.fields["mp4"] == path.read_bytes()
    assert about["video"]["codec"] == "h264"
    assert about["spans"] == [{"start": "0.5", "end": "1"}]
    assert made.columns["sha256"] == about["sha256"]
    assert made.columns["bytes"] == path.stat().st_size
    assert bench.rejects(shard) == {"000000001": "file_not_found"}


def test_samples_lie_in_the_keyed_order(bench: Bench) -> None:
    shard = bench.make(
        "split", bench.videos(sample("silent.mp4"), sample("uneven.mkv")), **fixed("0.5s")
    )
    keys = list(bench.samples(shard))
    assert len(keys) > 4
    assert keys == sorted(keys, key=order_hash)


def fixed(seconds: str, **more: Any) -> dict[str, Any]:
    return {"method": "fixed", "seconds": seconds, "min_seconds": "0.1s", **more}


@pytest.mark.parametrize("name", NUMBERED)
def test_exact_clips_part_a_video_without_loss_or_overlap(bench: Bench, name: str) -> None:
    path = sample(name)
    shard = bench.make("split", bench.videos(path), **fixed("0.7s", min_seconds="0s"))
    clips = sorted(bench.samples(shard).items())
    assert bench.rejects(shard) == {}
    read = [number for _, clip in clips for number in numbers(clip.fields["mp4"])]
    assert read == numbers(path.read_bytes())
    first = 0
    for _, clip in clips:
        about = json.loads(clip.fields["json"])
        assert about["start_frame"] == first
        assert about["source"]["url"].endswith(path.name)
        assert about["wished"]["start"] <= about["start"] < about["end"]
        first += about["frames"]


def test_copied_clips_hold_the_source_frames_themselves(bench: Bench) -> None:
    path = sample("silent.mp4")
    shard = bench.make("split", bench.videos(path), **fixed("0.7s", cut="copy", min_seconds="0s"))
    whole = [grey(frame) for frame in frames(path.read_bytes())]
    for clip in bench.samples(shard).values():
        about = json.loads(clip.fields["json"])
        part = [grey(frame) for frame in frames(clip.fields["mp4"])]
        expected = whole[about["start_frame"] :][: about["frames"]]
        assert all(np.array_equal(a, b) for a, b in zip(part, expected, strict=True))


@pytest.mark.parametrize("cut", ["exact", "copy"])
def test_sound_is_kept_or_left_out_as_asked(bench: Bench, cut: str) -> None:
    videos = bench.videos(sample("plain.mp4"))
    for audio in (True, False):
        shard = bench.make("split", videos, **fixed("1s", cut=cut, audio=audio))
        for clip in bench.samples(shard).values():
            assert probe(clip.fields["mp4"]).has_audio is audio


@pytest.mark.parametrize(
    ("cut", "ways"),
    [
        ("auto", ["encoded", "encoded", "copied"]),
        ("exact", ["encoded"] * 3),
        ("smart", ["smart", "smart", "copied"]),
    ],
)
def test_the_index_says_how_clips_came_to_be(bench: Bench, cut: str, ways: list[str]) -> None:
    shard = bench.make("split", bench.videos(sample("silent.mp4")), **fixed("1s", cut=cut))
    made = sorted(bench.samples(shard).items())
    assert [clip.columns["cut"] for _, clip in made] == ways
    assert [json.loads(clip.fields["json"])["cut"] for _, clip in made] == ways


def test_a_video_that_is_too_short_for_a_whole_window_says_how_long_one_is(bench: Bench) -> None:
    shard = bench.make("split", bench.videos(sample("silent.mp4")), **fixed("9s", remainder="drop"))
    (row,) = ShardReader(bench.store, shard).rows("rejected")
    assert (row["reason"], row["message"]) == ("no_clips", "no span of 9 s or more to cut")


def test_given_spans_become_clips_and_rows_without_any_are_rejects(bench: Bench) -> None:
    even, uneven = sample("silent.mp4"), sample("uneven.mkv")
    shard = bench.make(
        "split",
        bench.videos(even, uneven, spans={even.name: "0.2-0.7; 1-1.4"}),
        method="spans",
        min_seconds="0.1s",
    )
    times = sorted((s.columns["start"], s.columns["end"]) for s in bench.samples(shard).values())
    assert times == [pytest.approx((0.2, 0.7)), pytest.approx((1.0, 1.4))]
    assert bench.rejects(shard) == {"000000001": "no_clips"}


def test_a_caption_is_a_text_of_its_own_of_video_and_clips(bench: Bench) -> None:
    url = f"file://{sample('silent.mp4')}"
    rows = bench.rows(f'url,said\n{url},"Zürich, at night"\n{url}?,\n', caption="said")
    videos = bench.make("download", rows, allow_files=True)
    clips = bench.make("split", videos, method="fixed", seconds="1s", cut="copy")
    for shard in (videos, clips):
        found = [made.fields["txt"].decode() for made in bench.samples(shard).values()]
        assert found
        assert set(found) == {"Zürich, at night"}


@pytest.mark.parametrize(
    ("count", "stride", "step", "firsts"),
    [(3, 1, None, range(0, 88, 3)), (3, 4, 10, range(0, 82, 10)), (2, 5, 1, range(85))],
)
def test_tuples_hold_exactly_the_frames_that_they_name(
    bench: Bench, count: int, stride: int, step: int | None, firsts: range
) -> None:
    videos = bench.videos(sample("silent.mp4"))
    shard = bench.make("frames", videos, count=count, stride=stride, step=step, format="png")
    made = bench.samples(shard)
    assert sorted(made) == [f"000000000_{first:06d}" for first in firsts]
    for key, tuple_ in made.items():
        first = int(key[-6:])
        expected = [first + i * stride for i in range(count)]
        about = json.loads(tuple_.fields["json"])
        pictures = [tuple_.fields[f"{i:06d}.image.png"] for i in range(count)]
        assert [number_of(decode_image(data)[..., 1]) for data in pictures] == expected
        assert about["frames"] == expected
        assert about["times"] == [pytest.approx(n / 30, abs=1e-5) for n in expected]


def test_times_of_tuples_are_those_of_uneven_frames(bench: Bench) -> None:
    shard = bench.make("frames", bench.videos(sample("uneven.mkv")), count=2, format="png")
    stamps = [float(frame.pts * frame.time_base) for frame in frames(sample("uneven.mkv"))]
    assert len({round(b - a, 4) for a, b in pairwise(stamps)}) > 1, UNEVEN
    for tuple_ in bench.samples(shard).values():
        about = json.loads(tuple_.fields["json"])
        assert about["times"] == [pytest.approx(stamps[n], abs=1e-5) for n in about["frames"]]


def test_tuples_of_clips_know_their_time_in_the_source(bench: Bench) -> None:
    clips = bench.make("split", bench.videos(sample("silent.mp4")), **fixed("1s"))
    shard = bench.make("frames", clips, count=3, format="png")
    for tuple_ in bench.samples(shard).values():
        about = json.loads(tuple_.fields["json"])
        shown = number_of(decode_image(tuple_.fields["000000.image.png"])[..., 1])
        assert about["source_times"][0] == pytest.approx(shown / 30, abs=1e-4)


def test_a_clip_shorter_than_a_tuple_is_a_reject(bench: Bench) -> None:
    shard = bench.make("frames", bench.videos(sample("silent.mp4")), count=100)
    assert bench.rejects(shard) == {"000000000": "too_short"}
    assert shard.tar is None
    assert bench.make("flow", shard).samples == 0, "and the next stage takes an empty shard"


def test_pictures_are_resized_and_never_beyond_their_own_size(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    for asked, expected in (
        ({"max_side": 64}, (48, 64)),
        ({"min_side": 48}, (48, 64)),
        ({"size": [40, 30]}, (30, 40)),
        ({"max_side": 4000}, (96, 128)),
    ):
        shard = bench.make("frames", videos, max_samples=1, **asked)
        (tuple_,) = bench.samples(shard).values()
        assert decode_image(tuple_.fields["000000.image.jpg"]).shape[:2] == expected
        assert (tuple_.columns["height"], tuple_.columns["width"]) == expected


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_flow_leads_from_each_picture_to_the_next(bench: Bench, method: str) -> None:
    triplets = bench.make("frames", bench.videos(sample("silent.mp4")), max_samples=2)
    kitti = bench.make("flow", triplets, method=method)
    npy = bench.make("flow", triplets, method=method, format="npy", keep_frames=False)
    assert kitti.samples == npy.samples == 2
    for key, made in bench.samples(kitti).items():
        assert {"000000.image.jpg", "000002.image.jpg", "000001.flow.png"} <= set(made.fields)
        other = bench.samples(npy)[key]
        assert set(other.fields) == {"000000.flow.npy", "000001.flow.npy", "json"}
        for number in ("000000", "000001"):
            field, valid = decode_kitti(made.fields[f"{number}.flow.png"])
            same = decode_npy(other.fields[f"{number}.flow.npy"])
            assert field.shape == (96, 128, 2)
            assert np.abs(field - same)[valid].max() <= 1 / 32


def test_one_picture_has_no_flow(bench: Bench) -> None:
    singles = bench.make("frames", bench.videos(sample("silent.mp4")), count=1, max_samples=3)
    shard = bench.make("flow", singles)
    assert set(bench.rejects(shard).values()) == {"no_pair"}
    assert shard.rejects == 3


def test_a_shuffle_copies_every_sample_byte_for_byte(bench: Bench) -> None:
    clips = bench.make("split", bench.videos(sample("silent.mp4")), **fixed("0.3s"))
    shuffled = bench.make("shuffle", clips)
    assert bench.samples(shuffled) == bench.samples(clips)
    assert shuffled.tar == clips.tar, "one shard in, one shard out: the same bytes"


def test_a_worker_with_another_encoder_refuses_and_commits_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = bench.order("split", bench.videos(sample("silent.mp4")), **fixed("1s"))
    monkeypatch.setattr("reelmill.tasks.split.encoder_id", lambda: "ffmpeg 0.1")
    with pytest.raises(StageError, match=r"has ffmpeg ffmpeg 0\.1 instead of"):
        execute(order.model_dump_json())
    assert bench.store.record(order.action.key) is None


def test_a_failing_stage_leaves_no_scratch_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = bench.order("frames", bench.videos(sample("silent.mp4")))

    def fail(*args: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reelmill.tasks.frames.encode", fail)
    with pytest.raises(StageError, match="No space left"):
        execute(order.model_dump_json())
    assert list((bench.folder / "store" / "tmp").iterdir()) == []


def test_equal_parameters_however_spelled_are_one_action(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    keys = {
        bench.order("split", videos, method="fixed", seconds=seconds).action.key
        for seconds in (2, 2.0, "2", "2s", "2000ms", Decimal("2.000"))
    }
    assert len(keys) == 1


def test_parameters_that_mean_the_same_are_one_action(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))

    def key(name: str, **params: Any) -> str:
        return bench.order(name, videos, **params).action.key

    assert key("shuffle") == key("shuffle", samples_per_shard=1000)
    assert key("flow") == key("flow", preset="fast")
    assert key("frames") == key("frames", step=3)
    assert key("frames", format="png") == key("frames", format="png", quality=50)
    assert key("split", **fixed("2s")) == key("split", **fixed("2s", stride="2s", detector="hash"))
    copied = fixed("2s", cut="copy")
    assert key("split", **copied) == key("split", **copied, device="cuda", pick="spread")
    assert key("split", **fixed("2s")) != key("split", **fixed("2s", crf=9))


def test_a_table_cannot_pass_its_columns_off_as_ours(bench: Bench) -> None:
    path = sample("silent.mp4")
    rows = bench.rows(f"url,start,times,sha256\nfile://{path},00:01:02,x,y\n")
    videos = bench.make("download", rows, allow_files=True)
    (video,) = bench.samples(videos).values()
    table = {"start": "00:01:02", "times": "x", "table_sha256": "y", "duplicates": 0}
    assert json.loads(video.fields["json"])["table"] == table
    (tuple_,) = bench.samples(bench.make("frames", videos, max_samples=1)).values()
    assert json.loads(tuple_.fields["json"])["source_times"][0] == 0


def test_a_header_that_claims_years_is_one_reject(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    split = {"method": "fixed", "seconds": "100us", "min_seconds": "0s"}
    shard = bench.make("split", videos, **split)
    assert bench.rejects(shard) == {"000000000": "too_many_clips"}


@pytest.mark.parametrize(("script", "fault"), [("kill -9 $$", "ours"), ("kill -11 $$", "theirs")])
def test_a_killed_encoder_is_no_fault_of_the_video(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, fault: str
) -> None:
    videos = bench.videos(sample("silent.mp4"))
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!/bin/sh\ncase $1 in -version) echo ffmpeg version 1;; *) {script};; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("REELMILL_FFMPEG", str(program))
    order = bench.order("split", videos, **fixed("2s", cut="exact"))
    if fault == "ours":
        with pytest.raises(StageError, match="ffmpeg was killed"):
            execute(order.model_dump_json())
        assert bench.store.record(order.action.key) is None
    else:
        assert Result.model_validate_json(execute(order.model_dump_json())).samples == 0


def test_colours_that_cannot_be_converted_are_a_reject_of_their_own(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "ycgco.mp4"
    command = [ffmpeg_exe(), "-loglevel", "error", "-i", sample("silent.mp4"), "-c", "copy"]
    tagged = ["-bsf:v", "h264_metadata=matrix_coefficients=8", path]
    subprocess.run([*command, *tagged], check=True)
    videos = bench.videos(path, sample("silent.mp4"))
    shard = bench.make("split", videos)
    assert bench.rejects(shard) == {"000000000": "undecodable"}
    assert shard.samples >= 1


def test_given_spans_are_covered_by_copied_clips(bench: Bench) -> None:
    path = sample("silent.mp4")
    shard = bench.make(
        "split",
        bench.videos(path, spans={path.name: "0.8-1.5"}),
        method="spans",
        cut="copy",
        min_seconds="0s",
    )
    (clip,) = bench.samples(shard).values()
    assert clip.columns["start"] <= 0.8
    assert clip.columns["end"] >= 1.5
