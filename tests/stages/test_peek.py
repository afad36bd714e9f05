"""Limits of videos, and the look at the first bytes of files that they refuse."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill.errors import Rejected
from reelmill.media import peek
from reelmill.media.peek import HEAD_BYTES, MAX_TAIL, Inspector, Limits
from reelmill.media.probe import probe
from reelmill.tasks import download
from reelmill.tasks.contract import key_params
from reelmill.tasks.download import DownloadParams, fetch_policy

from .media_samples import NUMBERED, real_media, sample
from .test_stages import Bench

ANY: dict[str, Any] = {
    "codecs": ("theora",),
    "min_side": 1000,
    "max_side": 100,
    "min_duration": 60,
    "max_duration": "0.5",
    "max_fps": 5,
}
"""Limits that each sample violates, every one of them."""

SOME = [
    *(Limits.model_validate({limit: value}) for limit, value in ANY.items()),
    Limits(max_duration="0.5", max_fps=5),
    Limits(max_fps=5, min_duration=60, min_side=90),
]


def refusal(limits: Limits, data: bytes, head: int = HEAD_BYTES) -> tuple[str, str] | None:
    """The (reason, message) for which a file is refused before it is taken as a whole."""
    inspect = Inspector(limits, head)
    try:
        wanted = inspect(data[:head], len(data), None)
        if wanted is not None:
            start, end = wanted
            assert head <= start < end <= len(data)
            assert inspect(data[:head], len(data), (start, data[start:end])) is None
    except Rejected as rejected:
        return rejected.reason, rejected.message
    return None


def verdict(limits: Limits, data: bytes) -> tuple[str, str] | None:
    """The same for the whole file."""
    try:
        limits.check(probe(data))
    except Rejected as rejected:
        return rejected.reason, rejected.message
    return None


@pytest.mark.parametrize("limit", ANY)
@pytest.mark.parametrize(
    "name",
    ["plain.mp4", "fast.mp4", "plain.mkv", "uneven.mkv", "vp8.webm", "vp9.webm", "plain.avi"],
)
def test_a_header_refuses_what_the_whole_file_would_in_the_same_words(
    name: str, limit: str
) -> None:
    data = sample(name).read_bytes()
    limits = Limits.model_validate({limit: ANY[limit]})
    expected = verdict(limits, data)
    assert expected is not None
    early = refusal(limits, data, 20_000)
    # Only MP4's index says when each frame is shown.
    unknown = limit == "max_fps" and not name.endswith("mp4")
    assert early == (None if unknown else expected)


@pytest.mark.parametrize("name", [*NUMBERED, "fast.mp4", "live.mkv", "rotated.mp4", "two.mkv"])
@pytest.mark.parametrize("limits", SOME)
def test_no_file_is_refused_otherwise_than_as_a_whole(name: str, limits: Limits) -> None:
    data = sample(name).read_bytes()
    for head in (300, 5000, 20_000, len(data)):
        assert refusal(limits, data, head) in (None, verdict(limits, data))


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
def test_real_files_are_refused_early_or_not_otherwise(path: Path) -> None:
    data = path.read_bytes()
    for limits in SOME:
        assert refusal(limits, data) in (None, verdict(limits, data))


@pytest.mark.parametrize("name", ["plain.mp4", "fast.mp4", "plain.mkv", "vp9.webm", "plain.avi"])
def test_a_file_within_the_limits_comes_through(name: str) -> None:
    limits = Limits(
        min_duration=2,
        max_duration="3.1",
        min_side=96,
        max_side=128,
        max_fps=30,
        codecs=("h264", "vp9", "mpeg4"),
    )
    data = sample(name).read_bytes()
    assert verdict(limits, data) is None
    assert refusal(limits, data, 20_000) is None


@pytest.mark.parametrize("limit", [{"min_duration": 3, "max_duration": 3}, {"max_fps": 30}])
def test_what_is_exactly_at_a_limit_is_taken(limit: dict[str, Any]) -> None:
    assert verdict(Limits.model_validate(limit), sample("silent.mp4").read_bytes()) is None


@pytest.mark.parametrize(
    ("limits", "reason", "message"),
    [
        ({"max_duration": "2s"}, "too_long", "3.000 s, more than max_duration (2 s)"),
        ({"min_duration": "1m"}, "too_short", "3.000 s, less than min_duration (60 s)"),
        ({"min_side": 97}, "low_resolution", "the shorter side of 128x96 pixels is less than"),
        ({"max_side": 127}, "high_resolution", "the longer side of 128x96 pixels is more than"),
        ({"max_fps": 29.97}, "high_frame_rate", "30.000 frames a second, more than max_fps"),
        ({"codecs": ["av1", "vp9"]}, "unwanted_codec", "the video is h264, not one of av1, vp9"),
    ],
)
def test_a_reject_says_what_it_is_and_what_was_wanted(
    limits: dict[str, Any], reason: str, message: str
) -> None:
    found = verdict(Limits.model_validate(limits), sample("silent.mp4").read_bytes())
    assert found is not None
    assert found[0] == reason
    assert found[1].startswith(message)


# MP4: where the index is


def box(kind: bytes, data: bytes = b"", *, size: int | None = None, long: bool = False) -> bytes:
    length = len(data) + (16 if long else 8) if size is None else size
    if long:
        return (1).to_bytes(4) + kind + length.to_bytes(8) + data
    return length.to_bytes(4) + kind + data


def moov_of(name: str) -> bytes:
    data = sample(name).read_bytes()
    at = data.index(b"moov") - 4
    return data[at : at + int.from_bytes(data[at : at + 4])]


LONG = Limits(max_duration=1)
FTYP = box(b"ftyp", b"isom\0\0\2\0")


def test_an_index_at_the_end_is_asked_for_wherever_the_data_end() -> None:
    size, moov = 100 << 30, moov_of("plain.mp4")
    start = size - len(moov)
    head = FTYP + box(b"free") + box(b"mdat", size=start - 24, long=True)
    head += bytes(HEAD_BYTES - len(head))
    inspect = Inspector(LONG)
    assert len(FTYP) + 8 == 24
    tracemalloc.start()
    assert inspect(head, size, None) == (start, size)
    with pytest.raises(Rejected, match="too_long"):
        inspect(head, size, (start, moov))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_what_lies_around_an_index_at_the_end_is_no_matter() -> None:
    tail = box(b"free", bytes(100)) + moov_of("plain.mp4") + box(b"uuid", bytes(1000))
    data = FTYP + box(b"mdat", bytes(300_000)) + tail
    assert refusal(LONG, data) is not None


@pytest.mark.parametrize("head", [100, 1000, 4000])
def test_the_rest_of_an_index_that_begins_the_file_is_asked_for(head: int) -> None:
    data, moov = sample("fast.mp4").read_bytes(), moov_of("fast.mp4")
    end = data.index(moov) + len(moov)
    assert Inspector(LONG, head)(data[:head], len(data), None) == (head, end)
    assert refusal(LONG, data, head) == verdict(LONG, data)


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_head_may_end_within_the_head_of_a_box(cut: int) -> None:
    begin = FTYP + box(b"mdat", bytes(1000), long=True)
    data = begin + box(b"free", bytes(16), long=True) + moov_of("plain.mp4")
    expected = ("too_long", "3.000 s, more than max_duration (1 s)")
    assert refusal(LONG, data, len(begin) + cut) == expected


def test_an_index_of_absurd_size_is_not_asked_for() -> None:
    size = 1 << 40
    inside = FTYP + box(b"moov", size=MAX_TAIL + HEAD_BYTES + 1)
    behind = FTYP + box(b"mdat", size=1 << 30)
    for head in (inside, behind):
        assert Inspector(LONG)(head + bytes(HEAD_BYTES - len(head)), size, None) is None


@pytest.mark.parametrize(
    "boxes",
    [
        box(b"free", size=0),
        box(b"mdat", size=0),
        *(box(b"free", size=size) for size in range(2, 8)),
        *(box(b"free", size=size, long=True) for size in (0, 8, 15, 2**63 - 1, 2**63, 2**64 - 1)),
        box(b"moov", size=2**63 - 1, long=True),
        box(b"moov", size=9),
        box(b"moov", box(b"trak", size=2**31) + bytes(99)),
        box(b"free") * 40_000,
        box(b"free", size=16, long=True) * 20_000,
        box(b"moov", box(b"moov") * 10_000),
        b"".join([*[(8 * n).to_bytes(4) + b"trak" for n in range(9000, 1, -1)]]),
    ],
    ids=lambda data: data[:16].hex(),
)
@pytest.mark.parametrize("size", [None, 2**20, 2**62, 2**70])
def test_bombs_of_boxes_come_through_and_ask_for_nothing(boxes: bytes, size: int | None) -> None:
    head = (FTYP + boxes)[:HEAD_BYTES]
    assert Inspector(LONG)(head + bytes(HEAD_BYTES - len(head)), size, None) is None


def test_an_index_may_go_on_to_the_end_of_the_file() -> None:
    moov = moov_of("plain.mp4")
    data = FTYP + box(b"mdat", bytes(5000)) + bytes(4) + moov[4:]
    for head in (1000, 6000):
        assert refusal(LONG, data, head) is not None


def test_fragments_do_not_tell_how_many_there_are() -> None:
    data = sample("fragmented.mp4").read_bytes()
    assert refusal(LONG, data, len(data) // 2) is None
    late = FTYP + box(b"moof") + box(b"mdat", bytes(5000)) + moov_of("plain.mp4")
    assert refusal(LONG, late, 1000) is None


def test_a_tail_that_is_not_what_was_asked_for_decides_nothing() -> None:
    data = sample("plain.mp4").read_bytes()
    inspect = Inspector(LONG, 5000)
    wanted = inspect(data[:5000], len(data), None)
    assert wanted is not None
    start, end = wanted
    for tail in (b"", bytes(end - start), data[start : end - 1], b"\xff" * (end - start)):
        assert inspect(data[:5000], len(data), (start, tail)) is None


def test_without_a_size_only_an_index_at_the_beginning_decides() -> None:
    fast, plain = sample("fast.mp4").read_bytes(), sample("plain.mp4").read_bytes()
    with pytest.raises(Rejected, match="too_long"):
        Inspector(LONG)(fast[:20_000], None, None)
    assert Inspector(LONG)(plain[:20_000], None, None) is None
    assert Inspector(LONG)(fast[:1000], None, None) is None
    assert Inspector(LONG)(sample("plain.mkv").read_bytes()[:20_000], None, None) is None


# Hostile bytes


@pytest.mark.parametrize("name", ["plain.mkv", "vp9.webm", "plain.avi", "fast.mp4"])
def test_what_is_not_there_is_not_searched_for_long(name: str) -> None:
    head = sample(name).read_bytes()[:700]
    assert Inspector(Limits(max_duration=4))(head, 1 << 45, None) in (None, (700, 4429))
    parts = peek._Parts(head, 1 << 45, None)
    read = 0
    while piece := parts.read(1 << 20):
        read += len(piece)
    assert read == len(head) + peek._MAX_ZEROS


def test_parts_are_read_like_the_file_that_they_are_of() -> None:
    data = bytes(range(1, 101)) + bytes(50) + bytes(range(1, 51))
    parts = peek._Parts(data[:100], 200, (150, data[150:]))
    assert parts.read() == data
    for start, end in ((0, 100), (90, 120), (100, 150), (140, 160), (199, 300), (200, 210)):
        parts.seek(start)
        assert (
            b"".join(iter(lambda end=end: parts.read(end - parts.tell()), b"")) == (data[start:end])
        )
    for start in (200, 201, 2**40):
        assert parts.seek(start) == start
        assert parts.read(10) == b""
    assert parts.seek(-30, 2) == 170
    assert parts.seek(5, 1) == 175
    assert parts.read(2) == data[175:177]
    with pytest.raises(ValueError, match="before the beginning"):
        parts.seek(-1)
    assert parts.take(80, 100) == data[80:100]
    assert parts.take(160, 200) == data[160:]
    assert parts.take(80, 101) is None
    assert parts.take(149, 151) is None
    assert parts.take(190, 201) is None


STARTS = (b"", FTYP, b"\x1a\x45\xdf\xa3", b"RIFF\xff\xff\xff\x7fAVI LIST", b"OggS", b"FLV\x01")


@settings(max_examples=60)
@given(
    st.sampled_from(STARTS),
    st.binary(max_size=2000),
    st.none() | st.integers(0, 2**65),
    st.none() | st.tuples(st.integers(0, 2**64), st.binary(max_size=500)),
)
@example(FTYP, b"", 0, (0, b""))
def test_any_bytes_come_through(
    start: bytes, rest: bytes, size: int | None, tail: tuple[int, bytes] | None
) -> None:
    wanted = Inspector(LONG)(start + rest, size, tail)
    if wanted is not None:
        assert tail is None
        assert size is not None
        assert len(start + rest) <= wanted[0] < wanted[1] <= size
        assert wanted[1] - wanted[0] <= MAX_TAIL


@settings(max_examples=100)
@given(
    st.sampled_from(["fast.mp4", "plain.mkv", "vp8.webm", "plain.avi"]),
    st.lists(st.tuples(st.integers(0, 5200), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_header_with_wrong_bytes_is_read_or_not_and_no_more(
    name: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(sample(name).read_bytes())
    for at, value in changes:
        data[at] = value
    found = refusal(LONG, bytes(data), 20_000)
    assert found is None or found[0] in ("too_long", "too_short")


# Parameters


def test_limits_that_no_video_can_keep_or_that_nobody_knows_are_refused() -> None:
    for limits, message in (
        ({"min_duration": 5, "max_duration": 4}, "no video is between 5 and 4"),
        ({"min_side": 5, "max_side": 4}, "no video is between 5 and 4"),
        ({"max_duration": 0}, "greater than 0"),
        ({"codecs": ["h263x"]}, "unknown codec 'h263x'; did you mean h263"),
        ({"codecs": ["libx264"]}, "unknown codec 'libx264'"),
        ({"max_length": 4}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            Limits.model_validate(limits)


def test_limits_enter_the_action_key_only_if_they_are_set() -> None:
    def key(**limits: Any) -> dict[str, Any]:
        return key_params(DownloadParams.model_validate({"limits": limits}))

    assert key() == key(codecs=[]) == key_params(DownloadParams())
    assert "limits" not in key()
    assert key(max_duration="1m")["limits"] == {"max_duration": "60"}
    assert key(codecs=["vp9", "libdav1d"]) == key(codecs=["av1", "vp9", "vp9"])
    again = DownloadParams.model_validate(
        DownloadParams(limits=Limits(max_fps="29.97")).model_dump(mode="json")
    )
    assert again.limits == Limits(max_fps="29.97")


def test_there_is_an_inspector_only_if_there_is_a_limit() -> None:
    assert DownloadParams().limits.inspector() is None
    inspector = DownloadParams(limits=Limits(max_duration=4)).limits.inspector()
    assert inspector is not None
    assert inspector.head_bytes == 256 << 10


def test_downloads_are_held_to_the_limits_by_what_they_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    paths = [sample("silent.mp4"), sample("odd.mp4"), sample("plain.ts"), sample("vp9.webm")]
    rows = bench.rows("url\n" + "".join(f"file://{path}\n" for path in paths))
    limits = {"max_duration": "2s", "codecs": ["h264"]}
    shard = bench.make("download", rows, allow_files=True, limits=limits)
    assert list(bench.samples(shard)) == ["000000001"]
    assert bench.rejects(shard) == {
        "000000000": "too_long",
        "000000002": "too_long",
        "000000003": "unwanted_codec",
    }


def test_a_dataset_is_the_same_whether_files_were_looked_at_early_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("plain.mp4", "fast.mp4", "odd.mp4", "plain.mkv", "vp9.webm", "plain.avi", "plain.ts")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(sample("fast.mp4").read_bytes()[:-2000])
    rows = "url\n" + "".join(f"file://{path}\n" for path in (*map(sample, names), torn))
    limits = {"max_duration": "2s", "max_side": 128, "codecs": ["h264", "vp9"]}
    seen: list[str] = []

    class Seeing(Inspector):
        def __call__(self, *args: Any) -> tuple[int, int] | None:
            try:
                return super().__call__(*args)
            except Rejected as rejected:
                seen.append(rejected.reason)
                raise

    made = []
    for early in (True, False):
        inspector = Seeing(Limits.model_validate(limits), 4500)
        monkeypatch.setattr(Limits, "inspector", lambda self, found=inspector: found)
        if not early:
            monkeypatch.setattr(
                download, "fetch_policy", lambda given: replace(fetch_policy(given), inspector=None)
            )
        folder = tmp_path / str(early)
        folder.mkdir()
        bench = Bench(folder)
        shard = bench.make("download", bench.rows(rows), allow_files=True, limits=limits)
        made.append((shard.index.digest, bench.rejects(shard)))
    assert made[0] == made[1]
    assert set(made[0][1].values()) == {"too_long", "high_resolution", "unwanted_codec"}
    assert {"too_long", "high_resolution"} <= set(seen)
