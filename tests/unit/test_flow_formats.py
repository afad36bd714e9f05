from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import png
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.errors import Rejected
from reelmill.media.flow import (
    ENDINGS,
    Format,
    decode,
    decode_flo,
    decode_kitti,
    decode_npy,
    encode,
    encode_flo,
    encode_kitti,
    encode_mask,
    encode_npy,
)
from reelmill.media.images import encode_png


def field(height: int = 40, width: int = 60, reach: float = 500) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.uniform(-reach, reach, (height, width, 2)).astype(np.float32)


def read_png(data: bytes) -> np.ndarray:
    """A decoder of 16-bit RGB by the PNG specification, filters and all."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += 12 + size
    width, height, depth, colour, *others = struct.unpack(">II5B", chunks[0][1])
    assert (chunks[0][0], chunks[-1][0], depth, colour, others) == (
        b"IHDR",
        b"IEND",
        16,
        2,
        [0] * 3,
    )
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    row = 1 + 6 * width
    assert len(raw) == height * row
    above = bytes(6 * width)
    lines = []
    for start in range(0, len(raw), row):
        kind, line = raw[start], bytearray(raw[start + 1 : start + row])
        for i, value in enumerate(line):
            a = line[i - 6] if i >= 6 else 0
            b = above[i]
            c = above[i - 6] if i >= 6 else 0
            nearest = min((a, b, c), key=lambda p, q=a + b - c: abs(q - p))
            line[i] = value + (0, a, b, (a + b) // 2, nearest)[kind] & 255
        above = bytes(line)
        lines.append(np.frombuffer(above, ">u2").reshape(width, 3))
    return np.stack(lines)


def test_kitti_is_within_half_a_step() -> None:
    flow = field()
    decoded, valid = decode_kitti(encode_kitti(flow))
    assert (decoded.dtype, valid.dtype) == (np.float32, np.bool_)
    assert valid.all()
    assert np.abs(decoded - flow).max() <= 1 / 128


@given(st.floats(width=32), st.floats(width=32))
@settings(max_examples=300)
def test_kitti_of_any_vector(u: float, v: float) -> None:
    decoded, valid = decode_kitti(encode_kitti(np.array([[[u, v]]], np.float32)))
    if valid[0, 0]:
        assert np.abs(decoded[0, 0] - [u, v]).max() <= 1 / 128
    else:
        assert (decoded == 0).all()
        assert not all(-512 <= x <= 511.984375 for x in (u, v))


def test_kitti_limits() -> None:
    rows = [(-512, 511.984375), (512, 0), (0, -512.1), (np.nan, 3), (3, np.inf), (0.5, -0.25)]
    data = encode_kitti(np.array([rows], np.float32))
    decoded, valid = decode_kitti(data)
    assert valid[0].tolist() == [True, False, False, False, False, True]
    assert decoded[0, 0].tolist() == [-512, 511.984375]
    assert decoded[0, -1].tolist() == [0.5, -0.25]
    assert not decoded[0, 1:-1].any()


def test_kitti_for_other_readers() -> None:
    flow = field(20, 30)
    flow[0, 0] = 600
    data = encode_kitti(flow)
    pixels = read_png(data)
    assert (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1] == pixels
    ).all()
    assert pixels[0, 0].tolist() == [65535, 65535, 0]
    rest = pixels.reshape(-1, 3)[1:]
    assert (rest[:, 2] == 1).all()
    assert (
        np.abs((rest[:, :2].astype(float) - 2**15) / 64 - flow.reshape(-1, 2)[1:]).max() <= 1 / 128
    )


def test_npy_is_plain_numpy() -> None:
    flow = field(reach=63)
    data = encode_npy(flow)
    assert data == encode_npy(np.asfortranarray(flow))
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert b"'descr': '<f2', 'fortran_order': False, 'shape': (40, 60, 2)" in data
    assert len(data) == 128 + 40 * 60 * 4
    decoded = decode_npy(data)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - flow).max() <= 1 / 64


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npy_cases() -> list[bytes]:
    whole = encode_npy(field())
    return [
        b"",
        b"junk",
        whole[:40],
        whole[:-1],
        whole + b"\0\0",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2), }\n") + bytes(8),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2), }\n") + bytes(8),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (99999999, 99999999, 2), }\n"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 1, 2), }\n") + bytes(4),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 2), }\n")
        + pickle.dumps([1, 2]),
    ]


@pytest.mark.parametrize("data", npy_cases())
def test_damaged_npy_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        decode_npy(data)
    assert caught.value.reason == "undecodable"


def test_damaged_kitti_is_rejected() -> None:
    whole = encode_kitti(field())
    plain = encode_png(np.zeros((9, 9, 3), np.uint8))
    gray = encode_png(np.zeros((9, 9), np.uint16))
    for data in (b"", whole[:30], whole[: len(whole) // 2], plain, gray, encode_npy(field())):
        with pytest.raises(Rejected) as caught:
            decode_kitti(data)
        assert caught.value.reason == "undecodable"


def sides(height: int = 40, width: int = 60) -> np.ndarray:
    """Flow whose u and v, left and right, top and bottom cannot be taken for one another."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x / 4 - 3, 20 - y / 2], axis=-1)


def test_another_reader_has_kitti_in_the_order_of_its_kit() -> None:
    flow = sides()
    width, height, rows, about = png.Reader(bytes=encode_kitti(flow)).asDirect()
    assert (width, height, about["bitdepth"], about["planes"]) == (60, 40, 16, 3)
    pixels = np.array([list(row) for row in rows], float).reshape(height, width, 3)
    assert (pixels[..., 2] == 1).all()
    assert ((pixels[..., :2] - 2**15) / 64 == flow).all()


def test_another_reader_has_flo_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.flo"
    for flow in (sides(), field(33, 35)):
        path.write_bytes(encode_flo(flow))
        assert (cv2.readOpticalFlow(str(path)) == flow).all()
        assert (decode_flo(path.read_bytes()) == flow).all()
        written = tmp_path / "b.flo"
        cv2.writeOpticalFlow(str(written), flow)
        assert written.read_bytes() == path.read_bytes()


def test_numpy_reads_npy() -> None:
    assert (np.load(io.BytesIO(encode_npy(sides())), allow_pickle=False) == sides()).all()


@pytest.mark.parametrize("form", ["kitti", "flo", "npy"])
def test_flow_is_found_again_by_its_ending(form: Format) -> None:
    assert (decode(encode(sides(), form), ENDINGS[form]) == sides()).all()


@pytest.mark.parametrize("form", ["kitti", "flo", "npy"])
def test_bytes_do_not_depend_on_how_flow_lies_in_memory(form: Format) -> None:
    flow = field()
    others = (np.asfortranarray(flow), flow[::-1][::-1], np.moveaxis(flow, 2, 0).copy())
    assert {encode(flow, form)} == {
        encode(np.moveaxis(one, 0, 2) if one.shape[0] == 2 else one, form) for one in others
    }


def test_damaged_flo_is_rejected() -> None:
    whole = encode_flo(field(5, 7))
    huge = whole[:4] + struct.pack("<ii", 1 << 30, 1 << 30)
    negative = whole[:4] + struct.pack("<ii", -1, -1) + bytes(8)
    for data in (b"", whole[:8], whole[:-1], whole + b"\0", huge, negative, encode_npy(field())):
        with pytest.raises(Rejected) as caught:
            decode_flo(data)
        assert caught.value.reason == "undecodable"


def test_masks_are_gray_pictures() -> None:
    mask = np.zeros((5, 9), bool)
    mask[1, 2] = mask[4, 8] = True
    width, height, rows, about = png.Reader(bytes=encode_mask(mask)).asDirect()
    assert (width, height, about["bitdepth"], about["planes"]) == (9, 5, 8, 1)
    assert (np.array([list(row) for row in rows]) == 255 * mask).all()
