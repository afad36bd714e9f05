"""Motion: how much moves in each video, and how it looks, as columns to filter by."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from reelmill.media.motion import GAP, measure
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.columns import ColumnStage
from reelmill.tasks.contract import Params
from reelmill.tasks.media_fields import VIDEO, video_of
from reelmill.units import Number

MOTION_COLUMNS = pa.schema(
    [
        pa.field("motion", pa.float64()),
        pa.field("motion_max", pa.float64()),
        pa.field("static", pa.float64()),
        pa.field("luma", pa.float64()),
        pa.field("luma_min", pa.float64()),
        pa.field("luma_max", pa.float64()),
        pa.field("contrast", pa.float64()),
        pa.field("sharpness", pa.float64()),
        pa.field("black", pa.float64()),
        pa.field("overexposed", pa.float64()),
        pa.field("frozen", pa.float64()),
        pa.field("repeated", pa.float64()),
        pa.field("border", pa.float64()),
        pa.field("cuts", pa.int32()),
    ]
)
"""Index columns of :class:`~reelmill.media.motion.Motion`, which says what they are."""


class MotionParams(Params):
    """How closely is looked."""

    rate: Annotated[Number, Field(gt=0, le=int(1 / GAP))] = Field(
        Decimal(4), description="pairs of frames a second of which motion and sharpness are taken"
    )


class Motion(ColumnStage[MotionParams]):
    """A video that does not decode is a reject. What it is measured by is none of the stage's
    choice: thresholds are for a filter behind it."""

    name = "motion"
    params = MotionParams
    memory = 300_000_000
    reads = VIDEO
    columns = MOTION_COLUMNS

    def tools(self, params: MotionParams) -> dict[str, str]:
        return {package: version(package) for package in ("av", "opencv-python-headless")}

    def look(self, params: MotionParams, sample: InputSample) -> Mapping[str, Any]:
        return vars(measure(video_of(sample.fields), Fraction(params.rate)))
