"""Adopting tars that others wrote: whole, torn, odd and hostile ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reelmill.errors import Rejected
from reelmill.shards import foreign
from reelmill.shards.reader import ShardReader
from reelmill.store.model import Shard, blob_name
from reelmill.tasks import adopt
from reelmill.tasks.adopt import AdoptParams

from .bad_server import BadServer
from .media_samples import sample
from .test_stages import Bench, fixed

Members = Iterable[tuple[str, bytes]]


class AdoptBench(Bench):
    def adopt(self, *tars: Path | str, **params: Any) -> Shard:
        urls = [tar if isinstance(tar, str) else f"file://{tar}" for tar in tars]
        return self.make("adopt", self.rows("url\n" + "\n".join(urls)), allow_files=True, **params)

    def fields(self, shard: Shard) -> dict[str, dict[str, bytes]]:
        return {key: dict(sample.fields) for key, sample in self.samples(shard).items()}

    def was(self, shard: Shard) -> dict[str, str]:
        return {row["key"]: row["was"] for row in self.index(shard)}

    def index(self, shard: Shard) -> list[dict[str, Any]]:
        """The rows of samples and of rejects."""
        reader = ShardReader(self.store, shard)
        return [*reader.rows(), *reader.rows("rejected")]

    def messages(self, shard: Shard) -> list[str]:
        return [row["message"] for row in ShardReader(self.store, shard).rows("rejected")]


@pytest.fixture
def bench(tmp_path: Path) -> AdoptBench:
    return AdoptBench(tmp_path)


def packed(members: Members, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_one(data: bytes, name: str = "a.tar") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_one


Write = Callable[..., Path]
PAIRS = [("a.txt", b"A"), ("a.cls", b"1"), ("b.txt", b"B"), ("b.cls", b"2")]


def test_what_webdataset_wrote_comes_through_byte_for_byte(
    bench: AdoptBench, tmp_path: Path
) -> None:
    path = tmp_path / "w.tar"
    video = sample("silent.mp4").read_bytes()
    about = b'{"b": 1,  "a": 1e3}\n'
    with webdataset.TarWriter(str(path)) as writer:
        for name in ("x/one", "x/two"):
            writer.write({"__key__": name, "mp4": video, "json": about, "Cap.TXT": "Grüße"})
    shard = bench.adopt(path, path)
    assert bench.was(shard) == {
        "000000000_000000": "x/one",
        "000000000_000001": "x/two",
    }, "rows of one address are one"
    for fields in bench.fields(shard).values():
        assert fields == {"mp4": video, "json": about, "cap.txt": "Grüße".encode()}


def test_a_sparse_file_whose_map_has_no_end() -> None:
    """A map of a gigabyte would take five of memory."""
    info = tarfile.TarInfo("a.mp4")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
    more = (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0")
    data = packed(PAIRS)[:4096] + bytes(header) + more * 4000 + bytes(1024)
    found = foreign.read_groups(io.BytesIO(data), len(data))
    assert next(found).key == "a"
    with pytest.raises(Rejected, match="damaged: a header behind member 4 cannot be read"):
        next(found)


def test_every_tar_of_a_shard_has_keys_of_its_own(bench: AdoptBench, write: Write) -> None:
    first, second = write(packed(PAIRS), "1.tar"), write(packed(PAIRS), "2.tar")
    keys = sorted(bench.fields(bench.adopt(first, second)))
    assert keys == [f"00000000{row}_00000{n}" for row in (0, 1) for n in (0, 1)]


def test_shards_of_video2dataset_are_split_and_their_clips_know_their_source(
    bench: AdoptBench, write: Write
) -> None:
    about = {
        "url": "https://youtu.be/x",
        "caption": "A cat.",
        "key": "000000000",
        "status": "success",
        "error_message": None,
        "yt_meta_dict": {"info": {"id": "x", "fps": 30}},
    }
    video = sample("plain.mp4").read_bytes()
    members = [
        ("000000000.json", json.dumps(about, indent=4).encode()),
        ("000000000.mp4", video),
        ("000000000.txt", b"A cat."),
        ("000000001.json", b"[1, 2"),
        ("000000001.mp4", video),
        ("000000001.txt", b""),
        ("000000002.json", b'{"url": ["?"], "caption": "\\ud800", "start": "soon", "n": 1e999}'),
        ("000000002.mp4", b"<html>404</html>"),
    ]
    videos = bench.adopt(write(packed(members)), video="mp4")
    row = next(iter(bench.samples(videos).values())).columns
    assert (row["codec"], row["width"], row["height"]) == ("h264", 128, 96)
    assert row["duration"] == pytest.approx(3, abs=0.1)
    assert bench.rejects(videos) == {"000000000_000002": "not_video"}
    clips = bench.make("split", videos, **fixed("1s"))
    assert sorted(bench.samples(clips)) == [
        f"000000000_00000{n}_00{clip}" for n in (0, 1) for clip in (0, 1, 2)
    ]
    sources = [json.loads(c.fields["json"])["source"] for c in bench.samples(clips).values()]
    told = {"key": "000000000_000000", "url": "https://youtu.be/x", "caption": "A cat."}
    assert sources.count(told) == 3
    assert sources.count({"key": "000000000_000001"}) == 3
    frames = bench.make("frames", videos, max_samples=1, format="png")
    assert frames.samples == 2


@pytest.mark.parametrize(
    "about",
    [
        b"[]",
        b'{"spans": 3}',
        b'{"spans": [{"start": 2, "end": 1}]}',
        b'{"spans": [{"start": Infinity, "end": [1]}]}',
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_whatever_a_strangers_json_says_it_stops_no_shard(
    bench: AdoptBench, write: Write, about: bytes
) -> None:
    members = [("a.mp4", sample("silent.mp4").read_bytes()), ("a.json", about)]
    shard = bench.make("split", bench.adopt(write(packed(members))), method="spans")
    assert next(iter(bench.rejects(shard).values())) in ("bad_spans", "no_clips")


def test_frames_take_no_strangers_word_for_the_time(bench: AdoptBench, write: Write) -> None:
    about = b'{"start": "1e9", "source": {"key": 1e999, "url": "u", "more": NaN}, "n": 1%s}'
    members = [("a.mp4", sample("silent.mp4").read_bytes()), ("a.json", about % (b"0" * 30))]
    shard = bench.make("frames", bench.adopt(write(packed(members))), max_samples=1)
    (made,) = bench.samples(shard).values()
    told = json.loads(made.fields["json"])
    assert told["source"] == {"url": "u"}
    assert told["source_times"] == told["times"]
    assert bench.make("flow", shard).samples == 1


def test_our_own_shards_are_adopted(bench: AdoptBench) -> None:
    videos = bench.videos(sample("silent.mp4"))
    assert videos.tar is not None
    path = bench.store.backend.locate(blob_name(videos.tar.digest, "tar"))
    adopted = bench.adopt(Path(path))
    assert bench.was(adopted) == {"000000000_000000": "000000000"}
    (before,), (after,) = bench.fields(videos).values(), bench.fields(adopted).values()
    assert after == before


def test_a_tar_comes_over_http_and_rejects_name_what_failed(
    bench: AdoptBench, write: Write
) -> None:
    with BadServer() as server:
        urls = [
            server.on("/a.tar", body=packed(PAIRS)),
            server.on("/gone.tar", status=404),
            server.on("/page.tar", body=b"<html>Sign in</html>"),
            server.on("/none.tar", body=packed([("README", b"hi"), (".hidden", b"")])),
            server.on("/zip.tar.gz", body=gzip.compress(packed(PAIRS))),
        ]
        shard = bench.adopt(*urls, allow_private=True)
        assert len(bench.samples(shard)) == 4
        assert bench.rejects(shard) == {
            "000000001": "http_404",
            "000000002": "not_a_tar",
            "000000003": "no_samples",
        }
        urls_of = {row["url"] for row in bench.index(shard)}
        assert urls_of == set(urls)
        refused = bench.rejects(bench.adopt(urls[0]))
        assert refused == {"000000000": "private_address"}


# --- Torn and hostile tars -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        (512 * 1 + 100, 0),  # in the padding of a.txt: a sample of which more could have come
        (512 * 3, 0),
        (512 * 5, 1),  # in the data of b.txt
        (512 * 6 + 7, 1),  # in the header of b.cls
        (512 * 8, 1),  # behind the last member, without an end mark
    ],
)
def test_of_a_torn_tar_the_samples_before_the_tear_come_through(
    bench: AdoptBench, write: Write, cut: int, whole: int
) -> None:
    shard = bench.adopt(write(packed(PAIRS)[:cut]))
    assert [fields["txt"] for fields in bench.fields(shard).values()] == [b"A"][:whole]
    place = f"000000000_00000{whole}" if whole else "000000000"
    assert bench.rejects(shard) == {place: "truncated"}


def test_a_torn_gzip_is_a_torn_tar(bench: AdoptBench, write: Write) -> None:
    data = gzip.compress(packed([*PAIRS, ("c.bin", bytes(range(256)) * 1000)]), 0)
    shard = bench.adopt(write(data[:-200_000]))
    assert set(bench.rejects(shard).values()) == {"truncated"}


def test_a_gzip_that_unpacks_to_too_much_is_refused(bench: AdoptBench, write: Write) -> None:
    path = write(gzip.compress(packed([("a.bin", bytes(50 << 20))])))
    assert path.stat().st_size < 100_000
    assert bench.rejects(bench.adopt(path, max_bytes="40 MiB")) == {"000000000": "too_large"}
    assert bench.adopt(path, max_bytes="60 MiB").samples == 1


def test_a_damaged_header_ends_a_tar(bench: AdoptBench, write: Write) -> None:
    data = bytearray(packed(PAIRS))
    data[512 * 4 + 10] ^= 1
    shard = bench.adopt(write(bytes(data)))
    assert len(bench.samples(shard)) == 0
    assert bench.rejects(shard) == {"000000000": "damaged"}
    data = bytearray(packed([*PAIRS, ("c.txt", b"C")]))
    data[512 * 8 + 10] ^= 1
    shard = bench.adopt(write(bytes(data), "b.tar"))
    assert len(bench.samples(shard)) == 1
    assert bench.rejects(shard) == {"000000000_000001": "damaged"}


def test_long_names_of_all_formats_are_read(bench: AdoptBench, write: Write) -> None:
    long = "d" * 90 + "/" + "é" * 200
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        shard = bench.adopt(write(packed([(f"{long}.txt", b"x")], kind), f"{kind}.tar"))
        assert list(bench.was(shard).values()) == [long]
    name = "p" * 100 + "/q.txt"
    shard = bench.adopt(write(packed([(name, b"x")]), "ustar.tar"))
    assert list(bench.was(shard).values()) == ["p" * 100 + "/q"]


def test_no_name_is_used_as_a_path(bench: AdoptBench, write: Write, tmp_path: Path) -> None:
    names = ["../../up.txt", "/etc/passwd.txt", "a/../b.txt", "./c.txt"]
    shard = bench.adopt(write(packed([(name, name.encode()) for name in names])))
    found = {bench.was(shard)[key]: f["txt"] for key, f in bench.fields(shard).items()}
    assert found == {name.removesuffix(".txt"): name.encode() for name in names}
    assert not list(tmp_path.parent.glob("up.txt"))


def test_links_devices_and_hidden_names_belong_to_no_sample(
    bench: AdoptBench, write: Write
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"a.{number}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("__meta__", "__index__/x.txt", "README", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    shard = bench.adopt(write(buffer.getvalue()))
    assert list(bench.fields(shard).values()) == [{"txt": b"x"}]
    assert bench.rejects(shard) == {}


def test_equal_keys_are_samples_of_their_own(bench: AdoptBench, write: Write) -> None:
    shard = bench.adopt(write(packed([*PAIRS[:2], *PAIRS[:2], *PAIRS])))
    assert sorted(bench.was(shard).values()) == ["a", "a", "a", "b"]
    assert all(len(fields) == 2 for fields in bench.fields(shard).values())


def test_a_sample_with_unfit_fields_is_a_reject_and_odd_ones_are_renamed(
    bench: AdoptBench, write: Write
) -> None:
    members = [
        ("a.Ünfug!.txt", b"1"),
        ("b.x+y", b"2"),
        ("b.x*y", b"2"),
        ("c.", b"3"),
        ("d.a..b", b"4"),
        ("e." + "f" * 90, b"5"),
        ("f.txt", b"6"),
    ]
    shard = bench.adopt(write(packed(members)))
    fields = bench.fields(shard)
    assert list(fields)
    assert {n for f in fields.values() for n in f} == {"_nfug_.txt", "txt"}
    assert set(bench.rejects(shard).values()) == {"unfit_field"}
    assert len(bench.rejects(shard)) == 4


def test_a_member_whose_size_is_a_lie_is_never_read(bench: AdoptBench, write: Write) -> None:
    info = tarfile.TarInfo("c.txt")
    for size, whole in ((1 << 40, 2), (-1, 1), (-4096, 1)):
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        path = write(packed(PAIRS)[: 512 * 8] + header + bytes(1024), f"{size}.tar")
        shard = bench.adopt(path)
        assert len(bench.samples(shard)) == whole, size
        assert set(bench.rejects(shard).values()) <= {"truncated", "damaged"}, size
        assert len(bench.rejects(shard)) == 1, size


KINDS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
WHOLE = [packed([*PAIRS, ("y" * 60 + "/" + "x" * 60 + ".txt", b"z" * 600)], k) for k in KINDS]
LONG = [packed([*PAIRS, ("x" * 150 + ".txt", b"z" * 600)], kind) for kind in KINDS[1:]]


@settings(max_examples=200)
@given(
    data=st.sampled_from(WHOLE + LONG),
    edits=st.lists(st.tuples(st.integers(0, 4607), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 4608),
    mend=st.booleans(),
)
def test_whatever_the_bytes_are_nothing_beyond_them_is_read(
    data: bytes, edits: list[tuple[int, int]], cut: int, mend: bool
) -> None:
    torn = bytearray(data)
    for place, value in edits:
        torn[place] = value
    for start in range(0, len(torn), 512) if mend else ():
        if torn[start + 257 : start + 262] == b"ustar":
            torn[start + 148 : start + 156] = b" " * 8
            torn[start + 148 : start + 156] = b"%06o\0 " % sum(torn[start : start + 512])
    del torn[len(torn) - cut :]
    with contextlib.suppress(Rejected):
        for group in foreign.read_groups(io.BytesIO(torn), len(torn)):
            for part in group.parts.values():
                assert 0 <= part.offset <= part.offset + part.size <= len(torn)


def test_headers_have_bounds(bench: AdoptBench, write: Write) -> None:
    large = packed([*PAIRS, ("x" * 200_000 + ".txt", b"")], tarfile.GNU_FORMAT)
    assert set(bench.rejects(bench.adopt(write(large))).values()) == {"damaged"}
    info = tarfile.TarInfo("g")
    info.type, info.size = tarfile.XGLTYPE, 10
    chain = (info.tobuf() + b"10 a=bcde\n".ljust(512, b"\0")) * 3000
    shard = bench.adopt(write(packed(PAIRS)[: 512 * 8] + chain, "chain.tar"))
    assert len(bench.rejects(shard)) == 1
    assert len(bench.samples(shard)) == 1


def test_the_number_of_members_and_of_fields_and_their_names_have_a_bound(
    bench: AdoptBench, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "MAX_MEMBERS", 7)
    monkeypatch.setattr(foreign, "MAX_FIELDS", 3)
    members = [(f"a.{n}", b"") for n in range(4)] + [(f"b.{n}", b"") for n in range(2)]
    shard = bench.adopt(write(packed(members)))
    assert len(bench.samples(shard)) == 1
    assert bench.messages(shard) == ["more than 3 fields"]
    shard = bench.adopt(write(packed([(f"{n}.x", b"") for n in range(9)]), "b.tar"))
    assert len(bench.samples(shard)) == 6
    assert bench.rejects(shard) == {"000000000_000006": "too_many_members"}
    monkeypatch.setattr(foreign, "MAX_MEMBERS", 99)
    monkeypatch.setattr(foreign, "MAX_NAMES", 1300)
    members = [(f"{n:02d}{'k' * 80}/x/{'l' * 77}.x", b"") for n in range(20)]
    shard = bench.adopt(write(packed(members), "c.tar"))
    assert len(bench.samples(shard)) == 6


# --- Options ---------------------------------------------------------------------------------


def test_fields_are_chosen_and_renamed(bench: AdoptBench, write: Write) -> None:
    path = write(packed([*PAIRS, ("c.cls", b"3")]))
    shard = bench.adopt(path, fields=["txt"], rename={"txt": "caption.txt"})
    assert sorted(f["caption.txt"] for f in bench.fields(shard).values()) == [b"A", b"B"]
    assert shard.samples == 2
    assert bench.rejects(shard) == {"000000000_000002": "no_fields"}


def test_a_video_is_called_by_its_container_where_its_name_tells_later_stages_nothing(
    bench: AdoptBench, write: Write
) -> None:
    members = [("a.clip", sample("vp9.webm").read_bytes()), ("b.txt", b"")]
    shard = bench.adopt(write(packed(members)), video="clip")
    assert [list(fields) for fields in bench.fields(shard).values()] == [["webm"]]
    assert bench.rejects(shard) == {"000000000_000001": "no_video"}


def test_large_fields_go_through_scratch(
    bench: AdoptBench, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(packed([("a.1", b"1" * 600), ("a.2", b"2" * 600), ("a.mp4", b"3" * 99)]))
    whole = bench.adopt(path)
    monkeypatch.setattr(adopt, "_IN_MEMORY", 700)
    other = AdoptBench(bench.folder / "other")
    assert other.adopt(path).tar == whole.tar
    assert not list((other.folder / "store" / "tmp").iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"fields": ["a"], "video": "b"},
        {"fields": ["a"], "rename": {"b": "c"}},
        {"rename": {"a": "../b"}},
        {"fields": ["A.b"]},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AdoptParams.model_validate(wrong)
