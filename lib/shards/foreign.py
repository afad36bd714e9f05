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

MAX_NAMES: Final = 128 << 20
"""Characters of all names of one tar, at most: those of its samples stay in memory."""

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


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file of a tar: where its headers begin, and whether its data lie there whole, as
    those of a sparse file do not."""

    name: str
    begin: int
    part: Part
    whole: bool


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
    for entry in read_entries(file):
        part = entry.part
        match = None if _META.match(entry.name) else _NAME.fullmatch(entry.name)
        key, suffix = (match[1], match[2].lower()) if match else (None, "")
        if group is not None and key is not None and (key != group.key or suffix in group.parts):
            yield group
            group = None
        if part.offset + part.size > size:
            raise truncated()
        if key is None:
            continue
        group = group or Group(key)
        if len(group.parts) == MAX_FIELDS:
            group.problem = f"more than {MAX_FIELDS} fields"
        elif not entry.whole:
            group.problem = f"its field {suffix!r} is a sparse file"
        else:
            group.parts[suffix] = part
    if group is not None:
        yield group


def read_entries(file: BinaryIO, start: int = 0) -> Iterator[Entry]:
    """The regular files of an uncompressed tar, in its order; their data stay where they are, and
    may reach beyond the end of the file.

    Args:
        file: Seekable; its position may be changed between two entries.
        start: Where the headers of an entry begin: none before it is looked at.

    Raises:
        Rejected: After the last whole header, as ``read_groups`` does.
    """
    headers = _Headers(file, start)
    count = names = 0
    try:
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8")  # type: ignore[arg-type]
        while (member := headers.next_of(tar)) is not None:
            # The list would hold every header ever read.
            tar.members = []  # type: ignore[attr-defined]
            count += 1
            if count > MAX_MEMBERS:
                raise Rejected("too_many_members", f"more than {MAX_MEMBERS} members")
            names += len(member.name)
            if names > MAX_NAMES:
                raise Rejected("too_many_members", f"names of more than {MAX_NAMES} characters")
            if len(tar.pax_headers) > _MAX_GLOBALS:
                raise tarfile.ReadError("its global headers have no end")
            if member.size < 0:
                raise tarfile.ReadError("a size is negative")
            if member.isreg():
                part = Part(member.offset_data, member.size)
                yield Entry(member.name, member.offset, part, not member.issparse())
    except _BROKEN as error:
        if headers.furthest <= start + BLOCK:
            raise Rejected("not_a_tar", "the file is no tar") from error
        if headers.ended:
            raise truncated() from error
        raise Rejected("damaged", f"a header behind member {count} cannot be read") from error
    # At a header that it cannot read, tarfile stops as it does at the end mark.
    mark = headers.at(tar.offset, BLOCK)
    if len(mark) < BLOCK:
        raise truncated()
    if any(mark):
        raise Rejected("damaged", f"a header behind member {count} cannot be read")


def truncated() -> Rejected:
    """What is said of a tar that breaks off."""
    return Rejected("truncated", "the tar ends before its end mark")


class _Headers:
    """What tarfile reads of a file: never data, so that no read is large, and never backwards."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._place = start
        self._left = _MAX_HEADERS
        self.furthest = start
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
