"""RAFT on an NVIDIA card, from clips to stored flow, against the bare network at its best batch.

Needs a card; prints why there is none and ends with an error where it finds none. The weights are
random: their values make no difference to the time. Frames are decoded by NVDEC, and stay on the
card until their flow is estimated; the optical flow engine is measured where DALI is installed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from reelmill.errors import ReelmillError
from reelmill.media.decode import Device
from reelmill.media.gpu.devices import capabilities
from reelmill.media.gpu.modules import dali_version, optical_flow_module, torch_module
from reelmill.media.gpu.sources import pictures_on_card
from reelmill.media.size import Sizing
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job
from reelmill.tasks.flow import Flow, FlowParams
from tests.benchmarks.clips import ffmpeg
from tests.benchmarks.harness import show

SECONDS = 10
RATE = 30
SIZE = (640, 360)
BATCHES = (1, 2, 4, 8, 16, 32)
BARE_PAIRS = 128
PRESET = "large"
DEVICE: Device = "cuda"


def run() -> None:
    try:
        card = capabilities()
    except ReelmillError as error:
        sys.exit(f"this benchmark needs an NVIDIA GPU: {error}")
    print(f"\n{card}")
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        _report(Path(folder))


def _report(folder: Path) -> None:
    torch, models = torch_module(), optical_flow_module()
    network = (models.raft_large if PRESET == "large" else models.raft_small)(weights=None)
    weights = folder / "random.pth"
    torch.save(network.state_dict(), weights)
    network = network.to(DEVICE).eval()
    bare = {batch: _bare(torch, network, batch) for batch in BATCHES}
    best = max(bare, key=lambda batch: bare[batch])
    rows = [[f"bare network, batch {n}", f"{rate:.1f}", ""] for n, rate in bare.items()]
    clip = _clip(folder / "clip.mp4")
    raft = {"method": "raft", "preset": PRESET, "weights": str(weights), "device": DEVICE}
    ways: dict[str, dict[str, Any]] = {
        f"clip to .flo, batch {best}": {**raft, "batch": best, "format": "flo"},
        f"clip to KITTI, batch {best}": {**raft, "batch": best},
    }
    try:
        dali_version()
        ways["clip to KITTI, optical flow engine"] = {"method": "nvof"}
    except ReelmillError as error:
        print(error)
    for name, asked in ways.items():
        rate = _ours(clip, asked)
        rows.append([name, f"{rate:.1f}", f"{rate / bare[best]:.2f}"])
    show(
        f"RAFT {PRESET}, {SIZE[0]}x{SIZE[1]}, on {DEVICE}",
        ["", "pairs a second", "of the bare network's best"],
        rows,
    )
    if DEVICE == "cuda":
        first = next(pictures_on_card(clip.fields["mp4"], Sizing[int].model_validate({})))
        peak = torch.cuda.max_memory_allocated() >> 20
        print(
            f"frames lie on {first.rgb.device}; at most {peak} MiB of the card's memory were used"
        )


def _clip(path: Path) -> InputSample:
    pattern = f"testsrc2=size={SIZE[0]}x{SIZE[1]}:rate={RATE}:duration={SECONDS}"
    encoder = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", pattern, *encoder, str(path))
    fields = {"mp4": path.read_bytes(), "json": b'{"one_scene":true}'}
    return InputSample("000000000_000", fields, {})


def _bare(torch: Any, network: Any, batch: int) -> float:
    """Pairs a second of the network alone, on tensors that lie on the device."""
    width, height = (-(-side // 8) * 8 for side in SIZE)
    first, second = torch.rand(2, batch, 3, height, width, device=DEVICE) * 2 - 1
    rounds = max(1, BARE_PAIRS // batch)

    def estimate(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                network(first, second)[-1].cpu()

    estimate(1)
    started = time.perf_counter()
    estimate(rounds)
    return rounds * batch / (time.perf_counter() - started)


def _ours(clip: InputSample, asked: dict[str, Any]) -> float:
    """Pairs a second of stage flow, from a clip's bytes to those of its samples."""
    params = FlowParams.model_validate({**asked, "count": 2, "step": 1, "keep_frames": False})

    def make() -> int:
        job: Any = Job(cast(Any, None), cast(Any, None), params, {}, Path())
        return sum(1 for _ in Flow().each(job, clip))

    make()  # loads the network, and sets up decoders
    started = time.perf_counter()
    return make() / (time.perf_counter() - started)
