"""Which fields of a sample are wanted: by name, with alternatives where samples differ."""

from __future__ import annotations

from collections.abc import Mapping
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

    Args:
        missing: what becomes of a sample that has none of the alternatives.

    Raises:
        ValueError: no field is named, or one without a name; ``missing`` is none of `MISSING`.
    """

    def __init__(self, *spec: str, missing: Missing = "error") -> None:
        self.wanted = [tuple(one.split(";")) for text in spec for one in text.split()]
        if not self.wanted or not all(all(names) for names in self.wanted):
            raise ValueError(f'{" ".join(spec)!r} names no fields; write them as "jpg;png cls"')
        if missing not in MISSING:
            raise ValueError(f"missing={missing!r} is none of {', '.join(MISSING)}")
        self.missing = missing

    def __str__(self) -> str:
        how = "" if self.missing == "error" else f", missing={self.missing}"
        return " ".join(map(";".join, self.wanted)) + how

    def sample(self, sample: Sample) -> Sample | None:
        """The sample with these fields alone, under their own names, and ``__key__`` and its like;
        None if it is to be skipped.

        Raises:
            LoadError: it has none of the alternatives.
        """
        names = self._found(sample)
        if names is None:
            return None
        meta = {name: value for name, value in sample.items() if name.startswith("__")}
        return meta | {name: sample.get(name) for name in names}

    def values(self, sample: Sample) -> tuple[Any, ...] | None:
        """The values of these fields, in the order in which they are named; else as `sample`."""
        names = self._found(sample)
        return None if names is None else tuple(sample.get(name) for name in names)

    def _found(self, sample: Mapping[str, Any]) -> list[str] | None:
        """The field that is taken for each that is wanted; where there is none, the first name."""
        found = []
        for names in self.wanted:
            name = next((name for name in names if name in sample), None)
            if name is None and self.missing == "skip":
                return None
            if name is None and self.missing == "error":
                raise LoadError(
                    f"{place_of(sample)} has no field {' or '.join(names)}; its fields: "
                    f"{listed(fields_of(sample))}"
                )
            found.append(name or names[0])
        return found
