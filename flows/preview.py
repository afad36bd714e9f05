"""A contact sheet of a version: its clips, pictures or flow, as a person would look at them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.dataset import Version
from reelmill.errors import ReelmillError, Rejected
from reelmill.media.decode import frames, to_rgb, upright_size
from reelmill.media.flow import decode
from reelmill.media.images import decode_image
from reelmill.media.size import Sizing
from reelmill.report.sheet import SheetRow, contact_sheet
from reelmill.report.wheel import flow_picture
from reelmill.shards.reader import Sample
from reelmill.tasks.media_fields import VIDEO, flows_of, pictures_of, video_of
from reelmill.units import format_bytes, format_seconds

_PER_CLIP = 3
_HEIGHT = 240
"""Pixels; a sheet shows its pictures smaller still."""

_SMALL = Sizing[int](min_side=_HEIGHT)

RGB = NDArray[np.uint8]


def draw_sheet(version: Version, count: int, width: int = 1600) -> bytes:
    """PNG, ``width`` pixels wide, of ``count`` samples spread evenly over a version.

    Raises:
        ReelmillError: there is nothing in it to look at.
    """
    fields = version.manifest.fields
    flows = flows_of(fields)
    if not flows and not pictures_of(fields) and not set(VIDEO) & set(fields):
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
    shown = pictures_of(sample.fields)
    flows = flows_of(sample.fields)
    if not shown and not flows:
        return _of_clip(video_of(sample.fields)), []
    stills = [(decode_image(sample.fields[field]), f"{number}") for number, field in shown]
    moves = [
        (
            _flow_of(field, sample.fields[field]),
            f"back from {n}" if "_back" in field else f"from {n}",
        )
        for n, field in flows
    ]
    pairs = [pair for both in zip_longest(stills, moves) for pair in both if pair]
    return [picture for picture, _ in pairs], [label for _, label in pairs]


def _flow_of(field: str, data: bytes) -> RGB:
    return flow_picture(decode(data, field.rpartition(".")[2]))


def _of_clip(video: bytes) -> list[RGB]:
    """A few pictures spread over a clip, each shrunk as it is decoded."""
    small = [to_rgb(frame, _SMALL.fit(*upright_size(frame)).scaled) for frame in frames(video)]
    places = [(2 * i + 1) * len(small) // (2 * _PER_CLIP) for i in range(_PER_CLIP)]
    return [small[place] for place in dict.fromkeys(places)]


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
