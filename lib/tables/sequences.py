"""The sequences below a path: which folders and archives hold them, and where each lies there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
from fsspec.utils import glob_translate

from reelmill.errors import Rejected, StageError
from reelmill.sequences.members import PICTURES, Member, extension, is_hidden
from reelmill.sequences.places import ARCHIVES, open_archive, open_file
from reelmill.tables.files import Found, TableError, as_url, errors, locate, static_part

INSIDE: Final = "!/"
"""What stands in a URL between an archive and the folder in it, as in those of Java's jars."""

_ARCHIVE: Final = "archive"
_PICTURE: Final = "picture"

SCHEMA: Final = pa.schema(
    [
        pa.field("url", pa.string()),
        # The folder, which ends in a slash, or the archive.
        pa.field("place", pa.string()),
        # The folder in the archive, or below the source's path; null where an archive could not
        # be listed.
        pa.field("sequence", pa.string()),
        # Whether its members lie in folders of it as well.
        pa.field("nested", pa.bool_()),
        pa.field("pictures", pa.int64()),
        # Of its pictures.
        pa.field("bytes", pa.int64()),
        pa.field("modified", pa.timestamp("us", "UTC")),
        pa.field("etag", pa.string()),
        # The bytes of an archive that tell of its members, and how long it was then.
        pa.field("listed_from", pa.int64()),
        pa.field("listed_to", pa.int64()),
        pa.field("archive_bytes", pa.int64()),
    ]
)
"""Columns of a listing of sequences."""


@dataclass(slots=True)
class _Sequence:
    """What was seen of a sequence."""

    pictures: int = 0
    size: int = 0
    first: int | None = None
    last: int = 0
    modified: int | None = None

    def add(self, member: Member) -> None:
        if member.is_picture:
            self.pictures += 1
            self.size += member.size
        self.first = member.listed[0] if self.first is None else min(self.first, member.listed[0])
        self.last = max(self.last, member.listed[1])


def find(paths: Sequence[str], folders: str | None) -> Iterator[dict[str, Any]]:
    """Rows of ``SCHEMA``, one for each sequence below some paths, which are those of `locate`.

    An archive that cannot be listed, or not to its end, has a row without a ``sequence`` besides.

    Args:
        folders: a pattern of the folders that are a sequence with all below them, such as
            ``*/scene_*``, from the path on or from the top of an archive; by default they are the
            folders that hold pictures, each by itself.

    Raises:
        TableError: nothing is there, or it cannot be listed.
    """
    chosen = _chooser(folders)
    for path in paths:
        found = locate([path], PICTURES | ARCHIVES)
        root = static_part(path)
        for kind, group in groupby(found, _kind):
            if kind == _ARCHIVE:
                for one in group:
                    yield from _in_archive(one, chosen, folders is not None)
            elif kind is None:
                raise TableError(
                    f"{next(group).path}: sequences lie in folders, zips and uncompressed tars"
                )
            elif path.lower().startswith(("http://", "https://")):
                raise TableError(f"{path}: web servers list no folders; name zips or tars of them")
            else:
                rows = list(_in_folders(group, root, chosen, folders is not None))
                if not rows:
                    raise TableError(f"{path}: no folder of pictures fits {folders!r}")
                yield from rows


def _kind(found: Found) -> str | None:
    suffix = extension(found.path)
    return _ARCHIVE if suffix in ARCHIVES else _PICTURE if suffix in PICTURES else None


def _chooser(folders: str | None) -> Callable[[str], str | None]:
    """The sequence that a folder belongs to, if any."""
    if folders is None:
        return lambda folder: folder
    fits = re.compile(glob_translate(folders.strip("/"))).match

    def chosen(folder: str) -> str | None:
        parts = folder.split("/")
        whole = ("/".join(parts[:length]) for length in range(1, len(parts) + 1))
        return next((one for one in whole if fits(one)), None)

    return chosen


def _in_folders(
    found: Iterator[Found], root: str, chosen: Callable[[str], str | None], nested: bool
) -> Iterator[dict[str, Any]]:
    """Sequences of pictures that are files, which come sorted by folder and so follow each other,
    but for those of folders between them."""
    seen: dict[str, _Sequence] = {}
    for one in found:
        folder = one.path.rpartition("/")[0]
        below = _below(folder, root)
        name = chosen(below)
        if name is None:
            continue
        place = folder[: len(folder) - len(below) + len(name)]
        sequence = seen.setdefault(place, _Sequence())
        sequence.pictures += 1
        sequence.size += one.size or 0
        times = [time for time in (sequence.modified, one.modified) if time is not None]
        sequence.modified = max(times, default=None)
    for place, sequence in seen.items():
        url = f"{as_url(place).rstrip('/')}/"
        name = _below(place, root) or place.rpartition("/")[2]
        yield _row(url, url, name, nested, sequence) | {"modified": sequence.modified}


def _below(folder: str, root: str) -> str:
    return folder[len(root) :].strip("/") if folder.startswith(root) else folder


def _in_archive(
    one: Found, chosen: Callable[[str], str | None], nested: bool
) -> Iterator[dict[str, Any]]:
    place = as_url(one.path)
    seen: dict[str, _Sequence] = {}
    size, whole = one.size, True
    with errors(one.path):
        try:
            file = open_file(place)
            size = file.size
            for member in open_archive(one.path, file).members():
                if not is_hidden(member.folder) and (name := chosen(member.folder)) is not None:
                    seen.setdefault(name, _Sequence()).add(member)
        except Rejected:
            # Why, the stage says of it, to which it is a reject.
            whole = False
        except StageError as error:
            raise TableError(str(error)) from error
    shared = {"modified": one.modified, "etag": one.etag, "archive_bytes": size}
    for name in sorted(seen):
        if seen[name].pictures:
            inside = quote(f"{name}/" if name else "", safe="/", errors="replace")
            spans = {"listed_from": seen[name].first, "listed_to": seen[name].last}
            url = f"{place}{INSIDE}{inside}"
            yield _row(url, place, name, nested, seen[name]) | shared | spans
    if not whole or not any(sequence.pictures for sequence in seen.values()):
        yield _row(place, place, None, nested, _Sequence()) | shared


def _row(
    url: str, place: str, name: str | None, nested: bool, sequence: _Sequence
) -> dict[str, Any]:
    # A folder's name may be no UTF-8, which a table cannot hold.
    shown = name and name.encode("utf-8", "backslashreplace").decode()
    return dict.fromkeys(SCHEMA.names) | {
        "url": url,
        "place": place,
        "sequence": shown,
        "nested": nested,
        "pictures": sequence.pictures,
        "bytes": sequence.size,
    }
