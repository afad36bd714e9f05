"""Tars as they stream by: whole ones, or an error.

``tarfile``, and webdataset with it, takes a tar that breaks off between two members, or whose next
header cannot be read, for one that ends there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from reelmill.errors import ShardError
from reelmill.shards.tar import BLOCK, padding

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER: Final = 1 << 20
_SIZE: Final = slice(124, 136)
_CHECKSUM: Final = slice(148, 156)
_KIND: Final = slice(156, 157)
_ZEROS: Final = bytes(BLOCK)
_NO_DATA: Final = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])
_PAX: Final = frozenset([b"x", b"X"])
_SPARSE: Final = b"S"
_MAX_PAX: Final = 1 << 20
_PAX_SIZE: Final = re.compile(rb"[0-9]+ size=([0-9]{1,19})\n")

_UNPACKED: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


def checked(file: BinaryIO, name: str) -> BinaryIO:
    """The bytes of a tar, packed by gzip, bzip2 or xz or not at all, unpacked; for reading from
    first to last. Where they turn out to be no whole tar, reading raises ``ShardError``.

    Args:
        name: what messages call it.
    """
    raw = file if isinstance(file, io.IOBase) else _Raw(file)
    buffered = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER)
    head = buffered.peek(8)
    unpacked = next((kind for mark, kind in _UNPACKED.items() if head.startswith(mark)), None)
    plain = buffered if unpacked is None else unpacked(buffered)
    return cast(BinaryIO, _Checked(cast(BinaryIO, plain), buffered, name))


class _Raw(io.RawIOBase):
    """Anything with ``read``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self._file, "close"):
            self._file.close()
        super().close()


class _Checked(io.BufferedIOBase):
    """Follows a tar from header to header as it is read."""

    def __init__(self, file: BinaryIO, below: io.IOBase, name: str) -> None:
        self._file = file
        self._below = below
        self._name = name
        self._place = 0
        self._next = 0
        self._held = bytearray()
        self._wanted = BLOCK
        self._in_pax = False
        self._pax_size: int | None = None
        self._is_after_zeros = False
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            data = self._file.read(-1 if size is None else size)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise ShardError(f"{self._name} cannot be unpacked: {error}") from error
        if not self._ended:
            self._follow(data)
            is_all = not data or size is None or size < 0
            if is_all and size != 0 and not (self._ended or self._is_after_zeros):
                raise ShardError(
                    f"{self._name} breaks off after {self._place:,} bytes, before the end mark of "
                    "a tar"
                )
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._below.close()
        super().close()

    def _follow(self, data: bytes) -> None:
        start = self._place
        self._place += len(data)
        while not self._ended and self._next < self._place:
            begin = self._next - start
            piece = data[begin : begin + self._wanted - len(self._held)]
            self._held += piece
            self._next += len(piece)
            if len(self._held) < self._wanted:
                return
            block = bytes(self._held)
            self._held.clear()
            if self._in_pax:
                self._in_pax, self._wanted = False, BLOCK
                sizes = _PAX_SIZE.findall(block)
                self._pax_size = int(sizes[-1]) if sizes else None
            else:
                self._header(block)

    def _header(self, block: bytes) -> None:
        if block == _ZEROS:
            # Two make the end mark; some programs write one, but nothing behind it.
            self._ended, self._is_after_zeros = self._is_after_zeros, True
            return
        if self._is_after_zeros:
            raise self._damaged()
        size, kind = self._number(block[_SIZE]), block[_KIND]
        total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
        stated = self._number(block[_CHECKSUM])
        # Some old programs sum bytes up as signed ones.
        if size < 0 or (stated != total and stated != total - 256 * sum(b > 127 for b in block)):
            raise self._damaged()
        if kind in _PAX and size <= _MAX_PAX:
            self._in_pax, self._wanted = True, max(BLOCK, size + padding(size))
            return
        if kind == _SPARSE:
            # Its map may be longer than its header, and reaches nobody who loads samples.
            self._ended = True
        if self._pax_size is not None:
            size, self._pax_size = self._pax_size, None
        self._next += 0 if kind in _NO_DATA else size + padding(size)

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
        try:
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise self._damaged() from None

    def _damaged(self) -> ShardError:
        if self._next == BLOCK:
            return ShardError(f"{self._name} is no tar")
        begin = self._next - (2 if self._is_after_zeros else 1) * BLOCK
        return ShardError(f"{self._name} has a damaged header at byte {begin:,}")
