"""Views as other libraries load them: wids, Megatron-Energon, Hugging Face's, mlcroissant."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml
from PIL import Image

from reelmill.dataset import Version, open_version, uncounted
from reelmill.errors import ReelmillError
from reelmill.flows.view import make_view
from reelmill.loading.views import Format
from reelmill.shards import removed
from reelmill.shards.removed import Removed
from reelmill.shards.writer import ShardWriter, put_shard
from reelmill.store import Store
from reelmill.store.model import Generation, Manifest, Ref
from tests.s3_server import S3Server
from tests.stages.media_samples import make_video

Fields = dict[str, bytes]

COLUMNS = pa.schema(
    [
        ("width", pa.int32()),
        ("seconds", pa.float64()),
        ("title", pa.string()),
        ("cuts", pa.list_(pa.float64())),
        ("a b/ü", pa.string()),
        ("a b ü", pa.string()),
    ]
)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def a_jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 8), (shade, shade, shade)).save(data, "JPEG")
    return data.getvalue()


def an_npy(array: np.ndarray[Any, Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = make_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=5)
    return path.read_bytes()


@pytest.fixture
def clips(tmp_path: Path, video: bytes) -> Version:
    """Two shards of three: some lack a caption, and no two have JSON of one form."""
    store = Store.open(str(tmp_path / "store"), create=True)
    return commit(store, "clips", some_clips(video))


def some_clips(video: bytes, shards: int = 2) -> list[dict[str, Fields]]:
    made = []
    for shard in range(shards):
        samples = {}
        for place in range(3):
            fields = {
                "mp4": video,
                "json": encoded({"n": place, **({"odd": [{"a": 1.5}]} if place else {})}),
                "000000.image.jpg": a_jpeg(place),
                "000001.image.jpg": a_jpeg(100 + place),
                "npy": an_npy(np.full((2, 3 + place), place / 2, np.float16)),
            }
            if place:
                fields["txt"] = b"caption %d" % place
            samples[f"{shard:05d}{place:04d}_000"] = fields
        made.append(samples)
    return made


def commit(
    store: Store,
    name: str,
    shards: Sequence[Mapping[str, Fields]],
    gone: Sequence[str] = (),
    order: Any = "hash",
) -> Version:
    """A version of these samples, without those that derive from rows that are gone."""
    made, fields = [], set()
    for number, samples in enumerate(shards):
        writer = ShardWriter(store.backend.scratch(), COLUMNS, order)
        for place, (key, one) in enumerate(samples.items()):
            row = {"width": 16 + place, "seconds": place / 4, "title": f"№ {place}", "cuts": [0.5]}
            row |= {"a b/ü": "slash", "a b ü": "blank"}
            writer.add(key, one, row if place else {**row, "width": None})
            fields |= set(one)
        writer.reject(f"{number:05d}0009", "http_404", "not there", {})
        made.append(put_shard(store, writer.close()).shard(f"{number:05d}"))
    blobs = ()
    if gone:
        rows = removed.encode({key: Removed("gone") for key in gone})
        blobs = (store.put_blob(rows, "parquet"),)
    manifest = Manifest(
        fields=tuple(sorted(fields)), generations=(Generation(shards=tuple(made)),), removed=blobs
    )
    ref = Ref(
        event="commit",
        version=store.put_manifest(manifest),
        tags=("latest",),
        time="2026-01-01T00:00:00+00:00",
        run="test",
        stage="split",
        totals=manifest.totals(),
        uncounted=uncounted(manifest, lambda digest: store.read_blob(digest, "parquet")),
    )
    store.commit_ref(name, ref)
    return open_version(store, name)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expected(version: Version) -> dict[str, Fields]:
    return {sample.key: sample.fields for sample in version.samples()}


@pytest.fixture
def wids_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids-cache"))
    return tmp_path / "wids-cache"


# wids


def read_wids(folder: Path, **how: Any) -> dict[str, Fields]:
    wids = pytest.importorskip("wids")
    dataset = wids.ShardListDataset(str(folder / "index.json"), transformations=[], **how)
    # From the last to the first, and each twice: by number and not as they come.
    numbers = [*reversed(range(len(dataset))), *range(len(dataset))]
    found: dict[str, Fields] = {}
    for number in numbers:
        sample = dataset[number]
        key = sample["__key__"]
        fields = {n[1:]: d.read() for n, d in sample.items() if n.startswith(".")}
        assert found.setdefault(key, fields) == fields
    assert len(found) == len(dataset)
    dataset.close()
    return found


def test_wids_reads_each_sample_by_number_with_and_without_copies(
    clips: Version, tmp_path: Path, wids_cache: Path
) -> None:
    before = files(tmp_path / "store")
    make_view(clips, tmp_path / "view", formats=[Format.WIDS], link=True)
    folder = tmp_path / "view"
    tars = folder / f"clips-{clips.ref.short}"
    assert read_wids(folder) == expected(clips)
    assert len(list(wids_cache.iterdir())) == 2
    assert read_wids(folder, cache_dir=str(tars)) == expected(clips)
    assert sorted(path.name for path in tars.iterdir()) == ["00000.tar", "00001.tar"]
    assert files(tmp_path / "store") == before


def test_wids_keeps_two_views_apart_that_have_one_relative_path(
    clips: Version, tmp_path: Path, wids_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wids = pytest.importorskip("wids")
    other = commit(clips.store, "clips", [{"000000000": {"txt": b"other"}}])
    for name, version in (("one", clips), ("two", other)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        make_view(version, Path("view"), formats=[Format.WIDS])
        dataset = wids.ShardListDataset("view/index.json", transformations=[])
        assert {sample["__key__"] for sample in dataset} == set(expected(version))


# Megatron-Energon


def energon_samples(
    folder: Path, part: str = "train", *, training: int | None = None, **how: Any
) -> list[Any]:
    """What its loader yields of one epoch of a split, or first of all epochs of a training."""
    energon = pytest.importorskip("megatron.energon")

    @energon.stateless
    def plain(sample: Any) -> dict[str, Any]:
        return dict(sample)

    class Plain(energon.DefaultTaskEncoder):  # type: ignore[name-defined, misc]
        cookers = (energon.Cooker(plain),)

        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    open_split: Any = energon.get_val_dataset
    if training:
        open_split = energon.get_train_dataset
        how |= {"shuffle_buffer_size": None, "max_samples_per_sequence": None}
    dataset = open_split(
        str(folder),
        split_part=part,
        worker_config=config,
        batch_size=1,
        task_encoder=Plain(),
        **how,
    )
    batches = energon.get_loader(dataset)
    return [sample for batch in islice(batches, training) for sample in batch]


def test_energon_yields_crude_samples_of_a_view(clips: Version, tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon")
    before = files(tmp_path / "store")
    folder = tmp_path / "view"
    make_view(clips, folder, formats=[Format.ENERGON], link=True)
    found = {sample["__key__"]: sample for sample in energon_samples(folder)}
    wanted = expected(clips)
    assert set(found) == set(wanted)
    for key, fields in wanted.items():
        assert found[key]["json"] == json.loads(fields["json"])
        assert found[key]["000001.image.jpg"].shape == (3, 8, 16)
        assert found[key].get("txt", "").encode() == fields.get("txt", b"")
    epoch = [sample["__key__"] for sample in energon_samples(folder, training=6)]
    assert sorted(epoch) == sorted(wanted), "each once"
    assert sorted(path.name for path in (folder / ".nv-meta").iterdir()) == [
        ".info.json",
        "dataset.yaml",
        "index.sqlite",
        "index.uuid",
        "split.yaml",
    ]
    assert files(tmp_path / "store") == before


def test_energons_files_hold_what_its_own_preparation_writes(
    clips: Version, tmp_path: Path
) -> None:
    energon = pytest.importorskip("megatron.energon.flavors.webdataset.prepare")
    folder, prepared = tmp_path / "view", tmp_path / "prepared"
    make_view(clips, folder, formats=[Format.ENERGON])
    tars = sorted(folder.rglob("*.tar"))
    for tar in tars:
        copy = prepared / tar.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tar, copy)
    names = [str(tar.relative_to(folder)) for tar in tars]
    parts = [("train", 1.0), ("val", 0.0), ("test", 0.0)]
    energon.WebdatasetPreparator.prepare_dataset(
        prepared, names, split_parts_ratio=parts, shuffle_seed=None, workers=1
    )
    for tar in tars:
        index = tar.relative_to(folder).with_suffix(".tar.idx")
        assert (folder / index).read_bytes() == (prepared / index).read_bytes()
    assert tables(folder) == tables(prepared)
    ours, theirs = (
        json.loads((place / ".nv-meta/.info.json").read_text()) for place in (folder, prepared)
    )
    assert ours["shard_counts"] == theirs["shard_counts"]
    ours, theirs = (
        yaml.safe_load((place / ".nv-meta/split.yaml").read_text()) for place in (folder, prepared)
    )
    assert ours == theirs


def tables(folder: Path) -> tuple[list[Any], list[Any], list[Any]]:
    import sqlite3

    with sqlite3.connect(folder / ".nv-meta/index.sqlite") as index:
        schema = index.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        return (
            [(name, sql and "".join(sql.split())) for name, sql in schema],
            index.execute("SELECT * FROM samples ORDER BY rowid").fetchall(),
            index.execute("SELECT * FROM sample_parts ORDER BY rowid").fetchall(),
        )


def test_energon_gets_a_type_where_all_samples_fit_it(tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon")
    store = Store.open(str(tmp_path / "store"), create=True)
    pictures = commit(
        store,
        "pictures",
        [{f"00000000{n}": {"jpg": a_jpeg(n), "txt": b"no. %d" % n} for n in range(3)}],
    )
    folder = tmp_path / "view"
    make_view(pictures, folder, formats=[Format.ENERGON])
    samples = energon_samples(folder, dataset_config="captioning.yaml")
    assert sorted(sample.caption for sample in samples) == ["no. 0", "no. 1", "no. 2"]
    assert {sample.image.shape for sample in samples} == {(3, 8, 16)}
    (image,) = energon_samples(folder, dataset_config="image.yaml")[:1]
    assert image.image.shape == (3, 8, 16)
    from click.testing import CliRunner
    from megatron.energon.cli.main import main

    for command in ("lint", "info"):
        how = [command, str(folder), "--dataset-config", "captioning.yaml"]
        done = CliRunner().invoke(main, how)
        assert done.exit_code == 0, done.output
    assert "3 samples" in done.output


def test_energon_reads_each_split_from_its_own_tars(tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon")
    train, val = two_splits(tmp_path)
    folder = tmp_path / "view"
    make_view(train, folder, formats=[Format.ENERGON], others={"validation": val})
    assert {s["__key__"] for s in energon_samples(folder)} == set(expected(train))
    assert {s["__key__"] for s in energon_samples(folder, "val")} == set(expected(val))


def test_energon_is_not_given_two_samples_of_one_key(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    one = commit(store, "one", [{"000000000": {"txt": b"a"}}])
    two = commit(store, "two", [{"000000000": {"txt": b"b"}}])
    with pytest.raises(ReelmillError, match="has a key that another sample has"):
        make_view(one, tmp_path / "view", formats=[Format.ENERGON], others={"test": two})


def two_splits(folder: Path) -> tuple[Version, Version]:
    store = Store.open(str(folder / "store"), create=True)
    train = commit(
        store, "train", [{f"0000{s}000{n}": {"txt": b"t"} for n in range(2)} for s in (0, 1)]
    )
    val = commit(store, "held_out", [{"000050000": {"txt": b"v"}}])
    return train, val


# Hugging Face


def test_hugging_face_loads_a_view_streaming_and_not(clips: Version, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    before = files(tmp_path / "store")
    make_view(clips, tmp_path / "view", formats=[Format.HF], link=True)
    whole = datasets.load_dataset(
        str(tmp_path / "view"), cache_dir=str(tmp_path / "hf"), split="train"
    )
    stream = datasets.load_dataset(
        str(tmp_path / "view"), cache_dir=str(tmp_path / "hf"), split="train", streaming=True
    )
    wanted = expected(clips)
    assert len(whole) == 6
    assert isinstance(whole.features["mp4"], datasets.Video)
    for dataset in (whole, stream):
        # Decoding is the library's own affair, and needs TorchCodec for video.
        plain = dataset.cast_column("mp4", datasets.Video(decode=False))
        found = {one["__key__"]: one for one in plain}
        assert set(found) == set(wanted)
        for key, fields in wanted.items():
            one = found[key]
            assert one["mp4"]["bytes"] == fields["mp4"]
            assert one["json"] == json.loads(fields["json"])
            assert one["txt"] == (fields["txt"].decode() if "txt" in fields else None)
            assert one["000001.image.jpg"].size == (16, 8)
            assert np.array_equal(one["npy"], np.load(io.BytesIO(fields["npy"])))
    assert files(tmp_path / "store") == before


def test_hugging_face_decodes_the_video_of_a_view(clips: Version, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    make_view(clips, tmp_path / "view", formats=[Format.HF])
    stream = datasets.load_dataset(
        str(tmp_path / "view"), cache_dir=str(tmp_path / "hf"), split="train", streaming=True
    )
    assert len(next(iter(stream))["mp4"]) == 5


def test_a_card_tells_counts_fields_and_lineage(clips: Version, tmp_path: Path) -> None:
    make_view(clips, tmp_path / "view", formats=[Format.HF])
    _, front, card = (tmp_path / "view/README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["size_categories"] == ["n<1K"]
    assert {"webdataset", "video", "image"} <= set(told["tags"])
    (split,) = told["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", 6)
    assert f"| train | `{clips}` | 6 | 2 |" in card
    assert "- `mp4`: video" in card
    assert f"    {clips} = split()" in card


@pytest.mark.parametrize(
    ("samples", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (5_000_000, "1M<n<10M"),
        (10**11, "100B<n<1T"),
        (10**13, "n>1T"),
    ],
)
def test_the_hubs_names_of_sizes(samples: int, category: str) -> None:
    from reelmill.loading.views.hub import _size_category

    assert _size_category(samples) == category


def test_hugging_face_loads_arrays_and_other_bytes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    packed = io.BytesIO()
    np.savez(packed, flow=np.ones((2, 2), np.float32), seen=np.ones(2, bool))
    store = Store.open(str(tmp_path / "store"), create=True)
    fields = {"npz": packed.getvalue(), "cls": b"7", "flo": b"\x00\xff", "npy": an_npy(np.int64(5))}
    version = commit(store, "odd", [{"000000000": fields}])
    make_view(version, tmp_path / "view", formats=[Format.HF])
    (one,) = datasets.load_dataset(str(tmp_path / "view"), cache_dir=str(tmp_path / "hf"))["train"]
    assert one["npz"] == {"flow": [[1, 1], [1, 1]], "seen": [True, True]}
    assert (one["cls"], one["flo"], one["npy"]) == (7, b"\x00\xff", 5)


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    for field in ("depth.npy", "npz"):
        version = commit(store, "odd", [{"000000000": {field: b"no array"}}])
        with pytest.raises(ReelmillError, match=f"field {field}: damaged"):
            make_view(version, tmp_path / field, formats=[Format.HF])


def test_hugging_face_tells_splits_apart(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train, val = two_splits(tmp_path)
    make_view(train, tmp_path / "view", formats=[Format.HF], others={"validation": val})
    found = datasets.load_dataset(str(tmp_path / "view"), cache_dir=str(tmp_path / "hf"))
    assert {name: set(split["__key__"]) for name, split in found.items()} == {
        "train": set(expected(train)),
        "validation": set(expected(val)),
    }


# Croissant


@pytest.fixture(scope="module")
def croissant_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all views, as people have; the library is told of it when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROISSANT_CACHE", str(tmp_path_factory.mktemp("croissant")))
        pytest.importorskip("mlcroissant")
        yield


def read_croissant(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each set, by the short names of their fields."""
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    return {
        one.uuid: [
            {name.rpartition("/")[2]: value for name, value in record.items()}
            for record in dataset.records(one.uuid)
        ]
        for one in dataset.metadata.record_sets
    }


def members(version: Version, extension: str) -> list[tuple[bytes, bytes, bytes]]:
    return sorted(
        (key.encode(), name.encode(), data)
        for key, fields in expected(version).items()
        for name, data in fields.items()
        if name.endswith(f".{extension}") or name == extension
    )


@pytest.mark.usefixtures("croissant_cache")
def test_mlcroissant_yields_all_members_and_the_index(clips: Version, tmp_path: Path) -> None:
    before = files(tmp_path / "store")
    make_view(clips, tmp_path / "view", formats=[Format.CROISSANT], link=True)
    found = read_croissant(tmp_path / "view")
    assert set(found) == {"mp4", "json", "jpg", "npy", "txt", "samples.parquet"}
    for extension in ("mp4", "json", "npy", "txt"):
        records = [(one["key"], one["field"], one["content"]) for one in found[extension]]
        assert sorted(records) == members(clips, extension)
    pictures = sorted((one["key"], one["field"], one["content"].size) for one in found["jpg"])
    assert pictures == [(key, name, (16, 8)) for key, name, _ in members(clips, "jpg")]
    rows = {one["key"]: one for one in found["samples.parquet"]}
    assert set(rows) == {key.encode() for key in expected(clips)}
    for sample in clips.samples():
        row = rows[sample.key.encode()]
        assert (row["width"], row["seconds"]) == (
            sample.columns["width"],
            sample.columns["seconds"],
        )
        assert row["title"].decode() == sample.columns["title"]
        assert (row["a_b__"], row["a_b___2"]) == (b"slash", b"blank"), "names fit to be part of one"
        assert (tmp_path / "view" / row["__url__"].decode()).exists()
    assert files(tmp_path / "store") == before


@pytest.mark.usefixtures("croissant_cache")
def test_mlcroissant_keeps_two_views_apart(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    for text in (b"one", b"two"):
        version = commit(store, "texts", [{"000000000": {"txt": text}}])
        folder = tmp_path / text.decode()
        make_view(version, folder, formats=[Format.CROISSANT])
        (record,) = read_croissant(folder)["txt"]
        assert record["content"] == text


def test_croissant_names_each_tar_with_its_digest_and_size(clips: Version, tmp_path: Path) -> None:
    make_view(clips, tmp_path / "view", formats=[Format.CROISSANT])
    told = json.loads((tmp_path / "view/croissant.json").read_text(encoding="utf-8"))
    objects = {
        one["@id"]: (one["sha256"], one["contentSize"])
        for one in told["distribution"]
        if one["encodingFormat"] == "application/x-tar"
    }
    assert list(objects.values()) == [
        (shard.tar.digest, f"{shard.tar.size} B") for shard in clips.manifest.shards if shard.tar
    ]
    table = pq.read_table(tmp_path / "view" / f"clips-{clips.ref.short}" / "samples.parquet")
    assert table.column_names == ["key", "__url__", *COLUMNS.names]


@pytest.mark.usefixtures("croissant_cache")
def test_mlcroissant_refuses_a_tar_that_is_another(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    version = commit(store, "texts", [{"000000000": {"txt": b"refused"}}])
    make_view(version, tmp_path / "view", formats=[Format.CROISSANT])
    (tar,) = (tmp_path / "view").rglob("*.tar")
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes().replace(b"refused", b"changed"))
    # What it raises names the operation; the difference is the cause.
    with pytest.raises(Exception, match="Download") as error:
        read_croissant(tmp_path / "view")
    assert "not identical with the reference" in str(error.value.__cause__)


@pytest.mark.usefixtures("croissant_cache")
def test_mlcroissant_reads_splits_as_record_sets_of_their_own(tmp_path: Path) -> None:
    train, val = two_splits(tmp_path)
    make_view(train, tmp_path / "view", formats=[Format.CROISSANT], others={"test": val})
    found = read_croissant(tmp_path / "view")
    assert {one["key"].decode() for one in found["train/txt"]} == set(expected(train))
    assert {one["key"].decode() for one in found["test/txt"]} == set(expected(val))


# All of them


def test_equal_versions_give_equal_files(clips: Version, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_view(clips, tmp_path / name, formats=list(Format))
    found = files(tmp_path / "one")
    assert found == files(tmp_path / "two")
    # A reader of tars in wids unpickles a file of such a name.
    assert not [name for name in found if name.endswith(".index")]


@pytest.mark.parametrize("order", ["hash", "key"])
@pytest.mark.usefixtures("croissant_cache")
def test_all_files_count_what_is_left_where_samples_were_removed(
    tmp_path: Path, video: bytes, wids_cache: Path, order: str
) -> None:
    datasets = pytest.importorskip("datasets")
    store = Store.open(str(tmp_path / "store"), create=True)
    samples = some_clips(video, shards=3)
    gone = ["000000001", *(key.partition("_")[0] for key in samples[1])]
    version = commit(store, "clips", samples, gone, order)
    before = files(tmp_path / "store")
    folder = tmp_path / "view"
    make_view(version, folder, formats=list(Format), link=True)
    wanted = expected(version)
    assert len(wanted) == 5
    pattern = f"{folder}/clips-{version.ref.short}/{{00000..00001}}.tar"
    plain = [one["__key__"] for one in wds.WebDataset(pattern, shardshuffle=False)]
    assert plain == list(wanted), "in the order of the version"
    assert read_wids(folder) == wanted
    assert len(energon_samples(folder)) == 5
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "hf"), split="train")
    assert set(loaded["__key__"]) == set(wanted)
    found = read_croissant(folder)
    assert {one["key"].decode() for one in found["mp4"]} == set(wanted)
    rows = {one["key"].decode(): one["width"] for one in found["samples.parquet"]}
    assert rows == {sample.key: sample.columns["width"] for sample in version.samples()}
    assert files(tmp_path / "store") == before


@pytest.mark.usefixtures("croissant_cache")
def test_a_version_on_s3_is_laid_out_or_named_by_addresses(
    s3_url: str, s3_server: S3Server, tmp_path: Path, video: bytes, wids_cache: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    store = Store.open(s3_url, create=True)
    version = commit(store, "clips", some_clips(video))
    wanted = expected(version)
    make_view(version, tmp_path / "view", formats=list(Format))
    assert read_wids(tmp_path / "view") == wanted
    assert len(energon_samples(tmp_path / "view")) == 6
    bucket = s3_url.split("/")[2]
    policy = {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{bucket}/*",
        },
    }
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    s3.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))
    base = f"{s3_server.endpoint}/{s3_url.removeprefix('s3://')}"
    folder = tmp_path / "addresses"
    formats = [Format.WIDS, Format.HF, Format.CROISSANT]
    make_view(version, folder, formats=formats, base=base)
    assert not list(folder.rglob("*.tar"))
    assert read_wids(folder) == wanted
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "hf"), split="train")
    assert set(loaded["__key__"]) == set(wanted)
    found = read_croissant(folder)
    assert {one["key"].decode() for one in found["mp4"]} == set(wanted)


def test_what_no_library_could_load_is_refused(clips: Version, tmp_path: Path) -> None:
    other = commit(clips.store, "other", [{"000000000": {"txt": b"other"}}])
    less = commit(
        clips.store,
        "less",
        [{"000000000": {"txt": b"a"}, "000000001": {"txt": b"b"}}],
        ["000000001"],
    )
    view: Callable[..., Any] = make_view
    folder = tmp_path / "view"
    for version, how, message in (
        (clips, {"others": {"test": other}}, "--for"),
        (
            clips,
            {"others": {"train": other}, "formats": [Format.HF]},
            "give the other another name",
        ),
        (clips, {"others": {"Test": other}, "formats": [Format.HF]}, "cannot be a split"),
        (clips, {"others": {"test": clips}, "formats": [Format.HF]}, "are the same version"),
        (clips, {"base": "https://host"}, "--for"),
        (clips, {"base": "s3://bucket/store", "formats": [Format.HF]}, "begins with http"),
        (clips, {"base": "http://host/'; ls'", "formats": [Format.WIDS]}, "begins with http"),
        (clips, {"base": "https://host", "formats": [Format.ENERGON]}, "no addresses"),
        (less, {"base": "https://host", "formats": [Format.WIDS]}, "that were removed"),
    ):
        with pytest.raises(ReelmillError, match=message):
            view(version, folder, **how)
        assert not folder.exists()


def test_the_command_says_how_each_library_opens_the_view(clips: Version, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from reelmill.flows.cli import app

    other = commit(clips.store, "held_out", [{"000050000": {"txt": b"other"}}])
    where = ["--store", clips.store.url, "--split", f"test={other}"]
    kinds = [word for kind in Format for word in ("--for", kind.value)]
    done = CliRunner().invoke(app, ["view", "clips", str(tmp_path / "view"), *kinds, *where])
    assert done.exit_code == 0, done.output
    for said in (
        "{00000..00001}.tar",
        "ShardListDataset",
        "get_train_dataset",
        "load_dataset",
        "mlcroissant",
    ):
        assert said in done.output
    assert (tmp_path / "view/index-test.json").exists()
    wrong = CliRunner().invoke(
        app, ["view", "clips", str(tmp_path / "no"), "--split", "test", *where]
    )
    assert "give a name and a dataset" in str(wrong.exception)
