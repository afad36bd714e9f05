"""What a store needs of the place its bytes lie in, and the choice of one by address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reelmill.errors import StoreError

DELETED_AT_ONCE = 1000
"""Objects that one request can remove: S3's limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its name below the store's root, its size in bytes, its age's start.

    ``modified`` is in seconds since the epoch. ``tag`` changes with the bytes, where the place says
    so of one object that it is asked about (an ETag); else it is empty.
    """

    name: str
    size: int
    modified: float
    tag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``[start, stop)`` of the object ``name``."""

    name: str
    start: int
    stop: int


class Backend(Protocol):
    """Objects by name. Names are relative, ``/``-separated, and made by Reelmill alone.

    Every method raises ``StoreError`` with one clear line when the place refuses or fails;
    reading what is not there raises ``FileNotFoundError``.
    """

    url: str
    is_local: bool
    conditional: bool

    def create(self, name: str, data: bytes) -> bool:
        """Put a small object only if the name is free; ``False`` if another's bytes hold it."""

    def put(self, name: str, data: bytes) -> None:
        """Put bytes that may replace what is there (a blob: the same bytes; a heartbeat)."""

    def put_file(self, name: str, path: Path) -> None:
        """Take over a scratch file as an object; ``path`` is gone or useless afterwards."""

    def read(self, name: str) -> bytes: ...

    def read_ranges(self, ranges: list[Range]) -> list[bytes]:
        """Each range's bytes, in the order asked, each exactly as long as asked."""

    def stream(self, name: str) -> Iterator[bytes]:
        """The object's bytes from first to last, in pieces of a few MiB."""

    def size(self, name: str) -> int | None:
        """Size in bytes, or ``None`` if there is no such object."""

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes of those of ``names`` that exist."""

    def entry(self, name: str) -> Entry | None:
        """What a listing would say of one object, or ``None`` if there is no such object."""

    def folders(self, prefix: str) -> list[str]:
        """The folders right below the folder ``prefix``, each ending with ``/``, sorted."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Everything below the folder ``prefix`` (which ends with ``/``), sorted by name."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    def delete_all(self, names: Sequence[str]) -> None:
        """Remove at most ``DELETED_AT_ONCE`` objects, by as few requests as can be."""

    def locate(self, name: str) -> str:
        """The address by which other programs open the object: a path or an URL."""

    def scratch(self) -> Path:
        """A folder for files on their way into the store."""

    def sweep(self, before: float | None = None) -> None:
        """Remove scratch files whose process is gone: one of this place that ended, or one of
        another place that has not touched them since ``before`` (seconds since the epoch)."""


def open_backend(url: str) -> Backend:
    """The backend for a folder (``./store``, ``file:///data/store``) or an fsspec URL."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "file", url
    if not (rest if scheme == "file" else rest.strip("/")):
        raise StoreError(f"{url!r} is no address of a store; give a folder or a bucket")
    if scheme == "file":
        from reelmill.store.local import LocalBackend

        return LocalBackend(Path(rest))
    from reelmill.store.remote import RemoteBackend

    return RemoteBackend(url)
