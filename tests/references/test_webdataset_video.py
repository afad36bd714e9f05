"""WebDataset's page on video (video-loading-example): its code, on shards that Reelmill made.

What the page prints is what is expected here: names of fields, shapes, 36 frames of a clip. Its own
data are 10-second clips of 256x128 at 25 frames a second (`yt8m-clips-{000000..000009}.tar`), and
triplets of NVIDIA's Falling Things (`falling-things-3frames-shuffled-{000000..000004}.tar`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds
from numpy.typing import NDArray

import reelmill
from reelmill.loading import Assembler, torch_video, video
from reelmill.media.images import decode_gray, encode_jpeg, encode_png
from tests.references.workshop import build, shards, torch
from tests.stages.media_samples import HEIGHT, WIDTH, make_video, number_of, picture

CLIPS = """
store: ./store
sources:
  urls: {path: urls.csv, url: url, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  cuts:
    stage: split
    from: videos
    method: fixed
    seconds: 10s
    video: {size: {size: [256, 128], mode: pad}}
  named: {stage: map, from: cuts, function: "./names.py:as_ytsamples", keep: [mp4]}
  clips: {stage: shuffle, from: named, samples_per_shard: 1}
"""

NAMES = """
import json

def as_ytsamples(sample):
    clip = json.loads(sample.fields["json"])
    return {"info.json": clip.pop("source"), "mp4.json": clip}
"""

FALLING_THINGS = """
store: ./store
sources:
  fat: {path: fat.zip, format: sequences}
datasets:
  sequences:
    stage: sequences
    from: fat
    allow_files: true
    fields:
      image.jpg: "{frame}.left.jpg"
      depth.png: "{frame}.left.depth.png"
      seg.png: "{frame}.left.seg.png"
  triplets: {stage: windows, from: sequences, count: 3, step: 1}
  shuffled: {stage: shuffle, from: triplets, samples_per_shard: 1}
"""


FRAMES = range(1, 5)
"""The numbers of the frames of each of the sequences."""

Load = Callable[[str], Any]


@pytest.fixture(params=["webdataset", "reelmill"])
def load(request: pytest.FixtureRequest) -> Load:
    """What opens tars: with either, the code behind it is the same."""
    if request.param == "reelmill":
        return reelmill.load
    return partial(wds.WebDataset, shardshuffle=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two clips each of two videos: one in each tar."""
    folder = tmp_path_factory.mktemp("ytsamples")
    videos = [make_video(folder / f"{n}.mp4", 500, fps=25, audio="aac") for n in range(2)]
    table = "\n".join(["url", *(one.as_uri() for one in videos)]) + "\n"
    return shards(build(folder, CLIPS, table, names=NAMES), "clips", folder / "yt8m-clips")


def burnt_in(frame: Any) -> int:
    """The number of a frame, in the middle of 256x128."""
    return number_of(cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2GRAY)[16:112, 64:192])


def test_clips_have_the_fields_and_the_shape_of_the_page(load: Load, clips: str) -> None:
    found = list(load(clips).decode(torch_video))
    assert len(found) == 4
    for sample in found:
        names = {name for name in sample if not name.startswith("__")}
        assert names == {"info.json", "mp4", "mp4.json"}
        assert sample["info.json"]["url"].endswith(".mp4")
        about = sample["mp4.json"]
        assert [about[name] for name in ("width", "height", "frames")] == [256, 128, 250]
        frames, sound, rates = sample["mp4"]
        assert (frames.shape, frames.dtype) == (torch.Size([250, 128, 256, 3]), torch.uint8)
        assert burnt_in(frames[0]) == about["start_frame"]
        assert abs(sound.shape[1] - 10 * 48000) < 2048
        assert rates == {"video_fps": 25, "audio_fps": 48000}
    assert {(one["info.json"]["key"], one["mp4.json"]["start"]) for one in found} == {
        (key, start) for key in ("000000000", "000010000") for start in (0, 10)
    }


def test_36_frames_of_a_clip_are_a_picture(load: Load, clips: str) -> None:
    sample = next(iter(load(clips).decode(torch_video)))
    n = len(sample["mp4"][0])
    shown = sample["mp4"][0][0 : n - 36 : n // 36]
    assert len(shown) == 36
    grid = shown.reshape(6, 6, 128, 256, 3).permute(0, 2, 1, 3, 4).reshape(768, 1536, 3)
    first = sample["mp4.json"]["start_frame"]
    for place in range(36):
        top, left = place // 6 * 128, place % 6 * 256
        assert burnt_in(grid[top : top + 128, left : left + 256]) == first + place * (n // 36)


def test_only_the_frames_of_the_picture_are_decoded_where_that_is_said(clips: str) -> None:
    dataset = reelmill.load(clips).decode(video(frames=36, every=6, output_format="THWC"))
    for sample in dataset:
        first = sample["mp4.json"]["start_frame"]
        assert [burnt_in(one) for one in sample["mp4"]] == list(range(first, first + 216, 6))


def left_picture(number: int) -> NDArray[np.uint8]:
    """(540, 960, 3): ``number`` in blocks, as ``picture`` has it, seven times as large."""
    grey = cv2.resize(picture(number), (7 * WIDTH, 5 * HEIGHT), interpolation=cv2.INTER_NEAREST)
    return cv2.copyMakeBorder(np.dstack([grey] * 3), 0, 60, 0, 64, cv2.BORDER_CONSTANT)


def depth_picture(number: int) -> NDArray[np.uint16]:
    """(540, 960) of 16 bits, of which the lower ones tell as much as the upper ones."""
    return np.broadcast_to(np.arange(960, dtype=np.uint16) * 67 + number, (540, 960))


def masks(number: int) -> NDArray[np.uint8]:
    """(540, 960): what object each pixel shows."""
    y, x = np.mgrid[0:540, 0:960]
    return ((x // 96 + y // 54 + number) % 21).astype(np.uint8)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sequences' windows of three frames: one in each tar."""
    folder = tmp_path_factory.mktemp("falling-things")
    with zipfile.ZipFile(folder / "fat.zip", "w") as fat:
        for scene in ("kitedemo_3", "kitedemo_4"):
            fat.writestr(f"fat/mixed/{scene}/_camera_settings.json", "{}")
            for number in FRAMES:
                name = f"fat/mixed/{scene}/{number:06d}.left"
                fat.writestr(f"{name}.jpg", encode_jpeg(left_picture(number)))
                fat.writestr(f"{name}.depth.png", encode_png(depth_picture(number)))
                fat.writestr(f"{name}.seg.png", encode_png(masks(number)))
    return shards(build(folder, FALLING_THINGS), "shuffled", folder / "falling-things-3frames")


def test_triplets_have_the_fields_of_the_page(load: Load, triplets: str) -> None:
    found = list(load(triplets))
    assert len(found) == 4
    for sample in found:
        assert {name for name in sample if not name.startswith("__")} - {"json"} == {
            f"{frame:06d}.{field}"
            for frame in range(3)
            for field in ("image.jpg", "depth.png", "seg.png")
        }


def assemble_frames(sample: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    images = np.array([sample[f"{i:06d}.image.jpg"] for i in range(3)])
    depths = np.array([sample[f"{i:06d}.depth.png"] for i in range(3)])
    return images, depths


def test_triplets_are_arrays_as_on_the_page(load: Load, triplets: str) -> None:
    for images, depths in load(triplets).decode("rgb").map(assemble_frames):
        assert (images.shape, images.dtype) == ((3, 540, 960, 3), np.float32)
        # The page's depths are three bytes a pixel: Pillow's, which know no more than 255.
        assert depths.shape in {(3, 540, 960, 3), (3, 540, 960)}
        change = np.amax(np.abs(images[1] - images[0]), axis=2)
        assert change.shape == (540, 960)
        assert change.max() > 0.5
        first = read_number(images[0])
        assert [read_number(one) for one in images] == [first, first + 1, first + 2]


def test_four_workers_give_batches_with_depth_and_masks_as_they_were(triplets: str) -> None:
    together = Assembler(
        {
            "images": "{frame}.image.jpg",
            "depths": "{frame}.depth.png",
            "masks": "{frame}.seg.png",
        }
    )
    dataset = reelmill.load(triplets).decode({"seg.png": decode_gray}, "rgb").map(together)
    loader = dataset.to_tuple("images", "depths", "masks").loader(batch_size=1, num_workers=4)
    begin = []
    for images, depths, shown in loader:
        assert images.shape == (1, 3, 540, 960, 3)
        numbers = [read_number(one) for one in images[0].numpy()]
        begin.append(numbers[0])
        assert depths.dtype == torch.uint16
        assert np.array_equal(depths[0], [depth_picture(n) for n in numbers])
        assert np.array_equal(shown[0], [masks(n) for n in numbers])
    assert sorted(begin) == [1, 1, 2, 2]


def read_number(image: NDArray[np.float32]) -> int:
    """The number that ``left_picture`` shows."""
    grey = np.uint8(255 * image[:480, :896, 0])
    return number_of(cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
