"""Probe: what each video of a dataset is, in columns, without a byte of its tar copied."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from reelmill.media.probe import packet_table, probe
from reelmill.shards.reader import ShardReader
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.tasks.media_fields import VIDEO_COLUMNS

from .media_samples import make_audio, make_video, sample
from .test_stages import Bench, fixed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_clips_get_the_columns_of_videos(bench: Bench) -> None:
    clips = bench.make("split", bench.videos(sample("silent.mp4")), **fixed("0.5s"))
    shard = bench.make("probe", clips)
    assert shard.tar == clips.tar
    names = ShardReader(bench.store, shard).table.column_names
    assert names[-len(VIDEO_COLUMNS) - 1 :] == [*VIDEO_COLUMNS.names, "probe"]
    before = bench.samples(clips)
    for key, clip in bench.samples(shard).items():
        info = probe(clip.fields["mp4"])
        found = clip.columns
        assert found["start"] == before[key].columns["start"]
        assert found["fps"] == before[key].columns["fps"] == info.fps
        assert (found["container"], found["profile"]) == (info.container, info.profile)
        assert found["vfr"] is False
        table = packet_table(clip.fields["mp4"])
        assert found["frames"] == len(table.shown)
        assert len(found["keyframes"]) == int(table.keyframe.sum())


def test_what_was_found_is_a_json_text_too(bench: Bench) -> None:
    shard = bench.make("probe", bench.videos(sample("plain.mp4")))
    (made,) = bench.samples(shard).values()
    about = json.loads(made.columns["probe"])
    assert [stream["kind"] for stream in about["streams"]] == ["video", "audio"]
    assert about["video"]["width"] == made.columns["width"]
    assert about["timing"]["is_vfr"] is False
    assert about["timing"]["frames"] == made.columns["frames"]
    assert "keyframes" not in about["timing"]


def test_a_header_tells_less(bench: Bench) -> None:
    shard = bench.make("probe", bench.videos(sample("uneven.mkv")), probe="header")
    (made,) = bench.samples(shard).values()
    assert made.columns["keyframes"] is None
    assert made.columns["vfr"] is None
    assert made.columns["width"] == probe(sample("uneven.mkv")).width
    assert set(json.loads(made.columns["probe"])) == {"video", "streams"}


def test_columns_that_a_download_wrote_are_those_of_the_probe(bench: Bench) -> None:
    videos = bench.videos(sample("plain.mp4"), sample("uneven.mkv"))
    shard = bench.make("probe", videos)
    before = bench.samples(videos)
    for key, one in bench.samples(shard).items():
        text = one.columns.pop("probe")
        assert isinstance(text, str)
        assert one.columns == before[key].columns


def test_sound_alone_and_what_is_no_media(bench: Bench, tmp_path: Path) -> None:
    writer = ShardWriter(bench.store.backend.scratch(), pa.schema([]))
    writer.add("0", {"m4a": make_audio(tmp_path / "a.m4a", "aac").read_bytes()}, {})
    writer.add("1", {"mp4": make_video(tmp_path / "a.mp4", 5).read_bytes()}, {})
    writer.add("2", {"txt": b"hello"}, {})
    writer.add("3", {"mp4": b"no video"}, {})
    shard = bench.make("probe", put_shard(bench.store, writer.close()).shard("00000"))
    assert bench.rejects(shard) == {"2": "no_video", "3": "not_video"}
    found = {key: one.columns for key, one in bench.samples(shard).items()}
    assert found["0"]["audio_codec"] == "aac"
    assert found["0"]["sample_rate"] == 48000
    assert json.loads(found["0"]["probe"])["sound"]["codec"] == "aac"
    assert found["1"]["frames"] == 5
