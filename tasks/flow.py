"""Flow: optical flow between the neighbouring pictures of each sample."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.errors import Rejected
from reelmill.media.flow import FlowMethod, encode_kitti, encode_npy, flow
from reelmill.media.images import decode_gray
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Sample, SampleStage, sample_json
from reelmill.tasks.media_fields import about_of, pictures_of


class FlowParams(Params):
    """Which flow, and how it is stored."""

    method: Literal["dis", "farneback"] = Field(
        "dis", description="dense inverse search, or Farneback's polynomials: slower, a classic"
    )
    preset: Literal["ultrafast", "fast", "medium"] | None = Field(
        None, description="of dis: its effort; 'fast' if not set"
    )
    format: Literal["kitti", "npy"] = Field(
        "kitti", description="16-bit PNG as in KITTI, in 1/64 pixel, or float16 .npy: 4 x larger"
    )
    keep_frames: bool = Field(True, description="store the pictures beside the flow")

    @model_validator(mode="after")
    def _fits_together(self) -> FlowParams:
        if self.preset is not None and self.method != "dis":
            raise ValueError("preset is for method 'dis'")
        return self

    def effective(self) -> dict[str, Any]:
        return {"preset": self.preset or "fast"} if self.method == "dis" else {}

    @property
    def algorithm(self) -> FlowMethod:
        if self.method == "farneback":
            return FlowMethod.FARNEBACK
        return FlowMethod(f"dis-{self.preset or 'fast'}")


class Flow(SampleStage[FlowParams]):
    """A sample of N pictures gets N-1 fields: ``000000.flow.png`` leads from picture 0 to 1.

    A field is (H, W, 2) in pixels, x right and y down.
    """

    name = "flow"
    params = FlowParams
    conserves = True
    memory = 350_000_000
    columns = pa.schema(
        [
            pa.field("pairs", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("mean_motion", pa.float64()),
        ]
    )

    def tools(self, params: FlowParams) -> dict[str, str]:
        packages = ("opencv-python-headless", "simplejpeg", "numpy")
        return {package: version(package) for package in packages}

    def each(self, job: Job[FlowParams], sample: InputSample) -> Iterator[Output]:
        params = job.params
        pictures = pictures_of(sample.fields)
        if len(pictures) < 2:
            raise Rejected("no_pair", f"{len(pictures)} pictures; flow leads from one to the next")
        grays = ((number, decode_gray(sample.fields[field])) for number, field in pictures)
        fields: dict[str, bytes] = {}
        motion = []
        shape = (0, 0)
        for (number, first), (_, second) in pairwise(grays):
            if first.shape != second.shape:
                raise Rejected("sizes_differ", f"pictures of {first.shape} and {second.shape}")
            shape = first.shape
            field = flow(first, second, params.algorithm)
            motion.append(float(np.mean(np.hypot(field[..., 0], field[..., 1]))))
            if params.format == "kitti":
                fields[f"{number:06d}.flow.png"] = encode_kitti(field)
            else:
                fields[f"{number:06d}.flow.npy"] = encode_npy(field)
        about = about_of(sample.fields)
        about["flow"] = {"method": str(params.algorithm), "format": params.format}
        kept = dict(sample.fields) if params.keep_frames else {}
        columns = {
            "pairs": len(fields),
            "width": shape[1],
            "height": shape[0],
            "mean_motion": round(sum(motion) / len(motion), 3),
        }
        yield Sample(sample.key, {**kept, **fields, "json": sample_json(about)}, columns)
