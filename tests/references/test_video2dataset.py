"""video2dataset's dataloader (`get_video_dataset`): the same batches, by `reelmill.load`.

What its function does in one call is a pipeline here, of parts that are each a line or two. The
names of its batches' fields, their shapes and types are what its code gives; so are the samples
that its tests expect of damaged videos. Its example asks for 8 frames of each video at 10 frames a
second, as 256x256 pixels, in batches of 32.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest

import reelmill
import reelmill.loading
from reelmill.errors import Rejected
from tests.references.workshop import build, torch
from tests.stages.media_samples import make_video, number_of

Sample = dict[str, Any]

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, url: url, caption: caption, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  cuts:   {stage: split, from: videos, method: fixed, seconds: 1s}
  scored: {stage: map, from: cuts, function: "./models.py:scores"}
  clips:  {stage: shuffle, from: scored, samples_per_shard: 12}
"""

MODELS = """
import json

def scores(sample):
    number = int(sample.key.rpartition("_")[2])
    more = {"AESTHETIC_SCORE": 4 + number / 4, "punsafe": number / 10}
    return {"json": {**json.loads(sample.fields["json"]), **more}}
"""


# Its filters


def has(names: set[str], sample: Sample) -> bool:
    return names <= sample.keys()


def is_beautiful(threshold: float, sample: Sample) -> bool:
    return bool(sample["json"]["AESTHETIC_SCORE"] >= threshold)


def is_safe(threshold: float, sample: Sample) -> bool:
    return bool(sample["json"]["punsafe"] < threshold)


# Its decoder and its resizer


def decoded(n_frames: int, fps: int | None, uniformly_sample: bool, sample: Sample) -> Sample:
    """Frames ``mp4`` (T, H, W, C), and what it says of them.

    Raises:
        Rejected: they cannot be decoded.
        ValueError: there are not enough.
    """
    with reelmill.open_video(sample["mp4"], output_format="THWC") as reader:
        native = round(reader.metadata.average_fps)
        stride = round(native / fps) if fps else 1
        if uniformly_sample:
            indices = np.linspace(0, len(reader) - 1, n_frames).astype(int)
            frames, start = reader.read_frames(indices), 0
        else:
            if n_frames * stride > len(reader):
                raise ValueError("video clip not long enough for decoding")
            clips = reelmill.loading.clips_at_random_indices(
                reader,
                num_frames_per_clip=n_frames,
                num_indices_between_frames=stride,
                seed=zlib.crc32(sample["__key__"].encode()),
            )
            frames = clips.data[0]
            (start,) = reader.indices_at([float(clips.pts_seconds[0, 0])])
    count, height, width, _ = frames.shape
    return {
        **sample,
        "mp4": frames,
        "original_height": torch.full((count,), height),
        "original_width": torch.full((count,), width),
        "pad_masks": torch.ones(count),
        "native_fps": fps or native,
        "start_frame": start,
    }


def resized(resize_size: int, crop_size: int, sample: Sample) -> Sample:
    """The shorter side as long as is said, then the middle; 16-bit floats."""
    frames = []
    for frame in sample["mp4"].float().numpy():
        height, width = frame.shape[:2]
        factor = resize_size / min(height, width)
        size = round(width * factor), round(height * factor)
        whole = cv2.resize(frame, size, interpolation=cv2.INTER_LANCZOS4)
        top, left = (size[1] - crop_size) // 2, (size[0] - crop_size) // 2
        frames.append(whole[top : top + crop_size, left : left + crop_size])
    return {**sample, "mp4": torch.from_numpy(np.stack(frames)).to(torch.float16)}


def get_video_dataset(
    urls: str | list[str],
    *,
    store: str | None = None,
    n_frames: int,
    fps: int | None = None,
    uniformly_sample: bool = False,
    resize_size: int | None = None,
    crop_size: int | None = None,
    aesthetics_threshold: float | None = None,
    p_unsafe_threshold: float | None = None,
    shuffle: int = 0,
    seed: int = 0,
    handler: Any = "raise",
) -> Any:
    """Samples as its function of that name has them, before they are batched."""
    dataset = reelmill.load(urls, store, fields=["mp4", "txt", "json"], seed=seed, on_error=handler)
    if shuffle:
        dataset = dataset.shuffle(shuffle)
    dataset = dataset.select(partial(has, {"mp4", "txt"})).decode(only="txt json")
    # Its filters come behind the decoder; here nothing is decoded for what they drop.
    if aesthetics_threshold is not None:
        dataset = dataset.select(partial(is_beautiful, aesthetics_threshold))
    if p_unsafe_threshold is not None:
        dataset = dataset.select(partial(is_safe, p_unsafe_threshold))
    dataset = dataset.map(partial(decoded, n_frames, fps, uniformly_sample))
    if resize_size and crop_size:
        dataset = dataset.map(partial(resized, resize_size, crop_size))
    return dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """36 clips of one second, 30 frames, with captions and scores, in shards of 12."""
    folder = tmp_path_factory.mktemp("webvid")
    lines = ["url,caption"]
    for number in range(4):
        video = make_video(folder / f"{number}.mp4", 270, fps=30)
        lines.append(f"{video.as_uri()},waves of video {number}")
    return build(folder, RECIPE, "\n".join(lines) + "\n", models=MODELS)


def test_batches_are_those_of_the_example(store: str) -> None:
    dset = get_video_dataset(
        "clips", store=store, n_frames=8, fps=10, resize_size=256, crop_size=256
    )
    batches = list(dset.loader(batch_size=32, num_workers=0))
    assert [len(batch["__key__"]) for batch in batches] == [32, 4]
    assert len({key for batch in batches for key in batch["__key__"]}) == 36
    for batch in batches:
        count = len(batch["__key__"])
        assert batch.keys() >= {"mp4", "txt", "json", "original_height", "original_width"}
        assert batch["mp4"].shape == (count, 8, 256, 256, 3)
        assert batch["mp4"].dtype == torch.float16
        assert 0 <= batch["start_frame"].min() <= batch["start_frame"].max() <= 29 - 7 * 3
        assert torch.equal(batch["native_fps"], torch.full((count,), 10))
        assert torch.equal(batch["pad_masks"], torch.ones(count, 8))
        assert torch.equal(batch["original_height"], torch.full((count, 8), 96))
        assert torch.equal(batch["original_width"], torch.full((count, 8), 128))
        for text, about in zip(batch["txt"], batch["json"], strict=True):
            assert text == about["source"]["caption"]
            assert text.startswith("waves of video")
    assert len({int(start) for batch in batches for start in batch["start_frame"]}) > 2


def test_frames_are_at_the_rate_that_was_asked_for(store: str) -> None:
    for sample in get_video_dataset("clips", store=store, n_frames=8, fps=10):
        first = sample["json"]["start_frame"] + sample["start_frame"]
        found = [number_of(frame[..., 0].numpy()) for frame in sample["mp4"]]
        assert found == list(range(first, first + 24, 3))


def test_frames_are_spread_evenly(store: str) -> None:
    for sample in get_video_dataset("clips", store=store, n_frames=4, uniformly_sample=True):
        first = sample["json"]["start_frame"]
        found = [number_of(frame[..., 0].numpy()) for frame in sample["mp4"]]
        assert found == [first, first + 9, first + 19, first + 29]


def test_workers_give_the_same_samples_shuffled(store: str) -> None:
    dset = get_video_dataset("clips", store=store, n_frames=8, fps=10, shuffle=100, seed=3)
    starts = [
        {
            key: int(start)
            for batch in dset.loader(batch_size=4, num_workers=workers)
            for key, start in zip(batch["__key__"], batch["start_frame"], strict=True)
        }
        for workers in (0, 2)
    ]
    assert len(starts[0]) == 36
    assert starts[0] == starts[1]


def test_samples_are_filtered_by_scores(store: str) -> None:
    dset = get_video_dataset(
        "clips", store=store, n_frames=1, aesthetics_threshold=4.5, p_unsafe_threshold=0.5
    )
    kept = sorted(int(sample["__key__"].rpartition("_")[2]) for sample in dset)
    assert kept == [number for number in (2, 3, 4) for _ in range(4)]


# Damaged videos: its tests of return_always and drop_last

EXPECTED = {
    "000000014": True,
    "000000025": True,
    "000000356": True,
    "0000008_00001": False,
    "0000030_00005": False,
    "0000038_00003": False,
}
"""By key, whether the sample is corrupted."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tar like its return_all_test.tar: with sound beside, and with videos of which three are
    too short, cut off, and no videos."""
    folder = tmp_path_factory.mktemp("return_all")
    good = make_video(folder / "good.mp4", 20).read_bytes()
    short = make_video(folder / "short.mp4", 5).read_bytes()
    bad = iter([short, good[: len(good) // 3], b"<html>not found</html>"])
    with tarfile.open(folder / "return_all_test.tar", "w") as tar:
        for key, is_bad in EXPECTED.items():
            members = {"m4a": b"", "txt": key.encode(), "json": json.dumps({"key": key}).encode()}
            for name, data in {**members, "mp4": next(bad) if is_bad else good}.items():
                about = tarfile.TarInfo(f"{key}.{name}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    return str(folder / "return_all_test.tar")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_default(damaged: str, batch_size: int) -> None:
    dset = get_video_dataset(damaged, n_frames=10, handler="skip")
    with pytest.warns(UserWarning, match="it is left out"):
        batches = list(dset.loader(batch_size=batch_size))
    received = [key for batch in batches for key in batch["__key__"]]
    assert received == [key for key, is_bad in EXPECTED.items() if not is_bad]
    assert not any("__corrupted__" in batch or "m4a" in batch for batch in batches)


def test_without_a_handler_the_sample_is_named(damaged: str) -> None:
    with pytest.raises(reelmill.ReelmillError, match=r"000000014.*not long enough"):
        list(get_video_dataset(damaged, n_frames=10))


def or_corrupted(decode: Any, dummy: Mapping[str, Any], sample: Sample) -> Sample:
    """Of a sample that cannot be decoded something of the same shape, which says so."""
    try:
        return {**decode(sample), "__corrupted__": False}
    except (Rejected, ValueError):
        return {**sample, **dummy, "__corrupted__": True}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_return_all(damaged: str, batch_size: int) -> None:
    decode = partial(decoded, 10, None, False)
    good = reelmill.load(damaged, fields=["mp4"], on_error="skip").map(decode)
    with pytest.warns(UserWarning, match="it is left out"):
        shape = next(iter(good))
    dummy = {name: value for name, value in shape.items() if not name.startswith("__")}
    dset = reelmill.load(damaged, fields=["mp4", "txt"]).map(partial(or_corrupted, decode, dummy))
    found = {
        key: bool(corrupted)
        for batch in dset.loader(batch_size=batch_size)
        for key, corrupted in zip(batch["__key__"], batch["__corrupted__"], strict=True)
    }
    assert found == EXPECTED


@pytest.mark.parametrize(("batch_size", "count"), [(1, 3), (2, 2)])
def test_drop_last(damaged: str, batch_size: int, count: int) -> None:
    dset = get_video_dataset(damaged, n_frames=10, handler="skip")
    with pytest.warns(UserWarning, match="it is left out"):
        batches = list(dset.loader(batch_size=batch_size, drop_last=True))
    assert sum(len(batch["__key__"]) for batch in batches) == count
