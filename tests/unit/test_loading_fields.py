"""What becomes of the fields of samples: decoding, containers, selection, assembly."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import webdataset.tenbin
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.autodecode import imagespecs

from reelmill import loading
from reelmill.errors import LoadError, MissingDependencyError
from reelmill.loading.assemble import Assembler
from reelmill.loading.containers import (
    MAX_UNPACKED,
    decode_msgpack,
    decode_npy,
    decode_npz,
    decode_tenbin,
    encode_msgpack,
    encode_tenbin,
    unpack_gzip,
)
from reelmill.loading.decoders import decoder
from reelmill.loading.pictures import SPECS, FlowField
from reelmill.loading.select import Selection
from reelmill.media.flow import encode_flo, encode_kitti, encode_npy
from reelmill.media.images import encode_jpeg, encode_png

RNG = np.random.default_rng(0)
META = {"__key__": "000010005", "__url__": "https://me:secret@h/d/00001.tar?sig=abc"}
WHERE = r"sample 000010005 of https://h/d/00001.tar"


def picture(height: int = 27, width: int = 42) -> np.ndarray:
    """Smooth, with all colours in RGB's range."""
    across, down = np.meshgrid(np.linspace(40, 200, width), np.linspace(60, 180, height))
    return np.stack([across, down, (across + down) / 2], 2).astype(np.uint8)


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def npy(array: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


PICTURES = {
    "jpg": encode_jpeg(picture()),
    "jpeg": encode_jpeg(picture(), subsampling="444"),
    "gray.jpg": saved(Image.fromarray(picture()).convert("L"), "JPEG"),
    "png": encode_png(picture()),
    "alpha.png": saved(Image.fromarray(np.dstack([picture(), picture()[..., 0]])), "PNG"),
    "palette.png": saved(Image.fromarray(picture()).quantize(16), "PNG"),
    "webp": saved(Image.fromarray(picture()), "WEBP"),
    "gif": saved(Image.fromarray(picture()), "GIF"),
    "ppm": saved(Image.fromarray(picture()), "PPM"),
    "bmp": saved(Image.fromarray(picture()), "BMP"),
}


@pytest.mark.parametrize("spec", imagespecs)
def test_pictures_are_those_of_webdataset(spec: str) -> None:
    torch = pytest.importorskip("torch") if "torch" in spec else None
    theirs = wds.imagehandler(spec)
    ours = decoder(spec).sample({**META, **PICTURES})
    for name, data in PICTURES.items():
        wanted, got = theirs(f".{name}", data), ours[name]
        assert type(got) is (Image.Image if SPECS[spec][0] == "pil" else type(wanted))
        if torch is not None:
            wanted, got = wanted.numpy(), got.numpy()
        wanted, got = np.asarray(wanted), np.asarray(got)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        # Gray may be one off; everything else is the same to the bit.
        most = (1 if wanted.dtype == np.uint8 else 1 / 254) if SPECS[spec][2] == "l" else 0
        assert np.abs(got.astype(np.float64) - wanted).max() <= most


def test_the_decoder_serves_plain_webdataset(tmp_path: Path) -> None:
    fields = {"jpg": PICTURES["jpg"], "json": b'{"a": 1}', "txt": b"a", "bin": b"b"}
    with wds.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "a", **fields})
        tar.write({"__key__": "b", "pyd": pickle.dumps(1)})
    samples = iter(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode(decoder("l")))
    got = next(samples)
    assert got["jpg"].shape == (27, 42)
    assert (got["json"], got["txt"], got["bin"]) == ({"a": 1}, "a", b"b")
    with pytest.raises(wds.autodecode.DecodingError) as error:
        next(samples)
    assert "pickle" in str(error.value.__cause__)


def test_a_decoder_can_be_sent_to_workers() -> None:
    sent = pickle.loads(pickle.dumps(decoder("rgb", {"x": len}, only="jpg x")))
    got = sent.sample({"jpg": PICTURES["jpg"], "x": b"abc", "json": b"{}"})
    assert (got["jpg"].shape, got["x"], got["json"]) == ((27, 42, 3), 3, b"{}")


def test_what_a_sample_holds_besides_pictures() -> None:
    array = RNG.normal(size=(3, 4)).astype(np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, a=array, b=np.arange(3))
    fields = {
        "json": b'{"a": [1, null]}',
        "null.json": b"null",
        "txt": "Möwe".encode(),
        "cls": b"7",
        "index": b" 8\n",
        "npy": npy(array),
        "fortran.npy": npy(np.asfortranarray(array)),
        "npz": file.getvalue(),
        "mp": encode_msgpack({"a": [1, b"x", None]}),
        "ten": encode_tenbin([array]),
        "txt.gz": gzip.compress(b"one") + gzip.compress(b"two"),
        "raw": b"raw",
        "done": 3,
    }
    got = decoder().sample({**META, **fields})
    assert got | META == got
    for name in ("npy", "fortran.npy"):
        np.testing.assert_array_equal(got.pop(name), array)
    (tensor,) = got.pop("ten")
    np.testing.assert_array_equal(tensor, array)
    npz = got.pop("npz")
    assert set(npz) == {"a", "b"}
    np.testing.assert_array_equal(npz["a"], array)
    assert {name: got[name] for name in got if name not in META} == {
        "json": {"a": [1, None]},
        "null.json": None,
        "txt": "Möwe",
        "cls": 7,
        "index": 8,
        "mp": {"a": [1, b"x", None]},
        "txt.gz": "onetwo",
        "raw": b"raw",
        "done": 3,
    }


def test_cbor() -> None:
    cbor2 = pytest.importorskip("cbor2")
    assert decoder().sample({"cbor": cbor2.dumps({"a": 1})}) == {"cbor": {"a": 1}}


def test_without_its_library_a_field_says_which_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cbor2", None)
    with pytest.raises(MissingDependencyError, match="pip install cbor2"):
        decoder().sample({"cbor": b"\xa0"})


@pytest.mark.parametrize("name", ["pyd", "pkl", "pickle", "pth", "x.pt"])
def test_pickles_are_refused_unless_somebody_reads_them_himself(name: str) -> None:
    sample = {**META, name: pickle.dumps([1])}
    with pytest.raises(LoadError, match=rf"{WHERE}: field {name}: .*pickle.*pass a function"):
        decoder("rgb").sample(sample)
    assert decoder("rgb", only="jpg").sample(sample) == sample
    assert decoder({name: pickle.loads}).sample(sample)[name] == [1]


def test_the_longest_end_of_a_name_that_fits_decides() -> None:
    functions: dict[str, Callable[[bytes], Any]] = {
        "jpg": lambda data: "any",
        ".left.jpg": lambda data: "left",
        "1.left.jpg": lambda data: None,
    }
    names = ("jpg", "LEFT.JPG", "0.left.jpg", "1.left.jpg", "01.left.jpg", "xleft.jpg", "png")
    got = decoder("rgb8", functions).sample(dict.fromkeys(names, PICTURES["jpg"]))
    assert [got[name] for name in names[:-1]] == ["any", "left", "left", None, "left", "any"]
    assert got["png"].shape == (27, 42, 3)


def test_handlers_are_as_those_of_webdataset() -> None:
    asked = []

    def handler(key: str, data: bytes) -> str | None:
        asked.append(key)
        return "mine" if key.endswith(".left.jpg") else None

    sample = {"left.jpg": PICTURES["jpg"], "jpg": PICTURES["jpg"], "cls": b"1"}
    got = decoder("l8", handler, wds.handle_extension("cls", len)).sample(sample)
    assert asked == [".left.jpg", ".jpg", ".cls"]
    assert (got["left.jpg"], got["jpg"].shape, got["cls"]) == ("mine", (27, 42), 1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("jpg", PICTURES["jpg"][:300]),
        ("jpg", b""),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("gif", PICTURES["gif"][:30]),
        # A program is run for what Pillow takes for PostScript.
        ("png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("ppm", b"P6 100000 100000 255\n"),
        ("json", b"{"),
        ("json", b"[" * 100_000),
        ("txt", b"\xff"),
        ("cls", b"one"),
        ("npy", npy(np.array([{}]), allow_pickle=True)),
        ("npy", npy(np.zeros(3))[:-1]),
        ("npy", b"\x93NUMPY\x01\0"),
        ("npz", b"PK"),
        ("mp", b"\x81"),
        ("mp", b"\x91" * 100_000),
        ("ten", b"~TenBin~"),
        ("txt.gz", gzip.compress(b"a", mtime=0)[:-9]),
        ("flo", b"PIEH"),
        ("flow.png", encode_kitti(np.zeros((4, 4, 2), np.float32))[:60]),
        ("depth.png", encode_png(np.zeros((9, 9), np.uint16))[:60]),
    ],
)
def test_what_cannot_be_decoded_is_named(name: str, data: bytes) -> None:
    with pytest.raises(LoadError, match=f"^{WHERE}: field {name}: .+") as error:
        decoder("rgb").sample({**META, name: data})
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_of_a_field_is_told_in_one_line() -> None:
    with pytest.raises(LoadError, match=r"field a\\nb\.json: "):
        decoder("rgb").sample({**META, "a\nb.json": b"{"})


def test_depth_and_flow_are_what_was_measured() -> None:
    depth = RNG.integers(0, 1 << 16, (6, 8), dtype=np.uint16)
    flow = RNG.normal(0, 9, (6, 8, 2)).astype(np.float32)
    flow = np.rint(flow * 64) / 64
    odd = flow.copy()
    odd[1, 2] = (np.nan, 0)
    odd[3, 4] = (2e9, 1)
    fields = {
        "000000.depth.png": encode_png(depth),
        "left.depth.png": PICTURES["png"],
        "000000.flow.png": encode_kitti(odd),
        "000001.flow_back.png": encode_kitti(flow),
        "flow.png": PICTURES["png"],
        "000000.flow.flo": encode_flo(odd),
        "flow.npy": encode_npy(flow),
        "other.npy": encode_npy(flow),
    }
    got = decoder("rgb8").sample(fields)
    np.testing.assert_array_equal(got["000000.depth.png"], depth)
    assert got["000000.depth.png"].dtype == np.uint16
    # A picture of depth or of flow for the eye is a picture as any other.
    assert got["left.depth.png"].shape == got["flow.png"].shape == (27, 42, 3)
    moved = flow.transpose(2, 0, 1)
    for name in ("000000.flow.png", "000000.flow.flo"):
        field = got[name]
        assert isinstance(field, FlowField)
        assert sorted(zip(*np.nonzero(~field.valid), strict=True)) == [(1, 2), (3, 4)]
        assert field.flow.dtype == np.float32
        np.testing.assert_array_equal(field.flow, moved * field.valid)
    np.testing.assert_array_equal(got["000001.flow_back.png"].flow, moved)
    assert got["flow.npy"].valid.all()
    np.testing.assert_allclose(got["flow.npy"].flow, moved, atol=1 / 64)
    assert got["other.npy"].shape == (6, 8, 2)


def test_what_is_measured_comes_as_tensors_beside_pictures_that_do() -> None:
    torch = pytest.importorskip("torch")
    depth = encode_png(np.full((6, 8), 40_000, np.uint16))
    fields = {"depth.png": depth, "flow.png": encode_kitti(np.zeros((6, 8, 2), np.float32))}
    got = decoder("torchrgb8").sample(fields)
    assert got["depth.png"].dtype == torch.uint16
    assert (got["flow.png"].flow.shape, got["flow.png"].valid.dtype) == ((2, 6, 8), torch.bool)


def test_there_is_no_decoder_of_that_name() -> None:
    with pytest.raises(ValueError, match=r"'rbg'.*rgb8"):
        decoder("rbg")


ARRAYS = [
    RNG.normal(size=(3, 4)).astype(np.float32),
    np.arange(7, dtype=">i2"),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],
    RNG.normal(size=(1, 1)),
]


def test_tenbin_is_read_by_webdataset_and_written_by_it() -> None:
    data = encode_tenbin(ARRAYS, ["a", "bb", "", "12345678"])
    theirs, infos = webdataset.tenbin.decode_buffer(data, infos=True)
    ours = decode_tenbin(data)
    assert infos == ["a", "bb", "", "12345678"]
    native = [np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for a in ARRAYS]
    for wanted, one, other in zip(native, theirs, ours, strict=True):
        np.testing.assert_array_equal(one, wanted)
        np.testing.assert_array_equal(other, wanted)
        assert one.dtype == other.dtype == wanted.dtype
        assert other.flags.writeable
    assert bytes(webdataset.tenbin.encode_buffer(native, ["a", "bb", "", "12345678"])) == data
    edges = [np.array(3.0), np.zeros((0, 4), np.int8)]
    for wanted, got in zip(edges, decode_tenbin(encode_tenbin(edges)), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert decode_tenbin(b"") == []


@pytest.mark.parametrize(
    ("array", "info", "what"),
    [
        (np.zeros(3, np.uint32), "", "uint32"),
        (np.zeros(3, np.complex64), "", "complex64"),
        (np.zeros((1,) * 10), "", "dimensions"),
        (np.zeros(3), "123456789", "eight"),
    ],
)
def test_what_tenbin_does_not_hold(array: np.ndarray, info: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        encode_tenbin([array], [info])


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_tenbin_and_npy_are_arrays_or_errors(data: st.DataObject) -> None:
    for whole, decode in (
        (encode_tenbin([ARRAYS[0], ARRAYS[1]]), decode_tenbin),
        (npy(ARRAYS[0]), decode_npy),
    ):
        hurt = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(hurt) - 8))
            value = data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 99))
            width = data.draw(st.sampled_from([1, 8]))
            hurt[at : at + width] = struct.pack("<q", value)[:width]
        with contextlib.suppress(ValueError):
            decode(bytes(hurt[: data.draw(st.integers(0, len(hurt)))]))


def test_a_claim_of_much_memory_is_not_believed() -> None:
    head = b"f8".ljust(16, b"\0") + struct.pack("<3q", 2, 1 << 40, 1 << 40)
    chunk = b"~TenBin~" + struct.pack("<q", len(head)) + head.ljust(64, b"\0")
    with pytest.raises(ValueError, match="do not hold"):
        decode_tenbin(chunk + b"~TenBin~" + bytes(8))
    with pytest.raises(ValueError, match="says that it has -1"):
        decode_tenbin(b"~TenBin~" + struct.pack("<q", -1))
    claim = npy(np.zeros(3)).replace(b"(3,)", b"(3" + b"0" * 12 + b",)").replace(b" " * 12, b"", 1)
    with pytest.raises(ValueError, match="do not hold"):
        decode_npy(claim)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 20))
    lying = file.getvalue().replace(struct.pack("<I", 1 << 20), struct.pack("<I", MAX_UNPACKED + 1))
    with pytest.raises(ValueError, match="more than"):
        decode_npz(lying)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
    with pytest.raises(ValueError, match="as NumPy packs none"):
        decode_npz(file.getvalue())
    endless = npy(np.zeros(3, "V8"))[:128].replace(b"V8", b"V0").replace(b"(3,)", b"(9,)")
    with pytest.raises(ValueError, match="no size"):
        decode_npy(endless)


def test_frames_that_are_far_apart_cost_nothing() -> None:
    frames = {f"{number}.jpg": np.zeros(3) for number in (0, 999_999_999)}
    with pytest.raises(LoadError, match=r"lacks 000001\.jpg, .*; there should be 1000000000"):
        Assembler({"images": "{frame}.jpg"})({**META, **frames})


def test_gzip_is_unpacked_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelmill.loading.containers.MAX_UNPACKED", 1000)
    assert unpack_gzip(gzip.compress(bytes(1000)) + bytes(9)) == bytes(1000)
    for data in (gzip.compress(bytes(1001)), gzip.compress(bytes(600)) * 2):
        with pytest.raises(ValueError, match="more than 1000"):
            unpack_gzip(data)
    with pytest.raises(ValueError, match="damaged"):
        unpack_gzip(zlib.compress(b"a"))


def test_msgpack_there_and_back() -> None:
    value = {"a": [1, 2.5, None, True, b"bytes", "Möwe"], "b": {"c": []}}
    assert decode_msgpack(encode_msgpack(value)) == value
    assert wds.autodecode.msgpack_loads(encode_msgpack(value)) == value


SAMPLE = {**META, "png": b"p", "cls": b"1", "0.left.jpg": b"l"}


def test_fields_are_selected_by_name_with_alternatives() -> None:
    assert Selection("jpg;png cls").values(SAMPLE) == (b"p", b"1")
    wanted = Selection("jpg;png", "0.left.jpg", "__key__")
    assert wanted.values(SAMPLE) == (b"p", b"l", "000010005")
    assert Selection("png;cls").sample(SAMPLE) == {**META, "png": b"p"}
    assert str(Selection("jpg;png", "cls", missing="skip")) == "jpg;png cls, missing=skip"


def test_a_field_that_is_missing_is_named_with_those_that_are_there() -> None:
    with pytest.raises(LoadError) as error:
        Selection("jpg;left.jpg cls").sample(SAMPLE)
    assert str(error.value) == (
        "sample 000010005 of https://h/d/00001.tar has no field jpg or left.jpg; "
        "its fields: png, cls, 0.left.jpg"
    )
    skipping = Selection("jpg", missing="skip")
    assert skipping.values(SAMPLE) is skipping.sample(SAMPLE) is None
    assert skipping.values({"jpg": b"j"}) == (b"j",)
    assert Selection("jpg", "cls", missing="none").values(SAMPLE) == (None, b"1")
    assert Selection("jpg", missing="none").sample(SAMPLE) == {**META, "jpg": None}


@pytest.mark.parametrize("spec", ["", "jpg;", ";", "a;;b"])
def test_a_selection_names_fields(spec: str) -> None:
    with pytest.raises(ValueError, match="names no fields"):
        Selection(spec)
    with pytest.raises(ValueError, match="none of error, skip, none"):
        Selection("jpg", missing="ignore")  # type: ignore[arg-type]


def frames(count: int = 3, first: int = 0, step: int = 1) -> dict[str, Any]:
    """A sample of the Falling Things example, with flow, in any order of its fields."""
    fields: dict[str, Any] = {}
    flow = np.zeros((27, 42, 2), np.float32)
    for place in reversed(range(count)):
        number = first + place * step
        fields[f"{number:06d}.image.jpg"] = encode_jpeg(picture() + np.uint8(place))
        fields[f"{number:06d}.depth.png"] = encode_png(np.full((27, 42), place, np.uint16))
        if place < count - 1:
            fields[f"{number:06d}.flow.png"] = encode_kitti(flow + np.float32(place))
            fields[f"{number:06d}.occluded.png"] = encode_png(np.zeros((27, 42), np.uint8))
        if place:
            fields[f"{number:06d}.flow_back.png"] = encode_kitti(flow)
    return {**META, **fields, "json": json.dumps({"fps": 25}).encode()}


IMAGES = {"images": "{frame}.image.jpg", "depths": "{frame}.depth.png"}
PAIRS = {
    "flow": "{frame}.flow.png",
    "back": "{frame}.flow_back.png",
    "occluded": "{frame}.occluded.png",
}


def test_frames_become_arrays_over_time() -> None:
    sample = decoder("rgb").sample(frames())
    whole = Assembler(IMAGES, pairs=PAIRS, frames=3)(sample)
    assert set(whole) == {*META, "json", *IMAGES, *PAIRS}
    assert (whole["images"].shape, whole["images"].dtype) == ((3, 27, 42, 3), np.float32)
    for place in range(3):
        np.testing.assert_array_equal(whole["images"][place], sample[f"{place:06d}.image.jpg"])
    assert (whole["depths"].dtype, whole["depths"].max((1, 2)).tolist()) == (np.uint16, [0, 1, 2])
    assert whole["flow"].flow.shape == (2, 2, 27, 42)
    assert whole["flow"].flow.max((1, 2, 3)).tolist() == [0, 1]
    assert whole["flow"].valid.shape == (2, 27, 42)
    assert whole["occluded"].shape == (2, 27, 42, 3)
    assert "images" not in sample


@pytest.mark.parametrize("spec", ["torch", "pil", "l8"])
def test_frames_of_any_kind_are_put_together(spec: str) -> None:
    if spec == "torch":
        pytest.importorskip("torch")
    whole = Assembler(IMAGES, step=5)(decoder(spec).sample(frames(first=20, step=5)))
    shapes = {"torch": (3, 3, 27, 42), "pil": (3, 27, 42, 3), "l8": (3, 27, 42)}
    assert tuple(whole["images"].shape) == shapes[spec]
    assert hasattr(whole["depths"], "new_empty") == (spec == "torch")


def test_pairs_alone() -> None:
    sample = decoder().sample(frames())
    whole = Assembler({}, pairs={"back": "{frame}.flow_back.png"}, frames=3)(sample)
    assert whole["back"].flow.shape == (2, 2, 27, 42)


def test_patterns_that_name_frames_otherwise() -> None:
    sample = {f"frame.{n}.jpg": np.full((2, 2), n) for n in (10, 9, 8)}
    got = Assembler({"video": "frame.{frame}.jpg"})(sample)
    assert got["video"][:, 0, 0].tolist() == [8, 9, 10]


@pytest.mark.parametrize(
    ("change", "how", "what"),
    [
        ({"000001.image.jpg": None}, {}, "lacks 000001.image.jpg; there should be 3"),
        ({"000002.depth.png": None}, {}, "lacks 000002.depth.png"),
        ({"000000.flow.png": None}, {}, "lacks 000002.flow.png|lacks 000000.flow.png"),
        ({"000002.flow.png": "flow"}, {}, "has 000002.flow.png besides; there should be 2"),
        ({}, {"frames": 4}, "lacks 000003.image.jpg"),
        ({}, {"frames": 2}, "has 000002.image.jpg besides"),
        ({"000001.image.jpg": np.zeros((1, 2, 3))}, {}, r"no frames of one size: .*\(1, 2, 3\)"),
        ({"000001.image.jpg": {"a": 1}}, {}, "no frames of one size"),
        ({"000001.image.jpg": b"raw"}, {}, "is not decoded; decode first"),
        (
            {f"00000{n}.image.jpg": None for n in range(3)},
            {},
            r"no field \{frame\}.image.jpg; its fields: 000002.depth.png",
        ),
    ],
)
def test_gaps_and_unequal_frames_are_named(
    change: dict[str, Any], how: dict[str, Any], what: str
) -> None:
    sample = decoder("rgb").sample(frames())
    flow = sample["000000.flow.png"]
    sample |= {name: flow if isinstance(value, str) else value for name, value in change.items()}
    sample = {name: value for name, value in sample.items() if value is not None}
    with pytest.raises(LoadError, match=f"^{WHERE}.*({what})"):
        Assembler(IMAGES, pairs={"flow": PAIRS["flow"]}, **how)(sample)


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({}, {}),
        ({"a": "image.jpg"}, {}),
        ({"a": "{frame}.jpg"}, {"pairs": {"a": "{frame}.flo"}}),
        ({"a": "{frame}.jpg"}, {"step": 0}),
        ({"a": "{frame}.jpg"}, {"frames": 0}),
    ],
)
def test_a_wrong_assembly_is_refused_at_once(fields: dict[str, str], how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Assembler(fields, **how)


def test_all_is_there_under_one_name() -> None:
    pytest.importorskip("torch")
    assert all(getattr(loading, name) is not None for name in loading.__all__)
