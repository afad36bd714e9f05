"""Decoding, scene cuts and clips on an NVIDIA card, against its own limit and against the CPU.

Needs a card; prints why there is none and ends with an error where it finds none. All engines of
the card work at once, each on its own copy of the video. The limit is a bare loop over
PyNvVideoCodec's own demuxer and decoder, which converts and copies nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from reelmill.errors import ReelmillError
from reelmill.media.cut import cut_spans
from reelmill.media.gpu.devices import capabilities
from reelmill.media.gpu.modules import nvc_module, torch_module
from reelmill.media.gpu.nvdec import Nvdec, nvdec
from reelmill.media.gpu.transnet import HEIGHT, WIDTH, TransNetV2, build_network
from reelmill.media.scenes import ContentDetector, detect, find, score, spans
from tests.benchmarks.clips import ffmpeg
from tests.benchmarks.harness import show

SECONDS = 60
RATE = 30
SIZE = (1920, 1080)
SHOT = 4
"""Seconds from one cut to the next."""
WINDOWS = 40


def run() -> None:
    try:
        card = capabilities()
    except ReelmillError as error:
        sys.exit(f"this benchmark needs an NVIDIA GPU: {error}")
    print(f"\n{card}")
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        path = _video(Path(folder) / "source.mp4")
        _report(path, Path(folder), nvdec())
    _network(card.ordinal)


def _video(path: Path) -> Path:
    """Shots of moving patterns, each of another hue, in H.264 at 1080p."""
    width, height = SIZE
    pattern = f"testsrc2=size={width}x{height}:rate={RATE}:duration={SECONDS}"
    hue = f"hue=h=137*floor(t/{SHOT})"
    encoder = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-g", "60")
    ffmpeg("-f", "lavfi", "-i", f"{pattern},{hue}", *encoder, "-pix_fmt", "yuv420p", str(path))
    return path


def _report(path: Path, folder: Path, decoders: Nvdec) -> None:
    engines = decoders.engines
    cores = os.cpu_count() or 1
    detectors = [ContentDetector()]
    on_cpu = score(path, detectors)
    on_card = score(path, detectors, device="cuda")
    same = np.array_equal(on_cpu.columns["delta_lum"], on_card.columns["delta_lum"])
    cuts = spans(on_cpu, find(on_cpu, detectors))
    print(f"{len(on_cpu)} frames, {len(cuts)} scenes; equal scores on both: {same}")

    def split(number: int, device: Any) -> None:
        out = Path(tempfile.mkdtemp(dir=folder))
        found = detect(path, detectors, device=device)
        cut_spans(path, found, out, mode="exact", timeout_s=600, device=device)

    both = max(engines, cores)
    ways: dict[str, tuple[int, Callable[[int], object]]] = {
        "decode, a bare loop of PyNvVideoCodec": (engines, lambda _: _bare(path)),
        "decode, ours": (engines, lambda _: _decoded(path, decoders)),
        "decode and scenes, ours": (engines, lambda _: score(path, detectors, device="cuda")),
        "decode, scenes and cut (x264 on the host)": (both, lambda n: split(n, "cuda")),
        "decode and scenes on the CPU": (cores, lambda _: score(path, detectors)),
        "decode, scenes and cut on the CPU": (cores, lambda n: split(n, "cpu")),
    }
    rows = []
    limit = 0.0
    for name, (at_once, work) in ways.items():
        work(0)  # sets up decoders, and all that is set up once
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
        wall = time.perf_counter() - started
        rate = at_once * len(on_cpu) / wall
        limit = limit or rate
        hours = at_once * SECONDS / wall
        rows.append([name, str(at_once), f"{rate:.0f}", f"{rate / limit:.2f}", f"{hours:.0f}"])
    show(
        f"{SIZE[0]}x{SIZE[1]} H.264, {engines} engines, {cores} cores",
        ["", "videos at once", "frames a second", "of the bare loop", "video-hours an hour"],
        rows,
    )


def _bare(path: Path) -> int:
    nvc = nvc_module()
    demuxer = nvc.CreateDemuxer(filename=str(path))
    decoder = nvc.CreateDecoder(gpuid=0, codec=demuxer.GetNvCodecId(), usedevicememory=True)
    return sum(len(decoder.Decode(packet)) for packet in demuxer)


def _decoded(path: Path, decoders: Nvdec) -> int:
    with closing(decoders.decode(path)) as decoded:
        return sum(len(batch.pts) for batch in decoded)


def _network(ordinal: int) -> None:
    """TransNetV2 with random weights: their values make no difference to the time."""
    torch = torch_module()
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        weights = Path(folder) / "random.pth"
        torch.save(build_network().state_dict(), weights)
        frames = np.random.default_rng(0).integers(0, 256, (500, HEIGHT, WIDTH, 3), np.uint8)
        rows = []
        for device, count in ((f"cuda:{ordinal}", 50 * WINDOWS), ("cpu", 500)):
            network = TransNetV2(weights, device)
            network.scores([frames[:100]])
            started = time.perf_counter()
            network.scores([frames] * (count // len(frames)))
            rate = Fraction(count) / Fraction(time.perf_counter() - started)
            rows.append([device, f"{float(rate):.0f}"])
    show("TransNetV2, one video at a time", ["device", "frames a second"], rows)
