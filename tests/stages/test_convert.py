"""Convert: what videos become under their own keys, and what video2dataset makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
import scenedetect
from pydantic import ValidationError

from reelmill.digest import sha256
from reelmill.errors import StageError
from reelmill.media.cut import Clip, CutFailure, Encoding, Video, cut_spans
from reelmill.media.decode import frames
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.flow import FlowMethod, flow
from reelmill.media.motion import measure
from reelmill.media.probe import packet_table, probe
from reelmill.shards.reader import Sample, ShardReader
from reelmill.shards.verify import verify_shard
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store.model import Shard
from reelmill.tasks.contract import key_params
from reelmill.tasks.convert import ConvertParams

from .media_samples import REAL, grey, make_video, number_of, numbers, sample, x264
from .test_motion import filmed, panned, texture, window
from .test_stages import Bench, fixed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def made(bench: Bench, shard: Shard, **params: Any) -> Shard:
    shard = bench.make("convert", shard, **params)
    assert list(verify_shard(bench.store, shard)) == []
    return shard


def one(bench: Bench, path: Path, **params: Any) -> Sample:
    """What becomes of one downloaded video."""
    (found,) = bench.samples(made(bench, bench.videos(path), **params)).values()
    return found


def read(video: bytes) -> list[int]:
    return [number_of(grey(frame)) for frame in frames(video)]


# Frames spread evenly


@pytest.mark.parametrize("count", [1, 4, 7, 60])
def test_frames_are_spread_evenly_and_keep_their_times(count: int, tmp_path: Path) -> None:
    source = sample("silent.mp4")
    total = len(packet_table(source).shown)
    span = (Fraction(0), Fraction(10))
    video = Video(frames=count)
    (clip,) = cut_spans(
        source, [span], tmp_path, mode="exact", encoding=Encoding(video=video), timeout_s=60
    )
    assert isinstance(clip, Clip), clip
    expected = [number * total // count for number in range(count)]
    assert numbers(clip.path) == expected
    assert clip.frames == count
    shown = packet_table(clip.path)
    rate = probe(source).fps
    times = [float(pts * shown.time_base * rate) for pts in shown.shown.tolist()]
    assert times == pytest.approx(expected, abs=0.01)


def test_frames_of_clips_variants_and_uneven_videos(bench: Bench) -> None:
    shard = bench.make(
        "split",
        bench.videos(sample("uneven.mkv")),
        **fixed("0.5s"),
        video={"frames": 5},
        variants={"few": {"frames": 2}},
    )
    clips = bench.samples(shard)
    assert len(clips) > 2
    for clip in clips.values():
        about = json.loads(clip.fields["json"])
        assert clip.columns["frames"] == len(read(clip.fields["mp4"])) == 5
        assert (
            read(clip.fields["few.mp4"])[0] == read(clip.fields["mp4"])[0] == about["start_frame"]
        )
        assert about["variants"]["few"]["frames"] == len(read(clip.fields["few.mp4"])) == 2


def test_fewer_frames_than_asked_are_a_reject(bench: Bench) -> None:
    shard = made(bench, bench.videos(sample("silent.mp4")), video={"frames": 1000})
    assert bench.rejects(shard) == {"000000000": "too_short"}


def test_a_damaged_video_with_too_few_frames_left_is_a_failure(tmp_path: Path) -> None:
    fast = {"movflags": "faststart"}
    path = make_video(tmp_path / "a.mp4", 40, options=x264(0, 40), container_options=fast)
    data = bytearray(path.read_bytes())
    middle, end = len(data) * 2 // 3, len(data) * 3 // 4
    data[middle:end] = bytes(end - middle)
    path.write_bytes(data)
    assert len(packet_table(path).shown) == 40
    assert 20 < sum(1 for _ in frames(path)) < 40
    out = tmp_path / "out"
    out.mkdir()
    encoding = Encoding(video=Video(frames=40))
    (found,) = cut_spans(
        path, [(Fraction(0), Fraction(2))], out, mode="exact", encoding=encoding, timeout_s=60
    )
    assert isinstance(found, CutFailure)
    assert found.reason == "undecodable"
    assert found.message.endswith("frames came of it, and 40 are asked")


def test_frames_go_with_no_rate() -> None:
    with pytest.raises(ValidationError, match="give fps or frames, not both"):
        Video(fps=5, frames=8)


# The stage


def test_clips_keep_their_keys_and_what_is_said_of_them(bench: Bench) -> None:
    clips = bench.make("split", bench.videos(sample("plain.mp4")), **fixed("0.5s"))
    shard = made(bench, clips, video={"size": {"size": [64, 48]}, "fps": 10})
    before, after = bench.samples(clips), bench.samples(shard)
    assert list(after) == list(before)
    for key, clip in after.items():
        about, was = (json.loads(x.fields["json"]) for x in (clip, before[key]))
        assert set(clip.fields) == {"mp4", "json"}
        info = probe(clip.fields["mp4"])
        assert (info.width, info.height, info.fps) == (64, 48, 10)
        for name in ("start", "end", "start_frame", "wished", "source"):
            assert about[name] == was[name]
        assert (about["width"], about["height"], about["fps"]) == (64, 48, 10)
        assert about["frames"] == info.frames == clip.columns["frames"]
        assert about["has_audio"] is True
        assert about["video"]["pix_fmt"] == clip.columns["pix_fmt"] == "yuv420p"
        assert about["converted"] == clip.columns["converted"] == "encoded"
        assert about["sha256"] == clip.columns["sha256"] == sha256(clip.fields["mp4"])
        assert clip.columns["bytes"] == len(clip.fields["mp4"])
        assert clip.columns["start"] == before[key].columns["start"]
        assert clip.columns["cut"] == before[key].columns["cut"]


def test_what_belongs_to_a_video_stays_beside_it(bench: Bench) -> None:
    writer = ShardWriter(bench.store.backend.scratch(), pa.schema([pa.field("fps", pa.string())]))
    data = sample("silent.mp4").read_bytes()
    about = json.dumps({"width": 1, "mine": [1, 2]}).encode()
    writer.add("a", {"mp4": data, "json": about, "txt": b"hi", "en.vtt": b"x"}, {"fps": "ours"})
    writer.add("b", {"txt": b"no video"}, {"fps": None})
    shard = made(
        bench,
        put_shard(bench.store, writer.close()).shard("00000"),
        video={"codec": "vp9", "container": "webm", "size": {"max_side": 64}},
    )
    assert bench.rejects(shard) == {"b": "no_video"}
    (found,) = bench.samples(shard).values()
    assert set(found.fields) == {"webm", "json", "txt", "en.vtt"}
    assert (found.fields["txt"], found.fields["en.vtt"]) == (b"hi", b"x")
    said = json.loads(found.fields["json"])
    assert (said["mine"], said["width"], said["source"]) == ([1, 2], 64, {"key": "a"})
    assert (found.columns["table_fps"], found.columns["codec"]) == ("ours", "vp9")


def test_outputs_are_those_that_split_makes(bench: Bench) -> None:
    asked = {
        "video": {"size": {"max_side": 64}, "crf": 30},
        "audio": {"rate": 16000, "channels": 1, "extract": "wav"},
        "variants": {"tiny": {"size": {"max_side": 32}, "audio": False}},
    }
    videos = bench.videos(sample("plain.mp4"))
    whole = bench.make("split", videos, **fixed("100s"), cut="exact", **asked)
    (clip,) = bench.samples(whole).values()
    (found,) = bench.samples(made(bench, videos, **asked)).values()
    for name in ("mp4", "tiny.mp4", "wav"):
        assert found.fields[name] == clip.fields[name], name
    said = json.loads(found.fields["json"])["variants"]["tiny"]
    assert (said["width"], said["has_audio"]) == (32, False)


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ({}, "copied"),
        ({"video": {"size": {"max_side": 4000}}}, "copied"),
        ({"video": {"size": {"size": [128, 96], "mode": "pad"}, "square": True}}, "copied"),
        ({"video": {"fps": 30}, "audio": {"rate": 48000, "codec": "aac"}}, "copied"),
        ({"video": {"frames": 90}, "audio": {"channels": 2}}, "copied"),
        ({"crf": 30}, "copied"),
        ({"encode": "always"}, "encoded"),
        ({"video": {"fps": 25}}, "encoded"),
        ({"video": {"frames": 45}}, "encoded"),
        ({"video": {"size": {"max_side": 64}}}, "encoded"),
        ({"video": {"codec": "hevc"}}, "encoded"),
        ({"audio": {"rate": 16000}}, "encoded"),
        ({"audio": {"codec": "opus"}}, "encoded"),
    ],
)
def test_what_is_as_asked_is_copied(asked: dict[str, Any], how: str, bench: Bench) -> None:
    found = one(bench, sample("plain.mp4"), **asked)
    assert found.columns["converted"] == how
    video = {"fps": 30, "frames": 90, **asked.get("video", {})}
    expected = min(video["fps"] * 3, video["frames"])
    assert sum(1 for _ in frames(found.fields["mp4"])) == found.columns["frames"] == expected


def test_of_a_mixed_dataset_only_what_differs_is_encoded(bench: Bench, tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4", 30, options=x264())
    large = make_video(tmp_path / "large.mp4", 30, options=x264(), size=(256, 192))
    shard = made(bench, bench.videos(small, large), video={"size": {"max_side": 128}})
    found = {key: clip.columns for key, clip in sorted(bench.samples(shard).items())}
    assert [one["converted"] for one in found.values()] == ["copied", "encoded"]
    assert {(one["width"], one["height"]) for one in found.values()} == {(128, 96)}


@pytest.mark.parametrize("encode", ["needed", "always"])
def test_of_a_video_that_breaks_off_there_is_what_there_was(encode: str, bench: Bench) -> None:
    data = sample("plain.mkv").read_bytes()
    writer = ShardWriter(bench.store.backend.scratch(), pa.schema([]))
    writer.add("a", {"mkv": data[: len(data) * 2 // 3]}, {})
    broken = put_shard(bench.store, writer.close()).shard("00000")
    size = {"size": {"max_side": 1000}, "fps": 30}
    (found,) = bench.samples(made(bench, broken, video=size, encode=encode)).values()
    held = read(found.fields["mp4"])
    assert 45 < len(held) < 75
    assert held == list(range(len(held)))


def test_times_go_with_a_clock_that_begins_at_0(bench: Bench, tmp_path: Path) -> None:
    late = make_video(
        *(tmp_path / "late.mkv", 60),
        pts=[2000 + 40 * number for number in range(60)],
        time_base=Fraction(1, 1000),
        options=x264(),
    )
    writer = ShardWriter(bench.store.backend.scratch(), pa.schema([]))
    about = {
        "spans": [{"start": "2.4", "end": 3, "why": "x"}],
        "captions": [{"start": 2.5, "end": 3.5, "text": "hi"}],
    }
    vtt = b"WEBVTT\n\n00:02.500 --> 00:03.500\nhello\n"
    fields = {"mkv": late.read_bytes(), "json": json.dumps(about).encode(), "en.vtt": vtt}
    writer.add("a", fields, {})
    shard = made(bench, put_shard(bench.store, writer.close()).shard("00000"))
    assert bench.rejects(shard) == {}
    (found,) = bench.samples(shard).values()
    said = json.loads(found.fields["json"])
    assert said["spans"] == [{"start": 0.4, "end": 1.0, "why": "x"}]
    assert said["captions"] == [{"start": 0.5, "end": 1.5, "text": "hi"}]
    assert b"00:00:00.500 --> 00:00:01.500\nhello" in found.fields["en.vtt"]
    assert probe(found.fields["mp4"]).start_pts == 0


def test_subtitles_are_kept_extracted_or_dropped(bench: Bench, tmp_path: Path) -> None:
    said = tmp_path / "said.srt"
    said.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    path = tmp_path / "spoken.mkv"
    tags = ("-metadata:s:s:0", "language=eng", "-c", "copy")
    _ffmpeg("-i", sample("silent.mp4"), "-i", said, *tags, path)
    videos = bench.videos(path)
    found = {}
    for choice in ("drop", "keep", "extract"):
        (made_of,) = bench.samples(made(bench, videos, subtitles=choice)).values()
        found[choice] = made_of.columns["subtitles"], set(made_of.fields)
    assert found["drop"] == (0, {"mp4", "json"})
    assert found["keep"] == (1, {"mp4", "json"})
    assert found["extract"] == (0, {"mp4", "json", "eng.vtt"})


def test_a_time_that_is_over_is_the_stages_failure(bench: Bench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    with pytest.raises(StageError, match=r"converting 000000000 took longer than 0\.001 s"):
        bench.make("convert", videos, video={"fps": 3}, timeout="1ms")


def test_parameters_with_one_meaning_have_one_key() -> None:
    short = ConvertParams.model_validate({"crf": 20, "timeout": "5s"})
    long = ConvertParams.model_validate({"video": {"crf": 20, "codec": "h264"}})
    assert key_params(short) == key_params(long)
    sent = ConvertParams.model_validate({"video": {"fps": 5}, "crf": 20}).model_dump(mode="json")
    assert ConvertParams.model_validate(sent).encoding.video.crf == 20, "as workers get it"
    with pytest.raises(ValidationError, match="crf is given twice"):
        ConvertParams.model_validate({"crf": 20, "video": {"crf": 21}})
    with pytest.raises(ValidationError, match="webm cannot hold aac"):
        ConvertParams.model_validate(
            {"video": {"codec": "vp9", "container": "webm"}, "audio": {"codec": "aac"}}
        )


# Beside video2dataset 1.3: the same ffmpeg commands as its subsamplers compose

SOURCES = ["generated", "real"]


@pytest.fixture(scope="module", params=SOURCES)
def source_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated and a real video of 4:3 and more, with sound."""
    short = tmp_path_factory.mktemp("source") / "source.mp4"
    if request.param == "generated":
        return make_video(short, 50, fps=25, size=(320, 180), options=x264(), audio="aac")
    path = REAL / "bigbuckbunny.mp4"
    if not path.is_file():
        pytest.skip("no real clips beside the repository")
    cut = ("-t", "2", "-vf", "scale=320:180", "-r", "25", "-c:a", "aac", "-ac", "2")
    _ffmpeg("-i", path, *cut, short)
    return short


@pytest.fixture
def source(source_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(source_once, tmp_path))


def _ffmpeg(*args: str | Path) -> None:
    subprocess.run([ffmpeg_exe(), "-v", "error", "-y", *map(str, args)], check=True)


def their(source: Path, *args: str) -> Path:
    """What video2dataset makes of a video: ``reset_timestamps`` has no effect on MP4."""
    path = source.with_name("theirs.mp4")
    _ffmpeg("-i", source, *args, path)
    return path


def _middle(video: bytes | Path) -> Any:
    decoded = list(frames(video))
    return decoded[len(decoded) // 2].to_ndarray(format="gray").astype(int)


@pytest.mark.parametrize(
    ("filters", "size", "alike"),
    [
        ("scale=-2:90", {"height": 90, "upscale": True}, True),
        ("scale=-2:360", {"height": 360, "upscale": True}, True),
        ("scale=200:-2", {"width": 200, "upscale": True}, True),
        ("crop=w=96:h=64", {"size": [96, 64], "mode": "window"}, True),
        ("scale=-2:90,crop=w=90:h=90", {"size": [90, 90], "mode": "crop"}, True),
        # Padded at the right and below there, whatever its documentation says.
        ("pad=w=400:h=400", {"size": [400, 400], "mode": "window"}, False),
        ("pad=w=400:h=400:x=-1:y=-1", {"size": [400, 400], "mode": "window"}, True),
    ],
)
def test_resolution_subsampler(
    filters: str, size: dict[str, Any], alike: bool, source: Path, bench: Bench
) -> None:
    theirs = their(source, "-vf", filters)
    ours = one(bench, source, video={"size": size}, crf=12)
    info = probe(theirs)
    assert (ours.columns["width"], ours.columns["height"]) == (info.width, info.height)
    assert ours.columns["frames"] == len(packet_table(theirs).shown)
    if alike:
        assert np.abs(_middle(ours.fields["mp4"]) - _middle(theirs)).mean() < 4


@pytest.mark.parametrize("rate", [5, 10, 50])
def test_frame_subsampler_by_rate(rate: int, source: Path, bench: Bench) -> None:
    theirs = their(source, "-vf", f"fps={rate}")
    ours = one(bench, source, video={"fps": rate})
    assert ours.columns["fps"] == probe(theirs).fps == rate
    assert abs(ours.columns["frames"] - len(packet_table(theirs).shown)) <= 1


def test_frame_subsampler_of_the_first_frame(source: Path, bench: Bench) -> None:
    path = source.with_name("first.png")
    _ffmpeg("-i", source, "-vf", "select=eq(n\\,0)", "-frames:v", "1", path)
    shard = bench.make("frames", bench.videos(source), count=1, max_samples=1, format="png")
    (ours,) = bench.samples(shard).values()
    picture = cv2.imdecode(np.frombuffer(ours.fields["000000.image.png"], np.uint8), 1)
    assert np.abs(picture.astype(int) - cv2.imread(str(path)).astype(int)).mean() < 2


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (22050, 2)])
def test_audio_rate_subsampler(rate: int, channels: int, source: Path, bench: Bench) -> None:
    path = source.with_name("theirs.wav")
    _ffmpeg("-i", source, "-vn", "-ar", str(rate), "-ac", str(channels), "-f", "wav", path)
    sound = {"rate": rate, "channels": channels, "extract": "wav"}
    ours = source.with_name("ours.wav")
    ours.write_bytes(one(bench, source, audio=sound).fields["wav"])
    found = []
    for file in (path, ours):
        with av.open(str(file)) as container:
            stream = container.streams.audio[0]
            seconds = sum(frame.samples for frame in container.decode(stream)) / stream.rate
            found.append((stream.rate, stream.channels, seconds))
    assert found[0][:2] == found[1][:2] == (rate, channels)
    assert found[0][2] == pytest.approx(found[1][2], abs=0.1)


def test_ffprobe_subsampler(source: Path, bench: Bench) -> None:
    """ffprobe is not at hand: what ffmpeg's own libraries say through PyAV is the same."""
    shard = bench.make("probe", bench.videos(source))
    (ours,) = bench.samples(shard).values()
    about = json.loads(ours.columns["probe"])
    with av.open(str(source)) as container:
        video = container.streams.video[0]
        keyframes = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(video)
            if packet.is_keyframe and packet.size
        ]
        assert about["video"]["codec"] == video.codec_context.codec.canonical_name
        assert about["video"]["frame_rate"] == f"{video.average_rate.numerator}/1"
        assert about["video"]["duration"] == pytest.approx(float(video.duration * video.time_base))
        assert [one["kind"] for one in about["streams"]] == [s.type for s in container.streams]
    assert ours.columns["keyframes"] == pytest.approx(keyframes, abs=1e-5)


def test_clipping_subsampler(source: Path, bench: Bench) -> None:
    videos = bench.videos(source, spans={source.name: "0.4-1.2"})
    (clip,) = bench.samples(bench.make("split", videos, method="spans", min_seconds=0)).values()
    theirs = source.with_name("theirs_%d.mp4")
    times = ("-segment_times", "0.4,1.2", "-force_key_frames", "0.4,1.2")
    _ffmpeg("-i", source, "-map", "0", "-f", "segment", *times, "-reset_timestamps", "1", theirs)
    found = source.with_name("theirs_1.mp4")
    assert clip.columns["frames"] == len(packet_table(found).shown) == 20
    assert np.abs(_middle(clip.fields["mp4"]) - _middle(found)).mean() < 4


def test_cut_detection_subsampler(tmp_path: Path, bench: Bench) -> None:
    scenes = [texture(1) // 3, 255 - texture(2) // 3, texture(3) // 3]
    path = filmed(tmp_path / "scenes.mp4", lambda n: window(scenes[n // 25], n), 75)
    video = scenedetect.open_video(str(path))
    manager = scenedetect.SceneManager()
    manager.add_detector(scenedetect.ContentDetector(threshold=27, min_scene_len=15))
    manager.auto_downscale, manager.downscale = False, video.frame_size[0] // 64
    manager.detect_scenes(video=video)
    av.logging.set_level(None)  # which PySceneDetect may have turned on
    theirs = [start.frame_num for start, _ in manager.get_scene_list(start_in_scene=True)]
    asked = {"threshold": 27, "min_scene": "0.5s", "min_seconds": 0}
    clips = bench.samples(bench.make("split", bench.videos(path), method="scenes", **asked))
    found = sorted(clip.columns["start_frame"] for clip in clips.values())
    assert found == theirs == [0, 25, 50]


def test_optical_flow_subsampler(tmp_path: Path) -> None:
    """Its metric is the mean length of Farneback's flow, in pixels a frame."""
    path = panned(tmp_path / "pan.mp4", 3)
    grays = [grey(frame) for frame in frames(path)]
    fields = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        for a, b in pairwise(grays)
    ]
    ours_alike = flow(grays[0], grays[1], FlowMethod.FARNEBACK)
    assert np.abs(ours_alike - fields[0]).max() < 1e-4
    theirs = np.linalg.norm(np.array(fields), axis=-1).mean()
    ours = measure(path).motion
    assert ours is not None
    assert ours == pytest.approx(theirs * 30 / np.hypot(320, 180), rel=0.1)


def test_index_columns_of_convert_have_their_order(bench: Bench) -> None:
    shard = made(bench, bench.videos(sample("silent.mp4")))
    names = ShardReader(bench.store, shard).table.column_names
    assert names[-1] == "converted"
    assert len(names) == len(set(names))
    again = made(bench, shard, encode="always")
    assert ShardReader(bench.store, again).table.column_names == names
