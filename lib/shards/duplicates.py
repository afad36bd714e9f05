"""Finding duplicates: which samples of a generation hold what a sample before them holds.

The indexes of all generations are read once. A digest of each sample's value goes to one of many
files by the digest's first bits, so that equals meet in one file; there the first of equals is the
one that is kept, and the others go to files again, now by shard. Everything is read in the order
of generations, shards and keys, which decides who is first. Memory holds the different values of
one file: some 2**18 of them for up to 2**26 samples. Scratch holds about 60 bytes a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.errors import StageError
from reelmill.shards import index
from reelmill.store import Store
from reelmill.store.model import Generation, Shard

_IN_FILE = 1 << 18
_MOST_FILES = 256
_HELD = 1 << 16
"""Lines kept in memory before they are written."""

_DIGITS = 32
"""Hexadecimal digits of a digest that are compared. Two values that agree in 128 bits of sha256 do
not come about by chance, and nobody can make them."""

_READERS = 8


def find_duplicates(
    store: Store, generations: Sequence[Generation], column: str, scratch: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """The duplicates among the samples of the last generation, shard by shard.

    Yields the ID of each shard that has any, and for each of them its key and the key of the
    sample that is kept: the first with the same value in the order of generations, shards and
    keys. A sample without a value is nobody's duplicate.

    Args:
        column: the index column whose values are compared, of type string.
        scratch: an empty folder.

    Raises:
        StageError: an index has no such column.
    """
    shards = [shard for generation in generations for shard in generation.shards]
    first_new = len(shards) - len(generations[-1].shards)
    values = _Files(scratch, "values", _files_for(shards))
    for place, samples in enumerate(_values(store, shards, column)):
        for key, value in samples:
            digest = hashlib.sha256(value.encode()).hexdigest()[:_DIGITS]
            values.add(int(digest[:2], 16), f"{digest} {key} {place}\n")
    found = _Files(scratch, "found", _files_for(shards[first_new:]))
    for file in range(values.count):
        firsts: dict[str, str] = {}
        for digest, key, at in values.read(file):
            kept = firsts.setdefault(digest, key)
            if kept is not key and int(at) >= first_new:
                found.add(int(at), f"{at} {key} {kept}\n")
    for file in range(found.count):
        by_shard: dict[int, dict[str, str]] = {}
        for at, key, kept in found.read(file):
            by_shard.setdefault(int(at), {})[key] = kept
        for place in sorted(by_shard):
            yield shards[place].id, by_shard[place]


def _files_for(shards: Sequence[Shard]) -> int:
    """A power of two."""
    full = sum(shard.samples for shard in shards) // _IN_FILE
    return min(1 << full.bit_length(), _MOST_FILES)


def _values(store: Store, shards: Sequence[Shard], column: str) -> Iterator[list[tuple[str, str]]]:
    """The (key, value) pairs of each shard, sorted by key."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(shards), _READERS):
            batch = shards[start : start + _READERS]
            yield from pool.map(lambda shard: _values_of(store, shard, column), batch)


def _values_of(store: Store, shard: Shard, column: str) -> list[tuple[str, str]]:
    data = store.read_blob(shard.index.digest, "parquet")
    table = index.decode(data, ["key", "status", column])
    if column not in table.column_names or not pa.types.is_string(table[column].type):
        raise StageError(
            f"the index of input shard {shard.id} has no text column {column!r} to compare samples "
            "by; name one with the parameter 'column'"
        )
    table = table.filter(pc.and_(pc.equal(table["status"], index.OK), pc.is_valid(table[column])))
    return sorted(zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True))


class _Files:
    """Lines of words dealt to files, each of which is read in the order in which it was written."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.count = count
        self._paths = [folder / f"{name}-{number:03d}" for number in range(count)]
        self._lines: list[list[str]] = [[] for _ in range(count)]
        self._held = 0

    def add(self, number: int, line: str) -> None:
        """Append a line to a file, by its number modulo ``count``."""
        self._lines[number % self.count].append(line)
        self._held += 1
        if self._held >= _HELD:
            self._flush()

    def read(self, number: int) -> Iterator[list[str]]:
        """The words of each line of a file, which is gone afterwards."""
        self._flush()
        if not self._paths[number].exists():
            return
        with self._paths[number].open(encoding="utf-8") as file:
            for line in file:
                yield line.split()
        self._paths[number].unlink()

    def _flush(self) -> None:
        for path, lines in zip(self._paths, self._lines, strict=True):
            if lines:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
                lines.clear()
        self._held = 0
