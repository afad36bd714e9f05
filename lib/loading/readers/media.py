"""The file that a reader reads, in whichever form a library takes it."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from reelmill.errors import ReelmillError
from reelmill.media.probe import Source
from reelmill.media.torn import head_of, is_mp4

Form: TypeAlias = Literal["path", "bytes", "file"]
"""What libraries take: a name of a local file, all of its bytes, or an open binary file."""

_MAGIC: Final = {
    "matroska": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF....AVI ",
    "flv": rb"FLV\x01",
    "ogg": rb"OggS",
    "asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "mpegts": rb"\x47.{187}\x47",
    "ivf": rb"DKIF",
}


@dataclass(frozen=True)
class Media:
    """One video: the absolute path of a file, all of its bytes, or an open file.

    Attributes:
        name: what errors call it.
    """

    data: Path | bytes | BinaryIO
    name: str
    _lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)

    def source(self) -> Source:
        """For PyAV; an open file is given with a position of its own."""
        return self.data if isinstance(self.data, Path | bytes) else self.file()

    def file(self) -> BinaryIO:
        """A binary file with a position of its own. To be closed, which leaves an open file that
        was given open."""
        if isinstance(self.data, Path):
            return self.data.open("rb")
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        return io.BufferedReader(_View(self.data, self._lock))

    def given_as(self, forms: Collection[Form], open_until: ExitStack) -> Any:
        """The video in the first of these ``forms`` that costs nothing, else in another of them.
        What is opened or written for it is so until ``open_until`` ends."""
        if isinstance(self.data, Path) and "path" in forms:
            return str(self.data)
        if isinstance(self.data, bytes) and "bytes" in forms:
            return self.data
        if "file" in forms:
            return open_until.enter_context(self.file())
        if "bytes" in forms:
            return open_until.enter_context(self.file()).read()
        return str(open_until.enter_context(self._copied()))

    @contextmanager
    def _copied(self) -> Iterator[Path]:
        with tempfile.NamedTemporaryFile(prefix="reelmill-") as copy, self.file() as file:
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield Path(copy.name)

    def begins_as(self, formats: Collection[str]) -> bool:
        """Whether the first bytes are those of a container of one of FFmpeg's ``formats``.

        What opens a file without being told its format could take one that begins otherwise for a
        list of further files, and open these.
        """
        with self.file() as file:
            if "mov" in formats:
                return is_mp4(file)
            head = head_of(file)
        return any(re.match(_MAGIC[name], head, re.DOTALL) for name in formats if name in _MAGIC)

    def check_shared(self) -> None:
        """Raise ReelmillError where another process cannot read it: processes that were forked
        with an open file move one position."""
        if not isinstance(self.data, Path | bytes):
            raise ReelmillError(
                f"{self.name} is an open file, which another process cannot read: open the video "
                "in the worker, or by its path or its bytes"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_shared()
        return Media, (self.data, self.name)


class _View(io.RawIOBase):
    """A file of somebody else's, read by several with a position each."""

    def __init__(self, file: BinaryIO, lock: Any) -> None:
        self._file = file
        self._lock = lock
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            self._file.seek(self._at)
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            with self._lock:
                offset += self._file.seek(0, os.SEEK_END)
        elif whence == os.SEEK_CUR:
            offset += self._at
        if offset < 0:
            raise ValueError(f"a place before the beginning: {offset}")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at
