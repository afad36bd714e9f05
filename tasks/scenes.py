"""Scenes: where to cut videos, from the scores of their frames. Nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from reelmill.digest import json_integer
from reelmill.errors import Rejected
from reelmill.media.scenes import AnyDetector, Detector, Kind, chosen, find, spans
from reelmill.media.scenes.kept import ratio, unpack
from reelmill.media.scenes.scores import needed
from reelmill.media.spans import Span
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader
from reelmill.tasks.contract import Job, Output, Params, Sample, SampleStage, sample_json
from reelmill.tasks.media_fields import OF_SOURCE, about_of, texts_of
from reelmill.tasks.scores import FIELD
from reelmill.units import Number, Seconds

_UNREADABLE = Rejected("bad_scenes", "its scenes are not what stage scenes makes")


class ScenesParams(Params):
    """Which detectors find the cuts, and how easily."""

    detector: Kind = Field(
        "content", description="PySceneDetect's, or TransNetV2, if its scores are there"
    )
    threshold: Number | None = Field(None, description="the detector's threshold, if not its own")
    min_scene: Seconds = Field(
        Decimal("0.6"), description="the detector's shortest scene; shorter ones stay together"
    )
    detectors: tuple[AnyDetector, ...] = Field(
        (), description="several detectors, or one with more settings, in place of those above"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ScenesParams:
        self.searching()
        return self

    def effective(self) -> dict[str, Any]:
        return {
            "detectors": self.searching(),
            "detector": None,
            "threshold": None,
            "min_scene": None,
        }

    def searching(self) -> tuple[Detector, ...]:
        """The detectors, in the long form."""
        return chosen(self.detectors, self.detector, self.threshold, self.min_scene)


class Scenes(SampleStage[ScenesParams]):
    """A sample of a video's key whose ``json`` has its scenes: ``spans`` in seconds, for people and
    for stage ``split`` with ``method: spans``, and the same exactly, as ``edges`` in units of
    ``time_base``. Where other settings find the same cuts, its bytes are the same."""

    name = "scenes"
    params = ScenesParams
    conserves = True
    memory = 250_000_000
    reads = (FIELD, "json")
    columns = pa.schema([pa.field("scenes", pa.int64()), pa.field("frames", pa.int64())])

    def each(self, job: Job[ScenesParams], sample: InputSample) -> Iterator[Output]:
        if FIELD not in sample.fields:
            raise Rejected("no_scores", f"it has no field {FIELD}: stage scores makes it")
        scores = unpack(sample.fields[FIELD])
        detectors = job.params.searching()
        read = {column for one in needed(detectors) for column in one.columns}
        if missing := sorted(read - set(scores.columns)):
            raise Rejected("no_scores", f"stage scores was not asked for {', '.join(missing)}")
        cuts = find(scores, detectors)
        edges = [int(scores.pts.min()), *cuts, scores.end]
        value = {
            "key": sample.key,
            "time_base": str(scores.clock.time_base),
            "edges": [json_integer(edge) for edge in edges],
            "spans": [
                {"start": round(float(start), 6), "end": round(float(end), 6)}
                for start, end in spans(scores, cuts)
            ],
            "source": texts_of(about_of(sample.fields).get("source"), OF_SOURCE),
        }
        columns = {"scenes": len(cuts) + 1, "frames": len(scores)}
        yield Sample(sample.key, {"json": sample_json(value)}, columns)


def scenes_of(reader: ShardReader, key: str) -> list[Span]:
    """The scenes of a video, from the shard that stage ``scenes`` made of it: exact, in seconds.

    Raises:
        Rejected: ``no_scenes`` if it has none of that key, ``bad_scenes`` if they make no sense.
    """
    found = next(iter(reader.samples(("json",), {key})), None)
    if found is None:
        raise Rejected("no_scenes", "its scenes are not known: it was rejected before")
    try:
        about = json.loads(found.fields["json"])
        tick = ratio(about["time_base"])
        edges = [int(edge) for edge in about["edges"]]
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        raise _UNREADABLE from None
    ordered = len(edges) > 1 and all(a < b for a, b in pairwise(edges))
    if not ordered or max(-edges[0], edges[-1]) >= 2**63:
        raise _UNREADABLE
    return list(pairwise(edge * tick for edge in edges))
