"""Tars that others wrote: their samples by WebDataset's rule, whatever their bytes say."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from reelmill.errors import Rejected
from reelmill.shards.tar import BLOCK

MAX_MEMBERS: Final = 1_000_000
"""Members of one tar, at most: a header of 512 bytes is all that a stranger pays for one."""

MAX_FIELDS: Final = 10_000
"""Fields of one sample, at most."""

_MAX_HEADER: Final = 64 << 10
_MAX_HEADERS: Final = 1 << 20
"""Bytes of all headers of one member: a sparse file may have a map as long as the tar."""
_MAX_GLOBALS: Final = 1000
# As WebDataset reads names: the key is all up to the first dot behind the last slash.
_NAME: Final = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META: Final = re.compile(r"__[^/]*__($|/)")
_BROKEN: Final = (tarfile.TarError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Part:
    """Where the data of a member lie in the tar, in bytes."""

    offset: int
    size: int


@dataclass(slots=True)
class Group:
    """Consecutive members that share a key, by their field in lower case.

    ``problem`` says why they are no sample, if so.
    """

    key: str
    parts: dict[str, Part] = field(default_factory=dict)
    problem: str | None = None


def read_groups(file: BinaryIO, size: int) -> Iterator[Group]:
    """The samples of an uncompressed tar, in its order; their data stay where they are.

    USTAR, GNU and PAX names are understood. Directories, links, devices, and names without a dot
    or between ``__`` belong to no sample, as in WebDataset. A field that its sample has already
    begins another sample of the same key.

    Args:
        file: Seekable; its position may be changed between two samples.
        size: Bytes of the whole file.

    Raises:
        Rejected: After the last whole sample: ``not_a_tar``; ``truncated`` if the tar ends before
            its end mark, ``damaged`` if a header cannot be read, ``too_many_members``. The sample
            that was being read then is lost, since nobody can tell what it lacks.
    """
    group: Group | None = None
    for name, part, whole in _members(file):
        match = None if _META.match(name) else _NAME.fullmatch(name)
        key, suffix = (match[1], match[2].lower()) if match else (None, "")
        if group is not None and key is not None and (key != group.key or suffix in group.parts):
            yield group
            group = None
        if part.offset + part.size > size:
            raise _truncated()
        if key is None:
            continue
        group = group or Group(key)
        if len(group.parts) == MAX_FIELDS:
            group.problem = f"more than {MAX_FIELDS} fields"
        elif not whole:
            group.problem = f"its field {suffix!r} is a sparse file"
        else:
            group.parts[suffix] = part
    if group is not None:
        yield group


def _members(file: BinaryIO) -> Iterator[tuple[str, Part, bool]]:
    """Name, place and wholeness of each regular file."""
    headers = _Headers(file)
    count = 0
    try:
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8")  # type: ignore[arg-type]
        while (member := headers.next_of(tar)) is not None:
            # The list would hold every header ever read.
            tar.members = []  # type: ignore[attr-defined]
            count += 1
            if count > MAX_MEMBERS:
                raise Rejected("too_many_members", f"more than {MAX_MEMBERS} members")
            if len(tar.pax_headers) > _MAX_GLOBALS:
                raise tarfile.ReadError("its global headers have no end")
            if member.size < 0:
                raise tarfile.ReadError("a size is negative")
            if member.isreg():
                part = Part(member.offset_data, member.size)
                yield member.name, part, not member.issparse()
    except _BROKEN as error:
        if headers.furthest <= BLOCK:
            raise Rejected("not_a_tar", "the file is no tar") from error
        if headers.ended:
            raise _truncated() from error
        raise Rejected("damaged", f"a header behind member {count} cannot be read") from error
    # At a header that it cannot read, tarfile stops as it does at the end mark.
    mark = headers.at(tar.offset, BLOCK)
    if len(mark) < BLOCK:
        raise _truncated()
    if any(mark):
        raise Rejected("damaged", f"a header behind member {count} cannot be read")


def _truncated() -> Rejected:
    return Rejected("truncated", "the tar ends before its end mark")


class _Headers:
    """What tarfile reads of a file: never data, so that no read is large, and never backwards."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0
        self._left = _MAX_HEADERS
        self.furthest = 0
        self.ended = False

    def next_of(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member, whose headers may have so many bytes together."""
        self._left = _MAX_HEADERS
        return tar.next()

    def at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)

    def read(self, size: int) -> bytes:
        self._left -= size
        if not 0 <= size <= _MAX_HEADER or self._left < 0:
            raise tarfile.ReadError("a header is too large")
        data = self.at(self._place, size)
        self.ended = len(data) < size
        self._place += len(data)
        self.furthest = max(self.furthest, self._place)
        return data

    def seek(self, place: int) -> None:
        # A negative size would send it back to a header that it has read, without end.
        if place < self.furthest - 1:
            raise tarfile.ReadError("a header points backwards")
        self._place = place

    def tell(self) -> int:
        return self._place
