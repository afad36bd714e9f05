"""The shuffle's reading side: who goes where, and the bytes that get there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import order_hash
from reelmill.errors import ShardError
from reelmill.shards import gather, index
from reelmill.shards.gather import Extents, Gatherer, laid, sample_rows
from reelmill.shards.reader import MAX_GAP
from reelmill.shards.writer import ShardWriter, Written, put_shard
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.model import Shard, blob_name
from tests.s3_server import Faults

NO_COLUMNS = pa.schema([])


def as_written(keys: Sequence[str]) -> list[str]:
    """The keys of a shard in the order in which its writer lays them."""
    return sorted(keys, key=lambda key: (order_hash(key), key))


def outputs_of(
    keys: Sequence[Sequence[str]], outputs: int, seed: int = 0, sizes: Sequence[int] | None = None
) -> list[list[str]]:
    """The keys of each output, input by input."""
    flat = [key for shard in keys for key in shard]
    order = gather.hashes(flat, seed)
    weights = None if sizes is None else np.array(sizes, np.int64)
    to = gather.dealt(order, gather.even_bounds(order, outputs, weights))
    return [[key for key, one in zip(flat, to, strict=True) if one == o] for o in range(outputs)]


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
    got = outputs_of(shards, outputs, seed)
    assert sorted(key for keys in got for key in keys) == sorted(k for s in shards for k in s)
    counts = [len(keys) for keys in got]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=150)
@given(generations(), st.randoms(use_true_random=False))
def test_an_output_depends_on_the_set_of_samples_and_not_on_how_they_came(
    generation: tuple[list[list[str]], int, int], chance: random.Random
) -> None:
    shards, outputs, seed = generation
    expected = [set(keys) for keys in outputs_of(shards, outputs, seed)]
    mixed = [key for shard in shards for key in shard]
    chance.shuffle(mixed)
    assert [set(keys) for keys in outputs_of([mixed], outputs, seed)] == expected


@settings(max_examples=150)
@given(generations())
def test_by_default_an_output_is_one_run_of_each_input(
    generation: tuple[list[list[str]], int, int],
) -> None:
    shards, outputs, _ = generation
    got = outputs_of(shards, outputs)
    for shard in shards:
        assert [key for keys in got for key in keys if key in set(shard)] == shard


@settings(max_examples=150)
@given(st.data(), st.lists(st.integers(512, 10_000), min_size=1, max_size=80), st.integers(0, 3))
def test_by_bytes_outputs_differ_by_no_more_than_samples_are_large(
    data: st.DataObject, sizes: list[int], seed: int
) -> None:
    keys = [f"{n:09d}" for n in range(len(sizes))]
    # As many outputs as shards of at least twice the largest sample give.
    outputs = data.draw(st.integers(1, max(1, sum(sizes) // (2 * max(sizes)))))
    got = outputs_of([keys], outputs, seed, sizes)
    assert sorted(key for of_one in got for key in of_one) == keys
    weights = [sum(sizes[int(key)] for key in of_one) for of_one in got]
    share = sum(sizes) / outputs
    assert all(abs(weight - share) <= max(sizes) + 1 for weight in weights)


@given(st.lists(st.integers(512, 10**12), min_size=1, max_size=30), st.integers(1, 40))
def test_by_bytes_no_output_is_empty_while_there_are_samples(
    sizes: list[int], outputs: int
) -> None:
    keys = [f"{n:09d}" for n in range(len(sizes))]
    counts = [len(of_one) for of_one in outputs_of([keys], outputs, 0, sizes)]
    assert sum(counts) == len(keys)
    assert sum(1 for count in counts if count) == min(outputs, len(keys))


def test_bytes_beyond_any_integer_of_numpy_are_balanced() -> None:
    order = gather.hashes(f"{n:09d}" for n in range(4000))
    bounds = gather.even_bounds(order, 3000, np.full(4000, 2**50, np.int64))
    assert set(np.bincount(gather.dealt(order, bounds))) == {1, 2}


def test_another_seed_deals_otherwise_and_the_same_seed_alike() -> None:
    shards = [as_written([f"{s:05d}{n:04d}" for n in range(200)]) for s in range(5)]
    by_seed = [outputs_of(shards, 10, seed) for seed in (0, 1, 2, 1)]
    assert by_seed[1] == by_seed[3]
    for other in (1, 2):
        kept = sum(len(set(a) & set(b)) for a, b in zip(by_seed[0], by_seed[other], strict=True))
        assert 50 < kept < 150  # one in ten, by chance
    for output in by_seed[1]:
        assert len({key[:5] for key in output}) == 5


def test_nothing_is_dealt_evenly_too() -> None:
    assert outputs_of([], 3) == [[], [], []]
    assert gather.even_bounds(gather.hashes([]), 4).tolist() == [2**62, 2**63, 3 * 2**62]


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
    return filled(store_url)


def filled(url: str) -> tuple[Store, list[Shard]]:
    store = Store.open(url, create=True)
    shards = []
    for source, samples in SAMPLES.items():
        writer = ShardWriter(store.backend.scratch(), NO_COLUMNS)
        for key, named in samples.items():
            writer.add(key, named, {})
        writer.reject(f"{source:05d}9999", "gone", "it is gone", {})
        written = writer.close()
        shards.append(put_shard(store, written).shard(f"{source:05d}"))
    return store, shards


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
    rows = {
        str(row["key"]): (shard, row)
        for shard in shards
        for row in sample_rows(store.read_blob(shard.index.digest, "parquet")).to_pylist()
    }
    return [[rows[key] for key in as_written(o)] for o in outputs_of([list(rows)], outputs, seed)]


def gathered(store: Store, scratch: Path, wanted: Wanted) -> Written:
    """The output shard, all at once."""
    tars = list(dict.fromkeys(tar_name(shard) for shard, _ in wanted))
    rows = pa.Table.from_pylist([row for _, row in wanted], schema=index.BASE)
    places = np.array([tars.index(tar_name(shard)) for shard, _ in wanted], np.int64)
    writer = ShardWriter(scratch, NO_COLUMNS)
    try:
        with Gatherer(store, scratch) as gatherer:
            writer.lay(laid(rows), gatherer.stream(tars, Extents.of(rows, places)))
        return writer.close()
    except BaseException:
        writer.abort()
        raise


def by_spans(store: Store, scratch: Path, wanted: Wanted) -> Written:
    """The output shard, copied span by span."""
    writer = ShardWriter(scratch, NO_COLUMNS)
    with Gatherer(store, scratch) as gatherer:
        for (_, row), span in zip(wanted, gatherer.spans(wanted), strict=True):
            writer.add_span(str(row["key"]), span, {})
    return writer.close()


def tar_name(shard: Shard) -> str:
    assert shard.tar is not None
    return blob_name(shard.tar.digest, "tar")


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


@pytest.mark.parametrize("gathering", [gathered, by_spans])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_shuffled_shard_has_the_bytes_of_one_made_anew(
    inputs: tuple[Store, list[Shard]],
    scratch: Path,
    seed: int,
    gathering: Callable[[Store, Path, Wanted], Written],
) -> None:
    store, shards = inputs
    outputs = wanted_of(store, shards, 3, seed)
    assert sorted(str(row["key"]) for wanted in outputs for _, row in wanted) == sorted(BY_KEY)
    for wanted in outputs:
        assert_same(gathering(store, scratch, wanted), made_anew(scratch, wanted))


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


@pytest.mark.parametrize("limit", [30_000, 200_000, 1 << 20])
@pytest.mark.parametrize("seed", [0, 7])
def test_no_more_than_a_window_is_fetched_at_once_and_nothing_twice(
    s3_url: str, scratch: Path, monkeypatch: pytest.MonkeyPatch, limit: int, seed: int
) -> None:
    monkeypatch.setattr(gather, "WINDOW", limit)
    store, shards = filled(s3_url)
    asked: list[int] = []
    read = store.backend.read_ranges

    def watched(ranges: list[Range]) -> list[bytes]:
        asked.append(sum(wanted.stop - wanted.start for wanted in ranges))
        return read(ranges)

    (_, wanted) = wanted_of(store, shards[:2], 2, seed)
    size = sum(int(str(row["size"])) for _, row in wanted)
    monkeypatch.setattr(store.backend, "read_ranges", watched)
    assert_same(gathered(store, scratch, wanted), made_anew(scratch, wanted))
    assert len(asked) == -(-size // limit)
    # Beside what is wanted, short gaps are read, which cost less than a request.
    assert max(asked) <= limit + (0 if seed == 0 else len(wanted) * MAX_GAP)
    assert sum(asked) == size or seed


def test_a_tar_shorter_than_its_index_says_is_noticed(tmp_path: Path, scratch: Path) -> None:
    store, shards = filled(str(tmp_path / "store"))
    (wanted,) = wanted_of(store, shards[:1], 1, 0)
    tar = shards[0].tar
    assert tar is not None
    data = store.read_blob(tar.digest, "tar")
    store.backend.delete(tar_name(shards[0]))
    store.backend.put(tar_name(shards[0]), data[:-20_000])
    with pytest.raises(ShardError, match="shorter than its index says"):
        gathered(store, scratch, wanted)


def test_a_disk_that_takes_less_than_asked_is_asked_again(
    inputs: tuple[Store, list[Shard]], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shards = inputs
    whole = os.pwrite
    (wanted,) = wanted_of(store, shards[:1], 1, 0)
    vector = os.pwritev

    def short(descriptor: int, views: Sequence[memoryview], at: int) -> int:
        return vector(descriptor, [views[0][:10_000]], at)

    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, bytes(data)[:10_000], at))
    monkeypatch.setattr(os, "pwritev", short)
    for gathering in (gathered, by_spans):
        assert_same(gathering(store, scratch, wanted), made_anew(scratch, wanted))


def test_by_default_an_output_costs_one_request_for_each_input(
    s3_url: str, s3_faults: Faults, scratch: Path
) -> None:
    store = Store.open(s3_url, create=True)
    shards = [
        put_shard(store, made_small(scratch, source)).shard(f"{source:05d}")
        for source in range(INPUTS)
    ]
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
    rows = pa.Table.from_pylist([{**row, "status": "ok"}], schema=index.BASE)
    with pytest.raises(ShardError):
        Extents.of(rows, np.zeros(1, np.int64))


def test_rejects_are_no_samples(inputs: tuple[Store, list[Shard]]) -> None:
    store, shards = inputs
    table = sample_rows(store.read_blob(shards[0].index.digest, "parquet"))
    assert table["key"].to_pylist() == as_written(list(SAMPLES[0]))
    assert set(table["status"].to_pylist()) == {index.OK}
