"""Download: each address of a table becomes a checked video."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from reelmill.digest import order_hash
from reelmill.errors import Rejected
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, Outcome, Request, fetch_iter
from reelmill.fetch.rules import Extractor, rules_of
from reelmill.fetch.transfer import PROXY_PATTERN, Provenance, may_pass
from reelmill.fetch.turns import in_turn
from reelmill.media.describe import look
from reelmill.media.peek import Limits
from reelmill.media.probe import VideoInfo
from reelmill.media.sound import SoundInfo, probe_sound
from reelmill.media.timing import Timing
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Runtime,
    Sample,
    Stage,
    carried_columns,
    sample_json,
)
from reelmill.tasks.media_fields import (
    VIDEO_COLUMNS,
    Look,
    caption_field,
    sound_columns,
    sound_field,
    video_columns,
    video_field,
    video_json,
)
from reelmill.tasks.site_params import SiteParams
from reelmill.units import Bytes, Number, Seconds

OWN = pa.schema(
    [
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        *VIDEO_COLUMNS,
    ]
)
"""What arrived: digest, bytes, and what the video is."""


PROVENANCE = pa.schema(
    [
        pa.field("extractor", pa.string()),
        pa.field("final_url", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("ended", pa.int64()),
        pa.field("status", pa.int16()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("address", pa.string()),
    ]
)
"""How a file was had; see ``reelmill.fetch.transfer.Provenance``."""

Pattern = Annotated[str, Field(min_length=1, max_length=1000)]


class DownloadParams(Params):
    """What may be fetched, and how hard to try."""

    max_bytes: Bytes = Field(4 << 30, description="the largest file that is taken")
    limits: Limits = Field(
        Limits(), description="which videos are taken, by length, size of the picture and codec"
    )
    probe: Look = Field(
        "packets",
        description="packets: know every frame's time, so that rate, keyframes and broken clocks "
        "are found; header: only what that and the first frame tell",
    )
    allow_private: bool = Field(
        False, description="let addresses point to this machine and private networks"
    )
    allow_files: bool = Field(False, description="let addresses be file: paths of the workers")
    robots: bool = Field(False, description="heed robots.txt")
    noai: bool = Field(False, description="heed X-Robots-Tag: noai, noimageai and none")
    opt_out: tuple[str, ...] = Field(
        (), description="domains, and globs of addresses, that are never asked for"
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
    extractor: Extractor = Field(
        "auto",
        description="http takes the bytes at an address, yt-dlp the video of a page; auto: yt-dlp "
        "for well-known video sites, http for the rest",
    )
    extractors: dict[Pattern, Literal["http", "yt-dlp"]] = Field(
        {},
        description="the extractor of a domain or of a glob of addresses, such as "
        "{example.org: yt-dlp, 'https://*/raw/*': http}; the longest that matches counts",
    )
    sites: SiteParams = Field(
        SiteParams.model_validate({}),
        description="what yt-dlp takes, and how it asks for it",
    )
    user_agent: Annotated[str, Field(min_length=1, pattern=r"^[\x20-\x7e]+$"), Runtime] = Field(
        "reelmill", description="how downloads introduce themselves"
    )

    def effective(self) -> dict[str, Any]:
        return {} if self.limits.are_set else {"limits": None}


class Download(Stage[DownloadParams]):
    """Every row is fetched, hashed and probed; one that is no video is a reject with its reason."""

    name = "download"
    version = 3
    params = DownloadParams
    conserves = True
    takes = "rows"
    memory = 250_000_000
    provenance = PROVENANCE

    def schema(self, job: Job[DownloadParams]) -> pa.Schema:
        table = job.reader("source").table.schema
        names = carried_columns(table, OWN.names)
        return pa.schema([*OWN, *(table.field(name).with_name(names[name]) for name in names)])

    def make(self, job: Job[DownloadParams]) -> Iterator[Output]:
        source = job.reader("source")
        rows = {row["key"]: row for row in source.rows()}
        names = carried_columns(source.table.schema, OWN.names)
        # In the order in which samples lie in a shard, so that most need not be laid anew.
        keys = sorted(rows, key=lambda key: (order_hash(key), key))
        requests = [Request(key, rows[key]["url"]) for key in keys]
        with (
            closing(fetch_iter(requests, fetch_policy(job.params), job.scratch)) as fetched,
            closing(in_turn(fetched, keys)) as outcomes,
        ):
            for done, (key, outcome) in enumerate(outcomes, 1):
                row = {ours: rows[key][theirs] for theirs, ours in names.items()}
                yield _output(job.params, key, outcome, row)
                if isinstance(outcome, Fetched):
                    outcome.close()
                if job.watch is not None:
                    job.watch(done, len(keys))

    def may_pass(self, reason: str) -> bool:
        return may_pass(reason)


def _output(
    params: DownloadParams, key: str, outcome: Outcome, row: Mapping[str, Any]
) -> Sample | Reject:
    """What a row becomes; a sample's fields may be files of ``outcome``."""
    origin = _origin(outcome.provenance)
    if isinstance(outcome, FetchFailure):
        return Reject(key, outcome.reason, outcome.message, row, origin)
    assert isinstance(outcome, Fetched)
    try:
        sample = _sample(params, key, outcome, row)
    except Rejected as rejected:
        return Reject(key, rejected.reason, rejected.message, row, origin)
    return replace(sample, provenance=origin)


def fetch_policy(params: DownloadParams) -> FetchPolicy:
    """What parameters mean for the fetching of a file."""
    return FetchPolicy(
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
        rules=rules_of(params.extractor, params.extractors),
        sites=params.sites.options(),
        inspector=params.limits.inspector(),
    )


def _origin(provenance: Provenance) -> dict[str, Any]:
    return {name: getattr(provenance, name) for name in PROVENANCE.names}


def _sample(params: DownloadParams, key: str, file: Fetched, row: Mapping[str, Any]) -> Sample:
    info, timing = _probed(params, file)
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
    }
    columns = {**row, "sha256": file.sha256, "bytes": file.size}
    if isinstance(info, VideoInfo):
        field = video_field(info.container, info.codec)
        columns |= video_columns(info, timing)
        about["video"] = video_json(info, timing)
    else:
        field = sound_field(info.container)
        columns |= sound_columns(info)
        about["sound"] = info.as_json()
    fields = {
        **file.extras,
        field: file.path or file.read(),
        "json": sample_json(about),
        **caption_field(ours),
    }
    return Sample(key, fields, columns)


def _probed(params: DownloadParams, file: Fetched) -> tuple[VideoInfo | SoundInfo, Timing | None]:
    data = file.path or file.read()
    if inspector := params.limits.inspector():
        with file.open() as opened:
            inspector.judge(opened, file.size)
    try:
        info, timing = look(data, packets=params.probe == "packets")
        params.limits.check(info)
        return info, timing
    except Rejected as rejected:
        if params.sites.audio == "only" and rejected.reason == "no_video_stream":
            return probe_sound(data), None
        raise


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
