"""Zips: their directory read in pieces, and members unpacked, within bounds whatever they say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from reelmill.errors import Rejected
from reelmill.sequences.members import Member, safe_name

_END: Final = struct.Struct("<4s4H2LH")
_END64_PLACE: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_EXTRA: Final = struct.Struct("<2H")
_LONGEST_END: Final = 0xFFFF + _END.size
_PIECE: Final = 1 << 20
_MAX_DIRECTORY: Final = 1 << 30
# A local header often has longer extra fields than the directory says.
_SLACK: Final = 256
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_UTF8: Final = 0x800
_ZIP64: Final = 0x0001
_FULL: Final = 0xFFFFFFFF
STORED: Final = 0
DEFLATED: Final = 8
_KIND: Final = 0o170000
_REGULAR: Final = 0o100000
_UNIX: Final = 3


def directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the directory of a zip of ``size`` bytes begins and ends.

    Raises:
        Rejected: ``not_a_zip``; ``damaged`` if the directory cannot lie there.
    """
    tail_start = max(0, size - _LONGEST_END - _END64_PLACE.size)
    tail = _at(file, tail_start, size - tail_start)
    place = tail.rfind(b"PK\5\6")
    while place >= 0 and len(tail) - place < _END.size:
        place = tail.rfind(b"PK\5\6", 0, place)
    if place < 0:
        raise Rejected("not_a_zip", "the file is no zip, or not a whole one")
    _, disk, first_disk, _, _, length, start, _ = _END.unpack_from(tail, place)
    end = tail_start + place
    before = place - _END64_PLACE.size
    if before >= 0 and tail[before : before + 4] == b"PK\6\7":
        _, _, at, _ = _END64_PLACE.unpack_from(tail, before)
        record = _at(file, at, _END64.size) if at + _END64.size <= size else b""
        if record[:4] != b"PK\6\6":
            raise Rejected("damaged", "the end of its directory cannot be read")
        _, _, _, _, disk, first_disk, _, _, length, start = _END64.unpack(record)
        end = at
    if disk or first_disk:
        raise Rejected("unsupported_zip", "it is one part of several")
    # What precedes the archive, such as a program that unpacks it, shifts all places in it.
    if start + length != end or length > _MAX_DIRECTORY:
        raise Rejected("damaged", "its directory does not lie where its end says")
    return start, end


def read_directory(file: BinaryIO, start: int, stop: int) -> Iterator[Member]:
    """The regular files that a part of a zip's directory tells of, in its order.

    Memory holds a piece of the directory at a time. What is encrypted, or packed in a way other
    than deflate, has a ``problem``.

    Raises:
        Rejected: ``damaged`` or ``unsafe_name``, after the last entry before it.
    """
    held = b""
    at = fetched = start
    while at < stop:
        head = _ENTRY.unpack_from(held) if len(held) >= _ENTRY.size else None
        length = _ENTRY.size + sum(head[10:13]) if head else _ENTRY.size
        if len(held) < length:
            piece = _at(file, fetched, min(_PIECE, stop - fetched))
            if not piece:
                raise Rejected("damaged", "its directory ends in the middle of an entry")
            fetched += len(piece)
            held += piece
            continue
        entries, used = _whole_entries(held)
        for offset, end in entries:
            member = _member(held[offset:end], (at + offset, at + end))
            if member is not None:
                yield member
        held = held[used:]
        at += used


def _whole_entries(held: bytes) -> tuple[list[tuple[int, int]], int]:
    """Where whole entries begin and end in a piece of a directory, and how much they are."""
    found = []
    at = 0
    while len(held) - at >= _ENTRY.size:
        head = _ENTRY.unpack_from(held, at)
        if head[0] != b"PK\1\2":
            raise Rejected("damaged", "an entry of its directory cannot be read")
        end = at + _ENTRY.size + sum(head[10:13])
        if end > len(held):
            break
        found.append((at, end))
        at = end
    return found, at


def _member(entry: bytes, listed: tuple[int, int]) -> Member | None:
    head = _ENTRY.unpack_from(entry)
    _, made_by, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, mode, start = head
    name_length, extra_length, _ = lengths
    raw = entry[_ENTRY.size : _ENTRY.size + name_length]
    extra = entry[_ENTRY.size + name_length : _ENTRY.size + name_length + extra_length]
    size, packed, start = _wide(extra, size, packed, start)
    name = raw.decode("utf-8", "replace") if flags & _UTF8 else raw.decode("cp437")
    kind = mode >> 16 & _KIND if made_by >> 8 == _UNIX else 0
    if name.endswith("/") or kind not in (0, _REGULAR):
        return None
    problem = None
    if flags & _ENCRYPTED:
        problem = ("encrypted", f"{name[:200]!r} is encrypted")
    elif method not in (STORED, DEFLATED):
        problem = ("unsupported_zip", f"{name[:200]!r} is packed by method {method}, not deflate")
    elif disk:
        problem = ("unsupported_zip", f"{name[:200]!r} lies in another part of the zip")
    elif method == STORED and size != packed:
        problem = ("damaged", f"{name[:200]!r} has two sizes")
    elif packed > size + size // 100 + _SLACK:
        # Deflate makes nothing larger by more than that.
        problem = ("damaged", f"{name[:200]!r} is larger packed than unpacked")
    header = _LOCAL.size + name_length + extra_length + _SLACK
    return Member(safe_name(name), size, packed, start, header, listed, method, crc, problem)


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Sizes and places of an entry, those of Zip64 where 32 bits do not hold them."""
    at = 0
    while len(extra) - at >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra, at)
        body = extra[at + _EXTRA.size : at + _EXTRA.size + length]
        if kind == _ZIP64:
            wide = [body[i : i + 8] for i in range(0, len(body) - 7, 8)]
            given = iter(wide)
            try:
                return tuple(
                    int.from_bytes(next(given), "little") if value == _FULL else value
                    for value in values
                )
            except (StopIteration, RuntimeError) as error:
                raise Rejected("damaged", "an entry lacks its long sizes") from error
        at += _EXTRA.size + length
    return values


def data_place(member: Member, data: bytes) -> int:
    """Where in ``data``, which begin at the local header of a member, its packed data begin.

    Raises:
        Rejected: ``damaged``.
    """
    if len(data) < _LOCAL.size:
        raise _damaged(member, "its header is not there")
    head = _LOCAL.unpack_from(data)
    if head[0] != b"PK\3\4" or head[3] != member.method:
        raise _damaged(member, "its header is not that of the directory")
    place: int = _LOCAL.size + head[9] + head[10]
    return place


def unpack(member: Member, packed: bytes) -> bytes:
    """A member's data, from its packed data.

    Memory is bounded by the size that the directory says.

    Raises:
        Rejected: ``damaged``.
    """
    data = packed
    if member.method == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(packed, member.size + 1)
        except zlib.error as error:
            raise _damaged(member, "its data cannot be unpacked") from error
    if len(data) != member.size:
        raise _damaged(member, f"it is not {member.size} bytes long")
    if zlib.crc32(data) != member.crc:
        raise _damaged(member, "its checksum is another one")
    return data


def _damaged(member: Member, what: str) -> Rejected:
    return Rejected("damaged", f"{member.name[:200]!r}: {what}")


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)
