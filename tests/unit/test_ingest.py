from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import sha256
from reelmill.errors import StageError
from reelmill.shards import index
from reelmill.store.model import Manifest
from reelmill.tables import TableError
from reelmill.tasks.ingest import Ingested, Source, ingest, ingest_action


class Tables:
    """Ingests of tables in one folder; remembers the blobs that they made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: dict[str, bytes] = {}

    def ingest(self, text: str, base: Manifest | None = None, **source: object) -> Ingested:
        path = self.folder / "table.csv"
        path.write_text(text)
        return self.read(Source(path=str(path), **source), base)

    def read(self, source: Source, base: Manifest | None = None) -> Ingested:
        def put(data: bytes) -> None:
            self.blobs[sha256(data)] = data

        found = ingest(source, base, self.blobs.__getitem__, put)
        if found.removed is not None:
            put(found.removed)
        return found

    def rows(self, manifest: Manifest) -> list[dict[str, object]]:
        tables = [index.decode(self.blobs[shard.index.digest]) for shard in manifest.shards]
        return [row for table in tables for row in table.to_pylist()]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


def urls(*numbers: int) -> str:
    return "url\n" + "".join(f"http://h.example/{n}.mp4\n" for n in numbers)


def test_rows_are_keyed_by_shard_and_place(tables: Tables) -> None:
    found = tables.ingest(urls(*range(5)), rows_per_shard=2)
    assert [row["key"] for row in tables.rows(found.manifest)] == [
        "000000000",
        "000000001",
        "000010000",
        "000010001",
        "000020000",
    ]
    assert [shard.samples for shard in found.manifest.shards] == [2, 2, 1]


def test_spellings_of_one_address_are_one_row_and_their_spans_are_joined(tables: Tables) -> None:
    found = tables.ingest(
        "url,s,who\n"
        "http://h.example/a.mp4,0-2.5,first\n"
        "HTTP://H.example:80/a.mp4,10-12; 0-2.5,second\n"
        "http://h.example/b.mp4,,third\n",
        spans="s",
    )
    first, second = tables.rows(found.manifest)
    spans = [(float(span["start"]), float(span["end"])) for span in first["spans"]]
    assert spans == [(0.0, 2.5), (10.0, 12.0)]
    assert (first["duplicates"], first["who"]) == (1, "first")
    assert second["spans"] == []


def test_other_columns_are_carried_with_their_types_and_never_shadow_ours(tmp_path: Path) -> None:
    table = pa.table(
        {
            "link": ["http://h.example/a.mp4"],
            "views": pa.array([2**40], pa.int64()),
            "key": ["theirs"],
            "tags": [["a", "b"]],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    tables = Tables(tmp_path)
    found = tables.read(Source(path=str(tmp_path / "t.parquet"), url="link"))
    (row,) = tables.rows(found.manifest)
    assert row["key"] == "000000000"
    assert row["table_key"] == "theirs"
    assert (row["views"], row["tags"]) == (2**40, ["a", "b"])


def test_unusable_rows_are_rejects_with_a_key_and_a_reason(tables: Tables) -> None:
    found = tables.ingest(
        "url,s\nhttp://h.example/a.mp4,5-1\nftp://h.example/b,\n,\nhttp://h.example/c.mp4,1-2\n",
        spans="s",
    )
    rows = {row["key"]: (row["status"], row["reason"]) for row in tables.rows(found.manifest)}
    assert rows == {
        "000000000": ("rejected", "bad_spans"),
        "000000001": ("rejected", "bad_url"),
        "000000002": ("rejected", "bad_url"),
        "000000003": ("ok", None),
    }
    (shard,) = found.manifest.shards
    assert (shard.samples, shard.rejects) == (1, 3)


def test_a_table_of_no_use_at_all_is_an_error(tables: Tables) -> None:
    with pytest.raises(StageError, match="no row can be used; the first is 'ftp://x/y'"):
        tables.ingest("url\nftp://x/y\n")
    with pytest.raises(TableError, match="no column 'url'"):
        tables.ingest("link\nhttp://h.example/a.mp4\n")


def test_growth_adds_a_generation_and_leaves_the_old_ones_alone(tables: Tables) -> None:
    old = tables.ingest(urls(1, 2, 3), rows_per_shard=2).manifest
    grown = tables.ingest(urls(9, 3, 2, 1, 8), old, rows_per_shard=2)
    assert grown.manifest.generations[0] == old.generations[0]
    assert (grown.new, grown.gone) == (2, 0)
    rows = tables.rows(grown.manifest)
    assert [(row["key"], row["url"]) for row in rows[3:]] == [
        ("000020000", "http://h.example/9.mp4"),
        ("000020001", "http://h.example/8.mp4"),
    ]


def test_a_rejected_row_that_was_mended_comes_in_with_the_next_growth(tables: Tables) -> None:
    old = tables.ingest("url,s\nhttp://h.example/a.mp4,5-1\nhttp://h.example/b.mp4,\n", spans="s")
    same = tables.ingest(
        "url,s\nhttp://h.example/a.mp4,5-1\nhttp://h.example/b.mp4,\n", old.manifest, spans="s"
    )
    assert same.manifest == old.manifest
    mended = tables.ingest(
        "url,s\nhttp://h.example/a.mp4,1-5\nhttp://h.example/b.mp4,\n", old.manifest, spans="s"
    )
    assert mended.new == 1
    assert tables.rows(mended.manifest)[-1]["status"] == "ok"


@settings(max_examples=40)
@given(
    steps=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=5),
    size=st.integers(1, 5),
)
def test_however_a_table_grows_every_address_is_in_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[int]], size: int
) -> None:
    tables = Tables(tmp_path_factory.mktemp("t"))
    base = None
    for step in steps:
        base = tables.ingest(urls(*step), base, rows_per_shard=size).manifest
    rows = tables.rows(base)
    assert len({row["url"] for row in rows}) == len(rows) == len(set().union(*map(set, steps)))
    assert len({row["key"] for row in rows}) == len(rows)
    ids = [shard.id for shard in base.shards]
    assert ids == [f"{number:05d}" for number in range(len(ids))], "shard numbers have a gap"


def test_the_path_of_a_table_is_no_part_of_the_action(tables: Tables) -> None:
    one, two = Source(path="a.csv"), Source(path="b.csv")
    assert ingest_action(one, "0" * 64, None).key == ingest_action(two, "0" * 64, None).key
    other = Source(path="a.csv", rows_per_shard=7)
    assert ingest_action(other, "0" * 64, None).key != ingest_action(one, "0" * 64, None).key


def test_spans_are_held_to_the_microsecond(tables: Tables) -> None:
    found = tables.ingest(
        "url,s\nhttp://h.example/a.mp4,0-1.12345678\nhttp://h.example/b.mp4,1-1.00000001\n",
        spans="s",
    )
    first, second = tables.rows(found.manifest)
    assert [str(span["end"]) for span in first["spans"]] == ["1.123457"]
    assert (second["status"], second["reason"]) == ("rejected", "bad_spans")


def test_columns_whose_new_names_are_taken_too_get_others(tables: Tables) -> None:
    found = tables.ingest("url,key,table_key\nhttp://h.example/a.mp4,1,2\n")
    (row,) = tables.rows(found.manifest)
    assert (row["table_table_key"], row["table_key"]) == (1, 2)


def test_times_finer_than_microseconds_are_carried_as_text(tmp_path: Path) -> None:
    moment = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    table = pa.table({"url": ["http://h.example/a.mp4"], "at": moment})
    pq.write_table(table, tmp_path / "t.parquet")
    tables = Tables(tmp_path)
    found = tables.read(Source(path=str(tmp_path / "t.parquet")))
    assert tables.rows(found.manifest)[0]["at"] == "2023-11-14 22:13:20.123456789"
