"""Rows that enter a source once more, and what no longer counts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.digest import sha256
from reelmill.errors import ShardError, StageError
from reelmill.shards import index, provenance, removed
from reelmill.shards.index import Row
from reelmill.shards.removed import CHANGED, GONE, RETRIED, Removed
from reelmill.store.model import Blob, Generation, Manifest, Shard
from reelmill.tasks.again import enter_again
from reelmill.tasks.due import due


class Blobs:
    """Parquet blobs by digest."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes) -> Blob:
        digest = sha256(data)
        self.held[digest] = data
        return Blob(digest=digest, size=len(data))

    def read(self, digest: str) -> bytes:
        return self.held[digest]

    def manifest(self, *sizes: int, columns: Sequence[str] = ("url",)) -> Manifest:
        """A table of shards with so many rows each, as one generation."""
        schema = pa.schema([(name, pa.string()) for name in columns])
        shards = []
        for number, size in enumerate(sizes):
            rows = [
                Row(key, columns=dict.fromkeys(columns, f"http://h/{key}"))
                for key in (f"{number:05d}{place:04d}" for place in range(size))
            ]
            blob = self.put(index.encode(rows, schema))
            shards.append(Shard(id=f"{number:05d}", tar=None, index=blob, samples=size, rejects=0))
        return Manifest(fields=(), generations=(Generation(shards=tuple(shards)),))

    def again(self, base: Manifest, keys: Sequence[str], reason: str = RETRIED) -> Manifest:
        return enter_again(base, keys, reason, 3, self.read, self.put)

    def urls(self, shard: Shard) -> dict[str, str]:
        rows = index.decode(self.read(shard.index.digest)).to_pylist()
        return {row["key"]: row["url"] for row in rows}

    def removed(self, manifest: Manifest) -> dict[str, Removed]:
        (blob,) = manifest.removed
        return removed.decode(self.read(blob.digest))


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes),
            st.sets(
                st.sampled_from(
                    [f"{n:05d}{i:04d}" for n, size in enumerate(sizes) for i in range(size)]
                ),
                min_size=1,
            ),
        )
    )
)
def test_rows_enter_again_in_order_and_take_the_places_of_the_old(
    given: tuple[list[int], set[str]],
) -> None:
    sizes, keys = given
    blobs = Blobs()
    base = blobs.manifest(*sizes)
    grown = blobs.again(base, sorted(keys))
    assert grown.generations[:-1] == base.generations
    new = {k: u for shard in grown.generations[-1].shards for k, u in blobs.urls(shard).items()}
    assert list(new.values()) == [f"http://h/{key}" for key in sorted(keys)]
    gone = blobs.removed(grown)
    assert set(gone) == keys
    assert [gone[key].instead for key in sorted(keys)] == list(new)
    assert [shard.samples for shard in grown.generations[-1].shards[:-1]] == [3] * (
        len(grown.generations[-1].shards) - 1
    )


def test_a_row_may_enter_any_number_of_times() -> None:
    blobs = Blobs()
    once = blobs.again(blobs.manifest(2), ["000000001"])
    twice = blobs.again(once, ["000010000"], CHANGED)
    assert blobs.removed(twice) == {
        "000000001": Removed(RETRIED, "000010000"),
        "000010000": Removed(CHANGED, "000020000"),
    }
    assert blobs.urls(twice.generations[-1].shards[0]) == {"000020000": "http://h/000000001"}


def test_a_row_whose_place_was_taken_does_not_enter() -> None:
    blobs = Blobs()
    once = blobs.again(blobs.manifest(2), ["000000001"])
    assert blobs.again(once, ["000000001"]) == once


def test_rows_of_other_columns_go_into_shards_of_their_own() -> None:
    blobs = Blobs()
    base = blobs.manifest(1)
    other = blobs.manifest(1, 1, columns=("url", "title")).generations[0].shards[1]
    base = base.model_copy(update={"generations": (*base.generations, Generation(shards=(other,)))})
    grown = blobs.again(base, ["000000000", "000010000"])
    assert [shard.samples for shard in grown.generations[-1].shards] == [1, 1]


def test_no_rows_are_no_growth_and_unknown_rows_are_an_error() -> None:
    blobs = Blobs()
    base = blobs.manifest(2)
    assert blobs.again(base, []) == base
    with pytest.raises(StageError, match="1 of 2 rows are not in their source"):
        blobs.again(base, ["000000000", "000000009"])


def test_a_version_from_which_nothing_was_removed_is_named_as_ever() -> None:
    assert b"removed" not in Manifest(fields=(), generations=()).as_bytes()
    blob = Blob(digest="0" * 64, size=1)
    assert b"removed" in Manifest(fields=(), generations=(), removed=(blob,)).as_bytes()


@given(
    st.dictionaries(
        st.from_regex(r"[0-9]{9}", fullmatch=True),
        st.builds(Removed, st.sampled_from([GONE, RETRIED]), st.none() | st.just("000010000")),
    )
)
def test_removed_rows_are_read_back_as_they_were(rows: dict[str, Removed]) -> None:
    assert removed.decode(removed.encode(rows)) == rows
    assert removed.encode(dict(reversed(rows.items()))) == removed.encode(rows)


@pytest.mark.parametrize("decode", [removed.decode, provenance.decode])
def test_other_bytes_are_refused(decode: object) -> None:
    assert callable(decode)
    for data in (b"", b"PAR1 nonsense PAR1", index.encode([], pa.schema([]))[:-1]):
        with pytest.raises(ShardError, match="is not readable parquet"):
            decode(data)
    other = pa.table({"other": [1]})
    with pytest.raises(ShardError, match="column"):
        decode(index.write(other))


def test_provenance_is_read_back_by_key() -> None:
    columns = pa.schema([("attempts", pa.int32()), ("etag", pa.string())])
    rows = {"b": {"attempts": 2}, "a": {"etag": '"x"', "attempts": 1}}
    data = provenance.encode(rows, columns)
    assert data is not None
    assert provenance.decode(data) == {
        "a": {"attempts": 1, "etag": '"x"'},
        "b": {"attempts": 2, "etag": None},
    }
    assert provenance.encode({}, columns) is None
    assert provenance.encode(rows, None) is None


def test_a_check_is_due_once_in_each_period() -> None:
    month = 30 * 86400
    assert due("never", 0, 10 * month) is None
    assert due("if-changed", 5, 5) == {"moment": 5}
    assert due("after 2592000s", 100, 100 + month - 1) is None
    first = due("after 2592000s", 100, 100 + month)
    assert first == due("after 2592000s", 100, 100 + 2 * month - 1)
    assert first != due("after 2592000s", 100, 100 + 2 * month)
    assert due("after 2592000s", 100, 0) is None
