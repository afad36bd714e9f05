"""Tables of addresses: every format, in bounded memory, and one clear line for what is none."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.errors import ReelmillError
from reelmill.tables import TableError, formats, open_table, parse_spans

ROWS = [{"url": "http://h/a", "n": 1}, {"url": "http://h/b", "n": 2}]
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        if name.endswith(".gz"):
            data = gzip.compress(data)
        elif name.endswith(".zst"):
            data = pa.compress(data, "zstd", asbytes=True)
        path.write_bytes(data)
        return str(path)

    return write


def batches(path: str | list[str], **options: Any) -> list[pa.RecordBatch]:
    placed = list(open_table(path, **options).batches())
    rows = [row for row, _ in placed]
    counts = [batch.num_rows for _, batch in placed]
    assert rows == [sum(counts[:place]) for place in range(len(counts))]
    return [batch for _, batch in placed]


def read(path: str | list[str], **options: Any) -> list[dict[str, Any]]:
    return [row for batch in batches(path, **options) for row in batch.to_pylist()]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "url,n\nhttp://h/a,1\nhttp://h/b,2\n"),
        ("t.tsv", "url\tn\nhttp://h/a\t1\nhttp://h/b\t2\n"),
        ("t.json", json.dumps(ROWS, indent=2)),
        ("t.json", " [ " + ",\r\n".join(map(json.dumps, ROWS)) + "]\n"),
        ("t.jsonl", "\n\n" + "\n \n".join(map(json.dumps, ROWS))),
        ("t.ndjson", "\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
        ("T.JSONL", "\ufeff" + "\n".join(map(json.dumps, ROWS))),
        ("t.json", "\ufeff" + json.dumps(ROWS)),
        ("t.csv", "\ufeffurl,n\r\nhttp://h/a,1\r\nhttp://h/b,2\r\n"),
    ],
)
def test_formats(make: Make, name: str, content: str, compression: str) -> None:
    if compression == ".GZ":
        path = make(name + ".x", gzip.compress(content.encode()))
        path = str(Path(path).rename(path.removesuffix("x") + "GZ"))
    else:
        path = make(name + compression, content)
    assert read(path) == ROWS


def test_parquet_has_the_types_it_was_written_with(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": pa.array(["a", "b"]).dictionary_encode(),
            "n": pa.array([1, None], pa.int8()),
            "spans": [[[0.0, 2.5]], []],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (batch,) = batches(str(tmp_path / "t.parquet"))
    assert batch.schema.field("url").type == pa.string()
    assert batch.schema.field("n").type == pa.int8()
    assert batch.column("spans").to_pylist() == [[[0.0, 2.5]], []]


def test_txt_skips_blanks_and_comments(make: Make) -> None:
    path = make("t.txt", "\ufeff# a list\nhttp://h/a\r\n\n  \n  # more\n  http://h/b#frag")
    assert read(path) == [{"url": "http://h/a"}, {"url": "http://h/b#frag"}]


def test_a_format_can_be_named(make: Make) -> None:
    assert read(make("list", "http://h/a\n"), format="txt") == [{"url": "http://h/a"}]
    assert read(make("list.gz", "http://h/a\n"), format="TXT") == [{"url": "http://h/a"}]


def test_other_file_systems() -> None:
    with fsspec.open("memory://tables/t.csv.gz", "wb") as file:
        file.write(gzip.compress(b"url\nhttp://h/a\n"))
    assert read("memory://tables/t.csv.gz") == [{"url": "http://h/a"}]
    assert len(open_table("memory://tables/t.csv.gz").digest()) == 64


def test_csv_types_are_those_of_the_whole_table(make: Make) -> None:
    early = "1,2,,1,2020-01-01,true,00012,,2020-01-01T00:00:00,NA\n"
    late = "3,2.5,word,x,2020-01-02,false,00013,,2020-01-01T10:00:00,nan\n"
    header = "url,float,late,mixed,date,bool,id,nothing,time,na\n"
    path = make("t.csv", header + early * 200_000 + late)
    found = batches(path)
    assert len(found) > 1
    assert {str(field.type) for batch in found for field in batch.schema} == {
        *("string", "double", "date32[day]", "bool", "timestamp[s]")
    }
    assert found[-1].slice(found[-1].num_rows - 1).to_pylist() == [
        {
            "url": "3",
            "float": 2.5,
            "late": "word",
            "mixed": "x",
            "date": date(2020, 1, 2),
            "bool": False,
            "id": "00013",
            "nothing": "",
            "time": datetime(2020, 1, 1, 10),
            "na": "nan",
        }
    ]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (" 12 ", "int64"),
        ("-3", "int64"),
        ("1e3", "double"),
        ("12345678901234567890", "string"),
        ("007", "string"),
        ("0.5", "double"),
        ("True", "bool"),
        ("tRue", "string"),
        ("2020-01-01", "date32[day]"),
        ("2020-01-01T00:00:00Z", "timestamp[s, tz=UTC]"),
        ("2020-01-01 00:00:00.25", "timestamp[ns]"),
        ("0-2.5;10-12", "string"),
        ("00:01:02", "string"),
    ],
)
def test_csv_types(make: Make, cell: str, kind: str) -> None:
    (batch,) = batches(make("t.csv", f"url,x\na,{cell}\nb,\n"))
    assert str(batch.schema.field("x").type) == kind


def test_named_columns_stay_text(make: Make) -> None:
    path = make("t.csv", "url,key\n1,2\n")
    assert read(path, strings=["url", "key"]) == [{"url": "1", "key": "2"}]
    assert read(make("t.jsonl", '{"url": "x", "key": 2}'), strings=["key"])[0]["key"] == "2"


def test_csv_quotes(make: Make) -> None:
    path = make("t.csv", 'url,caption\na,"one, ""two""\nthree"\nb,5" screen\n')
    assert [row["caption"] for row in read(make("u.csv", 'url,caption\nb,5" screen\n'))] == [
        '5" screen'
    ]
    with pytest.raises(TableError, match="never closed"):
        read(path)
    assert read(make("v.csv", 'url,caption\na,"one, ""two""\nthree"\n'))[0]["caption"] == (
        'one, "two"\nthree'
    )


def test_an_open_quote_does_not_swallow_rows(make: Make) -> None:
    with pytest.raises(TableError, match="never closed"):
        read(make("t.csv", 'url,caption\na,"x\nb,y\nc,z\n'))
    assert len(read(make("t.tsv", 'url\tcaption\na\t"x\nb\ty"\nc\tz\n'))) == 3


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("[", "]"), ('{"a":', "}"), ('{"]]":\n[', "]}"), ('["\\\\\\"]",[', "]]")],
)
def test_json_that_is_nested_without_end_is_refused(make: Make, opening: str, closing: str) -> None:
    """Arrow would end the process of it."""
    deep = f'{{"url": "http://h/a", "x": {opening * 100_000}1{closing * 100_000}}}\n'
    with pytest.raises(TableError, match="nested deeper than 100 levels"):
        read(make("t.jsonl", deep))


@given(st.lists(st.text(st.sampled_from('[]{}"\\ a'))), st.integers(0, 40))
def test_brackets_in_text_are_no_depth(texts: list[str], depth: int) -> None:
    value: Any = texts
    for _ in range(depth):
        value = {"]{": value}
    line = json.dumps({"url": "u", "x": value}).encode() + b"\n"
    assert formats._depth(line * 3) == depth + 2


def test_json_types_are_those_of_the_whole_table(make: Make) -> None:
    padding = "x" * 1000
    early = {"url": "a", "n": 1, "s": None, "t": "2020-01-01T00:00:00", "spans": [], "p": padding}
    late = {"url": "b", "n": 1.5, "s": "word", "t": "noon", "spans": [[0, 2.5]], "new": {"x": 1}}
    rows = [early] * 9000 + [late]
    for path in (
        make("t.jsonl", "\n".join(map(json.dumps, rows))),
        make("t.json", json.dumps(rows)),
    ):
        found = batches(path)
        assert len(found) > 1
        assert len({batch.schema for batch in found}) == 1
        got = [row for batch in found for row in batch.to_pylist()]
        assert got[0] == {**early, "new": None}
        assert got[-1] == {**late, "p": None}
        assert len(got) == len(rows)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "no rows; expected a header line and at least one row"),
        ("t.csv", "url,n\n", "no rows; expected a header line"),
        ("t.csv.gz", "url,n\n", "no rows"),
        ("t.tsv", "url", "no rows"),
        ("t.csv", "\n \n", "no rows"),
        ("t.txt", "", "no rows; expected one URL a line"),
        ("t.txt", "# nothing\n\n", "no rows"),
        ("t.json", "", "no rows; expected an array"),
        ("t.json", " [ ] ", "no rows; expected an array"),
        ("t.jsonl", "\n\n", "no rows; expected one object a line"),
        ("t.parquet", "", ""),
        ("t.csv", "url,n\na\n", "Expected 2 columns, got 1"),
        ("t.csv", "url,url\na,b\n", "column 'url' twice"),
        ("t.csv", b"url,n\na,\xff\n", "UTF8"),
        ("t.txt", b"http://h/\xff\n", "utf-8"),
        ("t.txt", "a" * (18 << 20), "longer than 16 MiB"),
        ("t.json", '{"url": "a"}', "expected [ after object 0, an array of objects"),
        ("t.json", '[{"url": "a"}', "not closed after object 1"),
        ("t.json", '[{"url": "a"},', "not closed"),
        ("t.json", '[{"url": "a"} {"url": "b"}]', "expected , or ] after object 1"),
        ("t.json", '[{"url": "a"},]', "expected { after object 1"),
        ("t.json", '["a"]', "expected { or ] after object 0"),
        ("t.json", '[{"url": "a"}] x', "expected the end after object 1"),
        ("t.json", '[{"url": "a"}, {"url": ]', "object 2 is garbled"),
        ("t.json", '[{"x": ' + "[" * 200_000, "recursion"),
        ("t.jsonl", '{"url": "a"}\n{"url": \n', "in row 2"),
        ("t.jsonl", '{"n": "a"}\n{"n": 1}\n', "changed from string to number in row 2"),
        ("t.jsonl", b'{"n": "\xff"}\n', "utf-8"),
        ("t.jsonl", '["a"]\n', ""),
        ("t.jsonl", '{"url": [1]}\n', "column 'url' holds list"),
        ("t.parquet", "PAR1 no PAR1", ""),
    ],
)
def test_bad_tables(make: Make, name: str, content: str | bytes, words: str) -> None:
    path = make(name, content)
    with pytest.raises(TableError) as caught:
        batches(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert words in text
    assert "\n" not in text
    assert len(text) < 500
    assert isinstance(caught.value, ReelmillError)


def test_errors_come_when_the_table_is_opened_or_its_schema_is_asked_for(
    make: Make, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match="no such file"):
        open_table(str(tmp_path / "none.csv"))
    with pytest.raises(TableError, match="no rows"):
        open_table(make("t.csv", "")).require(["url"])
    with pytest.raises(TableError, match=r"unknown extension '\.xls'; known are csv, tsv, txt"):
        open_table(make("t.xls", "x"))
    with pytest.raises(TableError, match="unknown format 'xml'"):
        open_table(make("t.csv", "x"), format="xml")
    with pytest.raises(TableError, match="unpack"):
        open_table(make("t.parquet.gz", "x"))
    with pytest.raises(TableError, match="nosuch"):
        open_table("nosuch://t.csv")
    with pytest.raises(TableError, match="no file of jsonl is in this folder"):
        open_table(str(tmp_path), format="jsonl")


@pytest.mark.parametrize("cut", [slice(None, -12), slice(3, None)])
def test_damaged_compression(make: Make, tmp_path: Path, cut: slice) -> None:
    content = "url\n" + "".join(f"http://h/{i:x}\n" for i in range(100_000))
    for name in ("t.csv.gz", "t.csv.zst", "t.txt.gz", "t.txt.zst"):
        path = Path(make(name, content))
        path.write_bytes(path.read_bytes()[cut])
        with pytest.raises(TableError):
            batches(str(path))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.gz", "t.json.gz", "t.txt.gz"])
def test_memory_is_bounded(make: Make, name: str) -> None:
    one = {"url": "http://h/" + "a" * 200, "caption": "b" * 800}
    row = {
        "csv": ",".join(one.values()),
        "txt": one["url"] + "?" + one["caption"],
    }.get(name.split(".")[1], json.dumps(one))
    count = 100_000
    content = "\n".join([row] * count)
    if "csv" in name:
        content = "url,caption\n" + content
    elif ".json." in name:
        content = "[" + content.replace("\n", ",") + "]"
    path = make(name, content)
    before = pa.total_allocated_bytes()
    rows = peak = 0
    for _, batch in open_table(path).batches():
        rows += batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == count
    assert peak < len(content) // 3


def test_digests_are_of_what_files_hold_and_not_of_their_names(make: Make) -> None:
    one, other = make("t.csv", "url\na\n"), make("u.csv", "url\nb\n")
    assert open_table(one).digest() == hashlib.sha256(b"url\na\n").hexdigest()
    both = open_table([one, other]).digest()
    assert both == open_table([make("x.csv", "url\na\n"), make("y.csv", "url\nb\n")]).digest()
    assert both != open_table([other, one]).digest()
    gone = open_table(one)
    Path(one).unlink()
    with pytest.raises(TableError, match="no such file"):
        gone.digest()


def test_require(make: Make) -> None:
    path = make("t.csv", "url,n,caption\na,1,x\n")
    table = open_table(path)
    table.require(["caption", "url"])
    with pytest.raises(TableError) as caught:
        table.require(["url", "captoin"])
    assert str(caught.value) == (
        f"{path}: no column 'captoin'; did you mean 'caption'? (present: url, n, caption)"
    )
    with pytest.raises(TableError, match=r"no column 'zzz' \(present"):
        table.require(["zzz"])


D = Decimal


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("[]", []),
        ("0-2.5;10-12", [(D(0), D("2.5")), (D(10), D(12))]),
        (" 0 - 2.5 ; 10-12; ", [(D(0), D("2.5")), (D(10), D(12))]),
        ("[[0,2.5],[10,12]]", [(D(0), D("2.5")), (D(10), D(12))]),
        ('[["1:00", 61]]', [(D(60), D(61))]),
        ("00:01:02.5-00:01:10", [(D("62.5"), D(70))]),
        ("59:59.999-1:00:00", [(D("3599.999"), D(3600))]),
        ("90:00-91:00", [(D(5400), D(5460))]),
        ([[0.1, 0.3]], [(D("0.1"), D("0.3"))]),
        ([(0, D("1.5"))], [(D(0), D("1.5"))]),
        ([[5, 6], [0, 9]], [(D(5), D(6)), (D(0), D(9))]),
        ([[-0.0, 1]], [(D(0), D(1))]),
        ("[[1e-3, 1]]", [(D("0.001"), D(1))]),
    ],
)
def test_parse_spans(value: object, spans: list[tuple[Decimal, Decimal]]) -> None:
    assert parse_spans(value) == spans


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("abc", "start and an end"),
        ("1", "start and an end"),
        ("-1-2", "start and an end"),
        ("0-", "not ''"),
        ("1e3-2e3", "not '1e3'"),
        ("\u0661-\u0662", "a time is"),
        ("2-1", "ends after it starts, unlike 2-1"),
        ("1-1", "ends after"),
        ("1:60-2:00", "below 60"),
        ("1:60:00-2:00:00", "below 60"),
        ("1:2:3:4-5", "not '1:2:3:4'"),
        ("[[0,2.5]", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[0, 2.5]", "start and an end"),
        ("[[0, NaN]]", "from 0 to"),
        ("[[0, Infinity]]", "from 0 to"),
        ("[[0, 1e999999999]]", "from 0 to"),
        ("[[1e-999999999, 1]]", "decimals"),
        ("[[true, 2]]", "not True"),
        ("[[null, 2]]", "not None"),
        ([[float("nan"), 1]], "from 0 to"),
        ([[0, float("inf")]], "from 0 to"),
        ([[-1, 1]], "from 0 to"),
        ([[0, 1, 2]], "start and an end"),
        (["01"], "start and an end"),
        ([{"start": 0}], "start and an end"),
        (5, "pairs"),
        ({"a": 1}, "pairs"),
    ],
)
def test_bad_spans(value: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_spans(value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


_times = st.decimals(min_value=0, max_value=10**6, places=3)


@given(st.lists(st.tuples(_times, _times).filter(lambda pair: pair[0] < pair[1]), max_size=5))
def test_all_spellings_of_spans_agree(spans: list[tuple[Decimal, Decimal]]) -> None:
    def clock(time: Decimal) -> str:
        whole = int(time)
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60 + time % 1:06.3f}"

    pairs = [[float(start), float(end)] for start, end in spans]
    assert parse_spans(spans) == spans
    assert parse_spans(pairs) == spans
    assert parse_spans(json.dumps(pairs)) == spans
    assert parse_spans(";".join(f"{start}-{end}" for start, end in spans)) == spans
    assert parse_spans(";".join(f"{clock(start)}-{clock(end)}" for start, end in spans)) == spans


@given(
    st.one_of(st.text(), st.text(alphabet="0123456789.:-;[], e"), st.lists(st.lists(st.floats())))
)
def test_parse_spans_returns_spans_or_raises_value_error(value: object) -> None:
    try:
        spans = parse_spans(value)
    except ValueError:
        return
    assert all(0 <= start < end and end.is_finite() for start, end in spans)
