"""What the bytes of a file say without FFmpeg: its kind, its parts, and whether it is torn."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from reelmill.errors import Rejected

_MAX_BOXES = 2**17
"""Of a file of a million empty boxes, no more are looked at."""

_MP4 = re.compile(rb".{4}(ftyp|moov|mdat|moof|free|skip|wide|sidx|styp)", re.DOTALL)
_CONTAINERS = (
    ("MP4", _MP4),
    ("AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    ("Matroska", re.compile(rb"\x1a\x45\xdf\xa3")),
    ("FLV", re.compile(rb"FLV\x01")),
    ("Ogg", re.compile(rb"OggS")),
    ("ASF", re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
)
_OTHERS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89png", "a PNG image"),
    (b"%pdf", "a PDF document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"#extm3u", "a playlist"),
    (b"<mpd", "a DASH manifest"),
    (b"<?xml", "an XML document"),
    (b"{", "JSON"),
)


def size_of(file: BinaryIO) -> int:
    """The bytes of a file; leaves it at its end."""
    return file.seek(0, os.SEEK_END)


def head_of(file: BinaryIO) -> bytes:
    """The first 4096 bytes of a file, or all there are."""
    file.seek(0)
    return file.read(4096)


def is_mp4(file: BinaryIO) -> bool:
    """Whether a file begins as MP4 and MOV files do."""
    return _MP4.match(head_of(file)) is not None


def why_not(file: BinaryIO) -> Rejected:
    """What a file is that FFmpeg cannot open: ``truncated``, ``undecodable`` or ``not_video``."""
    head = head_of(file)
    name = next((name for name, magic in _CONTAINERS if magic.match(head)), None)
    if name == "MP4" and b"moov" not in _boxes(file, size_of(file)):
        return Rejected("truncated", "an MP4 file without its index (no moov box)")
    if name is not None:
        if is_torn(file, size_of(file)):
            return Rejected("truncated", f"the {name} file ends within its header")
        return Rejected("undecodable", f"the header of the {name} file cannot be read")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype html" in text):
        return Rejected("not_video", "this is an HTML page")
    for magic, kind in _OTHERS:
        if text.startswith(magic):
            return Rejected("not_video", f"this is {kind}")
    if not any(head):
        return Rejected("not_video", "the first bytes are all zero")
    if head.isascii() and b"\0" not in head:
        return Rejected("not_video", "this is text")
    return Rejected("not_video", f"an unknown format that begins {head[:8].hex()}")


def is_torn(file: BinaryIO, size: int) -> bool:
    """Whether the container's own structure points past the end of the file of ``size`` bytes."""
    head = head_of(file)
    if head[:4] == b"RIFF":
        return _riff_end(file, size) > size
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segment_end(head) > size
    boxes = _boxes(file, size)
    # Torn media data still hold all samples if the index says so; fragments have no such index.
    vital = {b"moov", b"moof"} | ({b"mdat"} if b"moof" in boxes else set())
    return any(end > size for kind, end in boxes.items() if kind in vital)


def top_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The top-level boxes of an MP4 file of ``size`` bytes: type, start and end in the file."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > size:
            break
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:
            length = size - at
        if length < 8:
            break
        yield header[4:8], at, at + length
        at += length


def _boxes(file: BinaryIO, size: int) -> dict[bytes, int]:
    """The types of the top-level boxes of an MP4 file, each with the end of its last one."""
    return {kind: end for kind, _, end in top_boxes(file, size)}


def _riff_end(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        at += 8 + int.from_bytes(header[4:], "little")
    return at


def _segment_end(head: bytes) -> int:
    """Where Matroska's Segment ends; 0 where its length is left open (a live recording)."""
    length, width = _vint(head, 4)
    at = 4 + width + length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _vint(head, at + 4)
    is_open = length == (1 << 7 * width) - 1
    return 0 if is_open else at + 4 + width + length


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """EBML's variable-length integer at ``at``, and the bytes it takes (none: 0, 0)."""
    if at >= len(data) or not data[at]:
        return 0, 0
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width]) & ((1 << 7 * width) - 1)
    return value, width
