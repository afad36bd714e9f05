"""A shuffle through the real frame: parts of a split, growth, compaction, progress, requests."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from reelmill.digest import sha256
from reelmill.shards.reader import ShardReader
from reelmill.shards.verify import verify_shard
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.model import Generation, Manifest, Result, Shard
from reelmill.tasks import shuffle
from reelmill.tasks.frame import execute
from reelmill.tasks.planner import Node, Planner
from reelmill.tasks.shuffle import Shuffle, ShuffleParams
from tests.s3_server import Faults
from tests.stages.datasets import order_of

COLUMNS = pa.schema([pa.field("channel", pa.string())])
EACH, CLIPS = 12, 3
SHARES = {"train": "60%", "val": "20%", "test": "20%"}


class World:
    """A dataset of clips that grows, and what is made of it."""

    def __init__(self, url: str) -> None:
        self.store = Store.open(url, create=True)
        self.generations: list[Generation] = []
        self.made: list[str] = []

    def grow(self, shards: int = 2) -> None:
        first = sum(len(generation.shards) for generation in self.generations)
        made = [self._shard(first + number) for number in range(shards)]
        self.generations.append(Generation(shards=tuple(made)))

    def _shard(self, number: int) -> Shard:
        writer = ShardWriter(self.store.backend.scratch(), COLUMNS)
        for video in range(EACH):
            for clip in range(CLIPS):
                key = f"{number:05d}{video:04d}_{clip:03d}"
                data = key.encode() * (50 * (video % 4) + 1)
                writer.add(key, {"mp4": data}, {"channel": f"c{(number * EACH + video) % 20}"})
        return put_shard(self.store, writer.close()).shard(f"{number:05d}")

    def build(self, **datasets: dict[str, Any]) -> dict[str, Manifest]:
        """The versions of datasets, each a shuffle with such parameters; ``made`` has the labels
        of shards that were executed."""
        params = {name: ShuffleParams(**values) for name, values in datasets.items()}
        nodes = [
            Node(name, Shuffle(), of_one, {"source": "clips"}, max_rejects=Decimal(0))
            for name, of_one in params.items()
        ]
        source = Manifest(fields=("mp4",), generations=tuple(self.generations))
        planner = Planner(nodes, {"clips": source})
        self.made = []
        for todo in planner.start():
            if not self.store.recall([todo.action.key]):
                self.made.append(f"{todo.dataset}/{todo.shard}")
            order = order_of(self.store, todo, params[todo.dataset])
            planner.done(todo, Result.model_validate_json(execute(order)))
        found = {name: manifest for name, manifest, _ in planner.finished()}
        assert planner.problems() == {}
        return found

    def keys(self, shards: Iterable[Shard], status: str = "ok") -> list[str]:
        rows = [row for shard in shards for row in ShardReader(self.store, shard).rows(status)]
        return [row["key"] for row in rows]


@pytest.fixture
def local(tmp_path: Path) -> World:
    return World(str(tmp_path / "store"))


@pytest.fixture
def world(store_url: str) -> World:
    return World(store_url)


def parts(splits: dict[str, str], **more: Any) -> dict[str, dict[str, Any]]:
    """The parameters of one dataset for each part."""
    common = {"splits": splits, "samples_per_shard": 20, **more}
    return {part: {**common, "part": part} for part in splits}


def test_a_split_takes_every_video_whole_to_one_side_and_loses_no_sample(local: World) -> None:
    local.grow()
    local.grow(1)
    versions = local.build(**parts(SHARES))
    everything = sorted(local.keys(s for g in local.generations for s in g.shards))
    side: dict[str, str] = {}
    for part, manifest in versions.items():
        kept = local.keys(manifest.shards)
        left = local.keys(manifest.shards, "rejected")
        assert sorted(kept + left) == everything
        for key in kept:
            assert side.setdefault(key[:9], part) == part
        for shard in manifest.shards:
            assert list(verify_shard(local.store, shard)) == []
            for row in ShardReader(local.store, shard).rows("rejected"):
                assert (row["reason"], row["channel"]) == ("other_part", None)
    assert len(side) == 3 * EACH
    assert set(side.values()) == set(SHARES)


def test_growth_changes_no_side_and_no_shard_that_was_made(local: World) -> None:
    local.grow()
    before = local.build(**parts(SHARES))
    local.grow(1)
    after = local.build(**parts(SHARES))
    for part, manifest in before.items():
        assert after[part].generations[:1] == manifest.generations
    assert {label.partition("/")[0] for label in local.made} == set(SHARES)


def test_another_share_moves_only_what_it_must(local: World) -> None:
    local.grow(4)
    first = local.build(**parts(SHARES))
    before = {part: set(local.keys(manifest.shards)) for part, manifest in first.items()}
    # In the order of their names, test and train are neighbours, and so are train and val.
    second = local.build(**parts({"train": "50%", "val": "20%", "test": "30%"}))
    after = {part: set(local.keys(manifest.shards)) for part, manifest in second.items()}
    assert second["val"] == first["val"]
    assert not any(label.startswith("val/") for label in local.made), "the same actions"
    assert before["test"] < after["test"]
    assert after["train"] < before["train"]
    other = local.build(**parts({"test": "30%", "a": "0%", "train": "20%", "tune": "50%"}))
    assert other["test"] == second["test"]
    assert world_is_whole(local, other)


def world_is_whole(world: World, versions: dict[str, Manifest]) -> bool:
    dealt = sorted(key for manifest in versions.values() for key in world.keys(manifest.shards))
    return dealt == sorted(world.keys(s for g in world.generations for s in g.shards))


def test_a_column_keeps_its_equals_together_and_another_seed_splits_otherwise(
    local: World,
) -> None:
    local.grow(4)
    by_channel = local.build(**parts(SHARES, split_column="channel"))
    side: dict[str, str] = {}
    for part, manifest in by_channel.items():
        for shard in manifest.shards:
            for row in ShardReader(local.store, shard).rows():
                assert side.setdefault(row["channel"], part) == part
    assert world_is_whole(local, by_channel)
    tests = {
        seed: set(local.keys(local.build(**parts(SHARES, split_seed=seed))["test"].shards))
        for seed in (0, 1)
    }
    assert tests[0] != tests[1]


def test_the_seed_of_the_order_moves_nobody_to_another_side(local: World) -> None:
    local.grow(2)
    one, two = (local.build(**parts(SHARES, seed=seed))["test"] for seed in (0, 3))
    assert set(local.keys(one.shards)) == set(local.keys(two.shards))


# Size


def test_shards_are_balanced_by_their_real_bytes(local: World) -> None:
    local.grow(4)
    (manifest,) = local.build(even={"bytes_per_shard": "80 kB"}).values()
    sizes = [shard.tar.size for shard in manifest.shards if shard.tar]
    total = sum(shard.tar.size for g in local.generations for shard in g.shards if shard.tar)
    assert len(sizes) == -(-total // 80_000)
    largest = 512 + 2048
    # A tar is padded to a multiple of 10240 bytes.
    assert max(sizes) - min(sizes) <= 2 * largest + 10240
    assert max(shard.samples for shard in manifest.shards) > min(
        shard.samples for shard in manifest.shards
    )


# Growth


def test_generations_taken_together_are_shuffled_as_one_and_later_ones_stay(local: World) -> None:
    for shards in (2, 1, 1):
        local.grow(shards)
    plain, three = {"samples_per_shard": 25}, {"samples_per_shard": 25, "compact": 3}
    (grown,) = local.build(mixed=plain).values()
    assert [len(generation.shards) for generation in grown.generations] == [3, 2, 2]
    (compacted,) = local.build(mixed=three).values()
    assert [len(generation.shards) for generation in compacted.generations] == [6]
    assert [shard.id for shard in compacted.shards] == [f"{n:05d}" for n in range(6)]

    once = World(local.store.url)
    once.generations = [Generation(shards=tuple(s for g in local.generations for s in g.shards))]
    assert once.build(mixed=plain)["mixed"] == compacted
    assert once.made == [], "the very same actions"

    local.grow(1)
    (again,) = local.build(mixed=three).values()
    assert again.generations[:1] == compacted.generations
    assert local.made == ["mixed/00006", "mixed/00007"]
    # What comes after is what it would be without: only the numbers of its shards differ.
    (without,) = local.build(mixed=plain).values()
    assert local.made == []
    contents = [
        [(shard.tar, shard.index) for shard in manifest.generations[-1].shards]
        for manifest in (again, without)
    ]
    assert contents[0] == contents[1]


def test_many_tiny_generations_become_full_shards(local: World) -> None:
    for _ in range(5):
        local.grow(1)
    (manifest,) = local.build(mixed={"samples_per_shard": 90, "compact": 1000}).values()
    assert [shard.samples for shard in manifest.shards] == [90, 90]


# The bytes stay what they were


def test_the_keys_and_bytes_of_shards_that_were_made_before_stand(local: World) -> None:
    local.grow()
    (manifest,) = local.build(mixed={"samples_per_shard": 40, "seed": 7}).values()
    tars = "".join(shard.tar.digest for shard in manifest.shards if shard.tar)
    assert sha256(tars.encode())[:12] == "8f2ca86241cb"
    order = Planner(
        [Node("mixed", Shuffle(), ShuffleParams(samples_per_shard=40), {"source": "clips"})],
        {"clips": Manifest(fields=(), generations=(Generation(shards=(PLAIN,)),))},
    ).start()[0]
    assert order.action.key[:12] == "20803edbef24"


PLAIN = Shard(
    id="00000",
    tar={"digest": "0" * 64, "size": 10240},
    index={"digest": "1" * 64, "size": 1},
    samples=10,
    rejects=0,
)


# What people see, and what it costs


def test_samples_are_counted_while_they_are_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reelmill.shards.gather._BUFFER", 4096)
    world.grow()
    source = Manifest(fields=("mp4",), generations=tuple(world.generations))
    params = ShuffleParams()
    planner = Planner([Node("mixed", Shuffle(), params, {"source": "clips"})], {"clips": source})
    (todo,) = planner.start()
    seen: list[tuple[int, int]] = []
    execute(
        order_of(world.store, todo, params), lambda order, done, total: seen.append((done, total))
    )
    assert [total for _, total in seen] == [2 * EACH * CLIPS] * len(seen)
    assert len({done for done, _ in seen}) > 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 2 * EACH * CLIPS


def test_by_default_an_output_costs_one_request_for_each_input(
    s3_url: str, s3_faults: Faults
) -> None:
    world = World(s3_url)
    world.grow(3)
    source = Manifest(fields=("mp4",), generations=tuple(world.generations))
    params = ShuffleParams(samples_per_shard=40)
    planner = Planner([Node("mixed", Shuffle(), params, {"source": "clips"})], {"clips": source})
    todos = planner.start()
    orders = [order_of(world.store, todo, params) for todo in todos]
    assert len(orders) == 3
    shuffle._deal.cache_clear()
    indexes = []
    for order in orders:
        s3_faults.clear()
        execute(order)
        paths = [request.path for request in s3_faults.log if request.method == "GET"]
        assert sum(path.endswith(".tar") for path in paths) == 3
        indexes.append(sum(path.endswith(".parquet") for path in paths))
    assert indexes == [3, 0, 0], "the indexes are read once"
