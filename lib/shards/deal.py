"""Dealing a generation: the index rows of all its samples, by the output shard that each goes to.

All indexes are read, and the rows laid in the order of the outputs, once for each process that
makes any. Up to some size the rows stay in memory. Those of more lie in an unnamed file in scratch,
by groups of outputs, so that an output costs the reading of its group and not of every index.
Besides, memory holds some 50 bytes a sample while a generation is dealt, and none afterwards.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reelmill.errors import StageError
from reelmill.shards import gather, index
from reelmill.shards.portion import By, Portion, places, together
from reelmill.store import Store
from reelmill.store.local import scratch_name
from reelmill.store.model import Shard, blob_name

KEPT = 32 << 20
"""Bytes of rows that stay in memory."""

GROUP = 8 << 20
"""Bytes of rows of one group of outputs, about, where they do not."""

_HELD = 32 << 20
"""Bytes of rows that are held before they are written."""

_READERS = 8

_OWN = pa.schema(
    [
        pa.field("output", pa.int64()),
        pa.field("outside", pa.int8()),
        pa.field("place", pa.uint64()),
        pa.field("tar", pa.int64()),
    ]
)
"""What is known of a row, in columns before those of its index, which may have such names too."""

_OUTPUT, _OUTSIDE, _PLACE, _TAR = range(4)

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Side:
    """Which samples are dealt at all: those of a portion, by what must stay together.

    With ``column``, that is the value of an index column, of text or integers; a sample without
    one goes by its key, as ``by`` says.
    """

    portion: Portion
    by: By
    column: str | None
    seed: int


@dataclass(frozen=True, slots=True)
class Rule:
    """How a generation is dealt; see `gather.hashes` and `gather.even_bounds`."""

    outputs: int
    seed: int
    by_bytes: bool
    side: Side | None


class Deal:
    """A generation, dealt.

    ``tars`` are the blob names of its tars, ``columns`` the index columns of its stage.
    """

    def __init__(self, store: Store, shards: Sequence[Shard], rule: Rule) -> None:
        self._store = store
        self._shards = [shard for shard in shards if shard.samples]
        self._rule = rule
        self.tars = [blob_name(shard.tar.digest, "tar") for shard in self._shards if shard.tar]
        self._schema = index.BASE
        self._bounds = np.empty(0, np.uint64)
        orders: list[gather.Hashes] = []
        insides: list[_Mask] = []
        kept = self._survey(orders, insides)
        self._groups = -(-self._bytes // GROUP) if kept is None else 1
        self._groups = min(self._groups, rule.outputs)
        self._spill = _Spill(store.backend.scratch(), self._groups) if kept is None else None
        self._loaded: tuple[int, pa.Table] = (-1, pa.table({}))
        tables = kept if kept is not None else self._tables()
        known = self._known(zip(tables, orders, insides, strict=True))
        if self._spill is None:
            self._loaded = (0, self._joined(known))
        else:
            self._sort_out(known, self._spill)

    @property
    def columns(self) -> pa.Schema:
        return index.own_columns(self._schema)

    def rows(self, output: int) -> tuple[pa.Table, pa.Table, gather.Integers]:
        """The index rows of an output: its samples in their order, and those that are left out, by
        key; and of each sample the place of its tar in ``tars``."""
        group = output * self._groups // self._rule.outputs
        loaded = self._loaded
        if loaded[0] != group:
            assert self._spill is not None
            loaded = self._loaded = (group, self._joined(self._spill.read(group)))
        table = loaded[1]
        first, end = np.searchsorted(table.column(_OUTPUT).to_numpy(), [output, output + 1])
        table = table.slice(first, end - first)
        inside = int(np.count_nonzero(table.column(_OUTSIDE).to_numpy() == 0))
        rows = table.select(list(range(len(_OWN), table.num_columns)))
        tars = table.column(_TAR).to_numpy()[:inside]
        return rows.slice(0, inside), rows.slice(inside), tars

    def _joined(self, tables: Iterable[pa.Table]) -> pa.Table:
        none = pa.schema([*_OWN, *self._schema]).empty_table()
        return _in_order(pa.concat_tables([none, *tables]))

    def _survey(self, orders: list[gather.Hashes], insides: list[_Mask]) -> list[pa.Table] | None:
        """Decide on the bounds of outputs; the rows, if they are few enough to be kept.

        Args:
            orders: gets the places of each shard's samples in the order in which they are dealt.
            insides: gets which of them are dealt at all.
        """
        kept: list[pa.Table] | None = []
        sizes: list[gather.Integers] = []
        self._bytes = 0
        for table in self._tables():
            if not orders:
                self._schema = table.schema
            elif not table.schema.equals(self._schema):
                raise StageError("the input's shards have indexes with different columns")
            self._bytes += table.nbytes
            if kept is not None:
                kept.append(table)
            if self._bytes > KEPT:
                kept = None
            orders.append(gather.hashes(table["key"].to_pylist(), self._rule.seed))
            sizes.append(table["size"].to_numpy())
            insides.append(_inside(table, self._rule.side))
        if orders:
            inside = np.concatenate(insides)
            self._bounds = gather.even_bounds(
                np.concatenate(orders)[inside],
                self._rule.outputs,
                np.concatenate(sizes)[inside] if self._rule.by_bytes else None,
            )
        return kept

    def _tables(self) -> Iterator[pa.Table]:
        """The rows of each shard."""
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(self._shards), _READERS):
                yield from pool.map(self._rows_of, self._shards[start : start + _READERS])

    def _rows_of(self, shard: Shard) -> pa.Table:
        return gather.sample_rows(self._store.read_blob(shard.index.digest, "parquet"))

    def _known(
        self, surveyed: Iterable[tuple[pa.Table, gather.Hashes, _Mask]]
    ) -> Iterator[pa.Table]:
        """Rows with all that is known of them."""
        for tar, (table, order, inside) in enumerate(surveyed):
            place = order if self._rule.seed == 0 else gather.hashes(table["key"].to_pylist())
            columns = [
                gather.dealt(order, self._bounds),
                (~inside).astype(np.int8),
                np.where(inside, place, 0).astype(np.uint64),
                np.full(len(table), tar, np.int64),
            ]
            own = [pa.array(c, f.type) for c, f in zip(columns, _OWN, strict=True)]
            yield pa.table([*own, *table.columns], schema=pa.schema([*_OWN, *table.schema]))

    def _sort_out(self, known: Iterator[pa.Table], spill: _Spill) -> None:
        for table in known:
            groups = table.column(_OUTPUT).to_numpy() * self._groups // self._rule.outputs
            order = np.argsort(groups, kind="stable")
            table, groups = table.take(pa.array(order)), groups[order]
            starts = np.searchsorted(groups, np.arange(self._groups + 1))
            for group in np.unique(groups):
                first, end = starts[group], starts[group + 1]
                spill.add(int(group), table.slice(first, end - first))
        spill.flush()


def _inside(table: pa.Table, side: Side | None) -> _Mask:
    """Which of the rows are dealt."""
    if side is None:
        return np.ones(len(table), bool)
    texts = together(table["key"].to_pylist(), side.by)
    if side.column is not None:
        fit = [field.name for field in table.schema if _is_fit(field)]
        if side.column not in fit:
            raise StageError(
                f"the input's indexes have no column {side.column!r} of text or integers to split "
                f"by; there are {', '.join(fit) or 'none'}"
            )
        values = table[side.column].to_pylist()
        pairs = zip(texts, values, strict=True)
        texts = [text if value is None else str(value) for text, value in pairs]
    return side.portion.holds(places(texts, "splits", side.seed))


def _is_fit(field: pa.Field) -> bool:
    plain = pa.types.is_string(field.type) or pa.types.is_integer(field.type)
    return plain and field.name not in index.BASE.names


def _in_order(table: pa.Table) -> pa.Table:
    """Rows by output; of each first the samples in their order, then what is left out by key."""
    names = ["output", "outside", "place", "key"]
    columns = [*(table.column(place) for place in (_OUTPUT, _OUTSIDE, _PLACE)), table["key"]]
    order = [(name, "ascending") for name in names]
    return table.take(pc.sort_indices(pa.table(columns, names=names), order))


class _Spill:
    """Rows in an unnamed file, by groups."""

    def __init__(self, scratch: Path, groups: int) -> None:
        path = scratch_name(scratch)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        weakref.finalize(self, os.close, self._file)
        path.unlink()
        self._held: list[list[pa.Table]] = [[] for _ in range(groups)]
        self._held_bytes = 0
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(groups)]
        self._size = 0

    def add(self, group: int, rows: pa.Table) -> None:
        self._held[group].append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes >= _HELD:
            self.flush()

    def flush(self) -> None:
        for group, tables in enumerate(self._held):
            if tables:
                data = _as_stream(pa.concat_tables(tables).combine_chunks())
                gather.write_all(self._file, data, self._size)
                self._pieces[group].append((self._size, len(data)))
                self._size += len(data)
                tables.clear()
        self._held_bytes = 0

    def read(self, group: int) -> list[pa.Table]:
        """All rows of a group."""
        pieces = self._pieces[group]
        blobs = (os.pread(self._file, size, at) for at, size in pieces)
        return [pa.ipc.open_stream(blob).read_all() for blob in blobs]


def _as_stream(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return memoryview(sink.getvalue())
