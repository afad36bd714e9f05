"""WebDataset's page on video (video-loading-example): its code, on shards that Reelmill made.

What the page prints is what is expected here: names of fields, shapes, 36 frames of a clip. Its own
data are 10-second clips of 256x128 at 25 frames a second (`yt8m-clips-{000000..000009}.tar`), and
triplets of NVIDIA's Falling Things (`falling-things-3frames-shuffled-{000000..000004}.tar`).
"""

from __future__ import annotations

import zipfile
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds
from numpy.typing import NDArray

from reelmill.media.images import encode_jpeg, encode_png
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


def test_clips_have_the_fields_and_the_shape_of_the_page(clips: str) -> None:
    ds = wds.WebDataset(clips, shardshuffle=False).decode(torch_video)
    found = list(ds)
    assert len(found) == 4
    for sample in found:
        names = sample.keys() - {"__url__", "__local_path__"}
        assert names == {"__key__", "info.json", "mp4", "mp4.json"}
        assert sample["mp4"].shape == torch.Size([250, 128, 256, 3])
        assert sample["mp4"].dtype == torch.uint8
        assert sample["info.json"]["url"].endswith(".mp4")
        about = sample["mp4.json"]
        assert (about["width"], about["height"], about["frames"], about["fps"]) == (
            256,
            128,
            250,
            25,
        )
        assert burnt_in(sample["mp4"][0]) == about["start_frame"]
    assert {(one["info.json"]["key"], one["mp4.json"]["start"]) for one in found} == {
        (key, start) for key in ("000000000", "000010000") for start in (0, 10)
    }


def test_36_frames_of_a_clip_are_a_picture(clips: str) -> None:
    sample = next(iter(wds.WebDataset(clips, shardshuffle=False).decode(torch_video)))
    n = len(sample["mp4"])
    shown = sample["mp4"][0 : n - 36 : n // 36]
    assert len(shown) == 36
    grid = shown.reshape(6, 6, 128, 256, 3).permute(0, 2, 1, 3, 4).reshape(768, 1536, 3)
    first = sample["mp4.json"]["start_frame"]
    for place in range(36):
        top, left = place // 6 * 128, place % 6 * 256
        assert burnt_in(grid[top : top + 128, left : left + 256]) == first + place * (n // 36)


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


def test_triplets_have_the_fields_of_the_page(triplets: str) -> None:
    ds = wds.WebDataset(triplets, shardshuffle=False)
    found = list(ds)
    assert len(found) == 4
    for sample in found:
        assert sample.keys() - {"__key__", "__url__", "__local_path__", "json"} == {
            f"{frame:06d}.{field}"
            for frame in range(3)
            for field in ("image.jpg", "depth.png", "seg.png")
        }


def assemble_frames(sample: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    images = np.array([sample[f"{i:06d}.image.jpg"] for i in range(3)])
    depths = np.array([sample[f"{i:06d}.depth.png"] for i in range(3)])
    return images, depths


def test_triplets_are_arrays_as_on_the_page(triplets: str) -> None:
    ds = wds.WebDataset(triplets, shardshuffle=False).decode("rgb").map(assemble_frames)
    for images, depths in ds:
        assert images.shape == (3, 540, 960, 3)
        assert images.dtype == np.float32
        assert depths.shape == (3, 540, 960, 3)
        change = np.amax(np.abs(images[1] - images[0]), axis=2)
        assert change.shape == (540, 960)
        assert change.max() > 0.5
        numbers = [read_number(image) for image in images]
        assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


def read_number(image: NDArray[np.float32]) -> int:
    """The number that ``left_picture`` shows."""
    grey = np.uint8(255 * image[:480, :896, 0])
    return number_of(cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
