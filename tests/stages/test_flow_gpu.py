"""RAFT and the optical flow engine: on torch's CPU device, or on stand-ins for a card."""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.error
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reelmill.errors import MissingDependencyError, Rejected, StageError
from reelmill.media.flow import decode
from reelmill.media.gpu import devices, modules, nvdec, nvof, raft, sources
from reelmill.media.images import decode_image
from reelmill.media.size import Sizing
from reelmill.tasks import get_stage
from tests.stages import fake_nvc
from tests.stages.media_samples import make_video, number_of, sample
from tests.stages.test_stages import Bench

torch = pytest.importorskip("torch")


def models() -> Any:
    """torchvision's; skips where it is missing, or was built for another torch."""
    try:
        return modules.optical_flow_module()
    except (MissingDependencyError, StageError) as error:
        pytest.skip(str(error))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(4)
    path = tmp_path / "raft.pth"
    torch.save(models().raft_small(weights=None).state_dict(), path)
    return path


class Places:
    """A network whose flow tells, for each pixel, where it lies, and which picture came first."""

    def __call__(self, first: Any, second: Any) -> list[Any]:
        count, _, height, width = first.shape
        assert (first.dtype, height % 8, width % 8) == (torch.float32, 0, 0)
        assert min(height, width) >= 128
        assert (float(first.min()), float(second.max())) == (-1, 1)
        x = torch.arange(width).expand(count, height, width)
        y = torch.arange(height)[:, None].expand(count, height, width)
        return [None, torch.stack([x, y], dim=1).float()]


def black_and_white(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    black = np.zeros((height, width, 3), np.uint8)
    return black, black + np.uint8(255)


@pytest.mark.parametrize(
    ("height", "width", "above", "left"),
    [(128, 256, 0, 0), (90, 141, 19, 1), (33, 500, 47, 2)],
)
def test_raft_is_given_sizes_that_it_takes(height: int, width: int, above: int, left: int) -> None:
    estimate = raft.Raft(Places(), "cpu", 8)
    black, white = black_and_white(height, width)
    for field in estimate([(black, white)] * 3):
        assert (field.shape, field.dtype) == ((height, width, 2), np.float32)
        assert field.flags.c_contiguous
        assert field[0, 0].tolist() == [left, above]
        assert field[-1, -1].tolist() == [left + width - 1, above + height - 1]


def test_raft_refuses_what_is_too_small() -> None:
    with pytest.raises(Rejected, match="too_small"):
        raft.Raft(Places(), "cpu", 8)([black_and_white(20, 300)])


def test_raft_makes_flow_of_clips_and_pictures(bench: Bench, weights: Path) -> None:
    """With random weights: what it tells is nonsense, but the same of the same frames."""
    asked = {"method": "raft", "preset": "small", "weights": str(weights), "device": "cpu"}
    asked |= {"direction": "both", "occlusions": True, "format": "flo", "batch": 3}
    videos = bench.videos(sample("silent.mp4"))
    chosen = {"count": 3, "max_samples": 2}
    made = bench.make("flow", videos, **asked, **chosen, pictures={"format": "png"})
    again = bench.make("flow", bench.make("frames", videos, **chosen, format="png"), **asked)
    of_pictures = bench.samples(again)
    for key, one in bench.samples(made).items():
        about = json.loads(one.fields["json"])
        assert about["flow"]["method"] == "raft"
        shown = [one.fields[f"{n:06d}.image.png"] for n in range(3)]
        assert [number_of(decode_image(data)[..., 1]) for data in shown] == about["frames"]
        assert one.fields["000000.flow.flo"] == of_pictures[key].fields["000000.flow.flo"]
        there, back = (
            decode(one.fields[name], "flo") for name in ("000000.flow.flo", "000001.flow_back.flo")
        )
        assert np.abs(there).max() > 0
        assert not np.array_equal(there, back)
        assert len([name for name in one.fields if "occluded" in name]) == 4


def test_a_pair_has_the_same_bits_again(weights: Path) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 256, (64, 72, 3), np.uint8) for _ in range(3))
    estimate = raft.loaded("small", weights, "cpu", 2)
    first = estimate([(a, b), (b, c)])
    estimate([(c, a)])
    assert all(map(np.array_equal, first, estimate([(a, b), (b, c)])))
    assert raft.loaded("small", weights, "cpu", 2).network is estimate.network


def test_raft_is_known_by_its_weights(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.pth"
    other.write_bytes(weights.read_bytes())
    stage = get_stage("flow")

    def tools(**asked: Any) -> dict[str, str]:
        return stage.tools(stage.params.model_validate({"method": "raft", **asked}))

    found = tools(weights=str(weights), preset="small")
    assert found == tools(weights=str(other), preset="small")
    assert found["raft"] == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert tools()["raft"] == "hub:raft_large_C_T_SKHT_V2-ff5fadd5.pth"
    other.write_bytes(b"")
    assert tools(weights=str(other)) != found
    with pytest.raises(StageError, match=r"weights of RAFT large at .* cannot be read"):
        raft.loaded("large", other, "cpu", 2)
    with pytest.raises(StageError, match="does not hold the weights of RAFT large"):
        raft.loaded("large", weights, "cpu", 2)


def test_weights_of_the_hub_are_fetched_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked: list[str] = []

    def fetch(url: str, path: str, start: str, progress: bool) -> None:
        asked.append(url)
        Path(path).write_bytes(b"something else")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        with pytest.raises(StageError, match="is not what PyTorch's hub has under that name"):
            raft.loaded("small", None, "cpu", 1)
    assert asked == ["https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth"]

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(StageError, match=r"no route to host.*give their path as weights"):
        raft.loaded("large", None, "cpu", 1)


@pytest.mark.parametrize("method", ["raft", "nvof"])
def test_no_card_is_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, weights: Path, method: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvof, "dali_version", lambda: "1")
    videos = bench.videos(sample("silent.mp4"))
    with pytest.raises(StageError, match=f"method {method} needs an NVIDIA GPU"):
        bench.make("flow", videos, method=method, **({} if method == "nvof" else raft_of(weights)))


def raft_of(weights: Path) -> dict[str, str]:
    return {"weights": str(weights), "preset": "small"}


def test_packages_that_are_missing_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError

    monkeypatch.setattr(modules, "version", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[nvof\]'"):
        modules.dali_version()
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[raft\]'"):
        modules.torchvision_version()
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[raft\]'"):
        modules.optical_flow_module()


class Pipeline:
    """DALI's, as far as it is used: the flow of two pictures is the first one's first pixel."""

    def __init__(self, error: str | None = None) -> None:
        self._error = error

    def feed_input(self, name: str, sequences: list[Any]) -> None:
        assert name == "pairs"
        self._fed = sequences

    def run(self) -> tuple[Any]:
        if self._error is not None:
            raise RuntimeError(self._error)
        height, width = self._fed[0].shape[1:3]
        found = np.stack([np.full((1, height, width, 2), one[0, 0, 0, 0]) for one in self._fed])
        return (SimpleNamespace(as_cpu=lambda: SimpleNamespace(as_array=lambda: found)),)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(nvof, "_pipeline", lambda *_: Pipeline())
    return monkeypatch


def test_dali_is_given_the_second_picture_first(engine: pytest.MonkeyPatch) -> None:
    """Its own tests hold that flow leads from the second picture of a sequence to the first."""
    first, second = black_and_white(48, 64)
    fields = nvof.Nvof("slow")([(first, second), (second, first)])
    assert [field.shape for field in fields] == [(48, 64, 2)] * 2
    assert [float(field[0, 0, 0]) for field in fields] == [255, 0]


def test_what_the_engine_refuses_is_told(engine: pytest.MonkeyPatch) -> None:
    size = "Assert: Width size 20 should be between 32 and 8192"
    for error, kind in ((size, Rejected), ("Output grid size: 1 is not supported", StageError)):
        engine.setattr(nvof, "_pipeline", lambda *_, error=error: Pipeline(error))
        with pytest.raises(kind):
            nvof.Nvof("fast")([black_and_white(20, 64)])


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake_nvc.Card:
    """A card that decodes, and that has an estimator: flow is the difference of two pictures."""
    made = fake_nvc.Card()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made.module())
    kinds = tuple(kind for _, kind in devices._decoders(made.module(), 0))
    known = devices.Capabilities(0, "Stand-in", "1", 1 << 30, fake_nvc.ENGINES, kinds, ())
    decoders = nvdec.Nvdec(known)
    monkeypatch.setattr(sources, "nvdec", lambda: decoders)
    monkeypatch.setattr(raft, "tools", lambda *_: {"raft": "x"})
    monkeypatch.setattr(raft, "loaded", lambda preset, weights, device, batch: Differences(batch))
    return made


class Differences:
    colour = True

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def __call__(self, pairs: Any) -> list[np.ndarray]:
        assert len(pairs) <= self.at_once
        assert all(torch.is_tensor(one) for pair in pairs for one in pair)
        return [(b.float() - a.float())[..., :2].numpy() for a, b in pairs]


def test_a_clip_goes_from_nvdec_to_the_network(
    bench: Bench, tmp_path: Path, card: fake_nvc.Card
) -> None:
    """Pictures that are kept tell which frames the flow is of, and how they differ."""
    videos = bench.videos(make_video(tmp_path / "a.mp4", 30), sample("odd.mp4"))
    asked = {"method": "raft", "batch": 4, "format": "flo", "cuts": "ignore"}
    asked |= {"count": 3, "step": 2, "direction": "both", "pictures": {"format": "png"}}
    made = bench.samples(bench.make("flow", videos, **asked))
    assert len(made) == 28
    assert card.decoders, "the first video: that of an odd size is left to the CPU"
    for one in made.values():
        shown = [decode_image(one.fields[f"{n:06d}.image.png"]) for n in range(3)]
        numbers = [number_of(picture[..., 1]) for picture in shown]
        assert numbers == json.loads(one.fields["json"])["frames"]
        for name, a, b in (
            ("000000.flow", 0, 1),
            ("000001.flow", 1, 2),
            ("000002.flow_back", 2, 1),
        ):
            difference = shown[b][..., :2].astype(np.float32) - shown[a][..., :2]
            assert (decode(one.fields[f"{name}.flo"], "flo") == difference).all()


@pytest.mark.parametrize(
    "asked", [{"size": (100, 40), "mode": "crop"}, {"size": (200, 100), "mode": "pad"}, {}]
)
def test_pictures_of_a_card_are_those_of_the_cpu(
    tmp_path: Path, card: fake_nvc.Card, asked: dict[str, Any]
) -> None:
    from reelmill.media.decode import frames
    from reelmill.media.flow.pictures import from_frame
    from reelmill.media.pictures import fit_of

    path = make_video(tmp_path / "a.mp4", 12)
    sizing = Sizing[int].model_validate(asked)
    expected = [
        from_frame(frame, fit_of(frame, Fraction(1), sizing), colour=True) for frame in frames(path)
    ]
    found = list(sources.pictures_on_card(path, sizing))
    times = [one.pts * one.time_base for one in found]
    assert times == [Fraction(n, 30) for n in range(12)]
    for one, picture in zip(found, expected, strict=True):
        assert one.rgb.shape == picture.shape
        assert np.abs(one.rgb.numpy().astype(int) - picture).max() <= 8


def test_dali_takes_the_pipeline_as_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that its operator is given, on a stand-in for the package."""
    asked: dict[str, Any] = {}
    package, fn, types = (ModuleType(f"nvidia.dali{end}") for end in ("", ".fn", ".types"))

    class Built(SimpleNamespace):
        def __enter__(self) -> Built:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to end."""

        def set_outputs(self, flow: object) -> None:
            asked["output"] = flow

        def build(self) -> None:
            asked["built"] = True

    types.UINT8, types.RGB = "uint8", "rgb"
    fn.external_source = lambda **options: options
    fn.optical_flow = lambda pairs, **options: {"pairs": pairs, **options}
    package.Pipeline, package.fn, package.types = Built, fn, types
    monkeypatch.setitem(sys.modules, "nvidia", ModuleType("nvidia"))
    monkeypatch.setitem(sys.modules, "nvidia.dali", package)
    nvof._pipeline.cache_clear()
    built = nvof._pipeline("medium", 64, 48)
    nvof._pipeline.cache_clear()
    assert (built.batch_size, built.device_id, asked["built"]) == (nvof.PAIRS, 0, True)
    assert asked["output"]["preset"] == 0.5
    assert asked["output"]["output_grid"] == 1
    assert asked["output"]["pairs"]["layout"] == "FHWC"


def test_the_benchmark_runs_and_needs_a_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.benchmarks import gpu_flow

    models()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._probed.cache_clear()
    with pytest.raises(SystemExit, match="this benchmark needs an NVIDIA GPU"):
        gpu_flow.run()
    monkeypatch.setattr(gpu_flow, "capabilities", lambda: "a stand-in")
    small = {"SECONDS": 1, "RATE": 4, "SIZE": (136, 128), "BATCHES": (1, 2), "BARE_PAIRS": 2}
    for name, value in {**small, "PRESET": "small", "DEVICE": "cpu"}.items():
        monkeypatch.setattr(gpu_flow, name, value)

    def missing() -> str:
        raise MissingDependencyError("DALI is not installed")

    monkeypatch.setattr(gpu_flow, "dali_version", missing)
    gpu_flow.run()
    printed = capsys.readouterr().out
    assert printed.count("| bare network, batch") == 2
    assert printed.count("| clip to") == 2
