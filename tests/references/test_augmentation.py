"""Augmentation of clips and their optical flow, by the code of docs/training.md."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.references.workshop import build, files_of, modules, torch
from tests.stages.media_samples import make_video

pytest.importorskip("torchvision")

HEIGHT, WIDTH = 96, 128
RIGHT, DOWN = 3, -2
"""How far everything moves from frame to frame."""

FLOW = """
store: ./store
sources:
  urls: {path: urls.csv, url: url}
datasets:
  videos:   {stage: download, from: urls, allow_files: true}
  triplets: {stage: frames, from: videos, count: 3, quality: 95}
  flow:     {stage: flow, from: triplets, method: dis}
"""


def waves(number: int) -> np.ndarray:
    """Grey (96, 128): waves that neither repeat nor are even, ``number`` frames on."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    x, y = x - RIGHT * number, y - DOWN * number
    wave = np.sin(x / 5) + np.sin(y / 7 + 1) + np.sin((x + 2 * y) / 11) + np.sin((x - y) / 17)
    return np.uint8(128 + 28 * wave)


def clip(frames: int = 4) -> Any:
    """Frames (T, 3, H, W) of 8 bits, of which all is known."""
    return torch.stack([torch.from_numpy(waves(n)).expand(3, -1, -1) for n in range(frames)])


def flow_of(frames: int = 4) -> Any:
    """The fields between them."""
    field = torch.tensor([RIGHT, DOWN], dtype=torch.float32).view(1, 2, 1, 1)
    return field.expand(frames - 1, 2, HEIGHT, WIDTH).clone()


def unexplained(frames: Any, flow: Any) -> float:
    """How much of what changes from frame to frame its flow does not tell: 0 is nothing, 1 all."""
    count, _, height, width = frames.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y]).float() + flow
    place = 2 * grid / torch.tensor([width - 1, height - 1]).view(2, 1, 1) - 1
    moved = torch.nn.functional.grid_sample(
        frames[1:].float(), place.permute(0, 2, 3, 1), align_corners=True
    )
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    before = frames[: count - 1].float()[inner]
    left = (moved[inner] - before).abs().mean()
    return float(left / (frames[1:].float()[inner] - before).abs().mean())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, ...]]:
    """The page's modules: augment, augment_kornia and pairs, in a folder with a dataset of flow."""
    pytest.importorskip("kornia")
    folder = tmp_path_factory.mktemp("augmentation")
    for name, text in files_of("training.md").items():
        (folder / name).write_text(text)
    video = make_video(folder / "waves.mp4", 13, size=(WIDTH, HEIGHT), draw=waves)
    build(folder, FLOW, f"url\n{video.as_uri()}\n")
    names = ("augment", "augment_kornia", "pairs")
    with pytest.MonkeyPatch.context() as patch, modules(folder, *names) as found:
        patch.chdir(folder)
        yield tuple(found)


def test_the_measure_tells_right_flow_from_wrong() -> None:
    frames, flow = clip(), flow_of()
    assert unexplained(frames, flow) < 0.1
    assert unexplained(frames, flow * torch.tensor([-1.0, 1.0]).view(2, 1, 1)) > 0.8


def test_torchvision_does_the_same_to_all_frames_and_to_flow(pages: tuple[Any, ...]) -> None:
    augment, _, _ = pages
    torch.manual_seed(0)
    signs, scales = set(), []
    for _ in range(12):
        frames, flow = augment.augmented(clip(), flow_of())
        assert (frames.shape, frames.dtype) == ((4, 3, 32, 32), torch.float32)
        assert flow.shape == (3, 2, 32, 32)
        assert 0 <= frames.min() < frames.max() <= 1
        assert unexplained(torch.Tensor(frames), torch.Tensor(flow)) < 0.25
        signs.add(int(flow[0, 0].sign().mean()))
        scales.append(float(flow[0, 1, 0, 0]))
    assert signs == {-1, 1}
    assert max(scales) < 0
    assert min(scales) < 0.9 * max(scales)


def test_torchvision_flips_and_crops_flow_exactly(pages: tuple[Any, ...]) -> None:
    augment, _, _ = pages
    flow = augment.Flow(torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6))
    flipped = augment.F.horizontal_flip(flow)
    assert isinstance(flipped, augment.Flow)
    assert torch.equal(flipped[0, 0], -flow[0, 0].flip(-1))
    assert torch.equal(flipped[0, 1], flow[0, 1].flip(-1))
    part = augment.F.resized_crop(flow, top=1, left=2, height=2, width=3, size=[2, 3])
    assert torch.equal(torch.Tensor(part), torch.Tensor(flow)[..., 1:3, 2:5])
    half = augment.F.resized_crop(
        augment.Flow(flow * 0 + 8), top=0, left=0, height=4, width=6, size=[2, 2]
    )
    assert torch.allclose(torch.Tensor(half)[0, :, 0, 0], torch.tensor([8 / 3, 4.0]))


def test_kornia_draws_for_each_clip_and_takes_flow_along(pages: tuple[Any, ...]) -> None:
    _, kornia, _ = pages
    torch.manual_seed(1)
    batch = 8
    still = clip(1).expand(4, -1, -1, -1).float() / 255
    frames, _ = kornia.augmented(
        still.expand(batch, -1, -1, -1, -1), flow_of().expand(batch, -1, -1, -1, -1)
    )
    assert all(torch.allclose(one, frames[:, 0]) for one in frames.unbind(dim=1))
    assert not torch.allclose(frames[0], frames[1])

    clips = (clip().float() / 255).expand(batch, -1, -1, -1, -1)
    frames, flow = kornia.augmented(clips, flow_of().expand(batch, -1, -1, -1, -1))
    assert frames.shape == (batch, 4, 3, 32, 32)
    assert flow.shape == (batch, 3, 2, 32, 32)
    assert {float(one) for one in flow[:, :, 0].unique()} == {-RIGHT, RIGHT}
    assert torch.equal(flow[:, :, 1], torch.full((batch, 3, 32, 32), float(DOWN)))
    for one, fields in zip(frames, flow, strict=True):
        assert unexplained(one, fields) < 0.1


def test_flow_that_was_estimated_is_augmented_in_the_pipeline(pages: tuple[Any, ...]) -> None:
    *_, pairs = pages
    torch.manual_seed(2)
    frames, flow = next(iter(pairs.batches()))
    assert frames.shape == (4, 3, 3, 32, 32)
    assert flow.shape == (4, 2, 2, 32, 32)
    for one, fields in zip(frames, flow, strict=True):
        assert unexplained(one, fields) < 0.4
