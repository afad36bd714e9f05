"""The store: put blobs, remember actions, commit versions. Safe for any number of writers."""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from reelmill.digest import sha256
from reelmill.errors import LONGEST_LINE, NotFoundError, StoreError, one_line
from reelmill.store.backend import Backend, open_backend
from reelmill.store.lease import await_collections
from reelmill.store.model import (
    Action,
    ActionRecord,
    Blob,
    Claim,
    Lineage,
    Manifest,
    Ref,
    Result,
    StoreRecord,
    Suffix,
    action_name,
    blob_name,
)

M = TypeVar("M", bound=BaseModel)

_READERS = 16
_READ_ATTEMPTS = 3
_SHORTEST_PREFIX = 4
_DATASET = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_CLAIM = re.compile(r"claims/[0-9a-f]{32}\.json")
_REF = re.compile(rf"refs/(?P<dataset>{_DATASET.pattern})/[0-9]{{20}}\.json")


class Store:
    """Blobs, action results and versions below one address.

    Write order is the whole protocol: tar blob, index blob, action result, manifest, ref. What
    is named by nothing yet is invisible, so a writer may die between any two steps.
    """

    def __init__(self, backend: Backend, *, shareable: bool = True) -> None:
        self.backend = backend
        self.url = backend.url
        self.shareable = shareable

    @classmethod
    def open(cls, url: str, *, create: bool = False, probe: bool | None = None) -> Store:
        """Open the store at ``url``: a folder, or an fsspec URL such as ``s3://bucket/prefix``.

        Args:
            create: make an empty store where there is none.
            probe: try whether a put-if-absent holds there, which tells if several runs may write
                to it at once; by default when ``create`` is set.

        Raises:
            StoreError: there is no store, it is of another format, or it cannot be written.
        """
        backend = open_backend(url)
        record = StoreRecord()
        try:
            held = backend.read("store.json")
        except FileNotFoundError:
            if not create:
                raise StoreError(
                    f"there is no store at {backend.url}; 'reelmill build' makes one"
                ) from None
            backend.create("store.json", record.as_bytes())
            held = backend.read("store.json")
        # The second look is for an answer that was cut short on its way.
        if not _is_ours(held) and not _is_ours(backend.read("store.json")):
            raise StoreError(
                f"{backend.url} is not a store of a format that this Reelmill reads; "
                "upgrade Reelmill or choose another address"
            )
        if create if probe is None else probe:
            backend.sweep()
            return cls(backend, shareable=_probe(backend) and backend.conditional)
        return cls(backend)

    @staticmethod
    def is_at(url: str) -> bool:
        """Whether there is anything that says it is a store at ``url``."""
        return open_backend(url).size("store.json") is not None

    # Blobs

    def put_blob(self, data: bytes, suffix: Suffix, *, kept: Collection[str] = ()) -> Blob:
        """Store ``data`` under its digest.

        Args:
            kept: digests that need no claim if they are there, since a dataset's newest version
                names them.
        """
        blob = Blob(digest=sha256(data), size=len(data))
        name = blob_name(blob.digest, suffix)
        if not self._has(name, blob.size, claim=blob.digest not in kept):
            self.backend.put(name, data)
        return blob

    def put_blob_file(self, path: Path, blob: Blob, suffix: Suffix) -> None:
        """Take over a scratch file whose digest is known."""
        name = blob_name(blob.digest, suffix)
        try:
            if not self._has(name, blob.size):
                self.backend.put_file(name, path)
        finally:
            path.unlink(missing_ok=True)

    def hold_blob(self, blob: Blob, suffix: Suffix) -> None:
        """Claim a blob that is to be there already.

        Raises:
            NotFoundError: it is not, or not at its full size.
        """
        name = blob_name(blob.digest, suffix)
        if not self._has(name, blob.size):
            raise NotFoundError(f"{self.backend.locate(name)} is gone; build again to make it anew")

    def read_blob(self, digest: str, suffix: Suffix) -> bytes:
        """A small blob's bytes, checked against its digest.

        Raises:
            NotFoundError: the store does not hold it.
            StoreError: the bytes do not match their name.
        """
        name = blob_name(digest, suffix)
        for _ in range(_READ_ATTEMPTS):
            try:
                data = self.backend.read(name)
            except FileNotFoundError:
                raise NotFoundError(
                    f"{self.backend.locate(name)} is gone; build again to make it anew"
                ) from None
            if sha256(data) == digest:
                return data
        raise StoreError(
            f"{self.backend.locate(name)} is damaged: its bytes do not match its name; "
            "remove it and build again"
        )

    def hash_blob(self, digest: str, suffix: Suffix) -> str | None:
        """The sha256 of what lies under a blob's name now, or ``None`` if nothing does."""
        actual = hashlib.sha256()
        try:
            for piece in self.backend.stream(blob_name(digest, suffix)):
                actual.update(piece)
        except FileNotFoundError:
            return None
        return actual.hexdigest()

    def _has(self, name: str, size: int, *, claim: bool = True) -> bool:
        held = self.backend.size(name)
        if held is not None and claim and self.claim([name]):
            held = self.backend.size(name)
        return held == size

    # Claims

    def claim(self, names: Iterable[str]) -> bool:
        """Keep a collection from removing objects that were found by their digests.

        To be said before they are relied on, unless a dataset's newest version names them.

        Returns:
            whether they must be looked for again, since a collection was under way. It is over.
        """
        record = Claim(names=tuple(names))
        self.backend.put(f"claims/{secrets.token_hex(16)}.json", record.as_bytes())
        # In this order: a collection reads the claims when its own lease is written.
        return await_collections(self)

    def claimed(self, since: float) -> Iterator[str]:
        """The names of all objects that were claimed since then (seconds since the epoch)."""
        entries = self.backend.list("claims/")
        names = [e.name for e in entries if e.modified >= since and _CLAIM.fullmatch(e.name)]
        with ThreadPoolExecutor(_READERS) as pool:
            for claim in pool.map(lambda name: self._document(name, Claim), names):
                yield from claim.names if claim else ()

    def claim_version(self, version: str) -> None:
        """Claim all that a version needs to be read, by its full digest.

        Raises:
            NotFoundError: it was collected.
        """
        blobs = [name for shard in self.manifest(version).shards for name in shard.blob_names()]
        # Its manifest is the first of a version's blobs to be collected.
        if self.claim([blob_name(version, "json"), *blobs]):
            self.manifest(version)

    # Actions

    def recall(self, keys: Iterable[str], *, claim: bool = True) -> dict[str, Result]:
        """The results of those actions that were made and whose blobs are still there.

        Args:
            claim: whether they will be relied on, so that a collection must not remove them.
        """
        found = self._recall(keys)
        if not found or not claim:
            return found
        blobs = [name for result in found.values() for name in result.blob_names()]
        if self.claim([*map(action_name, found), *blobs]):
            return self._recall(found)
        return found

    def _recall(self, keys: Iterable[str]) -> dict[str, Result]:
        wanted = list(dict.fromkeys(keys))
        with ThreadPoolExecutor(_READERS) as pool:
            records = pool.map(self.record, wanted) if len(wanted) > 1 else map(self.record, wanted)
            found = {
                key: record.result for key, record in zip(wanted, records, strict=True) if record
            }
        return self.intact(found)

    def intact(self, results: dict[str, Result]) -> dict[str, Result]:
        """Those of ``results`` whose blobs are all there, at their full sizes."""
        names = {name for result in results.values() for name in result.blob_names()}
        sizes = self.backend.sizes(names)
        return {
            key: result
            for key, result in results.items()
            if all(sizes.get(name) == size for name, size in result.blob_names().items())
        }

    def record(self, key: str) -> ActionRecord | None:
        """An action's record, whether or not its blobs are still there; ``None`` also for one that
        lies under another action's name."""
        record = self._document(action_name(key), ActionRecord)
        return record if record and record.action.key == key else None

    def commit(self, action: Action, result: Result, how: dict[str, str | int]) -> Result:
        """Make an action's result visible; the result that stands, which may be another run's.

        The blobs must be in the store before. Whoever loses the race adopts the winner's result.
        """
        name = action_name(action.key)
        # The nonce tells a put of ours that was answered by an error from one of another run.
        record = ActionRecord(
            action=action, result=result, how={**how, "nonce": secrets.token_hex(8)}
        )
        while not self.backend.create(name, record.as_bytes()):
            if winner := self.recall([action.key]):
                return winner[action.key]
            # What a collection left behind (a record without its blobs) or somebody misplaced:
            # ours replaces it.
            self.backend.delete(name)
        return result

    def forget(self, key: str) -> None:
        """Remove an action's record, so that the action will be executed again."""
        self.backend.delete(action_name(key))

    # Versions

    def put_manifest(self, manifest: Manifest, *, kept: Collection[str] = ()) -> str:
        """Store a manifest; its digest, which names the version. ``kept`` is as for a blob."""
        return self.put_blob(manifest.as_bytes(), "json", kept=kept).digest

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version, by its full digest."""
        return _validated(self.read_blob(version, "json"), Manifest, version)

    def lineage(self, digest: str) -> Lineage:
        """The lineage blob that a ref names."""
        return _validated(self.read_blob(digest, "json"), Lineage, digest)

    def commit_ref(self, dataset: str, ref: Ref) -> Ref:
        """Append a line to a dataset's log, unless its last line says the same already."""
        while True:
            log = self._ref_names(dataset)
            last = self._last_commit(log)
            if last and ref.event == "commit" and _says(last) == _says(ref):
                return last
            if self._append(dataset, log, ref):
                return ref

    def grow_ref(self, dataset: str, ref: Ref, base: str | None) -> bool:
        """Append the commit of a version that grew from ``base``, or from nothing; whether that is
        still the latest one, or the commit's own is. Of two that grow from one, one is refused."""
        while True:
            log = self._ref_names(dataset)
            latest = self._newest(log, "latest")
            if (latest and latest.version) not in (base, ref.version):
                return False
            last = self._last_commit(log)
            if (last and _says(last) == _says(ref)) or self._append(dataset, log, ref):
                return True

    def datasets(self) -> list[str]:
        """The names of all datasets that have a version."""
        names = (_REF.fullmatch(entry.name) for entry in self.backend.list("refs/"))
        return sorted({name["dataset"] for name in names if name})

    def log(self, dataset: str) -> list[Ref]:
        """A dataset's log, oldest first; empty if there is no such dataset."""
        with ThreadPoolExecutor(_READERS) as pool:
            names = self._ref_names(dataset)
            return [ref for ref in pool.map(lambda n: self._document(n, Ref), names) if ref]

    def history(self, dataset: str) -> list[tuple[Ref, list[str]]]:
        """A dataset's versions, newest first: each one's last commit, and the tags on it now."""
        log = self.log(dataset)
        tagged = {tag: ref.version for ref in log for tag in ref.tags}
        commits = {ref.version: ref for ref in log if ref.event == "commit"}
        order = dict.fromkeys(ref.version for ref in reversed(log) if ref.event == "commit")
        return [
            (commits[version], sorted(tag for tag, on in tagged.items() if on == version))
            for version in order
        ]

    def present(self, versions: Iterable[str]) -> set[str]:
        """Those of some versions, by their full digests, that were not collected."""
        wanted = list(versions)
        with ThreadPoolExecutor(_READERS) as pool:
            sizes = pool.map(self.backend.size, (blob_name(v, "json") for v in wanted))
            return {v for v, size in zip(wanted, sizes, strict=True) if size is not None}

    def latest(self, dataset: str) -> Ref | None:
        """The newest line of a dataset's log that carries the tag ``latest``."""
        return self._tagged(dataset, "latest")

    def resolve(self, spec: str) -> tuple[str, Ref]:
        """What ``clips``, ``clips@latest``, ``clips@v1`` or ``clips@3fa9c1d2`` stands for.

        Returns the dataset's name and the line of its log. A tag wins over a digest's prefix.

        Raises:
            NotFoundError: there is none, or the prefix fits several.
        """
        dataset, _, which = spec.partition("@")
        names = self._ref_names(dataset) if _DATASET.fullmatch(dataset) else []
        if not names:
            known = ", ".join(self.datasets()) or "none yet"
            raise NotFoundError(f"no dataset {dataset!r} in {self.url}; there are: {known}")
        ref = self._tagged(dataset, which or "latest")
        if ref:
            return dataset, ref
        fitting = {
            ref.version: ref
            for ref in self.log(dataset)
            if len(which) >= _SHORTEST_PREFIX and ref.version.startswith(which)
        }
        if len(fitting) != 1:
            what = f"{len(fitting)} versions begin with" if fitting else "no version or tag"
            raise NotFoundError(
                f"{what} {which!r} in dataset '{dataset}'; "
                f"'reelmill ls {dataset}' lists its versions"
            )
        return dataset, next(iter(fitting.values()))

    def _last_commit(self, log: list[str]) -> Ref | None:
        for name in reversed(log):
            ref = self._document(name, Ref)
            if ref and ref.event == "commit":
                return ref
        return None

    def _append(self, dataset: str, log: list[str], ref: Ref) -> bool:
        """Append a line to a log; whether it had no more lines than ``log``."""
        number = int(log[-1].rpartition("/")[2].removesuffix(".json")) + 1 if log else 0
        return self.backend.create(f"refs/{dataset}/{number:020d}.json", ref.as_bytes())

    def _tagged(self, dataset: str, tag: str) -> Ref | None:
        return self._newest(self._ref_names(dataset), tag)

    def _newest(self, log: list[str], tag: str) -> Ref | None:
        for name in reversed(log):
            ref = self._document(name, Ref)
            if ref and tag in ref.tags:
                return ref
        return None

    def _ref_names(self, dataset: str) -> list[str]:
        entries = self.backend.list(f"refs/{dataset}/")
        return [entry.name for entry in entries if _REF.fullmatch(entry.name)]

    def _document(self, name: str, model: type[M]) -> M | None:
        for attempt in range(_READ_ATTEMPTS):
            try:
                return _validated(self.backend.read(name), model, self.backend.locate(name))
            except FileNotFoundError:
                return None
            except StoreError:
                if attempt == _READ_ATTEMPTS - 1:
                    raise
        return None


def now() -> str:
    """The present moment, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_ours(held: bytes) -> bool:
    try:
        StoreRecord.model_validate_json(held)
    except ValidationError:
        return False
    return True


def _says(ref: Ref) -> tuple[object, ...]:
    return ref.version, ref.tags, ref.lineage, ref.parents, ref.action


def _validated(data: bytes, model: type[M], where: str) -> M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"{where} is not a valid {model.__name__}: {field and field + ': '}{first['msg']}"
        raise StoreError(f"{one_line(what)[:LONGEST_LINE]}; it is damaged or forged") from None


def _probe(backend: Backend) -> bool:
    """Whether a second put-if-absent of one name is refused."""
    name = f"leases/probe-{secrets.token_hex(8)}"
    try:
        first = backend.create(name, b"first")
        second = backend.create(name, b"second")
        return first and not second
    finally:
        backend.delete(name)
