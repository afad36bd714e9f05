"""NVIDIA's optical flow engine, a part of cards from Ampere on that leaves the rest of them free.

DALI drives it: of the packages that do, it is the one that NVIDIA keeps up and that pip installs as
it is. OpenCV's binding needs a build of one's own with CUDA; PyNvVideoCodec has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from reelmill.errors import Rejected, StageError
from reelmill.media.flow.fields import Flow
from reelmill.media.gpu.modules import dali_module, dali_version, first_lines, torch_module

PAIRS = 16
"""Pairs that are given to the card together; it takes them one by one."""

_PRESETS = {"slow": 0.0, "medium": 0.5, "fast": 1.0}


def tools() -> dict[str, str]:
    """What its flow depends on besides the pictures and the card."""
    return {"nvidia-dali": dali_version()}


def loaded(preset: str) -> Nvof:
    """The engine of the first card. Raises :class:`~reelmill.errors.StageError` where there is
    none, and :class:`~reelmill.errors.MissingDependencyError` where a package is missing."""
    torch = torch_module()
    if not torch.cuda.is_available():
        raise StageError(
            f"method nvof needs an NVIDIA GPU, and torch {torch.__version__} sees none on this "
            "host; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use method dis"
        )
    dali_module()
    return Nvof(preset)


@dataclass(frozen=True)
class Nvof:
    """The engine with a preset, an :class:`~reelmill.media.flow.Estimator` of RGB pictures.

    A vector for each pixel, in steps of 1/32 pixel. A pair's flow does not depend on others: no
    hints are taken from what went before.
    """

    preset: str
    colour: bool = True
    at_once: int = PAIRS

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> list[Flow]:
        torch = torch_module()
        height, width = (int(side) for side in pairs[0][0].shape[:2])
        # Of a sequence of two pictures DALI gives the flow that leads from the second to the first.
        sequences = [
            torch.stack([torch.as_tensor(one).cuda() for one in (second, first)])
            for first, second in pairs
        ]
        torch.cuda.synchronize()
        try:
            pipeline = _pipeline(self.preset, width, height)
            pipeline.feed_input("pairs", sequences)
            (found,) = pipeline.run()
            fields: Flow = np.array(found.as_cpu().as_array(), np.float32)
        except RuntimeError as error:
            if re.search(r"(Width|Height) size .* should be between", str(error)):
                raise Rejected(
                    "bad_size", f"{width} x {height} pixels; the card's flow engine takes no such"
                ) from error
            raise StageError(
                f"the optical flow engine failed ({first_lines(error, 3)}); it needs a card from "
                "Ampere on, and a driver that is let in with NVIDIA_DRIVER_CAPABILITIES=video"
            ) from error
        return list(fields.reshape(len(pairs), height, width, 2))


@lru_cache(maxsize=2)
def _pipeline(preset: str, width: int, height: int) -> Any:
    """A pipeline from pairs of pictures of one size to flow."""
    dali_module()
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=PAIRS, num_threads=1, device_id=0, prefetch_queue_depth=1)
    with pipeline:
        pairs = fn.external_source(
            name="pairs", device="gpu", layout="FHWC", ndim=4, dtype=types.UINT8
        )
        flow = fn.optical_flow(
            pairs,
            device="gpu",
            image_type=types.RGB,
            preset=_PRESETS[preset],
            output_grid=1,
            enable_temporal_hints=False,
        )
        pipeline.set_outputs(flow)
    pipeline.build()
    return pipeline
