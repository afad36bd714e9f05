"""What a view shows: versions as splits, and each version's tars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from reelmill.dataset import Version
from reelmill.digest import SHORT
from reelmill.shards import index
from reelmill.store.model import Blob


@dataclass(frozen=True)
class Split:
    """A version as a part of a view, such as ``train``."""

    name: str
    version: Version

    @property
    def folder(self) -> str:
        """Where its tars lie in a view: no two versions of any dataset share one.

        Caches of several libraries know a tar by its path below the view alone.
        """
        return f"{self.version.name}-{self.version.digest[:SHORT]}"


@dataclass(frozen=True)
class View:
    """A view's folder, and what lies in it. ``lineage`` has a line for each version that the splits
    derive from, themselves first; ``remote`` tells that the tars lie elsewhere."""

    folder: Path
    splits: Sequence[Split]
    lineage: Sequence[str]
    remote: bool


@dataclass(frozen=True)
class Tar:
    """One tar of a view.

    Attributes:
        split: whose samples it holds.
        path: its path below the view's folder, or its URL.
        blob: its sha256, and its size in bytes.
        samples: how many it holds.
        read_index: gives its index: places of samples as they lie in this very tar.
        read_field: gives one field of its first sample that has it; ``None`` if none has.
    """

    split: Split
    path: str
    blob: Blob
    samples: int
    read_index: Callable[[], pa.Table]
    read_field: Callable[[str], bytes | None]

    @cached_property
    def rows(self) -> pa.Table:
        """The rows of its index that are samples, in the order of the tar."""
        table = self.read_index()
        return table.filter(pc.equal(table["status"], index.OK))


class Writer(Protocol):
    """Writes one library's files while a view's tars go by."""

    def add(self, tar: Tar) -> None:
        """Take a tar in: those of a split one after the other, in order."""

    def close(self) -> str:
        """Finish the files; returns the Python expression that opens the view.

        What a library wants to be given in any case stands there as an ellipsis.
        """
