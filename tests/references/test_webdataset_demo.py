"""WebDataset's demonstration notebook (webdataset-demo): its code, on shards that Reelmill made.

Most of it is run by plain `webdataset` and by `reelmill.load`, whose datasets have the same
methods. The notebook's shards are of ImageNet; those here have the same names of fields, sizes of
pictures and numbers of samples, and were adopted by Reelmill from tars like the notebook's.
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import PIL.Image
import pytest
import webdataset as wds
from webdataset import tenbin

import reelmill
from reelmill.loading import decode_tenbin, encode_tenbin
from reelmill.media.images import encode_jpeg, encode_png
from tests.references.workshop import build, shards, torch

SIZES = [
    *((400, 500), (375, 500), (500, 333), (300, 400), (600, 448)),
    *((375, 500), (400, 523), (400, 600), (375, 500), (333, 500)),
]
"""Heights and widths of the first ten pictures that the notebook prints."""

RECIPE = """
store: ./store
sources:
  tars: {{path: "{name}-*.tar", rows_per_shard: 1}}
datasets:
  {name}: {{stage: adopt, from: tars, allow_files: true}}
"""

Members = Mapping[str, bytes]
Load = Callable[[str], Any]


@pytest.fixture(params=["webdataset", "reelmill"])
def load(request: pytest.FixtureRequest) -> Load:
    """What opens tars: with either, the code behind it is the same."""
    if request.param == "reelmill":
        return reelmill.load
    return partial(wds.WebDataset, shardshuffle=False, empty_check=False)


def tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))


def adopted(folder: Path, name: str, *tars: Members) -> str:
    """The tars as Reelmill took them over, by one pattern."""
    for number, members in enumerate(tars):
        tar(folder / f"{name}-{number:04d}.tar", members)
    return shards(build(folder, RECIPE.format(name=name)), name, folder / "view")


def photo(height: int, width: int) -> np.ndarray:
    """RGB (H, W, 3), of which all channels differ, and no two rows or columns are the same."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([255 * x // width, 255 * y // height, (x + y) % 256]).astype(np.uint8)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """imagenet-000000.tgz: its first sample has a picture of 600x793, and is of class 304."""
    members: dict[str, bytes] = {}
    for key, label, wnid in ((10, 304, "n04380533"), (12, 551, "n03485407")):
        members[f"{key}.cls"] = str(label).encode()
        members[f"{key}.png"] = encode_png(photo(793, 600))
        members[f"{key}.wnid"] = wnid.encode()
        members[f"{key}.xml"] = b"None"
    return adopted(tmp_path_factory.mktemp("imagenet"), "imagenet", members)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> str:
    """imagenet_train-{0000..0147}.tgz, of which four: JPEG and classes."""
    tars = []
    for shard in range(4):
        members: dict[str, bytes] = {}
        for place in range(16):
            key = f"n{shard:08d}_{place}"
            members[f"{key}.cls"] = str(16 * shard + place).encode()
            members[f"{key}.jpg"] = encode_jpeg(photo(*SIZES[place % 10]))
        tars.append(members)
    return adopted(tmp_path_factory.mktemp("train"), "train", *tars)


def in_order(samples: Iterable[Any]) -> list[Any]:
    """By key, as they lay in the tars that were adopted: in Reelmill's they are mixed."""
    return sorted(samples, key=lambda one: one["__key__"] if isinstance(one, dict) else one[0])


def fields(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if not name.startswith("__")}


# Simple dataset loading


def test_samples_are_decoded_by_their_names(load: Load, imagenet: str) -> None:
    found = in_order(load(imagenet).decode("rgb"))
    assert len(found) == 2
    sample = found[0]
    assert fields(sample).keys() == {"cls", "png", "wnid", "xml"}
    assert sample["__key__"] == "000000000_000000"
    assert sample["cls"] == 304
    assert (sample["wnid"], sample["xml"]) == (b"n04380533", b"None")
    assert sample["png"].dtype == np.float32
    assert np.array_equal(sample["png"], photo(793, 600) / np.float32(255))


def test_what_is_behind_the_first_dot_is_the_field(load: Load, tmp_path: Path) -> None:
    inside, out = photo(12, 16), photo(16, 12)
    members = {"dir/base.input.png": encode_png(inside), "dir/base.output.png": encode_png(out)}
    found = adopted(tmp_path, "pairs", members)

    (sample,) = load(str(tmp_path / "pairs-0000.tar")).decode("rgb8")
    assert sample["__key__"] == "dir/base"
    assert fields(sample).keys() == {"input.png", "output.png"}

    ((given, wanted),) = load(found).decode("rgb8").to_tuple("input.png", "output.png")
    assert np.array_equal(given, inside)
    assert np.array_equal(wanted, out)


# Field selection, decoders


def test_fields_are_selected_with_alternatives(load: Load, imagenet: str, train: str) -> None:
    dataset = load(imagenet).decode("rgb").to_tuple("__key__", "png;jpg", "cls")
    _, image, label = in_order(dataset)[0]
    assert (image.shape, image.dtype, label) == ((793, 600, 3), np.float32, 304)
    dataset = load(train).decode("rgb").to_tuple("__key__", "png;jpg", "cls")
    ten = in_order(dataset)[:10]
    assert [image.shape for _, image, _ in ten] == [(*size, 3) for size in SIZES]
    assert [label for *_, label in ten] == list(range(10))


def test_fields_are_selected_by_one_text(imagenet: str, train: str) -> None:
    for image, label in reelmill.load(imagenet).decode("rgb").to_tuple("png;jpg cls"):
        assert (image.shape, label in (304, 551)) == ((793, 600, 3), True)
    sample = next(iter(reelmill.load(train).decode("rgb").select("jpg;png cls")))
    assert fields(sample).keys() == {"jpg", "cls"}


def test_pictures_become_what_the_decoder_says(load: Load, imagenet: str) -> None:
    def first(*specs: str) -> Any:
        return next(iter(load(imagenet).decode(*specs)))["png"]

    assert (first("rgb8").shape, first("rgb8").dtype) == ((793, 600, 3), np.uint8)
    assert np.array_equal(first("rgb8"), photo(793, 600))
    image = first("pil")
    assert isinstance(image, PIL.Image.Image)
    assert (image.mode, image.size) == ("RGB", (600, 793))
    grey = first("l")
    assert (grey.shape, grey.dtype) == ((793, 600), np.float32)
    assert np.abs(255 * grey - np.asarray(image.convert("L"))).max() <= 1.01
    assert first("torchrgb").shape == torch.Size([3, 793, 600])


def test_without_a_decoder_fields_are_bytes(load: Load, imagenet: str) -> None:
    sample = in_order(load(imagenet))[0]
    assert (sample["cls"], sample["wnid"], sample["xml"]) == (b"304", b"n04380533", b"None")
    assert sample["png"].startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x02X")


# Custom decoders


def decode_jpg_and_resize(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data)).resize((128, 128))


def lengths(sample: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(value) for name, value in fields(sample).items()}


def test_a_field_has_a_decoder_of_ones_own(load: Load, train: str) -> None:
    own: Any = {"jpg": decode_jpg_and_resize}
    if load is not reelmill.load:
        own = wds.handle_extension("jpg", decode_jpg_and_resize)
    image, label = next(iter(load(train).decode(own, "rgb").to_tuple("jpg;png", "cls")))
    assert isinstance(image, PIL.Image.Image)
    assert (image.mode, image.size) == ("RGB", (128, 128))
    assert isinstance(label, int)


def test_a_function_makes_of_a_sample_what_it_likes(load: Load, train: str) -> None:
    sizes = [fields(one) for one in load(train).map(lengths)]
    assert {"jpg": len(encode_jpeg(photo(*SIZES[0]))), "cls": 1} in sizes
    assert {frozenset(one) for one in sizes} == {frozenset({"jpg", "cls"})}


# Web servers, openers


@pytest.fixture
def web(train: str) -> Iterator[str]:
    """Where the shards are on a web server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    folder = str(Path(train).parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_of_a_web_server_have_braces(web: str) -> None:
    dataset = reelmill.load(f"{web}/{{00000..00003}}.tar").decode().to_tuple("cls")
    labels = [label for (label,) in dataset]
    assert sorted(labels) == list(range(64))
    mixed = [label for (label,) in dataset.shuffle(100)]
    assert sorted(mixed) == list(range(64))
    assert mixed != labels


def test_shards_are_opened_by_a_function_of_ones_own(train: str) -> None:
    asked = []

    def opener(url: str) -> BinaryIO:
        asked.append(url)
        return (Path(train).parent / f"{url}.tar").open("rb")

    dataset = reelmill.load("{00000..00003}", opener=opener).shuffle(100).decode("rgb8")
    assert sorted(label for _, label in dataset.to_tuple("jpg;png", "cls")) == list(range(64))
    assert sorted(asked) == ["00000", "00001", "00002", "00003"]


# Associating extra data


def test_extra_data_are_associated_by_key(imagenet: str) -> None:
    words = {"000000000_000000": "dumbbell", "000000000_000001": "drumstick"}
    extra = {key: {"MY_EXTRA_DATA": word} for key, word in words.items()}
    for sample in reelmill.load(imagenet).associate(extra):
        assert fields(sample).keys() == {"cls", "png", "wnid", "xml", "MY_EXTRA_DATA"}
        assert sample["MY_EXTRA_DATA"] == words[sample["__key__"]]


def class_of(key: str) -> dict[str, str]:
    return {"cls": f"<class for {key}>"}


def test_classes_are_associated_by_a_function(train: str) -> None:
    dataset = reelmill.load(train, fields=["jpg"]).associate(class_of).decode("torchrgb")
    ten = in_order(dataset.to_tuple("__key__", "jpg;png", "cls"))[:10]
    assert [(image.shape[1:], label) for _, image, label in ten] == [
        (torch.Size(size), f"<class for 000000000_{place:06d}>") for place, size in enumerate(SIZES)
    ]


# Torch: augmentation, loaders


def preproc() -> Any:
    transforms: Any = pytest.importorskip("torchvision.transforms")
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


def less_one(label: int) -> int:
    return label - 1


def test_pictures_are_augmented_by_torchvision(load: Load, train: str) -> None:
    dataset = load(train).decode("pil").to_tuple("jpg;png", "cls").map_tuple(preproc(), less_one)
    image, label = next(iter(dataset))
    assert (image.dtype, image.size()) == (torch.float32, torch.Size([3, 224, 224]))
    assert -1 <= label < 63


def test_torchs_loader_has_four_workers(load: Load, train: str) -> None:
    dataset = load(train).decode("pil").to_tuple("jpg;png", "cls").map_tuple(preproc(), less_one)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=4)
    labels: list[int] = []
    for xs, ys in loader:
        assert xs.size() == torch.Size([16, 3, 224, 224])
        assert ys.size() == torch.Size([16])
        labels += ys.tolist()
    assert sorted(labels) == list(range(-1, 63))


def test_workers_share_a_shard_and_it_is_said(imagenet: str) -> None:
    dataset = reelmill.load(imagenet).decode().to_tuple("cls")
    with pytest.warns(UserWarning, match="has 1 shard for 4 readers"):
        loader = dataset.loader(num_workers=4)
    assert sorted(int(label) for (label,) in loader) == [304, 551]


# Binary tensors, containers


def test_tensors_come_back_as_they_were() -> None:
    a = np.random.default_rng(0).standard_normal((1733, 345))
    encoded = tenbin.encode_buffer([a])
    assert bytes(encoded).startswith(b"~TenBin~")
    assert np.array_equal(tenbin.decode_buffer(encoded)[0], a)
    assert np.array_equal(decode_tenbin(bytes(encoded))[0], a)
    assert bytes(encode_tenbin([a])) == bytes(encoded)


def test_tensors_are_fields(load: Load, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pairs = [random.standard_normal((2, 28, 28)).astype(np.float32) for _ in range(10)]
    members = {
        f"{number:06d}.ten": bytes(tenbin.encode_buffer(list(pair)))
        for number, pair in enumerate(pairs)
    }
    dataset = load(adopted(tmp_path, "tendata", members)).decode().to_tuple("__key__", "ten")
    found = in_order(dataset)
    assert len(found) == 10
    for (_, arrays), pair in zip(found, pairs, strict=True):
        xs, ys = arrays
        assert (xs.shape, ys.shape) == ((28, 28), (28, 28))
        assert np.array_equal(xs, pair[0])
        assert np.array_equal(ys, pair[1])


def test_structures_are_fields(load: Load, tmp_path: Path) -> None:
    members = {f"{n:06d}.mp": msgpack.packb({"x": n, "y": n}) for n in range(3)}
    assert len(members["000000.mp"]) == 7
    found = in_order(load(adopted(tmp_path, "mpdata", members)).decode())
    assert [one["mp"] for one in found] == [{"x": n, "y": n} for n in range(3)]
