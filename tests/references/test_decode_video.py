"""The repository "Video decoding for DL models training with PyTorch": its code, on our readers.

Its readers are classes with one interface; here that is `open_video`, and the class is `backend=`.
What its tests hold for each reader, mode and output format is held for each backend that is here;
they allow the modes to differ by 6 levels on average, where ours may not differ at all. Its
benchmark is the command `reelmill bench readers`; what that reads, both ways, is read here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import reelmill
from reelmill.loading import backends
from tests.references.workshop import build, torch
from tests.stages.media_samples import HEIGHT, WIDTH, make_video, number_of

FRAMES_TO_READ = [10, 20, 30, 40]
FRAMES_TO_READ_SEQUENTIAL = list(range(10, 20))
FRAMES_TO_READ_SLICE = list(range(10, 200, 20))
OUTPUT_FORMATS = {"THWC": (4, HEIGHT, WIDTH, 3), "TCHW": (4, 3, HEIGHT, WIDTH)}
MODES = ["seek", "stream"]
READERS = ["pyav", "torchcodec", "opencv", "torchvision", "vali", "pynvvideocodec"]

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, url: url}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips:  {stage: split, from: videos, method: fixed, seconds: 7s}
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A shard of clips, and the key of one of 210 frames."""
    folder = tmp_path_factory.mktemp("videos")
    video = make_video(folder / "test.mp4", 210, fps=30)
    store = build(folder, RECIPE, f"url\n{video.as_uri()}\n")
    (shard,) = reelmill.open_version(store, "clips").shards()
    (sample,) = shard.samples()
    return shard, sample.key


def opened(clip: tuple[Any, str], backend: str, **options: Any) -> Any:
    """A reader, on whatever the backend decodes on here; skips where it does on nothing."""
    here = backends()[backend]
    if not here.devices:
        pytest.skip("; ".join(here.why_not.values()))
    return reelmill.open_video(clip, backend=backend, device=here.devices[0], **options)


def numbers(frames: Any, output_format: str) -> list[int]:
    """What is burnt in, of frames of 8-bit RGB."""
    planes = frames[:, 0] if output_format == "TCHW" else frames[..., 0]
    return [number_of(plane.cpu().numpy()) for plane in planes]


def test_every_fifth_frame_is_read(clip: tuple[Any, str]) -> None:
    with reelmill.open_video(clip, mode="stream", output_format="TCHW", device="cpu") as reader:
        frames_to_read = list(range(0, 100, 5))
        tensor = reader.read_frames(frames_to_read)
    assert tensor.shape == (20, 3, HEIGHT, WIDTH)
    assert tensor.device == torch.device("cpu")
    assert numbers(tensor, "TCHW") == frames_to_read


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_video_reader(clip: tuple[Any, str], backend: str, mode: str, output_format: str) -> None:
    with opened(clip, backend, mode=mode, output_format=output_format) as reader:
        frames = reader.read_frames(FRAMES_TO_READ)
        assert (len(reader), reader.metadata.average_fps) == (210, 30)
        assert frames.shape == OUTPUT_FORMATS[output_format]
        assert frames.dtype == torch.uint8
        assert numbers(frames, output_format) == FRAMES_TO_READ


@pytest.mark.parametrize("backend", READERS)
def test_modes_equality(clip: tuple[Any, str], backend: str) -> None:
    with opened(clip, backend, mode="seek") as seek, opened(clip, backend, mode="stream") as stream:
        for wanted in (FRAMES_TO_READ, FRAMES_TO_READ_SEQUENTIAL, FRAMES_TO_READ_SLICE):
            sought, streamed = seek.read_frames(wanted), stream.read_frames(wanted)
            assert torch.equal(sought, streamed)
            assert numbers(sought, "TCHW") == wanted


def test_frames_are_had_by_index_and_slice(clip: tuple[Any, str]) -> None:
    with reelmill.open_video(clip) as reader:
        assert number_of(reader[7][0].numpy()) == 7
        assert numbers(reader[10:200:20], "TCHW") == FRAMES_TO_READ_SLICE
        for wrong in (210, -211):
            with pytest.raises(IndexError):
                reader[wrong]
        with pytest.raises(IndexError):
            reader.read_frames([0, 210])


def test_frames_are_read_while_something_else_is_done(clip: tuple[Any, str]) -> None:
    async def read() -> list[Any]:
        with reelmill.open_video(clip) as one, reelmill.open_video(clip, mode="stream") as two:
            return await asyncio.gather(
                one.read_frames_async(FRAMES_TO_READ),
                two.read_frames_async(FRAMES_TO_READ_SLICE),
            )

    found = [numbers(frames, "TCHW") for frames in asyncio.run(read())]
    assert found == [FRAMES_TO_READ, FRAMES_TO_READ_SLICE]


def test_no_such_mode_or_format(clip: tuple[Any, str]) -> None:
    with pytest.raises(ValueError, match="'jump' is none of seek, stream"):
        reelmill.open_video(clip, mode="jump")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'CTHW' is none of TCHW, THWC"):
        reelmill.open_video(clip, output_format="CTHW")  # type: ignore[arg-type]


def transforms(train: bool) -> Any:
    """Those of its src/transforms.py."""
    augm: Any = pytest.importorskip("kornia.augmentation")
    normalize = augm.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    more = (
        augm.RandomRotation(degrees=(-10.0, 10.0)),
        augm.RandomHorizontalFlip(p=0.5),
        augm.RandomBrightness(brightness=(0.8, 1.2)),
    )
    chosen = (normalize, *more) if train else (normalize,)
    return augm.VideoSequential(*chosen, data_format="BTCHW", same_on_frame=True)


def test_its_transforms_take_the_readers_frames(clip: tuple[Any, str]) -> None:
    with reelmill.open_video(clip) as reader:
        frames = reader.read_frames(FRAMES_TO_READ)
    batch = torch.stack([frames, frames]).float() / 255
    seen = transforms(train=False)(batch)
    assert seen.shape == batch.shape
    red = (batch[:, :, 0] - 0.485) / 0.229
    assert torch.allclose(seen[:, :, 0], red, atol=1e-5)

    torch.manual_seed(0)
    still = frames[:1].expand(4, -1, -1, -1)
    seen = transforms(train=True)(torch.stack([still, still]).float() / 255)
    assert all(torch.allclose(one, seen[:, 0], atol=1e-5) for one in seen.unbind(dim=1))
    assert not np.allclose(seen[0], seen[1], atol=0.1)
