"""Finding the files of a table: paths, patterns, folders, object stores, downloaded datasets."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import quote_from_bytes, urlsplit

import fsspec
import yaml
from fsspec.utils import glob_translate

from reelmill.errors import ReelmillError, one_line

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
TAR: Final = frozenset({"tar"})
VIDEO: Final = frozenset(
    [
        "3g2",
        "3gp",
        "asf",
        "avi",
        "f4v",
        "flv",
        "m2ts",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpeg",
        "mpg",
        "mts",
        "mxf",
        "ogm",
        "ogv",
        "ts",
        "vob",
        "webm",
        "wmv",
    ]
)

_MAX_PATHS: Final = 1_000_000
_MAX_DEPTH: Final = 64
_MAX_CARD: Final = 512 << 10
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.([1-9][0-9]{0,8}))?")
_MAGIC: Final = re.compile(r"[*?\[]")


class TableError(ReelmillError):
    """A table that cannot be read, is empty, or lacks a column; the text begins with its path."""


class Found(NamedTuple):
    """A file: where it is, and what the listing that held it told of it.

    ``size`` is in bytes, ``modified`` in microseconds since the epoch.
    """

    path: str
    size: int | None = None
    modified: int | None = None
    etag: str | None = None


@contextmanager
def errors(path: str) -> Iterator[None]:
    """Turn what goes wrong with ``path`` into a ``TableError`` of one line."""
    try:
        yield
    except TableError:
        raise
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    # fsspec's file systems raise the errors of the libraries that they stand on.
    except Exception as error:
        raise TableError(f"{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return one_line(text.splitlines()[0])[:300] if text else type(error).__name__


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's file system, and no URL."""
    return "://" not in path and "::" not in path


def extension(path: str) -> tuple[str, str | None]:
    """A file's extension in lower case without the dot, and its compression, if it has one."""
    name = PurePosixPath(path if is_local(path) else urlsplit(path).path)
    compression = COMPRESSIONS.get(name.suffix.lower())
    if compression:
        name = name.with_suffix("")
    return name.suffix.lower().removeprefix("."), compression


def locate(paths: Sequence[str], wanted: frozenset[str]) -> Iterator[Found]:
    """The files that ``paths`` name, each once.

    A path names a file; a folder, and so all files of the ``wanted`` extensions below it, or those
    that the card of a downloaded Hugging Face dataset names; or a pattern with ``*``, ``?``,
    ``[…]``, ``**`` or ``{a,b}`` and ``{000..099}``. Below a folder, names that begin with a dot or
    an underscore are passed over. Folders and patterns give their files sorted by name, braces
    those of each alternative in turn, and the paths keep their order.

    Raises:
        TableError: nothing is there, or it cannot be listed.
    """
    seen: set[str] | None = set() if len(paths) > 1 or any("{" in path for path in paths) else None
    for path in map(_without_scheme, paths):
        alternatives = expand(path)
        for one in alternatives:
            with errors(one):
                for found in _found(one, wanted, sure=len(alternatives) > 1):
                    # What is listed by one walk is there once, however many there are.
                    if seen is None:
                        yield found
                    elif found.path not in seen:
                        seen.add(found.path)
                        yield found


def _without_scheme(path: str) -> str:
    """A path of this machine where a ``file`` URL says the same."""
    if not path.startswith(("file://", "local://")) or "::" in path:
        return path
    return str(fsspec.core.url_to_fs(path)[1])


def static_part(path: str) -> str:
    """The folder in which all lies that a path can name, as `locate` spells it: the path itself,
    where it is no pattern."""
    path = _without_scheme(path)
    if is_local(path):
        path = str(Path(path).absolute())
    special = re.search(r"[*?\[{]", path)
    if special is None or (is_local(path) and os.path.lexists(path)):
        return path.rstrip("/")
    return path[: special.start()].rpartition("/")[0]


def expand(pattern: str) -> list[str]:
    """The paths that the braces of a pattern stand for, in order; those that name no list or range
    stand for themselves.

    Raises:
        TableError: there are more than a million.
    """
    if "{" not in pattern or (is_local(pattern) and os.path.lexists(pattern)):
        return [pattern]
    found = list(itertools.islice(_expanded(pattern, 0), _MAX_PATHS + 1))
    if len(found) > _MAX_PATHS:
        raise TableError(f"{pattern}: its braces stand for more than {_MAX_PATHS:,} files")
    return list(dict.fromkeys(found))


def _expanded(pattern: str, start: int) -> Iterator[str]:
    match = _BRACES.search(pattern, start)
    if match is None:
        yield pattern
        return
    head, tail = pattern[: match.start()], pattern[match.end() :]
    alternatives = _alternatives(match[1])
    if alternatives is None:
        yield from _expanded(pattern, match.end())
        return
    for one in alternatives:
        # From the front again: the braces around these are complete only now.
        outer = head.rfind("{")
        yield from _expanded(head + one + tail, max(outer, 0) if outer >= 0 else len(head + one))


def _alternatives(inside: str) -> Iterable[str] | None:
    if (match := _RANGE.fullmatch(inside)) is not None:
        first, last, step = match[1], match[2], int(match[3] or 1)
        padded = any(
            len(end.lstrip("-")) > 1 and end.lstrip("-")[0] == "0" for end in (first, last)
        )
        width = max(len(first), len(last)) if padded else 0
        a, b = int(first), int(last)
        numbers = range(a, b + 1, step) if a <= b else range(a, b - 1, -step)
        return (f"{number:0{width}d}" for number in numbers)
    return inside.split(",") if "," in inside else None


def _found(
    path: str, wanted: frozenset[str], *, sure: bool = False, card: bool = True
) -> Iterator[Found]:
    """The files that a path without braces names.

    Args:
        sure: a remote file is not asked for: there may be many, and each costs a request.
        card: look for the card of a dataset.
    """
    scheme = path.partition("://")[0].lower()
    magic = _MAGIC.search(path)
    if scheme in ("http", "https"):
        if "*" in urlsplit(path).path:
            raise TableError(
                f"{path}: nothing can be listed over {scheme}; write a brace pattern such as "
                "part-{000..099}.csv"
            )
        yield Found(path)
        return
    if sure and not magic and not is_local(path) and not path.endswith("/"):
        yield Found(path)
        return
    files, inner = fsspec.core.url_to_fs(path)
    folder = _Folder(files, is_local(path))
    try:
        entry = files.info(inner)
    except FileNotFoundError:
        if not magic:
            raise
        yield from _some(path, folder.matching(inner), "no file fits this pattern")
        return
    if entry["type"] == "directory":
        inner = inner.rstrip("/")
        for one in (patterns := _data_files(files, inner, path) if card else []):
            yield from _found(f"{path.rstrip('/')}/{one}", wanted, card=False)
        if not patterns:
            below = (found for found in folder.walk(inner) if _is_wanted(found.path, wanted))
            known = ", ".join(sorted(wanted)) if len(wanted) < 9 else "a known extension"
            yield from _some(path, below, f"no file of {known} is in this folder")
    else:
        yield folder.found(entry)._replace(path=path)


def _is_wanted(path: str, wanted: frozenset[str]) -> bool:
    suffix, compression = extension(path)
    return suffix in wanted and not (compression and suffix in TAR | VIDEO)


def _some(path: str, found: Iterator[Found], otherwise: str) -> Iterator[Found]:
    first = next(found, None)
    if first is None:
        raise TableError(f"{path}: {otherwise}")
    yield first
    yield from found


class _Folder:
    """The files of a file system, listed folder by folder, so that memory holds one at a time."""

    def __init__(self, files: Any, local: bool) -> None:
        self._files = files
        self._local = local

    def walk(self, root: str) -> Iterator[Found]:
        """All files below ``root``, sorted by path."""
        return (found for found, _ in self._named(root, _MAX_DEPTH, hidden=False))

    def matching(self, pattern: str) -> Iterator[Found]:
        """All files that fit a pattern of fsspec's, sorted by path."""
        magic = _MAGIC.search(pattern)
        assert magic
        root = pattern[: magic.start()].rpartition("/")[0]
        levels = pattern[len(root) :].lstrip("/").split("/")
        depth = _MAX_DEPTH if "**" in levels else len(levels)
        fits = re.compile(glob_translate(pattern)).match
        # A pattern that says so reaches hidden files, too.
        hidden = any(level.startswith((".", "_")) for level in levels)
        return (
            found
            for found, name in self._named(
                root or ("/" if pattern[:1] == "/" else ""), depth, hidden
            )
            if fits(name)
        )

    def found(self, entry: Mapping[str, Any]) -> Found:
        name = str(entry["name"])
        path = name if self._local else str(self._files.unstrip_protocol(name))
        size = entry.get("size")
        etag = entry.get("ETag") or entry.get("etag")
        return Found(
            path,
            size if isinstance(size, int) else None,
            _microseconds(entry),
            str(etag).strip('"') if etag else None,
        )

    def _named(self, root: str, depth: int, hidden: bool) -> Iterator[tuple[Found, str]]:
        try:
            entries = self._files.ls(root, detail=True)
        except FileNotFoundError:
            return  # Gone since it was listed, or a pattern's folder that never was.
        # Object stores remember listings, which may be long and do not come again.
        self._files.invalidate_cache(root)
        named = []
        for entry in entries:
            name = str(entry["name"])
            last = name.rstrip("/").rpartition("/")[2]
            if name.rstrip("/") == root.rstrip("/") or (last[:1] in ("", ".", "_") and not hidden):
                continue
            is_folder = entry["type"] == "directory"
            if entry["type"] == "other":
                # A link, or what is no file at all: a pipe would be waited for.
                if not entry.get("islink"):
                    continue
                is_folder = Path(name).is_dir()
            named.append((name.rstrip("/") + "/" * is_folder, entry))
        for name, entry in sorted(named, key=lambda pair: pair[0]):
            if not name.endswith("/"):
                yield self.found(entry), name
            elif depth > 1 and not self._leads_back(name):
                yield from self._named(name.rstrip("/"), depth - 1, hidden)

    def _leads_back(self, folder: str) -> bool:
        """Whether a local folder is a link to one that it lies in."""
        if not self._local:
            return False
        path = Path(folder)
        return path.is_symlink() and path.resolve() in path.parent.resolve().joinpath("x").parents


def _microseconds(entry: Mapping[str, Any]) -> int | None:
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified"):
        value = entry.get(name)
        if isinstance(value, datetime):
            return round(value.timestamp() * 1_000_000)
        if isinstance(value, int | float):
            return round(value * 1_000_000)
    return None


def as_url(path: str) -> str:
    """The URL by which a listed file is fetched."""
    if not is_local(path):
        return path
    return "file://" + quote_from_bytes(os.fsencode(Path(path).absolute()), safe="/")


# --- Datasets of the Hugging Face hub --------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small text can stand for a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("its front matter uses YAML aliases")
        return super().compose_node(parent, index)


def _data_files(files: Any, folder: str, path: str) -> list[str]:
    """The paths and patterns, relative to it, of the default configuration of a dataset that was
    downloaded from the hub; none where a folder has no card that names any."""
    card = f"{folder}/README.md"
    with errors(f"{path.rstrip('/')}/README.md"):
        try:
            text = files.cat_file(card, end=_MAX_CARD).decode("utf-8", "replace")
        except (FileNotFoundError, IsADirectoryError):
            return []
        front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---\s", text + "\n", re.DOTALL)
        if front is None or "configs" not in front[1]:
            return []
        loader = _PlainLoader(front[1])
        try:
            values = loader.get_single_data()
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"its front matter is not valid YAML: {error}") from error
        finally:
            loader.dispose()
        configs = values.get("configs") if isinstance(values, dict) else None
        return _patterns(configs) if configs else []


def _patterns(configs: object) -> list[str]:
    known = [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
    if not known:
        raise ValueError("its 'configs' is not a list of mappings")
    named = [one for one in known if one.get("default") is True]
    named += [one for one in known if one.get("config_name") == "default"]
    config = (named or known)[0]
    data = config.get("data_files", "" if "data_dir" in config else [])
    flat: list[Any] = []
    for split in data if isinstance(data, list) else [data]:
        paths = split.get("path", list(split.values())) if isinstance(split, dict) else split
        for group in paths if isinstance(paths, list) else [paths]:
            flat += group if isinstance(group, list) else [group]
    prefix = f"{config['data_dir']}/" if "data_dir" in config else ""
    for pattern in flat:
        if not isinstance(pattern, str) or any(map(_escapes, expand(prefix + pattern))):
            raise ValueError(f"its data_files name {pattern!r:.80}, which is no path in the folder")
    return [one for pattern in flat for one in expand(prefix + pattern)]


def _escapes(path: str) -> bool:
    return not path or path[0] == "/" or ":" in path or "\\" in path or ".." in path.split("/")
