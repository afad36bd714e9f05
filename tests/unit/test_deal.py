"""Dealing a generation: in memory or through a file, whole or in parts, of shards of any order."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reelmill.digest import ORDER_SEED, order_hash
from reelmill.errors import ShardError, StageError
from reelmill.shards import deal, gather, index
from reelmill.shards.deal import Deal, Rule, Side
from reelmill.shards.gather import Extents, Gatherer, laid
from reelmill.shards.portion import places, portion, split
from reelmill.shards.writer import SampleOrder, ShardWriter, Written, put_shard
from reelmill.store import Store
from reelmill.store.model import Shard

COLUMNS = pa.schema(
    [
        # Names that dealing has for columns of its own.
        pa.field("output", pa.string()),
        pa.field("place", pa.list_(pa.float32())),
        pa.field("channel", pa.string()),
        pa.field("number", pa.int32()),
    ]
)
SHARDS, VIDEOS, CLIPS = 3, 15, 3
SPLITS = {"train": Decimal("0.7"), "val": Decimal("0.2"), "test": Decimal("0.1")}


def columns_of(key: str) -> dict[str, object]:
    video = int(key[:9])
    return {
        "output": key[::-1],
        "place": [float(video), 0.5] if video % 3 else None,
        "channel": f"channel-{video % 7}" if video % 5 else None,
        "number": video % 4,
    }


def clips(store: Store, order: SampleOrder = "hash") -> list[Shard]:
    """Shards of clips, among them one of rejects alone."""
    shards = []
    for shard in range(SHARDS):
        writer = ShardWriter(store.backend.scratch(), COLUMNS, order)
        for video, clip in itertools.product(range(VIDEOS), range(CLIPS)):
            key = f"{shard:05d}{video:04d}_{clip:03d}"
            writer.add(key, {"txt": key.encode() * (video + 1)}, columns_of(key))
        writer.reject(f"{shard:05d}9999", "gone", "it is gone", {})
        shards.append(put_shard(store, writer.close()).shard(f"{shard:05d}"))
    writer = ShardWriter(store.backend.scratch(), COLUMNS)
    writer.reject("000039999", "gone", "it is gone", {})
    return [*shards, put_shard(store, writer.close()).shard(f"{SHARDS:05d}")]


KEYS = sorted(
    f"{shard:05d}{video:04d}_{clip:03d}"
    for shard, video, clip in itertools.product(range(SHARDS), range(VIDEOS), range(CLIPS))
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


@pytest.fixture(params=["in memory", "in a file"])
def kept(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """Where rows lie until they are asked for; no file stays open."""
    if request.param == "in a file":
        monkeypatch.setattr(deal, "KEPT", 0)
        monkeypatch.setattr(deal, "GROUP", 5000)
        monkeypatch.setattr(deal, "_HELD", 3000)
    yield request.param
    assert open_below(tmp_path) == []


def open_below(folder: Path) -> list[str]:
    """The files below a folder, removed ones included, that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return [path for path in found if path.startswith(f"{folder}/")]


def test_rows_in_a_file_are_let_go_with_the_deal(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deal, "KEPT", 0)
    dealt = Deal(store, clips(store), Rule(4, 0, False, None))
    (path,) = open_below(tmp_path)
    assert path.endswith("(deleted)")
    del dealt
    assert open_below(tmp_path) == []


def side(part: str, by: str = "source", column: str | None = None) -> Side:
    assert by in ("source", "sample")
    return Side(portion(*split(SPLITS, part)), "sample" if by == "sample" else "source", column, 0)


def keys_of(dealt: Deal, outputs: int) -> tuple[list[list[str]], list[list[str]]]:
    """The keys of each output, and those that are left out of each."""
    rows = [dealt.rows(output) for output in range(outputs)]
    return [r[0]["key"].to_pylist() for r in rows], [r[1]["key"].to_pylist() for r in rows]


def written(store: Store, dealt: Deal, output: int) -> Written:
    samples, others, tars = dealt.rows(output)
    rejects = index.rejects(others["key"], "other", "of another part", dealt.columns)
    writer = ShardWriter(store.backend.scratch(), dealt.columns)
    with Gatherer(store, store.backend.scratch()) as gatherer:
        extents = Extents.of(samples, tars)
        writer.lay(pa.concat_tables([laid(samples), rejects]), gatherer.stream(dealt.tars, extents))
    return writer.close()


def made_anew(store: Store, dealt: Deal, keys: Sequence[str], others: Sequence[str]) -> Written:
    writer = ShardWriter(store.backend.scratch(), dealt.columns)
    for key in keys:
        writer.add(key, {"txt": key.encode() * (int(key[5:9]) + 1)}, columns_of(key))
    for key in others:
        writer.reject(key, "other", "of another part", {})
    return writer.close()


def as_bytes(made: Written) -> tuple[bytes, bytes, object]:
    tar = b"" if made.path is None else made.path.read_bytes()
    counts = (made.samples, made.rejects, made.fields, made.reasons, made.tar)
    return tar, made.index, counts


@pytest.mark.parametrize("order", ["hash", "key"])
@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("by_bytes", [False, True])
def test_a_dealt_shard_has_the_bytes_of_one_made_anew(
    store: Store, kept: str, order: SampleOrder, seed: int, by_bytes: bool
) -> None:
    dealt = Deal(store, clips(store, order), Rule(7, seed, by_bytes, side("train")))
    samples, others = keys_of(dealt, 7)
    assert sorted(key for keys in samples + others for key in keys) == KEYS
    for output in (3, 0, 6):
        made = written(store, dealt, output)
        anew = made_anew(store, dealt, samples[output][::-1], others[output])
        assert as_bytes(made) == as_bytes(anew)


def test_the_order_of_the_inputs_and_of_their_samples_changes_nothing(
    store: Store, kept: str
) -> None:
    rule = Rule(4, 0, True, None)
    expected = keys_of(Deal(store, clips(store), rule), 4)
    assert keys_of(Deal(store, clips(store)[::-1], rule), 4) == expected
    assert keys_of(Deal(store, clips(store, "key"), rule), 4) == expected
    for keys in expected[0]:
        assert keys == sorted(keys, key=order_hash)


@pytest.mark.parametrize(("by", "column"), [("source", None), ("sample", None), ("", "channel")])
def test_parts_of_a_split_are_all_samples_and_share_none(
    store: Store, kept: str, by: str, column: str | None
) -> None:
    shards = clips(store)
    parts = {}
    for part in SPLITS:
        rule = Rule(2, 0, False, side(part, by or "source", column))
        samples, others = keys_of(Deal(store, shards, rule), 2)
        parts[part] = sorted(key for keys in samples for key in keys)
        assert sorted([*parts[part], *(key for keys in others for key in keys)]) == KEYS
        assert all(keys == sorted(keys) for keys in others)
    assert sorted(itertools.chain(*parts.values())) == KEYS
    part_of = {key: part for part, keys in parts.items() for key in keys}
    sides = Counter((together_by(key, by, column), part) for key, part in part_of.items())
    assert len(sides) == len({group for group, _ in sides})
    assert all(parts.values())


def together_by(key: str, by: str, column: str | None) -> str:
    """What a sample must not be parted from."""
    value = columns_of(key)[column] if column else None
    return str(value) if value is not None else key if by == "sample" else key[:9]


def test_a_number_splits_as_its_digits_do(store: Store) -> None:
    shards = clips(store)
    rule = Rule(1, 0, False, side("train", column="number"))
    (samples,), _ = keys_of(Deal(store, shards, rule), 1)
    inside = rule.side.portion.holds(places(["0", "1", "2", "3"], "splits")) if rule.side else []
    assert {int(key[:9]) % 4 for key in samples} == set(np.flatnonzero(inside))
    assert 0 < len(samples) < len(KEYS)


def test_a_part_that_happens_to_be_empty_is_shards_of_rejects(store: Store, kept: str) -> None:
    nobody = Side(portion(Decimal(1), Decimal(1)), "source", None, 0)
    dealt = Deal(store, clips(store), Rule(3, 0, True, nobody))
    samples, others = keys_of(dealt, 3)
    assert samples == [[], [], []]
    assert sorted(key for keys in others for key in keys) == KEYS
    made = written(store, dealt, 1)
    assert (made.path, made.tar, made.samples) == (None, None, 0)
    assert made.rejects == len(others[1]) == made.reasons["other"] > 0


def test_samples_of_one_hash_lie_by_their_keys(
    store: Store, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(key: str, seed: int = ORDER_SEED) -> int:
        return order_hash(key, seed) >> 61

    monkeypatch.setattr("reelmill.shards.gather.order_hash", coarse)
    monkeypatch.setattr("reelmill.shards.writer.order_hash", coarse)
    dealt = Deal(store, clips(store), Rule(2, 0, False, None))
    samples, _ = keys_of(dealt, 2)
    assert sorted(key for keys in samples for key in keys) == KEYS
    for output, keys in enumerate(samples):
        assert keys == sorted(keys, key=lambda key: (coarse(key), key))
        assert as_bytes(written(store, dealt, output)) == as_bytes(
            made_anew(store, dealt, keys, [])
        )


def test_a_column_that_is_missing_or_unfit_is_named(store: Store) -> None:
    shards = clips(store)
    for column in ("chanel", "place", "key"):
        rule = Rule(1, 0, False, side("test", column=column))
        said = f"no column '{column}' of text or integers to split by; there are output, channel"
        with pytest.raises(StageError, match=said):
            Deal(store, shards, rule)


def test_inputs_with_different_columns_are_refused(store: Store) -> None:
    writer = ShardWriter(store.backend.scratch(), pa.schema([]))
    writer.add("000090000", {"txt": b""}, {})
    shards = [*clips(store), put_shard(store, writer.close()).shard("00009")]
    with pytest.raises(StageError, match="different columns"):
        Deal(store, shards, Rule(1, 0, False, None))


# What a writer takes whole


def test_a_writer_refuses_samples_out_of_their_order_twice_or_of_other_sizes(store: Store) -> None:
    dealt = Deal(store, clips(store), Rule(1, 0, False, None))
    samples, _, _ = dealt.rows(0)
    backwards = laid(samples.take(pa.array(range(len(samples) - 1, -1, -1))))
    twice = laid(pa.concat_tables([samples.slice(0, 1), samples.slice(0, 1)]))
    for rows, what in (
        (backwards, "out of its order"),
        (twice, "two samples"),
        (laid(samples), ""),
    ):
        writer = ShardWriter(store.backend.scratch(), COLUMNS)
        with pytest.raises(ShardError, match=what or "other sizes than its index says"):
            writer.lay(rows, [[memoryview(b"x" * 512)]])
        writer.abort()


def test_a_shard_that_is_laid_takes_nothing_else(store: Store) -> None:
    nothing = index.rejects(pa.array(["k"]), "other", "of another part", COLUMNS)
    for first in ("sample", "reject"):
        writer = ShardWriter(store.backend.scratch(), COLUMNS)
        if first == "sample":
            writer.add("a", {"txt": b""}, {})
        else:
            writer.reject("a", "gone", "it is gone", {})
        with pytest.raises(ShardError, match="other samples besides"):
            writer.lay(nothing, [])
        writer.abort()
    writer = ShardWriter(store.backend.scratch(), COLUMNS)
    writer.lay(nothing, [])
    for second in (
        lambda: writer.add("a", {"txt": b""}, {}),
        lambda: writer.reject("a", "gone", "it is gone", {}),
        lambda: writer.row("a", {}),
        lambda: writer.lay(nothing, []),
    ):
        with pytest.raises(ShardError, match="other samples besides"):
            second()
    assert (writer.samples, writer.rejects) == (0, 1)
    assert gather.sample_rows(writer.close().index).num_rows == 0
