"""What clips become: every codec and container, sizes, rates, colours, sound, texts, variants."""

from __future__ import annotations

import json
import math
import subprocess
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from reelmill.errors import StageError
from reelmill.media import ffmpeg as ffmpeg_module
from reelmill.media import subtitles
from reelmill.media.cut import (
    Audio,
    Clip,
    Encoding,
    Size,
    Variant,
    Video,
    cut_spans,
    encode,
    graph,
)
from reelmill.media.cut.output import CODECS
from reelmill.media.cut.picture import Picture
from reelmill.media.ffmpeg import ffmpeg_exe, gpu_encoder_id, has_encoder, run_each
from reelmill.media.probe import packet_table, probe
from reelmill.media.size import Sizing
from reelmill.media.spans import Span
from reelmill.media.subtitles import Cue, Script, parse_webvtt, tracks_of, webvtt
from reelmill.shards import tar
from reelmill.shards.reader import Sample
from reelmill.tasks import split
from reelmill.tasks.contract import Job, key_params
from reelmill.tasks.split import Split, SplitParams

from .media_samples import make_video, numbers, sample, sha256
from .test_stages import Bench, fixed

F = Fraction
FIRST: list[Span] = [(F(0), F(1, 2))]
CHOICES = (
    ("h264", "mp4"),
    ("h264", "mkv"),
    ("hevc", "mp4"),
    ("hevc", "mkv"),
    ("vp9", "mp4"),
    ("vp9", "webm"),
    ("av1", "mp4"),
    ("av1", "webm"),
)


def _cut(source: Path, out: Path, spans: list[Span] = FIRST, **encoding: Any) -> list[Clip]:
    out.mkdir(exist_ok=True)
    made = cut_spans(source, spans, out, mode="exact", encoding=Encoding(**encoding), timeout_s=60)
    clips = [clip for clip in made if isinstance(clip, Clip)]
    assert len(clips) == len(made), made
    return clips


def _ffmpeg(*args: str | Path) -> None:
    subprocess.run([ffmpeg_exe(), "-v", "error", "-y", *map(str, args)], check=True)


def _frame(path: Path) -> Any:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def _luma(path: Path) -> NDArray[np.uint8]:
    return _frame(path).to_ndarray(format="gray")  # type: ignore[no-any-return]


# Codecs and containers


@pytest.mark.parametrize(("codec", "container"), CHOICES)
def test_each_codec_is_exact_and_the_same_bytes_however_clips_are_grouped(
    codec: Any, container: Any, clicks: Path, tmp_path: Path
) -> None:
    spans = [(F(0), F(1, 2)), (F(1), F(13, 10))]
    video = Video(codec=codec, container=container)
    together = _cut(clicks, tmp_path / "one", spans, video=video)
    again = _cut(clicks, tmp_path / "two", spans, video=video)
    alone = _cut(clicks, tmp_path / "three", spans[1:], video=video)
    assert [sha256(c.path) for c in again] == [sha256(c.path) for c in together]
    assert sha256(alone[0].path) == sha256(together[1].path)
    for clip, expected in zip(together, (range(15), range(30, 39)), strict=True):
        info = probe(clip.path)
        assert (clip.codec, info.pix_fmt, clip.ending) == (codec, "yuv420p", container)
        assert info.audio_codec == ("opus" if container == "webm" else "aac")
        assert numbers(clip.path) == list(expected)
        assert (clip.frames, clip.start_frame) == (len(expected), expected[0])


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_every_nth_frame_is_a_keyframe(codec: Any, tmp_path: Path) -> None:
    clip = _cut(sample("silent.mp4"), tmp_path, [(F(0), F(2))], video=Video(codec=codec, gop=12))[0]
    table = packet_table(clip.path)
    keyframes = np.sort(table.pts[table.keyframe]).tolist()
    assert keyframes == table.shown[::12].tolist()
    assert len(table.cut_points) == 5, "every GOP is closed"


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_without_b_frames_the_order_is_that_of_time(codec: Any, tmp_path: Path) -> None:
    made = [
        packet_table(_cut(sample("silent.mp4"), tmp_path / str(n), video=video)[0].path).pts
        for n, video in enumerate((Video(codec=codec, bframes=0), Video(codec=codec, bframes=3)))
    ]
    assert [bool((np.diff(pts) > 0).all()) for pts in made] == [True, False]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "stored"),
    [
        ("h264", "yuv444p10", "yuv444p10le"),
        ("hevc", "yuv422p", "yuv422p"),
        ("vp9", "yuv420p10", "yuv420p10le"),
        ("av1", "yuv420p10", "yuv420p10le"),
    ],
)
def test_pixel_formats(codec: Any, pix_fmt: Any, stored: str, tmp_path: Path) -> None:
    source = sample("silent.mp4")
    clip = _cut(source, tmp_path, video=Video(codec=codec, pix_fmt=pix_fmt))[0]
    assert probe(clip.path).pix_fmt == stored
    assert numbers(clip.path) == list(range(15))


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_a_bit_rate_is_kept_to(codec: Any, tmp_path: Path) -> None:
    sizes = [
        _cut(
            sample("silent.mp4"),
            tmp_path / rate,
            [(F(0), F(3))],
            video=Video(codec=codec, bit_rate=rate, size=Size(size=(64, 64))),
        )[0].size
        for rate in ("60k", "300k")
    ]
    assert sizes[0] * 1.5 < sizes[1]


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p", "yuvj420p"])
def test_pictures_do_not_depend_on_the_instructions_of_the_cpu(
    pix_fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video(tmp_path / "source.mkv", 8, pix_fmt=pix_fmt, size=(130, 98))
    video, made = Video(size=Size(size=(86, 50)), fps=20, deinterlace=True), set()
    for flags in ((), ("-cpuflags", "0")):
        monkeypatch.setattr(graph, "_cpu_flags", lambda *_, flags=flags: flags)
        made.add(sha256(_cut(source, tmp_path / str(len(made)), video=video)[0].path))
    assert len(made) == 1


def test_instructions_are_held_back_where_bytes_depend_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "_CPU_FLAGS", ("-cpuflags", "sse2"))
    picture = Picture(64, 64)
    assert graph._cpu_flags(picture, False) == ()
    assert graph._cpu_flags(picture, True) == ("-cpuflags", "sse2")
    assert graph._cpu_flags(replace(picture, codec="mpeg4"), False) == ("-cpuflags", "sse2")


# Sizes


sides = st.integers(1, 4000)
boxes = st.integers(8, 1000).map(lambda half: 2 * half)


@given(sides, sides, boxes, st.sampled_from(["min_side", "max_side"]), st.booleans())
def test_sides_come_out_as_for_pictures_and_even(
    width: int, height: int, side: int, name: str, upscale: bool
) -> None:
    fit = Size(**{name: side, "upscale": upscale}).fit(width, height)
    expected = Sizing[int](**{name: side, "upscale": upscale}).fit(width, height).scaled
    assert fit.scaled == fit.cropped == fit.padded
    for ours, theirs in zip(fit.scaled, expected, strict=True):
        assert ours % 2 == 0
        assert abs(ours - max(2, theirs)) <= 1


@given(sides, sides, boxes, boxes, st.booleans())
def test_boxes_are_filled_or_fitted_into(
    width: int, height: int, across: int, down: int, upscale: bool
) -> None:
    size, ratio = (across, down), F(width, height)
    for mode in ("scale", "crop", "pad", "window"):
        more = {"upscale": upscale} if mode == "pad" else {}
        fit = Size(size=size, mode=mode, **more).fit(width, height)
        assert fit.padded == size
        assert all(c <= s and c <= p for c, s, p in zip(*_pairs(fit), strict=True))
        assert all(side % 2 == 0 for side in (*fit.scaled, *fit.cropped))
        if mode == "crop":
            assert fit.cropped == size
        if mode in ("crop", "pad"):
            off = fit.scaled[0] - fit.scaled[1] * ratio
            assert abs(off) <= 2 + 2 * ratio, "the aspect ratio stays, but for even sides"
        if mode == "pad" and not upscale:
            assert fit.scaled[0] <= max(2, width + width % 2)
        if mode == "window":
            assert fit.scaled == (max(2, width - width % 2), max(2, height - height % 2))


def _pairs(fit: Any) -> tuple[Any, Any, Any]:
    return fit.cropped, fit.scaled, fit.padded


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(min_side=48), (64, 48)),
        (Size(max_side=64), (64, 48)),
        (Size(height=192, upscale=True), (256, 192)),
        (Size(width=400), (128, 96)),
        (Size(size=(80, 80)), (80, 80)),
        (Size(size=(48, 48), mode="crop"), (48, 48)),
        (Size(size=(160, 64), mode="pad"), (160, 64)),
        (Size(size=(64, 128), mode="window"), (64, 128)),
    ],
)
def test_clips_have_the_size_that_is_asked_for(
    size: Size, expected: tuple[int, int], tmp_path: Path
) -> None:
    clip = _cut(sample("plain.mp4"), tmp_path, video=Video(size=size))[0]
    assert (clip.width, clip.height) == expected


def test_the_middle_stays_and_bars_are_black(tmp_path: Path) -> None:
    # White in the middle third, grey around.
    def draw(_: int) -> NDArray[np.uint8]:
        grey = np.full((96, 144), 100, np.uint8)
        grey[:, 48:96] = 220
        return grey

    source = make_video(tmp_path / "source.mp4", 5, size=(144, 96), draw=draw)
    whole, bars, middle = (
        _luma(
            _cut(source, tmp_path / mode, video=Video(size=Size(size=(96, 96), mode=mode)))[0].path
        )
        for mode in ("scale", "pad", "window")
    )
    assert [int(whole[48, x]) // 20 for x in (10, 48, 86)] == [5, 11, 5]
    assert [int(bars[y, 48]) // 20 for y in (5, 48, 90)] == [0, 11, 0]
    assert [int(middle[48, x]) // 20 for x in (10, 48, 86)] == [5, 11, 5]
    assert abs(int((middle > 160).sum()) / 96 - 48) < 2


def test_what_is_rotated_and_not_square_comes_out_upright_and_square(tmp_path: Path) -> None:
    half = make_video(tmp_path / "rotated.mp4", 10, rotation=90)
    _ffmpeg(
        "-i",
        half,
        "-c",
        "copy",
        "-bsf:v",
        "h264_metadata=sample_aspect_ratio=2/1",
        wide := tmp_path / "wide.mp4",
    )
    as_it_is, square, small = (
        _cut(wide, tmp_path / str(n), video=video)[0]
        for n, video in enumerate((Video(), Video(square=True), Video(size=Size(max_side=64))))
    )
    # Stored 128×96, each pixel twice as wide as high; turned, 96×128 and half as wide.
    assert (as_it_is.width, as_it_is.height) == (96, 128)
    assert _ratio(as_it_is.path) == F(1, 2)
    assert (square.width, square.height, _ratio(square.path)) == (48, 128, 1)
    assert (small.width, small.height, _ratio(small.path)) == (24, 64, 1)


def _ratio(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return F(container.streams.video[0].sample_aspect_ratio or 1)


def test_a_size_holds_across_a_change_of_resolution(tmp_path: Path) -> None:
    video = Video(size=Size(size=(64, 48)))
    clip = _cut(sample("grown.ts"), tmp_path, [(F(0), F(99))], video=video)[0]
    assert (clip.width, clip.height, clip.frames) == (64, 48, 120)


# Rates


@pytest.mark.parametrize("fps", ["10", "15", "24", "30", "30000/1001", "60"])
def test_a_rate_shows_at_each_moment_what_is_shown_then(fps: str, tmp_path: Path) -> None:
    rate = F(fps)
    clip = _cut(sample("silent.mp4"), tmp_path, [(F(1), F(2))], video=Video(fps=fps))[0]
    table = packet_table(clip.path)
    times = [pts * table.time_base for pts in table.shown.tolist()]
    assert times == [i / rate for i in range(math.ceil(rate - F(1, 1000) * rate))]
    assert (clip.frames, clip.fps, clip.start_frame) == (len(times), rate, 30)
    assert numbers(clip.path) == [30 + math.floor((at + F(1, 1000)) * 30) for at in times]


@pytest.mark.parametrize("name", ["plain.mkv", "plain.flv"])
def test_times_in_milliseconds_repeat_no_frame_at_the_rate_they_had(
    name: str, tmp_path: Path
) -> None:
    clip = _cut(sample(name), tmp_path, [(F(0), F(99))], video=Video(fps=30))[0]
    assert numbers(clip.path) == list(range(90))


def test_an_average_rate_is_that_of_the_span_whatever_the_container_states(tmp_path: Path) -> None:
    slowing = ("-vf", "setpts=(N+N*N/20)/(30*TB)", "-fps_mode", "vfr", "-bf", "3")
    _ffmpeg("-i", sample("silent.mp4"), *slowing, source := tmp_path / "slowing.mp4")
    variants = {"same": Variant(codec="hevc"), "even": Variant(fps=20)}
    clip = _cut(source, tmp_path, [(F(0), F(99))], variants=variants)[0]
    rate = clip.frames / (clip.end - clip.start)
    assert clip.fps == rate != probe(clip.path).fps
    assert {name: one.fps for name, one in clip.variants.items()} == {"same": rate, "even": 20}


def test_uneven_frames_become_even(tmp_path: Path) -> None:
    source = sample("uneven.mkv")
    clip = _cut(source, tmp_path, [(F(0), F(99))], video=Video(fps=25))[0]
    table = packet_table(source)
    stamps = np.array([float(pts * table.time_base) for pts in table.shown.tolist()])
    assert set(np.diff(packet_table(clip.path).shown).tolist()) == {512}
    moments = np.arange(clip.frames) / 25 + 0.001
    assert numbers(clip.path) == (np.searchsorted(stamps, moments, side="right") - 1).tolist()


# Colours


TAGS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A source of the test card, with the given filters."""
    folder = tmp_path_factory.mktemp("tagged")

    def made(filters: str, *more: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.mp4"
        card = "testsrc2=size=128x96:rate=10:duration=1"
        _ffmpeg("-f", "lavfi", "-i", card, "-vf", filters, "-crf", "4", *more, path)
        return path

    return made


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_tags_of_colour_are_carried_and_no_size_shifts_them(
    codec: Any, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    tags = ":".join(f"{name}={value}" for name, value in TAGS.items())
    for range_, number in (("tv", 1), ("pc", 2)):
        convert = f"scale=out_color_matrix=bt709:out_range={range_},format=yuv420p"
        source = tagged(f"{convert},setparams={tags}:range={range_}")
        for size in (None, Size(max_side=64)):
            out = tmp_path / f"{range_}{size is None}"
            frame = _frame(_cut(source, out, video=Video(codec=codec, crf=10, size=size))[0].path)
            told = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
            if codec == "vp9":
                # Its bitstream has a matrix and a range alone; MP4 carries the others.
                told = (told[0], 1, 1, told[3])
            assert told == (1, 1, 1, number)
            means = [_means(one) for one in (_frame(source), frame)]
            assert np.abs(np.subtract(*means)).max() < 1.5


def _means(frame: Any) -> list[float]:
    planes = frame.reformat(format="yuv420p" if "j" not in frame.format.name else "yuvj420p")
    data = planes.to_ndarray()
    height = frame.height
    chroma = data[height:].reshape(2, -1)
    return [float(data[:height].mean()), float(chroma[0].mean()), float(chroma[1].mean())]


def test_untagged_pictures_stay_untagged(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    source = tagged("format=yuv420p")
    frame = _frame(_cut(source, tmp_path, video=Video(size=Size(max_side=64)))[0].path)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (
        *(2, 2, 2),
        0,
    )


def test_rgb_becomes_bt709_and_says_so(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (40, 90, 200)]
    for number, (r, g, b) in enumerate(colours):
        rgb = tmp_path / f"{number}.mp4"
        filters = f"color=0x{r:02x}{g:02x}{b:02x}:size=64x64:rate=5:duration=1,format=rgb24"
        _ffmpeg("-f", "lavfi", "-i", filters, "-c:v", "libx264rgb", "-qp", "0", rgb)
        frame = _frame(_cut(rgb, tmp_path / str(number), video=Video(crf=1))[0].path)
        # ITU-R BT.709-6, items 3.2 to 3.4.
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
        expected = (
            16 + 219 * luma / 255,
            128 + 224 * (b - luma) / 1.8556 / 255,
            128 + 224 * (r - luma) / 1.5748 / 255,
        )
        assert np.abs(np.subtract(_means(frame), expected)).max() < 1.5
        assert (frame.colorspace, frame.color_range) == (1, 1)


def test_matrices_that_ffmpeg_cannot_scale_are_carried_at_their_own_size(
    tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tagged("format=yuv420p,setparams=colorspace=ycgco")
    assert _frame(_cut(source, tmp_path)[0].path).colorspace == 8


# HDR


def _hdr(path: Path, transfer: str, *, primaries: str = "bt2020") -> Path:
    """Ten bits: a ramp of grey from black to the brightest, left to right."""
    tags = f"color_trc={transfer}:color_primaries={primaries}:colorspace=bt2020nc:range=tv"
    ramp = "nullsrc=size=440x32:rate=5:duration=1,format=yuv420p10le,geq=lum='64+2*X':cb=512:cr=512"
    more = ("-c:v", "libx265", "-x265-params", "lossless=1:log-level=none", "-tag:v", "hvc1")
    _ffmpeg("-f", "lavfi", "-i", f"{ramp},setparams={tags}", *more, path)
    return path


def _sdr_of(signal: float, transfer: str) -> float:
    """The SDR signal of a grey: light by ITU-R BT.2100-2, tables 4 and 5; Möbius' curve from 30 to
    1000 cd/m²; the inverse of ITU-R BT.1886."""
    if transfer == "smpte2084":
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = signal ** (1 / m2)
        light = 10_000 * (max(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = signal**2 / 3 if signal <= 0.5 else (math.exp((signal - c) / a) + b) / 12
        light = 1000 * scene**1.2
    x, j, peak = light / 100, 0.3, 10.0
    if x > j:
        a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
        b = (j * j - 2 * j * peak + peak) / (peak - 1)
        x = min(1.0, (b * b + 2 * b * j + j * j) / (b - a) * (x + a) / (x + b))
    return float(x ** (1 / 2.4))


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_becomes_sdr_by_the_formulas(transfer: str, tmp_path: Path) -> None:
    source = _hdr(tmp_path / "hdr.mp4", transfer)
    frame = _frame(_cut(source, tmp_path / "made", video=Video(crf=1))[0].path)
    assert (frame.format.name, frame.colorspace, frame.color_primaries, frame.color_trc) == (
        *("yuv420p", 1, 1, 1),
    )
    row = frame.to_ndarray()[16, :440]
    expected = [16 + 219 * _sdr_of((2 * x) / 876, transfer) for x in range(438)]
    # Two steps of 219: the grid's and the encoder's together.
    assert np.abs(row[:438] - np.array(expected)).max() <= 2.0
    chroma = frame.to_ndarray()[32:]
    assert np.abs(chroma.astype(int) - 128).max() <= 1, "grey stays grey"


def test_hdr_is_kept_in_ten_bits_with_its_tags(tmp_path: Path) -> None:
    source = _hdr(tmp_path / "hdr.mp4", "smpte2084")
    video = Video(codec="hevc", pix_fmt="yuv420p10")
    frame = _frame(_cut(source, tmp_path / "kept", video=video)[0].path)
    told = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.format.name)
    assert told == (9, 9, 16, "yuv420p10le")
    row = frame.to_ndarray()[16, :440]
    assert np.abs(row.astype(int) - (64 + 2 * np.arange(440))).max() < 24
    toned = _frame(
        _cut(source, tmp_path / "sdr", video=video.model_copy(update={"hdr": "sdr"}))[0].path
    )
    assert (toned.color_trc, toned.format.name) == (1, "yuv420p10le")


def test_tones_do_not_depend_on_the_instructions_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = _hdr(tmp_path / "hdr.mp4", "smpte2084"), []
    for flags in ((), ("-cpuflags", "0"), graph._CPU_FLAGS):
        monkeypatch.setattr(graph, "_cpu_flags", lambda *_, flags=flags: flags)
        clip = _cut(source, tmp_path / f"made{len(made)}", video=Video(size=Size(max_side=220)))[0]
        made.append(sha256(clip.path))
    assert len(set(made)) == 1
    assert {path.name for path in (tmp_path / "made0").iterdir()} == {"000000.mp4"}


# Sound


RATE = 48000
CLICKS = (0.5, 1.25, 2.0)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of silence with a click of one sample at each of ``CLICKS``."""
    folder = tmp_path_factory.mktemp("clicks")
    samples = np.zeros(3 * RATE, np.int16)
    samples[[round(at * RATE) for at in CLICKS]] = 30000
    with wave.open(str(folder / "clicks.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.tobytes())
    sound = ("-i", folder / "clicks.wav", "-c:v", "copy", "-c:a", "pcm_s16le")
    _ffmpeg("-i", sample("silent.mp4"), *sound, folder / "clicks.mkv")
    return folder / "clicks.mkv"


def _sound(path: Path) -> tuple[NDArray[np.float64], int]:
    """All samples of the first channel, from -1 to 1, and their rate."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp")
        parts: list[NDArray[np.float32]] = []
        rate = container.streams.audio[0].rate
        for frame in container.decode(audio=0):
            parts += [made.to_ndarray()[0] for made in resampler.resample(frame)]
    return np.concatenate(parts).astype(np.float64), int(rate)


@pytest.mark.parametrize(("kind", "slack"), [("wav", 0), ("flac", 0), ("m4a", 2), ("mp3", 2)])
def test_extracted_sound_is_cut_to_the_sample(
    kind: Any, slack: int, clicks: Path, tmp_path: Path
) -> None:
    spans = [(F(1, 3), F(3, 2)), (F(1), F(7, 3))]
    for clip in _cut(clicks, tmp_path, spans, audio=Audio(keep=False, extract=kind)):
        assert not clip.audio
        sound, rate = _sound(clip.others[kind])
        inside = [at for at in CLICKS if clip.start <= at < clip.end]
        expected = [round((at - float(clip.start)) * rate) for at in inside]
        found = _peaks(sound)
        assert len(found) == len(expected)
        assert all(abs(a - b) <= slack for a, b in zip(found, expected, strict=True))
        length = round((clip.end - clip.start) * rate)
        # Lossy codecs fill their last frame up.
        assert length <= len(sound) <= length + (0 if slack == 0 else 2 * 1152)


def _with_tone(folder: Path, rate: int, samples: int, *codec: str) -> Path:
    """The silent sample with so many samples of a tone."""
    tone = f"sine=sample_rate={rate},atrim=end_sample={samples}"
    path = folder / "tone.mkv"
    _ffmpeg("-i", sample("silent.mp4"), "-f", "lavfi", "-i", tone, "-c:v", "copy", *codec, path)
    return path


@pytest.mark.parametrize("sound", [Audio(codec="flac"), Audio(extract="flac")])
def test_a_packet_may_leave_a_few_samples_to_a_clip(sound: Audio, tmp_path: Path) -> None:
    # Packets of 1024 begin 14 samples behind the clip, and its first frame of sound has no more.
    source = _with_tone(tmp_path, 44100, 3 * 44100, "-c:a", "pcm_s16le", "-af", "asetnsamples=1024")
    video = Video(container="mkv")
    (clip,) = _cut(source, tmp_path / "out", [(F(13, 10), F(2))], video=video, audio=sound)
    assert clip.audio
    length = round((clip.end - clip.start) * 44100)
    assert len(_sound(clip.others.get("flac", clip.path))[0]) == length


def test_sound_that_is_claimed_and_not_there_fails_no_clip(tmp_path: Path) -> None:
    # Opus fills its last packet up: the clip begins within what is then cut off again.
    source = _with_tone(tmp_path, 48000, 62400, "-c:a", "libopus")
    (clip,) = _cut(source, tmp_path / "out", [(F(13, 10), F(2))], audio=Audio(extract="wav"))
    assert (clip.audio, clip.others, clip.frames) == (False, {}, 21)


def _peaks(sound: NDArray[np.float64]) -> list[int]:
    """Where clicks are: the loudest sample of each stretch above a third of the loudest."""
    loud = np.flatnonzero(np.abs(sound) > np.abs(sound).max() / 3)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > 2000) + 1)
    return [int(group[np.abs(sound[group]).argmax()]) for group in groups]


@pytest.mark.parametrize(
    ("container", "codec"),
    [(c, k) for c in ("mp4", "mkv") for k in ("aac", "opus", "flac", "mp3")] + [("webm", "opus")],
)
def test_sound_in_clips_is_in_time_and_the_same_bytes(
    container: Any, codec: Any, clicks: Path, tmp_path: Path
) -> None:
    video = Video(container=container, codec="vp9" if container == "webm" else "h264")
    span, made = [(F(1), F(7, 3))], []
    for place in ("one", "two"):
        clip = _cut(clicks, tmp_path / place, span, video=video, audio=Audio(codec=codec))[0]
        made.append(sha256(clip.path))
    assert made[0] == made[1]
    assert probe(clip.path).audio_codec == codec
    with av.open(str(clip.path)) as opened:
        frames = list(opened.decode(audio=0))
    at = min(F(frame.pts) * frame.time_base for frame in frames)
    sound, rate = _sound(clip.path)
    times = [float(at) + peak / rate for peak in _peaks(sound)]
    # Matroska has milliseconds.
    assert times == pytest.approx([0.25, 1.0], abs=0.0002 if container == "mp4" else 0.002)


def test_sound_is_resampled_and_mixed(clicks: Path, tmp_path: Path) -> None:
    audio = Audio(rate=16000, channels=2, extract="wav", bit_rate="64k")
    clip = _cut(clicks, tmp_path, audio=audio)[0]
    info = probe(clip.path)
    assert (info.sample_rate, info.channels) == (16000, 2)
    with wave.open(str(clip.others["wav"])) as read:
        assert (read.getframerate(), read.getnchannels(), read.getnframes()) == (16000, 2, 8000)


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path: Path) -> None:
    clip = _cut(sample("delayed.mkv"), tmp_path, [(F(0), F(3))], audio=Audio(extract="wav"))[0]
    sound, rate = _sound(clip.others["wav"])
    onset = int(np.flatnonzero(np.abs(sound) > 0.1)[0]) / rate
    assert onset == pytest.approx(2.0, abs=0.01)


def test_a_clip_without_sound_has_no_field_of_it(tmp_path: Path) -> None:
    clip = _cut(sample("silent.mp4"), tmp_path, audio=Audio(extract="flac"))[0]
    assert (clip.audio, clip.others) == (False, {})


# Subtitles


SRT = """1
00:00:00,200 --> 00:00:00,900
Hello & <i>welcome</i>

2
00:00:01,200 --> 00:00:02,500
Two
lines
"""


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with two tracks of subtitles, one of them without a language."""
    folder = tmp_path_factory.mktemp("spoken")
    (folder / "said.srt").write_text(SRT)
    texts = ("-i", folder / "said.srt", "-map", "0", "-map", "1", "-map", "1", "-c:v", "copy")
    tags = ("-metadata:s:s:0", "language=eng", "-c:s", "srt")
    _ffmpeg("-i", sample("silent.mp4"), *texts, *tags, folder / "spoken.mkv")
    return folder / "spoken.mkv"


def test_subtitles_are_read(spoken: Path) -> None:
    tracks = tracks_of(spoken)
    assert [track.language for track in tracks] == ["eng", None]
    for track in tracks:
        assert [(cue.start, cue.end) for cue in track.cues] == [
            (F(1, 5), F(9, 10)),
            (F(6, 5), F(5, 2)),
        ]
        assert track.cues[1].text == "Two\nlines"
        assert track.cues[0].text == "Hello &amp; welcome"
    assert tracks_of(sample("plain.mp4")) == []


@pytest.mark.parametrize(
    ("codec", "container"), [("h264", "mp4"), ("h264", "mkv"), ("vp9", "webm")]
)
def test_subtitles_are_kept_as_tracks_cut_by_time(
    codec: Any, container: Any, spoken: Path, tmp_path: Path
) -> None:
    video = Video(codec=codec, container=container)
    spans = [(F(1, 2), F(3, 2)), (F(13, 5), F(3))]
    clips = _cut(spoken, tmp_path, spans, video=video, subtitles=True)
    tracks = tracks_of(clips[0].path)
    assert [track.language for track in tracks] == ["eng", None]
    for track in tracks:
        times = [(float(cue.start), float(cue.end)) for cue in track.cues]
        assert times == [pytest.approx((0, 0.4), abs=1e-3), pytest.approx((0.7, 1), abs=1e-3)]
        assert [cue.text.split("\n")[-1] for cue in track.cues][1] == "lines"
    assert numbers(clips[0].path) == list(range(15, 45))
    assert tracks_of(clips[1].path) == [], "nothing is said in it"
    assert {path.suffix for path in tmp_path.iterdir()} == {f".{container}"}
    again = _cut(spoken, tmp_path / "again", spans, video=video, subtitles=True)
    assert [sha256(c.path) for c in again] == [sha256(c.path) for c in clips]


times = st.integers(0, 10_000).map(lambda ms: F(ms, 1000))
cues = st.lists(
    st.builds(
        lambda start, length, text: Cue(start, start + length, text),
        times,
        st.integers(1, 5000).map(lambda ms: F(ms, 1000)),
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20).filter(
            lambda text: "-->" not in text
        ),
    ),
    max_size=5,
)


@given(cues, times, times)
def test_cut_cues_are_those_that_are_shown_then(all_: list[Cue], one: F, other: F) -> None:
    start, end = sorted((one, other))
    cut = Script(all_).cut(start, end)
    shared = [min(cue.end, end) - max(cue.start, start) for cue in all_]
    assert [cue.end - cue.start for cue in cut] == [length for length in shared if length > 0]
    assert all(0 <= cue.start < cue.end <= end - start for cue in cut)
    ordered = sorted(all_, key=lambda cue: (cue.start, cue.end))
    assert parse_webvtt(webvtt(ordered)) == ordered


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"", []),
        (b"WEBVTT\n\nNOTE x\n\n00:01.000 --> 00:02.000 align:left\nyes\n", ["yes"]),
        ("\ufeffWEBVTT\r\n\r\nid\r\n00:00:01.000 --> 00:00:02.000\r\nä\r\n".encode(), ["ä"]),
        (b"WEBVTT\n\n00:02.000 --> 00:01.000\nbackwards\n\nx --> y\nz\n", []),
        (b"\xff\xfe\x00 --> \n\n1:2 --> 3", []),
    ],
)
def test_webvtt_of_strangers(data: bytes, texts: list[str]) -> None:
    assert [cue.text for cue in parse_webvtt(data)] == texts


@pytest.mark.parametrize("text", ["a\r\rb", "a\n \nb", "a\r\n\r\nb", "\r\ra\n\n\nb\r"])
def test_no_text_ends_its_cue_or_begins_another(text: str) -> None:
    injected = Cue(F(0), F(1), f"{text}\r\r00:05.000 --> 00:06.000\rc\0")
    (found,) = parse_webvtt(webvtt([injected]))
    assert found.text == "a\nb\n00:05.000 --&gt; 00:06.000\nc\ufffd"


def test_texts_of_strangers_are_bounded(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtitles, "MAX_TEXTS", 10)
    assert [len(track.cues) for track in tracks_of(spoken)] == [1, 0]
    assert parse_webvtt(SRT.encode()) == []
    monkeypatch.setattr(subtitles, "MAX_TRACKS", 1)
    assert len(tracks_of(spoken)) == 1


def test_fields_of_texts_fit_into_a_tar_beside_each_other(spoken: Path) -> None:
    fields = {"ENG.vtt": SRT.encode(), f"{'x' * 80}.vtt": SRT.encode(), "a.b.vtt": b""}
    assert set(split._texts(spoken, fields)) == {"ENG.vtt", "a.b.vtt", "und.vtt"}


def test_captions_that_are_no_text_are_left_out() -> None:
    one = '[{"start": 0, "end": 1, "text": %s}]'
    about = {"captions": one % '"\\ud800"', "subtitles": one % "7"}
    (script,) = split._captions(about).values()
    assert script.cut(F(0), F(1)) == [Cue(F(0), F(1), "7")]
    for other in (None, {}, 3, "[", "[" * 100_000, [1], [{"start": 1e400, "end": 1, "text": ""}]):
        assert split._captions({"captions": other}).keys() <= {"captions"}


# Variants


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The command lines that are run."""
    lines: list[list[str]] = []

    def recorded(streams: Iterable[Any], **options: Any) -> Any:
        streams = list(streams)
        lines.extend(ffmpeg.get_args(stream) for stream in streams)
        return run_each(streams, **options)

    monkeypatch.setattr(encode, "run_each", recorded)
    return lines  # type: ignore[return-value]


def test_variants_come_from_one_decode_and_change_no_byte_of_the_clip(
    runs: list[list[str]], tmp_path: Path
) -> None:
    source, spans = sample("plain.mp4"), [(F(0), F(1)), (F(1), F(2))]
    variants = {
        "small": Variant(size=Size(min_side=48), fps=10, audio=False),
        "web": Variant(codec="vp9", container="webm", audio=Audio(extract="mp3", rate=16000)),
    }
    plain = _cut(source, tmp_path / "plain", spans)
    made = _cut(source, tmp_path / "made", spans, variants=variants)
    assert [line.count("-i") for line in runs] == [1, 1]
    assert [sha256(c.path) for c in made] == [sha256(c.path) for c in plain]
    for clip in made:
        assert set(clip.others) == {"small.mp4", "web.webm", "web.mp3"}
        small, web = clip.variants["small"], clip.variants["web"]
        assert (small.width, small.height, small.frames, small.has_audio) == (64, 48, 10, False)
        assert (web.codec, web.frames, web.audio_codec) == ("vp9", 30, "opus")
        assert numbers(clip.others["web.webm"]) == numbers(clip.path)


# The stage


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_many_outputs_are_parted_among_processes(
    runs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MAX_GROUP_OUTPUTS", 12)
    variants = {f"v{i}": Variant(size=Size(min_side=16), preset="ultrafast") for i in range(3)}
    spans = [(F(i, 5), F(i + 1, 5)) for i in range(5)]
    clips = _cut(sample("silent.mp4"), tmp_path, spans, variants=variants)
    assert [len(clip.others) for clip in clips] == [3] * 5
    assert len(runs) == 2


def test_the_stage_writes_every_output_as_a_field(bench: Bench, spoken: Path) -> None:
    shard = bench.make(
        "split",
        bench.videos(sample("plain.mp4")),
        **fixed("1s", remainder="drop", max_clips=2, pick="spread"),
        video={"codec": "av1", "container": "webm", "size": {"max_side": 64}},
        audio={"extract": "flac"},
        variants={"still": {"fps": 2, "audio": False}},
    )
    made = bench.samples(shard)
    assert sorted(made) == ["000000000_000", "000000000_001"]
    assert [made[key].columns["start"] for key in sorted(made)] == [0, 2]
    for one in made.values():
        assert set(one.fields) == {"webm", "flac", "still.mp4", "json"}
        about = json.loads(one.fields["json"])
        assert (about["width"], about["height"], about["codec"]) == (64, 48, "av1")
        assert about["variants"]["still"] == {
            "frames": 2,
            "fps": 2,
            "width": 128,
            "height": 96,
            "codec": "h264",
            "has_audio": False,
        }
        assert probe(one.fields["still.mp4"]).frames == 2


def test_the_stage_cuts_texts_with_the_clips(bench: Bench, spoken: Path) -> None:
    said = json.dumps(
        [{"start": 0.5, "end": 1.5, "text": "a"}, {"start": 2, "end": 3, "text": "b"}]
    )
    about = {"captions": json.loads(said), "table": {"subtitles": said, "captions": "none"}}
    fields = {
        "mkv": spoken.read_bytes(),
        "en.vtt": b"WEBVTT\n\n00:00.500 --> 00:01.500\nfrom the site\n",
        "json": json.dumps(about).encode(),
    }
    made = list(_split(fields, bench.folder, subtitles="extract"))
    assert [set(one.fields) for one in made] == [
        {"mp4", "json", "en.vtt", "eng.vtt", "und.vtt"},
        {"mp4", "json", "en.vtt", "eng.vtt", "und.vtt"},
        {"mp4", "json", "eng.vtt", "und.vtt"},
    ]
    first, second, third = (json.loads(one.fields["json"]) for one in made)
    assert first["captions"] == first["subtitles"] == [{"start": 0.5, "end": 1, "text": "a"}]
    assert second["captions"] == [{"start": 0, "end": 0.5, "text": "a"}]
    assert third["captions"] == [{"start": 0, "end": 1, "text": "b"}]
    assert made[1].fields["en.vtt"] == b"WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nfrom the site\n"
    for one in _split(fields, bench.folder, subtitles="drop"):
        assert set(one.fields) == {"mp4", "json"}


def _split(fields: dict[str, bytes], folder: Path, **params: Any) -> Iterator[Any]:
    values = SplitParams(method="fixed", seconds=1, **params)
    job: Any = Job(None, None, values, {}, folder)  # type: ignore[arg-type]
    yield from Split().each(job, Sample("000000000", fields, {}))


def test_a_clip_that_fits_into_no_tar_is_rejected(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = bench.videos(sample("plain.mp4"))
    monkeypatch.setattr(tar, "MAX_MEMBER", 30_000)
    made = bench.make("split", videos, method="fixed", seconds="2s", audio={"extract": "wav"})
    assert list(bench.rejects(made).values()) == ["too_large", "too_large"]


def test_scenes_are_divided_into_windows_that_hold_no_cut(bench: Bench) -> None:
    shard = bench.make(
        "split",
        bench.videos(sample("scenes.mkv")),
        seconds="0.5s",
        overlap="0.1s",
        remainder="drop",
        min_seconds="0.1s",
    )
    starts = sorted(s.columns["start_frame"] for s in bench.samples(shard).values())
    frames = {s.columns["start_frame"]: s.columns["frames"] for s in bench.samples(shard).values()}
    for first in starts:
        scene = sum(first >= cut for cut in (25, 47, 70))
        end = (25, 47, 70, 90)[scene]
        assert first + frames[first] <= end
    assert {0, 25, 47, 70} <= set(starts)


# What does not fit together


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"video": {"crf": 20, "bit_rate": "1M"}}, "give crf or bit_rate, not both"),
        ({"video": {"container": "webm"}}, "webm holds vp9 and av1, not h264: use mp4 or mkv"),
        ({"video": {"codec": "vp9", "preset": "fast"}}, "vp9 has no preset fast: 0, 1"),
        ({"video": {"preset": "quick"}}, "h264 has no preset quick: ultrafast"),
        ({"video": {"codec": "av1", "bframes": 2}}, "av1 has no bframes to set"),
        ({"video": {"codec": "av1", "pix_fmt": "yuv444p"}}, "av1 has no yuv444p: yuv420p, yuv42"),
        ({"video": {"crf": 60}}, "crf is 0 to 51 for h264"),
        ({"video": {"hdr": "keep"}}, "HDR in 8 bits shows bands"),
        ({"video": {"fps": "fast"}}, "'fast' is no frame rate; write 25, 23.976 or 30000/1001"),
        ({"video": {"fps": "1/0"}}, "is no frame rate"),
        ({"video": {"fps": 0}}, "is not between 0 and 1000"),
        ({"video": {"bit_rate": "2 Mb"}}, "write a bit rate such as 800k or 2.5M"),
        ({"video": {"size": {}}}, "give exactly one of min_side"),
        ({"video": {"size": {"max_side": 63}}}, "multiple of 2"),
        ({"video": {"size": {"max_side": 64, "mode": "pad"}}}, "mode 'pad' needs size"),
        ({"video": {"size": {"size": [64, 64], "upscale": True}}}, "upscale has no effect"),
        ({"audio": {"codec": "opus", "rate": 44100}}, "opus has no rate 44100: 8000"),
        ({"audio": {"codec": "flac", "bit_rate": "64k"}}, "bit_rate is for aac, opus and mp3"),
        ({"audio": {"keep": False, "codec": "aac"}}, "codec is for sound in the clip"),
        ({"audio": {"extract": "mp3", "channels": 6}}, "mp3 has at most 2 channels"),
        (
            {"video": {"codec": "vp9", "container": "webm"}, "audio": {"codec": "aac"}},
            "webm cannot hold aac: use opus",
        ),
        ({"crf": 20, "video": {"crf": 21}}, "crf is given twice: it is short for video.crf"),
        ({"preset": "fast", "video": {"codec": "vp9"}}, "vp9 has no preset fast"),
        ({"cut": "copy", "video": {"gop": 12}}, "cut 'copy' leaves clips as they are"),
        ({"cut": "copy", "audio": {"extract": "wav"}}, "cut 'copy' leaves clips as they are"),
        ({"cut": "copy", "subtitles": "keep"}, "cut 'copy' leaves clips as they are"),
        ({"variants": {"Small": {}}}, "String should match pattern"),
        ({"stride": "1s"}, "stride, overlap and remainder need seconds"),
        ({"seconds": 4, "stride": 2, "overlap": 2}, "give stride or overlap, not both"),
        ({"seconds": 4, "overlap": 4}, "overlap must be less than seconds"),
        ({"seconds": 4, "stride": 5, "remainder": "merge"}, "for clips without gaps"),
        ({"method": "fixed"}, "method 'fixed' needs seconds"),
    ],
)
def test_what_does_not_fit_together_says_so(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SplitParams(**params)
    (error,) = caught.value.errors()
    assert message in error["msg"]
    assert "\n" not in error["msg"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({}, {"video": {}}, True),
        ({}, {"video": {"codec": "h264", "crf": 18, "preset": "veryfast"}}, True),
        ({}, {"video": {"container": "mp4", "pix_fmt": "yuv420p", "hdr": "sdr"}}, True),
        ({"crf": 20, "preset": "slow"}, {"video": {"preset": "slow", "crf": 20}}, True),
        ({"crf": 20}, {"crf": 21}, False),
        ({"audio": True}, {"audio": {"codec": "aac"}}, True),
        ({"audio": False}, {"audio": {"keep": False, "rate": 16000}}, True),
        ({"audio": False}, {"audio": True}, False),
        ({"video": {"fps": 24}}, {"video": {"fps": "48/2"}}, True),
        ({"video": {"fps": 24}}, {"video": {"fps": "24000/1001"}}, False),
        ({"video": {"bit_rate": "2M"}}, {"video": {"bit_rate": 2000000}}, True),
        ({"video": {"codec": "vp9", "preset": 4}}, {"video": {"codec": "vp9"}}, True),
        (
            {"video": {"size": {"min_side": 64}}},
            {"video": {"size": {"min_side": 64}, "square": True}},
            True,
        ),
        ({"variants": {"a": {}}}, {"variants": {"a": {"crf": 18, "audio": {}}}}, True),
        ({"variants": {"a": {}}}, {"variants": {"b": {}}}, False),
        ({"cut": "copy"}, {"cut": "copy", "audio": True}, True),
        ({"seconds": 4, "stride": 3}, {"seconds": 4, "overlap": 1}, True),
        ({"seconds": 4}, {"seconds": 4, "stride": 4, "pick": "spread"}, True),
        ({"max_clips": 4}, {"max_clips": 4, "pick": "spread"}, False),
    ],
)
def test_equal_meanings_are_equal_keys(
    one: dict[str, Any], other: dict[str, Any], equal: bool
) -> None:
    keys = [
        json.dumps(key_params(SplitParams(**params)), sort_keys=True) for params in (one, other)
    ]
    assert (keys[0] == keys[1]) is equal


@pytest.mark.parametrize(
    ("encoding", "copies"),
    [
        ({}, True),
        ({"video": Video(codec="h264", crf=30, preset="slow")}, True),
        ({"audio": Audio(keep=False)}, True),
        ({"video": Video(codec="hevc")}, False),
        ({"video": Video(pix_fmt="yuv444p")}, False),
        ({"video": Video(gop=12)}, False),
        ({"video": Video(bit_rate="1M")}, False),
        ({"video": Video(container="mkv")}, False),
        ({"video": Video(size=Size(max_side=64))}, False),
        ({"audio": Audio(codec="aac", rate=16000)}, False),
        ({"audio": Audio(extract="wav")}, False),
        ({"variants": {"a": Variant()}}, False),
        ({"subtitles": True}, False),
    ],
)
def test_packets_stand_only_where_they_are_what_is_asked_for(
    encoding: dict[str, Any], copies: bool, tmp_path: Path
) -> None:
    # A whole video: both its ends are cut points.
    for mode in ("auto", "smart"):
        (clip,) = cut_spans(
            sample("plain.mp4"),
            [(F(0), F(9))],
            tmp_path,
            mode=mode,
            encoding=Encoding(**encoding),
            timeout_s=60,
        )
        assert isinstance(clip, Clip)
        assert (clip.how != "encoded") is copies


def test_hdr_that_becomes_sdr_is_never_copied(tmp_path: Path) -> None:
    source = tmp_path / "hdr.mp4"
    tags = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    make_video(source, 10, options={"x264-params": tags})
    for mode in ("auto", "smart"):
        (clip,) = cut_spans(source, [(F(0), F(9))], tmp_path, mode=mode, timeout_s=60)
        assert isinstance(clip, Clip)
        assert clip.how == "encoded"
        assert _frame(clip.path).color_trc == 1


# Encoders of the GPU


def test_encoders_are_tried_and_not_looked_up() -> None:
    assert has_encoder("libx264")
    assert not has_encoder("libnone")


def test_nvenc_where_there_is_none_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg_module, "has_encoder", lambda name: False)
    with pytest.raises(StageError, match="hevc_nvenc does not work on this host") as caught:
        Split().tools(SplitParams(video={"codec": "hevc_nvenc"}))
    assert "use codec hevc" in str(caught.value)
    monkeypatch.setattr(ffmpeg_module, "has_encoder", lambda name: True)
    monkeypatch.setattr(ffmpeg_module, "_gpu", lambda: "NVIDIA L4, 550.54")
    tools = Split().tools(SplitParams(video={"codec": "hevc_nvenc"}))
    assert tools["hevc_nvenc"] == gpu_encoder_id("hevc_nvenc") == "NVIDIA L4, 550.54"


@pytest.mark.parametrize("codec", [name for name in CODECS if name.endswith("_nvenc")])
def test_nvenc_encodes_where_it_is(codec: Any, tmp_path: Path) -> None:
    if not has_encoder(codec):
        pytest.skip(f"{codec} does not work here")
    clip = _cut(
        sample("long.mp4"), tmp_path, video=Video(codec=codec, gop=12, size=Size(size=(256, 256)))
    )[0]
    assert clip.codec == codec.removesuffix("_nvenc")
    assert clip.frames == 15
