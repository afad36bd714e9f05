from __future__ import annotations

import hashlib
import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from rich.console import Console
from scenedetect import ContentDetector, detect

from reelmill.errors import Rejected
from reelmill.flows import demo_media
from reelmill.flows.demo import ensure_media
from reelmill.flows.demo_media import DemoVideo
from reelmill.media.decode import frames


@pytest.fixture(scope="module")
def folder(demo_media: Path) -> Path:
    return demo_media


@pytest.fixture(scope="module")
def videos(folder: Path) -> dict[str, DemoVideo]:
    made = [DemoVideo(**one) for one in ensure_media(folder, Console(quiet=True))]
    return {video.filename: video for video in made}


def test_every_video_is_described(folder: Path, videos: dict[str, DemoVideo]) -> None:
    assert sorted([*videos, "videos.json"]) == sorted(path.name for path in folder.iterdir())
    assert len(videos) == 13
    assert len({video.caption for video in videos.values()}) == 13
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6


def test_scenes_are_found_where_they_were_cut(folder: Path, videos: dict[str, DemoVideo]) -> None:
    for film in demo_media._FILMS:
        found = detect(str(folder / film.filename), ContentDetector())
        assert len(found) == len(film.scenes) == videos[film.filename].scenes
        at = 0.0
        for (start, _), (_, seconds) in zip(found, film.scenes, strict=True):
            assert start.seconds == pytest.approx(at, abs=0.1)
            at += seconds


def test_what_each_file_is_there_to_try(folder: Path, videos: dict[str, DemoVideo]) -> None:
    sizes, codecs, rates = set(), set(), set()
    for name, video in videos.items():
        if not video.scenes:
            continue
        with av.open(str(folder / name)) as container:
            stream = container.streams.best("video")
            sizes.add((stream.width, stream.height))
            codecs.add(stream.codec_context.name)
            rates.add(stream.average_rate)
            assert bool(container.streams.audio) == (name == "city.mp4")
            assert f"{stream.width}x{stream.height}" in video.note
            assert 4 < container.duration / 1e6 < 8
    assert len(sizes) == 5
    assert len(codecs) == 3
    assert {Fraction(n) for n in (15, 24, 25, 30)} | {Fraction(30000, 1001)} < rates

    times = [float(frame.pts * frame.time_base) for frame in frames(folder / "lights.mp4")]
    gaps = {round(30 * (b - a)) for a, b in pairwise(times)}
    assert gaps == {1, 2}


def test_the_damaged_video_has_lost_its_index(folder: Path, videos: dict[str, DemoVideo]) -> None:
    data = (folder / "damaged.mp4").read_bytes()
    assert (folder / "dunes.mp4").read_bytes().startswith(data)
    assert b"moov" not in data
    with pytest.raises(Rejected):
        next(frames(io.BytesIO(data)))


@pytest.mark.parametrize("name", ["tiles.mp4", "winter.mp4", "tunnel.webm"])
def test_the_same_bytes_again(
    folder: Path, videos: dict[str, DemoVideo], tmp_path: Path, name: str
) -> None:
    seed = [film.filename for film in demo_media._FILMS].index(name)
    demo_media._make(demo_media._FILMS[seed], tmp_path, seed)
    first, second = (
        hashlib.sha256((where / name).read_bytes()).hexdigest() for where in (folder, tmp_path)
    )
    assert first == second
