"""The samples of a dataset by number or key: what torch's samplers ask for."""

from __future__ import annotations

import bisect
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, BinaryIO, Final, Protocol, overload

import numpy as np
import xxhash

from reelmill.errors import LoadError, Rejected, told
from reelmill.loading.places import Place, Places
from reelmill.loading.samples import Sample, shown
from reelmill.loading.source import Source, TarSource, Troubles, VersionSource
from reelmill.loading.stages import Each, Stage, at_work
from reelmill.loading.torch_data import Dataset
from reelmill.shards.foreign import read_groups
from reelmill.shards.removed import shard_of, source_key

_KEPT_BYTES: Final = 64 << 20
_MAX_OPEN: Final = 64
_READERS: Final = 4


class Indexed(Protocol):
    """Shards of which it is known where their samples lie."""

    shards: int

    def count(self, shard: int) -> int | None:
        """The samples of a shard, where that is known before it is looked at."""

    def places(self, shard: int) -> Places:
        """Where the samples of a shard lie."""

    def read(self, found: Sequence[Place], troubles: Troubles) -> list[Sample | None]:
        """The samples; ``None`` for those that are left out."""

    def length(self, shard: int) -> int:
        """The samples of a shard, which is looked at."""

    def guess(self, key: str) -> int | None:
        """The shard in which the sample of a key is, where keys tell."""


class RandomAccess(Dataset[Any]):  # type: ignore[misc]
    """Samples by number, from 0 in the order of the shards; made by `Dataset.random_access`.

    ``dataset[3]`` and ``dataset["000010005_003"]`` are samples, ``dataset[10:20]`` is a part of the
    dataset, and of several numbers (which torch's loaders ask for as a batch) neighbours are read
    at once. An access costs one read; memory holds indexes of at most 64 MiB.
    """

    def __init__(self, source: Source, stages: Sequence[Stage]) -> None:
        self._indexed = _indexed(source)
        self._name = str(source)
        self._stages = [_one_by_one(stage) for stage in stages]
        self._troubles = Troubles()
        self._kept: OrderedDict[int, Places] = OrderedDict()
        self._kept_bytes = 0
        self._ends = list(accumulate(_counts(self._indexed)))
        self._range = range(self._ends[-1] if self._ends else 0)
        self._hashes: tuple[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, which: slice) -> RandomAccess: ...

    @overload
    def __getitem__(self, which: int | str) -> Any: ...

    def __getitem__(self, which: int | slice | str) -> Any:
        if isinstance(which, slice):
            part = object.__new__(RandomAccess)
            part.__dict__.update(self.__dict__, _range=self._range[which])
            part._kept, part._kept_bytes = OrderedDict(), 0
            return part
        if isinstance(which, str):
            return self._read([self._found(which)])[0]
        return self.__getitems__([which])[0]

    def __getitems__(self, which: Sequence[int]) -> list[Any]:
        """Several samples, in the order asked.

        Raises:
            IndexError: there are not so many.
        """
        return self._read([self.place(number) for number in which])

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def find(self, key: str) -> int:
        """The number of the sample of a key.

        Raises:
            KeyError: there is none.
        """
        shard = self._indexed.guess(key)
        number = None if shard is None else self._places(shard).find(key)
        if shard is not None and number is not None:
            number += self._ends[shard] - len(self._places(shard))
        else:
            number = self._searched(key)
        if number is None or number not in self._range:
            raise KeyError(f"{self._name} has no sample {key}")
        return self._range.index(number)

    def place(self, number: int) -> Place:
        """Where a sample lies.

        Raises:
            IndexError: there are not so many.
        """
        try:
            at = self._range[number]
        except IndexError:
            raise IndexError(f"{self._name} has {len(self)} samples, and none {number}") from None
        return self._place(at)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_bytes": 0}

    def _found(self, key: str) -> Place:
        return self.place(self.find(key))

    def _place(self, number: int) -> Place:
        shard = bisect.bisect_right(self._ends, number)
        places = self._places(shard)
        return places[number - self._ends[shard] + len(places)]

    def _places(self, shard: int) -> Places:
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return self._kept[shard]
        places = self._indexed.places(shard)
        self._kept[shard] = places
        self._kept_bytes += places.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return places

    def _searched(self, key: str) -> int | None:
        if self._hashes is None:
            every = (self._indexed.places(shard).keys for shard in range(self._indexed.shards))
            hashes = np.fromiter((_hash(one) for keys in every for one in keys.to_pylist()), "u8")
            order = np.argsort(hashes, kind="stable")
            self._hashes = hashes[order], order
        hashes, order = self._hashes
        wanted = np.uint64(_hash(key))
        first, last = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, "right")
        numbers = (int(number) for number in order[first:last])
        return next((number for number in numbers if self._place(number).key == key), None)

    def _read(self, places: Sequence[Place]) -> list[Any]:
        samples = self._indexed.read(places, self._troubles)
        return [self._staged(place, sample) for place, sample in zip(places, samples, strict=True)]

    def _staged(self, place: Place, sample: Any) -> Any:
        if sample is None:
            raise LoadError(f"sample {place.key} of {self._name} cannot be read")
        for stage in self._stages:
            try:
                made = list(stage.filter(iter((sample,))))
            except Exception as error:
                raise LoadError(f"{at_work(stage.label, sample, error)}: {told(error)}") from error
            if len(made) != 1:
                raise LoadError(
                    f"{stage.label} makes {len(made)} things of sample {place.key}: a dataset with "
                    "random access needs one of each"
                )
            sample = made[0]
        return sample


def counts(source: Source) -> list[int]:
    """How many samples each shard has. Indexes, or headers of tars, are read where nothing else
    tells.

    Raises:
        LoadError: it is a tar in which one cannot seek.
    """
    return _counts(_indexed(source))


def _counts(indexed: Indexed) -> list[int]:
    known = [indexed.count(shard) for shard in range(indexed.shards)]
    unknown = [shard for shard, count in enumerate(known) if count is None]
    with ThreadPoolExecutor(_READERS) as pool:
        for shard, count in zip(unknown, pool.map(indexed.length, unknown), strict=True):
            known[shard] = count
    return [count or 0 for count in known]


def _one_by_one(stage: Stage) -> Each:
    if not isinstance(stage, Each):
        raise LoadError(
            f"a dataset with random access cannot have {stage.label}: its order and batches are "
            "the loader's, by sampler= and batch_size="
        )
    return stage


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


def _indexed(source: Source) -> Indexed:
    if isinstance(source, VersionSource):
        return _IndexedVersion(source)
    assert isinstance(source, TarSource)
    return _IndexedTars(source)


class _IndexedVersion:
    def __init__(self, source: VersionSource) -> None:
        self._source = source
        self.shards = source.shards
        self.count = source.count
        self.places = source.places
        self.read = source.read
        self._by_id = {shard.id: number for number, shard in enumerate(source.listed)}

    def length(self, shard: int) -> int:
        return len(self.places(shard))

    def guess(self, key: str) -> int | None:
        # Stages that do not shuffle leave samples in the shard of the row that they derive from.
        return self._by_id.get(shard_of(source_key(key)))


class _IndexedTars:
    """Tars whose headers are read once. They have to be files in which one can seek."""

    def __init__(self, source: TarSource) -> None:
        self._source = source
        self.shards = source.shards
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._process = os.getpid()
        self._known: dict[int, Places] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def count(self, shard: int) -> int | None:
        return len(self._known[shard]) if shard in self._known else None

    def length(self, shard: int) -> int:
        return len(self.places(shard))

    def guess(self, key: str) -> int | None:
        return None

    def places(self, shard: int) -> Places:
        if shard not in self._known:
            url = self._source.urls[shard]
            with self._source.opener.seekable(url) as file:
                size = file.seek(0, os.SEEK_END)
                fields = self._source.fields
                try:
                    groups = [
                        (
                            group.key,
                            {
                                name: (part.offset, part.size)
                                for name, part in group.parts.items()
                                if fields is None or name in fields
                            },
                        )
                        for group in read_groups(file, size)
                    ]
                except Rejected as rejected:
                    raise LoadError(
                        f"{shown(url)}: {rejected.message}; only in a whole, uncompressed tar can "
                        "samples be looked up"
                    ) from None
            self._known[shard] = Places.of_groups(shard, groups)
        return self._known[shard]

    def read(self, found: Sequence[Place], troubles: Troubles) -> list[Sample | None]:
        return [self._sample(place) for place in found]

    def _sample(self, place: Place) -> Sample:
        sample: Sample = {"__key__": place.key, "__url__": self._source.urls[place.shard]}
        file = self._file(place.shard)
        for name, offset, size in zip(*place[2:], strict=True):
            file.seek(offset)
            sample[name] = file.read(size)
            if len(sample[name]) < size:
                raise LoadError(f"{self._source.name(place.shard)} is shorter than it was")
        return sample

    def _file(self, shard: int) -> BinaryIO:
        # Processes that share a descriptor share its position.
        if os.getpid() != self._process:
            self._files, self._process = OrderedDict(), os.getpid()
        if shard not in self._files:
            self._files[shard] = self._source.opener.seekable(self._source.urls[shard])
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]
