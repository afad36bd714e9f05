"""The frame around every stage: runs one action and commits what it made. What workers run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from reelmill import __version__
from reelmill.errors import ReelmillError, ShardError, StageError, told
from reelmill.shards import provenance
from reelmill.shards.writer import ShardWriter, Written, put_shard
from reelmill.store import Store
from reelmill.store.local import scratch_name
from reelmill.store.model import Action, Result, Shard, action_name
from reelmill.tasks import get_stage
from reelmill.tasks.contract import (
    Adopted,
    Copied,
    Gathered,
    Job,
    Params,
    Reject,
    Sample,
    Stage,
    label,
)

TRACE = "REELMILL_TRACE"
"""Environment variable: a file that gets one JSON line for every action executed."""


class Order(BaseModel):
    """An action on its way to a worker: small, since digests travel and bytes do not."""

    model_config = ConfigDict(frozen=True)

    store: str
    run: str
    dataset: str
    shard: str
    action: Action
    params: dict[str, Any]
    shards: dict[str, Shard] = {}

    @property
    def label(self) -> str:
        return label(self.action.stage, self.dataset, self.shard)


Watch = Callable[[Order, int, int], object]
"""Is told of an order how many input samples are done, and of how many."""


def execute(order: str, watch: Watch | None = None) -> str:
    """Make the shard that an ``Order`` (as JSON) describes, unless it was made meanwhile.

    Returns the ``Result`` that stands, as JSON. Stages that go through samples tell ``watch`` of
    each, in this thread.

    Raises:
        StageError: nothing was committed, for a reason outside the data.
    """
    task = Order.model_validate_json(order)
    store = _open_store(task.store)
    made = store.recall([task.action.key])
    if made:
        return made[task.action.key].model_dump_json()
    started, cpu = time.time(), _cpu_seconds()
    try:
        written, origins = _make(store, task, watch)
    except (ReelmillError, OSError) as error:
        raise StageError(str(error)) from error
    result = _commit(store, task, written, origins, started)
    _trace(task, started, _cpu_seconds() - cpu, result)
    return result.model_dump_json()


def _make(store: Store, task: Order, watch: Watch | None) -> tuple[Written, bytes | None]:
    stage = _stage(task.action.stage)
    params = stage.params.model_validate(task.params)
    _same_tools(stage, params, task.action)
    scratch = store.backend.scratch()
    with _folder(scratch) as folder:
        told = functools.partial(watch, task) if watch is not None else None
        job = Job(store, task.action, params, task.shards, folder, told)
        writer = ShardWriter(scratch, stage.schema(job), stage.order_of(job))
        origins: dict[str, Mapping[str, Any]] = {}
        try:
            for output in stage.make(job):
                if isinstance(output, Sample | Reject) and output.provenance is not None:
                    origins[output.key] = output.provenance
                match output:
                    case Sample(key, fields, columns):
                        writer.add(key, fields, columns)
                    case Copied(key, span, columns):
                        writer.add_span(key, span, columns)
                    case Adopted(blob, rows):
                        writer.adopt(blob, rows)
                    case Gathered(table, data):
                        writer.lay(table, data)
                    case Reject(key, reason, message, columns):
                        writer.reject(key, reason, message, columns)
            _balance(stage, params, task, writer)
            return writer.close(), provenance.encode(origins, stage.provenance)
        except BaseException:
            writer.abort()
            raise


def _stage(name: str) -> Stage[Any]:
    try:
        return get_stage(name)
    except (KeyError, ImportError) as error:
        raise StageError(
            f"the worker on {socket.gethostname()} has no stage {name} ({told(error)}); install "
            "the same packages on all workers"
        ) from error


def _balance(stage: Stage[Any], params: Params, task: Order, writer: ShardWriter) -> None:
    if not stage.conserves or stage.scope_of(params) == "generation":
        return
    taken = task.shards[stage.roles[0]].samples
    if taken != writer.samples + writer.rejects:
        raise ShardError(
            f"{taken} samples went in, {writer.samples} and {writer.rejects} rejects came out; "
            "this is a fault in the stage"
        )


def _commit(
    store: Store, task: Order, written: Written, origins: bytes | None, started: float
) -> Result:
    result = put_shard(store, written, origins)
    how: dict[str, str | int] = {
        "run": task.run,
        "made_for": task.label,
        "host": socket.gethostname(),
        "reelmill": __version__,
        "started": int(started),
        "milliseconds": int((time.time() - started) * 1000),
    }
    return store.commit(task.action, result, how)


def _same_tools(stage: Stage[Any], params: Params, action: Action) -> None:
    here = stage.tools(params)
    if here != action.tools:
        other = ", ".join(
            f"{name} {here.get(name, 'missing')} instead of {build}"
            for name, build in action.tools.items()
            if here.get(name) != build
        )
        raise StageError(
            f"this worker on {socket.gethostname()} has {other or 'other tools'}: its bytes would "
            "differ; install the same packages on all workers"
        )


@functools.lru_cache(maxsize=4)
def _open_store(url: str) -> Store:
    return Store.open(url)


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    folder = scratch_name(scratch)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _trace(task: Order, started: float, cpu_seconds: float, result: Result) -> None:
    path = os.environ.get(TRACE)
    if not path:
        return
    line = {
        "action": task.action.key,
        "label": task.label,
        "record": action_name(task.action.key),
        "run": task.run,
        "pid": os.getpid(),
        "started": started,
        "seconds": time.time() - started,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "samples": result.samples,
        "rejects": result.rejects,
    }
    data = (json.dumps(line) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
