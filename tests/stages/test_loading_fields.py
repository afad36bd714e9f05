"""Fields of real shards: joined with those of other datasets, and videos decoded."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import webdataset as wds  # noqa: E402

import reelmill  # noqa: E402
from reelmill.dataset import Version, open_version  # noqa: E402
from reelmill.errors import LoadError, ReelmillError  # noqa: E402
from reelmill.loading import (  # noqa: E402
    Assembler,
    Associate,
    ShardCache,
    VideoReader,
    decoder,
    torch_video,
    video,
)
from reelmill.media.flow import encode_kitti  # noqa: E402
from reelmill.media.images import encode_jpeg  # noqa: E402
from reelmill.shards import removed  # noqa: E402
from reelmill.shards.removed import GONE, Removed  # noqa: E402

from ..s3_server import Faults  # noqa: E402
from .datasets import World, keys  # noqa: E402
from .media_samples import make_video, number_of  # noqa: E402

torch.set_num_threads(1)

SHARDS, SAMPLES = 3, 7
ALL = [key for shard in range(SHARDS) for key in keys(shard, SAMPLES)]


def grown(world: World, name: str, field: str, shards: Iterable[Iterable[str]]) -> Version:
    """A dataset of samples by their keys, each with one field that says whose it is."""
    made = [{key: {field: f"{name} {key}".encode()} for key in one} for one in shards]
    world.grow(name, {}, *made)
    return world.commit(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("fields"))
    shards = [keys(shard, SAMPLES) for shard in range(SHARDS)]
    grown(world, "clips", "txt", shards)
    # The same samples, but for two; and other ones between them.
    flow = [[key for key in one if key not in ("000000003", "000020006")] for one in shards]
    grown(world, "flow", "flow.txt", [sorted([*one, f"{one[0]}_9"]) for one in flow])
    # As a shuffle leaves them: in any shard.
    grown(world, "shuffled", "mixed.txt", [ALL[start::SHARDS] for start in range(SHARDS)])
    # What derives from clips.
    grown(
        world,
        "triplets",
        "tri.txt",
        [[f"{key}_000{n}" for key in one for n in (1, 5)] for one in shards],
    )
    return world


def opened(world: World, name: str) -> Version:
    return open_version(world.store, name)


def both(samples: Iterable[dict[str, Any]], *fields: str) -> dict[str, list[Any]]:
    return {one["__key__"]: [one.get(field) for field in fields] for one in samples}


def test_a_dict_and_a_function_add_fields(world: World) -> None:
    clips = reelmill.load("clips", world.store)
    table = {key: {"caption": f"of {key}", "id": 3} for key in ALL}
    got = list(clips.associate(table).decode())
    assert [one["caption"] for one in got] == [f"of {one['__key__']}" for one in got]
    got = list(clips.associate(lambda key: {"number": int(key)}, prefix="my."))
    assert [one["my.number"] for one in got] == [int(one["__key__"]) for one in got]
    del table[ALL[4]]
    with pytest.raises(LoadError, match=rf"sample {ALL[4]} of .*tar: .* has nothing of its key"):
        list(clips.associate(table))
    kept = both(clips.associate(table, missing="skip"), "id")
    assert set(kept) == {*ALL} - {ALL[4]}
    assert both(clips.associate(table, missing="none", fields=["id"]), "id", "caption") == {
        key: [None if key == ALL[4] else 3, None] for key in ALL
    }
    with pytest.raises(LoadError, match="has no other for it"):
        list(clips.associate(table, fields=["other"], missing="skip"))


@pytest.mark.parametrize("by", ["key", "shard"])
def test_another_dataset_is_joined_by_key_or_by_shard(world: World, by: str) -> None:
    clips = reelmill.load("clips", world.store)
    with pytest.raises(LoadError, match=r"flow@[0-9a-f]{12} has nothing of its key"):
        list(clips.associate("flow", by=by))
    got = both(
        clips.associate("flow", by=by, missing="none", fields=["flow.txt"]), "txt", "flow.txt"
    )
    for key, (text, moved) in got.items():
        is_there = key not in ("000000003", "000020006")
        assert text.decode() == f"clips {key}"
        assert moved == (f"flow {key}".encode() if is_there else None)
    assert set(got) == set(ALL)
    # Whatever the order, and from any process.
    mixed = clips.shuffle(20).associate(reelmill.load("flow", world.store), by=by, missing="skip")
    assert len(list(pickle.loads(pickle.dumps(mixed)))) == len(ALL) - 2


def test_samples_that_were_shuffled_are_found_by_key_only(world: World) -> None:
    clips = reelmill.load("clips", world.store)
    got = both(clips.associate(opened(world, "shuffled")), "mixed.txt")
    assert got == {key: [f"shuffled {key}".encode()] for key in ALL}
    with pytest.raises(LoadError, match="nothing of its key"):
        list(clips.associate("shuffled", by="shard"))
    # And the other way round.
    got = both(reelmill.load("shuffled", world.store).associate("clips"), "txt")
    assert got == {key: [f"clips {key}".encode()] for key in ALL}


def test_what_derives_from_a_sample_finds_it(world: World) -> None:
    triplets = reelmill.load("triplets", world.store)
    for by in ("key", "shard"):
        got = both(triplets.associate("clips", by=by), "txt")
        assert got == {f"{key}_000{n}": [f"clips {key}".encode()] for key in ALL for n in (1, 5)}


def test_plain_webdataset_can_join_too(world: World) -> None:
    clips, other = opened(world, "clips"), opened(world, "shuffled")
    add = Associate(other, prefix="m.")
    got = both(wds.WebDataset(clips.urls(), shardshuffle=False).map(add), "m.mixed.txt")
    assert got == {key: [f"shuffled {key}".encode()] for key in ALL}
    skipping = Associate(opened(world, "flow"), missing="skip")
    assert len(list(wds.WebDataset(clips.urls(), shardshuffle=False).map(skipping))) == 19


def test_one_field_is_never_put_over_another(world: World) -> None:
    clips = reelmill.load("clips", world.store)
    with pytest.raises(LoadError, match="has txt already"):
        list(clips.associate("clips"))
    assert both(clips.associate("clips", prefix="again."), "txt", "again.txt") == {
        key: [f"clips {key}".encode()] * 2 for key in ALL
    }


def test_what_was_removed_is_not_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    first, *rest = keys(0, 3)
    grown(world, "clips", "txt", [[first, *rest]])
    world.grow("other", {}, {key: {"o.txt": b"x"} for key in (first, *rest)})
    blob = world.store.put_blob(removed.encode({first: Removed(GONE, "")}), "parquet")
    world.remove("other", blob)
    world.commit("other")
    got = reelmill.load("clips", world.store).associate("other", missing="skip")
    assert set(both(got)) == set(rest)


def test_who_goes_through_a_store_reads_ahead_in_the_other(
    s3_url: str, s3_faults: Faults, tmp_path: Path
) -> None:
    world = World(tmp_path, s3_url)
    grown(world, "clips", "txt", [keys(0, 40)])
    grown(world, "flow", "flow.txt", [keys(0, 40)])
    clips = reelmill.load("clips", world.store)
    s3_faults.clear()
    got = both(clips.associate("flow"), "flow.txt")
    assert got == {key: [f"flow {key}".encode()] for key in keys(0, 40)}
    # 1, 2, 4, … samples by one request each, and those of the clips by one.
    assert s3_faults.count("GET", r"\.tar$") == 1 + 6


def test_a_version_of_another_machine_is_read_through_a_cache(
    s3_url: str, s3_faults: Faults, tmp_path: Path
) -> None:
    world = World(tmp_path, s3_url)
    grown(world, "clips", "txt", [keys(shard, 5) for shard in range(2)])
    cache = ShardCache(tmp_path / "cache")
    for wanted in (2, 0):
        s3_faults.clear()
        got = both(reelmill.load("clips", world.store, cache=cache), "txt")
        assert len(got) == 10
        assert s3_faults.count("GET", r"\.tar$") == wanted
    # As addresses they are kept, too.
    for wanted in (2, 0):
        s3_faults.clear()
        urls = opened(world, "clips").urls()
        assert both(reelmill.load(urls, cache=tmp_path / "other"), "txt") == got
        assert s3_faults.count("GET", r"\.tar$") == wanted


def test_workers_that_are_forked_read_other_machines_too(s3_url: str, tmp_path: Path) -> None:
    world = World(tmp_path, s3_url)
    for name, field in (("clips", "txt"), ("flow", "flow.txt")):
        grown(world, name, field, [keys(shard, 3) for shard in range(2)])
    urls = opened(world, "clips").urls()
    assert len(both(reelmill.load(urls))) == 6
    kept = reelmill.load("clips", world.store, cache=tmp_path / "cache").associate("flow")
    for dataset in (reelmill.load(urls), kept):
        assert len(both(dataset.loader(num_workers=2))) == 6


def test_addresses_are_opened_by_whoever_is_given(world: World) -> None:
    urls = opened(world, "clips").urls()
    mine = [f"mine://{url}" for url in urls]

    def opened_by_me(url: str) -> BinaryIO:
        return open(url.removeprefix("mine://"), "rb")

    for opener in ({"mine": opened_by_me}, opened_by_me):
        assert set(both(reelmill.load(mine, opener=opener))) == set(ALL)
    with pytest.raises(LoadError, match="not allowed"):
        list(reelmill.load([f"pipe:cat {urls[0]}"]))
    whole = Path(urls[0]).read_bytes()
    torn = world.folder / "torn.tar"
    torn.write_bytes(whole[:3072])
    with pytest.raises(LoadError, match=r"torn.tar: .* breaks off after 3,072 bytes"):
        list(reelmill.load([str(torn)]))


def test_fields_are_selected_and_decoded(world: World) -> None:
    clips = reelmill.load("clips", world.store)
    got = list(clips.select("left.txt;txt").decode().to_tuple("__key__", "txt"))
    assert got == [(key, f"clips {key}") for key, _ in got]
    with pytest.raises(LoadError, match="has no field jpg; its fields: txt"):
        list(clips.select("jpg"))
    assert list(clips.to_tuple("jpg", missing="skip")) == []
    assert len(list(clips.select(lambda one: one["__key__"].endswith("3")))) == SHARDS


def test_frames_of_a_shard_are_assembled(tmp_path: Path) -> None:
    world = World(tmp_path)
    pictures = [np.full((54, 96, 3), 9 * n, np.uint8) for n in range(3)]
    cells = {f"{n:06d}.image.jpg": encode_jpeg(one) for n, one in enumerate(pictures)}
    flow = encode_kitti(np.ones((54, 96, 2), np.float32))
    cells |= {f"{n:06d}.flow.png": flow for n in range(2)}
    world.grow("flow", {}, dict.fromkeys(keys(0, 4), cells))
    world.commit("flow")
    whole = Assembler({"images": "{frame}.image.jpg"}, pairs={"flow": "{frame}.flow.png"})
    cells = reelmill.load("flow", world.store).decode("rgb8")
    (batch,) = cells.map(whole).loader(4)
    assert batch["images"].shape == (4, 3, 54, 96, 3)
    assert (batch["flow"].flow.shape, batch["flow"].valid.all()) == ((4, 2, 2, 54, 96), True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make_video(path, 20)
    return path.read_bytes()


def numbers(frames: Any) -> list[int]:
    """The numbers that are burnt into frames (T, C, H, W)."""
    return [number_of(frame.float().mean(0).byte().numpy()) for frame in frames]


def test_a_video_becomes_a_reader_or_frames_of_it(film: bytes) -> None:
    sample = {"__key__": "a", "mp4": film, "mp4.json": b"{}"}
    reader = decoder("video").sample(sample)["mp4"]
    assert isinstance(reader, VideoReader)
    assert numbers(reader.read_frames([3, 1])) == [3, 1]
    reader.close()
    wanted: list[tuple[Any, list[int]]] = [
        (video(4), [0, 1, 2, 3]),
        (video(3, every=5, start=2), [2, 7, 12]),
        (video(every=6), [0, 6, 12, 18]),
        (video([5, 5, -1], backend="pyav", mode="stream"), [5, 5, 19]),
        (video(slice(4, 8, 2)), [4, 6]),
    ]
    for spec, expected in wanted:
        got = decoder(spec).sample(sample)
        assert got["mp4.json"] == {}
        assert got["mp4"].dtype == torch.uint8
        assert numbers(got["mp4"]) == expected
    channels_last = decoder(video(2, output_format="THWC")).sample(sample)["mp4"]
    assert channels_last.shape[-1] == 3
    with pytest.raises(LoadError, match=r"sample a: field mp4: .*need 33; it has 20"):
        decoder(video(9, every=4)).sample(sample)
    with pytest.raises(LoadError, match="field mp4: "):
        decoder(video(2)).sample({"__key__": "a", "mp4": film[:100]})


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"every": 0}, {"start": -1}, {"frames": [1], "every": 2}]
)
def test_a_wrong_choice_of_frames_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        video(**wrong)


def test_whole_videos_come_as_torchvision_gave_them(world: World, film: bytes) -> None:
    found = torch_video(".mp4", film)
    assert found is not None
    assert numbers(found.video.permute(0, 3, 1, 2)) == list(range(20))
    assert found.audio.shape == (1, 0)
    assert torch_video(".json", b"{}") is None


def test_with_sound(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 30, audio="aac")
    found = torch_video("mp4", (tmp_path / "a.mp4").read_bytes())
    assert found is not None
    assert len(found.video) == 30
    assert found.audio.dtype == torch.float32
    seconds = found.audio.shape[1] / found.info["audio_fps"]
    assert seconds == pytest.approx(len(found.video) / found.info["video_fps"], abs=0.1)
    assert 0 < found.audio.abs().max() <= 1


def test_plain_webdataset_decodes_videos_by_our_readers(film: bytes, tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "a", "mp4": film, "txt": b"x"})
    plain = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    (got,) = plain.decode(video(3))
    assert (numbers(got["mp4"]), got["txt"]) == ([0, 1, 2], "x")
    (got,) = plain.decode(torch_video)
    assert got["mp4"][0].shape[0] == 20


def test_what_a_store_lacks_is_told(world: World) -> None:
    clips = reelmill.load("clips", world.store)
    with pytest.raises(ReelmillError, match="absent"):
        clips.associate("absent")
    with pytest.raises(LoadError, match="say in which store"):
        reelmill.load(opened(world, "clips").urls()).associate("flow")
    with pytest.raises(LoadError, match="no sample can be looked up"):
        clips.associate(reelmill.load(opened(world, "clips").urls()))
    for wrong in ({"missing": "ignore"}, {"by": "name"}):
        with pytest.raises(ValueError, match=r"none of|neither"):
            clips.associate("flow", **wrong)
