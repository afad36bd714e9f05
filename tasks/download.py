"""Download: each address of a table becomes a checked video."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from reelmill.errors import Rejected
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, fetch_iter
from reelmill.fetch.transfer import PROXY_PATTERN, may_pass
from reelmill.media.probe import probe
from reelmill.shards import index
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Runtime,
    Sample,
    Stage,
    carried_names,
    sample_json,
)
from reelmill.tasks.media_fields import video_field
from reelmill.units import Bytes, Number, Seconds

OWN = pa.schema(
    [
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("duration", pa.float64()),
        pa.field("has_audio", pa.bool_()),
    ]
)
"""What arrived: digest, bytes, pixels, frames per second, seconds."""


class DownloadParams(Params):
    """What may be fetched, and how hard to try."""

    max_bytes: Bytes = Field(4 << 30, description="the largest file that is taken")
    allow_private: bool = Field(
        False, description="let addresses point to this machine and private networks"
    )
    allow_files: bool = Field(False, description="let addresses be file: paths of the workers")
    robots: bool = Field(False, description="heed robots.txt")
    noai: bool = Field(False, description="heed X-Robots-Tag: noai, noimageai and none")
    opt_out: tuple[str, ...] = Field(
        (), description="domains, and globs of addresses, that are never asked for"
    )
    rules: tuple[tuple[str, str], ...] = Field(
        (), description="domains or globs of addresses, each with the source that fetches them"
    )
    concurrency: Annotated[int, Field(ge=1, le=1024), Runtime] = Field(
        16, description="files in flight for one shard"
    )
    per_host: Annotated[int, Field(ge=1, le=1024), Runtime] = Field(
        8, description="files in flight from one host"
    )
    rate: Annotated[Number | None, Field(gt=0), Runtime] = Field(
        None, description="requests a second to one host, at most"
    )
    deadline: Annotated[Seconds | None, Field(gt=0), Runtime] = Field(
        None, description="for all files of a shard; what is missing then is rejected"
    )
    proxy: Annotated[str, Field(pattern=PROXY_PATTERN), Runtime] = Field(
        "", description="URL of an HTTP or SOCKS proxy, or env for the environment's; empty: none"
    )
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(300), description="for one file, all attempts together"
    )
    attempts: Annotated[int, Field(ge=1, le=100), Runtime] = Field(
        4, description="tries for a failure that may pass"
    )
    user_agent: Annotated[str, Field(min_length=1, pattern=r"^[\x20-\x7e]+$"), Runtime] = Field(
        "reelmill", description="how downloads introduce themselves"
    )


class Download(Stage[DownloadParams]):
    """Every row is fetched, hashed and probed; one that is no video is a reject with its reason."""

    name = "download"
    params = DownloadParams
    conserves = True
    takes = "rows"
    memory = 250_000_000

    def schema(self, job: Job[DownloadParams]) -> pa.Schema:
        names = _names(job)
        table = job.reader("source").table.schema
        return pa.schema([*OWN, *(table.field(name).with_name(names[name]) for name in names)])

    def make(self, job: Job[DownloadParams]) -> Iterator[Output]:
        params = job.params
        rows = {row["key"]: row for row in job.reader("source").rows()}
        names = _names(job)
        policy = FetchPolicy(
            concurrency=params.concurrency,
            timeout_s=float(params.timeout),
            attempts=params.attempts,
            max_bytes=params.max_bytes,
            allow_private=params.allow_private,
            allow_file=params.allow_files,
            user_agent=params.user_agent,
            per_host=params.per_host,
            rate=None if params.rate is None else float(params.rate),
            deadline_s=None if params.deadline is None else float(params.deadline),
            proxy=params.proxy,
            robots=params.robots,
            noai=params.noai,
            opt_out=params.opt_out,
            rules=params.rules,
        )
        requests = ((key, row["url"]) for key, row in rows.items())
        for key, outcome in fetch_iter(requests, policy, job.scratch):
            row = {ours: rows[key][theirs] for theirs, ours in names.items()}
            if isinstance(outcome, FetchFailure):
                yield Reject(key, outcome.reason, outcome.message, row)
                continue
            assert isinstance(outcome, Fetched)
            with outcome as file:
                try:
                    yield _sample(key, file, row)
                except Rejected as rejected:
                    yield Reject(key, rejected.reason, rejected.message, row)

    def may_pass(self, reason: str) -> bool:
        return may_pass(reason)


def _sample(key: str, file: Fetched, row: Mapping[str, Any]) -> Sample:
    info = probe(file.path or file.read())
    found = {name: value for name, value in info.as_json().items() if value is not None}
    told: dict[str, Any] = {
        name: _plain(value) for name, value in row.items() if value not in (None, [])
    }
    ours: dict[str, Any] = {
        name: told.pop(name) for name in ("url", "caption", "spans") if name in told
    }
    about: dict[str, Any] = {
        "key": key,
        **ours,
        # Under a name of their own: later stages must not take a table's word for theirs.
        "table": told,
        "sha256": file.sha256,
        "bytes": file.size,
        "video": found,
    }
    columns = {
        **row,
        "sha256": file.sha256,
        "bytes": file.size,
        "container": info.container,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "duration": float(info.duration),
        "has_audio": info.has_audio,
    }
    fields = {
        video_field(info.container, info.codec): file.path or file.read(),
        "json": sample_json(about),
    }
    return Sample(key, fields, columns)


def _names(job: Job[DownloadParams]) -> dict[str, str]:
    """The index column of each of the table's columns."""
    own = job.reader("source").table.schema.names
    carried = [name for name in own if name not in index.BASE.names]
    return carried_names(carried, {*index.BASE.names, *OWN.names})


def _plain(value: Any) -> Any:
    """A table's value as JSON: exact decimals as text, moments in ISO 8601."""
    match value:
        case None | bool() | int() | str():
            # Canonical JSON has no integers beyond what a double holds.
            return value if not isinstance(value, int) or abs(value) < 2**53 else str(value)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return format(value.normalize(), "f")
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return str(value)
