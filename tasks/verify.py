"""Verification of one shard, for the workers of a run that looks after a store."""

from __future__ import annotations

import functools
import itertools

from pydantic import BaseModel, ConfigDict

from reelmill.shards.verify import remove_damaged, verify_shard
from reelmill.store import Store
from reelmill.store.model import Shard

MOST_PROBLEMS = 20
"""Problems of one shard that are told: a tar that was overwritten has one for each sample."""


class Check(BaseModel):
    """A shard to verify, on its way to a worker."""

    model_config = ConfigDict(frozen=True)

    store: str
    shard: Shard
    repair: bool


class Checked(BaseModel):
    """What is wrong with a shard, and whether its damaged blobs were removed."""

    model_config = ConfigDict(frozen=True)

    problems: tuple[str, ...]
    removed: bool


def check(order: str) -> str:
    """Verify the shard of a ``Check`` (as JSON), and remove what is damaged if it says so.

    Returns a ``Checked``, as JSON.

    Raises:
        StoreError: the store does not answer.
    """
    task = Check.model_validate_json(order)
    store = _open_store(task.store)
    problems = list(itertools.islice(verify_shard(store, task.shard), MOST_PROBLEMS + 1))
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = ["and more"]
    removed = bool(problems) and task.repair
    if removed:
        remove_damaged(store, task.shard)
    return Checked(problems=tuple(problems), removed=removed).model_dump_json()


@functools.lru_cache(maxsize=4)
def _open_store(url: str) -> Store:
    return Store.open(url)
