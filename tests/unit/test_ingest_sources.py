"""Where the rows of a table come from: files, patterns, folders, stores, listings, datasets."""

from __future__ import annotations

import functools
import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reelmill.fetch.urls import normalise
from reelmill.recipe import Recipe
from reelmill.tables import TableError, format_of, open_table
from reelmill.tables.files import expand, locate
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source, ingest_action, open_source

ANY = frozenset({"csv", "parquet", "txt"})


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def read(paths: str | list[str], **options: Any) -> list[dict[str, Any]]:
    table = open_table(paths, **options)
    return [row for _, batch in table.batches() for row in batch.to_pylist()]


def write(folder: Path, *names: str) -> None:
    """CSV files whose one address is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f"url\nhttp://h/{name}\n".encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def names(paths: str | list[str], **options: Any) -> list[str]:
    return [row["url"].removeprefix("http://h/") for row in read(paths, **options)]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.csv", ["a.csv"]),
        ("p-{08..11}.csv", ["p-08.csv", "p-09.csv", "p-10.csv", "p-11.csv"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("x{a,b{1..2}}y", ["xay", "xb1y", "xb2y"]),
        ("{a}{}", ["{a}{}"]),
        ("{a,a}", ["a"]),
        ("{", ["{"]),
        ("{{1,2}", ["{1", "{2"]),
    ],
)
def test_braces(pattern: str, paths: list[str]) -> None:
    assert expand(pattern) == paths


def test_braces_that_stand_for_too_much_are_refused_at_once() -> None:
    with pytest.raises(TableError, match="more than 1,000,000 files"):
        expand("{0..999999999}" * 5)


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    write(tmp_path, "b/2.csv", "b/1.csv.gz", "b/c/3.csv", "b.csv", "b/.hidden.csv", "b/_tmp/4.csv")
    (tmp_path / "b/notes.md").write_text("nothing")
    (tmp_path / "b/more.tar.gz").write_bytes(b"nothing")
    base = str(tmp_path)
    assert names(f"{base}/b") == ["b/1.csv.gz", "b/2.csv", "b/c/3.csv"]
    assert names(f"file://{base}/b") == names(f"{base}/b")
    assert names(f"{base}/b/") == ["b/1.csv.gz", "b/2.csv", "b/c/3.csv"]
    assert names(f"{base}/b/*.csv") == ["b/2.csv"]
    assert names(f"{base}/**/*.csv") == ["b.csv", "b/2.csv", "b/c/3.csv"]
    assert names(f"{base}/b/[0-9].*") == ["b/1.csv.gz", "b/2.csv"]
    assert names(f"{base}/b{{/c/3,}}.csv") == ["b/c/3.csv", "b.csv"]
    assert names(f"{base}/{{b,b/c}}/*.csv") == ["b/2.csv", "b/c/3.csv"]
    assert names([f"{base}/b.csv", f"{base}/b/2.csv", f"{base}/*.csv"]) == ["b.csv", "b/2.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "a[1].csv", "a1.csv", "{1..2}.csv")
    assert names(f"{tmp_path}/a[1].csv") == ["a[1].csv"]
    assert names(f"{tmp_path}/{{1..2}}.csv") == ["{1..2}.csv"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.csv", "no such file"),
        ("*.csv", "no file fits this pattern"),
        ("none/*.csv", "no file fits this pattern"),
        ("{a,b}.csv", "no such file"),
        ("empty", "no file of a known extension is in this folder"),
        ("http://h/*.csv", "nothing can be listed over http"),
    ],
)
def test_what_is_not_there(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match=words):
        read(path if "://" in path else f"{tmp_path}/{path}")


def test_over_http_only_braces_stand_for_several_files() -> None:
    found = locate(["https://h/p-{0..1}.csv?a=[1]&b=?", "https://h/x.csv"], ANY)
    assert [one.path for one in found] == [
        "https://h/p-0.csv?a=[1]&b=?",
        "https://h/p-1.csv?a=[1]&b=?",
        "https://h/x.csv",
    ]


def test_tables_are_read_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path, "p-08.csv", "p-09.csv.gz", "p-10.csv")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert names([f"{base}/p-{{08..10..2}}.csv", f"{base}/p-09.csv.gz"]) == [
            "p-08.csv",
            "p-10.csv",
            "p-09.csv.gz",
        ]
        with pytest.raises(TableError, match=r"p-11\.csv: no such file"):
            read(f"{base}/p-{{10..11}}.csv")
        server.shutdown()


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path: Path) -> None:
    write(tmp_path, "a/1.csv", "other/2.csv")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/aside").symlink_to(tmp_path / "other")
    assert names(f"{tmp_path}/a") == ["a/1.csv", "other/2.csv"]


@pytest.fixture
def bucket() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    yield "memory://ingest-sources"
    files.rm("/ingest-sources", recursive=True)


def test_other_file_systems(bucket: str) -> None:
    for name in ("t/1.csv", "t/2.csv.gz", "t/u/3.csv"):
        with fsspec.open(f"{bucket}/{name}", "wb", compression="infer") as file:
            file.write(f"url\nhttp://h/{name}\n".encode())
    every = ["t/1.csv", "t/2.csv.gz", "t/u/3.csv"]
    assert names(f"{bucket}/t") == every
    assert names(f"{bucket}/t/**/*.csv*") == every
    assert names(f"{bucket}/t/{{u/3,1}}.csv") == ["t/u/3.csv", "t/1.csv"]
    with pytest.raises(TableError, match=r"t/9\.csv: no such file"):
        read(f"{bucket}/t/{{1,9}}.csv")


# --- Several files as one table --------------------------------------------------------------


def test_columns_are_united_by_name_and_types_hold_the_values_of_all(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("url,n,x,empty\na,1,7,\n")
    (tmp_path / "2.csv").write_text("n,url,y,x\n2.5,b,2020-01-01,seven\n")
    table = pa.table({"url": ["c"], "n": pa.array([3], pa.int32()), "tags": [["t"]]})
    pq.write_table(table, tmp_path / "3.parquet")
    (tmp_path / "4.jsonl").write_text('{"url": "d", "n": null, "empty": "word"}\n')
    table = open_table(f"{tmp_path}/*")
    assert {field.name: str(field.type) for field in table.schema} == {
        "url": "string",
        "n": "double",
        "x": "string",
        "empty": "string",
        "y": "date32[day]",
        "tags": "list<element: string>",
    }
    rows = read(f"{tmp_path}/*")
    assert [row["url"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["n"] for row in rows] == [1.0, 2.5, 3.0, None]
    assert [row["x"] for row in rows] == ["7", "seven", None, None]
    assert [row["empty"] for row in rows] == ["", None, None, "word"]
    assert table.format == "csv+jsonl+parquet"


def test_structs_of_several_json_files_have_the_fields_of_all(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps([{"url": "a", "m": {"x": 1}, "l": []}]))
    (tmp_path / "2.json").write_text(json.dumps([{"url": "b", "m": {"y": "t"}, "l": [1.5]}]))
    assert read(f"{tmp_path}/*.json") == [
        {"url": "a", "m": {"x": 1, "y": None}, "l": []},
        {"url": "b", "m": {"x": None, "y": "t"}, "l": [1.5]},
    ]


def test_text_that_does_not_fit_together_stays_text(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("url,n\na,007\n")
    (tmp_path / "2.csv").write_text("url,n\nb,8\n")
    (tmp_path / "3.json").write_text('[{"url": "c", "n": 9}]')
    assert [row["n"] for row in read(f"{tmp_path}/*")] == ["007", "8", "9"]


def test_types_that_do_not_fit_together_are_an_error_that_names_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a"], "n": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"url": ["b"], "n": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(TableError) as caught:
        read(f"{tmp_path}/*")
    assert str(caught.value) == (
        f"{tmp_path}/2.parquet: column 'n' holds string, but int64 in {tmp_path}/1.parquet; "
        "give one of them another name"
    )


def test_rows_that_nobody_wants_are_skipped_in_a_second_pass(tmp_path: Path) -> None:
    for part in range(3):
        rows = [f"{part}-{row}" for row in range(10)]
        path = tmp_path / f"{part}.parquet"
        pq.write_table(pa.table({"url": rows, "n": range(10)}), path, row_group_size=4)
    table = open_table(f"{tmp_path}/*")
    every = [(row, batch.num_rows) for row, batch in table.batches(["url"])]
    assert sum(count for _, count in every) == 30
    some = list(table.batches(wanted=lambda start, stop: start <= 15 < stop))
    assert [(row, batch["url"].to_pylist()) for row, batch in some] == [
        (14, ["1-4", "1-5", "1-6", "1-7"])
    ]


def test_a_table_that_grows_between_passes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("url\na\n")
    table = open_table(str(path))
    assert len(list(table.batches())) == 1
    path.write_text("url\na\nb\n")
    with pytest.raises(TableError, match=r"t\.csv: changed while it was read"):
        list(table.batches())


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams(tmp_path: Path, name: str, kind: Any) -> None:
    table = pa.table(
        {
            "url": pa.array(["a", "b"]).dictionary_encode(),
            "n": pa.array([1, None], pa.int8()),
            "view": pa.array(["x", "y"], pa.string_view()),
        }
    )
    with kind(str(tmp_path / name), table.schema) as writer:
        writer.write_table(table)
    assert read(str(tmp_path / name)) == [
        {"url": "a", "n": 1, "view": "x"},
        {"url": "b", "n": None, "view": "y"},
    ]


@pytest.mark.parametrize("cut", [slice(0, 0), slice(3, None), slice(None, -40), slice(None, 100)])
def test_damaged_arrow(tmp_path: Path, cut: slice) -> None:
    path = tmp_path / "t.arrow"
    table = pa.table({"url": ["a", "b"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(TableError, match=r"t\.arrow: "):
        read(str(path))


def test_text_that_is_no_utf8_in_typed_files_is_refused(tmp_path: Path) -> None:
    bad = pa.array([b"http://h/\xff"]).view(pa.string())
    pq.write_table(pa.table({"url": bad}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match="UTF8"):
        read(str(tmp_path / "t.parquet"))


def test_columns_get_other_names(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("link,text,n\nhttp://h/a,007,1\n")
    (tmp_path / "2.csv").write_text("url,text,n\nhttp://h/b,x,2\n")
    rename = {"link": "url", "text": "caption"}
    table = open_table(f"{tmp_path}/*", rename=rename, strings=("url", "caption"))
    assert table.schema.names == ["url", "caption", "n"]
    assert read(f"{tmp_path}/*", rename=rename) == [
        {"url": "http://h/a", "caption": "007", "n": 1},
        {"url": "http://h/b", "caption": "x", "n": 2},
    ]
    with pytest.raises(TableError, match=r"no column 'txet' to rename \(present: link, text, n"):
        read(f"{tmp_path}/*", rename={"txet": "caption"})
    with pytest.raises(TableError, match="columns 'link' and 'n' would both be 'n'"):
        read(f"{tmp_path}/1.csv", rename={"link": "n"})


# --- Listings --------------------------------------------------------------------------------


def test_a_folder_of_videos_is_a_table_of_them(tmp_path: Path) -> None:
    for name in ("b.MP4", "a/ü 1#.mkv", "a/no.doc", ".x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, ns=(0, 1_600_000_000_123_456_000))
    for options in ({}, {"format": "videos"}):
        assert read(f"file://{tmp_path}", **options) == read(str(tmp_path), **options)
        table = open_table(str(tmp_path), **options)
        assert table.format == "videos"
        rows = read(str(tmp_path), **options)
        root = tmp_path.as_uri()
        assert [row["url"] for row in rows] == [f"{root}/a/%C3%BC%201%23.mkv", f"{root}/b.MP4"]
        assert all(normalise(row["url"]) == row["url"] for row in rows)
        assert [row["bytes"] for row in rows] == [5, 5]
        assert str(rows[0]["modified"]) == "2020-09-13 12:26:40.123456+00:00"
        assert "etag" not in rows[0]
    (tmp_path / "b.MP4").write_bytes(b"123456")
    assert open_table(str(tmp_path)).digest() != table.digest()
    assert read(f"{tmp_path}/*.MP4", rename={"bytes": "size"})[0]["size"] == 6


def test_listings_in_a_store_of_objects(bucket: str) -> None:
    for name in ("v/2.webm", "v/1.mp4", "v/d/3.mov"):
        fsspec.filesystem("memory").pipe(f"/ingest-sources/{name}", b"123")
    rows = read(f"{bucket}/v")
    root = "memory:///ingest-sources/v"
    assert [row["url"] for row in rows] == [f"{root}/{n}" for n in ("1.mp4", "2.webm", "d/3.mov")]
    assert {row["bytes"] for row in rows} == {3}


def test_buckets_tell_more_of_their_objects(s3_url: str) -> None:
    files, inner = fsspec.core.url_to_fs(s3_url)
    for name in ("v/1.mp4", "v/d/2.mp4", "t/1.csv", "t/2.csv"):
        files.pipe(f"{inner}/{name}", f"url\n{name}\n".encode())
    rows = read(f"{s3_url}/v")
    assert [row["url"] for row in rows] == [f"{s3_url}/v/1.mp4", f"{s3_url}/v/d/2.mp4"]
    assert {row["bytes"] for row in rows} == {12, 14}
    assert all(row["modified"].year > 2000 and len(row["etag"]) == 32 for row in rows)
    assert open_table(f"{s3_url}/v/**").digest() == open_table(f"{s3_url}/v/").digest()
    for pattern in ("t", "t/*.csv", "t/{1,2}.csv"):
        assert [row["url"] for row in read(f"{s3_url}/{pattern}")] == ["t/1.csv", "t/2.csv"]
    with pytest.raises(TableError, match=r"9\.csv: no such file"):
        read(f"{s3_url}/t/9.csv")
    with pytest.raises(TableError, match="no file fits this pattern"):
        read(f"{s3_url}/none/*.csv")


def test_tars_are_rows_of_a_webdataset_and_have_a_shard_each(tmp_path: Path) -> None:
    (tmp_path / "00.tar").write_bytes(b"x" * 10240)
    (tmp_path / "01.tar").write_bytes(b"x" * 10240)
    pattern = f"{tmp_path}/{{00..01}}.tar"
    table = open_table(pattern)
    assert (table.format, table.schema.names) == ("webdataset", ["url", "bytes", "modified"])
    assert [row["url"][-7:] for row in read(pattern)] == ["/00.tar", "/01.tar"]
    remote = read("https://h/{00..11}.tar")
    assert remote[11] == {"url": "https://h/11.tar"}
    assert len(remote) == 12
    with pytest.raises(TableError, match=r"02\.tar: no such file"):
        open_table(f"{tmp_path}/{{00..02}}.tar")
    folder = Source(path=str(tmp_path))
    assert folder.settled(open_source(folder)).rows_per_shard == 1
    assert Source(path=pattern).effective()["rows_per_shard"] == 1
    assert Source(path="x.csv").effective()["rows_per_shard"] == 100
    assert Source(path=pattern, rows_per_shard=7).effective()["rows_per_shard"] == 7


def test_a_long_listing_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"1")
    table = open_table("https://h/{00000..17999}.mp4")
    for _ in range(2):
        placed = [(row, batch.num_rows) for row, batch in table.batches(["url"])]
        assert placed == [(0, 8192), (8192, 8192), (16384, 1616)]


def test_a_folder_of_two_minds_must_be_told(tmp_path: Path) -> None:
    write(tmp_path, "t.csv")
    (tmp_path / "v.mp4").write_bytes(b"1")
    with pytest.raises(TableError, match="holds csv and videos; say which with 'format'"):
        open_table(str(tmp_path))
    assert names(str(tmp_path), format="csv") == ["t.csv"]
    assert len(read(str(tmp_path), format="videos")) == 1


def test_formats_that_paths_tell() -> None:
    assert format_of("a/{0..9}.csv.gz") == "csv"
    assert format_of(["s3://b/x.tar", "y.tar"]) == "webdataset"
    assert format_of("v/*.mp4") == "videos"
    assert format_of(["a.csv", "b.parquet"]) is None
    assert format_of("folder") is None


# --- Datasets of the Hugging Face hub --------------------------------------------------------

CARD = """---
license: mit
configs:
- config_name: small
  data_files: small.csv
- config_name: default
  data_files:
  - {split: train, path: "data/train-*.csv"}
  - split: test
    path: [data/test.csv, "data/{x,y}.csv"]
---
# A dataset
"""


def test_a_downloaded_dataset_is_the_files_of_its_default_configuration(tmp_path: Path) -> None:
    write(tmp_path, "small.csv", "data/train-0.csv", "data/train-1.csv", "data/test.csv", "z.csv")
    write(tmp_path, "data/x.csv", "data/y.csv", "data/other.csv")
    (tmp_path / "README.md").write_text(CARD)
    every = ["train-0", "train-1", "test", "x", "y"]
    assert names(str(tmp_path)) == [f"data/{name}.csv" for name in every]
    (tmp_path / "README.md").write_text(CARD.replace("small.csv", "small.csv\n  default: true"))
    assert names(str(tmp_path)) == ["small.csv"]
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_dir: data\n---\n")
    assert len(names(str(tmp_path))) == 6
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: {a: z.csv}\n---\n")
    assert names(str(tmp_path)) == ["z.csv"]
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert len(names(str(tmp_path))) == 8


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("configs: [{data_files: ../secret.csv}]", "no path in the folder"),
        ("configs: [{data_files: '{..,x}/secret.csv'}]", "no path in the folder"),
        ("configs: [{data_files: /etc/passwd}]", "no path in the folder"),
        ("configs: [{data_files: 's3://other/x.csv'}]", "no path in the folder"),
        ("configs: [{data_files: [[[[x]]]]}]", "no path in the folder"),
        ("configs: [{data_dir: .., data_files: x.csv}]", "no path in the folder"),
        ("configs: x", "not a list of mappings"),
        ("a: &a [x]\nconfigs: *a", "aliases"),
        ("configs: [" + "[" * 5000, "not valid YAML"),
        ("configs: [}", "not valid YAML"),
        ("configs: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("configs: [{data_files: none.csv}]", "no such file"),
    ],
)
def test_cards_of_strangers(tmp_path: Path, front: str, words: str) -> None:
    folder = tmp_path / "dataset"
    write(folder, "x.csv")
    write(tmp_path, "secret.csv")
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    with pytest.raises(TableError, match=words):
        read(str(folder))


# --- Sources ---------------------------------------------------------------------------------


def test_a_recipe_names_several_paths_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "b.csv")
    recipe = Recipe.build(
        store="store",
        sources={"urls": {"path": ["a.csv", "b.csv", "s3://bucket/x.csv"]}},
        datasets={"videos": {"stage": "download", "from": "urls"}},
        stages=Stages(),
        source_model=Source,
        base=tmp_path,
    )
    source = recipe.sources["urls"]
    assert isinstance(source, Source)
    assert source.paths == (f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", "s3://bucket/x.csv")


def test_action_keys_hold_what_decides_over_rows_and_no_paths(tmp_path: Path) -> None:
    def key(**source: Any) -> str:
        return ingest_action(Source(**source), "0" * 64, None).key

    assert key(path=["a.csv", "b.csv"]) == key(path="c.csv") == key(path="c.csv", format="csv")
    others = [
        key(path="a.tsv"),
        key(path="a.csv", columns={"link": "url"}),
        key(path="a.csv", removed="drop"),
        key(path="a.csv", rows_per_shard=99),
    ]
    assert len({key(path="a.csv"), *others}) == 5
    assert key(path="a.csv", rows_per_shard=100) == key(path="a.csv")


@pytest.mark.parametrize(
    "source",
    [
        {"path": ""},
        {"path": []},
        {"path": ["a.csv", ""]},
        {"path": "a.csv", "columns": {"a": "x", "b": "x"}},
        {"path": "a.csv", "removed": "maybe"},
    ],
)
def test_sources_that_make_no_sense(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Source(**source)
