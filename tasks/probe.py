"""Probe: what each video is, by its container, its packets and its first frame, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pydantic import Field

from reelmill.errors import Rejected
from reelmill.media.describe import MediaInfo, describe
from reelmill.media.probe import examine
from reelmill.media.sound import probe_sound
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.columns import ColumnStage
from reelmill.tasks.contract import Params, sample_json
from reelmill.tasks.media_fields import (
    SOUND,
    VIDEO,
    VIDEO_COLUMNS,
    Look,
    sound_columns,
    video_columns,
    video_json,
    video_of,
)


class ProbeParams(Params):
    """How far is looked."""

    probe: Look = Field(
        "packets",
        description="packets: know every frame's time, so that rate, keyframes and broken clocks "
        "are found; header: only what that and the first frame tell",
    )


class Probe(ColumnStage[ProbeParams]):
    """A sample whose only media is sound gets the columns that sound has values for. ``probe`` is
    all that was found, as a JSON text, but for the times of keyframes, which are ``keyframes``."""

    name = "probe"
    params = ProbeParams
    memory = 250_000_000
    reads = (*VIDEO, *SOUND)
    columns = pa.schema([*VIDEO_COLUMNS, pa.field("probe", pa.string())])

    def tools(self, params: ProbeParams) -> dict[str, str]:
        return {"av": version("av")}

    def look(self, params: ProbeParams, sample: InputSample) -> Mapping[str, Any]:
        held = [name for name in SOUND if name in sample.fields]
        try:
            video = video_of(sample.fields)
        except Rejected:
            if not held:
                raise
            sound = probe_sound(sample.fields[held[0]])
            return {**sound_columns(sound), "probe": _text({"sound": sound.as_json()})}
        if params.probe == "packets":
            found = describe(video)
            columns = video_columns(found.video, found.timing)
            return {**columns, "probe": _text(_about(found))}
        known = examine(video)
        about = {
            "video": video_json(known.info, None),
            "streams": [stream.as_json() for stream in known.streams],
        }
        return {**video_columns(known.info, None), "probe": _text(about)}


def _about(found: MediaInfo) -> dict[str, Any]:
    about = found.as_json()
    timing = about["timing"]
    assert isinstance(timing, dict)
    return {
        **about,
        "video": video_json(found.video, found.timing),
        "timing": {name: value for name, value in timing.items() if name != "keyframes"},
    }


def _text(about: Mapping[str, Any]) -> str:
    return sample_json(about).decode()
