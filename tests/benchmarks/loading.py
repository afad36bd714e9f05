"""Loading for training: samples a second, the start of an epoch, memory, random access.

Against plain webdataset with the same decoding, a bare TorchCodec loop over the same clips (the
limit), and wids. Everything is on local files, in this process but for memory; torch runs on one
thread.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

import reelmill
from reelmill.dataset import Version, open_version
from reelmill.loading import decoder, video
from reelmill.media.images import encode_jpeg
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.model import Generation, Manifest, Ref, Shard
from tests.benchmarks.clips import ffmpeg, videos
from tests.benchmarks.harness import compare, show, show_costs
from tests.benchmarks.payload import COLUMNS, KB

ROUNDS = 3
SHARDS = 4
MANY = 10_000
FRAMES = 16
WORKERS = 4

Samples = Mapping[str, Mapping[str, bytes]]


def run() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as made:
        folder = Path(made)
        _bytes(folder)
        _pictures(folder)
        _videos(folder)
        many = _many(folder)
        _start(many)
        _memory(many)
        _random(folder)


# Samples a second


def _bytes(folder: Path) -> None:
    noise = random.Random(0).randbytes(4_000 * KB)
    samples = {
        f"{n:09d}": {"bin": noise[n * KB : (n + 50) * KB], "json": b'{"caption": "a bird"}'}
        for n in range(1_000)
    }
    version = _version(folder / "bytes", samples)
    urls = version.urls()
    subjects: dict[str, Callable[[Path], object]] = {
        "reelmill.load, by index": lambda _: _drain(reelmill.load(version)),
        "reelmill.load, any tars": lambda _: _drain(reelmill.load(urls)),
        "webdataset": lambda _: _drain(_plain(urls)),
    }
    costs = compare(subjects, rounds=ROUNDS)
    for ours in [name for name in subjects if "reelmill" in name]:
        shown = {n: c for n, c in costs.items() if n in (ours, "webdataset")}
        show_costs("1,000 samples of 50 KB, not decoded", shown, "1000", 1, ours)


def _pictures(folder: Path) -> None:
    across, down = np.meshgrid(np.arange(640), np.arange(360))
    scene = np.stack([across % 256, down % 256, (across + down) % 256], 2).astype(np.uint8)
    scene += np.random.default_rng(0).integers(0, 20, scene.shape, np.uint8)
    frames = [encode_jpeg(np.roll(scene, 9 * n, 1)) for n in range(3)]
    fields = {f"{n:06d}.image.jpg": data for n, data in enumerate(frames)}
    version = _version(folder / "pictures", {f"{n:09d}": fields for n in range(60)})
    urls = version.urls()
    for spec in ("rgb8", "rgb", "torch"):
        ours, plain = f"reelmill.load, {spec}", f"webdataset, {spec}"
        subjects: dict[str, Callable[[Path], object]] = {
            ours: lambda _, spec=spec: _drain(reelmill.load(version).decode(spec)),
            plain: lambda _, spec=spec: _drain(_plain(urls).decode(spec)),
            f"webdataset, decoder({spec!r})": lambda _, spec=spec: _drain(
                _plain(urls).decode(decoder(spec))
            ),
        }
        costs = compare(subjects, rounds=ROUNDS)
        show_costs("60 triplets of pictures of 640×360", costs, "60", 1, ours)


def _videos(folder: Path) -> None:
    from torchcodec.decoders import VideoDecoder

    clips = list(_clips(folder))
    samples = {f"{n:09d}": {"mp4": clips[n % len(clips)]} for n in range(4 * len(clips))}
    version = _version(folder / "videos", samples)
    urls = version.urls()
    some = video(FRAMES, backend="torchcodec")

    def bare() -> Iterator[Any]:
        for one in samples.values():
            yield VideoDecoder(one["mp4"], num_ffmpeg_threads=1).get_frames_in_range(0, FRAMES).data

    def handler(name: str, data: bytes) -> Any:
        if not name.endswith(".mp4"):
            return None
        return VideoDecoder(data, num_ffmpeg_threads=1).get_frames_in_range(0, FRAMES).data

    ours = "reelmill.load, video(16)"
    subjects: dict[str, Callable[[Path], object]] = {
        ours: lambda _: _drain(reelmill.load(version).decode(some)),
        "reelmill.load, PyAV": lambda _: _drain(
            reelmill.load(version).decode(video(FRAMES, backend="pyav", mode="stream"))
        ),
        "webdataset, TorchCodec": lambda _: _drain(_plain(urls).decode(handler)),
        "bare TorchCodec, in memory": lambda _: _drain(bare()),
    }
    costs = compare(subjects, rounds=ROUNDS)
    count = len(samples)
    show_costs(f"{FRAMES} frames of each of {count} clips of 256 lines", costs, "clip", count, ours)


def _clips(folder: Path) -> Iterator[bytes]:
    """Clips of two seconds, as training takes them."""
    for number, path in enumerate(videos(folder).values()):
        ffmpeg(
            *("-i", path, "-an", "-vf", "scale=-2:256", "-c:v", "libx264", "-preset", "veryfast"),
            *("-force_key_frames", "expr:gte(t,2*n_forced)", "-f", "segment", "-segment_time", "2"),
            *("-reset_timestamps", "1", folder / f"clip-{number}-%03d.mp4"),
        )
    for clip in sorted(folder.glob("clip-*.mp4")):
        if clip.stat().st_size > 10 * KB:
            yield clip.read_bytes()


# Many shards


def _many(folder: Path) -> Version:
    """A version of 10,000 shards, all with the bytes of one."""
    samples = {f"{n:09d}": {"bin": bytes(10 * KB)} for n in range(20)}
    one = next(_version(folder / "many", samples, shards=1).manifest.shards)
    store = Store.open(str(folder / "many"))
    shards = tuple(one.model_copy(update={"id": f"{n:05d}"}) for n in range(MANY))
    return _committed(store, shards)


def _start(version: Version) -> None:
    """From a list of shards to the first sample. webdataset is given its list, and shuffles the
    first hundred of it; a version's is read, once for all epochs."""
    store, spec = version.store, str(version)
    made, mixed = (reelmill.load(spec, store).shuffle(size) for size in (0, 1_000))
    plain = wds.WebDataset(version.urls(), shardshuffle=MANY)
    mixed_plain = plain.shuffle(1_000)

    def first(samples: Iterable[Any]) -> object:
        return next(iter(samples))

    ours = "an epoch, shards shuffled"
    subjects: dict[str, Callable[[Path], object]] = {
        ours: lambda _: first(made),
        "the same, by webdataset": lambda _: first(plain),
        "an epoch, a shuffle of 1,000 samples, too": lambda _: first(mixed),
        "the same, by webdataset, of 100 at first": lambda _: first(mixed_plain),
        "reelmill.load": lambda _: reelmill.load(spec, store),
    }
    costs = compare(subjects, rounds=ROUNDS)
    show_costs(f"To the first sample of {MANY:,} shards", costs, "time", 1, ours)


def _memory(version: Version) -> None:
    """All processes of a loader with four workers."""
    rows = []
    for kind in ("reelmill", "webdataset", "neither"):
        code = (
            f"from tests.benchmarks.loading import memory; "
            f"memory({kind!r}, {version.store.url!r}, {str(version)!r})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        rows.append([kind, *done.stdout.split()])
    show(
        f"{WORKERS} workers at {MANY:,} shards: memory of all processes",
        ["", "PSS, MB", "RSS, MB"],
        rows,
    )


def memory(kind: str, store: str, spec: str) -> None:
    """Print the memory of this process and a loader's workers while they read, in MB."""
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    version = open_version(store, spec)
    dataset: Any = list(range(MANY))
    if kind == "reelmill":
        dataset = reelmill.load(version).shuffle(1_000)
    elif kind == "webdataset":
        dataset = wds.WebDataset(version.urls(), shardshuffle=MANY).shuffle(1_000)
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=WORKERS))
    for _ in range(2_000):
        next(loader)
    pids = [os.getpid(), *_children(os.getpid())]
    totals = [sum(_held(pid, what) for pid in pids) / 1000 for what in ("Pss", "Rss")]
    print(*(f"{total:.0f}" for total in totals))


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _held(pid: int, what: str) -> int:
    """KB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


# Random access


def _random(folder: Path) -> None:
    import wids

    noise = random.Random(0).randbytes(1_000 * KB)
    samples = {f"{n:09d}": {"bin": noise[n * 100 : n * 100 + 20 * KB]} for n in range(4_000)}
    version = _version(folder / "random", samples)
    copies = folder / "copies"
    copies.mkdir()
    listed = []
    for number, (url, shard) in enumerate(
        zip(version.urls(), version.manifest.shards, strict=True)
    ):
        # It writes into the folder of the shards that it reads.
        path = copies / f"{number:05d}.tar"
        path.write_bytes(Path(url).read_bytes())
        listed.append({"url": str(path), "nsamples": shard.samples})
    order = random.Random(1).sample(range(len(samples)), 2_000)
    ours = "reelmill, random access"
    mine = reelmill.load(version).random_access()
    theirs = wids.ShardListDataset(listed, transformations=[], cache_dir=str(folder / "wids"))
    subjects: dict[str, Callable[[Path], object]] = {
        ours: lambda _: _drain(mine[number] for number in order),
        "wids": lambda _: _drain(theirs[number][".bin"].read() for number in order),
    }
    costs = compare(subjects, rounds=ROUNDS)
    show_costs("2,000 of 4,000 samples of 20 KB at random, warm", costs, "2000", 1, ours)


# What is measured on


def _plain(urls: list[str]) -> Any:
    return wds.WebDataset(urls, shardshuffle=False)


def _drain(samples: Iterable[Any]) -> int:
    return sum(1 for _ in samples)


def _version(place: Path, samples: Samples, shards: int = SHARDS) -> Version:
    store = Store.open(str(place), create=True)
    keys = sorted(samples)
    made = []
    for number in range(shards):
        writer = ShardWriter(store.backend.scratch(), COLUMNS)
        for key in keys[number::shards]:
            writer.add(key, dict(samples[key]), {"number": number})
        made.append(put_shard(store, writer.close()).shard(f"{number:05d}"))
    return _committed(store, tuple(made))


def _committed(store: Store, shards: tuple[Shard, ...]) -> Version:
    manifest = Manifest(fields=(), generations=(Generation(shards=shards),))
    ref = Ref(
        event="commit",
        version=store.put_manifest(manifest),
        tags=("latest",),
        time=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        run="bench",
        stage="bench",
        parents={},
        totals=manifest.totals(),
    )
    store.commit_ref("clips", ref)
    return open_version(store, "clips")
