from __future__ import annotations

import ctypes
import hashlib
import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill.errors import Rejected
from reelmill.media import decode, images
from reelmill.media.decode import frames, to_rgb, upright_size
from reelmill.media.images import boxed
from reelmill.media.size import PictureSide, Size, Sizing

MEDIA = Path(__file__).parents[2].parent / "shared" / "media"


def real(name: str) -> Path:
    path = MEDIA / name
    if not path.exists():
        pytest.skip("the real clips are not here")
    return path


def ramp(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames that brighten, dark at the top left."""
    pictures = []
    for i in range(count):
        picture = np.full((height, width, 3), 40 + 160 * i // count, np.uint8)
        picture[: height // 2, : width // 2] = 0
        pictures.append(picture)
    return pictures


def encode(
    pictures: list[np.ndarray],
    container: str = "matroska",
    codec: str = "libx264",
    rotation: float = 0,
    **options: str,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, 25, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def digest(source: bytes | Path) -> str:
    seen = hashlib.sha256()
    for frame in frames(source):
        seen.update(repr((frame.pts, frame.time_base)).encode() + to_rgb(frame, (32, 24)).tobytes())
    return seen.hexdigest()


def times(source: bytes | Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in frames(source)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- Frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        ("av1_video.mkv", 125, (640, 360)),
        ("bikes.mp4", 250, (640, 272)),
        ("box.mp4", 455, (640, 480)),
        ("cup.mp4", 217, (640, 480)),
        ("h264_10bits.mp4", 30, (200, 200)),
        ("h265_10bits.mp4", 30, (200, 200)),
        ("h265_video.mp4", 10, (128, 128)),
        ("nasa_13013.mp4", 390, (480, 270)),
        ("tree.avi", 68, (320, 240)),
    ],
)
def test_real_clips(name: str, count: int, size: tuple[int, int]) -> None:
    last = None
    seen = 0
    for frame in frames(real(name)):
        assert type(frame.pts) is int
        assert last is None or frame.pts > last
        assert upright_size(frame) == size
        last = frame.pts
        seen += 1
    assert seen == count


def test_sources_are_equal_and_a_file_stays_open(tmp_path: Path) -> None:
    data = encode(ramp(5))
    path = tmp_path / "clip.mkv"
    path.write_bytes(data)
    file = io.BytesIO(data)
    assert digest(data) == digest(path) == digest(file)
    assert not file.closed
    assert times(str(path)) == [Fraction(i, 25) for i in range(5)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_a_dropped_generator_closes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(encode(ramp(30)))
    before = open_files()
    stream = frames(path)
    next(stream)
    assert open_files() > before
    stream.close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("container", "codec"), [("avi", "mpeg4"), ("mpeg", "mpeg2video"), ("flv", "libx264")]
)
def test_reordered_frames(container: str, codec: str) -> None:
    data = encode(ramp(20), container, codec, bf="2")
    first, *others = times(data)
    assert [time - first for time in others] == [Fraction(i, 25) for i in range(1, 20)]
    levels = [to_rgb(frame)[-1, -1, 0] for frame in frames(data)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([(0, 0), (5, 5), (10, 10)], [0, 5, 10]),
        ([(None, None)] * 3, [0, 5, 10]),
        ([(None, 10), (None, 15), (None, None)], [10, 15, 20]),
        ([(0, 0), (0, 0), (5, 5)], [0, 1, 5]),
        ([(0, 0), (15, 5), (5, 10), (10, 15), (20, 20)], [0, 5, 10, 15, 20]),
        ([(90 + i, 90 + i) for i in range(6)] + [(i, i) for i in range(6)], None),
    ],
)
def test_timestamps_always_increase(
    stamps: list[tuple[int | None, int | None]], expected: list[int] | None
) -> None:
    decoded = (SimpleNamespace(pts=pts, dts=dts) for pts, dts in stamps)
    mended = [frame.pts for frame in decode._in_order(decoded, step=5)]
    assert len(mended) == len(stamps)
    assert all(a < b for a, b in pairwise(mended))
    assert expected is None or mended == expected


def test_timestamps_in_coding_order_are_put_right() -> None:
    source = io.BytesIO(encode(ramp(30), bf="3", **{"x264-params": "b-adapt=0:b-pyramid=normal"}))
    buffer = io.BytesIO()
    with av.open(source) as reader, av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream_from_template(reader.streams.video[0])
        for number, packet in enumerate(p for p in reader.demux() if p.size):
            packet.stream = stream
            packet.pts = packet.dts = number * 40
            packet.time_base = Fraction(1, 1000)
            output.mux(packet)
    assert times(buffer.getvalue()) == [Fraction(i, 25) for i in range(30)]
    levels = [to_rgb(frame)[-1, -1, 0] for frame in frames(buffer.getvalue())]
    assert levels == sorted(levels)


def test_a_real_clip_timed_in_coding_order() -> None:
    with av.open(str(real("box.mp4"))) as container:
        stamps = [p.pts for p in container.demux(video=0) if p.pts is not None]
    decoded = [frame.pts for frame in frames(real("box.mp4"))]
    assert set(decoded) <= set(stamps)
    assert decoded == sorted(decoded)


def test_damage_in_the_middle_is_skipped_the_same_way_each_time() -> None:
    data = bytearray(encode(ramp(60), "avi", "mpeg4", g="10", bitrate="400k"))
    whole = len(list(frames(bytes(data))))
    for at in range(len(data) // 3, len(data) // 2, 7):
        data[at] ^= 0x5A
    assert 0 < len(list(frames(bytes(data)))) <= whole
    assert digest(bytes(data)) == digest(bytes(data))


def test_what_breaks_off_keeps_its_beginning() -> None:
    data = encode(ramp(60, 160, 120), bf="0", g="10", crf="10")
    whole = times(data)
    part = times(data[: len(data) * 6 // 10])
    assert 5 < len(part) < len(whole)
    assert part == whole[: len(part)]


def test_a_stream_that_appears_on_the_way_ends_nothing() -> None:
    data = bytearray(encode(ramp(60), "mpegts", bf="0"))
    whole = times(bytes(data))
    begins = [at for at in range(0, len(data), 188) if data[at + 1 : at + 3] == b"\x41\0"]
    data[begins[50] + 2] ^= 0x0F  # a packet of frame 50 is another stream's
    assert times(bytes(data)) == whole[:50] + whole[51:]


def test_nothing_to_decode_is_rejected() -> None:
    data = encode(ramp(30, 160, 120), "mp4")
    for bad in (b"", b"no video", data[: len(data) * 4 // 10]):
        with pytest.raises(Rejected):
            next(frames(bad))
    blank = bytearray(data)
    at, size = data.index(b"mdat") + 4, int.from_bytes(data[data.index(b"mdat") - 4 :][:4], "big")
    blank[at : at + size - 8] = bytes(size - 8)
    with pytest.raises(Rejected) as caught:
        next(frames(bytes(blank)))
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{}'\n"),
    ],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str, text: str) -> None:
    clip = tmp_path / "clip.ts"
    clip.write_bytes(encode(ramp(10), "mpegts"))
    assert len(list(frames(clip))) == 10
    playlist = tmp_path / name
    for target in ("clip.ts", str(clip), clip.as_uri()):
        playlist.write_text(text.format(target))
        with pytest.raises(Rejected):
            next(frames(playlist))


# --- Pictures --------------------------------------------------------------------------------

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)


def reference(frame: av.VideoFrame, weights: tuple[float, float], full: bool) -> np.ndarray:
    """RGB by the definition of ITU-R BT.601 and BT.709, chroma repeated."""
    height, width = frame.height, frame.width
    planes = []
    for plane, step in zip(frame.planes, (1, 2, 2), strict=True):
        values = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        values = values[: height // step, : width // step].astype(float)
        planes.append(values.repeat(step, axis=0).repeat(step, axis=1))
    y, u, v = planes
    u, v = u - 128, v - 128
    if not full:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    kr, kb = weights
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255)


@pytest.mark.parametrize(
    ("matrix", "weights"), [(1, BT709), (5, BT601), (6, BT601), (2, BT601), (3, BT601)]
)
@pytest.mark.parametrize("full", [False, True])
def test_flat_colours_are_exact(matrix: int, weights: tuple[float, float], full: bool) -> None:
    for colour in ((16, 128, 128), (235, 128, 128), (81, 90, 200), (145, 84, 94), (120, 100, 160)):
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, colour, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        expected = reference(frame, weights, full)
        for size in (None, (40, 30)):
            assert np.abs(to_rgb(frame, size)[5, 5] - expected[5, 5]).max() <= 1


@pytest.mark.parametrize(
    ("name", "weights", "full"),
    [
        ("bt709_full_range.mp4", BT709, True),
        ("nasa_13013.mp4", BT709, False),
        ("cup.mp4", BT601, False),
        ("bigbuckbunny.mp4", BT601, False),
    ],
)
def test_real_colours(name: str, weights: tuple[float, float], full: bool) -> None:
    frame = [frame for frame, _ in zip(frames(real(name)), range(25), strict=False)][-1]
    rgb = to_rgb(frame)
    error = {
        (w, f): np.abs(rgb - reference(frame, w, f)).mean()
        for w in (BT601, BT709)
        for f in (False, True)
    }
    assert min(error, key=error.__getitem__) == (weights, full)
    assert error[weights, full] < 1.5


def test_a_colour_matrix_that_cannot_be_converted_is_rejected() -> None:
    frame = av.VideoFrame(64, 48, "yuv420p")
    frame.colorspace = 8
    with pytest.raises(Rejected, match="colour matrix 8"):
        to_rgb(frame)


@pytest.mark.parametrize(
    "pixel_format", ["gray", "rgb24", "nv12", "yuv444p", "yuv420p10le", "pal8"]
)
def test_shapes(pixel_format: str) -> None:
    frame = av.VideoFrame(65, 49, pixel_format)
    for size, shape in ((None, (49, 65, 3)), ((33, 21), (21, 33, 3))):
        rgb = to_rgb(frame, size)
        assert (rgb.shape, rgb.dtype, rgb.flags.c_contiguous) == (shape, np.uint8, True)


@pytest.mark.parametrize(
    ("rotation", "dark", "size"),
    [
        (0, (0, 0), (64, 48)),
        (-90, (0, 1), (48, 64)),
        (180, (1, 1), (64, 48)),
        (90, (1, 0), (48, 64)),
    ],
)
def test_display_rotation_is_applied(
    rotation: int, dark: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = next(frames(encode(ramp(9)[-3:], "mp4", rotation=rotation)))
    assert upright_size(frame) == size
    for target in (None, (size[0] // 2, size[1] // 2)):
        rgb = to_rgb(frame, target)
        assert rgb.shape[1::-1] == (target or size)
        rows, columns = rgb.shape[0] // 2, rgb.shape[1] // 2
        corners = rgb[: 2 * rows, : 2 * columns, 0].reshape(2, rows, 2, columns).mean(axis=(1, 3))
        assert np.unravel_index(corners.argmin(), (2, 2)) == dark


def test_bytes_do_not_depend_on_the_cpu(tmp_path: Path) -> None:
    library = next(Path(av.__file__).parent.parent.glob("av.libs/libavutil*.so*"), None)
    if library is None:
        pytest.skip("this build of PyAV has no libavutil of its own")
    path = tmp_path / "clip.mkv"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    path.write_bytes(encode([noise.repeat(9, axis=0).repeat(9, axis=1)] * 3))
    code = (
        "import ctypes, hashlib, sys\n"
        "from reelmill.media.decode import frames, to_bgr16, to_jpeg_planes, to_rgb\n"
        "if sys.argv[2]: ctypes.CDLL(sys.argv[2]).av_force_cpu_flags(0)\n"
        "data = b''.join(picture.tobytes() for f in frames(sys.argv[1])"
        " for s in ((144, 108), (70, 50), (200, 170))"
        " for picture in (to_rgb(f, s), to_bgr16(f, s), *to_jpeg_planes(f, s, '420')))\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    assert ctypes.CDLL(str(library)).av_get_cpu_flags() >= 0
    results = {
        subprocess.run(
            [sys.executable, "-c", code, str(path), force],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for force in ("", str(library))
    }
    assert len(results) == 1


# --- Sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "asked", "expected"),
    [
        (1920, 1080, {}, (1920, 1080)),
        (1920, 1080, {"size": (100, 51)}, (100, 51)),
        (1920, 1080, {"min_side": 360}, (640, 360)),
        (1080, 1920, {"min_side": 360}, (360, 640)),
        (1920, 1080, {"max_side": 640}, (640, 360)),
        (1998, 1080, {"min_side": 360}, (666, 360)),
        (1998, 1080, {"width": 667}, (667, 361)),
        (1998, 1080, {"height": 359}, (664, 359)),
        (853, 480, {"min_side": 480}, (853, 480)),
        (320, 240, {"min_side": 480}, (320, 240)),
        (320, 240, {"min_side": 480, "upscale": True}, (640, 480)),
        (101, 101, {"max_side": 51}, (51, 51)),
        (4000, 10, {"max_side": 100}, (100, 1)),
    ],
)
def test_sizes(width: int, height: int, asked: dict[str, Any], expected: tuple[int, int]) -> None:
    fit = Sizing[int](**asked).fit(width, height)
    assert fit.scaled == fit.cropped == fit.padded == expected


@given(st.integers(1, 8000), st.integers(1, 8000), st.integers(1, 4000), st.booleans())
def test_a_side_comes_out_as_named_and_the_other_as_near_as_may_be(
    width: int, height: int, side: int, shorter: bool
) -> None:
    name, pick = ("min_side", min) if shorter else ("max_side", max)
    new = Sizing[int](**{name: side}).fit(width, height).scaled
    if pick(width, height) <= side:
        assert new == (width, height)
    else:
        assert pick(new) == side
        ratio = Fraction(side, pick(width, height))
        for after, before in zip(new, (width, height), strict=True):
            assert after == 1 or abs(after - before * ratio) <= Fraction(1, 2)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(["crop", "pad", "window"]),
)
def test_the_middle_is_cut_out_and_padded(
    width: int, height: int, across: int, down: int, mode: str
) -> None:
    fit = Sizing[int](size=(across, down), mode=mode).fit(width, height)
    picture = boxed(np.full(fit.scaled[::-1], 1, np.uint8), fit)
    assert picture.shape == (down, across)
    (x, y), (wide, high) = fit.padded_at, fit.cropped
    assert picture[y : y + high, x : x + wide].all()
    assert picture.sum() == wide * high
    for at, inner, outer in ((x, wide, across), (y, high, down)):
        assert 0 <= outer - inner - 2 * at <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"min_side": 2, "max_side": 3},
        {"size": (0, 4)},
        {"side": 1},
        {"mode": "crop", "max_side": 4},
        {"upscale": True},
        {"upscale": True, "size": (4, 4)},
    ],
)
def test_sizes_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sizing[PictureSide].model_validate(fields)
    with pytest.raises(ValidationError):
        Size.model_validate(fields)


@pytest.mark.parametrize("fields", [{}, {"max_side": 17}, {"max_side": 14}, {"size": (64, 63)}])
def test_clips_need_one_even_size(fields: dict[str, object]) -> None:
    assert Sizing[PictureSide].model_validate(fields)
    with pytest.raises(ValidationError):
        Size.model_validate(fields)


# --- Images ----------------------------------------------------------------------------------


def soft_noise(*shape: int) -> np.ndarray:
    small = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


def test_jpeg() -> None:
    rgb = soft_noise(8, 9, 3)
    data = images.encode_jpeg(rgb, 95)
    assert data == images.encode_jpeg(np.asfortranarray(rgb), 95)
    assert simplejpeg.decode_jpeg_header(data)[3] == "420"
    assert simplejpeg.decode_jpeg_header(images.encode_jpeg(rgb, 95, "444"))[3] == "444"
    fine = images.decode_image(images.encode_jpeg(rgb, 95, "444"))
    assert np.abs(fine.astype(int) - rgb).mean() < 2
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    gray = images.decode_gray(data)
    assert gray.shape == rgb.shape[:2]
    assert np.abs(gray - luma).mean() < 2


def test_png_is_lossless() -> None:
    rgb = soft_noise(8, 9, 3)
    assert (images.decode_image(images.encode_png(rgb)) == rgb).all()
    gray = rgb[..., 0]
    assert (images.decode_gray(images.encode_png(gray)) == gray).all()
    assert (images.decode_image(images.encode_png(gray)) == gray[..., None]).all()
    deep = gray.astype(np.uint16) << 8 | 200
    assert (images.decode_gray(images.encode_png(deep)) == gray).all()


def test_damaged_images_are_rejected() -> None:
    jpeg, png = images.encode_jpeg(soft_noise(8, 9, 3), 90), images.encode_png(soft_noise(8, 9, 3))
    header = struct.pack(">II5B", 65535, 65535, 8, 2, 0, 0, 0)
    bomb = png[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + png[33:]
    cases = (
        b"",
        b"GIF89a" + bytes(99),
        jpeg[:200],
        jpeg[:-90],
        png[:20],
        png[:60],
        png[:-40],
        bomb,
    )
    for data in cases:
        for read in (images.decode_image, images.decode_gray):
            with pytest.raises(Rejected) as caught:
                read(data)
            assert caught.value.reason == "undecodable"
