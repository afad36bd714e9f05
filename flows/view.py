"""Views: a version laid out as numbered tars in a folder, for tools that read a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pyarrow as pa

from reelmill.dataset import Version
from reelmill.errors import ReelmillError
from reelmill.shards.gather import Gatherer
from reelmill.shards.reader import ShardReader
from reelmill.shards.writer import ShardWriter
from reelmill.store import Store
from reelmill.store.model import blob_name

NOTE = """\
This folder is a view of {version} in {store}.
Its tars may be the store's own files, so read them and never write into them:
a byte changed here is a byte changed in every version that holds the shard.
Make a copy before you let a tool rename or patch anything; remove the folder when you are done.
"""

_FICLONE = 0x40049409
"""ioctl request of linux/fs.h: share a file's blocks until one side is written to."""


def make_view(version: Version, folder: Path, *, link: bool = False) -> str:
    """Lay a version out as ``folder/00000.tar``, ``00001.tar``, …, and say how to open it.

    A tar is a clone of the store's (same blocks, copied on write) where the filesystem can do
    that, else a read-only hard link, else a copy. Root gets a copy unless ``link`` is set, since
    no permission keeps root from writing into the store through a link. A shard with samples that
    were removed is laid out anew without them. Shards are numbered without gaps, so that one brace
    pattern names them all.

    Raises:
        ReelmillError: the folder is not empty, or cannot be written.
    """
    shards = [reader for reader in version.shards() if reader.shard.tar]
    kept = {reader.shard.id: version.kept(reader) for reader in shards}
    shards = [reader for reader in shards if kept[reader.shard.id] != set()]
    if not shards:
        raise ReelmillError(f"{version} has no tars to view: it is a table, or holds no samples")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ReelmillError(f"{folder} is not empty; name a new folder")
        backend = version.store.backend
        for number, reader in enumerate(shards):
            shard, keys = reader.shard, kept[reader.shard.id]
            assert shard.tar is not None
            name = blob_name(shard.tar.digest, "tar")
            target = folder / f"{number:05d}.tar"
            if backend.size(name) != shard.tar.size:
                raise ReelmillError(
                    f"shard {shard.id} of {version} is gone or damaged; build again to make it anew"
                )
            if keys is not None:
                _lay_out(version.store, reader, keys, target)
            elif backend.is_local:
                _place(Path(backend.locate(name)), target, link or os.geteuid() != 0)
            else:
                with target.open("xb") as file:
                    file.writelines(backend.stream(name))
            target.chmod(0o444)
        note = NOTE.format(version=version, store=version.store.url)
        (folder / "README.txt").write_text(note, encoding="utf-8")
    except OSError as error:
        raise ReelmillError(f"cannot write {folder}: {error.strerror}") from error
    last = f"{len(shards) - 1:05d}"
    pattern = "00000.tar" if len(shards) == 1 else f"{{00000..{last}}}.tar"
    return f"{folder / pattern}  ({version}, read-only)"


def _lay_out(store: Store, reader: ShardReader, keys: set[str], target: Path) -> None:
    """Write the samples of a shard that have these keys into a tar of their own."""
    rows = [row for row in reader.rows() if row["key"] in keys]
    writer = ShardWriter(target.parent, pa.schema([]))
    try:
        with Gatherer(store, target.parent) as gatherer:
            spans = gatherer.spans([(reader.shard, row) for row in rows])
            for row, span in zip(rows, spans, strict=True):
                writer.add_span(row["key"], span, {})
            written = writer.close()
    except BaseException:
        writer.abort()
        raise
    assert written.path is not None
    written.path.rename(target)


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
