"""Views: a version laid out as numbered tars in a folder, for tools that read a folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from reelmill.dataset import Version
from reelmill.errors import ReelmillError, told
from reelmill.loading.views import Format, open_writer
from reelmill.loading.views.tars import Split, Tar, View
from reelmill.shards import index
from reelmill.shards.gather import Gatherer
from reelmill.shards.reader import ShardReader, stage_columns
from reelmill.shards.writer import ShardWriter, Written
from reelmill.store import Store
from reelmill.store.model import Blob, blob_name

NOTE = """\
This folder is a view of {version} in {store}.
Its tars may be the store's own files, so read them and never write into them:
a byte changed here is a byte changed in every version that holds the shard.
Make a copy before you let a tool rename or patch anything; remove the folder when you are done.
"""

_USUAL = ("train", "val", "validation", "test")
"""Names of splits that most people know."""

# No more than that, since wids puts addresses into a command of a shell.
_ADDRESS = re.compile(r"https?://[A-Za-z0-9._~:/%@+-]+")

_FICLONE = 0x40049409
"""ioctl request of linux/fs.h: share a file's blocks until one side is written to."""


def make_view(
    version: Version,
    folder: Path,
    *,
    link: bool = False,
    formats: Collection[Format] = (),
    others: Mapping[str, Version] | None = None,
    base: str | None = None,
) -> list[str]:
    """Lay a version out as ``folder/00000.tar``, ``00001.tar``, …, and say how to open it.

    A tar is a clone of the store's (same blocks, copied on write) where the filesystem can do
    that, else a read-only hard link, else a copy. Root gets a copy unless ``link`` is set, since
    no permission keeps root from writing into the store through a link. A shard with samples that
    were removed is laid out anew without them. Shards are numbered without gaps, so that one brace
    pattern names them all.

    Args:
        formats: the libraries whose files are written beside the tars. The tars then lie in a
            folder that is named for the version: several libraries cache a tar by its path below
            the view, and would give those of another view for it.
        others: more versions that the view shows, by the names of their splits. The version itself
            is ``train``, unless its dataset has the usual name of another split.
        base: the address at which others find the store by HTTP. No tar is laid out then: the
            files name the store's own.

    Returns:
        Lines of text: where the tars are, and an expression for each of the formats.

    Raises:
        ReelmillError: the folder is not empty, or cannot be written.
    """
    splits = _splits(version, others or {})
    _refuse(splits, formats, base)
    lineage = _lineage(splits) if formats else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ReelmillError(f"{folder} is not empty; name a new folder")
        view = View(folder, splits, lineage, remote=base is not None)
        writers = [open_writer(kind, view) for kind in sorted(set(formats))]
        lines = []
        for split in splits:
            if base is not None:
                tars = _remote(split, base)
            else:
                tars = _laid_out(split, folder, split.folder if formats else "", link)
            paths = []
            for tar in tars:
                paths.append(tar.path)
                for writer in writers:
                    writer.add(tar)
            if base is None:
                lines.append(f"{folder / _pattern(paths)}  ({split.version}, read-only)")
        if base is None:
            labels = ", ".join(str(split.version) for split in splits)
            note = NOTE.format(version=labels, store=version.store.url)
            (folder / "README.txt").write_text(note, encoding="utf-8")
        return lines + [writer.close() for writer in writers]
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or told(error)
        raise ReelmillError(f"cannot write {folder}: {why}") from error


def _lineage(splits: Sequence[Split]) -> list[str]:
    # It takes seconds to import what knows all stages, and a plain view needs none.
    from reelmill.flows.lineage import lineage_lines

    return lineage_lines([split.version for split in splits])


def _splits(version: Version, others: Mapping[str, Version]) -> list[Split]:
    first = version.name if version.name in _USUAL else "train"
    if first in others:
        raise ReelmillError(f"{version} is the split {first}; give the other another name")
    named = {first: version, **others}
    for name, one in named.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise ReelmillError(
                f"{name!r} cannot be a split: small letters, digits and '_', and a letter first"
            )
        if not one.totals.samples or not any(shard.tar for shard in one.manifest.shards):
            raise ReelmillError(f"{one} has no tars to view: it is a table, or holds no samples")
    if len({one.digest for one in named.values()}) < len(named):
        raise ReelmillError("two splits of the view are the same version")
    return [Split(name, one) for name, one in named.items()]


def _refuse(splits: Sequence[Split], formats: Collection[Format], base: str | None) -> None:
    if len(splits) > 1 and not formats:
        raise ReelmillError(
            "a view of several splits is for a library that tells them apart: --for"
        )
    if base is None:
        return
    if not _ADDRESS.fullmatch(base):
        raise ReelmillError(
            f"{base!r} is no address to find the store at: one begins with http:// or https:// and "
            "holds no blanks or quotes"
        )
    if not formats:
        raise ReelmillError("a view without tars is for a library that reads addresses: --for")
    if Format.ENERGON in formats:
        raise ReelmillError("Energon reads tars beside its files, and no addresses")
    for split in splits:
        if split.version.ref.counted.samples != split.version.ref.totals.samples:
            raise ReelmillError(
                f"the tars of {split.version} still hold samples that were removed; a view lays "
                "them out without those, but not by addresses"
            )


def _remote(split: Split, base: str) -> Iterator[Tar]:
    """The store's own tars, by the addresses at which others find them."""
    for reader in split.version.shards():
        if blob := reader.shard.tar:
            path = f"{base.rstrip('/')}/{blob_name(blob.digest, 'tar')}"
            yield _tar(split, path, blob, reader.shard.samples, reader, None)


def _laid_out(split: Split, folder: Path, below: str, link: bool) -> Iterator[Tar]:
    """Lay tars out, one when the next is asked for."""
    (folder / below).mkdir(exist_ok=True)
    number = 0
    for reader in split.version.shards():
        shard = reader.shard
        keys = split.version.kept(reader) if shard.tar else set()
        if keys == set():
            continue
        assert shard.tar is not None
        path = f"{below}/{number:05d}.tar".lstrip("/")
        target = folder / path
        number += 1
        name, backend = blob_name(shard.tar.digest, "tar"), split.version.store.backend
        if backend.size(name) != shard.tar.size:
            raise ReelmillError(
                f"shard {shard.id} of {split.version} is gone or damaged; "
                "build again to make it anew"
            )
        if keys is not None:
            written = _lay_out(split.version.store, reader, keys, target)
            assert written.tar is not None
            tar = _tar(split, path, written.tar, written.samples, reader, keys)
            tar = replace(tar, read_index=partial(index.decode, written.index))
        else:
            if backend.is_local:
                _place(Path(backend.locate(name)), target, link or os.geteuid() != 0)
            else:
                with target.open("xb") as file:
                    file.writelines(backend.stream(name))
            tar = _tar(split, path, shard.tar, shard.samples, reader, None)
        target.chmod(0o444)
        yield tar


def _tar(
    split: Split, path: str, blob: Blob, samples: int, reader: ShardReader, keys: set[str] | None
) -> Tar:
    def field(name: str) -> bytes | None:
        found = (one.fields[name] for one in reader.samples([name], keys) if name in one.fields)
        return next(found, None)

    return Tar(split, path, blob, samples, lambda: reader.table, field)


def _pattern(paths: Sequence[str]) -> str:
    """A brace pattern of tars that are numbered without gaps."""
    if len(paths) == 1:
        return paths[0]
    folder, _, first = paths[0].rpartition("/")
    last = paths[-1].rpartition("/")[2]
    numbers = f"{{{first.removesuffix('.tar')}..{last.removesuffix('.tar')}}}.tar"
    return f"{folder}/{numbers}".lstrip("/")


def _lay_out(store: Store, reader: ShardReader, keys: set[str], target: Path) -> Written:
    """Write the samples of a shard that have these keys into a tar of their own."""
    rows = [row for row in reader.rows() if row["key"] in keys]
    writer = ShardWriter(target.parent, index.own_columns(reader.table.schema), reader.order)
    try:
        with Gatherer(store, target.parent) as gatherer:
            spans = gatherer.spans([(reader.shard, row) for row in rows])
            for row, span in zip(rows, spans, strict=True):
                writer.add_span(row["key"], span, stage_columns(row))
            written = writer.close()
    except BaseException:
        writer.abort()
        raise
    assert written.path is not None
    written.path.rename(target)
    return written


def _place(source: Path, target: Path, may_link: bool) -> None:
    with contextlib.suppress(OSError):
        _clone(source, target)
        return
    target.unlink(missing_ok=True)
    if may_link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _clone(source: Path, target: Path) -> None:
    import fcntl

    with source.open("rb") as whole, target.open("xb") as copy:
        fcntl.ioctl(copy.fileno(), _FICLONE, whole.fileno())
