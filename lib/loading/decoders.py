"""What the bytes of a field become: pictures, videos, flow, values; by its name and what was asked.

>>> dataset = wds.WebDataset(urls).decode(reelmill.loading.decoder("rgb"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from reelmill.errors import LoadError, MissingDependencyError, one_line
from reelmill.loading.containers import (
    decode_cbor,
    decode_msgpack,
    decode_npy,
    decode_npz,
    decode_tenbin,
    unpack_gzip,
)
from reelmill.loading.fields import PASS, FieldDecoder
from reelmill.loading.pictures import ImageDecoder, Measured
from reelmill.loading.samples import Sample, place_of, reason

Handler: TypeAlias = Callable[[str, bytes], Any]
"""As webdataset's: takes a field's name behind a dot, such as ``.left.jpg``, and its bytes; returns
None for a field that is not its own."""

ByName: TypeAlias = Mapping[str, Callable[[bytes], Any]]
"""Functions of bytes by the ends of fields' names: ``{"jpg": fn, "left.jpg": fn}``."""

Spec: TypeAlias = str | ByName | Handler


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _refused(data: bytes) -> Any:
    raise ValueError(
        "it is a pickle, and reading one runs whatever code is in it; where you trust the data, "
        'pass a function that reads it, as in decode({"pyd": pickle.loads}), or leave the field '
        "out with only="
    )


BASIC: Final[dict[str, Callable[[bytes], Any]]] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), int),
    **dict.fromkeys(("json", "jsn"), json.loads),
    **dict.fromkeys(("pyd", "pkl", "pickle", "pth", "pt"), _refused),
    **dict.fromkeys(("ten", "tb", "tenbin"), decode_tenbin),
    **dict.fromkeys(("mp", "msg", "msgpack"), decode_msgpack),
    "npy": decode_npy,
    "npz": decode_npz,
    "cbor": decode_cbor,
}
"""What is decoded whatever was asked, by the end of its name, as in webdataset; but no pickles."""


def decoder(*specs: Spec, only: str | Iterable[str] | None = None) -> Decoder:
    """A decoder of samples; also a handler that webdataset's ``decode`` takes.

    Args:
        specs: ``rgb`` and its like (see ``pictures.SPECS``) for pictures; ``video`` for readers of
            videos, or :class:`~reelmill.loading.videos.video` for frames of them; functions by the
            ends of names, of which the longest that fits is taken; webdataset's handlers. Functions
            and handlers are asked before anything that is built in, in the order given.
        only: decode these fields alone, by the ends of their names (``"jpg json"``); others keep
            their bytes.

    Raises:
        ValueError: there is no such spec.
    """
    return Decoder(specs, only)


class Decoder(FieldDecoder):
    """See :func:`decoder`. Can be pickled if the functions that it was given can."""

    def __init__(self, specs: Iterable[Spec], only: str | Iterable[str] | None = None) -> None:
        own: list[FieldDecoder] = []
        pictures: list[FieldDecoder] = []
        tensors = False
        for spec in specs:
            if spec == "video":
                own.append(_video())
            elif isinstance(spec, str):
                image = ImageDecoder(spec)
                tensors = tensors or image.container == "torch"
                pictures.append(image)
            elif isinstance(spec, Mapping):
                own.append(_ByName(spec))
            elif callable(spec):
                own.append(spec if isinstance(spec, FieldDecoder) else _Foreign(spec))
            else:
                raise ValueError(
                    f"{spec!r} is no decoder: give a name, a function or a dict of them"
                )
        self._handlers = [*own, Measured(tensors), *pictures, _ByName(BASIC)]
        chosen = only.split() if isinstance(only, str) else only
        self._only = None if chosen is None else _ByName(dict.fromkeys(chosen, _text))

    def value(self, name: str, data: bytes) -> Any:
        """The value of one field; PASS if nothing knows it, or it is not to be decoded."""
        if self._only is not None and not self._only.fits(name):
            return PASS
        is_packed = name.endswith(".gz")
        if is_packed:
            name, data = name[:-3], unpack_gzip(data)
        for handler in self._handlers:
            value = handler.value(name, data)
            if value is not PASS:
                return value
        return data if is_packed else PASS

    def sample(self, sample: Sample) -> Sample:
        """A sample with its fields decoded. Those that are no bytes (any more), and those that
        nothing knows, stay what they are.

        Raises:
            LoadError: a field cannot be decoded.
        """
        out = {}
        for name, value in sample.items():
            out[name] = value
            if name.startswith("__") or not isinstance(value, bytes):
                continue
            try:
                decoded = self.value(name, value)
            except MissingDependencyError:
                raise
            except Exception as error:
                why = reason(error)
                where = f"{place_of(sample)}: field {one_line(name)}"
                raise LoadError(f"{where}: {why}") from error
            if decoded is not PASS:
                out[name] = decoded
        return out


def _video() -> FieldDecoder:
    # It brings torch along.
    from reelmill.loading.videos import video

    return video()


class _Foreign(FieldDecoder):
    """A handler as webdataset's are."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def value(self, name: str, data: bytes) -> Any:
        value = self._handler(f".{name}", data)
        return PASS if value is None else value


class _ByName(FieldDecoder):
    """Functions by the ends of names; the longest that fits is taken."""

    def __init__(self, functions: ByName) -> None:
        self._functions = {end.removeprefix(".").lower(): one for end, one in functions.items()}

    def value(self, name: str, data: bytes) -> Any:
        end = self._end(name)
        return PASS if end is None else self._functions[end](data)

    def fits(self, name: str) -> bool:
        return self._end(name) is not None

    def _end(self, name: str) -> str | None:
        rest = name.lower()
        while rest:
            if rest in self._functions:
                return rest
            rest = rest.partition(".")[2]
        return None
