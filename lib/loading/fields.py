"""One field of a sample, and what it becomes: what decoders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

PASS: Final = object()
"""What a decoder returns for a field that is not its own."""


class FieldDecoder(ABC):
    """Decodes fields of one kind. Unlike webdataset's handlers it may give None as a value, and is
    told a field's name without a dot before it."""

    @abstractmethod
    def __call__(self, name: str, data: bytes) -> Any:
        """The value of a field, or PASS."""


def ending(name: str) -> str:
    """What follows the last dot of a field's name, in lower case; all of it without a dot."""
    return name.rpartition(".")[2].lower()
