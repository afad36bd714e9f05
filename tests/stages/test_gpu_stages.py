"""Stages with ``device: cuda``: what they ask for, and that they make what they make on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from reelmill.errors import MissingDependencyError, StageError
from reelmill.media.cut import CutFailure, cut_spans
from reelmill.media.gpu import devices, nvdec, scoring, transnet
from reelmill.tasks import get_stage
from reelmill.tasks.contract import key_params
from tests.stages import fake_nvc
from tests.stages.media_samples import make_video
from tests.stages.test_stages import Bench

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]

HEVC10 = {
    "codec": "libx265",
    "options": {"x265-params": "log-level=0"},
    "pix_fmt": "yuv420p10le",
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake_nvc.Card:
    """A card that is there as far as stages can tell; ffmpeg finds none."""
    made = fake_nvc.Card()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made.module())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kinds = tuple(kind for _, kind in devices._decoders(made.module(), 0))
    known = devices.Capabilities(0, "Stand-in", "1", 1 << 30, fake_nvc.ENGINES, kinds, ())
    monkeypatch.setattr(devices, "capabilities", lambda ordinal=0: known)
    decoders = nvdec.Nvdec(known)
    monkeypatch.setattr(nvdec, "nvdec", lambda: decoders)
    monkeypatch.setattr(scoring, "nvdec", lambda: decoders)
    return made


def shots(number: int) -> np.ndarray:
    """Dark and bright shots of 20 frames."""
    return np.full((96, 128), 40 + 170 * (number // 20 % 2), np.uint8)


def videos(folder: Path) -> list[Path]:
    made = [make_video(folder / f"{n}.mp4", frames=60 + 5 * n, draw=shots) for n in range(4)]
    return [*made, make_video(folder / "deep.mp4", frames=50, draw=shots, **HEVC10)]


def test_scores_are_the_same_bytes_and_videos_are_scored_at_once(
    bench: Bench, tmp_path: Path, card: fake_nvc.Card
) -> None:
    source = bench.videos(*videos(tmp_path))
    on_cpu = bench.make("scores", source)
    met = threading.Event()

    def meet() -> None:
        """Nobody gets on before two have been at work at the same time."""
        if card.most_at_once > 1:
            met.set()
        assert met.wait(30)

    card.spoil = meet
    on_card = bench.make("scores", source, device="cuda")
    assert on_card.tar == on_cpu.tar
    assert on_card.samples == 5
    assert card.most_at_once <= fake_nvc.ENGINES
    assert len(card.decoders) <= fake_nvc.ENGINES


def test_clips_are_the_same_bytes(bench: Bench, tmp_path: Path, card: fake_nvc.Card) -> None:
    """Where ffmpeg finds a card, too, it decodes there; where it does not, the CPU steps in."""
    source = bench.videos(*videos(tmp_path)[2:])
    on_cpu = bench.make("split", source, min_seconds="0.2s")
    on_card = bench.make("split", source, min_seconds="0.2s", device="cuda")
    assert on_cpu.samples >= 6
    assert on_card.tar == on_cpu.tar
    assert card.decoders


def test_an_error_in_one_of_several_videos_ends_the_shard(
    bench: Bench, tmp_path: Path, card: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bench.videos(*videos(tmp_path)[:2])

    def fail(*_: object, **__: object) -> None:
        raise StageError("the card fell off the bus")

    with monkeypatch.context() as broken:
        broken.setattr(scoring, "score", fail)
        with pytest.raises(StageError, match="fell off the bus"):
            bench.make("scores", source, device="cuda")
    assert bench.make("scores", source, device="cuda").samples == 2


def test_a_cut_on_a_card_is_not_begun_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._probed.cache_clear()
    path = make_video(tmp_path / "a.mp4", frames=10)
    with pytest.raises(StageError, match="needs an NVIDIA GPU"):
        cut_spans(path, [(0, 1)], tmp_path, mode="exact", timeout_s=60, device="cuda")


def test_trouble_of_a_card_is_not_a_clips(
    tmp_path: Path, card: fake_nvc.Card, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=60)
    folders = [tmp_path / "cpu", tmp_path / "cuda"]
    for folder, device in zip(folders, ("cpu", "cuda"), strict=True):
        folder.mkdir()
        asked = {"mode": "exact", "timeout_s": 60, "device": device}
        made = cut_spans(path, [(0, 1), (1, 2)], folder, **asked)
        assert not any(isinstance(one, CutFailure) for one in made)
    first, second = ([one.read_bytes() for one in sorted(f.iterdir())] for f in folders)
    assert first == second


def test_what_stages_need_follows_from_their_parameters() -> None:
    def needs(stage: str, **params: Any) -> dict[str, float]:
        known = get_stage(stage)
        return dict(known.needs(known.params.model_validate(params)))

    fixed = {"method": "fixed", "seconds": "2s"}
    assert needs("scores") == needs("split") == needs("flow") == {}
    assert needs("scores", device="cuda") == {"GPU": 1}
    assert needs("split", device="cuda") == {"GPU": 1}
    assert needs("split", device="cuda", **fixed) == {"GPU": 1}
    assert needs("split", device="cuda", cut="copy", **fixed) == {}
    assert needs("split", video={"codec": "h264_nvenc"}) == {"GPU": 1}


def test_keys_tell_devices_apart_where_they_matter() -> None:
    split = get_stage("split")

    def key(**params: Any) -> dict[str, Any]:
        return key_params(split.params.model_validate(params))

    assert key() == key(device="cpu")
    assert key() != key(device="cuda")
    fixed = {"method": "fixed", "seconds": "2s", "cut": "copy"}
    assert key(**fixed) == key(device="cuda", **fixed)


def test_weights_are_known_by_their_digest(tmp_path: Path) -> None:
    split = get_stage("split")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    other = tmp_path / "elsewhere.pth"
    other.write_bytes(path.read_bytes())
    asked = {"detector": "transnetv2", "weights": str(path)}
    params = split.params.model_validate(asked)
    moved = split.params.model_validate({**asked, "weights": str(other)})
    assert key_params(params) == key_params(moved)
    assert split.tools(params) == split.tools(moved)
    assert split.tools(params)["transnetv2"] == transnet.weights_digest(path)
    assert split.tools(params)["torch"] == torch.__version__.partition("+")[0]
    torch.save({"a": torch.ones(1)}, path)
    assert split.tools(params)["transnetv2"] != split.tools(moved)["transnetv2"]
    path.unlink()
    with pytest.raises(StageError, match="give their path as weights"):
        split.tools(params)
    with pytest.raises(ValidationError, match="which is not asked for"):
        split.params.model_validate({"weights": str(other)})


def test_a_network_without_weights_or_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    split, scores = get_stage("split"), get_stage("scores")
    for asked in ({"detector": "transnetv2"}, {"detectors": ["transnetv2"]}):
        with pytest.raises(ValidationError, match="transnetv2 needs weights"):
            split.params.model_validate(asked)
    with pytest.raises(ValidationError, match="transnetv2 needs weights"):
        scores.params.model_validate({"detectors": ["transnetv2"]})
    with pytest.raises(ValidationError, match="weights"):
        split.params.model_validate({"detector": "transnetv2", "weights": "relative.pth"})
    from importlib.metadata import PackageNotFoundError

    from reelmill.media.gpu import modules

    def missing(_: str) -> str:
        raise PackageNotFoundError("torch")

    monkeypatch.setattr(modules, "version", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[torch\]'"):
        modules.torch_version()


def test_scenes_are_cut_where_the_network_says(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pth"
    torch.save(transnet.build_network().state_dict(), weights)

    def middle(self: object, window: Any) -> np.ndarray:
        """A network that sees every jump of brightness."""
        light = window.float().mean(dim=(1, 2, 3))
        jumps = (light[1:] - light[:-1]).abs() > 50
        whole = torch.cat([jumps, jumps[-1:]]).float().numpy()
        return whole[transnet.MARGIN : transnet.MARGIN + transnet.STRIDE]

    monkeypatch.setattr(transnet.TransNetV2, "middle", middle)
    path = make_video(tmp_path / "a.mp4", frames=80, fps=20, draw=shots)
    asked = {"detector": "transnetv2", "weights": str(weights), "min_seconds": "0.5s"}
    made = bench.make("split", bench.videos(path), **asked)
    clips = sorted(sample.columns["start_frame"] for sample in bench.samples(made).values())
    assert clips == [0, 20, 40, 60]
    kept = {"detectors": ["transnetv2"], "weights": str(weights)}
    scored = bench.make("scores", bench.videos(path), **kept)
    [found] = bench.samples(bench.make("scenes", scored, detector="transnetv2")).values()
    assert [
        round(20 * span["start"]) for span in json.loads(found.fields["json"])["spans"]
    ] == clips


def test_the_benchmark_needs_a_card() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    command = [sys.executable, "-m", "tests.benchmarks", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("this benchmark needs an NVIDIA GPU: ")


def test_the_benchmark_runs(
    card: fake_nvc.Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.benchmarks import gpu

    monkeypatch.setattr(gpu, "capabilities", devices.capabilities)
    monkeypatch.setattr(gpu, "nvdec", nvdec.nvdec)
    monkeypatch.setattr(gpu, "SECONDS", 1)
    monkeypatch.setattr(gpu, "SHOT", 1)
    monkeypatch.setattr(gpu, "SIZE", (320, 180))
    monkeypatch.setattr(gpu, "_network", lambda _: None)
    gpu.run()
    printed = capsys.readouterr().out
    assert "30 frames, 1 scenes; equal scores on both: True" in printed
    assert printed.count("\n| decode") == 6
