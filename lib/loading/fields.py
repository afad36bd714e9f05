"""One field of a sample, and what it becomes: what decoders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

PASS: Final = object()
"""What a decoder returns for a field that is not its own."""


class FieldDecoder(ABC):
    """Decodes fields of one kind; also a handler that webdataset's ``decode`` takes."""

    @abstractmethod
    def value(self, name: str, data: bytes) -> Any:
        """The value of a field of this name, which may be None, or PASS."""

    def __call__(self, name: str, data: bytes) -> Any:
        """The same as webdataset has it: a dot comes before the name, and None stands for PASS."""
        found = self.value(name.removeprefix("."), data)
        return None if found is PASS else found


def ending(name: str) -> str:
    """What follows the last dot of a field's name, in lower case; all of it without a dot."""
    return name.rpartition(".")[2].lower()
