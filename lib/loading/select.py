"""Which fields of a sample are wanted: by name, with alternatives where samples differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from reelmill.errors import LoadError
from reelmill.loading.samples import Sample, fields_of, listed, place_of

Missing: TypeAlias = Literal["error", "skip", "none"]
"""What becomes of a sample that lacks what is asked of it: an error, no sample, or None for it."""

MISSING: Final[tuple[Missing, ...]] = ("error", "skip", "none")


class Selection:
    """Fields by name, each with alternatives: ``Selection("jpg;png", "cls")``, or all in one text:
    ``Selection("jpg;png cls")``. Of alternatives the first that a sample has is taken. Names are
    whole: ``left.jpg`` is not ``jpg``; ``__key__`` and ``__url__`` may be named too.

    Raises:
        ValueError: no field is named, or one without a name.
    """

    def __init__(self, *spec: str) -> None:
        self.wanted = [tuple(one.split(";")) for text in spec for one in text.split()]
        if not self.wanted or not all(all(names) for names in self.wanted):
            raise ValueError(f'{" ".join(spec)!r} names no fields; write them as "jpg;png cls"')

    def __repr__(self) -> str:
        return f"Selection({' '.join(map(';'.join, self.wanted))!r})"

    @property
    def names(self) -> set[str]:
        """Every field that may be taken."""
        return {name for names in self.wanted for name in names}

    def found(self, sample: Mapping[str, Any], missing: Missing = "error") -> list[str] | None:
        """The field that is taken for each that is wanted: with ``none``, the first name where
        there is none. None: the sample is to be skipped.

        Raises:
            LoadError: it has none of the alternatives.
        """
        found = []
        for names in self.wanted:
            name = next((name for name in names if name in sample), None)
            if name is None and missing == "skip":
                return None
            if name is None and missing == "error":
                raise LoadError(
                    f"{place_of(sample)} has no field {' or '.join(names)}; its fields: "
                    f"{listed(fields_of(sample))}"
                )
            found.append(name or names[0])
        return found


def select_fields(
    samples: Iterable[Sample], *spec: str, missing: Missing = "error"
) -> Iterator[Sample]:
    """The samples with these fields alone, under their own names, and ``__key__`` and its like.

    Raises:
        LoadError: as :meth:`Selection.found`.
    """
    selection = Selection(*spec)
    for sample in samples:
        names = selection.found(sample, missing)
        if names is not None:
            meta = {name: value for name, value in sample.items() if name.startswith("__")}
            yield meta | {name: sample.get(name) for name in names}


def to_tuples(
    samples: Iterable[Sample], *spec: str, missing: Missing = "error"
) -> Iterator[tuple[Any, ...]]:
    """The values of these fields of each sample, in the order in which they are named.

    Raises:
        LoadError: as :meth:`Selection.found`.
    """
    selection = Selection(*spec)
    for sample in samples:
        names = selection.found(sample, missing)
        if names is not None:
            yield tuple(sample.get(name) for name in names)
