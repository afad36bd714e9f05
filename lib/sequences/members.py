"""A member: one file of a sequence, in a folder or an archive, and which names are fit for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from reelmill.errors import Rejected

PICTURES: Final = frozenset(
    [
        "bmp",
        "dpx",
        "exr",
        "jp2",
        "jpeg",
        "jpg",
        "pfm",
        "pgm",
        "png",
        "pnm",
        "ppm",
        "tif",
        "tiff",
        "webp",
    ]
)
"""Extensions of pictures: a folder that holds one is a sequence."""

MAX_MEMBERS: Final = 1_000_000
"""Members of one archive or folder, at most."""

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|(^|/)\.\.(/|$)|^/|^[A-Za-z]:|//")


class Member(NamedTuple):
    """One file of a sequence.

    Attributes:
        name: its path in the archive, or below the sequence's folder.
        size: bytes, unpacked.
        packed: bytes, as they lie in the archive.
        start: in an archive, where its data begin, and of a zip its local header before them.
        header: bytes of that header, at most.
        listed: the bytes of the archive that tell of it: of a tar all of it, of a zip its entry in
            the directory.
        method: how a zip packs it; 0 is not at all.
        crc: of a zip, CRC-32 of the unpacked data.
        problem: reason and message, if it cannot be read.
    """

    name: str
    size: int
    packed: int = 0
    start: int = 0
    header: int = 0
    listed: tuple[int, int] = (0, 0)
    method: int = 0
    crc: int | None = None
    problem: tuple[str, str] | None = None

    @property
    def folder(self) -> str:
        """The folder that it lies in; empty at the top."""
        return self.name.rpartition("/")[0]

    @property
    def is_picture(self) -> bool:
        return extension(self.name) in PICTURES


def extension(name: str) -> str:
    """What follows the last dot of a path's last part, in lower case; empty without a dot."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


def safe_name(name: str) -> str:
    """A member's name without what says nothing: a leading ``./``.

    Raises:
        Rejected: ``unsafe_name``, if it is no plain path below the archive's top.
    """
    while name.startswith("./"):
        name = name[2:]
    if not name or _UNFIT.search(name):
        raise Rejected("unsafe_name", f"the name of its member {name[:200]!r} is no plain path")
    return name


def is_hidden(folder: str) -> bool:
    """Whether a folder, or one that it lies in, has a name that begins with a dot or an underscore,
    as what systems add to archives does."""
    return any(part[:1] in (".", "_") for part in folder.split("/") if part)


def counted(members: Iterator[Member]) -> Iterator[Member]:
    """The same members.

    Raises:
        Rejected: ``too_many_members``.
    """
    for number, member in enumerate(members):
        if number == MAX_MEMBERS:
            raise Rejected("too_many_members", f"more than {MAX_MEMBERS} members")
        yield member
