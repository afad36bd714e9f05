"""Adopt: the samples of tars that others wrote become samples of ours."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.errors import Rejected, ShardError
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, fetch_iter
from reelmill.fetch.transfer import may_pass
from reelmill.media.describe import look
from reelmill.media.probe import VideoInfo
from reelmill.media.timing import Timing
from reelmill.shards import tar
from reelmill.shards.foreign import Group, Part, read_groups
from reelmill.shards.writer import Data
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Runtime,
    Sample,
    Stage,
    carried_columns,
)
from reelmill.tasks.media_fields import VIDEO, VIDEO_COLUMNS, Look, video_columns, video_field
from reelmill.units import Bytes, Seconds

FieldName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$", max_length=80)]

WAS = pa.field("was", pa.string())
"""A sample's key in its tar, directories included."""

_UNFIT = re.compile(r"[^a-z0-9_.-]")
_IN_MEMORY = 8 << 20
_PIECE = 1 << 20


class AdoptParams(Params):
    """What is taken from the tars. Fields are named as there, in lower case."""

    fields: tuple[FieldName, ...] = Field(
        (), description="take these fields only, such as [mp4, json]; without any, all"
    )
    rename: dict[FieldName, FieldName] = Field(
        {}, description="new names of fields, such as {jpg: 000000.image.jpg}"
    )
    video: FieldName | None = Field(
        None, description="the field that must hold a video; its size, rate and length are indexed"
    )
    probe: Look = Field(
        "packets",
        description="packets: know every frame's time, so that rate, keyframes and broken clocks "
        "are found; header: only what that and the first frame tell",
    )
    max_bytes: Bytes = Field(64 << 30, description="the largest tar that is taken, unpacked")
    allow_private: bool = Field(
        False, description="let addresses point to this machine and private networks"
    )
    allow_files: bool = Field(False, description="let addresses be file: paths of the workers")
    concurrency: Annotated[int, Field(ge=1, le=64), Runtime] = Field(
        2, description="tars of one shard that are fetched ahead, each with room in scratch"
    )
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(3600), description="for one tar, all attempts together"
    )
    attempts: Annotated[int, Field(ge=1, le=100), Runtime] = Field(
        4, description="tries for a failure that may pass"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AdoptParams:
        if self.fields and self.video and self.video not in self.fields:
            raise ValueError(f"video is {self.video}, which is not one of fields")
        unknown = sorted(set(self.rename) - set(self.fields)) if self.fields else []
        if unknown:
            raise ValueError(f"rename has {unknown[0]}, which is not one of fields")
        return self

    def effective(self) -> dict[str, Any]:
        return {"probe": None} if self.video is None else {}


class Adopt(Stage[AdoptParams]):
    """A sample is keyed by its row's key and its place in the tar: ``000010005_000012``.

    Its fields' bytes are those of the tar. A tar that cannot be had or read is a reject of its row;
    of a tar that breaks off, the samples before that come through.
    """

    name = "adopt"
    version = 2
    params = AdoptParams
    takes = "rows"
    memory = 300_000_000

    def schema(self, job: Job[AdoptParams]) -> pa.Schema:
        table = job.reader("source").table.schema
        own = _own(job.params)
        names = carried_columns(table, own.names)
        return pa.schema([*own, *(table.field(name).with_name(names[name]) for name in names)])

    def make(self, job: Job[AdoptParams]) -> Iterator[Output]:
        params = job.params
        source = job.reader("source")
        rows = {row["key"]: row for row in source.rows()}
        names = carried_columns(source.table.schema, _own(params).names)
        policy = FetchPolicy(
            concurrency=params.concurrency,
            timeout_s=float(params.timeout),
            attempts=params.attempts,
            max_bytes=params.max_bytes,
            allow_private=params.allow_private,
            allow_file=params.allow_files,
        )
        requests = ((key, row["url"]) for key, row in rows.items())
        for key, outcome in fetch_iter(requests, policy, job.scratch):
            row = {ours: rows[key][theirs] for theirs, ours in names.items()}
            if isinstance(outcome, FetchFailure):
                yield Reject(key, outcome.reason, outcome.message, row)
                continue
            assert isinstance(outcome, Fetched)
            with outcome as fetched:
                yield from _adopted(params, key, fetched, row, job.scratch)

    def may_pass(self, reason: str) -> bool:
        return may_pass(reason)


def _own(params: AdoptParams) -> pa.Schema:
    return pa.schema([WAS, *(VIDEO_COLUMNS if params.video else ())])


def _adopted(
    params: AdoptParams, key: str, fetched: Fetched, row: Mapping[str, Any], scratch: Path
) -> Iterator[Output]:
    """Every sample of one tar, and a reject for what could not be read of it."""
    number = 0
    try:
        with _plain(fetched, scratch, params.max_bytes) as (file, size):
            for group in read_groups(file, size):
                with TemporaryDirectory(dir=scratch) as folder:
                    yield _output(params, f"{key}_{number:06d}", group, file, row, Path(folder))
                number += 1
        if not number:
            raise Rejected("no_samples", "the tar holds no sample")
    except Rejected as rejected:
        where = f"{key}_{number:06d}" if number else key
        yield Reject(where, rejected.reason, rejected.message, row)


@contextmanager
def _plain(fetched: Fetched, scratch: Path, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """The tar and its bytes; unpacked in scratch if it is a gzip file, as far as that goes."""
    with fetched.open() as file:
        if file.read(2) != b"\x1f\x8b":
            yield file, fetched.size
            return
        file.seek(0)
        with TemporaryFile(dir=scratch) as unpacked:
            size = _unpack(file, unpacked, limit)
            yield unpacked, size


def _unpack(packed: BinaryIO, out: BinaryIO, limit: int) -> int:
    size = 0
    reader = gzip.GzipFile(fileobj=packed)
    while True:
        try:
            piece = reader.read1(_PIECE)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            piece = b""  # the tar is as torn as its packing
        if not piece:
            return size
        size += out.write(piece)
        if size > limit:
            raise Rejected("too_large", f"larger than {limit} bytes when unpacked")


def _output(
    params: AdoptParams,
    key: str,
    group: Group,
    file: BinaryIO,
    row: Mapping[str, Any],
    folder: Path,
) -> Output:
    columns = {**row, "was": group.key}
    try:
        if group.problem is not None:
            raise Rejected("unfit_field", group.problem)
        fields = _read(file, _chosen(params, key, group), folder)
        if params.video is not None:
            name = params.rename.get(params.video, params.video)
            info, timing = _probed(params, fields, name)
            columns |= video_columns(info, timing)
            fields[_video_name(name, info, fields)] = fields.pop(name)
    except Rejected as rejected:
        return Reject(key, rejected.reason, rejected.message, columns)
    return Sample(key, fields, columns)


def _chosen(params: AdoptParams, key: str, group: Group) -> dict[str, Part]:
    """The members that are taken, by the names of our fields."""
    chosen: dict[str, Part] = {}
    for field, part in group.parts.items():
        name = _UNFIT.sub("_", field)
        if params.fields and name not in params.fields:
            continue
        name = params.rename.get(name, name)
        if name in chosen:
            raise Rejected("unfit_field", f"two of its fields would be called {name}")
        try:
            tar.header(tar.member_name(key, name), part.size)
        except ShardError as error:
            raise Rejected("unfit_field", str(error)) from error
        chosen[name] = part
    if not chosen:
        raise Rejected("no_fields", "it has none of the fields that are taken")
    return chosen


def _read(file: BinaryIO, parts: Mapping[str, Part], folder: Path) -> dict[str, Data]:
    """The fields' data: in memory as long as they are small together, else files in ``folder``."""
    fields: dict[str, Data] = {}
    held = 0
    for number, (name, part) in enumerate(parts.items()):
        file.seek(part.offset)
        if held + part.size <= _IN_MEMORY:
            held += part.size
            fields[name] = file.read(part.size)
        else:
            path = folder / str(number)
            with path.open("wb") as out:
                left = part.size
                while left:
                    left -= out.write(file.read(min(left, _PIECE)))
            fields[name] = path
    return fields


def _probed(
    params: AdoptParams, fields: Mapping[str, Data], name: str
) -> tuple[VideoInfo, Timing | None]:
    if name not in fields:
        raise Rejected("no_video", f"it has no field {name}")
    data = fields[name]
    source = data if isinstance(data, Path) else bytes(data)
    return look(source, packets=params.probe == "packets")


def _video_name(name: str, info: VideoInfo, fields: Mapping[str, Data]) -> str:
    """Where later stages look for the video: its own name, or one for its container."""
    found = name if name in VIDEO else video_field(info.container, info.codec)
    if found != name and found in fields:
        raise Rejected("unfit_field", f"two of its fields would be called {found}")
    return found
