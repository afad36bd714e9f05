"""Scores: what detectors of scene cuts need to know of each frame, kept for any threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.media.decode import Device
from reelmill.media.scenes import (
    AdaptiveDetector,
    ContentDetector,
    Detector,
    HashDetector,
    HistogramDetector,
    Kind,
    ThresholdDetector,
    TransNetV2Detector,
    score,
)
from reelmill.media.scenes.kept import pack
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, Runtime, Sample, SampleStage, sample_json
from reelmill.tasks.media_fields import OF_SOURCE, VIDEO, about_of, texts_of, video_of
from reelmill.tasks.site_params import AbsolutePath

FIELD = "scores.parquet"
"""The field of a sample that holds the scores of its video's frames."""

Weights = Annotated[
    AbsolutePath | None,
    Runtime,
    Field(description="file of TransNetV2's weights for PyTorch, at this path on every worker"),
]
"""A parameter that is no part of keys: the digest of what is in the file is, by its tools."""


def network_tools(weights: str) -> dict[str, str]:
    """What scores of TransNetV2 depend on besides frames. Raises as
    :func:`~reelmill.media.gpu.transnet.weights_digest` and
    :func:`~reelmill.media.gpu.modules.torch_version` do."""
    # Imported here: other detectors need no network.
    from reelmill.media.gpu.modules import torch_version
    from reelmill.media.gpu.transnet import weights_digest

    return {"transnetv2": weights_digest(Path(weights)), "torch": torch_version()}


class ScoresParams(Params):
    """Which detectors the scores are for, and their settings that no threshold makes up for."""

    detectors: tuple[Kind, ...] = Field(
        ("content", "threshold", "hash", "histogram"),
        min_length=1,
        description="detectors that shall find cuts in the scores; content also serves adaptive",
    )
    edges: bool = Field(False, description="score edges too, for weights that count them")
    kernel_size: Annotated[int, Field(ge=3, le=999)] | None = Field(
        None, description="odd size in pixels by which edges are thickened; None: by the picture's"
    )
    hash_size: Annotated[int, Field(ge=1, le=256)] = Field(8, description="bits of a hash, squared")
    hash_lowpass: Annotated[int, Field(ge=1, le=256)] = Field(
        2, description="the part of the frequencies that a hash keeps: 2 for a half"
    )
    bins: Annotated[int, Field(ge=1, le=256)] = Field(128, description="of a histogram")
    weights: Weights = None
    device: Device = Field(
        "cpu",
        description="cuda: decoded and scored on an NVIDIA card, several videos at once",
    )
    exact: bool = Field(
        True,
        description="false: look at keyframes and where cuts seem to be; for content and hash and "
        "histogram alone",
    )
    jobs: Annotated[int, Field(ge=1, le=256), Runtime] = Field(
        1,
        description="cores for one video: pieces that are decoded at a time; several are for few "
        "and long videos, since each worker has one core",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ScoresParams:
        if self.kernel_size is not None and self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")
        if not self.exact and (needing := [one.kind for one in self.served() if not one.skims]):
            raise ValueError(f"detectors {' and '.join(needing)} need exact: true")
        if not self.exact and self.device == "cuda":
            raise ValueError("device cuda looks at all frames: it needs exact: true")
        if "transnetv2" in self.detectors and self.weights is None:
            raise ValueError("detector transnetv2 needs weights: the path of the network's file")
        if "transnetv2" not in self.detectors and self.weights is not None:
            raise ValueError("weights are for detector transnetv2, which is not asked for")
        return self

    def effective(self) -> dict[str, Any]:
        asked = {"content" if kind == "adaptive" else kind for kind in self.detectors}
        meant: dict[str, Any] = {"detectors": tuple(sorted(asked))}
        if "content" not in asked:
            meant["edges"] = None
        if "content" not in asked or not self.edges:
            meant["kernel_size"] = None
        if "hash" not in asked:
            meant |= {"hash_size": None, "hash_lowpass": None}
        if "histogram" not in asked:
            meant["bins"] = None
        if self.device == "cpu":
            meant["device"] = None
        return meant

    def served(self) -> list[Detector]:
        """One detector for each kind: what they read is scored."""
        weights = (Decimal(1), Decimal(1), Decimal(1), Decimal(int(self.edges)))
        kinds: dict[str, Detector] = {
            "content": ContentDetector(weights=weights, kernel_size=self.kernel_size),
            "adaptive": AdaptiveDetector(weights=weights, kernel_size=self.kernel_size),
            "threshold": ThresholdDetector(),
            "hash": HashDetector(size=self.hash_size, lowpass=self.hash_lowpass),
            "histogram": HistogramDetector(bins=self.bins),
            "transnetv2": TransNetV2Detector().bound(self.weights),
        }
        return [kind for name, kind in kinds.items() if name in self.detectors]


class ScoreFrames(SampleStage[ScoresParams]):
    """A sample of a video's key holds ``scores.parquet``: a row for each frame, with its pts and
    its scores. Stage ``scenes`` finds cuts in it, and decodes nothing."""

    name = "scores"
    params = ScoresParams
    conserves = True
    memory = 350_000_000
    reads = (*VIDEO, "json")
    columns = pa.schema(
        [
            pa.field("frames", pa.int64()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("fps", pa.float64()),
        ]
    )

    def tools(self, params: ScoresParams) -> dict[str, str]:
        tools = {
            "av": version("av"),
            "opencv": version("opencv-python-headless"),
            "pyarrow": version("pyarrow"),
        }
        if "transnetv2" in params.detectors and params.weights is not None:
            tools |= network_tools(params.weights)
        return tools

    def needs(self, params: ScoresParams) -> Mapping[str, float]:
        return {"GPU": 1} if params.device == "cuda" else {}

    def at_once(self, params: ScoresParams) -> int:
        if params.device == "cpu":
            return 1
        from reelmill.media.gpu.nvdec import nvdec

        return nvdec().engines

    def each(self, job: Job[ScoresParams], sample: InputSample) -> Iterator[Output]:
        params = job.params
        video = video_of(sample.fields)
        scores = score(
            video, params.served(), jobs=params.jobs, exact=params.exact, device=params.device
        )
        tick = scores.clock.time_base
        columns = {
            "frames": len(scores),
            "start": round(float(int(scores.pts.min()) * tick), 6),
            "end": round(float(scores.end * tick), 6),
            "fps": round(float(scores.clock.rate), 6),
        }
        source = texts_of(about_of(sample.fields), OF_SOURCE)
        about = sample_json({"key": sample.key, **columns, "source": source})
        yield Sample(sample.key, {FIELD: pack(scores), "json": about}, columns)
