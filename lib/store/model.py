"""The documents a store holds. All are JSON from strangers: validated on the way in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from reelmill.digest import SHORT, canonical, sha256

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShardID = Annotated[str, Field(pattern=r"^[0-9]{5,9}$")]
TagName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,62}$")]
Suffix = Literal["tar", "parquet", "json"]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
RunID = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Moment = Annotated[int, Field(ge=0, lt=2**40)]
"""Seconds since the epoch."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def as_bytes(self) -> bytes:
        """The document as canonical JSON: equal documents are equal bytes."""
        return canonical(self.model_dump(mode="json"))


class Blob(_Document):
    """Immutable bytes: their sha256 and size in bytes."""

    digest: Digest
    size: Count


class Shard(_Document):
    """One shard of a version. ``tar`` is absent where every sample was rejected."""

    id: ShardID
    tar: Blob | None
    index: Blob
    samples: Count
    rejects: Count

    @property
    def size(self) -> int:
        """Bytes of the tar and the index together."""
        return sum(self.blob_names().values())

    def blob_names(self) -> dict[str, int]:
        """Names and sizes of the shard's blobs."""
        made = {blob_name(self.index.digest, "parquet"): self.index.size}
        return {blob_name(self.tar.digest, "tar"): self.tar.size, **made} if self.tar else made


class Generation(_Document):
    """The shards that entered with one growth of the source."""

    shards: tuple[Shard, ...]


class History(_Document):
    """Generations of a dataset up to one of them, oldest first: digests of ``Generation``."""

    generations: Annotated[tuple[Digest, ...], Field(min_length=1)]


def _is_empty(value: object) -> bool:
    return not value


class Manifest(_Document):
    """What a version holds and nothing else; its digest is the version's name.

    ``removed`` names parquet blobs of rows of its sources that no longer count (see
    ``reelmill.shards.removed``): their samples still lie in the shards, which are never rewritten,
    and readers leave them out.
    """

    format: Literal[1] = 1
    fields: tuple[str, ...]
    generations: tuple[Generation, ...]
    # A version from which nothing was removed is named as if nothing could be.
    removed: Annotated[tuple[Blob, ...], Field(exclude_if=_is_empty)] = ()

    @property
    def shards(self) -> Iterator[Shard]:
        return (shard for generation in self.generations for shard in generation.shards)

    def totals(self) -> Totals:
        shards = list(self.shards)
        return Totals(
            shards=len(shards),
            samples=sum(shard.samples for shard in shards),
            rejects=sum(shard.rejects for shard in shards),
            bytes=sum(shard.size for shard in shards),
        )


class Totals(_Document):
    """Counts over a version's shards; ``bytes`` is of tars and indexes."""

    shards: Count
    samples: Count
    rejects: Count
    bytes: Count


class Uncounted(_Document):
    """What lies in a version's shards and counts no longer, since it derives from rows that were
    removed: samples, and rejects by reason."""

    samples: Count
    rejects: dict[str, Count]


class Action(_Document):
    """One shard's work, written down: all that its bytes depend on, and nothing else.

    ``inputs`` holds digests by role; ``slot`` says which output of several this is; ``tools``
    names the builds that change bytes (an encoder's, a model's weights).
    """

    format: Literal[1] = 1
    stage: str
    version: int
    params: dict[str, JsonValue]
    inputs: dict[str, dict[str, Digest | None]]
    slot: dict[str, int | str] = {}
    tools: dict[str, str] = {}
    salt: str = ""

    @cached_property
    def key(self) -> str:
        """The action key: sha256 of the canonical JSON."""
        return sha256(self.as_bytes())


class Result(_Document):
    """What an action made. An ingest makes a manifest, every other stage a shard.

    ``provenance`` names a parquet blob that says how each sample was had: times, attempts and
    servers, which may be others when the action is executed again. No version names it.
    """

    tar: Blob | None = None
    index: Blob | None = None
    manifest: Blob | None = None
    provenance: Annotated[Blob | None, Field(exclude_if=_is_empty)] = None
    samples: Count
    rejects: Count
    fields: tuple[str, ...] = ()
    reasons: dict[str, int] = {}

    def blob_names(self) -> dict[str, int]:
        """Names and sizes of the blobs the result stands on."""
        made: tuple[tuple[Blob | None, Suffix], ...] = (
            (self.tar, "tar"),
            (self.index, "parquet"),
            (self.manifest, "json"),
            (self.provenance, "parquet"),
        )
        return {blob_name(blob.digest, suffix): blob.size for blob, suffix in made if blob}

    def shard(self, shard_id: str) -> Shard:
        """The result as the entry of a manifest."""
        if self.index is None:
            raise ValueError("an ingest's result is not a shard")
        return Shard(
            id=shard_id,
            tar=self.tar,
            index=self.index,
            samples=self.samples,
            rejects=self.rejects,
        )


class ActionRecord(_Document):
    """An action result as stored: the action, what it made, and how (never hashed)."""

    format: Literal[1] = 1
    action: Action
    result: Result
    how: dict[str, str | int]


class LineageEntry(_Document):
    """Which action made a shard of a version."""

    shard: ShardID
    action: Digest
    result: Result


class Lineage(_Document):
    """How a version came about, shard by shard. A blob beside the manifest, named by the ref."""

    format: Literal[1] = 1
    shards: tuple[LineageEntry, ...]


class Ref(_Document):
    """One line of a dataset's log: a version was committed, or tags were put on one.

    ``totals`` is of all that the shards hold, ``uncounted`` of what no longer counts of that.
    """

    format: Literal[1] = 1
    event: Literal["commit", "tag"]
    version: Digest
    tags: tuple[TagName, ...]
    time: str
    run: str
    stage: str
    parents: dict[str, str] = {}
    lineage: Digest | None = None
    totals: Totals
    action: Digest | None = None
    holes: dict[ShardID, str] = {}
    uncounted: Annotated[Uncounted | None, Field(exclude_if=_is_empty)] = None

    @property
    def counted(self) -> Totals:
        """``totals`` with the samples and rejects that count."""
        if self.uncounted is None:
            return self.totals
        return self.totals.model_copy(
            update={
                "samples": self.totals.samples - self.uncounted.samples,
                "rejects": self.totals.rejects - sum(self.uncounted.rejects.values()),
            }
        )

    @property
    def short(self) -> str:
        return self.version[:SHORT]


class LeaseRecord(_Document):
    """The heartbeat of a live run. ``place`` is where its process number can be looked up."""

    format: Literal[1] = 1
    run: RunID
    host: str
    place: str = ""
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    started: Moment
    beat: Moment


class ReservationRecord(_Document):
    """Which run is making an action's result, since when."""

    format: Literal[1] = 1
    run: RunID
    time: Moment


class Claim(_Document):
    """Names of objects that a run relies on without having made them."""

    format: Literal[1] = 1
    names: tuple[str, ...]


class StoreRecord(_Document):
    """``store.json``: what a reader must know before it reads anything else."""

    format: Literal[1] = 1
    digest: Literal["sha256"] = "sha256"


def blob_name(digest: str, suffix: Suffix) -> str:
    """Where a blob lies in the store."""
    return f"blobs/sha256/{digest[:2]}/{digest}.{suffix}"


def action_name(key: str) -> str:
    """Where an action record lies in the store."""
    return f"actions/sha256/{key[:2]}/{key}.json"
