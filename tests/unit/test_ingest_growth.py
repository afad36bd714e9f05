"""Ingests of tables that do not fit in memory: what comes of them, however they grow and shrink."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import sha256
from reelmill.errors import Rejected, StageError
from reelmill.fetch.urls import NORMAL, normalise
from reelmill.flows.drive import prepare
from reelmill.recipe import Recipe
from reelmill.shards import index, removed
from reelmill.shards.removed import CHANGED, GONE, RETRIED, Removed
from reelmill.store import Store
from reelmill.store.model import Blob, Manifest
from reelmill.tables import TableError, formats, parse_spans
from reelmill.tables.distinct import Bits, Distinct, digests
from reelmill.tasks import Stages
from reelmill.tasks import ingest as module
from reelmill.tasks.ingest import Ingested, Source, commit_ingest, ingest

Cell = str | None


class Blobs:
    """Ingests of parquet tables in one folder, which keep their blobs in memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "table.parquet"
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes) -> None:
        self.held[sha256(data)] = data

    def ingest(
        self, rows: list[tuple[str, Cell]], base: Manifest | None = None, **source: Any
    ) -> Ingested:
        table = pa.table(
            {
                "url": pa.array([url for url, _ in rows], pa.string()),
                "cut": pa.array([cell for _, cell in rows], pa.string()),
                "n": pa.array(range(len(rows)), pa.int32()),
            }
        )
        pq.write_table(table, self.path, row_group_size=source.pop("group", 3))
        chosen = Source(path=str(self.path), spans="cut", **source)
        found = ingest(chosen, base, self.held.__getitem__, self.put)
        if found.removed is not None:
            self.put(found.removed)
        return found

    def rows(self, manifest: Manifest) -> list[dict[str, Any]]:
        shards = [index.decode(self.held[shard.index.digest]) for shard in manifest.shards]
        return [row for shard in shards for row in shard.to_pylist()]

    def removed(self, manifest: Manifest) -> dict[str, Removed]:
        found: dict[str, Removed] = {}
        for blob in manifest.removed:
            found |= removed.decode(self.held[blob.digest])
        return found


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Bounds so small that a few rows pass all of them."""
    distinct = sys.modules["reelmill.tables.distinct"]
    for where, name, value in (
        (distinct, "BUCKET_ROWS", 4),
        (module, "BUCKET_ROWS", 4),
        (distinct, "_BUFFERED", 3),
        (distinct, "_PARTITION_BITS", 1),
        (formats, "_ROWS", 2),
        (formats, "_NARROW_ROWS", 5),
        (module, "MAX_SPANS", 3),
    ):
        patch.setattr(where, name, value)


def url(number: int) -> str:
    return f"http://h.example/{number}.mp4"


# --- The same by simple means ----------------------------------------------------------------


class Model:
    """What an ingest does, with every row in memory."""

    def __init__(self, size: int, drop: bool) -> None:
        self.size, self.drop = size, drop
        self.rows: list[dict[str, Any]] = []
        self.removed: set[str] = set()
        self.shards = 0

    def ingest(self, table: list[tuple[str, Cell]]) -> dict[str, int]:
        entries: dict[tuple[str, str | None], dict[str, Any]] = {}
        present: set[tuple[str, str | None]] = set()
        for place, (spelt, cell) in enumerate(table):
            entry = self._entry(place, spelt, cell)
            identity = (entry["url"], entry["message"])
            present |= {identity, (entry["url"], None)}
            first = entries.setdefault(identity, entry)
            if first is not entry:
                first["duplicates"] += 1
                first["spans"] |= entry["spans"]
        known = {self._identity(row): row for row in self.rows}
        live = [row for row in self.rows if row["key"] not in self.removed]
        usable = [row for row in live if row["status"] == index.OK]
        back = {k for k in self.removed if self._present(self._row(k), present)}
        gone = {row["key"] for row in live if not self._present(row, present)}
        new = [entry for identity, entry in entries.items() if identity not in known]
        for start in range(0, len(new), self.size):
            for place, entry in enumerate(new[start : start + self.size]):
                too_many = len(entry["spans"]) > module.MAX_SPANS
                bad = entry["message"] is not None or too_many
                row = {
                    **entry,
                    "key": f"{self.shards:05d}{place:04d}",
                    "status": index.REJECTED if bad else index.OK,
                    "spans": [] if too_many else sorted(entry["spans"]),
                }
                if too_many:
                    row["reason"] = "too_many_spans"
                self.rows.append(row)
            self.shards += 1
        self.removed = (self.removed - back) | (gone if self.drop else set())
        return {
            "rows": len(entries),
            "new": len(new),
            "known": len(usable),
            "gone": sum(row["key"] in gone for row in usable),
            "back": len(back),
        }

    def _entry(self, place: int, spelt: str, cell: Cell) -> dict[str, Any]:
        entry: dict[str, Any] = {"url": spelt, "n": place, "spans": set(), "duplicates": 0}
        entry |= {"reason": None, "message": None}
        try:
            entry["url"] = normalise(spelt)
            spans = parse_spans(cell)
            if len(spans) > module.MAX_SPANS:
                raise ValueError(f"more than {module.MAX_SPANS} spans")
            entry["spans"] = {(float(a), float(b)) for a, b in spans}
        except Rejected as rejected:
            entry |= {"reason": rejected.reason, "message": rejected.message}
        except ValueError as error:
            entry |= {"reason": "bad_spans", "message": str(error)}
        return entry

    def _row(self, key: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["key"] == key)

    def _identity(self, row: dict[str, Any]) -> tuple[str, str | None]:
        return row["url"], None if row["reason"] == "too_many_spans" else row["message"]

    def _present(self, row: dict[str, Any], present: set[tuple[str, str | None]]) -> bool:
        return self._identity(row) in present


_urls = st.integers(0, 9).flatmap(
    lambda n: st.sampled_from(
        [url(n), f"HTTP://H.example:80/{n}.mp4", f" {url(n)}#x", f"ftp://{n}"]
    )
)
_cells = st.sampled_from(
    [None, "", "0-1", "1-2; 0-1", "3-4;4-5;5-6", "0-1;1-2;2-3;3-4", "2-1", "x"]
)
_tables = st.lists(st.tuples(_urls, _cells), max_size=14).map(lambda rows: [*rows, (url(10), None)])


@settings(max_examples=25)
@given(
    steps=st.lists(_tables, min_size=1, max_size=4),
    size=st.integers(1, 5),
    drop=st.booleans(),
)
def test_an_ingest_gives_what_simple_means_give(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[list[tuple[str, Cell]]],
    size: int,
    drop: bool,
) -> None:
    blobs = Blobs(tmp_path_factory.mktemp("t"))
    model = Model(size, drop)
    base = None
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        for table in steps:
            counts = model.ingest(table)
            found = blobs.ingest(
                table, base, rows_per_shard=size, removed="drop" if drop else "keep"
            )
            assert counts == {name: getattr(found, name) for name in counts}
            assert found.manifest.generations[: len(base.generations) if base else 0] == (
                base.generations if base else ()
            )
            base = found.manifest
    rows = blobs.rows(base)
    for row, expected in zip(rows, model.rows, strict=True):
        got = {name: row[name] for name in ("key", "url", "status", "reason", "duplicates", "n")}
        assert got == {name: expected[name] for name in got}
        spans = [(float(span["start"]), float(span["end"])) for span in row["spans"]]
        assert spans == expected["spans"]
        assert (row["message"] is None) == (row["status"] == index.OK)
    assert set(blobs.removed(base)) == model.removed
    assert all(reason == (GONE, None) for reason in blobs.removed(base).values())


def test_the_blobs_do_not_depend_on_how_the_rows_lie_in_the_table(blobs: Blobs) -> None:
    rows = [(url(number % 40), f"{number}-{number + 1}") for number in range(60)]
    manifests = {blobs.ingest(rows, rows_per_shard=7, group=group).manifest for group in (1, 3, 60)}
    assert len(manifests) == 1


def test_an_index_of_arrays_is_that_of_rows() -> None:
    columns = pa.schema([("n", pa.int64()), ("l", pa.list_(pa.string()))])
    rows = [
        index.Row("000000000", columns={"n": 1, "l": ["a"]}),
        index.Row("000000001", index.REJECTED, "why", "é" * 600, columns={"n": None, "l": []}),
        index.Row("000000002", columns={"n": 3, "l": None}),
    ]
    table = pa.table(
        {
            "status": [row.status for row in rows],
            "reason": pa.array([row.reason for row in rows], pa.string()),
            "message": pa.array([row.message for row in rows], pa.string()),
            "n": pa.array([1, None, 3], pa.int64()),
            "l": pa.array([["a"], [], None], pa.list_(pa.string())),
        }
    )
    keys = pa.array([row.key for row in rows])
    assert index.encode_table(keys, table) == index.encode(rows, columns)
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert index.encode_table(keys, halves) == index.encode(rows, columns)


# --- Addresses -------------------------------------------------------------------------------

_ascii = st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12)


@settings(max_examples=150)
@given(
    st.one_of(
        st.from_regex(re.compile(NORMAL.removesuffix("$") + r"\Z"), fullmatch=True),
        st.from_regex(
            r"(https?|s3|file)://([a-z0-9.-]{0,9}|0x[0-9]{1,3})(:[0-9]{0,5})?/[a-z/.%0-9A-F?#@]{0,12}",
            fullmatch=True,
        ),
        st.builds(lambda a, b: f"https://h.example/{a}?{b}", _ascii, _ascii),
        st.builds("s3://bucket/{}".format, _ascii),
        st.builds("file:///{}".format, _ascii),
        st.builds("http://h.example/{}\n".format, _ascii),
        st.text(),
    )
)
def test_addresses_that_are_taken_as_they_are_would_not_be_changed(text: str) -> None:
    if module._is_normal(pa.array([text]))[0]:
        assert normalise(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://cdn.example.com/a/b.mp4",
        "http://a.b.c.d.e.example/x_y-z~1.mp4?id=1&t=%20/?",
        "http://localhost:8080/",
        "https://h.example/%E4%BD%A0.mp4",
        "s3://bucket/a key?with#all",
        "file:///data/a+b.mp4",
    ],
)
def test_most_addresses_need_no_second_look(text: str) -> None:
    assert module._is_normal(pa.array([text]))[0] == (" " not in text)


def test_longer_addresses_than_are_accepted_are_looked_at(blobs: Blobs) -> None:
    found = blobs.ingest([(url(1), None), ("https://h.example/" + "a" * 8192, None)])
    assert [row["reason"] for row in blobs.rows(found.manifest)] == [None, "bad_url"]


# --- Comparing -------------------------------------------------------------------------------


def test_digests_that_share_a_half_are_not_one(tmp_path: Path) -> None:
    made = np.array([(1, 2), (1, 1), (1, 2), (1, 1), (1, 3)], digests(pa.array(["x"])).dtype)
    distinct = Distinct(tmp_path)
    distinct.know(made[:1])
    distinct.add(made[1:])
    outcome = distinct.settle(pairs=True)
    assert outcome.rows == 3
    assert outcome.new.slice(0, 4).tolist() == [True, False, False, True]
    assert outcome.mentioned.slice(0, 1).tolist() == [True]
    assert outcome.counts.read(0).tolist() == [(0, 1)]
    assert outcome.pairs.read(0).tolist() == [(2, 0)]


@given(st.sets(st.integers(0, 99)), st.integers(0, 100), st.integers(0, 100))
def test_bits(on: set[int], start: int, stop: int) -> None:
    bits = Bits(100)
    bits.set(np.array(sorted(on), np.uint64))
    expected = [place in on for place in range(start, max(start, stop))]
    assert bits.slice(start, max(start, stop)).tolist() == expected
    assert bits.any(start, max(start, stop)) == any(expected)


# --- Rows that go, come back, or live on under another key -----------------------------------


def test_rows_that_are_gone_are_named_and_come_off_the_list_when_they_are_back(
    blobs: Blobs,
) -> None:
    def step(base: Manifest | None, *numbers: int, **source: Any) -> Ingested:
        return blobs.ingest([(url(n), None) for n in numbers], base, rows_per_shard=2, **source)

    first = step(None, 0, 1, 2, 3)
    kept = step(first.manifest, 0, 3)
    assert (kept.manifest, kept.gone) == (first.manifest, 2)
    dropped = step(first.manifest, 3, 0, removed="drop")
    assert blobs.removed(dropped.manifest) == {"000000001": (GONE, None), "000010000": (GONE, None)}
    assert dropped.manifest.generations == first.manifest.generations
    assert (dropped.gone, dropped.known, dropped.new) == (2, 4, 0)
    more = step(dropped.manifest, 3, 5, removed="drop")
    assert set(blobs.removed(more.manifest)) == {"000000000", "000000001", "000010000"}
    assert (more.gone, more.known, more.new) == (1, 2, 1)
    again = step(more.manifest, 5, 3, removed="drop")
    assert again.manifest == more.manifest
    # Rows that are back count again, whatever the source does with those that are gone.
    back = step(more.manifest, 1, 5, 2, removed="keep")
    assert set(blobs.removed(back.manifest)) == {"000000000"}
    assert (back.back, back.gone, back.new) == (2, 1, 0)
    whole = step(back.manifest, 0, 1, 2, 3, 5, removed="drop")
    assert whole.manifest.removed == ()


@pytest.mark.parametrize("reason", [RETRIED, CHANGED])
def test_a_row_that_lives_on_under_another_key_is_known(blobs: Blobs, reason: str) -> None:
    rows = [(url(n), None) for n in range(3)]
    first = blobs.ingest(rows).manifest
    # What is fetched again has a row of its own, in a later generation.
    again = blobs.ingest([(url(1), None)]).manifest.generations
    old = index.decode(blobs.held[next(iter(first.shards)).index.digest])
    assert again
    table = old.slice(1, 1)
    data = index.encode_table(
        pa.array(["000010000"]), table.drop_columns(["key", "offset", "size", "xxh3", "fields"])
    )
    blobs.put(data)
    shard = (
        again[0]
        .shards[0]
        .model_copy(update={"id": "00001", "index": Blob(digest=sha256(data), size=len(data))})
    )
    listed = removed.encode({"000000001": Removed(reason, "000010000")})
    blobs.put(listed)
    base = Manifest(
        fields=(),
        generations=(*first.generations, again[0].model_copy(update={"shards": (shard,)})),
        removed=(Blob(digest=sha256(listed), size=len(listed)),),
    )
    same = blobs.ingest(rows, base, removed="drop")
    assert same.manifest == base
    assert (same.known, same.gone, same.back) == (3, 0, 0)
    gone = blobs.ingest(rows[::2], base, removed="drop")
    assert blobs.removed(gone.manifest) == {
        "000000001": (reason, "000010000"),
        "000010000": (GONE, None),
    }
    back = blobs.ingest(rows, gone.manifest, removed="drop")
    assert back.manifest == base


def test_a_list_of_removed_rows_in_arrays_is_that_of_rows() -> None:
    rows = {"000010000": Removed(GONE), "000000001": Removed(RETRIED, "000020000")}
    data = removed.encode(rows)
    table = removed.decode_table(data)
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert removed.encode_table(halves) == data
    assert removed.decode(data) == rows


# --- Spans -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_spans_beyond_the_bound_are_a_reject_that_stays_one(blobs: Blobs) -> None:
    rows = [(url(0), f"{n}-{n + 1}") for n in range(4)] + [
        (url(1), "0-1;1-2;2-3;3-4"),
        (url(2), ""),
    ]
    found = blobs.ingest(rows)
    got = [(row["reason"], row["message"], row["spans"]) for row in blobs.rows(found.manifest)]
    assert got == [
        ("too_many_spans", "more than 3 spans in all rows of this address", []),
        ("bad_spans", "more than 3 spans", []),
        (None, None, []),
    ]
    assert blobs.ingest(rows, found.manifest).manifest == found.manifest


_times = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,7})?", fullmatch=True)


@settings(max_examples=200)
@given(st.lists(st.builds("{}-{}".format, _times, _times), max_size=3).map("; ".join))
def test_spans_that_are_read_quickly_are_those_that_are_read_slowly(text: str) -> None:
    quick = module._quickly(text)
    if quick is not None:
        million = Decimal(1_000_000)
        assert quick == [(a * million, b * million) for a, b in parse_spans(text)]


def test_spans_of_the_simplest_form_are_read_quickly() -> None:
    assert module._quickly("0-2.5; 10-12.000001") == [(0, 2_500_000), (10_000_000, 12_000_001)]
    assert module._quickly("2-1") is module._quickly("0:01-2") is module._quickly("") is None


# --- Columns ---------------------------------------------------------------------------------


def carried(tmp_path: Path, column: pa.Array) -> Any:
    path = tmp_path / "t.arrow"
    table = pa.table({"url": [url(0)] * len(column), "x": column})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    blobs = Blobs(tmp_path)
    manifest = ingest(Source(path=str(path)), None, lambda d: b"", blobs.put).manifest
    (shard,) = manifest.shards
    return index.decode(blobs.held[shard.index.digest])["x"]


def test_columns_that_share_values_are_carried_without_the_sharing(tmp_path: Path) -> None:
    column = carried(tmp_path, pa.array(["a", "b", "a"]).dictionary_encode())
    assert (column.type, column.to_pylist()) == (pa.string(), ["a"])


def test_fine_times_inside_of_others_become_text(tmp_path: Path) -> None:
    column = carried(tmp_path, pa.array([[1]], pa.list_(pa.timestamp("ns"))))
    assert column.to_pylist() == [["1970-01-01 00:00:00.000000001"]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**40], pa.timestamp("s")),
        pa.array([4_000_000], pa.date32()),
        pa.array([0], pa.timestamp("us", "Nowhere/Land")),
        pa.array([[2**60]], pa.list_(pa.timestamp("us"))),
        pa.array([2**60], pa.duration("s")),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    ],
    ids=str,
)
def test_values_that_no_stage_could_read_are_refused(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(TableError, match=r"t\.arrow: .*cannot be carried: "):
        carried(tmp_path, column)


# --- Crashes ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Any]:
    """Plans a build, and so ingests, from a table of some rows."""

    def plan(rows: int, **options: Any) -> Any:
        return prepare(recipe_of(tmp_path, rows), options.pop("store"), run="test", **options)

    return plan


def recipe_of(folder: Path, rows: int) -> Recipe:
    table = pa.table({"url": [url(number) for number in range(rows)]})
    pq.write_table(table, folder / "table.parquet")
    return Recipe.build(
        store=str(folder / "store"),
        sources={"urls": {"path": "table.parquet", "rows_per_shard": 2, "removed": "drop"}},
        datasets={"videos": {"stage": "download", "from": "urls"}},
        stages=Stages(),
        source_model=Source,
        base=folder,
    )


def states(store: Store) -> list[str]:
    return [ref.version for ref in store.log("urls")]


@pytest.mark.parametrize("kind", ["blobs/.*parquet", "blobs/.*json", "actions/", "refs/"])
def test_an_error_at_any_put_leaves_the_version_as_it_was(
    tmp_path: Path, project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    project(4, store=store)
    before = states(store)

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def put(name: str, *rest: Any) -> Any:
            if re.match(kind, name):
                raise OSError("the disk is gone")
            return original(name, *rest)

        return put

    with monkeypatch.context() as patch:
        for method in ("put", "create"):
            patch.setattr(store.backend, method, failing(getattr(store.backend, method)))
        with pytest.raises(OSError, match="the disk is gone"):
            project(9, store=store)
    assert states(store) == before
    assert project(9, store=store).grown[0].new == 5
    twin = Store.open(str(tmp_path / "twin"), create=True)
    project(4, store=twin)
    project(9, store=twin)
    assert states(twin) == states(store) != before


KILLED = """
import os, re, signal, sys
from pathlib import Path
from reelmill.flows.drive import prepare
from reelmill.store import Store
from tests.unit.test_ingest_growth import recipe_of
folder, kind = Path(sys.argv[1]), sys.argv[2]
store = Store.open(str(folder / "store"))
for method in ("put", "create"):
    def put(name, *rest, original=getattr(store.backend, method)):
        if re.match(kind, name):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(name, *rest)
    setattr(store.backend, method, put)
prepare(recipe_of(folder, 9), store, run="test")
"""


@pytest.mark.parametrize("kind", ["blobs/.*json", "refs/"])
def test_a_kill_leaves_the_version_as_it_was(
    tmp_path: Path, project: Callable[..., Any], kind: str
) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    project(4, store=store)
    before = states(store)
    command = [sys.executable, "-c", KILLED, str(tmp_path), kind]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert states(store) == before
    assert project(9, store=store).grown[0].new == 5
    assert len(states(store)) == 2


def test_a_plan_writes_nothing_and_says_what_would_come(
    tmp_path: Path, project: Callable[..., Any]
) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    project(4, store=store)
    files = sorted(path for path in (tmp_path / "store").rglob("*"))
    told: list[tuple[str, str, int]] = []
    build = project(9, store=store, write=False, watch=lambda *given: told.append(given))
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == files
    assert (build.grown[0].new, build.grown[0].gone) == (5, 0)
    project(9, store=store)
    assert {name for name, _, _ in told} == {"urls"}
    assert [what for _, what, _ in told][-1] == "writing new rows"
    assert ("urls", "reading rows", 9) in told


def test_a_version_moves_when_rows_are_gone_and_again_when_they_are_back(
    tmp_path: Path, project: Callable[..., Any]
) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    project(4, store=store)
    for write in (False, True):
        shrunk = project(2, store=store, write=write).grown[0]
        assert (shrunk.gone, shrunk.dropped, shrunk.back) == (2, True, 0)
    same = project(2, store=store).grown[0]
    assert (same.rows, same.gone) == (2, 0)
    ref = store.latest("urls")
    assert ref is not None
    assert (ref.totals.samples, ref.counted.samples) == (4, 2)
    project(4, store=store)
    first, second, third = states(store)
    assert second != first == third


def test_temporary_files_go_and_a_full_disk_is_told(
    tmp_path: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    original = Path.open

    def full(path: Path, *given: Any) -> Any:
        if path.name.startswith("digests-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *given)

    blobs.ingest([(url(1), None)])
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StageError, match=r"no space left .* TMPDIR"):
        blobs.ingest([(url(1), None)])
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_what_is_committed_is_what_was_written(tmp_path: Path, blobs: Blobs) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    found = blobs.ingest([(url(1), None)])
    again = blobs.ingest([(url(2), None)], found.manifest, removed="drop")
    action = module.ingest_action(Source(path="x.csv"), "0" * 64, None)
    made = commit_ingest(store, action, again, {})
    assert made.manifest is not None
    manifest = store.manifest(made.manifest.digest)
    (blob,) = manifest.removed
    assert set(removed.decode(store.read_blob(blob.digest, "parquet"))) == {"000000000"}
    assert pc.sum(pa.array([shard.samples for shard in manifest.shards])).as_py() == made.samples
