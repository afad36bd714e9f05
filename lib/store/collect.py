"""Collection: what may be removed from a store, and its removal.

A store is collected as of a *horizon*: ``keep`` seconds before now, or before the start of the
oldest live run, whichever is earlier. What stays is

1. every version that was tagged at the horizon or among its dataset's newest ``keep_versions``,
   and every version that got a line in its dataset's log since, each with its manifest, lineage,
   shards and action records;
2. everything that was written since the horizon;
3. everything that a run has claimed since the horizon;
4. action records whose blobs all stay.

So something goes only after it was of no use to anybody for ``keep``. A tag is a reader's pin.

Why no run loses what it needs, whenever it starts and however long it takes: it relies on newest
versions, which stay because the horizon lies before its start (1); on what was made while it ran
(2); and on old blobs that it comes across by their digests. Those it claims first, then it looks
whether a collection is under way, and if so waits for its end and looks for the blobs again. A
collection writes its lease first and reads the claims then. Whichever of the two comes second sees
the other: the collection sees the claim, or the run sees the collection.

Only one collection runs at a time. One that loses touch with the store stops, since runs may take
it for dead. Clocks may differ by much less than ``keep``.

Action records go first, then the manifests of collected versions, then all other blobs: a
collection that is killed leaves no record that promises what is gone, and no version that looks
whole and is not. The next one goes on. The log of a dataset keeps its lines for ever.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from reelmill.errors import NotFoundError, StoreError
from reelmill.store.backend import DELETED_AT_ONCE, Entry
from reelmill.store.lease import COLLECTION, lease, live_runs
from reelmill.store.model import Ref, blob_name
from reelmill.store.store import Store
from reelmill.units import Seconds

Remove = Callable[[Sequence[str]], None]

SHORTEST_KEEP = 3600
"""Seconds: far more than clocks differ by, or than a run takes from one step to the next."""

KINDS = ("tars", "indexes", "documents", "action records", "claims", "leases")

_SUFFIXES = {"tar": "tars", "parquet": "indexes", "json": "documents"}
_NAME = re.compile(
    r"(?:blobs|actions)/sha256/(?P<folder>[0-9a-f]{2})/(?P<digest>(?P=folder)[0-9a-f]{62})"
    r"\.(?P<suffix>tar|parquet|json)"
)
_SIGN = re.compile(r"claims/[0-9a-f]{32}\.json|leases/[^/]+\.json|leases/probe-[0-9a-f]+")
_DIGEST = re.compile(rb"\b[0-9a-f]{64}\b")
_THREADS = 16
_READERS = 4
_SETTLE = 60
"""Seconds within which hosts that share a folder see each other's files: NFS keeps what it knows
of a folder for that long."""


KeepVersions = Annotated[int, Field(ge=1)]
"""How many of a dataset's newest versions stay, besides the tagged ones."""

Keep = Annotated[Seconds, Field(ge=SHORTEST_KEEP)]
"""How long something must have been of no use before it goes."""

KEEP_VERSIONS = 3
KEEP = Decimal(30 * 86400)


class Policy(BaseModel):
    """What of a store is of use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_versions: KeepVersions = KEEP_VERSIONS
    keep: Keep = KEEP


@dataclass(slots=True)
class Tally:
    """How many objects, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, count: int, size: int) -> None:
        self.count += count
        self.bytes += size


@dataclass
class Collection:
    """What goes or went: versions by name, and objects by kind. ``kept`` are blobs that stay."""

    versions: list[str] = field(default_factory=list)
    removed: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    kept: Tally = field(default_factory=Tally)

    @property
    def total(self) -> Tally:
        """What goes or went, of all kinds."""
        tallies = self.removed.values()
        return Tally(sum(one.count for one in tallies), sum(one.bytes for one in tallies))

    def take(self, other: Collection) -> None:
        """Count in what another collection found."""
        for kind, tally in other.removed.items():
            self.removed[kind].add(tally.count, tally.bytes)
        self.kept.add(other.kept.count, other.kept.bytes)


Watch = Callable[[Collection], None]
"""Is told now and then how far a collection is."""


def plan_collection(store: Store, policy: Policy, watch: Watch | None = None) -> Collection:
    """What :func:`collect` would remove now; nothing is written.

    Raises:
        StoreError: the store cannot be read, or a manifest that is needed is damaged.
    """
    return _Sweep(store, policy, None, watch).run()


def collect(store: Store, policy: Policy, watch: Watch | None = None) -> Collection:
    """Remove what is of no use. Other runs may use the store meanwhile.

    Raises:
        StoreError: another collection is under way, the store cannot be read or written, or a
            manifest that is needed is damaged.
    """
    run = f"{COLLECTION}{secrets.token_hex(6)}"
    with lease(store, run) as held:
        if others := [one for one in live_runs(store, COLLECTION) if one.run != run]:
            raise StoreError(
                f"{store.url} is being collected by process {others[0].pid} on {others[0].host}; "
                "wait for it to end"
            )
        _settle(store, watch)

        def remove(names: Sequence[str]) -> None:
            for start in range(0, len(names), DELETED_AT_ONCE):
                held.check()
                store.backend.delete_all(names[start : start + DELETED_AT_ONCE])

        return _Sweep(store, policy, remove, watch).run()


def _settle(store: Store, watch: Watch | None) -> None:
    here = socket.gethostname()
    if store.backend.is_local and any(one.host != here for one in live_runs(store)):
        for _ in range(_SETTLE):
            time.sleep(1)
            if watch:
                watch(Collection())


@dataclass
class _Roots:
    """What stays: raw digests of blobs and raw keys of actions. And the manifests of those
    versions that do not."""

    horizon: float
    stay: set[bytes] = field(default_factory=set)
    dropped: dict[str, Entry] = field(default_factory=dict)


def _find_roots(store: Store, policy: Policy) -> _Roots:
    runs = [one for one in live_runs(store) if not one.run.startswith(COLLECTION)]
    roots = _Roots(min([time.time(), *(one.started for one in runs)]) - float(policy.keep))
    roots.stay.update(_digests(store.claimed(since=roots.horizon)))
    kept: list[Ref] = []
    rest: dict[str, tuple[str, list[Ref]]] = {}
    for dataset in store.datasets():
        log = store.log(dataset)
        versions = _kept_versions(log, policy, roots.horizon)
        for ref in log:
            if ref.version in versions:
                kept.append(ref)
            else:
                rest.setdefault(f"{dataset}@{ref.short}", (ref.version, []))[1].append(ref)
    _keep(store, roots, kept)
    with _pool(_THREADS) as pool:
        names = (blob_name(version, "json") for version, _ in rest.values())
        entries = list(pool.map(store.backend.entry, names))
    for (label, (version, refs)), entry in zip(rest.items(), entries, strict=True):
        if entry is None:
            continue
        # A run may be about to commit it again.
        if bytes.fromhex(version) in roots.stay or entry.modified >= roots.horizon:
            _keep(store, roots, refs)
        else:
            roots.dropped[label] = entry
    return roots


def _kept_versions(log: Sequence[Ref], policy: Policy, horizon: float) -> set[str]:
    then = [ref for ref in log if _moment(ref) < horizon]
    commits = (ref.version for ref in reversed(then) if ref.event == "commit")
    newest = list(dict.fromkeys(commits))[: policy.keep_versions]
    tagged = {tag: ref.version for ref in then for tag in ref.tags}
    since = (ref.version for ref in log if _moment(ref) >= horizon)
    return {*newest, *tagged.values(), *since}


def _moment(ref: Ref) -> float:
    try:
        moment = datetime.fromisoformat(ref.time)
    except ValueError:
        return math.inf
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _keep(store: Store, roots: _Roots, refs: Sequence[Ref]) -> None:
    """Add all that the versions of some lines need to what stays."""

    def read(digest: str) -> None:
        with contextlib.suppress(NotFoundError):
            data = store.read_blob(digest, "json")
            # Whatever looks like a digest is taken for one: models of a million shards would fill
            # the memory.
            roots.stay.update(bytes.fromhex(one[0].decode()) for one in _DIGEST.finditer(data))

    documents = [digest for ref in refs for digest in (ref.version, ref.lineage) if digest]
    roots.stay.update(bytes.fromhex(digest) for digest in documents)
    roots.stay.update(bytes.fromhex(ref.action) for ref in refs if ref.action)
    with _pool(_READERS) as pool:
        for _ in pool.map(read, dict.fromkeys(documents)):
            pass


def _digests(names: Iterable[str]) -> Iterator[bytes]:
    matches = (_NAME.fullmatch(name) for name in names)
    return (bytes.fromhex(match["digest"]) for match in matches if match)


class _Sweep:
    """One pass over a store. What it finds is removed, or only counted if ``remove`` is None."""

    def __init__(
        self, store: Store, policy: Policy, remove: Remove | None, watch: Watch | None
    ) -> None:
        self._store = store
        self._backend = store.backend
        self._remove = remove
        self._watch = watch
        self._roots = _find_roots(store, policy)
        dropped = {
            label: entry
            for label, entry in self._roots.dropped.items()
            if not self._blob_stays(entry.name)
        }
        self._manifests = list({entry.name: entry for entry in dropped.values()}.values())
        self._found = Collection(versions=sorted(dropped))

    def run(self) -> Collection:
        self._each(self._backend.folders("actions/sha256/"), self._record_stays)
        if self._remove:
            self._take(self._go(self._manifests))
        self._each(self._backend.folders("blobs/sha256/"), self._blob_stays)
        for folder in ("claims/", "leases/"):
            self._each([folder], lambda name: False)
        if self._remove:
            self._backend.sweep(self._roots.horizon)
        return self._found

    def _each(self, folders: Sequence[str], stays: Callable[[str], bool]) -> None:
        with _pool(_THREADS) as pool:
            for part in pool.map(lambda folder: self._folder(folder, stays), folders):
                self._take(part)

    def _folder(self, folder: str, stays: Callable[[str], bool]) -> Collection:
        # Listed right before it is swept: what was removed and made again is young.
        gone = []
        kept = Tally()
        for entry in self._backend.list(folder):
            if _kind(entry.name) is None:
                continue
            if entry.modified < self._roots.horizon and not stays(entry.name):
                gone.append(entry)
            elif entry.name.startswith("blobs/"):
                kept.add(1, entry.size)
        part = self._go(gone)
        part.kept = kept
        return part

    def _go(self, entries: Sequence[Entry]) -> Collection:
        if self._remove:
            self._remove([entry.name for entry in entries])
        part = Collection()
        for entry in entries:
            part.removed[str(_kind(entry.name))].add(1, entry.size)
        return part

    def _take(self, part: Collection) -> None:
        self._found.take(part)
        if self._watch:
            self._watch(self._found)

    def _blob_stays(self, name: str) -> bool:
        return next(_digests([name])) in self._roots.stay

    def _record_stays(self, name: str) -> bool:
        (key,) = _digests([name])
        if key in self._roots.stay:
            return True
        try:
            record = self._store.record(key.hex())
        except StoreError:
            # Nobody can tell what it says.
            return True
        return record is not None and self._roots.stay.issuperset(
            _digests(record.result.blob_names())
        )


def _kind(name: str) -> str | None:
    """What an object is; ``None`` for files that are not the store's."""
    if _SIGN.fullmatch(name):
        return name.partition("/")[0]
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return "action records" if name.startswith("actions/") else _SUFFIXES[match["suffix"]]


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # After a failure or a Ctrl-C, what was not begun must not go on.
        pool.shutdown(cancel_futures=True)
