"""Duplicates across shards and generations: dropped, linked, and shards without any."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import order_hash, sha256
from reelmill.errors import StageError
from reelmill.shards import duplicates, index
from reelmill.shards.duplicates import find_duplicates
from reelmill.shards.index import Row
from reelmill.shards.reader import Sample, ShardReader
from reelmill.shards.verify import verify_shard
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.collect import Policy, collect
from reelmill.store.model import (
    Blob,
    Generation,
    Manifest,
    Ref,
    Result,
    Shard,
    blob_name,
)
from reelmill.tasks import dedup, get_stage
from reelmill.tasks.download import DownloadParams
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source, commit_ingest, ingest, ingest_action
from reelmill.tasks.planner import Node, Planner

from .datasets import order_of
from .media_samples import sample

COLUMNS = pa.schema([("sha256", pa.string()), ("url", pa.string())])


class World:
    """A store with a dataset of videos that grows, and what becomes of it."""

    def __init__(self, url: str) -> None:
        self.store = Store.open(url, create=True)
        self.generations: list[Generation] = []
        self.made: list[str] = []

    def grow(self, *shards: str) -> None:
        """Add a generation; a shard is told by the contents of its videos, a letter each."""
        first = sum(len(generation.shards) for generation in self.generations)
        made = [self._shard(first + number, letters) for number, letters in enumerate(shards)]
        self.generations.append(Generation(shards=tuple(made)))

    def _shard(self, number: int, letters: str) -> Shard:
        writer = ShardWriter(self.store.backend.scratch(), COLUMNS)
        for place, letter in enumerate(letters):
            key, video = f"{number:05d}{place:04d}", letter.encode() * 3000
            fields = {"mp4": video, "json": b'{"n":%d}' % place}
            writer.add(key, fields, {"sha256": sha256(video), "url": f"http://{letter}"})
        writer.reject(f"{number:05d}9999", "dns", "no such host", {})
        return put_shard(self.store, writer.close()).shard(f"{number:05d}")

    @property
    def videos(self) -> Manifest:
        return Manifest(fields=("json", "mp4"), generations=tuple(self.generations))

    def build(self, **params: str) -> Manifest:
        """The dataset without duplicates; ``made`` has the labels of shards that were executed."""
        return self.build_nodes(
            [Node("unique", get_stage("dedup"), _params(**params), {"source": "videos"})],
            {"videos": self.videos},
        )["unique"]

    def build_nodes(
        self, nodes: list[Node], sources: Mapping[str, Manifest]
    ) -> dict[str, Manifest]:
        planner = Planner(nodes, sources)
        params = {node.name: node.params for node in nodes}
        waiting, versions, self.made = planner.start(), {}, []
        while waiting:
            todo = waiting.pop()
            if not self.store.recall([todo.action.key]):
                self.made.append(todo.label)
            order = order_of(self.store, todo, params[todo.dataset])
            waiting += planner.done(todo, Result.model_validate_json(execute(order)))
            versions |= {name: manifest for name, manifest, _ in planner.finished()}
        assert planner.problems() == {}
        return versions

    def samples(self, manifest: Manifest) -> dict[str, Sample]:
        readers = [ShardReader(self.store, shard) for shard in manifest.shards]
        return {one.key: one for reader in readers for one in reader.samples()}

    def rejects(self, manifest: Manifest) -> dict[str, tuple[str, str, str]]:
        rows = [
            row
            for shard in manifest.shards
            for row in ShardReader(self.store, shard).rows("rejected")
        ]
        return {row["key"]: (row["reason"], row["message"], row["kept"]) for row in rows}

    def check(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
            assert list(verify_shard(self.store, shard)) == []


def _params(**params: str) -> dedup.DedupParams:
    return dedup.DedupParams.model_validate(params)


@pytest.fixture
def world(store_url: str) -> World:
    return World(store_url)


@pytest.fixture
def local(tmp_path: Path) -> World:
    return World(str(tmp_path / "store"))


def test_duplicates_are_dropped_across_shards_and_generations(world: World) -> None:
    world.grow("abca", "bd")
    world.grow("ef", "gag")
    made = world.build()
    world.check(made)
    assert [shard.id for shard in made.shards] == [shard.id for shard in world.videos.shards]
    assert world.rejects(made) == {
        "000000003": ("duplicate", "the same bytes as 000000000", "000000000"),
        "000010000": ("duplicate", "the same bytes as 000000001", "000000001"),
        "000030001": ("duplicate", "the same bytes as 000000000", "000000000"),
        "000030002": ("duplicate", "the same bytes as 000030000", "000030000"),
    }
    before, after = world.samples(world.videos), world.samples(made)
    assert set(after) == set(before) - set(world.rejects(made))
    for key, one in after.items():
        assert one.fields == before[key].fields
        assert one.columns == {**before[key].columns, "kept": None}
    assert made.totals().samples + made.totals().rejects == world.videos.totals().samples


def test_duplicates_are_linked_to_the_sample_that_has_the_video(world: World) -> None:
    world.grow("abca", "bd")
    made = world.build(duplicates="link")
    world.check(made)
    assert world.rejects(made) == {}
    before, after = world.samples(world.videos), world.samples(made)
    links = {"000000003": "000000000", "000010000": "000000001"}
    assert list(after) == list(before), "in their old order, too"
    for key, one in after.items():
        if key in links:
            about = {**json.loads(before[key].fields["json"]), "same_as": links[key]}
            assert set(one.fields) == {"json"}
            assert json.loads(one.fields["json"]) == about
        else:
            assert one.fields == before[key].fields
        assert one.columns == {**before[key].columns, "kept": links.get(key)}


def test_a_shard_without_duplicates_is_the_same_shard_and_not_a_byte_of_it_is_read(
    world: World,
) -> None:
    world.grow("abc", "aaaa", "de")
    shards = list(world.videos.shards)
    for shard in shards:
        assert shard.tar is not None
        if shard.id != "00001":
            # Whoever read or copied these would get another digest.
            world.store.backend.put(blob_name(shard.tar.digest, "tar"), bytes(shard.tar.size))
    made = list(world.build().shards)
    assert [made[0].tar, made[2].tar] == [shards[0].tar, shards[2].tar]
    assert (made[1].tar, made[1].samples, made[1].rejects) == (None, 0, 4)
    for old, new in zip(shards, made, strict=True):
        assert new.rejects == (4 if old.id == "00001" else 0)
        if new.tar:
            rows = [ShardReader(world.store, shard).rows() for shard in (old, new)]
            assert [{**row, "kept": None} for row in rows[0]] == rows[1]


def test_a_tar_that_is_gone_is_not_taken_over(local: World) -> None:
    local.grow("abc")
    (shard,) = local.videos.shards
    assert shard.tar is not None
    local.store.backend.delete(blob_name(shard.tar.digest, "tar"))
    with pytest.raises(Exception, match="is gone; build again"):
        local.build()


def test_growth_leaves_old_shards_alone_and_looks_back_at_all_of_them(local: World) -> None:
    local.grow("ab", "ca")
    first = local.build()
    local.grow("xb")
    second = local.build()
    local.grow("xyc")
    third = local.build()
    assert local.made == ["dedup/unique/00003"]
    assert third.generations[:2] == second.generations
    assert second.generations[:1] == first.generations
    assert {key: kept for key, (_, _, kept) in local.rejects(third).items()} == {
        "000010001": "000000000",
        "000020001": "000000001",
        "000030000": "000020000",
        "000030002": "000010000",
    }
    again = local.build()
    assert (again, local.made) == (third, [])


def test_both_modes_share_one_survey(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    surveys = counted(monkeypatch)
    local.grow("aba", "bc", "cd")
    local.build()
    local.build(duplicates="link")
    assert len(surveys) == 1
    local.build(column="url")
    assert len(surveys) == 2


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    surveys: list[str] = []

    def find(store: Store, generations: Any, column: str, scratch: Path) -> Any:
        surveys.append(column)
        return find_duplicates(store, generations, column, scratch)

    monkeypatch.setattr(dedup, "find_duplicates", find)
    return surveys


def test_who_loses_the_race_for_a_survey_goes_on_with_the_winners(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.grow("ab", "ba")
    node = Node("unique", get_stage("dedup"), _params(), {"source": "videos"})
    mine, theirs = (
        order_of(local.store, todo, _params())
        for todo in Planner([node], {"videos": local.videos}).start()
    )
    results = []

    def late(*args: Any) -> Any:
        monkeypatch.setattr(dedup, "find_duplicates", find_duplicates)
        results.append(Result.model_validate_json(execute(theirs)))
        return find_duplicates(*args)

    monkeypatch.setattr(dedup, "find_duplicates", late)
    results.append(Result.model_validate_json(execute(mine)))
    assert [(result.samples, result.rejects) for result in results] == [(0, 2), (2, 0)]
    assert len(list(surveys_in(local))) == 1


def test_progress_is_told_of_every_sample(local: World) -> None:
    local.grow("abc", "xab")
    node = Node("unique", get_stage("dedup"), _params(), {"source": "videos"})
    todos = Planner([node], {"videos": local.videos}).start()
    orders = [order_of(local.store, todo, _params()) for todo in todos]
    told: list[tuple[int, int]] = []
    for order in orders:
        execute(order, lambda _, done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)], "a tar that is taken over has no samples to go through"


def surveys_in(world: World) -> Iterator[Blob]:
    for entry in world.store.backend.list("actions/sha256/"):
        record = world.store.record(Path(entry.name).stem)
        assert record is not None
        if record.action.stage == "dedup.survey":
            assert record.result.tar is not None
            yield record.result.tar


def test_a_survey_is_collected_and_made_again_the_same(local: World) -> None:
    local.grow("ab", "ba")
    unique = local.build()
    (survey,) = surveys_in(local)
    for name, manifest in (("videos", local.videos), ("unique", unique)):
        local.store.commit_ref(
            name,
            Ref(
                event="commit",
                version=local.store.put_manifest(manifest),
                tags=("latest",),
                time="2026-01-01T00:00:00+00:00",
                run="test",
                stage="dedup",
                totals=manifest.totals(),
            ),
        )
    long_ago = time.time() - 10 * 86400
    for path in Path(local.store.url).rglob("*.*"):
        os.utime(path, (long_ago, long_ago))
    collect(local.store, Policy.model_validate({"keep": "1d"}))
    assert list(surveys_in(local)) == []
    assert local.build() == unique
    assert local.made == [], "the results themselves stay"
    assert local.build(duplicates="link").totals().rejects == 0
    assert list(surveys_in(local)) == [survey]


def test_a_survey_that_a_worker_knew_may_be_gone(local: World) -> None:
    local.grow("ab", "ba")
    local.build()
    (survey,) = surveys_in(local)
    local.store.backend.delete(blob_name(survey.digest, "tar"))
    assert local.build(duplicates="link").totals().samples == 4


def test_a_dataset_without_duplicates_has_a_survey_without_samples(local: World) -> None:
    local.grow("ab", "cd")
    made = local.build()
    assert [shard.tar for shard in made.shards] == [shard.tar for shard in local.videos.shards]


def test_any_column_of_text_can_tell_duplicates(local: World) -> None:
    local.grow("ab", "a")
    made = local.build(column="url")
    assert local.rejects(made) == {
        "000010000": ("duplicate", "the same url as 000000000", "000000000")
    }
    again = local.build_nodes(
        [Node("twice", get_stage("dedup"), _params(), {"source": "unique"})], {"unique": made}
    )["twice"]
    table = ShardReader(local.store, next(again.shards)).table
    assert table.column_names[-2:] == ["table_kept", "kept"]


def test_a_column_that_is_not_there_is_named(local: World) -> None:
    local.grow("ab")
    with pytest.raises(StageError, match="input shard 00000 has no text column 'phash'"):
        local.build(column="phash")
    with pytest.raises(ValueError, match="offset tells nothing"):
        _params(column="offset")


@pytest.mark.parametrize("data", [b"[1]", b"{", b'{"n":%d}' % 2**60, b"[" * 100_000])
def test_a_json_that_cannot_say_so_is_a_reject(local: World, data: bytes) -> None:
    writer = ShardWriter(local.store.backend.scratch(), COLUMNS)
    for number in range(2):
        fields = {"mp4": b"same", "json": data, "txt": b"hello"}
        writer.add(f"00000000{number}", fields, {"sha256": sha256(b"same")})
    shard = put_shard(local.store, writer.close()).shard("00000")
    local.generations.append(Generation(shards=(shard,)))
    made = local.build(duplicates="link")
    assert {key: reason for key, (reason, *_) in local.rejects(made).items()} == {
        "000000001": "bad_json"
    }
    assert made.totals().samples == 1


def test_downloads_of_the_same_file_are_duplicates(local: World, tmp_path: Path) -> None:
    table, copy = tmp_path / "table.csv", tmp_path / "copy.mp4"
    copy.write_bytes(sample("silent.mp4").read_bytes())
    paths = [sample("silent.mp4"), sample("odd.mp4"), copy]
    table.write_text("url\n" + "".join(f"file://{path}\n" for path in paths))
    found = ingest(
        Source(path=str(table)),
        None,
        lambda digest: b"",
        lambda data: local.store.put_blob(data, "parquet"),
    )
    commit_ingest(local.store, ingest_action(Source(path="x"), "0" * 64, None), found, {})
    versions = local.build_nodes(
        [
            Node(
                "videos",
                get_stage("download"),
                DownloadParams(allow_files=True),
                {"source": "urls"},
            ),
            Node("unique", get_stage("dedup"), _params(), {"source": "videos"}),
        ],
        {"urls": found.manifest},
    )
    assert {key: kept for key, (_, _, kept) in local.rejects(versions["unique"]).items()} == {
        "000000002": "000000000"
    }


# The survey alone


class Indexes(dict[str, bytes]):
    """As much of a store as a survey needs."""

    def read_blob(self, digest: str, suffix: str) -> bytes:
        return self[digest]

    def shard(self, number: int, values: list[str | None]) -> Shard:
        keys = [f"{number:05d}{place:04d}" for place in range(len(values))]
        rows = [
            Row(key, columns={"value": value})
            for key, value in sorted(zip(keys, values, strict=True), key=lambda p: order_hash(p[0]))
        ]
        rows.append(Row(f"{number:05d}9999", index.REJECTED, "x", "y", columns={"value": "a"}))
        data = index.encode(rows, pa.schema([("value", pa.string())]))
        blob = Blob(digest=sha256(data), size=len(data))
        self[blob.digest] = data
        return Shard(id=f"{number:05d}", tar=None, index=blob, samples=len(values), rejects=1)


def naive(generations: list[list[list[str | None]]]) -> dict[str, dict[str, str]]:
    """By shard ID, the duplicates of the last generation."""
    first: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {}
    number = 0
    for generation in generations:
        found.clear()
        for shard in generation:
            for place, value in enumerate(shard):
                key = f"{number:05d}{place:04d}"
                if value is not None and first.setdefault(value, key) != key:
                    found.setdefault(f"{number:05d}", {})[key] = first[value]
            number += 1
    return found


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(
            st.lists(st.sampled_from([None, "", *"abcdefghijklm é\n"]), max_size=9), max_size=4
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_a_survey_finds_what_a_naive_one_finds(
    tmp_path_factory: pytest.TempPathFactory, generations: list[list[list[str | None]]], few: int
) -> None:
    store, numbers = Indexes(), iter(range(100))
    history = [
        Generation(shards=tuple(store.shard(next(numbers), shard) for shard in generation))
        for generation in generations
    ]
    scratch = tmp_path_factory.mktemp("survey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_IN_FILE", few)
        patch.setattr(duplicates, "_HELD", few)
        found = list(find_duplicates(cast(Store, store), history, "value", scratch))
    assert len(found) == len(dict(found))
    assert dict(found) == naive(generations)
    assert list(scratch.iterdir()) == []
