"""Samples that stay as they lie: spans of their tar, or the whole of it where all of them stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reelmill.errors import StageError
from reelmill.shards import index
from reelmill.shards.gather import Gatherer
from reelmill.store.model import Shard
from reelmill.tasks.contract import Adopted, Copied, Job, Output


def refuse_rows(job: Job[Any], role: str) -> None:
    """Raise ``StageError`` if what fills a role are rows of a table, which have no tar."""
    refuse_row_shard(job.shards[role], role)


def refuse_row_shard(shard: Shard, role: str) -> None:
    """Raise ``StageError`` if an input shard is rows of a table."""
    if shard.tar is None and shard.samples:
        raise StageError(
            f"{role} is a table, whose rows are no samples; have them downloaded or adopted first"
        )


def taken(
    job: Job[Any],
    role: str,
    rows: Sequence[Mapping[str, Any]],
    staying: Mapping[str, Mapping[str, Any]],
) -> Iterator[Output]:
    """The samples of an input shard that stay, with their columns.

    Args:
        rows: of all the shard's samples, as its reader gives them.
        staying: the columns of those that stay, by key.
    """
    shard = job.shards[role]
    kept = [row for row in rows if row["key"] in staying]
    if not kept:
        return
    if len(kept) == len(rows):
        assert shard.tar is not None
        yield Adopted(shard.tar, [index.as_row(row, staying[row["key"]]) for row in kept])
        return
    with Gatherer(job.store, job.scratch) as gatherer:
        spans = gatherer.spans([(shard, dict(row)) for row in kept])
        for row, span in zip(kept, spans, strict=True):
            yield Copied(row["key"], span, staying[row["key"]])
