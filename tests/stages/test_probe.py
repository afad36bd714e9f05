"""Probing: what is in a video, and every way in which a file is none or not all there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.errors import Rejected
from reelmill.media import probe as module
from reelmill.media.mp4 import names_too_many
from reelmill.media.probe import (
    cut_points,
    demux,
    open_media,
    packet_table,
    probe,
    read_header,
    video_stream,
)

from .media_samples import (
    KEYINT,
    NUMBERED,
    UNEVEN,
    decoded,
    make_video,
    numbers,
    real_media,
    sample,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.mp4", {"codec": "h264", "frames": 90, "audio_codec": "aac", "duration": 3}),
        ("silent.mp4", {"has_audio": False, "audio_codec": None, "sample_rate": None}),
        ("late.mp4", {"start_pts": 23040, "time_base": Fraction(1, 15360), "frames": 60}),
        ("plain.mkv", {"container": "matroska,webm", "frames": None, "fps": 30}),
        ("plain.avi", {"codec": "mpeg4", "audio_codec": "mp3", "channels": 2, "duration": 3}),
        ("vp9.webm", {"codec": "vp9", "audio_codec": "opus", "sample_rate": 48000}),
        ("vp8.webm", {"codec": "vp8", "pix_fmt": "yuv420p", "profile": None}),
        ("odd.mp4", {"width": 129, "height": 97, "pix_fmt": "yuv444p", "rotation": 0}),
        ("rotated.mp4", {"width": 128, "height": 96, "rotation": 90}),
        ("live.mkv", {"duration": 3, "frames": None}),
        ("plain.ts", {"container": "mpegts", "duration": 3}),
        ("fragmented.mp4", {"frames": None, "audio_codec": "aac"}),
        ("two.mkv", {"width": 256, "height": 192}),
    ],
)
def test_says_what_is_in_a_video(name: str, expected: dict[str, object]) -> None:
    info = probe(sample(name))
    assert {field: getattr(info, field) for field in expected} == expected
    assert info.size_bytes == sample(name).stat().st_size


def test_a_clock_that_begins_late_is_no_missing_end(tmp_path: Path) -> None:
    path = make_video(
        *(tmp_path / "late.mkv", 90),
        pts=[1_000_000 + 40 * number for number in range(90)],
        time_base=Fraction(1, 1000),
    )
    assert probe(path).container == "matroska,webm"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Rejected, match="truncated"):
        probe(path)


QUICK = {"plain.mp4", "fast.mp4", "silent.mp4", "open.mp4", "late.mp4", "odd.mp4", "rotated.mp4"}


@pytest.mark.parametrize("name", sorted({*NUMBERED, *QUICK}))
def test_the_quick_way_finds_what_the_thorough_one_does(name: str) -> None:
    assert _is_quick(sample(name)) == (name in QUICK)


def test_the_quick_way_finds_the_same_in_real_clips() -> None:
    quick = [_is_quick(path) for path in real_media()]
    assert any(quick) or not quick


def _is_quick(path: Path) -> bool:
    with path.open("rb") as file:
        size = path.stat().st_size
        quick = module._quick(file, size)
        thorough = module._thorough(file, size, True)
        if quick is None:
            return False
        assert (quick.info, quick.streams) == (thorough.info, thorough.streams)
    return True


@given(st.data())
def test_the_quick_way_takes_nothing_that_is_broken(data: st.DataObject) -> None:
    torn = bytearray(sample(data.draw(st.sampled_from(["silent.mp4", "open.mp4"]))).read_bytes())
    first = torn.index(data.draw(st.sampled_from([b"mdat", b"moov"])))
    for at in data.draw(
        st.lists(st.integers(first, min(first + 2000, len(torn) - 1)), max_size=30)
    ):
        torn[at] = data.draw(st.integers(0, 255))
    quick = module._quick(io.BytesIO(torn), len(torn))
    if quick is not None:
        assert quick.info == module._thorough(io.BytesIO(torn), len(torn), True).info


def test_source_may_be_a_path_a_string_bytes_or_a_file() -> None:
    path = sample("plain.mp4")
    data = path.read_bytes()
    file = io.BytesIO(data)
    file.seek(1000)
    assert probe(path) == probe(str(path)) == probe(data) == probe(file)
    assert not file.closed


def test_url_is_a_path_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        probe("http://localhost/video.mp4")


def test_json_is_plain_and_exact() -> None:
    record = probe(sample("uneven.mkv")).as_json()
    assert json.loads(json.dumps(record)) == record
    assert record["time_base"] == "1/1000"
    assert probe(sample("plain.mp4")).as_json() | {"fps": 30.0, "frame_rate": "30/1"} == (
        probe(sample("plain.mp4")).as_json()
    )


HTML = b"\xef\xbb\xbf \n<!DOCTYPE html>\n<html><head><title>404</title></head></html>" * 40


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "empty", "no bytes"),
        (HTML, "not_video", "an HTML page"),
        (b"<html lang=en><body>not found</body>", "not_video", "an HTML page"),
        (b'{"error": "gone"}', "not_video", "JSON"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "not_video", "a playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not_video", "text"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(500), "not_video", "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not_video", "PNG"),
        (bytes(5000), "not_video", "zero"),
        (b"\x07\x9e\x81" * 500, "not_video", "begins 079e81"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x02\x00", "truncated", "no moov"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "truncated", "no moov"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "undecodable", "Matroska"),
    ],
)
def test_what_is_no_video_says_what_it_is(data: bytes, reason: str, message: str) -> None:
    with pytest.raises(Rejected) as caught:
        probe(data)
    assert caught.value.reason == reason
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["audio.m4a", "audio.mp3", "cover.m4a"])
def test_audio_is_no_video_with_or_without_a_cover(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        probe(sample(name))
    assert caught.value.reason == "no_video_stream"
    assert "audio" in caught.value.message


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("plain.mp4", (0.1, 0.5, 0.9, 0.99)),
        ("fast.mp4", (0.02, 0.1, 0.5, 0.9, 0.99)),
        ("fragmented.mp4", (0.1, 0.5, 0.9)),
        ("plain.mkv", (0.01, 0.5, 0.9, 0.99)),
        ("plain.avi", (0.05, 0.5, 0.9, 0.99)),
        ("vp9.webm", (0.5, 0.99)),
        ("plain.flv", (0.3, 0.5)),
    ],
)
def test_file_cut_short_is_found(name: str, shares: tuple[float, ...]) -> None:
    data = sample(name).read_bytes()
    for share in shares:
        with pytest.raises(Rejected) as caught:
            probe(data[: int(len(data) * share)])
        assert caught.value.reason == "truncated", share


def test_container_that_states_no_length_cannot_be_cut_short() -> None:
    data = sample("live.mkv").read_bytes()
    assert 0 < probe(data[: len(data) // 2]).duration < 2


def _garbled(name: str, box: bytes) -> bytes:
    """A sample whose first ``box`` holds nothing but 0xff."""
    data = bytearray(sample(name).read_bytes())
    at = data.index(box)
    size = int.from_bytes(data[at - 4 : at])
    data[at + 4 : at + size - 4] = b"\xff" * (size - 8)
    return bytes(data)


def test_garbled_data_are_undecodable_and_checking_may_be_left_out() -> None:
    garbled = _garbled("fast.mp4", b"mdat")
    with pytest.raises(Rejected) as caught:
        probe(garbled)
    assert caught.value.reason == "undecodable"
    assert probe(garbled, check=False).frames == 90


def test_garbled_header_is_rejected() -> None:
    with pytest.raises(Rejected) as caught:
        probe(_garbled("fast.mp4", b"moov"))
    assert caught.value.reason in {"undecodable", "no_video_stream"}


def test_frames_too_large_for_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(Rejected, match="128x96 are too large"):
        probe(sample("silent.mp4"))


def test_decoder_refuses_frames_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    def widths() -> set[int]:
        with open_media(sample("grown.ts")) as container:
            stream = video_stream(container)
            seen = set()
            for packet in demux(container, [stream]):
                with suppress(av.FFmpegError):
                    seen |= {frame.width for frame in packet.decode()}
            return seen

    assert widths() == {128, 256}
    monkeypatch.setattr(module, "MAX_PIXELS", 128 * 96)
    assert widths() == {128}


def test_messages_depend_on_the_data_alone(tmp_path: Path) -> None:
    for number, data in enumerate((HTML, b"", sample("fast.mp4").read_bytes()[:9000])):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        messages = set()
        for source in (path, data):
            with pytest.raises(Rejected) as caught:
                probe(source)
            messages.add(caught.value.message)
        assert len(messages) == 1
        assert tmp_path.name not in messages.pop()


@pytest.mark.parametrize("name", [*NUMBERED, "scenes.mkv"])
def test_packet_table_knows_every_frame(name: str) -> None:
    table = packet_table(sample(name))
    shown = [pts for pts, _ in decoded(sample(name))]
    assert table.shown.tolist() == shown
    assert table.end_pts > shown[-1]
    assert table.keyframe[0]
    assert len(table) == len(table.dts) == len(table.duration) == len(table.hidden)


def test_packet_table_tells_frames_hidden_by_an_edit_list() -> None:
    table = packet_table(sample("hidden.mp4"))
    assert (len(table), int(table.hidden.sum())) == (90, 15)
    assert numbers(sample("hidden.mp4"))[0] == 15


def test_uneven_frames_keep_their_times() -> None:
    assert packet_table(sample("uneven.mkv")).shown.tolist() == UNEVEN


def test_cut_points_are_the_keyframes_of_closed_gops() -> None:
    closed = packet_table(sample("plain.mp4"))
    assert closed.cut_points.tolist() == list(range(0, 90, KEYINT))
    opened = packet_table(sample("open.mp4"))
    assert int(opened.keyframe.sum()) == 5
    assert opened.cut_points.tolist() == [0]


def test_cut_points_of_known_orders() -> None:
    def points(pts: list[int], keys: list[int]) -> list[int]:
        keyframe = np.isin(np.arange(len(pts)), keys)
        return cut_points(np.array(pts, dtype=np.int64), keyframe).tolist()

    assert points([], []) == []
    assert points([0, 3, 1, 2, 4, 7, 5, 6], [0, 4]) == [0, 4]
    # Leading pictures (2, 3) are shown before the keyframe (4) that they follow.
    assert points([0, 1, 4, 2, 3, 5], [0, 2]) == [0]
    # A frame of the first GOP is shown after the second one has begun.
    assert points([0, 9, 4, 5], [0, 2]) == [0]
    assert points([1, 0, 2, 3], [0, 2]) == [2]
    assert points([0, 1, 2], []) == []


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.booleans()), max_size=30, unique_by=lambda p: p[0])
)
def test_cut_points_part_the_stream_in_two(packets: list[tuple[int, bool]]) -> None:
    pts = np.array([p for p, _ in packets], dtype=np.int64)
    keyframe = np.array([k for _, k in packets], dtype=bool)
    found = set(cut_points(pts, keyframe).tolist())
    for index in range(len(pts)):
        parts = all(pts[:index] < pts[index]) and all(pts[index:] >= pts[index])
        assert (index in found) == (bool(keyframe[index]) and parts)


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "vp9.webm", "plain.avi"])
def test_a_header_says_what_a_probe_finds(name: str) -> None:
    assert read_header(sample(name)) == probe(sample(name), check=False)


def test_the_header_of_several_videos_does_not_tell_which_is_best() -> None:
    with pytest.raises(Rejected, match="several videos"):
        read_header(sample("two.mkv"))


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
def test_real_clips(path: Path) -> None:
    info = probe(path)
    table = packet_table(path)
    assert abs(float((table.end_pts - table.shown[0]) * table.time_base - info.duration)) < 0.2
    assert info.frames is None or info.frames >= len(table.shown)
    assert len(table.cut_points)
    data = path.read_bytes()
    with pytest.raises(Rejected) as caught:
        probe(data[: len(data) // 2])
    assert caught.value.reason == "truncated"


def test_the_best_video_stream_is_taken() -> None:
    path = next((p for p in real_media() if p.name == "nasa_13013.mp4"), None)
    if path is None:
        pytest.skip("no real clips here")
    assert (probe(path).width, probe(path).fps) == (480, Fraction(30000, 1001))


def test_importing_loads_no_opencv() -> None:
    modules = "reelmill.media.probe, reelmill.media.cut, reelmill.media.scenes"
    code = f"import sys, {modules}; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _with_samples(data: bytes, each: int, count: int) -> bytes:
    """An MP4 file that names ``count`` samples of ``each`` bytes."""
    at = data.index(b"stsz") + 8
    return data[:at] + each.to_bytes(4) + count.to_bytes(4) + data[at + 8 :]


def _with_fragment(data: bytes, count: int) -> bytes:
    """The same, in a fragment of samples that are all as the header says."""
    run = _box(b"trun", bytes(4) + count.to_bytes(4))
    return data + _box(b"moof", _box(b"traf", run))


def _packed(data: bytes) -> bytes:
    """The same with a compressed header, as QuickTime wrote it."""
    at = data.index(b"moov") - 4
    end = at + int.from_bytes(data[at : at + 4])
    inner = _box(b"dcom", b"zlib") + _box(
        b"cmvd", (end - at).to_bytes(4) + zlib.compress(data[at:end])
    )
    return data[:at] + _box(b"moov", _box(b"cmov", inner)) + data[end:]


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + kind + content


def test_a_header_of_more_samples_than_bytes_is_refused_before_it_is_read() -> None:
    data = sample("silent.mp4").read_bytes()
    named = _with_samples(data, 1, 2**26)
    for bomb in (named, _packed(named), _with_fragment(data, 2**26)):
        with pytest.raises(Rejected, match="undecodable: the header names more samples than"):
            packet_table(bomb)
    assert len(packet_table(_packed(data))) == len(packet_table(_with_samples(data, 1, 90))) == 90


def test_sound_of_a_tick_for_each_sample_may_be_smaller_than_their_number() -> None:
    # As QuickTime writes compressed sound: samples of one byte, in chunks.
    data = sample("silent.mp4").read_bytes()
    at = data.index(b"stts") + 8
    data = data[:at] + (1).to_bytes(4) + (2**26).to_bytes(4) + (1).to_bytes(4) + data[at + 12 :]
    data = _with_samples(data, 1, 2**26).replace(b"vide", b"soun")
    assert not names_too_many(io.BytesIO(data), len(data))
