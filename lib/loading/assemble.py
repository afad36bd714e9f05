"""Frames that lie in a sample one by one, put together: pictures to (T, H, W, C), flow to
(T-1, 2, H, W)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import ne
from typing import Any, Final

import numpy as np

from reelmill.errors import LoadError
from reelmill.loading.pictures import FlowField
from reelmill.loading.samples import Sample, fields_of, listed, place_of
from reelmill.sequences.frames import FRAME

_MOST_DIGITS: Final = 9
_MOST_LOST: Final = 30
"""Names of frames that are missing, in a message."""


class Assembler:
    """Puts the frames of decoded samples together; to be called with a sample.

    >>> whole = Assembler({"images": "{frame}.image.jpg"}, pairs={"flow": "{frame}.flow.png"})
    >>> whole(sample)["images"].shape, whole(sample)["flow"].flow.shape
    (3, 540, 960, 3), (2, 2, 540, 960)

    Each field that is put together takes the place of its frames. Arrays become an array, tensors
    a tensor, Pillow's pictures an array, :class:`FlowField` one of all.

    Args:
        fields: patterns of the frames' names by the new field; ``{frame}`` stands for a number.
        pairs: the same of what lies between neighbours, as flow does and its masks: one less than
            frames, numbered as the first of the two (``flow``) or the second (``flow_back``).
        frames: how many there must be.
        step: by how much numbers of neighbours differ.

    Raises:
        ValueError: a pattern has no ``{frame}``, or one name is given twice.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        *,
        pairs: Mapping[str, str] | None = None,
        frames: int | None = None,
        step: int = 1,
    ) -> None:
        self._pairs = dict(pairs or {})
        self._texts = {**fields, **self._pairs}
        wrong = [text for text in self._texts.values() if text.count(FRAME) != 1]
        if wrong or not self._texts:
            raise ValueError(f"frames are named by a pattern such as '{FRAME}.image.jpg': {wrong}")
        if both := set(fields) & set(self._pairs):
            raise ValueError(f"{listed(sorted(both))}: fields of frames and of pairs at once")
        if step < 1 or (frames is not None and frames < 1):
            raise ValueError("frames and step are at least 1")
        self._patterns = {name: _compiled(text) for name, text in self._texts.items()}
        self._frames = frames
        self._step = step

    def __call__(self, sample: Sample) -> Sample:
        """The sample, put together.

        Raises:
            LoadError: frames are missing, of unequal sizes, or not decoded.
        """
        out = dict(sample)
        numbers: dict[str, list[int]] = {}
        for name in self._texts:
            found = self._found(sample, name)
            values = [out.pop(field) for field in found.values()]
            numbers[name] = list(found)
            out[name] = self._stacked(sample, name, values)
        self._check(sample, numbers)
        return out

    def _found(self, sample: Sample, name: str) -> dict[int, str]:
        """Fields by number, in order."""
        pattern = self._patterns[name]
        matches = [(pattern.fullmatch(field), field) for field in fields_of(sample)]
        found = {int(match[1]): field for match, field in matches if match}
        if not found:
            raise LoadError(
                f"{place_of(sample)} has no field {self._texts[name]}; its fields: "
                f"{listed(fields_of(sample))}"
            )
        return dict(sorted(found.items()))

    def _stacked(self, sample: Sample, name: str, values: Sequence[Any]) -> Any:
        if any(isinstance(value, bytes) for value in values):
            raise LoadError(f"{place_of(sample)}: {self._texts[name]} is not decoded; decode first")
        try:
            if all(isinstance(value, FlowField) for value in values):
                return FlowField(*(_joined(parts) for parts in zip(*values, strict=True)))
            return _joined(values)
        except (ValueError, RuntimeError, TypeError) as error:
            shapes = listed(dict.fromkeys(map(_shape, values)))
            raise LoadError(
                f"{place_of(sample)}: {self._texts[name]} are no frames of one size: {shapes}"
            ) from error

    def _check(self, sample: Sample, numbers: Mapping[str, list[int]]) -> None:
        """See to it that no frame is missing anywhere, and all fields are of the same ones."""
        first = min(of[0] for of in numbers.values())
        last = max(of[-1] for of in numbers.values())
        alone = len(self._pairs) == len(numbers)
        if self._frames is not None:
            last = first + (self._frames - 1 - alone) * self._step
        # Two frames can be a thousand million apart: what lies between is not written out.
        every = range(first, last + 1, self._step)
        for name, of in numbers.items():
            wanted = every
            if name in self._pairs and not alone:
                wanted = every[:-1] if of[0] == first else every[1:]
            if len(of) != len(wanted) or any(map(ne, of, wanted)):
                there = set(of)
                absent = (self._text(name, n) for n in wanted if n not in there)
                lost = list(islice(absent, _MOST_LOST))
                extra = [self._text(name, n) for n in of if n not in wanted]
                what = f"lacks {listed(lost)}" if lost else f"has {listed(extra)} besides"
                raise LoadError(f"{place_of(sample)} {what}; there should be {len(wanted)}")

    def _text(self, name: str, number: int) -> str:
        return self._texts[name].replace(FRAME, f"{number:06d}")


def _compiled(pattern: str) -> re.Pattern[str]:
    head, tail = pattern.split(FRAME)
    return re.compile(f"{re.escape(head)}([0-9]{{1,{_MOST_DIGITS}}}){re.escape(tail)}")


def _joined(values: Sequence[Any]) -> Any:
    if hasattr(values[0], "new_empty"):
        import torch

        return torch.stack(list(values))
    arrays = [np.asarray(value) for value in values]
    if any(array.dtype.hasobject for array in arrays):
        raise TypeError("values that are no numbers")
    return np.stack(arrays)


def _shape(value: Any) -> str:
    shape = getattr(value[0] if isinstance(value, FlowField) else value, "shape", None)
    return str(tuple(shape)) if shape is not None else str(getattr(value, "size", type(value)))
