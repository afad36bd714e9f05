"""Sequences: what already is pictures, in folders, zips and tars, becomes a sample a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reelmill.errors import Rejected, ShardError, StageError
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, fetch_iter
from reelmill.fetch.transfer import may_pass
from reelmill.fetch.urls import normalise
from reelmill.media.images import picture_size
from reelmill.sequences.frames import FRAME, Frame, Grouped, Rule
from reelmill.sequences.members import Member, extension, is_hidden
from reelmill.sequences.places import (
    LocalFile,
    Place,
    Ranges,
    open_archive,
    open_file,
    open_folder,
)
from reelmill.shards import tar
from reelmill.tables.sequences import SCHEMA
from reelmill.tasks.adopt import FieldName
from reelmill.tasks.contract import Job, Output, Params, Reject, Runtime, Sample, Stage
from reelmill.tasks.media_fields import FRAME_COLUMNS
from reelmill.units import Bytes, Number, Seconds

_WEB = ("http://", "https://")
_DIGITS = 6


class SequencesParams(Params):
    """Which files are a frame together."""

    fields: dict[FieldName, str] = Field(
        {},
        description="fields and the files they are, such as {depth.png: depth/{frame}.png}, below "
        "the sequence's folder; without any, a frame is what names have up to their first dot",
    )
    shared: dict[FieldName, str] = Field(
        {},
        description="files of the whole sequence that each sample gets, such as "
        "{camera.json: _camera_settings.json}",
    )
    missing: Literal["reject", "keep"] = Field(
        "reject", description="what becomes of a frame that lacks a field which others have"
    )
    fps: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="frames a second, for the column time; frames have none without it"
    )
    max_bytes: Bytes = Field(
        64 << 30, description="the largest sequence that is taken, unpacked, or archive off the web"
    )
    max_frame_bytes: Bytes = Field(
        256 << 20, description="the largest frame that is taken, with all its files"
    )
    allow_private: bool = Field(
        False, description="let addresses point to this machine and private networks"
    )
    allow_files: bool = Field(False, description="let addresses be file: paths of the workers")
    timeout: Annotated[Seconds, Field(gt=0), Runtime] = Field(
        Decimal(3600), description="for one archive off the web, all attempts together"
    )
    attempts: Annotated[int, Field(ge=1, le=100), Runtime] = Field(
        4, description="tries for a failure that may pass"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SequencesParams:
        for name, pattern in self.fields.items():
            if pattern.count(FRAME) != 1:
                raise ValueError(f"fields: {name}: its files are told apart by one {FRAME}")
        if both := sorted(set(self.fields) & set(self.shared)):
            raise ValueError(f"{both[0]} is one of fields, and shared")
        if len(set(self.shared.values())) < len(self.shared):
            raise ValueError("shared names a file twice")
        return self


class Sequences(Stage[SequencesParams]):
    """A sample is keyed by its row's key and its frame's number: ``000010000_000123``.

    Its fields' bytes are those of the files. Samples lie in the order of their frames.
    """

    name = "sequences"
    params = SequencesParams
    takes = "rows"
    order = "key"
    memory = 400_000_000
    columns = FRAME_COLUMNS

    def make(self, job: Job[SequencesParams]) -> Iterator[Output]:
        rows = job.reader("source").rows()
        if rows and not set(SCHEMA.names) <= set(rows[0]):
            raise StageError("sequences are made from a source of format: sequences")
        by_place: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            # A row's address is one that may be fetched, and so is the place that it begins with.
            by_place.setdefault(normalise(row["place"]), []).append(row)
        done = 0
        for place, output in self._by_place(job, by_place):
            yield from output
            done += len(by_place[place])
            if job.watch is not None:
                job.watch(done, len(rows))

    def may_pass(self, reason: str) -> bool:
        return may_pass(reason)

    def _by_place(
        self, job: Job[SequencesParams], by_place: Mapping[str, list[dict[str, Any]]]
    ) -> Iterator[tuple[str, Iterator[Output]]]:
        """The outputs of each place, to be taken before the next."""
        params = job.params
        near = [place for place in by_place if not place.startswith(_WEB)]
        for place in near:
            yield place, _from_place(params, place, by_place[place])
        far = [(place, place) for place in by_place if place.startswith(_WEB)]
        policy = FetchPolicy(
            concurrency=1,
            timeout_s=float(params.timeout),
            attempts=params.attempts,
            max_bytes=params.max_bytes,
            allow_private=params.allow_private,
            memory_bytes=0,
        )
        for place, outcome in fetch_iter(far, policy, job.scratch) if far else ():
            if isinstance(outcome, FetchFailure):
                yield place, _refused(by_place[place], outcome.reason, outcome.message)
                continue
            assert isinstance(outcome, Fetched)
            with outcome as fetched:
                yield place, _from_fetched(params, fetched, by_place[place], job.scratch)


def _refused(rows: Iterable[Mapping[str, Any]], reason: str, message: str) -> Iterator[Output]:
    for row in rows:
        yield Reject(row["key"], reason, message, _of_row(row))


def _from_fetched(
    params: SequencesParams, fetched: Fetched, rows: Sequence[Mapping[str, Any]], scratch: Path
) -> Iterator[Output]:
    path = fetched.path
    if path is None:
        path = scratch / "archive"
        path.write_bytes(fetched.read())
    yield from _from_archive(params, LocalFile(path), rows)


def _from_place(
    params: SequencesParams, place: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Output]:
    """The frames of all sequences of one place."""
    if place.startswith("file:") and not params.allow_files:
        yield from _refused(rows, "denied", "file URLs are not allowed (allow_files)")
        return
    if not place.endswith("/"):
        try:
            file = open_file(place)
        except Rejected as rejected:
            yield from _refused(rows, rejected.reason, rejected.message)
            return
        yield from _from_archive(params, file, rows)
        return
    for row in rows:
        try:
            folder = open_folder(place, row["nested"])
            yield from _frames(params, row, folder, list(folder.members()), "")
        except Rejected as rejected:
            yield from _refused([row], rejected.reason, rejected.message)


def _from_archive(
    params: SequencesParams, file: Ranges, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Output]:
    for row in rows:
        try:
            archive = open_archive(row["place"], file)
            if row["archive_bytes"] not in (None, file.size):
                raise Rejected("changed", "the archive has another size than when it was listed")
            if row["sequence"] is None:
                _explain(archive)
            members = list(_inside(archive, row))
            yield from _frames(params, row, archive, members, row["sequence"])
        except Rejected as rejected:
            yield from _refused([row], rejected.reason, rejected.message)


def _explain(archive: Place) -> None:
    """Raise why an archive could not be listed."""
    for _ in archive.members():
        pass
    raise Rejected("no_sequence", "no such folder of pictures was found in the archive")


def _inside(archive: Place, row: Mapping[str, Any]) -> Iterator[Member]:
    """The members of a row's sequence."""
    inside: str = row["sequence"]
    for member in archive.members((row["listed_from"], row["listed_to"])):
        below = row["nested"] and member.folder.startswith(f"{inside}/")
        if member.folder == inside or (below and not is_hidden(member.folder[len(inside) :])):
            yield member


def _frames(
    params: SequencesParams,
    row: Mapping[str, Any],
    place: Place,
    members: Sequence[Member],
    folder: str,
) -> Iterator[Output]:
    """A sample or a reject for each frame of one sequence."""
    grouped = Rule(params.fields, params.shared).group(members, folder)
    frames = grouped.frames
    if not frames:
        raise Rejected("no_frames", f"none of its {len(members)} files belongs to a frame")
    _refuse_overlaps([member for frame in frames for member in frame.members.values()])
    if (size := sum(frame.size for frame in frames)) > params.max_bytes:
        raise Rejected("too_large", f"{size} bytes are more than {params.max_bytes}")
    shared = _shared(params, place, grouped)
    if grouped.unnumbered:
        first = grouped.unnumbered[0].name[:200]
        message = f"{len(grouped.unnumbered)} pictures have no number; the first is {first!r}"
        yield Reject(row["key"], "no_number", message, _of_row(row))
    wanted = set(params.fields) or {name for frame in frames for name in frame.members}
    digits = max(_DIGITS, len(str(frames[-1].number)))
    keys = {frame.number: f"{row['key']}_{frame.number:0{digits}d}" for frame in frames}
    for frame in frames:
        _check(params, frame, wanted, keys[frame.number], shared)
    for batch in _batches(frames, place.batch):
        data = iter(place.read([m for frame in batch for m in _readable(frame)]))
        for frame in batch:
            columns = _columns(params, row, frame, frames[0].number)
            fields: dict[str, bytes] = dict(shared)
            for name in frame.members if frame.problem is None else ():
                found = next(data)
                if isinstance(found, Rejected):
                    frame.refuse(found.reason, found.message)
                else:
                    fields[name] = found
            if frame.problem is not None:
                reason, message = frame.problem
                yield Reject(keys[frame.number], reason, message, columns)
            else:
                columns |= _size(fields, frame.members)
                yield Sample(keys[frame.number], fields, columns)


def _check(
    params: SequencesParams,
    frame: Frame,
    wanted: set[str],
    key: str,
    shared: Mapping[str, bytes],
) -> None:
    """Refuse a frame that cannot be a sample, as far as names and sizes tell."""
    lacking = sorted(wanted - set(frame.members))
    if lacking and params.missing == "reject":
        frame.refuse("missing_field", f"it has no {', '.join(lacking)[:200]}")
    if frame.size > params.max_frame_bytes:
        frame.refuse("too_large", f"{frame.size} bytes are more than {params.max_frame_bytes}")
    names = [*frame.members, *shared]
    if len(set(names)) < len(names):
        frame.refuse("two_members", "a file of its own has the field of one of the sequence")
    try:
        for name in names:
            tar.member_name(key, name)
    except ShardError as error:
        frame.refuse("unfit_field", str(error))


def _shared(params: SequencesParams, place: Place, grouped: Grouped) -> dict[str, bytes]:
    """The fields that all frames have."""
    lacking = sorted(set(params.shared) - set(grouped.shared))
    if lacking and params.missing == "reject":
        raise Rejected("missing_field", f"it has no {params.shared[lacking[0]][:200]!r}")
    members = grouped.shared
    if (size := sum(member.size for member in members.values())) > params.max_frame_bytes:
        raise Rejected("too_large", f"{size} bytes are more than {params.max_frame_bytes}")
    for member in members.values():
        if member.problem is not None:
            raise Rejected(*member.problem)
    fields = {}
    for name, found in zip(members, place.read(list(members.values())), strict=True):
        if isinstance(found, Rejected):
            raise found
        fields[name] = found
    return fields


def _refuse_overlaps(members: Iterable[Member]) -> None:
    """Refuse members of an archive that are the same bytes, by which a small one grows large."""
    placed = {member for member in members if member.header and member.problem is None}
    for one, other in pairwise(sorted(placed, key=lambda member: member.start)):
        if one.start + one.packed > other.start:
            raise Rejected("damaged", f"{one.name[:200]!r} and {other.name[:200]!r} overlap")


def _batches(frames: Iterable[Frame], most: int) -> Iterator[list[Frame]]:
    """Frames to be read together: about ``most`` bytes, headers too, or one that is larger."""
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += sum(member.size + member.header for member in _readable(frame))
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _readable(frame: Frame) -> Iterable[Member]:
    return frame.members.values() if frame.problem is None else ()


def _of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": row["url"], "sequence": row["sequence"]}


def _columns(
    params: SequencesParams, row: Mapping[str, Any], frame: Frame, first: int
) -> dict[str, Any]:
    time = None
    if params.fps is not None:
        time = round(float((frame.number - first) / params.fps), 6)
    return {**_of_row(row), "frame": frame.number, "time": time}


def _size(fields: Mapping[str, bytes], own: Iterable[str]) -> dict[str, int]:
    """Width and height of a frame's first JPEG, or else of its first PNG, as its header has it."""
    for endings in (("jpg", "jpeg"), ("png",)):
        for name in sorted(own):
            if extension(name) in endings or name in endings:
                size = picture_size(fields[name])
                if size is not None:
                    return {"width": size[0], "height": size[1]}
    return {}
