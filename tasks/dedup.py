"""Dedup: of samples that hold the same bytes, across all of a dataset, the first is kept."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from reelmill import __version__
from reelmill.errors import NotFoundError
from reelmill.shards import index
from reelmill.shards.duplicates import find_duplicates
from reelmill.shards.gather import Gatherer
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.backend import Range
from reelmill.store.model import Action, Result, blob_name
from reelmill.tasks.contract import (
    HISTORY,
    Adopted,
    Copied,
    Job,
    Output,
    Params,
    Reject,
    Sample,
    Stage,
    carried_columns,
    sample_json,
)
from reelmill.tasks.media_fields import VIDEO

KEPT = pa.field("kept", pa.string())
"""The key of the sample that is kept in place of this one; null for those that are kept."""

SURVEY_VERSION = 1
"""Raised by whoever changes what a survey holds for equal inputs."""


class DedupParams(Params):
    """What becomes of duplicates, and what makes one."""

    duplicates: Literal["drop", "link"] = Field(
        "drop",
        description="reject duplicates, or keep their metadata with the key of the sample that "
        "has the video",
    )
    column: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "sha256", description="the index column whose equal values make duplicates"
    )

    @field_validator("column")
    @classmethod
    def _is_of_a_stage(cls, column: str) -> str:
        if column in index.BASE.names:
            raise ValueError(f"{column} tells nothing of what a sample holds")
        return column


class Dedup(Stage[DedupParams]):
    """Shards keep their IDs and samples their keys; a shard without duplicates keeps its tar.

    What is kept is the first in the order of generations, shards and keys, so that no shard ever
    changes because new ones come.
    """

    name = "dedup"
    params = DedupParams
    scope = "history"
    conserves = True
    order = "input"
    memory = 300_000_000

    def schema(self, job: Job[DedupParams]) -> pa.Schema:
        table = job.reader("source").table.schema
        names = carried_columns(table, [KEPT.name])
        return pa.schema([*(table.field(name).with_name(names[name]) for name in names), KEPT])

    def make(self, job: Job[DedupParams]) -> Iterator[Output]:
        source = job.shards["source"]
        if source.tar is None:
            return
        duplicates = _duplicates(job)
        reader = job.reader("source")
        rows = reader.rows()
        names = carried_columns(reader.table.schema, [KEPT.name])
        columns = {row["key"]: {ours: row[its] for its, ours in names.items()} for row in rows}
        if not duplicates:
            yield Adopted(source.tar, [index.as_row(row, columns[row["key"]]) for row in rows])
            return
        what = "bytes" if job.params.column == "sha256" else job.params.column
        linked = _linked(reader, duplicates) if job.params.duplicates == "link" else {}
        with Gatherer(job.store, job.scratch) as gatherer:
            spans = gatherer.spans([(source, row) for row in rows if row["key"] not in duplicates])
            for done, row in enumerate(rows, 1):
                key = row["key"]
                if key not in duplicates:
                    yield Copied(key, next(spans), columns[key])
                else:
                    kept = duplicates[key]
                    about = {**columns[key], KEPT.name: kept}
                    if key in linked:
                        yield _link(linked[key], kept, about)
                    else:
                        yield Reject(key, "duplicate", f"the same {what} as {kept}", about)
                if job.watch is not None:
                    job.watch(done, len(rows))


def _linked(reader: ShardReader, keys: Mapping[str, str]) -> dict[str, InputSample]:
    """Some samples of a shard by key, without their videos."""
    rows = (row for row in reader.rows() if row["key"] in keys)
    fields = {member.name for row in rows for member in index.members(row["fields"])}
    return {sample.key: sample for sample in reader.samples(fields.difference(VIDEO), keys)}


def _link(sample: InputSample, kept: str, columns: Mapping[str, Any]) -> Sample | Reject:
    about = sample.fields.get("json", b"{}")
    try:
        linked = sample_json({**_object(about), "same_as": kept})
    # Canonical JSON cannot hold all that can be read, such as an integer beyond 2**53.
    except (ValueError, RecursionError):
        message = f"the same as {kept}, and its json field holds nothing that can say so"
        return Reject(sample.key, "bad_json", message, columns)
    return Sample(sample.key, {**sample.fields, "json": linked}, columns)


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


# The survey


def _duplicates(job: Job[DedupParams]) -> dict[str, str]:
    """The duplicates in the shard that is made: for each one's key, that of the sample kept.

    All shards of a generation share one survey, which is an action of its own: the first who needs
    it makes it, and the store keeps it for the others. A collection may remove it later.
    """
    action = Action(
        stage="dedup.survey",
        version=SURVEY_VERSION,
        params={"column": job.params.column},
        inputs={HISTORY: job.action.inputs[HISTORY]},
    )
    shard_id = job.shards["source"].id
    try:
        return _survey(job.store, action.key).of(shard_id)
    except NotFoundError:
        _make_survey(job, action)
    return _survey(job.store, action.key).of(shard_id)


def _make_survey(job: Job[DedupParams], action: Action) -> None:
    # Others may have begun at the same time. They cannot go on without it either.
    folder = job.scratch / "survey"
    folder.mkdir()
    writer = ShardWriter(job.store.backend.scratch(), pa.schema([]))
    try:
        found = find_duplicates(job.store, job.history(), job.params.column, folder)
        for shard_id, duplicates in found:
            writer.add(shard_id, {"json": sample_json(duplicates)}, {})
        written = writer.close()
    except BaseException:
        writer.abort()
        raise
    how: dict[str, str | int] = {"host": socket.gethostname(), "reelmill": __version__}
    job.store.commit(action, put_shard(job.store, written), how)


@functools.lru_cache(maxsize=2)
def _survey(store: Store, key: str) -> _Survey:
    """The survey that an action made.

    Raises:
        NotFoundError: the store does not hold it.
    """
    made = store.recall([key])
    if not made:
        raise NotFoundError(f"survey {key} is not in {store.url}")
    return _Survey(store, made[key])


class _Survey:
    """A shard with one sample for each shard that has duplicates; its ``json`` says which."""

    def __init__(self, store: Store, result: Result) -> None:
        assert result.index is not None
        self._store = store
        self._tar = result.tar
        table = index.decode(store.read_blob(result.index.digest, "parquet"), ["key", "fields"])
        self._places = {row["key"]: index.members(row["fields"]) for row in table.to_pylist()}

    def of(self, shard_id: str) -> dict[str, str]:
        """The keys of a shard's duplicates, each with that of the sample kept.

        Raises:
            NotFoundError: the store no longer holds the survey.
        """
        if shard_id not in self._places:
            return {}
        assert self._tar is not None
        ((place,), name) = self._places[shard_id], blob_name(self._tar.digest, "tar")
        wanted = Range(name, place.offset, place.offset + place.size)
        try:
            (data,) = self._store.backend.read_ranges([wanted])
        except FileNotFoundError:
            raise NotFoundError(f"{self._store.backend.locate(name)} is gone") from None
        found: dict[str, str] = json.loads(data)
        return found
