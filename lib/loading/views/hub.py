"""``README.md`` of a dataset on the Hugging Face Hub: what its library loads, and a card to read.

The features of all fields are told, so that samples may lack some, and JSON differ from one to the
next; without them the library goes by the first five samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml

from reelmill.errors import ReelmillError, Rejected, one_line
from reelmill.loading.views.arrays import Header, npy_header, npz_headers
from reelmill.loading.views.kinds import Kind, kind_of
from reelmill.loading.views.tars import Tar, View
from reelmill.units import format_bytes

_SIZES: Final = [*(f"{10**power}{unit}" for unit in "KMB" for power in range(3)), "1T"]
"""The Hub's bounds of how many samples there are: powers of ten from a thousand on."""

_FEATURES: Final[dict[Kind, str]] = {
    "video": "video",
    "image": "image",
    "audio": "audio",
    "json": "json",
    "text": "string",
    "integer": "int64",
    "bytes": "binary",
}

_TYPES: Final = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)

_PACKED: Final = frozenset(["bz2", "gz", "lz4", "xz", "zst"])
"""Extensions that the library unpacks before it goes by the one before."""

_UNTOLD: Final = frozenset(["cbor", "pth", "tb", "ten"])
"""What the library decodes to something that no name tells."""

_JSON_LIKE: Final = frozenset(["mp", "msg"])


class HubWriter:
    """Writes ``README.md``."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._tars: dict[str, list[str]] = {split.name: [] for split in view.splits}
        self._samples = dict.fromkeys(self._tars, 0)
        self._bytes = dict.fromkeys(self._tars, 0)
        fields = {field for split in view.splits for field in split.version.manifest.fields}
        self._features: dict[str, dict[str, Any] | None] = {
            field: _feature(field) for field in sorted(fields)
        }

    def add(self, tar: Tar) -> None:
        """Take a tar in.

        Raises:
            ReelmillError: a field that should hold an array holds none.
        """
        name = tar.split.name
        self._tars[name].append(tar.path)
        self._samples[name] += tar.samples
        self._bytes[name] += tar.blob.size
        unknown = [field for field, feature in self._features.items() if feature is None]
        for field in unknown:
            if kind_of(field) in ("array", "arrays") and (data := tar.read_field(field)):
                self._features[field] = _array_feature(field, data)

    def close(self) -> str:
        """Finish the file; returns the Python expression that opens the view."""
        front = yaml.safe_dump(self._front(), sort_keys=False, allow_unicode=True, width=100)
        text = f"---\n{front}---\n\n{chr(10).join(self._card())}\n"
        (self._view.folder / "README.md").write_text(text, encoding="utf-8")
        return f"datasets.load_dataset({str(self._view.folder)!r})"

    def _front(self) -> dict[str, Any]:
        total = sum(self._samples.values())
        kinds = {kind_of(field) for field in self._features}
        about: dict[str, Any] = {}
        if all(feature is not None for feature in self._features.values()):
            keys = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
            fields = [{"name": name, **(told or {})} for name, told in self._features.items()]
            about["features"] = [*fields, *keys]
        about["splits"] = [
            {"name": name, "num_bytes": self._bytes[name], "num_examples": count}
            for name, count in self._samples.items()
        ]
        about["download_size"] = about["dataset_size"] = sum(self._bytes.values())
        return {
            "license": "unknown",
            "pretty_name": self._view.splits[0].version.name,
            "size_categories": [_size_category(total)],
            "tags": ["webdataset", *sorted(kinds & {"video", "image", "audio"}), "reelmill"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [
                        {"split": split.name, "path": self._files(split.name, split.folder)}
                        for split in self._view.splits
                    ],
                }
            ],
            "dataset_info": about,
        }

    def _files(self, split: str, folder: str) -> str | list[str]:
        return self._tars[split] if self._view.remote else f"{folder}/*.tar"

    def _card(self) -> Iterator[str]:
        yield f"# {self._view.splits[0].version.name}"
        yield "\n| split | version | samples | tars | size |\n| --- | --- | ---: | ---: | ---: |"
        for split in self._view.splits:
            name = split.name
            size = format_bytes(self._bytes[name])
            yield (
                f"| {name} | `{split.version}` | {self._samples[name]:,} "
                f"| {len(self._tars[name]):,} | {size} |"
            )
        yield "\nThe tars are in WebDataset format: files that share a key are a sample.\n"
        yield "```python"
        if self._view.remote:
            first = self._tars[self._view.splits[0].name][0]
            yield f"webdataset.WebDataset({first!r})"
        else:
            yield 'datasets.load_dataset("path/to/this/folder")'
        yield "```"
        yield "\n## Fields\n"
        yield from (f"- `{field}`: {kind_of(field)}" for field in self._features)
        yield "\n## Lineage\n"
        # Indented, so that nothing in a parameter is taken for markup.
        yield from (f"    {one_line(line)}" for line in self._view.lineage)


def _feature(field: str) -> dict[str, Any] | None:
    """The feature of a field, as far as its name tells."""
    *before, last = field.lower().split(".")
    if last in _PACKED and before:
        last = before[-1]
    if last in _JSON_LIKE:
        return {"dtype": "json"}
    if last in _UNTOLD or kind_of(last) in ("array", "arrays"):
        return None
    return {"dtype": _FEATURES[kind_of(last)]}


def _array_feature(field: str, data: bytes) -> dict[str, Any] | None:
    try:
        if kind_of(field) == "array":
            return _nested(npy_header(data))
        named = {name: _nested(header) for name, header in npz_headers(data).items()}
    except Rejected as error:
        raise ReelmillError(f"field {field}: {one_line(error.message)}") from None
    if any(told is None for told in named.values()):
        return None
    return {"struct": [{"name": name, **(told or {})} for name, told in named.items()]}


def _nested(header: Header) -> dict[str, Any] | None:
    """The feature of an array: lists in lists."""
    name, dimensions = header
    if name not in _TYPES:
        return None
    told: Any = name
    for _ in range(dimensions):
        told = {"list": told}
    return told if dimensions else {"dtype": name}


def _size_category(samples: int) -> str:
    """The Hub's name for how many samples there are."""
    if samples < 1000:
        return "n<1K"
    place = len(str(samples)) - len("1000")
    if place >= len(_SIZES) - 1:
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[place]}<n<{_SIZES[place + 1]}"
