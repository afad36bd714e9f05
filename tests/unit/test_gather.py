"""The shuffle's reading side: who goes where, and the bytes that get there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import order_hash
from reelmill.errors import ShardError
from reelmill.shards import gather, index
from reelmill.shards.gather import Gatherer, Layout, layout, sample_rows
from reelmill.shards.writer import ShardWriter, Written
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.model import Shard
from tests.s3_server import Faults

NO_COLUMNS = pa.schema([])


def as_written(keys: Sequence[str]) -> list[str]:
    """The keys of a shard in the order in which its writer lays them."""
    return sorted(keys, key=lambda key: (order_hash(key), key))


def dealt(plan: Layout, keys: Sequence[Sequence[str]], outputs: int) -> list[list[str]]:
    """The keys of each output."""
    return [
        [keys[source][row] for source in range(len(keys)) for row in plan.rows(source, output)]
        for output in range(outputs)
    ]


# Who goes where


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[list[str]], int, int]:
    """Input shards as they are written, a number of outputs, and a seed."""
    keys = draw(
        st.lists(st.text("0123456789ab_", min_size=1, max_size=9), unique=True, max_size=60)
    )
    places = [draw(st.integers(0, 4)) for _ in keys]
    shards = [
        as_written([k for k, p in zip(keys, places, strict=True) if p == n]) for n in range(5)
    ]
    outputs = draw(st.integers(1, max(len(keys), 1)))
    return shards, outputs, draw(st.sampled_from([0, 0, 1, 2**31]))


@settings(max_examples=150)
@given(generations())
def test_every_sample_goes_to_exactly_one_output_and_outputs_are_even(
    generation: tuple[list[list[str]], int, int],
) -> None:
    shards, outputs, seed = generation
    got = dealt(layout(shards, outputs, seed), shards, outputs)
    assert sorted(key for keys in got for key in keys) == sorted(k for s in shards for k in s)
    counts = [len(keys) for keys in got]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=150)
@given(generations(), st.randoms(use_true_random=False))
def test_an_output_depends_on_the_set_of_samples_and_not_on_how_they_came(
    generation: tuple[list[list[str]], int, int], chance: random.Random
) -> None:
    shards, outputs, seed = generation
    expected = [set(keys) for keys in dealt(layout(shards, outputs, seed), shards, outputs)]
    other_order = [list(shard) for shard in shards]
    chance.shuffle(other_order)
    other_shards = [as_written([k for s in shards for k in s])]
    for arrangement in (other_order, other_shards):
        plan = layout(arrangement, outputs, seed)
        assert [set(keys) for keys in dealt(plan, arrangement, outputs)] == expected


@settings(max_examples=150)
@given(generations())
def test_by_default_an_output_is_one_run_of_each_input(
    generation: tuple[list[list[str]], int, int],
) -> None:
    shards, outputs, _ = generation
    plan = layout(shards, outputs)
    for source in range(len(shards)):
        begin = 0
        for output in range(outputs):
            rows = plan.rows(source, output)
            assert list(rows) == list(range(begin, begin + len(rows)))
            begin += len(rows)
        assert begin == len(shards[source])


def test_another_seed_deals_otherwise_and_the_same_seed_alike() -> None:
    shards = [as_written([f"{s:05d}{n:04d}" for n in range(200)]) for s in range(5)]
    by_seed = [dealt(layout(shards, 10, seed), shards, 10) for seed in (0, 1, 2, 1)]
    assert by_seed[1] == by_seed[3]
    for other in (1, 2):
        kept = sum(len(set(a) & set(b)) for a, b in zip(by_seed[0], by_seed[other], strict=True))
        assert 50 < kept < 150  # one in ten, by chance
    for output in by_seed[1]:
        assert len({key[:5] for key in output}) == 5


def test_every_output_draws_on_every_input() -> None:
    shards = [as_written([f"{s:05d}{n:04d}" for n in range(300)]) for s in range(6)]
    plan = layout(shards, 9)
    counts = np.array([[len(plan.rows(s, o)) for s in range(6)] for o in range(9)])
    assert counts.sum(axis=1).tolist() == [200] * 9
    assert counts.min() > 10


def test_a_generation_without_samples_is_dealt() -> None:
    assert dealt(layout([], 1), [], 1) == [[]]
    assert dealt(layout([[], []], 1), [[], []], 1) == [[]]


# The bytes


def contents(source: int, number: int) -> dict[str, bytes]:
    chance = random.Random(f"{source} {number}")
    size = [0, 1, 511, 512, 513, 4000, 150_000][number % 7]
    return {"mp4": chance.randbytes(size), "json": b'{"n":%d}' % number}


INPUTS, EACH = 4, 21
SAMPLES = {
    source: {f"{source:05d}{n:04d}": contents(source, n) for n in range(EACH)}
    for source in range(INPUTS)
}
BY_KEY = {key: named for samples in SAMPLES.values() for key, named in samples.items()}


@pytest.fixture
def inputs(store_url: str) -> tuple[Store, list[Shard]]:
    """A store with input shards, one sample of each rejected."""
    store = Store.open(store_url, create=True)
    shards = []
    for source, samples in SAMPLES.items():
        writer = ShardWriter(store.backend.scratch(), NO_COLUMNS)
        for key, named in samples.items():
            writer.add(key, named, {})
        writer.reject(f"{source:05d}9999", "gone", "it is gone", {})
        written = writer.close()
        shards.append(commit(store, written, source))
    return store, shards


def commit(store: Store, written: Written, number: int) -> Shard:
    assert written.path is not None
    assert written.tar is not None
    store.put_blob_file(written.path, written.tar, "tar")
    return Shard(
        id=f"{number:05d}",
        tar=written.tar,
        index=store.put_blob(written.index, "parquet"),
        samples=written.samples,
        rejects=written.rejects,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that the test must leave empty, like this process its list of files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


Wanted = list[tuple[Shard, dict[str, object]]]


def wanted_of(store: Store, shards: Sequence[Shard], outputs: int, seed: int) -> list[Wanted]:
    """The (shard, index row) pairs of each output, in the keyed order."""
    tables = [sample_rows(store.read_blob(shard.index.digest, "parquet")) for shard in shards]
    plan = layout([table["key"].to_pylist() for table in tables], outputs, seed)
    out = []
    for output in range(outputs):
        wanted: Wanted = [
            (shard, row)
            for source, (shard, table) in enumerate(zip(shards, tables, strict=True))
            for row in table.take(pa.array(plan.rows(source, output))).to_pylist()
        ]
        out.append(sorted(wanted, key=lambda pair: order_hash(str(pair[1]["key"]))))
    return out


def gathered(store: Store, scratch: Path, wanted: Wanted) -> Written:
    """The output shard, copied span by span."""
    writer = ShardWriter(scratch, NO_COLUMNS)
    with Gatherer(store, scratch) as gatherer:
        for (_, row), span in zip(wanted, gatherer.spans(wanted), strict=True):
            writer.add_span(str(row["key"]), span, {})
    return writer.close()


def made_anew(scratch: Path, wanted: Wanted) -> Written:
    """The output shard, as a writer makes it from the samples themselves."""
    writer = ShardWriter(scratch, NO_COLUMNS)
    for _, row in wanted:
        writer.add(str(row["key"]), BY_KEY[str(row["key"])], {})
    return writer.close()


def assert_same(one: Written, two: Written) -> None:
    assert one.tar == two.tar
    assert one.index == two.index
    assert (one.samples, one.fields) == (two.samples, two.fields)
    assert one.path is not None
    assert two.path is not None
    assert one.path.read_bytes() == two.path.read_bytes()
    one.path.unlink()
    two.path.unlink()


@pytest.mark.parametrize("seed", [0, 7])
def test_a_shuffled_shard_has_the_bytes_of_one_made_anew(
    inputs: tuple[Store, list[Shard]], scratch: Path, seed: int
) -> None:
    store, shards = inputs
    outputs = wanted_of(store, shards, 3, seed)
    assert sorted(str(row["key"]) for wanted in outputs for _, row in wanted) == sorted(BY_KEY)
    for wanted in outputs:
        assert_same(gathered(store, scratch, wanted), made_anew(scratch, wanted))


def test_the_order_of_the_inputs_changes_nothing(
    inputs: tuple[Store, list[Shard]], scratch: Path
) -> None:
    store, shards = inputs
    for one, two in zip(
        wanted_of(store, shards, 2, 0), wanted_of(store, shards[::-1], 2, 0), strict=True
    ):
        assert_same(gathered(store, scratch, one), gathered(store, scratch, two))


def test_a_span_holds_the_bytes_of_its_source(
    inputs: tuple[Store, list[Shard]], scratch: Path
) -> None:
    store, shards = inputs
    (wanted,) = wanted_of(store, shards[:2], 1, 0)
    with Gatherer(store, scratch) as gatherer:
        for (shard, row), span in zip(wanted, gatherer.spans(wanted), strict=True):
            assert shard.tar is not None
            start, size = int(str(row["offset"])), int(str(row["size"]))
            name = f"blobs/sha256/{shard.tar.digest[:2]}/{shard.tar.digest}.tar"
            (source,) = store.backend.read_ranges([Range(name, start, start + size)])
            assert os.pread(span.descriptor, span.size, span.offset) == source
            assert span.xxh3 == row["xxh3"]
            for member in span.fields:
                data = os.pread(span.descriptor, member.size, member.offset)
                assert data == BY_KEY[str(row["key"])][member.name]


def test_gathering_closes_all_its_files_even_after_a_failure(
    inputs: tuple[Store, list[Shard]], scratch: Path
) -> None:
    store, shards = inputs
    (wanted,) = wanted_of(store, shards, 1, 0)
    opened = set()

    def fail() -> None:
        with Gatherer(store, scratch) as gatherer:
            for _ in range(2):
                opened.update(span.descriptor for span in gatherer.spans(wanted))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(opened) >= 2
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_more_inputs_than_may_be_open_at_once_are_gathered(
    inputs: tuple[Store, list[Shard]], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_MAX_OPEN", 2)
    store, shards = inputs
    for wanted in wanted_of(store, shards, 2, 7):
        assert_same(gathered(store, scratch, wanted), made_anew(scratch, wanted))


@pytest.mark.parametrize("limit", [30_000, 200_000])
def test_a_run_larger_than_memory_should_hold_is_fetched_in_pieces(
    inputs: tuple[Store, list[Shard]],
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    monkeypatch.setattr(gather, "_MAX_FETCH", limit)
    store, shards = inputs
    asked: list[int] = []
    read = store.backend.read_ranges

    def watched(ranges: list[Range]) -> list[bytes]:
        asked.append(sum(wanted.stop - wanted.start for wanted in ranges))
        return read(ranges)

    (_, wanted) = wanted_of(store, shards[:2], 2, 0)
    monkeypatch.setattr(store.backend, "read_ranges", watched)
    assert_same(gathered(store, scratch, wanted), made_anew(scratch, wanted))
    if not store.backend.is_local:
        assert sum(asked) == sum(int(str(row["size"])) for _, row in wanted)
        assert max(asked) < 2 * limit


def test_a_disk_that_takes_less_than_asked_is_asked_again(
    inputs: tuple[Store, list[Shard]], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shards = inputs
    whole = os.pwrite
    (wanted,) = wanted_of(store, shards[:1], 1, 0)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, bytes(data)[:10_000], at))
    assert_same(gathered(store, scratch, wanted), made_anew(scratch, wanted))


def test_by_default_an_output_costs_one_request_for_each_input(
    s3_url: str, s3_faults: Faults, scratch: Path
) -> None:
    store = Store.open(s3_url, create=True)
    shards = [commit(store, made_small(scratch, source), source) for source in range(INPUTS)]
    outputs = wanted_of(store, shards, 3, 0)
    for wanted in outputs:
        s3_faults.clear()
        path = gathered(store, scratch, wanted).path
        assert s3_faults.count("GET") == len(s3_faults.log) == INPUTS
        assert path is not None
        path.unlink()


def made_small(scratch: Path, source: int) -> Written:
    writer = ShardWriter(scratch, NO_COLUMNS)
    for n in range(60):
        writer.add(f"{source:05d}{n:04d}", {"txt": b"%d" % n}, {})
    return writer.close()


def test_an_index_without_places_is_refused(
    inputs: tuple[Store, list[Shard]], scratch: Path
) -> None:
    store, shards = inputs
    row: dict[str, object] = {"key": "k", "offset": None, "size": 512, "xxh3": 1, "fields": []}
    with pytest.raises(ShardError), Gatherer(store, scratch) as gatherer:
        list(gatherer.spans([(shards[0], row)]))


def test_rejects_are_no_samples(inputs: tuple[Store, list[Shard]]) -> None:
    store, shards = inputs
    table = sample_rows(store.read_blob(shards[0].index.digest, "parquet"))
    assert table["key"].to_pylist() == as_written(list(SAMPLES[0]))
    assert set(table["status"].to_pylist()) == {index.OK}
