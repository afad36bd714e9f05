"""Sequences of pictures: from folders, zips and tars to all forms in which they are trained on."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill import tables
from reelmill.errors import Rejected, StageError
from reelmill.flows import preview
from reelmill.media.flow import decode_kitti, flow
from reelmill.media.images import decode_gray, encode_jpeg, encode_png
from reelmill.sequences.frames import Frame
from reelmill.sequences.members import Member
from reelmill.sequences.places import open_archive, open_file
from reelmill.shards.reader import Sample, ShardReader
from reelmill.store.model import Generation, Result, Shard, blob_name
from reelmill.tasks import get_stage
from reelmill.tasks.contract import action_of, key_params
from reelmill.tasks.frame import Order, execute
from reelmill.tasks.ingest import Source, ingest
from reelmill.tasks.sequences import _batches

from .media_samples import number_of, picture
from .test_stages import Bench

Files = Mapping[str, bytes]
FAT = {
    "image.jpg": "{frame}.left.jpg",
    "depth.png": "{frame}.left.depth.png",
    "json": "{frame}.left.json",
}
SETTINGS = {"camera.json": "_camera_settings.json", "object.json": "_object_settings.json"}


def jpeg(number: int) -> bytes:
    return encode_jpeg(np.repeat(picture(number)[..., None], 3, axis=2))


def depth(number: int) -> bytes:
    """16 bits a pixel: of each, both bytes matter."""
    y, x = np.mgrid[0:96, 0:128].astype(np.uint16)
    return encode_png((257 * x + 300 * y + number + 1).astype(np.uint16))


def falling_things(name: str, numbers: Iterable[int], files: dict[str, bytes]) -> dict[str, bytes]:
    """Add a sequence as NVIDIA's Falling Things has it."""
    for what in ("camera", "object"):
        files[f"{name}/_{what}_settings.json"] = f'{{"of": "{name}",  "{what}": 1}}\n'.encode()
    for number in numbers:
        for side in ("left", "right"):
            base = f"{name}/{number:06d}.{side}"
            shown = number + 100 * (side == "right")
            files[f"{base}.jpg"] = jpeg(shown)
            files[f"{base}.depth.png"] = depth(shown)
            files[f"{base}.seg.png"] = encode_png(np.full((96, 128), number % 256, np.uint8))
            files[f"{base}.json"] = f'{{"number": {number}, "side": "{side}"}}\n'.encode()
    return files


@pytest.fixture(scope="module")
def fat() -> dict[str, bytes]:
    files = falling_things("fat/mixed/kitchen_0", range(5), {})
    return falling_things("fat/mixed/kitedemo_3", [*range(1164, 1170), *range(1172, 1175)], files)


def in_folder(path: Path, files: Files) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def in_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def in_tar(path: Path, files: Files, kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@contextmanager
def web_server(folder: Path) -> Iterator[tuple[str, list[str | None]]]:
    """A server of a folder's files and of ranges of them, and what ranges GETs asked for."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(None)

        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            self.wfile.write(self._answer(self.headers["Range"]))

        def _answer(self, span: str | None) -> bytes:
            data = (folder / self.path[1:]).read_bytes()
            total = len(data)
            self.send_response(206 if span else 200)
            if span:
                start, stop = (int(end) for end in span.removeprefix("bytes=").split("-"))
                data = data[start : stop + 1]
                self.send_header("Content-Range", f"bytes {start}-{stop}/{total}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            return data

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


class SequenceBench(Bench):
    def listed(self, *paths: Path | str, **source: Any) -> list[Shard]:
        """The shards of rows of a source, one for each sequence."""
        given = Source(path=[str(path) for path in paths], format="sequences", **source)
        found = ingest(
            given, None, lambda digest: b"", lambda data: self.store.put_blob(data, "parquet")
        )
        return list(found.manifest.generations[0].shards)

    def sequences(self, *paths: Path | str, **params: Any) -> list[Shard]:
        folders = {"folders": params.pop("folders")} if "folders" in params else {}
        shards = self.listed(*paths, **folders)
        return [self.make("sequences", one, **{"allow_files": True, **params}) for one in shards]

    def one(self, *paths: Path | str, **params: Any) -> Shard:
        (shard,) = self.sequences(*paths, **params)
        return shard

    def shuffle(self, shards: Sequence[Shard], **params: Any) -> list[Shard]:
        stage = get_stage("shuffle")
        values = stage.params.model_validate(params)
        self.store.put_blob(Generation(shards=tuple(shards)).as_bytes(), "json")
        made = []
        for slot in stage.plan(values, {"source": shards}, 0):
            order = Order(
                store=self.store.url,
                run="test",
                dataset="shuffled",
                shard=slot.shard_id,
                action=action_of(stage, values, slot, "", stage.tools(values)),
                params=values.model_dump(mode="json"),
            )
            result = Result.model_validate_json(execute(order.model_dump_json()))
            made.append(result.shard(slot.shard_id))
        return made

    def path(self, shard: Shard) -> str:
        assert shard.tar
        return str(self.store.backend.locate(blob_name(shard.tar.digest, "tar")))

    def paths(self, shards: Iterable[Shard]) -> list[str]:
        return [self.path(shard) for shard in shards if shard.tar]

    def messages(self, shard: Shard) -> list[tuple[str, str]]:
        rows = ShardReader(self.store, shard).rows("rejected")
        return [(row["reason"], row["message"]) for row in rows]


@pytest.fixture
def bench(tmp_path: Path) -> SequenceBench:
    return SequenceBench(tmp_path)


def by_frame(samples: Mapping[str, Sample]) -> dict[tuple[str, int], dict[str, bytes]]:
    return {(s.columns["sequence"], s.columns["frame"]): s.fields for s in samples.values()}


def test_the_four_forms_of_webdatasets_video_document(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    """The original, sequences, shuffled frames and shuffled triplets: read as the document does."""
    original = in_zip(tmp_path / "fat.zip", fat)
    sequences = bench.sequences(original, shared=SETTINGS)
    assert [shard.samples for shard in sequences] == [5, 9]
    for shard, name in zip(sequences, ("kitchen_0", "kitedemo_3"), strict=True):
        numbers = []
        for sample in webdataset.WebDataset(bench.path(shard), shardshuffle=False):
            numbers.append(int(sample["__key__"].rpartition("_")[2]))
            base = f"fat/mixed/{name}/{numbers[-1]:06d}"
            fields = {k: v for k, v in sample.items() if not k.startswith("__")}
            expected = {n[len(base) + 1 :]: d for n, d in fat.items() if n.startswith(base)}
            for what in ("camera", "object"):
                expected[f"{what}.json"] = fat[f"fat/mixed/{name}/_{what}_settings.json"]
            assert fields == expected, "every member of a frame, byte for byte"
        assert numbers == sorted(numbers), "a shard of a sequence is read in its order"

    frames = bench.shuffle(sequences, samples_per_shard=7)
    mixed = webdataset.WebDataset(bench.paths(frames), shardshuffle=False).decode("rgb8")
    shuffled = list(mixed)
    assert len(shuffled) == 14
    order = [sample["left.json"]["number"] for sample in shuffled]
    assert order != sorted(order)
    assert all(sample["camera.json"]["camera"] == 1 for sample in shuffled)
    for sample in shuffled:
        assert number_of(sample["left.jpg"][..., 0]) == sample["left.json"]["number"]

    fields = ["image.jpg=left.jpg", "depth.png=left.depth.png"]
    triplets = [bench.make("windows", shard, fields=fields, step=1) for shard in sequences]
    clips = bench.shuffle(triplets)

    def assemble(sample: dict[str, Any]) -> tuple[Any, Any]:
        images = np.array([sample[f"{i:06d}.image.jpg"] for i in range(3)])
        depths = np.array([sample[f"{i:06d}.depth.png"] for i in range(3)])
        return images, depths

    opened = webdataset.WebDataset(bench.paths(clips), shardshuffle=False)
    found = []
    for images, depths in opened.decode("rgb").map(assemble):
        assert images.shape == depths.shape == (3, 96, 128, 3)
        found.append([number_of((image[..., 0] * 255).astype(np.uint8)) for image in images])
    # Of 1164 to 1169 and 1172 to 1174, none spans the gap.
    starts = [0, 1, 2, 1164, 1165, 1166, 1167, 1172]
    assert sorted(found) == [[n, n + 1, n + 2] for n in starts]


@pytest.mark.parametrize("pack", ["folder", "zip", "stored", "tar", "pax"])
def test_depth_is_the_files_own_bytes_wherever_they_lie(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes], pack: str
) -> None:
    place = {
        "folder": lambda: in_folder(tmp_path / "data", fat),
        "zip": lambda: in_zip(tmp_path / "fat.zip", fat),
        "stored": lambda: in_zip(tmp_path / "fat.zip", fat, zipfile.ZIP_STORED),
        "tar": lambda: in_tar(tmp_path / "fat.tar", {f"./{n}": d for n, d in fat.items()}),
        "pax": lambda: in_tar(tmp_path / "fat.tar", fat, tarfile.PAX_FORMAT),
    }[pack]()
    shards = bench.sequences(place, fields=FAT, shared=SETTINGS, fps=30)
    made = {k: v for shard in shards for k, v in by_frame(bench.samples(shard)).items()}
    assert len(made) == 14
    for (name, number), fields in made.items():
        assert fields == {
            **{n: fat[f"{name}/{p.format(frame=f'{number:06d}')}"] for n, p in FAT.items()},
            **{n: fat[f"{name}/{p}"] for n, p in SETTINGS.items()},
        }
        read = cv2.imdecode(np.frombuffer(fields["depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert read.dtype == np.uint16
        assert len(np.unique(read & 255)) > 200
    (first, *_, last) = bench.samples(shards[1]).values()
    assert (first.key, last.key) == ("000010000_001164", "000010000_001174")
    assert (first.columns["time"], last.columns["time"]) == (0, pytest.approx(10 / 30, abs=1e-6))
    assert (first.columns["width"], first.columns["height"]) == (128, 96)


def test_the_same_sequences_are_the_same_bytes_wherever_they_lie(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    tars = [
        [bench.path(shard) for shard in bench.sequences(place)]
        for place in (
            in_folder(tmp_path / "data", fat),
            in_zip(tmp_path / "fat.zip", fat),
            in_tar(tmp_path / "fat.tar", dict(reversed(fat.items()))),
        )
    ]
    assert tars[0] == tars[1]
    assert tars[0] == tars[2]


# --- Frames -----------------------------------------------------------------------------------

TINY = {"s/000000.a.png": b"a0", "s/000000.b.png": b"b0", "s/000001.a.png": b"a1"}


def test_a_frame_that_lacks_a_field_is_a_reject_or_kept_as_asked(
    bench: SequenceBench, tmp_path: Path
) -> None:
    place = in_zip(tmp_path / "s.zip", TINY)
    shard = bench.one(place)
    assert list(bench.samples(shard)) == ["000000000_000000"]
    assert bench.messages(shard) == [("missing_field", "it has no b.png")]
    (row,) = ShardReader(bench.store, shard).rows("rejected")
    assert (row["key"], row["sequence"], row["frame"]) == ("000000000_000001", "s", 1)
    kept = bench.samples(bench.one(place, missing="keep"))
    assert [sorted(one.fields) for one in kept.values()] == [["a.png", "b.png"], ["a.png"]]
    absent = bench.one(place, shared={"camera.json": "camera.json"})
    assert bench.messages(absent) == [("missing_field", "it has no 'camera.json'")]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["frame_0002.png", "frame_0010.png"], {2: ["png"], 10: ["png"]}),
        (["cam1_7.png", "cam1_7.depth.exr", "cam1_8.png"], {7: ["depth.exr", "png"]}),
        (["1403636579763555584.png"], {1403636579763555584: ["png"]}),
        (["0.PNG", "0.Left.Depth.png"], {0: ["left.depth.png", "png"]}),
        (["0.pn g.png"], {0: ["pn_g.png"]}),
    ],
)
def test_frames_by_webdatasets_rule(
    bench: SequenceBench, tmp_path: Path, names: list[str], found: dict[int, list[str]]
) -> None:
    place = in_tar(tmp_path / "s.tar", {f"s/{name}": name.encode() for name in names})
    made = bench.samples(bench.one(place))
    assert {s.columns["frame"]: sorted(s.fields) for s in made.values()} == found
    keys = list(made)
    assert keys == sorted(keys)
    assert len({len(key) for key in keys}) == 1, "keys of one sequence sort as numbers do"


def test_pictures_without_a_number_and_two_of_one_number_are_rejects(
    bench: SequenceBench, tmp_path: Path
) -> None:
    names = ["cover.png", "a_1.png", "b_1.png", "a_2.png", "_thumb_3.png", "notes.txt"]
    shard = bench.one(in_zip(tmp_path / "s.zip", {f"s/{name}": b"x" for name in names}))
    assert [s.columns["frame"] for s in bench.samples(shard).values()] == [2]
    assert bench.messages(shard) == [
        ("no_number", "2 pictures have no number; the first is 's/cover.png'"),
        ("two_members", "'s/a_1.png' and 's/b_1.png' would both be its png"),
    ]


def test_a_sequence_may_lie_in_several_folders(bench: SequenceBench, tmp_path: Path) -> None:
    files = {
        f"set/{scene}/{folder}/{number:06d}{ending}": f"{scene}{folder}{number}".encode()
        for scene in ("P001", "P002")
        for folder, ending in (("left", "_left.png"), ("depth", "_left_depth.npy"))
        for number in range(3)
    }
    files["set/P001/.DS_Store"] = files["set/__MACOSX/P001/left/1.png"] = b"x"
    fields = {"image.png": "left/{frame}_left.png", "depth.npy": "depth/{frame}_left_depth.npy"}
    for place in (in_folder(tmp_path / "d", files), in_zip(tmp_path / "d.zip", files)):
        shards = bench.sequences(place, folders="**/P*", fields=fields)
        made = {k: v for one in shards for k, v in by_frame(bench.samples(one)).items()}
        assert sorted(made) == [(f"set/P00{n}", frame) for n in (1, 2) for frame in range(3)]
        assert made["set/P002", 1] == {"image.png": b"P002left1", "depth.npy": b"P002depth1"}
        (one, _) = bench.sequences(place, folders="set/P*")
        (frame, *_) = bench.samples(one).values()
        assert sorted(frame.fields) == ["depth.npy", "left.png"], "folders are part of the field"


def test_folders_of_any_name_and_linked_ones_are_found(
    bench: SequenceBench, tmp_path: Path
) -> None:
    root = in_folder(tmp_path / "d", {"a b/Zürich #1/0.png": b"0", "_x/0.png": b"x"})
    odd = Path(os.fsdecode(os.fsencode(root) + b"/s\xff"))
    in_folder(odd, {"1.png": b"1"})
    in_folder(tmp_path / "other", {"2.png": b"2"})
    (root / "linked").symlink_to(tmp_path / "other")
    made = {
        sample.columns["sequence"]: next(iter(sample.fields.values()))
        for shard in bench.sequences(root)
        for sample in bench.samples(shard).values()
    }
    assert made == {"a b/Zürich #1": b"0", "s\\udcff": b"1", "linked": b"2"}
    both = bench.sequences(f"{root}/{{linked,a b}}")
    found = [one.columns["sequence"] for shard in both for one in bench.samples(shard).values()]
    assert found == ["linked", "a b/Zürich #1"]


def test_many_sequences_may_share_a_shard(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    place = in_zip(tmp_path / "fat.zip", fat)
    (rows,) = bench.listed(place, rows_per_shard=10)
    shard = bench.make("sequences", rows, allow_files=True)
    keys = list(bench.samples(shard))
    assert keys == sorted(keys)
    triplets = bench.samples(bench.make("windows", shard))
    assert sorted(triplets) == [f"000000000_{0:06d}"] + [
        f"000000001_{n:06d}" for n in (1164, 1167, 1172)
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"fields": {"png": "left.png"}}, "told apart by one {frame}"),
        ({"fields": {"png": "{frame}/{frame}.png"}}, "told apart by one {frame}"),
        ({"fields": {"j": "{frame}.json"}, "shared": {"j": "c.json"}}, "one of fields, and shared"),
        ({"shared": {"a": "c.json", "b": "c.json"}}, "names a file twice"),
        ({"fps": 0}, "greater than 0"),
    ],
)
def test_parameters_that_make_no_sense(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        get_stage("sequences").params.model_validate(params)


def test_windows_name_a_field_once() -> None:
    with pytest.raises(ValidationError, match="fields names a field twice"):
        get_stage("windows").params.model_validate({"fields": ["a=b", "a=c"]})


def test_the_keys_of_other_sources_are_what_they_were() -> None:
    assert "folders" not in key_params(Source(path="x.csv"))
    known = {key_params(Source(path="x", format="sequences", folders=f))["folders"] for f in "ab"}
    assert known == {"a", "b"}


@pytest.mark.parametrize("pack", [in_folder, in_zip, in_tar])
def test_memory_does_not_grow_with_the_sequence(
    bench: SequenceBench, tmp_path: Path, pack: Callable[[Path, Files], Path]
) -> None:
    suffix = pack.__name__.removeprefix("in_")
    noise = np.random.default_rng(0).bytes(40 << 20)
    files = {f"s/{n:06d}.png": noise[n << 20 : (n + 1) << 20] for n in range(40)}
    place = pack(tmp_path / f"s.{suffix}", files)
    (rows,) = bench.listed(place)
    bench.make("sequences", rows, allow_files=True)  # imports are not what is measured
    tracemalloc.start()
    try:
        frames = bench.make("sequences", rows, allow_files=True, fps=1)
        windows = bench.make("windows", frames, count=4, step=2)
        assert windows.samples == 19
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_members_without_a_byte_are_read_in_portions_too() -> None:
    frames = [Frame(n, {"jpg": Member(f"{n}.jpg", 0, header=1000)}) for n in range(10)]
    assert [len(batch) for batch in _batches(frames, 3000)] == [3, 3, 3, 1]


def test_sources_that_make_no_sense(bench: SequenceBench, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="folders is for format: sequences"):
        Source(path="x.csv", folders="*")
    with pytest.raises(ValidationError, match="sequences that are known stay as they are"):
        Source(path="x", format="sequences", refresh="after 30d")
    (tmp_path / "s.tar.gz").write_bytes(b"")
    with pytest.raises(tables.TableError, match="gz: sequences lie in folders, zips and uncomp"):
        bench.listed(tmp_path / "s.tar.gz")
    in_folder(tmp_path / "d", {"s/0.png": b"0"})
    with pytest.raises(tables.TableError, match=r"d: no folder of pictures fits 's/\*'"):
        bench.listed(tmp_path / "d", folders="s/*")
    with pytest.raises(tables.TableError, match=r"s: no file of .* is in this folder"):
        bench.listed(in_folder(tmp_path / "e", {"s/notes.txt": b"0"}) / "s")


def test_a_table_of_videos_is_no_source_of_sequences(bench: SequenceBench) -> None:
    with pytest.raises(StageError, match="made from a source of format: sequences"):
        bench.make("sequences", bench.rows("url\nhttps://example.org/a.zip\n"))


# --- What strangers pack ----------------------------------------------------------------------


def patched(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def central(data: bytes, number: int) -> int:
    """Where the entry of a member begins in the directory of a zip."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\1\2", at + 1)
    return at


def pair(tmp_path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    files = {"s/000000.png": b"first " * 50, "s/000001.png": b"second" * 50}
    return in_zip(tmp_path / "s.zip", files, method)


def flip(data: bytearray) -> None:
    data[data.index(b"first first") + 2] ^= 1


def encrypt(data: bytearray) -> None:
    data[central(data, 0) + 8] |= 1


def claim(method: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into("<H", data, central(data, 0) + 10, method)

    return change


def grow(data: bytearray) -> None:
    """The first member says that it has two gigabytes."""
    struct.pack_into("<L", data, central(data, 0) + 24, 2 << 30)


def shrink(data: bytearray) -> None:
    """The first member says that it has three bytes."""
    struct.pack_into("<L", data, central(data, 0) + 24, 3)


def pack(data: bytearray) -> None:
    """The first member says that it is packed in two gigabytes."""
    struct.pack_into("<L", data, central(data, 0) + 20, 2 << 30)


def astray(data: bytearray) -> None:
    struct.pack_into("<L", data, central(data, 0) + 42, 5)


@pytest.mark.parametrize(
    ("change", "method", "reason"),
    [
        (flip, zipfile.ZIP_STORED, "damaged: 's/000000.png': its checksum is another one"),
        (encrypt, zipfile.ZIP_STORED, "encrypted: 's/000000.png' is encrypted"),
        (claim(12), zipfile.ZIP_STORED, "unsupported_zip: .*by method 12, not deflate"),
        (claim(8), zipfile.ZIP_STORED, "damaged: .*its header is not that of the directory"),
        (grow, zipfile.ZIP_DEFLATED, "too_large: 2147483648 bytes"),
        (shrink, zipfile.ZIP_DEFLATED, "damaged: 's/000000.png': it is not 3 bytes long"),
        (shrink, zipfile.ZIP_STORED, "damaged: 's/000000.png' has two sizes"),
        (pack, zipfile.ZIP_DEFLATED, "damaged: .*is larger packed than unpacked"),
        (astray, zipfile.ZIP_DEFLATED, "damaged: .*its header is not that of the directory"),
    ],
)
def test_one_bad_member_of_a_zip_costs_its_frame(
    bench: SequenceBench,
    tmp_path: Path,
    change: Callable[[bytearray], None],
    method: int,
    reason: str,
) -> None:
    shard = bench.one(patched(pair(tmp_path, method), change))
    assert list(bench.samples(shard)) == ["000000000_000001"]
    ((kind, message),) = bench.messages(shard)
    assert re.match(reason, f"{kind}: {message}")


def overlap(data: bytearray) -> None:
    """Both members are the same bytes, as in bombs that grow without bound."""
    struct.pack_into("<L", data, central(data, 1) + 42, 0)


def escape(data: bytearray) -> None:
    place = data.rindex(b"s/000001.png")
    data[place : place + 12] = b"../00001.png"


def cut_directory(data: bytearray) -> None:
    place = central(data, 1)
    data[place : place + 4] = b"PK\1\1"


def cut_end(data: bytearray) -> None:
    del data[-22:]


def grow_directory(data: bytearray) -> None:
    struct.pack_into("<L", data, len(data) - 10, 1 << 31)


def replace(data: bytearray) -> None:
    data[:] = b"<html>404</html>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (overlap, "damaged"),
        (escape, "unsafe_name"),
        (cut_directory, "damaged"),
        (cut_end, "not_a_zip"),
        (grow_directory, "damaged"),
        (replace, "not_a_zip"),
        (bytearray.clear, "not_a_zip"),
    ],
)
def test_a_zip_that_is_not_to_be_trusted_is_a_reject(
    bench: SequenceBench,
    tmp_path: Path,
    change: Callable[[bytearray], None],
    reason: str,
) -> None:
    shards = bench.sequences(patched(pair(tmp_path), change))
    assert [found for shard in shards for found, _ in bench.messages(shard)] == [reason]


def test_a_zip_of_zip64_is_read(bench: SequenceBench, tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            with archive.open(f"s/{number:06d}.png", "w", force_zip64=True) as member:
                member.write(b"%d" % number)

    def widen(data: bytearray) -> None:
        """Give the end of the directory in the long form, as beyond 65,535 members."""
        end = bytes(data[-22:])
        length, start = struct.unpack_from("<2L", end, 12)
        at = len(data) - 22
        long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, length, start)
        place = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        data[-22:] = long + place + end[:8] + b"\xff" * 12 + end[20:]

    widened = patched(path, widen)
    with zipfile.ZipFile(widened) as archive:
        assert archive.testzip() is None
    assert [list(s.fields.values()) for s in bench.samples(bench.one(widened)).values()] == [
        [b"0"],
        [b"1"],
        [b"2"],
    ]


def read_all(path: Path, listed: Sequence[tuple[int, int]]) -> None:
    """Read what a worker reads, however damaged; only rejects may come of it."""
    for part in (None, *listed):
        archive = open_archive(path.name, open_file(path.as_uri()))
        members: list[Member] = []
        with suppress(Rejected):
            members.extend(archive.members(part))
        fit = [one for one in members if one.problem is None and one.size < 1 << 16]
        for member, found in zip(fit, archive.read(fit), strict=True):
            assert isinstance(found, Rejected) or len(found) == member.size


@settings(max_examples=60)
@given(
    suffix=st.sampled_from(["zip", "tar"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4))),
    cut=st.floats(0, 1),
)
def test_archives_damaged_anyhow_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    changes: list[tuple[float, bytes]],
    cut: float,
) -> None:
    files = {f"s/{n:06d}.png": b"%d" % n * 50 for n in range(3)}
    path = tmp_path_factory.mktemp("fuzz") / f"s.{suffix}"
    (in_zip if suffix == "zip" else in_tar)(path, files)
    archive = open_archive(path.name, open_file(path.as_uri()))
    listed = [member.listed for member in archive.members()]

    def change(data: bytearray) -> None:
        for place, patch in changes:
            at = int(place * len(data))
            data[at : at + len(patch)] = patch
        if cut > 0.5:
            del data[int(cut * len(data)) :]

    read_all(patched(path, change), listed)


def test_links_devices_and_names_in_tars_lead_nowhere(bench: SequenceBench, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    path = in_tar(tmp_path / "s.tar", {"s/000000.png": b"0", "s/000001.png": b"1"})

    def add(name: str, kind: bytes, target: str = "") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        with tarfile.open(path, "a") as archive:
            archive.addfile(info)

    add("s/000002.png", tarfile.SYMTYPE, str(secret))
    add("s/000003.png", tarfile.LNKTYPE, "../secret.png")
    add("s/000004.png", tarfile.FIFOTYPE)
    made = bench.samples(bench.one(path))
    assert [list(sample.fields.values()) for sample in made.values()] == [[b"0"], [b"1"]]
    for name in ("/etc/000005.png", "s/../../000005.png"):
        hostile = in_tar(tmp_path / "h.tar", {"s/000000.png": b"0", name: b"1"})
        good, bad = bench.sequences(hostile)
        assert len(bench.samples(good)) == 1
        ((reason, message),) = bench.messages(bad)
        assert reason == "unsafe_name"
        assert message.endswith("is no plain path")


def test_a_torn_tar_gives_what_is_before_the_tear(bench: SequenceBench, tmp_path: Path) -> None:
    files = {f"{scene}/{n:06d}.png": b"x" * 700 for scene in "ab" for n in range(3)}
    path = in_tar(tmp_path / "s.tar", files)
    os.truncate(path, 512 * 3 * 5)
    shards = bench.sequences(path)
    assert [len(bench.samples(shard)) for shard in shards] == [3, 2, 0]
    assert [reason for reason, _ in bench.messages(shards[-1])] == ["truncated"]


def test_links_out_of_a_folder_are_not_followed(bench: SequenceBench, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    folder = in_folder(tmp_path / "data", {"s/000000.png": b"0"}) / "s"
    (folder / "000001.png").symlink_to(secret)
    (folder / "000002.png").symlink_to("000000.png")
    os.mkfifo(folder / "000003.png")
    shard = bench.one(tmp_path / "data")
    assert [s.columns["frame"] for s in bench.samples(shard).values()] == [0, 2]
    assert [reason for reason, _ in bench.messages(shard)] == ["unsafe_name", "not_a_file"]


def test_limits(bench: SequenceBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = in_zip(tmp_path / "s.zip", {"s/000000.png": bytes(1 << 20), "s/000001.png": b"1"})
    shard = bench.one(bomb, max_frame_bytes="1 MB")
    assert list(bench.samples(shard)) == ["000000000_000001"]
    assert [reason for reason, _ in bench.messages(shard)] == ["too_large"]
    whole = bench.one(bomb, max_bytes="1 MB")
    assert bench.rejects(whole) == {"000000000": "too_large"}
    monkeypatch.setattr("reelmill.sequences.members.MAX_MEMBERS", 1)
    for place in (bomb, in_folder(tmp_path / "d", {"0.png": b"0", "1.png": b"1"})):
        shards = bench.sequences(place)
        found = [reason for one in shards for reason, _ in bench.messages(one)]
        assert found[-1:] == ["too_many_members"]


def test_what_is_gone_or_not_allowed_is_a_reject(bench: SequenceBench, tmp_path: Path) -> None:
    place = pair(tmp_path)
    (rows,) = bench.listed(place)
    refused = bench.make("sequences", rows)
    assert bench.rejects(refused) == {"000000000": "denied"}
    in_zip(place, {"s/000000.png": b"another"})
    changed = bench.make("sequences", rows, allow_files=True)
    assert bench.rejects(changed) == {"000000000": "changed"}
    place.unlink()
    gone = bench.make("sequences", rows, allow_files=True, fps=1)
    assert bench.rejects(gone) == {"000000000": "file_not_found"}
    with pytest.raises(tables.TableError, match="no such file"):
        bench.listed(place)


# --- Stores and the web -----------------------------------------------------------------------


def test_sequences_of_an_object_store(
    bench: SequenceBench, tmp_path: Path, s3_url: str, fat: dict[str, bytes]
) -> None:
    files: Any = fsspec.filesystem("s3")
    root = s3_url.rpartition("/")[0].removesuffix("/data")
    chosen = {name: data for name, data in fat.items() if "kitchen" in name}
    places = {
        "fat.zip": in_zip(tmp_path / "fat.zip", chosen),
        "fat.tar": in_tar(tmp_path / "fat.tar", chosen),
    }
    expected = bench.path(bench.one(places["fat.tar"], shared=SETTINGS))
    for name, place in places.items():
        files.pipe_file(f"{root}/{name}", place.read_bytes())
    for name, data in chosen.items():
        files.pipe_file(f"{root}/folder/{name}", data)
    for name in (*places, "folder"):
        assert bench.path(bench.one(f"{root}/{name}", shared=SETTINGS)) == expected
    files.pipe_file(f"{root}/empty.tar", in_tar(tmp_path / "e.tar", {"s/0.png": b""}).read_bytes())
    (empty,) = bench.samples(bench.one(f"{root}/empty.tar")).values()
    assert empty.fields == {"png": b""}
    (rows,) = bench.listed(f"{root}/fat.zip")
    files.rm(f"{root}/fat.zip")
    assert bench.rejects(bench.make("sequences", rows)) == {"000000000": "object_not_found"}


def test_an_archive_off_the_web_is_fetched_once_for_its_sequences(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    place = in_zip(tmp_path / "fat.zip", fat)
    with web_server(tmp_path) as (url, asked):
        (rows,) = bench.listed(f"{url}/fat.zip", rows_per_shard=2)
        assert set(bench.rejects(bench.make("sequences", rows)).values()) == {"private_address"}
        before = len(asked)
        made = bench.make("sequences", rows, allow_private=True)
        assert len(asked) == before + 1
        with pytest.raises(tables.TableError, match=r"^HTTP\S*zip: ValueError: Protocol not known"):
            bench.listed(f"{url.replace('http', 'HTTP')}/fat.zip")
        with pytest.raises(tables.TableError, match="web servers list no folders"):
            bench.listed(f"{url}/{{0..2}}.png")
    (local,) = bench.listed(place, rows_per_shard=2)
    assert bench.path(made) == bench.path(bench.make("sequences", local, allow_files=True))


# --- Windows ----------------------------------------------------------------------------------


def frames_of(bench: SequenceBench, tmp_path: Path, *numbers: int) -> Shard:
    files = {f"s/{n:06d}.{end}": f"{end}{n}".encode() for n in numbers for end in ("jpg", "txt")}
    return bench.one(in_tar(tmp_path / "s.tar", files), fps=10)


def spans(bench: SequenceBench, shard: Shard) -> list[list[int]]:
    made = sorted(bench.samples(shard).items())
    return [json.loads(sample.fields["json"])["frames"] for _, sample in made]


@pytest.mark.parametrize(
    ("numbers", "params", "expected"),
    [
        (range(7), {}, [[0, 1, 2], [3, 4, 5]]),
        (range(5), {"step": 1}, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        (range(8), {"count": 2, "stride": 3, "step": 2}, [[0, 3], [2, 5], [4, 7]]),
        (range(8), {"count": 2, "step": 5}, [[0, 1], [5, 6]]),
        (range(3), {"count": 1}, [[0], [1], [2]]),
        ([0, 1, 3, 4, 5], {"count": 2}, [[0, 1], [3, 4]]),
        ([0, 1, 3, 4, 5], {"count": 2, "across_gaps": True}, [[0, 1], [3, 4]]),
        ([0, 1, 3, 4, 5], {"across_gaps": True}, [[0, 1, 3]]),
        ([5, 10, 15, 25, 30, 35], {}, [[5, 10, 15], [25, 30, 35]]),
    ],
)
def test_windows(
    bench: SequenceBench,
    tmp_path: Path,
    numbers: Iterable[int],
    params: dict[str, Any],
    expected: list[list[int]],
) -> None:
    numbers = list(numbers)
    shard = bench.make("windows", frames_of(bench, tmp_path, *numbers), **params)
    assert spans(bench, shard) == expected
    for key, sample in bench.samples(shard).items():
        about = json.loads(sample.fields["json"])
        frames = about["frames"]
        assert key == f"000000000_{frames[0]:06d}"
        assert about["times"] == [pytest.approx((n - numbers[0]) / 10) for n in frames]
        assert about["source"]["key"] == "000000000"
        assert {name: data for name, data in sample.fields.items() if name != "json"} == {
            f"{place:06d}.{end}": f"{end}{n}".encode()
            for place, n in enumerate(frames)
            for end in ("jpg", "txt")
        }


def test_frames_that_are_numbered_by_nanoseconds(bench: SequenceBench, tmp_path: Path) -> None:
    numbers = [1403636579763555584, 1403636579813555456, 1403636579863555584]
    frames = frames_of(bench, tmp_path, *numbers)
    assert bench.rejects(bench.make("windows", frames)) == {"000000000": "too_short"}
    made = bench.make("windows", frames, across_gaps=True)
    assert spans(bench, made) == [[str(number) for number in numbers]]


def test_windows_that_cannot_be_made_are_rejects(bench: SequenceBench, tmp_path: Path) -> None:
    frames = frames_of(bench, tmp_path, 0, 1, 3, 4)
    short = bench.make("windows", frames)
    assert bench.messages(short) == [("too_short", "4 frames, no 3 of them in a row")]
    long = bench.make("windows", frames, count=2, fields=[f"{'x' * 79}=txt"])
    assert [reason for reason, _ in bench.messages(long)] == ["unfit_field"] * 2
    lacking = bench.make("windows", frames, count=2, fields=["jpg", "exr"])
    assert bench.messages(lacking) == [("missing_field", "a frame has no exr")] * 2


def test_windows_of_what_is_no_sequence(bench: SequenceBench, tmp_path: Path) -> None:
    frames = frames_of(bench, tmp_path, *range(20))
    (mixed,) = bench.shuffle([frames])
    with pytest.raises(StageError, match="before it is shuffled"):
        bench.make("windows", mixed)
    rows = bench.rows("url\nhttps://example.org/a.mp4\n")
    with pytest.raises(StageError, match="dataset of the stage sequences"):
        bench.make("windows", rows)


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        ("filter", {"where": "frame < 18"}),
        ("sample", {"share": "70%", "by": "sample"}),
    ],
)
def test_what_takes_frames_away_leaves_the_rest_in_order(
    bench: SequenceBench, tmp_path: Path, stage: str, params: dict[str, Any]
) -> None:
    fewer = bench.make(stage, frames_of(bench, tmp_path, *range(20)), **params)
    assert 10 < fewer.samples < 20
    keys = list(bench.samples(fewer))
    assert keys == sorted(keys)
    assert bench.make("windows", fewer, count=2, across_gaps=True).samples == len(keys) // 2


def test_flow_leads_from_frame_to_frame(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    (first, _) = bench.sequences(in_zip(tmp_path / "fat.zip", fat), fields=FAT)
    moved = bench.make("flow", bench.make("windows", first))
    (sample,) = bench.samples(moved).values()
    assert sample.fields["000002.depth.png"] == fat["fat/mixed/kitchen_0/000002.left.depth.png"]
    for place in range(2):
        found, known = decode_kitti(sample.fields[f"{place:06d}.flow.png"])
        pictures = [decode_gray(sample.fields[f"{place + i:06d}.image.jpg"]) for i in (0, 1)]
        assert np.array_equal(found, (flow(pictures[0], pictures[1]) * 64).round() / 64)
        assert known.all()


def test_contact_sheets_show_frames_depth_and_flow(
    bench: SequenceBench, tmp_path: Path, fat: dict[str, bytes]
) -> None:
    (first, _) = bench.sequences(in_zip(tmp_path / "fat.zip", fat))
    (frame, *_) = bench.samples(first).values()
    pictures, labels = preview._pictures(frame)
    assert labels == ["left", "left depth", "left seg", "right", "right depth", "right seg"]
    assert number_of(pictures[0][..., 0]) == 0
    near, far = pictures[1][5, 5].mean(), pictures[1][90, 120].mean()
    assert 250 < near <= 255
    assert far < 60
    chosen = bench.make("windows", first, fields=["image.jpg=left.jpg", "left.depth.png"])
    (sample,) = bench.samples(bench.make("flow", chosen)).values()
    _, labels = preview._pictures(sample)
    assert labels == [
        *("0", "0 left depth", "from 0", "1", "1 left depth", "from 1", "2", "2 left depth")
    ]


def test_any_order_of_execution_gives_the_same_bytes(tmp_path: Path, fat: dict[str, bytes]) -> None:
    place = in_zip(tmp_path / "fat.zip", fat)
    digests = []
    for name, turn in (("one", 1), ("two", -1)):
        bench = SequenceBench(tmp_path / name)
        rows = bench.listed(place)[::turn]
        frames = [bench.make("sequences", one, allow_files=True, fields=FAT) for one in rows]
        triplets = [bench.make("windows", one, step=1) for one in frames[::-1]]
        ordered = sorted(frames, key=lambda shard: shard.id)
        flows = [bench.make("flow", one) for one in triplets]
        all_made = [*frames, *triplets, *flows, *bench.shuffle(ordered, samples_per_shard=5)]
        digests.append({(s.id, s.tar, s.index) for s in all_made})
    assert digests[0] == digests[1]
