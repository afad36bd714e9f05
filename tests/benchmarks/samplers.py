"""Clips of a 720p video: our samplers over each reader, against TorchCodec's own over its decoder.

And what their plans cost, without a frame.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reelmill.loading import VideoMetadata, clips_at_random_indices, open_video
from tests.benchmarks.clips import make_video
from tests.benchmarks.harness import compare, show_costs

ROUNDS = 3
CLIPS: dict[str, Any] = {"num_clips": 4, "num_frames_per_clip": 8}
PLANNED: dict[str, Any] = {"num_clips": 50, "num_frames_per_clip": 32}

OURS = "ours, its decoder"


def run() -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        path = make_video(Path(made) / "720p.mp4")
        _clips(path)
        _plans(path)


def _clips(path: Path) -> None:
    """Each opens the video, as training does, and takes the same clips."""

    import torch
    from torchcodec import samplers

    def native(_: Path) -> None:
        torch.manual_seed(0)
        samplers.clips_at_random_indices(_decoder(path), **CLIPS)

    def over_decoder(_: Path) -> None:
        clips_at_random_indices(_decoder(path), **CLIPS, seed=0)

    def over(backend: str) -> Callable[[Path], None]:
        def read(_: Path) -> None:
            clips_at_random_indices(path, **CLIPS, seed=0, backend=backend)

        return read

    costs = compare(
        {
            OURS: over_decoder,
            "TorchCodec's own": native,
            "ours, torchcodec reader": over("torchcodec"),
            "ours, pyav reader": over("pyav"),
        },
        rounds=ROUNDS,
    )
    frames = CLIPS["num_clips"] * CLIPS["num_frames_per_clip"]
    show_costs("4 clips of 8 frames at random, opening included", costs, "frame", frames, OURS)


def _decoder(path: Path) -> Any:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path), num_ffmpeg_threads=1)


class _Planner:
    """A decoder that decodes nothing."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return self.frames

    def get_frames_at(self, indices: list[int]) -> Any:
        import torch
        from torchcodec import FrameBatch

        nothing = torch.zeros(len(indices))
        return FrameBatch(nothing[:, None, None, None], nothing, nothing)


def _plans(path: Path) -> None:
    from torchcodec import samplers

    from reelmill.loading.samplers import plan

    with open_video(path, backend="pyav") as reader:
        video: VideoMetadata = reader.metadata

    def ours(_: Path) -> None:
        for _ in range(100):
            plan.random_indices(video, **PLANNED)

    def theirs(_: Path) -> None:
        for _ in range(100):
            samplers.clips_at_random_indices(_Planner(video.num_frames), **PLANNED)

    costs = compare({"ours": ours, "TorchCodec's own": theirs}, rounds=ROUNDS)
    show_costs("plans of 50 clips of 32 frames", costs, "1,000 plans", 0.1, "ours")
