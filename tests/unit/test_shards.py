"""The shard format: the bytes that ``tarfile`` would write, in an order of their own, indexed."""

from __future__ import annotations

import io
import itertools
import os
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import order_hash, sha256
from reelmill.errors import ShardError
from reelmill.shards import index, tar, writer
from reelmill.shards.index import MAX_MESSAGE, OK, REJECTED, Row
from reelmill.shards.reader import ShardReader, coalesce
from reelmill.shards.writer import ShardWriter, Written
from reelmill.store import Store
from reelmill.store.model import Blob, Shard

NO_COLUMNS = pa.schema([])
Samples = Mapping[str, Mapping[str, bytes]]

keys = st.text("abcXYZ019_-", min_size=1, max_size=12)
fields = st.one_of(
    st.sampled_from(["mp4", "json", "000001.image.jpg", "JPG", "cls", "a-b_c", "0"]),
    st.from_regex(r"[a-z0-9-]{1,6}(\.[a-z0-9_-]{1,6}){0,2}", fullmatch=True),
)
contents = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size),
    st.sampled_from([0, 1, 511, 512, 513, 1024, 3000, 20_000]),
    st.integers(0, 9),
)


def _fit(sample: tuple[str, dict[str, bytes]]) -> bool:
    key, named = sample
    lower = {name.lower() for name in named}
    hidden = any(f"{key}.{n}".startswith("__") and n.endswith("__") for n in named)
    return len(lower) == len(named) and not hidden and not any(n[:2] == "__" for n in named)


samples_of_a_shard = st.lists(
    st.tuples(keys, st.dictionaries(fields, contents, min_size=1, max_size=4)).filter(_fit),
    unique_by=lambda sample: sample[0],
    min_size=1,
    max_size=8,
)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that the test must leave empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def write(scratch: Path, samples: Samples | Sequence[tuple[str, Mapping[str, Any]]]) -> Written:
    shard = ShardWriter(scratch, NO_COLUMNS)
    for key, named in dict(samples).items():
        shard.add(key, named, {})
    return shard.close()


def take(written: Written) -> bytes:
    """The bytes of the tar, which leaves scratch."""
    assert written.path is not None
    data = written.path.read_bytes()
    written.path.unlink()
    return data


def by_tarfile(samples: Samples) -> bytes:
    """What ``tarfile`` writes for the same members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key in sorted(samples, key=lambda key: (order_hash(key), key)):
            for name in sorted(samples[key]):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(samples[key][name])
                info.mode = 0o444
                archive.addfile(info, io.BytesIO(samples[key][name]))
    return out.getvalue()


def rows(written: Written, status: str = OK) -> list[dict[str, Any]]:
    return [row for row in index.decode(written.index).to_pylist() if row["status"] == status]


def open_files() -> int:
    """How many files this process has open, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


# The tar


@settings(max_examples=60)
@given(samples_of_a_shard, st.randoms(use_true_random=False))
def test_any_samples_in_any_order_give_the_bytes_of_tarfile(
    samples: list[tuple[str, dict[str, bytes]]], chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        expected = by_tarfile(dict(samples))
        indexes = set()
        for _ in range(3):
            given_so: list[tuple[str, dict[str, Any]]] = []
            for key, named in samples:
                mixed = list(named.items())
                chance.shuffle(mixed)
                given_so.append((key, {n: _as_any(scratch, data, chance) for n, data in mixed}))
            written = write(scratch, given_so)
            assert written.tar is not None
            data = take(written)
            assert data == expected
            assert (written.tar.digest, written.tar.size) == (sha256(data), len(data))
            indexes.add(written.index)
            chance.shuffle(samples)
        assert len(indexes) == 1
        assert written.samples == len(samples)
        assert written.fields == tuple(sorted({n for _, named in samples for n in named}))
        check_index(written, data, dict(samples))


def _as_any(scratch: Path, data: bytes, chance: random.Random) -> bytes | memoryview | Path:
    kind = chance.randrange(4)
    if kind == 0:
        descriptor, name = tempfile.mkstemp(dir=scratch)
        with open(descriptor, "wb") as file:
            file.write(data)
        return Path(name)
    return memoryview(bytearray(data)) if kind == 1 else data


def check_index(written: Written, data: bytes, samples: Samples) -> None:
    """The index tells where all samples and fields lie, and they lie there."""
    found = rows(written)
    assert [row["key"] for row in found] == sorted(samples, key=lambda k: (order_hash(k), k))
    at = 0
    for row in found:
        assert row["offset"] == at
        at += row["size"]
        assert xxhash.xxh3_64_intdigest(data[row["offset"] : at]) == row["xxh3"]
        named = samples[row["key"]]
        assert [member.name for member in index.members(row["fields"])] == sorted(named)
        for member in index.members(row["fields"]):
            assert data[member.offset : member.offset + member.size] == named[member.name]
    assert not data[at:].strip(b"\0")


@settings(max_examples=40)
@given(samples_of_a_shard)
def test_plain_webdataset_and_tarfile_read_the_same_samples(
    samples: list[tuple[str, dict[str, bytes]]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        written = write(Path(name), samples)
        assert written.path is not None
        order = [row["key"] for row in rows(written)]
        read = list(wds.WebDataset(str(written.path), shardshuffle=False))
        assert [sample["__key__"] for sample in read] == order
        for sample in read:
            named = {n: d for n, d in sample.items() if not n.startswith("__")}
            assert named == {n.lower(): d for n, d in dict(samples)[sample["__key__"]].items()}
        with tarfile.open(written.path, "r:") as archive:
            names = [(member.name, member.isreg(), member.size) for member in archive]
        assert names == [
            (f"{key}.{n}", True, len(dict(samples)[key][n]))
            for key in order
            for n in sorted(dict(samples)[key])
        ]


def _many() -> dict[str, dict[str, bytes]]:
    chance = random.Random(5)
    sizes = [0, 1, 511, 512, 513, 9000]
    return {
        f"{n:05d}{m:04d}": {"jpg": chance.randbytes(chance.choice(sizes)), "cls": b"%d" % n}
        for n in range(30)
        for m in range(30)
    }


def _big() -> dict[str, dict[str, bytes]]:
    chance = random.Random(6)
    sizes = [(1 << 20) - 1024, 1 << 20, 5 << 20, 3, 2 << 20]
    return {f"{n:09d}": {"mp4": chance.randbytes(size)} for n, size in enumerate(sizes)}


@pytest.mark.parametrize("make", [_many, _big], ids=["many small", "few big"])
@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "out of order"])
def test_more_than_one_batch_gives_the_bytes_of_tarfile(
    scratch: Path, make: Callable[[], dict[str, dict[str, bytes]]], ordered: bool
) -> None:
    samples = make()
    order = sorted(samples, key=order_hash, reverse=not ordered)
    written = write(scratch, {key: samples[key] for key in order})
    data = take(written)
    assert written.tar is not None
    assert written.tar.digest == sha256(data)
    assert data == by_tarfile(samples)
    check_index(written, data, samples)


def test_a_big_field_from_a_file_is_copied_and_the_file_kept(scratch: Path, tmp_path: Path) -> None:
    data = random.Random(7).randbytes((9 << 20) + 17)
    file = tmp_path / "video"
    file.write_bytes(data)
    shard = ShardWriter(scratch, NO_COLUMNS)
    shard.add("k", {"mp4": file, "json": b"{}"}, {})
    written = shard.close()
    assert file.read_bytes() == data
    assert take(written) == by_tarfile({"k": {"mp4": data, "json": b"{}"}})


def test_what_becomes_of_a_buffer_after_it_was_added_changes_nothing(scratch: Path) -> None:
    buffer = bytearray(b"frame one")
    shard = ShardWriter(scratch, NO_COLUMNS)
    shard.add("one", {"raw": memoryview(buffer)}, {})
    buffer[:] = b"frame two"
    shard.add("two", {"raw": memoryview(buffer)}, {})
    assert take(shard.close()) == by_tarfile(
        {"one": {"raw": b"frame one"}, "two": {"raw": b"frame two"}}
    )


def test_the_bytes_of_an_array_are_its_content(scratch: Path) -> None:
    flow = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    for array in (flow, flow[:, ::2]):
        shard = ShardWriter(scratch, NO_COLUMNS)
        shard.add("k", {"raw": memoryview(array)}, {})
        assert take(shard.close()) == by_tarfile({"k": {"raw": array.tobytes()}})


@pytest.mark.parametrize("size", [0, 1, 512, 8**7, tar.MAX_MEMBER])
@pytest.mark.parametrize("name", ["a.b", "k" * 90 + ".json.meta"[: 100 - 90]])
def test_a_header_is_that_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    assert tar.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_member_of_8_gib_is_refused(scratch: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="8589934591"):
        tar.header("a.b", tar.MAX_MEMBER + 1)
    file = tmp_path / "huge"
    file.touch()
    os.truncate(file, tar.MAX_MEMBER + 1)
    shard = ShardWriter(scratch, NO_COLUMNS)
    with pytest.raises(ShardError, match="8589934592 bytes"):
        shard.add("k", {"mp4": file}, {})
    shard.abort()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs such a file")
def test_a_file_that_changes_while_it_is_read_is_refused(scratch: Path) -> None:
    shard = ShardWriter(scratch, NO_COLUMNS)
    with pytest.raises(ShardError, match="changed while it was read"):
        # This file says that it has no bytes, and then has some.
        shard.add("k", {"txt": Path("/proc/self/status")}, {})
    shard.abort()


# What is refused


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "a.b",
        ".hidden",
        "../a",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "ä",
        "a\u0301",
        "視頻",
        "a b",
        "a\n",
        "a\0",
        "~",
        "k" * 97,
        "\udc80",
    ],
)
def test_an_unfit_key_is_refused(scratch: Path, key: str) -> None:
    refuse(scratch, key, {"jpg": b"x"})


@pytest.mark.parametrize(
    "field",
    ["", ".", "a.", ".a", "a..b", "../b", "a/b", "ä", "a b", "a\n", "f" * 99, "__key__", "__a__"],
)
def test_an_unfit_field_is_refused(scratch: Path, field: str) -> None:
    refuse(scratch, "key", {field: b"x"})


def test_what_readers_would_hide_is_refused(scratch: Path) -> None:
    refuse(scratch, "__key", {"x__": b"x"})
    refuse(scratch, "key", {"jpg": b"x", "JPG": b"y"})
    refuse(scratch, "key", {})


def refuse(scratch: Path, key: str, named: Mapping[str, bytes]) -> None:
    """The sample is refused with one line, and leaves no trace in the shard."""
    shard = ShardWriter(scratch, NO_COLUMNS)
    shard.add("first", {"jpg": b"first"}, {})
    for _ in range(2):
        with pytest.raises(ShardError) as caught:
            shard.add(key, {"a": b"well-formed", **named} if named else {}, {})
        assert str(caught.value).isprintable()
    shard.add("last", {"jpg": b"last"}, {})
    written = shard.close()
    assert written.samples == 2
    assert take(written) == by_tarfile({"first": {"jpg": b"first"}, "last": {"jpg": b"last"}})


def test_the_longest_name_fits(scratch: Path) -> None:
    samples = {"k" * 96: {"jpg": b"x"}}
    assert take(write(scratch, samples)) == by_tarfile(samples)


def test_a_key_that_is_taken_is_refused_and_leaves_no_trace(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "source"
    file.write_bytes(b"x" * 1024)
    shard = ShardWriter(scratch, NO_COLUMNS)
    shard.add("key", {"jpg": b"first"}, {})
    with pytest.raises(ShardError, match="key"):
        shard.add("key", {"jpg": b"second"}, {})
    with open(file, "rb") as source, pytest.raises(ShardError, match="key"):
        shard.add_span("key", writer.Span(source.fileno(), 0, 1024, (), 0), {})
    with pytest.raises(ShardError, match="key"):
        shard.row("key", {})
    assert take(shard.close()) == by_tarfile({"key": {"jpg": b"first"}})


def test_a_span_beyond_the_end_of_its_source_is_refused(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "source"
    file.write_bytes(b"x" * 1000)
    shard = ShardWriter(scratch, NO_COLUMNS)
    with open(file, "rb") as source, pytest.raises(ShardError, match="shorter than its index"):
        shard.add_span("key", writer.Span(source.fileno(), 0, 1024, (), 0), {})
    shard.abort()


# Tars that are taken over


def test_a_tar_is_taken_over_with_its_index_and_without_a_byte_of_scratch(scratch: Path) -> None:
    columns = pa.schema([("note", pa.string())])
    samples = {f"key{n}": {"jpg": b"%d" % n, "json": b"{}"} for n in range(5)}
    first = ShardWriter(scratch, columns)
    second = ShardWriter(scratch, columns)
    for key, fields in samples.items():
        first.add(key, fields, {"note": "hello"})
    made = first.close()
    assert made.tar is not None
    taken_over = [index.as_row(row, {"note": row["note"]}) for row in rows(made)]
    second.adopt(made.tar, taken_over[::-1])
    second.reject("gone", "http_404", "404 Not Found", {})
    written = second.close()
    assert (written.path, written.tar, written.fields) == (None, made.tar, made.fields)
    assert (written.samples, written.rejects) == (5, 1)
    assert rows(written) == rows(made)
    take(made)


def test_a_tar_that_is_taken_over_has_no_company(scratch: Path) -> None:
    blob = Blob(digest="0" * 64, size=10240)
    for early in (True, False):
        shard = ShardWriter(scratch, NO_COLUMNS)
        if early:
            shard.add("key", {"jpg": b"x"}, {})
        else:
            shard.adopt(blob, [Row("other")])
        with pytest.raises(ShardError, match="has other samples besides"):
            shard.adopt(blob, []) if early else shard.add("key", {"jpg": b"x"}, {})
        shard.abort()


# Shards without a tar, and their end


def test_a_shard_without_samples_has_no_tar(scratch: Path) -> None:
    written = write(scratch, {})
    assert (written.path, written.tar, written.samples, written.fields) == (None, None, 0, ())
    assert index.decode(written.index).num_rows == 0


def test_rejects_are_in_the_index_and_not_in_the_tar(scratch: Path) -> None:
    shard = ShardWriter(scratch, pa.schema([("url", pa.string())]))
    shard.add("good", {"jpg": b"x"}, {"url": "http://a"})
    shard.reject("gone", "http_404", "404 Not Found", {"url": "http://b"})
    shard.reject("bad/key ä", "unfit", "m" * (MAX_MESSAGE + 1), {})
    shard.reject("also", "http_404", "404 Not Found", {"url": "http://c"})
    written = shard.close()
    assert take(written) == by_tarfile({"good": {"jpg": b"x"}})
    assert (written.samples, written.rejects) == (1, 3)
    assert written.reasons == {"http_404": 2, "unfit": 1}
    (good,) = rows(written)
    assert (good["url"], good["reason"], good["message"]) == ("http://a", None, None)
    rejected = rows(written, REJECTED)
    assert [row["key"] for row in rejected] == ["also", "bad/key ä", "gone"]
    assert [row["url"] for row in rejected] == ["http://c", None, "http://b"]
    assert rejected[1]["message"] == "m" * MAX_MESSAGE
    for row in rejected:
        assert {row[name] for name in ("offset", "size", "xxh3", "fields")} == {None}


def test_text_that_is_no_unicode_is_escaped_in_the_index(scratch: Path) -> None:
    shard = ShardWriter(scratch, pa.schema([("title", pa.string())]))
    shard.reject("bad\udc80", "unfit", "half \ud83d", {"title": "ä\udfff"})
    (row,) = rows(shard.close(), REJECTED)
    assert (row["key"], row["message"]) == ("bad\\udc80", "half \\ud83d")
    assert row["title"] == "ä\\udfff"


def test_a_shard_of_rejects_only_has_no_tar(scratch: Path) -> None:
    shard = ShardWriter(scratch, NO_COLUMNS)
    shard.reject("key", "gone", "it is gone", {})
    written = shard.close()
    assert (written.tar, written.samples, written.rejects) == (None, 0, 1)


def test_the_order_of_rejects_changes_nothing_even_of_the_same_key(scratch: Path) -> None:
    rejects = [("b", "x", "m"), ("a", "x", "m"), ("a", "w", "m"), ("a", "x", "l")]
    made = set()
    for turn in range(4):
        shard = ShardWriter(scratch, NO_COLUMNS)
        for key, reason, message in rejects[turn:] + rejects[:turn]:
            shard.reject(key, reason, message, {})
        made.add(shard.close().index)
    assert len(made) == 1


def test_a_table_of_addresses_has_rows_and_no_tar(scratch: Path) -> None:
    shard = ShardWriter(scratch, pa.schema([("url", pa.string())]))
    for n in range(5):
        shard.row(f"{n:09d}", {"url": f"http://host/{n}"})
    written = shard.close()
    assert (written.tar, written.samples) == (None, 5)
    assert sorted(row["url"] for row in rows(written)) == [f"http://host/{n}" for n in range(5)]


def test_a_column_of_a_stage_may_not_take_the_name_of_another() -> None:
    for names in (["key"], ["url", "url"]):
        with pytest.raises(ValueError, match=names[0]):
            index.schema_with(pa.schema([(name, pa.string()) for name in names]))


@pytest.mark.parametrize("state", ["new", "in order", "out of order", "big", "failed", "closed"])
def test_an_aborted_shard_leaves_nothing(scratch: Path, state: str) -> None:
    opened = open_files()
    shard = ShardWriter(scratch, NO_COLUMNS)
    order = sorted(("a", "b", "c"), key=order_hash, reverse=state == "out of order")
    for key in order if state != "new" else []:
        shard.add(key, {"mp4": bytes(3 << 20 if state == "big" else 10)}, {})
    if state == "failed":
        with pytest.raises(FileNotFoundError):
            shard.add("d", {"a": b"x", "mp4": scratch / "absent"}, {})
    if state == "closed":
        shard.close()
    shard.abort()
    shard.abort()
    assert list(scratch.iterdir()) == []
    assert open_files() == opened


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
@pytest.mark.parametrize("size", [10, 3 << 20], ids=["at the end", "on the way"])
def test_a_digest_of_half_the_bytes_is_never_given(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, size: int
) -> None:
    def fail(*_: object) -> bytes:
        raise error

    shard = ShardWriter(scratch, NO_COLUMNS)
    monkeypatch.setattr(os, "preadv", fail)
    shard.add("key", {"mp4": bytes(size)}, {})
    with pytest.raises(type(error)):
        shard.close()
    shard.abort()


@pytest.mark.parametrize("kernel", [True, False], ids=["in the kernel", "through memory"])
def test_a_disk_that_fills_up_while_samples_are_laid_in_order_leaves_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    shard = ShardWriter(scratch, NO_COLUMNS)
    for key in sorted(("a", "b", "c"), key=order_hash, reverse=True):
        shard.add(key, {"mp4": bytes(2 << 20)}, {})
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        shard.close()
    shard.abort()


def test_a_kernel_that_writes_less_than_asked_is_asked_again(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, gathered = os.pwrite, os.pwritev
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, bytes(data)[:700], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: gathered(fd, parts[:1], at))
    samples = {key: {"mp4": key.encode() * 2000, "json": b"{}"} for key in "dcba"}
    assert take(write(scratch, samples)) == by_tarfile(samples)


# The index of a stranger


def _table(**changes: object) -> pa.Table:
    row = {
        "key": "k",
        "status": OK,
        "reason": None,
        "message": None,
        "offset": 0,
        "size": 1024,
        "xxh3": 1,
        "fields": [{"name": "jpg", "offset": 512, "size": 1}],
        **changes,
    }
    return pa.table({n: pa.array([row[n]], index.BASE.field(n).type) for n in row})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


FORGED = {
    "nothing": b"",
    "no parquet": b"PAR1 and no more PAR1",
    "truncated": _parquet(_table())[:-20],
    "no offsets": _parquet(_table().drop_columns(["offset"])),
    "offsets as text": _parquet(
        _table().set_column(4, "offset", pa.array(["0"])),
    ),
    "negative offset": _parquet(_table(offset=-512)),
    "negative size": _parquet(_table(size=-1)),
    "negative offset of a field": _parquet(
        _table(fields=[{"name": "jpg", "offset": -1, "size": 1}])
    ),
    "negative size of a field": _parquet(_table(fields=[{"name": "jpg", "offset": 0, "size": -1}])),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_a_forged_index_is_refused_with_one_line(data: bytes) -> None:
    with pytest.raises(ShardError) as caught:
        index.decode(data)
    assert str(caught.value).isprintable()


def test_the_index_that_the_forgeries_were_made_from_is_accepted() -> None:
    assert index.decode(_parquet(_table())).num_rows == 1
    assert index.decode(_parquet(_table()), ["key", "status"]).column_names == ["key", "status"]
    assert index.decode(_parquet(_table().slice(0, 0))).num_rows == 0


# Reading


SAMPLES: Samples = {
    f"{n:09d}": {
        "jpg": random.Random(n).randbytes([0, 1, 511, 512, 513, 70_000][n % 6]),
        "json": b'{"n":%d}' % n,
        "empty": b"",
    }
    for n in range(20)
}


@pytest.fixture
def reader(store_url: str) -> ShardReader:
    store = Store.open(store_url, create=True)
    shard = ShardWriter(store.backend.scratch(), pa.schema([("n", pa.int64())]))
    for key, named in SAMPLES.items():
        shard.add(key, named, {"n": int(key)})
    shard.reject("reject", "gone", "it is gone", {"n": -1})
    written = shard.close()
    assert written.path is not None
    assert written.tar is not None
    store.put_blob_file(written.path, written.tar, "tar")
    blob = store.put_blob(written.index, "parquet")
    entry = Shard(id="00000", tar=written.tar, index=blob, samples=len(SAMPLES), rejects=1)
    return ShardReader(store, entry)


@pytest.mark.parametrize("wanted", [None, {"json"}, {"jpg", "empty"}, {"empty"}, {"none"}])
@pytest.mark.parametrize("limit", [32 << 20, 1000], ids=["one read", "many reads"])
def test_samples_are_read_back_with_the_fields_asked_for(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch, wanted: set[str] | None, limit: int
) -> None:
    monkeypatch.setattr("reelmill.shards.reader._MAX_READ", limit)
    read = list(reader.samples(wanted))
    assert [sample.key for sample in read] == sorted(SAMPLES, key=order_hash)
    for sample in read:
        named = SAMPLES[sample.key]
        assert sample.fields == {n: d for n, d in named.items() if wanted is None or n in wanted}
        assert sample.columns == {"n": int(sample.key)}


def test_samples_of_some_keys_are_read_alone(reader: ShardReader) -> None:
    assert [sample.key for sample in reader.samples(keys=["000000003"])] == ["000000003"]
    assert [row["reason"] for row in reader.rows(REJECTED)] == ["gone"]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12),
    st.integers(0, 15),
)
def test_coalesced_ranges_cover_all_and_join_no_wider_gap(
    spans: list[tuple[int, int]], gap: int
) -> None:
    ranges = [(start, start + size) for start, size in spans]
    joined = coalesce(ranges, gap)
    assert joined == sorted(joined)
    for start, stop in ranges:
        assert sum(a <= start and stop <= b for a, b in joined) == 1
    for (_, stop), (start, _) in itertools.pairwise(joined):
        assert start - stop > gap
    for a, b in joined:
        inside = sorted(r for r in ranges if a <= r[0] and r[1] <= b)
        assert inside[0][0] == a
        assert max(stop for _, stop in inside) == b
        reached = a
        for start, stop in inside:
            assert start - reached <= gap
            reached = max(reached, stop)


@pytest.mark.parametrize("first", ["a", "c"])
def test_samples_may_lie_in_the_order_of_their_keys(scratch: Path, first: str) -> None:
    keys = sorted("abcde", key=lambda key: (key != first, key))
    shard = ShardWriter(scratch, NO_COLUMNS, "key")
    for key in keys:
        shard.add(key, {"txt": key.encode()}, {})
    written = shard.close()
    with tarfile.open(fileobj=io.BytesIO(take(written))) as archive:
        assert archive.getnames() == [f"{key}.txt" for key in "abcde"]
    assert [row["key"] for row in rows(written)] == list("abcde")


def test_the_order_of_samples_is_that_of_a_keyed_hash() -> None:
    """A value that must never change: it decides where samples lie in all shards."""
    assert order_hash("000010005") == 16887039844629370838
