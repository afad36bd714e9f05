"""A contact sheet of a version: its clips, pictures or flow, as a person would look at them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.dataset import Version
from reelmill.errors import ReelmillError, Rejected
from reelmill.media.decode import frames, to_rgb, upright_size
from reelmill.media.flow import decode
from reelmill.media.images import decode_depth, decode_image
from reelmill.media.packets import read_packets
from reelmill.media.probe import open_media, video_stream
from reelmill.media.size import Sizing
from reelmill.report.depth import depth_picture
from reelmill.report.sheet import SheetRow, contact_sheet
from reelmill.report.wheel import flow_picture
from reelmill.shards.reader import Sample
from reelmill.tasks.media_fields import VIDEO, Still, flows_of, mask_field, stills_of, video_of
from reelmill.units import format_bytes, format_seconds

_PER_CLIP = 3
_HEIGHT = 240
"""Pixels; a sheet shows its pictures smaller still."""

_SMALL = Sizing[int](min_side=_HEIGHT)

_MOST = 24
"""Pictures of one sample, at most."""

RGB = NDArray[np.uint8]


def draw_sheet(version: Version, count: int, width: int = 1600) -> bytes:
    """PNG, ``width`` pixels wide, of ``count`` samples spread evenly over a version.

    Raises:
        ReelmillError: there is nothing in it to look at.
    """
    fields = version.manifest.fields
    flows = flows_of(fields)
    if not flows and not stills_of(fields) and not set(VIDEO) & set(fields):
        raise ReelmillError(f"{version} holds no video, picture or flow to draw")
    totals = version.totals
    subtitle = (
        f"{totals.samples:,} samples in {totals.shards:,} shards, {format_bytes(totals.bytes)}"
    )
    return contact_sheet(
        (_row(sample) for sample in spread(version, count)),
        title=str(version),
        subtitle=subtitle,
        width=width,
        legend=bool(flows),
    )


def spread(version: Version, count: int) -> Iterator[Sample]:
    """``count`` samples of those that count, evenly from first to last; all if there are fewer."""
    total = version.totals.samples
    count = min(count, total)
    wanted = {i * total // count for i in range(count)}
    first = 0
    for reader in version.shards():
        kept = version.kept(reader)
        there = reader.shard.samples if kept is None else len(kept)
        here = [n - first for n in wanted if first <= n < first + there]
        if here:
            keys = [row["key"] for row in reader.rows() if kept is None or row["key"] in kept]
            yield from reader.samples(keys={keys[n] for n in here})
        first += there


def _row(sample: Sample) -> SheetRow:
    try:
        about = json.loads(sample.fields.get("json", b"{}"))
    except ValueError:
        about = {}
    try:
        pictures, labels = _pictures(sample)
    except Rejected as rejected:
        blank = np.zeros((9, 16, 3), np.uint8)
        return SheetRow(sample.key, rejected.message, [blank], ["unreadable"])
    return SheetRow(sample.key, _caption(sample, about), pictures, labels)


def _pictures(sample: Sample) -> tuple[list[RGB], list[str]]:
    flows = flows_of(sample.fields)
    stills = stills_of(sample.fields)
    numbered = any(still.number is not None for still in stills)
    if not flows and not numbered and not set(VIDEO).isdisjoint(sample.fields):
        return clip_pictures(video_of(sample.fields)), []
    moves = [move for number, field in flows for move in _moves(sample, number, field)]
    masks = {field for *_, field in moves}
    shown = [(one.number or 0, _label(one), one.field) for one in stills if one.field not in masks]
    # A flow stands behind all pictures of where it begins.
    ordered = sorted([*shown, *moves], key=lambda one: one[0])[:_MOST]
    if not ordered:
        raise Rejected("no_picture", "no picture is in it")
    return [_drawn(field, sample.fields[field]) for *_, field in ordered], [
        label for _, label, _ in ordered
    ]


def _moves(sample: Sample, number: int, field: str) -> Iterator[tuple[int, str, str]]:
    """A flow and the mask that goes with it, if there is one: number, label and field."""
    back = "_back" in field
    yield number, f"back from {number}" if back else f"from {number}", field
    if (mask := mask_field(number, back)) in sample.fields:
        yield number, "occluded", mask


def _label(still: Still) -> str:
    """``1`` for ``000001.image.jpg``, ``1 depth`` for ``000001.depth.png``."""
    what = still.what.replace(".", " ") if still.what and still.what != "image" else ""
    return what if still.number is None else f"{still.number} {what}".rstrip()


def _drawn(field: str, data: bytes) -> RGB:
    if flows_of([field]):
        return flow_picture(decode(data, field.rpartition(".")[2]))
    depth = decode_depth(data)
    return decode_image(data) if depth is None else depth_picture(depth)


def clip_pictures(video: bytes) -> list[RGB]:
    """A few pictures spread over a clip; of a damaged one, those before it breaks off."""
    with open_media(video) as container:
        [table] = read_packets(container, [video_stream(container)])
    count = len(table.shown)
    places = {(2 * i + 1) * count // (2 * _PER_CLIP) for i in range(_PER_CLIP)}
    small = []
    for number, frame in enumerate(frames(video)):
        if number in places:
            small.append(to_rgb(frame, _SMALL.fit(*upright_size(frame)).scaled))
        if number == max(places):
            break
    return small or [to_rgb(frame, _SMALL.fit(*upright_size(frame)).scaled)]


def _caption(sample: Sample, about: Mapping[str, Any]) -> str:
    parts = []
    if "wished" in about:
        parts.append(format_seconds(about["end"] - about["start"]))
    video = about.get("video", about)
    if video.get("width"):
        parts.append(f"{video['width']} × {video['height']}")
    if "fps" in video:
        parts.append(f"{video['fps']:.4g} fps")
    if "times" in about:
        parts.append(f"at {format_seconds(round(about['times'][0], 2))}")
    if "mean_motion" in sample.columns:
        parts.append(f"{sample.columns['mean_motion']:.1f} px")
    source = about.get("source", about)
    text = source.get("caption") if isinstance(source, dict) else None
    return ", ".join([*parts, *([text] if text else [])])
