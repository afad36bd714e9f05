"""USTAR members with fixed headers: the same sample is the same bytes, whoever writes it."""

from __future__ import annotations

import re
import tarfile

from reelmill.errors import ShardError

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE

MAX_MEMBER = 8**11 - 1
"""Bytes in the largest member: the size field of a USTAR header has eleven octal digits."""

MAX_NAME = tarfile.LENGTH_NAME
"""Bytes in the longest member name that needs no prefix field."""

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_FIELD = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

_HIDDEN = re.compile(r"__.*__")

_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)


def _template() -> bytearray:
    """The header that all members share: no owner, read-only, the epoch."""
    info = tarfile.TarInfo("")
    info.mode = 0o444
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE] = bytes(12)
    header[_CHECKSUM] = b" " * 8
    return header


_HEADER = bytes(_template())
_HEADER_SUM = sum(_HEADER)


def member_name(key: str, field: str) -> str:
    """The name of a sample's member, ``<key>.<field>``.

    Raises:
        ShardError: the key or the field would not survive a tar: readers cut a name at its first
            dot and follow slashes, and a USTAR name holds 100 bytes.
    """
    if not _KEY.fullmatch(key):
        raise ShardError(f"sample key {key!r}: a key is made of letters, digits, '_' and '-'")
    if not _FIELD.fullmatch(field):
        raise ShardError(
            f"field {field!r} of sample {key!r}: a field is made of letters, digits, '_' and '-', "
            "with single dots between"
        )
    name = f"{key}.{field}"
    if _HIDDEN.fullmatch(field) or _HIDDEN.fullmatch(name):
        raise ShardError(f"member name {name!r}: readers hide what begins and ends with '__'")
    if len(name) > MAX_NAME:
        raise ShardError(f"member name {name!r} is longer than {MAX_NAME} bytes")
    return name


def header(name: str, size: int) -> bytes:
    """The 512 header bytes of a member, equal to what ``tarfile`` writes for it."""
    if size > MAX_MEMBER:
        raise ShardError(f"{name} has {size} bytes; a tar member holds {MAX_MEMBER} at most")
    encoded = name.encode("ascii")
    octal = b"%011o\0" % size
    total = _HEADER_SUM + sum(encoded) + sum(octal)
    out = bytearray(_HEADER)
    out[: len(encoded)] = encoded
    out[_SIZE] = octal
    out[_CHECKSUM] = b"%06o\0 " % total
    return bytes(out)


def padding(size: int) -> int:
    """Zero bytes that follow ``size`` bytes of data up to the next block."""
    return -size % BLOCK


def trailer(size: int) -> bytes:
    """The zero bytes that end an archive of ``size`` bytes: two blocks, filled to a record."""
    end = size + 2 * BLOCK
    return bytes(2 * BLOCK + -end % RECORD)
