"""Where the samples of a shard lie in its tar, in few bytes each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reelmill.errors import ShardError
from reelmill.shards import index

Integers = npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where a sample lies in the tar of a shard: parallel lists of fields, offsets and sizes.

    ``shard`` is a place in the dataset's list of shards.
    """

    shard: int
    key: str
    names: list[str]
    offsets: list[int]
    sizes: list[int]


class Places:
    """The samples of a shard, in the tar's order: iterable, and by number."""

    def __init__(
        self, shard: int, keys: pa.Array, starts: Integers, names: pa.Array, spans: Integers
    ) -> None:
        self.shard = shard
        self.keys = keys
        self._starts = starts
        self._names = names
        self._spans = spans

    @classmethod
    def of_index(cls, shard: int, rows: pa.Table, end: int) -> Places:
        """From rows of an index, all of samples; ``end`` is the size of the tar.

        Raises:
            ShardError: one points beyond the end.
        """
        lists = rows["fields"].combine_chunks()
        flat = lists.flatten()
        starts = lists.offsets.to_numpy().astype(np.int64)
        columns = [flat.field(name).to_numpy() for name in ("offset", "size")]
        spans = np.array(columns, np.int64)
        if (spans.sum(axis=0) > end).any():
            raise ShardError("an index points beyond the end of its tar")
        names = flat.field("name").dictionary_encode()
        return cls(shard, rows["key"].combine_chunks(), starts - starts[0], names, spans)

    @classmethod
    def of_groups(
        cls, shard: int, groups: Iterable[tuple[str, Mapping[str, tuple[int, int]]]]
    ) -> Places:
        """From keys, and each field's offset and size."""
        keys: list[str] = []
        starts = [0]
        names: list[str] = []
        spans: list[tuple[int, int]] = []
        for key, fields in groups:
            keys.append(key)
            names.extend(fields)
            spans.extend(fields.values())
            starts.append(len(names))
        return cls(
            shard,
            pa.array(keys, pa.string()),
            np.array(starts, np.int64),
            pa.array(names, pa.string()).dictionary_encode(),
            np.array(spans, np.int64).reshape(-1, 2).T,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Place]:
        starts = self._starts.tolist()
        known = self._names.dictionary.to_pylist()
        names = [known[code] for code in self._names.indices.to_pylist()]
        offsets, sizes = self._spans.tolist()
        for number, key in enumerate(self.keys.to_pylist()):
            a, b = starts[number], starts[number + 1]
            yield Place(self.shard, key, names[a:b], offsets[a:b], sizes[a:b])

    def __getitem__(self, number: int) -> Place:
        a, b = self._starts[number : number + 2].tolist()
        offsets, sizes = self._spans[:, a:b].tolist()
        key: str = self.keys[number].as_py()
        known, codes = self._coded
        return Place(self.shard, key, [known[n] for n in codes[a:b].tolist()], offsets, sizes)

    @cached_property
    def _coded(self) -> tuple[list[str], Any]:
        """The names of fields, and an array of which one each field has."""
        return self._names.dictionary.to_pylist(), self._names.indices.to_numpy()

    def find(self, key: str) -> int | None:
        """The number of the sample of a key."""
        found: int = pc.index(self.keys, key).as_py()
        return None if found < 0 else found

    def only(self, fields: frozenset[str]) -> Places:
        """The same samples, with no other fields than these."""
        chosen = pc.is_in(self._names.dictionary, pa.array(sorted(fields), pa.string()))
        kept = np.asarray(chosen)[np.asarray(self._names.indices)]
        before = np.concatenate(([0], np.cumsum(kept)))
        names = self._names.filter(pa.array(kept))
        return Places(self.shard, self.keys, before[self._starts], names, self._spans[:, kept])

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        arrow = self.keys.nbytes + self._names.nbytes
        return int(arrow + self._starts.nbytes + self._spans.nbytes)


def sample_rows(data: bytes) -> pa.Table:
    """The columns of an index that tell where its samples lie, of samples alone.

    Raises:
        ShardError: the bytes are no index.
    """
    rows: Any = index.decode(data, ["key", "status", "fields"])
    return rows.filter(pc.equal(rows["status"], index.OK)).combine_chunks()
