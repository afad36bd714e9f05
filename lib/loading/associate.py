"""More fields for a sample, by its key: from a dict, a function, or another dataset."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from reelmill.dataset import Version
from reelmill.errors import LoadError
from reelmill.loading.places import Place, Places
from reelmill.loading.samples import Sample, fields_of, listed, place_of
from reelmill.loading.select import MISSING, Missing
from reelmill.loading.source import Troubles, VersionSource
from reelmill.shards.lookup import with_ancestors
from reelmill.shards.removed import shard_of, source_key

Extra: TypeAlias = Mapping[str, Any]
Associator: TypeAlias = Mapping[str, Extra] | Callable[[str], Extra | None] | Version

By: TypeAlias = Literal["key", "shard"]

if TYPE_CHECKING:
    from reelmill.loading.random_access import RandomAccess

_KEPT_BYTES: Final = 64 << 20
_NEAR: Final = 16
_SHARD: Final = re.compile(r"([A-Za-z0-9_-]+)\.tar$")


class Associate:
    """Adds fields to samples; to be called with a sample. It gives None for one to be skipped.

    >>> add = Associate(reelmill.open_version(store, "flow"), fields=["000000.flow.png"])
    >>> wds.WebDataset(urls).map(add).decode(reelmill.loading.decoder("rgb"))

    Args:
        source: fields by key: a mapping, a function of the key (None: there are none), or a version
            of a dataset. In that a sample is looked up by its own key, or else by those that it
            derives from: of a triplet it may have the clip. What was removed from it is not there.
        fields: those to take; all by default.
        missing: what becomes of a sample that ``source`` does not know: an error, no sample, or
            None for each of ``fields``.
        prefix: goes before the names of the fields.
        by: ``shard`` looks for a sample in the shard of the same ID only, as fits datasets of which
            one was made of the other, or both of a third, without a shuffle in between. ``key``
            looks there first and then everywhere, for which all indexes are read, once.
        shard: tells the shard ID of a sample; by default its address does, where the tar is called
            after it.

    Raises:
        ValueError: ``missing`` or ``by`` is none of these.
    """

    def __init__(
        self,
        source: Associator,
        *,
        fields: Collection[str] | None = None,
        missing: Missing = "error",
        prefix: str = "",
        by: By = "key",
        shard: Callable[[Sample], str | None] | None = None,
    ) -> None:
        if missing not in MISSING:
            raise ValueError(f"missing={missing!r} is none of {', '.join(MISSING)}")
        if by not in ("key", "shard"):
            raise ValueError(f"by={by!r} is neither key nor shard")
        self._fields = None if fields is None else list(fields)
        self._missing = missing
        self._prefix = prefix
        self._joined = Joined(source, self._fields, by) if isinstance(source, Version) else None
        self._named = str(source) if isinstance(source, Version) else "what is associated"
        self._lookup: Callable[[str], Extra | None] | None = None
        if not isinstance(source, Version):
            self._lookup = source.get if isinstance(source, Mapping) else source
        self._shard = shard or _named_shard

    def __call__(self, sample: Sample) -> Sample | None:
        """The sample with the fields, or None.

        Raises:
            LoadError: it is missing, or has a field already that the other dataset has, too.
        """
        extra = self._extra(sample)
        if extra is None:
            if self._missing == "skip":
                return None
            if self._missing == "error":
                raise LoadError(f"{place_of(sample)}: {self._named} has nothing of its key")
            extra = dict.fromkeys(self._fields or ())
        added = {f"{self._prefix}{name}": value for name, value in extra.items()}
        if self._joined is not None and (both := [name for name in added if name in sample]):
            raise LoadError(
                f"{place_of(sample)} has {listed(both)} already: name fields=…, or a prefix=…"
            )
        return {**sample, **added}

    def _extra(self, sample: Sample) -> Extra | None:
        key = sample["__key__"]
        if self._joined is not None:
            return self._joined.find(key, self._shard(sample))
        assert self._lookup is not None
        found = self._lookup(key)
        if found is not None and not isinstance(found, Mapping):
            kind = type(found).__name__
            raise LoadError(f"{place_of(sample)}: {self._named} has a {kind} for it, not fields")
        if found is None or self._fields is None:
            return found
        if lost := [name for name in self._fields if name not in found]:
            raise LoadError(f"{place_of(sample)}: {self._named} has no {listed(lost)} for it")
        return {name: found[name] for name in self._fields}


def _named_shard(sample: Sample) -> str | None:
    found = _SHARD.search(str(sample.get("__url__", "")))
    return found[1] if found else None


@dataclass
class _Shard:
    """A shard that is read from: where its samples lie, the last one read, and those that were read
    along with it."""

    places: Places
    last: int = -_NEAR - 1
    ahead: int = 1
    held: dict[int, Sample] = field(default_factory=dict)


class Joined:
    """The samples of a version by key, as somebody asks for them who goes through another one.

    Who asks for neighbours in turn gets them from reads that grow, up to what is read at once
    elsewhere; who asks here and there costs one read each. Memory holds one such read for each
    shard, of those shards whose indexes fit in 64 MiB.
    """

    def __init__(self, version: Version, fields: Collection[str] | None, by: By) -> None:
        self._source = VersionSource(version, fields)
        self._by_id = {shard.id: number for number, shard in enumerate(self._source.listed)}
        self._everywhere: RandomAccess | None = None
        self._by = by
        self._shards: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_everywhere": None}

    def find(self, key: str, shard_id: str | None) -> Sample | None:
        """The fields of the sample of a key, or of the nearest that it derives from.

        Raises:
            LoadError: it cannot be read.
        """
        shard, number = self._found(key, shard_id)
        if shard is None:
            return None
        sample = self._read(shard, number)
        return {name: sample[name] for name in fields_of(sample)}

    def _found(self, key: str, shard_id: str | None) -> tuple[int | None, int]:
        keys = with_ancestors(key)
        ids = [shard_id] if self._by == "shard" else [shard_id, shard_of(source_key(key))]
        for shard in dict.fromkeys(self._by_id.get(one or "") for one in ids):
            if shard is None:
                continue
            places = self._shard(shard).places
            numbers = (places.find(one) for one in keys)
            number = next((number for number in numbers if number is not None), None)
            if number is not None:
                return shard, number
        if self._by == "key":
            for one in keys:
                if (place := self._searched(one)) is not None:
                    number = self._shard(place.shard).places.find(one)
                    assert number is not None
                    return place.shard, number
        return None, 0

    def _searched(self, key: str) -> Place | None:
        # It brings torch along, which nobody needs for a dict.
        from reelmill.loading.random_access import RandomAccess

        self._everywhere = self._everywhere or RandomAccess(self._source, ())
        try:
            return self._everywhere.place(self._everywhere.find(key))
        except KeyError:
            return None

    def _shard(self, shard: int) -> _Shard:
        if shard in self._shards:
            self._shards.move_to_end(shard)
            return self._shards[shard]
        self._shards[shard] = found = _Shard(self._source.places(shard))
        while len(self._shards) > 1 and self._bytes() > _KEPT_BYTES:
            self._shards.popitem(last=False)
        return found

    def _bytes(self) -> int:
        return sum(one.places.nbytes for one in self._shards.values())

    def _read(self, shard: int, number: int) -> Sample:
        one = self._shard(shard)
        if number not in one.held:
            is_next = 0 < number - one.last <= _NEAR
            one.ahead = one.ahead * 2 if is_next else 1
            wanted: list[int] = []
            size = 0
            for near in range(number, min(number + one.ahead, len(one.places))):
                wanted.append(near)
                size += self._source.size(one.places[near])
                if size >= self._source.window:
                    break
            one.ahead = len(wanted)
            places = [one.places[near] for near in wanted]
            samples = self._source.read(places, Troubles())
            pairs = zip(wanted, samples, strict=True)
            one.held = {near: sample for near, sample in pairs if sample is not None}
        one.last = number
        return one.held[number]
