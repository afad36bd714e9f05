"""Where samples come from: the shards of a version, by their indexes, or any tars, as streams."""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

import pyarrow as pa

from reelmill.dataset import Version
from reelmill.digest import sha256
from reelmill.errors import LoadError, NotFoundError, ReelmillError, one_line, told
from reelmill.loading.cache import CachedBlobs, ShardCache
from reelmill.loading.openers import Opener, ShardOpener
from reelmill.loading.places import Place, Places, sample_rows
from reelmill.loading.samples import Sample, shown
from reelmill.loading.shuffle import Shuffle
from reelmill.shards.reader import MAX_GAP, coalesce
from reelmill.shards.removed import source_key
from reelmill.store import Store
from reelmill.store.backend import Backend, Range
from reelmill.store.model import blob_name

OnError: TypeAlias = Literal["raise", "skip"]
"""What a sample or shard that cannot be had does: it ends the iteration, or is left out, counted
and warned of."""

_WINDOW: Final = 16 << 20
_WINDOW_LOCAL: Final = 1 << 20
_FIRST_PICK: Final = 100

_log = logging.getLogger(__name__)


@dataclass
class Troubles:
    """What becomes of trouble with a sample or a shard. Counts are this process's own."""

    policy: OnError = "raise"
    counts: Counter[str] = field(default_factory=Counter)

    def meet(self, what: str, error: Exception) -> None:
        """Say of what there is trouble; returns where it is to be left out.

        Raises:
            LoadError: it is not.
        """
        line = f"{one_line(what)}: {told(error)}"
        if self.policy == "raise":
            raise LoadError(f"{line}; on_error='skip' leaves it out") from error
        kind = type(error).__name__
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            warnings.warn(
                f"{line}; it is left out, as will be others, which the log names", stacklevel=2
            )
        _log.info("%s; left out", line)


class Source(Protocol):
    """Samples by shard. What :meth:`scan` gives stands for a sample until it is read by
    :meth:`read`.

    Attributes:
        identity: differs where the samples or their order may.
        shards: how many there are.
        window: bytes worth reading at once.
        reads_ahead: whether reading is waiting, for the better part, so that the next samples are
            best read while those before them are worked on.
        counted: whether `count` answers for all shards.
    """

    identity: str
    shards: int
    window: int
    reads_ahead: bool
    counted: bool

    def count(self, shard: int) -> int | None:
        """The samples of a shard, where that is known before its index is read."""

    def scan(self, shard: int, troubles: Troubles) -> Iterator[Any]:
        """Its samples, in their order."""

    def size(self, found: Any) -> int:
        """Bytes that are still to be read of a sample."""

    def read(self, found: Sequence[Any], troubles: Troubles) -> list[Sample | None]:
        """The samples; ``None`` for those that are left out."""

    def first_pick(self, shuffle: Shuffle) -> int:
        """How many samples wait in the buffer of a shuffle when the first is picked."""

    def name(self, shard: int) -> str:
        """What messages call a shard."""


class VersionSource:
    """The samples of a version that count. Only indexes are read before samples are given out."""

    def __init__(
        self,
        version: Version,
        fields: Collection[str] | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        listed = list(version.manifest.shards)
        if listed and not any(shard.tar for shard in listed):
            raise ReelmillError(f"{version} has no samples: it is a table, or all were rejected")
        known = version.manifest.fields
        if unknown := sorted(set(fields or ()) - set(known) if known else ()):
            raise ReelmillError(
                f"{version} has no field {', '.join(unknown)}; it has {', '.join(known)}"
            )
        self.version = version
        self.fields = None if fields is None else frozenset(fields)
        self.identity = f"{version.name}@{version.digest}"
        if fields is not None:
            self.identity += f" {','.join(sorted(fields))}"
        self.listed = [shard for shard in listed if shard.tar]
        self.shards = len(self.listed)
        self.counted = not version.removed
        self._store = version.store
        self._process = os.getpid()
        self._by_url: dict[str, int] | None = None
        self._cache = cache
        self.reads_ahead = not self._tars.is_local
        self.window = _WINDOW if self.reads_ahead else _WINDOW_LOCAL

    def __str__(self) -> str:
        return str(self.version)

    @property
    def store(self) -> Store:
        """The store, as this process has it: what drivers of remote ones hold does not outlive a
        fork."""
        if os.getpid() != self._process and not self._store.backend.is_local:
            self._store, self._process = Store.open(self._store.url), os.getpid()
        return self._store

    @property
    def _tars(self) -> Backend | CachedBlobs:
        """What tars are read from."""
        backend = self.store.backend
        if self._cache is None or backend.is_local:
            return backend
        return CachedBlobs(backend, self._cache)

    def name(self, shard: int) -> str:
        return f"shard {self.listed[shard].id} of {self.version}"

    def count(self, shard: int) -> int | None:
        return self.listed[shard].samples if self.counted else None

    def first_pick(self, shuffle: Shuffle) -> int:
        # Nothing but places waits there, so that it is full at once.
        return shuffle.size if shuffle.initial is None else shuffle.initial

    def scan(self, shard: int, troubles: Troubles) -> Iterator[Place]:
        try:
            places = self.places(shard)
        except ReelmillError as error:
            troubles.meet(self.name(shard), error)
            return
        yield from places

    def places(self, shard: int) -> Places:
        """The samples of a shard that count.

        Raises:
            ShardError: the index is none, or points beyond the end of its tar.
            NotFoundError: there is no index any more.
        """
        one = self.listed[shard]
        assert one.tar is not None
        rows = sample_rows(self.store.read_blob(one.index.digest, "parquet"))
        if removed := self.version.removed:
            kept = [source_key(key) not in removed for key in rows["key"].to_pylist()]
            rows = rows.filter(pa.array(kept, pa.bool_()))
        places = Places.of_index(shard, rows, one.tar.size)
        return places if self.fields is None else places.only(self.fields)

    def size(self, found: Place) -> int:
        return sum(found.sizes)

    def read(self, found: Sequence[Place], troubles: Troubles) -> list[Sample | None]:
        try:
            return list(self._read(found))
        except ReelmillError:
            # One after the other, to find out which of them it is.
            return [self._read_one(place, troubles) for place in found]

    def _read_one(self, place: Place, troubles: Troubles) -> Sample | None:
        try:
            return next(self._read([place]))
        except ReelmillError as error:
            troubles.meet(f"sample {place.key} of {self.name(place.shard)}", error)
            return None

    def _read(self, found: Sequence[Place]) -> Iterator[Sample]:
        spans: dict[int, list[tuple[int, int]]] = {}
        for place in found:
            if place.offsets:
                spans.setdefault(place.shard, []).extend(
                    (a, a + b) for a, b in zip(place.offsets, place.sizes, strict=True)
                )
        runs = [
            (shard, start, stop)
            for shard, some in spans.items()
            for start, stop in coalesce(some, MAX_GAP)
        ]
        wanted = [Range(self.blob(shard), start, stop) for shard, start, stop in runs]
        try:
            blocks = self._tars.read_ranges(wanted)
        except FileNotFoundError as error:
            raise NotFoundError(f"{error.filename or error} is gone; build again") from None
        held: dict[int, tuple[list[int], list[bytes]]] = {}
        for (shard, start, _), block in zip(runs, blocks, strict=True):
            starts, pieces = held.setdefault(shard, ([], []))
            starts.append(start)
            pieces.append(block)
        urls = {shard: self.url(shard) for shard in {place.shard for place in found}}
        for place in found:
            sample: Sample = {"__key__": place.key, "__url__": urls[place.shard]}
            for name, offset, size in zip(*place[2:], strict=True):
                starts, pieces = held[place.shard]
                run = bisect.bisect_right(starts, offset) - 1
                begin = offset - starts[run]
                sample[name.lower()] = pieces[run][begin : begin + size]
            yield sample

    def blob(self, shard: int) -> str:
        """The name of a shard's tar in the store."""
        tar = self.listed[shard].tar
        assert tar is not None
        return blob_name(tar.digest, "tar")

    def url(self, shard: int) -> str:
        """The address of a shard's tar."""
        return self.store.backend.locate(self.blob(shard))

    def shard_at(self, url: str) -> int:
        """The place of the shard whose tar has this address.

        Raises:
            LoadError: it is none of this version.
        """
        if self._by_url is None:
            self._by_url = {self.url(shard): shard for shard in range(self.shards)}
        if url not in self._by_url:
            raise LoadError(f"{shown(url)} is no tar of {self.version}")
        return self._by_url[url]


class TarSource:
    """The samples of tars by their addresses, read from first to last byte by webdataset."""

    window = 0
    reads_ahead = False
    counted = False

    def __init__(
        self, urls: Sequence[str], fields: Collection[str] | None, opener: Opener | None
    ) -> None:
        if not urls:
            raise ReelmillError("there is no tar to load: the list of addresses is empty")
        self.urls = list(urls)
        self.fields = None if fields is None else frozenset(name.lower() for name in fields)
        self.identity = sha256("\n".join([*urls, "", *sorted(self.fields or ())]).encode())
        self.shards = len(self.urls)
        self.opener = opener if isinstance(opener, ShardOpener) else ShardOpener(opener)

    def __str__(self) -> str:
        more = f" and {self.shards - 1:,} more" if self.shards > 1 else ""
        return self.name(0) + more

    def name(self, shard: int) -> str:
        return shown(self.urls[shard])

    def count(self, shard: int) -> int | None:
        return None

    def first_pick(self, shuffle: Shuffle) -> int:
        # As webdataset's: the samples wait in memory, and had to be read first.
        return _FIRST_PICK if shuffle.initial is None else shuffle.initial

    def scan(self, shard: int, troubles: Troubles) -> Iterator[Sample]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url = self.urls[shard]
        last = "its first sample"
        try:
            with contextlib.closing(self.opener(url)) as stream:
                files = tar_file_expander([{"url": url, "stream": stream}])
                for sample in group_by_keys(files, suffixes=self.fields):
                    yield sample
                    last = f"what follows sample {sample['__key__']}"
        except LoadError:
            raise
        except Exception as error:
            troubles.meet(f"{self.name(shard)}: {last}", error)

    def size(self, found: Sample) -> int:
        return 0

    def read(self, found: Sequence[Sample], troubles: Troubles) -> list[Sample | None]:
        return list(found)
