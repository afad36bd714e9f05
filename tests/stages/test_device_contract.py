"""What every device's frames must be: on the CPU, on a card if there is one, and on a stand-in."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest

from reelmill.errors import MissingDependencyError, Rejected, StageError
from reelmill.media import decode, scenes
from reelmill.media.ffmpeg import ffmpeg_exe
from reelmill.media.gpu import colour, devices, modules, scoring, sources
from reelmill.media.gpu.colour import Planes
from reelmill.media.gpu.devices import Capabilities, Decodes, Stream
from reelmill.media.gpu.nvdec import Nvdec, RefusedError
from reelmill.media.gpu.sources import Batch, CpuFrames, CudaFrames, FrameSource, on_device
from reelmill.media.scenes import scores
from reelmill.media.scenes.pictures import small_size
from tests.stages import fake_nvc
from tests.stages.media_samples import make_video, number_of, real_media

torch = pytest.importorskip("torch")

TOLERANCE_MEAN = 0.02
"""Of RGB made on a device against the CPU's, in steps of 255: see ``colour.rgb_of``."""
TOLERANCE_MOST = 8


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake_nvc.Card:
    """A stand-in for PyNvVideoCodec, on torch's CPU device."""
    made = fake_nvc.Card()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made.module())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return made


def known(card: fake_nvc.Card) -> Capabilities:
    """What the stand-in says that it can do."""
    kinds = [kind for _, kind in devices._decoders(card.module(), 0)]
    return Capabilities(0, "Stand-in", "1", 1 << 30, fake_nvc.ENGINES, tuple(kinds), ())


@pytest.fixture(params=["cpu", "stand-in", "cuda"])
def device(request: pytest.FixtureRequest) -> FrameSource:
    if request.param == "cpu":
        return CpuFrames()
    if request.param == "stand-in":
        return CudaFrames(Nvdec(known(request.getfixturevalue("card"))))
    try:
        return sources.frame_source("cuda")
    except (StageError, MissingDependencyError) as error:
        pytest.skip(f"no card: {error}")


def arrays(batches: Iterator[Batch]) -> tuple[list[int], np.ndarray]:
    """The pts and the pictures of all batches."""
    pts: list[int] = []
    pictures = []
    for batch in batches:
        assert len(batch) == len(batch.rgb)
        pts += batch.pts.tolist()
        pictures.append(np.asarray(batch.rgb.cpu() if torch.is_tensor(batch.rgb) else batch.rgb))
    return pts, np.concatenate(pictures)


KINDS: dict[str, dict[str, Any]] = {
    "h264 with B-frames": {"options": {"bf": "3", "g": "12"}},
    "uneven times": {"pts": [0, 3, 4, 9, 20, 21, 22, 40, *range(50, 90)]},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=0"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, (64, 48)])
def test_frames_are_the_cpus(
    tmp_path: Path, device: FrameSource, kind: str, size: tuple[int, int] | None
) -> None:
    options = KINDS[kind]
    suffix = ".mkv" if kind == "vp9" else ".mp4"
    path = make_video(tmp_path / f"a{suffix}", frames=len(options.get("pts", range(40))), **options)
    expected = list(decode.frames(path))
    pts, pictures = arrays(device.frames(path, size, batch=7))
    assert pts == [frame.pts for frame in expected]
    wanted = np.stack([decode.to_rgb(frame, size) for frame in expected])
    assert pictures.shape == wanted.shape
    apart = np.abs(pictures.astype(int) - wanted)
    assert apart.mean() <= TOLERANCE_MEAN
    assert apart.max() <= TOLERANCE_MOST
    if size is None:
        assert [number_of(picture[..., 1]) for picture in pictures] == list(range(len(expected)))


def test_frames_come_in_batches_with_their_clock(tmp_path: Path, device: FrameSource) -> None:
    path = make_video(tmp_path / "a.mp4", frames=20)
    batches = list(device.frames(path, batch=8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert {batch.time_base for batch in batches} == {next(decode.frames(path)).time_base}
    assert all(batch.pts.dtype == np.int64 for batch in batches)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(tmp_path: Path, device: FrameSource, rotation: int) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3, rotation=rotation)
    wanted = np.stack([decode.to_rgb(frame) for frame in decode.frames(path)])
    _, pictures = arrays(device.frames(path))
    assert pictures.shape == wanted.shape
    assert np.abs(pictures.astype(int) - wanted).max() <= TOLERANCE_MOST
    small = (32, 64)
    assert arrays(device.frames(path, small))[1].shape == (3, 64, 32, 3)


def test_what_is_no_video_is_rejected(tmp_path: Path, device: FrameSource) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"<html>")
    with pytest.raises(Rejected, match="not_video"):
        next(iter(device.frames(path)))


def test_an_iterator_can_be_left(tmp_path: Path, device: FrameSource) -> None:
    path = make_video(tmp_path / "a.mp4", frames=40)
    frames = device.frames(path, batch=4)
    first = next(iter(frames))
    frames.close()  # type: ignore[attr-defined]
    again, _ = arrays(device.frames(path))
    assert again[:4] == first.pts.tolist()


SMALL = ["av1_video.mkv", "bikes.mp4", "bt709_full_range.mp4", "h264_10bits.mp4", "h265_video.mp4"]


def clips() -> list[Path]:
    """Real clips that are decoded soon."""
    found = [path for path in real_media() if path.name in SMALL]
    if not found:
        pytest.skip("the real clips are not here")
    return found


def test_real_clips_are_the_cpus_or_refused(device: FrameSource) -> None:
    paths = clips()
    taken = 0
    for path in paths:
        try:
            pts, pictures = arrays(device.frames(path, (64, 36)))
        except RefusedError:
            continue
        expected = list(decode.frames(path))
        assert pts == [frame.pts for frame in expected], path.name
        wanted = np.stack([decode.to_rgb(frame, (64, 36)) for frame in expected])
        assert np.abs(pictures.astype(int) - wanted).mean() <= TOLERANCE_MEAN, path.name
        taken += 1
    assert taken >= 4


# --- NVDEC, on the stand-in ---


def test_one_decoder_serves_many_videos(tmp_path: Path, card: fake_nvc.Card) -> None:
    nvdec = Nvdec(known(card))
    for number, size in enumerate([(128, 96), (160, 128), (128, 96), (128, 96)]):
        path = make_video(tmp_path / f"{number}.mp4", frames=6, size=size)
        assert sum(len(one.pts) for one in nvdec.decode(path)) == 6
    assert nvdec.created == len(card.decoders) == 1
    assert card.decoders[0].sizes == [(160, 128), (128, 96)]


def test_a_larger_video_gets_a_larger_decoder(tmp_path: Path, card: fake_nvc.Card) -> None:
    nvdec = Nvdec(known(card))
    for number, size in enumerate([(128, 96), (2048, 64), (128, 96)]):
        path = make_video(tmp_path / f"{number}.mp4", frames=2, size=size)
        assert sum(len(one.pts) for one in nvdec.decode(path)) == 2
    assert nvdec.created == 2


def test_each_codec_has_a_decoder(tmp_path: Path, card: fake_nvc.Card) -> None:
    nvdec = Nvdec(known(card))
    hevc = {"codec": "libx265", "options": {"x265-params": "log-level=0"}}
    for number, more in enumerate([{}, hevc, {}, hevc]):
        path = make_video(tmp_path / f"{number}.mp4", frames=4, **more)
        assert sum(len(one.pts) for one in nvdec.decode(path)) == 4
    assert nvdec.created == 2


def test_engines_work_at_once_and_no_more_than_there_are(
    tmp_path: Path, card: fake_nvc.Card
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=12)
    nvdec = Nvdec(known(card))
    # Nobody gets on until all engines are at work.
    card.meeting = threading.Barrier(fake_nvc.ENGINES)
    with ThreadPoolExecutor(2 * fake_nvc.ENGINES) as pool:
        count = list(pool.map(lambda _: sum(len(one.pts) for one in nvdec.decode(path)), range(6)))
    assert count == [12] * 6
    assert card.most_at_once == fake_nvc.ENGINES
    assert nvdec.created == fake_nvc.ENGINES


@pytest.mark.parametrize("kind", [fake_nvc.PyNvVCException, fake_nvc.PyNvVCExceptionUnsupported])
def test_an_error_of_the_decoder_is_a_refusal_and_the_next_video_is_decoded(
    tmp_path: Path, card: fake_nvc.Card, kind: type[Exception]
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=12)
    nvdec = Nvdec(replace(known(card), engines=1))

    def spoil() -> None:
        raise kind("cuvidDecodePicture : \nError code : 999")

    card.spoil = spoil
    with pytest.raises(RefusedError, match=r"NVDEC failed: .*999"):
        list(nvdec.decode(path))
    card.spoil = lambda: None
    assert sum(len(one.pts) for one in nvdec.decode(path)) == 12
    assert nvdec.created == 2


def test_a_decoder_left_in_the_middle_of_a_video_is_not_used_again(
    tmp_path: Path, card: fake_nvc.Card
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=40)
    nvdec = Nvdec(replace(known(card), engines=1))
    for _ in range(2):
        decoded = nvdec.decode(path, batch=4)
        assert next(decoded).pts.tolist() == [frame.pts for frame in decode.frames(path)][:4]
        decoded.close()
    assert nvdec.created == 2
    assert sum(len(one.pts) for one in nvdec.decode(path)) == 40


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: [] if frame.getPTS() == 5 else [frame], "left frames out"),
        (lambda frame: [frame, frame], "cannot be told apart"),
        (lambda frame: [fake_nvc.DecodedFrame(-9, frame._lines)], "cannot be told apart"),
        (lambda frame: [fake_nvc.DecodedFrame(frame.getPTS(), frame._lines[:9])], "change"),
    ],
)
def test_what_is_not_whole_is_refused(
    tmp_path: Path, card: fake_nvc.Card, change: Any, told: str
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=12)
    card.change = change
    with pytest.raises(RefusedError, match=told):
        list(Nvdec(known(card)).decode(path))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"pix_fmt": "yuv420p10le"}, "does not decode h264 of 10 bits, 4:2:0"),
        ({"pix_fmt": "yuv422p"}, "does not decode h264 of 8 bits, 4:2:2"),
        ({"pix_fmt": "yuv444p"}, "does not decode h264 of 8 bits, 4:4:4"),
        ({"size": (129, 96), "pix_fmt": "yuv444p"}, "4:4:4"),
        ({"size": (32, 32)}, "from 48x16 to 4096x4096 only"),
        ({"codec": "mpeg4"}, "mpeg4 is decoded on the CPU"),
        ({"codec": "ffv1", "pix_fmt": "gray"}, "gray is decoded on the CPU"),
    ],
)
def test_streams_that_the_card_lacks_are_refused_before_they_are_decoded(
    tmp_path: Path, card: fake_nvc.Card, more: dict[str, Any], told: str
) -> None:
    draw = None
    if more.get("size") == (32, 32):
        draw = lambda number: np.full((32, 32), number, np.uint8)  # noqa: E731
    path = make_video(tmp_path / "a.mkv", frames=3, draw=draw, **more)
    with pytest.raises(RefusedError, match=told):
        list(Nvdec(known(card)).decode(path))
    assert card.decoders == []


def test_interlaced_video_is_refused(tmp_path: Path, card: fake_nvc.Card) -> None:
    path = tmp_path / "a.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=size=128x96:duration=0.2")
    encoder = ("-c:v", "libx264", "-flags", "+ildct+ilme", "-pix_fmt", "yuv420p")
    subprocess.run([ffmpeg_exe(), "-v", "quiet", *source, *encoder, str(path)], check=True)
    assert next(decode.frames(path)).interlaced_frame
    with pytest.raises(RefusedError, match="interlaced"):
        list(Nvdec(known(card)).decode(path))


def test_video_that_begins_in_the_middle_is_refused(tmp_path: Path, card: fake_nvc.Card) -> None:
    options = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
    whole = make_video(tmp_path / "a.ts", frames=40, options=options)
    later = tmp_path / "b.ts"
    with av.open(str(whole)) as read, av.open(str(later), "w") as written:
        stream = read.streams.video[0]
        copied = written.add_stream_from_template(stream)
        packets = [packet for packet in read.demux(stream) if packet.size]
        second = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        assert packets[second + 1].pts < packets[second].pts
        for packet in packets[second:]:
            packet.stream = copied
            written.mux(packet)
    nvdec = Nvdec(known(card))
    with pytest.raises(RefusedError, match="begin anew"):
        list(nvdec.decode(later))
    assert sum(len(one.pts) for one in nvdec.decode(whole)) == 40


def test_ten_bits_are_decoded_where_the_card_can(tmp_path: Path, card: fake_nvc.Card) -> None:
    hevc = {"codec": "libx265", "options": {"x265-params": "log-level=0"}}
    path = make_video(tmp_path / "a.mp4", frames=5, pix_fmt="yuv420p10le", **hevc)
    _, pictures = arrays(CudaFrames(Nvdec(known(card))).frames(path))
    wanted = np.stack([decode.to_rgb(frame) for frame in decode.frames(path)])
    assert np.abs(pictures.astype(int) - wanted).mean() <= TOLERANCE_MEAN


def test_packets_that_an_edit_list_hides_are_decoded_and_not_shown(
    tmp_path: Path, card: fake_nvc.Card
) -> None:
    from reelmill.media.probe import packet_table

    whole = make_video(tmp_path / "a.mp4", frames=60)
    path = tmp_path / "cut.mp4"
    # A copy begins at a keyframe, and hides what is before the time that was asked for.
    command = [ffmpeg_exe(), "-v", "error", "-ss", "0.9", "-i", str(whole), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    assert packet_table(path).hidden.sum() > 3
    shown = [frame.pts for frame in decode.frames(path)]
    pts = [one for batch in Nvdec(known(card)).decode(path) for one in batch.pts.tolist()]
    assert pts == shown
    assert len(pts) == len(packet_table(path).shown)


def test_a_refused_video_is_the_cpus_and_told_of_once_a_kind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_logged", set())

    def refuse() -> str:
        raise RefusedError("h264 of 10 bits, 4:2:0")

    with caplog.at_level(logging.WARNING):
        assert [on_device("cuda", refuse, lambda: "cpu") for _ in range(3)] == ["cpu"] * 3
    assert [record.message for record in caplog.records] == [
        "h264 of 10 bits, 4:2:0: the CPU decodes such videos"
    ]
    assert on_device("cuda", lambda: "cuda", refuse) == "cuda"
    assert on_device("cpu", refuse, lambda: "cpu") == "cpu"


# --- what a card can do ---


@pytest.fixture
def probed(card: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch) -> fake_nvc.Card:
    """A card that can be asked, as far as a stand-in goes."""
    about = SimpleNamespace(name="NVIDIA Stand-in\n80GB", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    devices._probed.cache_clear()
    yield card
    devices._probed.cache_clear()


def test_a_card_is_asked_once_and_told_of_in_one_line(probed: fake_nvc.Card) -> None:
    found = [devices.capabilities() for _ in range(3)]
    assert found[0] is found[2]
    assert probed.asked == len(devices.CODECS) * 2 * 3
    assert devices.tell() == (
        r"GPU 0 is NVIDIA Stand-in\n80GB, 80.0 GiB, driver 580.95.05; 3 NVDEC engines: "
        "h264 8 bit 4:2:0, hevc 8 bit 4:2:0, hevc 10 bit 4:2:0, av1 8 bit 4:2:0, "
        "av1 10 bit 4:2:0, vp9 8 bit 4:2:0, vp9 10 bit 4:2:0, vp8 8 bit 4:2:0, "
        "vp8 10 bit 4:2:0, mpeg2video 8 bit 4:2:0, mpeg2video 10 bit 4:2:0; NVENC: h264"
    )


def test_sizes_are_refused_by_each_bound() -> None:
    kind = Decodes("h264", 8, "420", 48, 16, 4096, 4096, 65536)
    card = Capabilities(0, "T", "1", 1, 1, (kind,), ())
    stream = Stream("h264", 8, "420", 4096, 4096)
    assert card.refusal(stream) is None
    assert card.refusal(replace(stream, width=4098))
    assert card.refusal(replace(stream, height=4098))
    assert card.refusal(replace(stream, height=14))
    narrow = replace(card, decodes=(replace(kind, max_macroblocks=8160),))
    assert narrow.refusal(replace(stream, width=1920, height=1080)) is None
    assert narrow.refusal(replace(stream, width=1920, height=1100))


def test_no_card_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._probed.cache_clear()
    with pytest.raises(StageError, match=r"needs an NVIDIA GPU, and torch .* sees 0") as caught:
        sources.frame_source("cuda")
    assert "\n" not in str(caught.value)
    assert "device: cpu" in str(caught.value)
    assert devices.tell() == str(caught.value)


@pytest.mark.parametrize("module", ["torch", "PyNvVideoCodec", "pynvml"])
def test_a_missing_package_gives_the_line_that_installs_it(
    probed: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[(gpu|torch)\]'"):
        devices.capabilities()


def test_a_driver_without_video_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyNvVideoCodec's own import fails with many lines of advice.
    (tmp_path / "PyNvVideoCodec.py").write_text(
        "raise RuntimeError('libnvidia-encode.so.1: cannot open\\n\\n=== TROUBLESHOOTING ===\\n1.')"
    )
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StageError, match="libnvidia-encode") as caught:
        modules.nvc_module()
    assert "\n" not in str(caught.value)
    assert "TROUBLE" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [fake_nvc.PyNvVCException, fake_nvc.PyNvVCExceptionUnsupported, RuntimeError]
)
def test_a_card_that_does_not_answer_is_one_line(
    probed: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(**_: object) -> None:
        raise kind("ValidateGpuId : \nError code : 801\n")

    monkeypatch.setattr(sys.modules["PyNvVideoCodec"], "GetDecoderCaps", fail)
    with pytest.raises(StageError, match="Error code : 801") as caught:
        devices.capabilities()
    assert "\n" not in str(caught.value)


# --- colours and scores, against the libraries of the CPU ---


def test_colours_are_opencvs_for_every_value() -> None:
    steps = np.arange(256, dtype=np.uint8)
    for blue in range(0, 256, 5):
        bgr = np.stack(np.meshgrid([blue], steps, steps, indexing="ij"), axis=-1)[0]
        bgr = np.ascontiguousarray(bgr.astype(np.uint8))
        wanted = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        assert np.array_equal(colour.hsv_of(torch.from_numpy(bgr)).numpy(), wanted)


SIZES = [(1080, 1920), (720, 1280), (480, 854), (272, 640), (256, 512), (96, 300), (62, 34)]
MATRICES = [1, 2, 4, 5, 6, 7, 9]


def noise(height: int, width: int, matrix: int, full: bool, seed: int = 0) -> av.VideoFrame:
    """A frame of random samples."""
    random = np.random.default_rng(seed)
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane in frame.planes:
        samples = np.frombuffer(plane, np.uint8)
        samples[:] = random.integers(0, 256, samples.shape, np.uint8)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


def planes_of(*frames: av.VideoFrame) -> Planes:
    """Frames as a decoder on a card gives them."""
    parts = []
    for number in range(3):
        planes = [frame.planes[number] for frame in frames]
        rows = [np.frombuffer(one, np.uint8).reshape(one.height, -1) for one in planes]
        parts.append(torch.from_numpy(np.stack([r[:, : planes[0].width] for r in rows])))
    return Planes(*parts, frames[0].colorspace, frames[0].color_range == 2)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_bgr_is_swscales(matrix: int, full: bool) -> None:
    assert set(MATRICES) == colour.MATRICES
    frame = noise(96, 130, matrix, full)
    wanted = frame.to_ndarray(format="bgr24", width=130, height=96)
    assert np.array_equal(colour.shrunk_bgr(planes_of(frame), 130, 96)[0].numpy(), wanted)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shrunk_pictures_are_opencvs(height: int, width: int) -> None:
    frame = noise(height, width, 1, False)
    small = small_size(width, height)
    wanted = frame.to_ndarray(format="bgr24", width=width, height=height)
    wanted = cv2.resize(wanted, small, interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(colour.shrunk_bgr(planes_of(frame), *small)[0].numpy(), wanted)


def test_more_than_one_batch_is_compared_as_one() -> None:
    frames = [noise(360, 640, 5, False, seed) for seed in range(5)]
    whole, parts = scoring.Deltas(), scoring.Deltas()
    batches = [planes_of(*frames[:2]), planes_of(*frames[2:])]
    all_at_once = planes_of(*frames)
    found = [parts.feed(one, scoring.Small(one)) for one in batches]
    expected = whole.feed(all_at_once, scoring.Small(all_at_once))
    assert np.array_equal(np.concatenate(found), expected)
    assert expected[0].tolist() == [0, 0, 0]
    assert expected[1:].min() > 10


DETECTORS = (
    scenes.ContentDetector(weights=(1, 1, 1, 1)),
    scenes.ThresholdDetector(),
    scenes.HashDetector(),
    scenes.HistogramDetector(),
)
"""All measures of PySceneDetect's, in their order."""


def test_scores_are_the_cpus(tmp_path: Path, card: fake_nvc.Card) -> None:
    nvdec = Nvdec(known(card))
    uneven = [0, 3, 4, 9, 20, 21, 22, 40, *range(50, 90)]
    made = make_video(tmp_path / "a.mp4", frames=48, pts=uneven, size=(640, 360))
    small = [path for path in real_media() if path.name in SMALL]
    taken = 0
    for path in [made, *small]:
        try:
            found = scoring.score(path, scores.needed(DETECTORS), nvdec)
        except RefusedError:
            continue
        expected = scenes.score(path, DETECTORS)
        assert found.clock == expected.clock
        assert found.end == expected.end, path.name
        assert found.pts.tolist() == expected.pts.tolist()
        # In this order they are kept in files, of which equal ones have equal bytes.
        assert list(found.columns) == list(expected.columns)
        for name, column in expected.columns.items():
            assert np.array_equal(found.columns[name], column), (path.name, name)
        taken += 1
    assert taken == 1 + max(len(small) - 1, 0)


def test_scores_of_ten_bits_are_the_cpus(
    tmp_path: Path,
    card: fake_nvc.Card,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hevc = {"codec": "libx265", "options": {"x265-params": "log-level=0"}}
    path = make_video(tmp_path / "a.mp4", frames=3, pix_fmt="yuv420p10le", **hevc)
    monkeypatch.setattr(scoring, "nvdec", lambda: Nvdec(known(card)))
    monkeypatch.setattr(sources, "_logged", set())
    found = scenes.score(path, DETECTORS, device="cuda")
    assert "scores of hevc of 10 bits, 4:2:0 are computed on the CPU" in caplog.text
    expected = scenes.score(path, DETECTORS)
    assert all(np.array_equal(found.columns[name], one) for name, one in expected.columns.items())


def test_cuts_on_a_card_are_the_cpus(
    tmp_path: Path, card: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shots(number: int) -> np.ndarray:
        return np.full((96, 128), 40 + 170 * (number // 20 % 2), np.uint8)

    path = make_video(tmp_path / "a.mp4", frames=80, draw=shots)
    nvdec = Nvdec(known(card))
    monkeypatch.setattr(scoring, "nvdec", lambda: nvdec)
    found = scenes.detect(path, [scenes.ContentDetector()], device="cuda")
    assert len(found) == 4
    assert found == scenes.detect(path, [scenes.ContentDetector()])
    assert nvdec.created == 1


def test_a_card_that_is_not_there_is_no_reason_to_use_the_cpu(
    tmp_path: Path, card: fake_nvc.Card
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3)
    devices._probed.cache_clear()
    with pytest.raises(StageError, match="needs an NVIDIA GPU"):
        scenes.detect(path, [scenes.ContentDetector()], device="cuda")
