"""NAL units of H.264 and HEVC: splitting packets, and the sets of parameters in a header.

A header ("extradata") is Annex B (start codes) or MP4's box ``avcC`` or ``hvcC``; packets are split
as it tells: by start codes, or by lengths in front of each unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_H264_SLICES = range(1, 6)
_H264_SPS, _H264_PPS, _H264_DELIMITER = 7, 8, 9
_HEVC_SLICES = range(32)
_HEVC_SPS = 33

_IDR = 5
_INTRA = (2, 4, 7, 9)
"""Types of slices that refer to no other picture."""
_HIGH = 100


@dataclass(frozen=True)
class Sets:
    """H.264's sequence and picture parameter sets, each one NAL unit."""

    sequence: tuple[bytes, ...]
    picture: tuple[bytes, ...]

    @property
    def ids(self) -> set[int]:
        """The numbers that the sets go by, of both kinds. Raises ``ValueError`` where they end
        early."""
        return {_number(unit[4:]) for unit in self.sequence} | {
            _number(unit[1:]) for unit in self.picture
        }


def units(data: bytes, prefix: int) -> Iterator[bytes]:
    """The NAL units of a packet, whose lengths have ``prefix`` bytes (0: start codes part them).

    Raises ``ValueError`` where a length points behind the packet.
    """
    at = 0
    while prefix and at < len(data):
        begin = at + prefix
        at = begin + int.from_bytes(data[at:begin])
        if at > len(data):
            raise ValueError("a NAL unit reaches behind its packet")
        if begin < at:
            yield data[begin:at]
    if prefix:
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        begin = at + 3
        at = data.find(b"\0\0\1", begin)
        if unit := data[begin : at if at >= 0 else len(data)].rstrip(b"\0"):
            yield unit


def prefix_of(header: bytes, codec: str) -> int:
    """How many bytes of length are in front of each NAL unit; 0 for Annex B.

    Raises ``ValueError`` where the header of ``codec`` (``h264`` or ``hevc``) ends early.
    """
    if header[:3] == b"\0\0\1" or header[:4] == b"\0\0\0\1":
        return 0
    at = 4 if codec == "h264" else 21
    if len(header) <= at:
        raise ValueError("the header is too short")
    return (header[at] & 3) + 1


def sequence_sets(data: bytes, header: bytes, codec: str) -> Iterator[bytes]:
    """The sequence parameter sets in front of a packet's first slice."""
    for unit in units(data, prefix_of(header, codec)):
        kind = _kind(unit) if codec == "h264" else unit[0] >> 1 & 0x3F
        if kind in (_H264_SLICES if codec == "h264" else _HEVC_SLICES):
            return
        if kind == (_H264_SPS if codec == "h264" else _HEVC_SPS):
            yield unit


def is_idr(data: bytes, prefix: int) -> bool:
    """Whether a packet of H.264 is a picture with which a decoder forgets all others."""
    return any(_kind(unit) == _IDR for unit in units(data, prefix))


def begins_intra(data: bytes, prefix: int) -> bool:
    """Whether a packet of H.264 begins with a slice that refers to no other picture. Where pictures
    are refreshed bit by bit, containers mark those as keyframes from which on that begins.

    Raises ``ValueError`` where a length points behind the packet, or the slice ends early.
    """
    slices = (unit for unit in units(data, prefix) if _kind(unit) in (1, _IDR))
    first = next(slices, None)
    return first is None or _numbers(first[1:13], 2)[1] in _INTRA


def is_readable(data: bytes, header: bytes) -> bool:
    """Whether a packet of H.264 is whole and begins a picture that stands for itself: its units
    fill it, and the first slice holds the picture's first block and names sets of the header. Such
    a packet gives a frame; what is damaged further inside, decoders conceal."""
    try:
        found = list(units(data, prefix_of(header, "h264")))
        slices = [unit for unit in found if _kind(unit) in _H264_SLICES]
        if not slices or _kind(slices[0]) != _IDR:
            return False
        first, kind, number = _numbers(slices[0][1:9], 3)
        known = {_number(unit[1:]) for unit in parse_sets(header).picture}
    except ValueError:
        return False
    return first == 0 and kind in _INTRA and number in known


def framed(data: bytes, prefix: int) -> bytes:
    """A packet of H.264 as MP4 has it: 4 bytes of length in front of each unit, no parameter sets
    (they are in the header), no delimiters."""
    kept = [
        unit
        for unit in units(data, prefix)
        if _kind(unit) not in (_H264_SPS, _H264_PPS, _H264_DELIMITER)
    ]
    return b"".join(len(unit).to_bytes(4) + unit for unit in kept)


def parse_sets(header: bytes) -> Sets:
    """The parameter sets in a header of H.264.

    Raises ``ValueError`` where it ends early or has none.
    """
    listed = prefix_of(header, "h264") > 0
    found = list(_listed(header) if listed else units(header, 0))
    sets = Sets(
        tuple(unit for unit in found if _kind(unit) == _H264_SPS),
        tuple(unit for unit in found if _kind(unit) == _H264_PPS),
    )
    if not sets.sequence or not sets.picture or min(map(len, sets.sequence)) < 5:
        raise ValueError("the header has no parameter sets")
    if max(map(len, sets.sequence + sets.picture)) > 0xFFFF:
        raise ValueError("a parameter set is too long for a header")
    return sets


def _listed(header: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (0x1F, 0xFF):
        count = _bytes(header, at, 1)[0] & mask
        at += 1
        for _ in range(count):
            length = int.from_bytes(_bytes(header, at, 2))
            if length:
                yield _bytes(header, at + 2, length)
            at += 2 + length


def _bytes(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise ValueError("the header ends early")
    return data[at : at + count]


def compose_header(both: Sequence[Sets], chroma: int, bits: int) -> bytes:
    """``avcC`` with the parameter sets of ``both``, for pictures of the standard's chroma format
    ``chroma`` (1: 4:2:0, 2: 4:2:2) and ``bits`` bits per sample.

    Raises ``ValueError`` where there are too many.
    """
    sequence = [unit for sets in both for unit in sets.sequence]
    picture = [unit for sets in both for unit in sets.picture]
    if len(sequence) > 0x1F or len(picture) > 0xFF:
        raise ValueError("there are too many parameter sets for a header")
    profile, level = (max(unit[at] for unit in sequence) for at in (1, 3))
    flags = sequence[0][2]
    for unit in sequence:
        flags &= unit[2]
    parts = [bytes([1, profile, flags, level, 0xFC | 3, 0xE0 | len(sequence)])]
    parts += [len(unit).to_bytes(2) + unit for unit in sequence]
    parts.append(bytes([len(picture)]))
    parts += [len(unit).to_bytes(2) + unit for unit in picture]
    if profile >= _HIGH:
        parts.append(bytes([0xFC | chroma, 0xF8 | (bits - 8), 0xF8 | (bits - 8), 0]))
    return b"".join(parts)


def _kind(unit: bytes) -> int:
    return unit[0] & 0x1F


def _number(data: bytes) -> int:
    """The Exp-Golomb code (unsigned) that ``data`` begins with; small ones need no unescaping."""
    value = int.from_bytes(data[:4].ljust(4, b"\0"))
    zeros = 32 - value.bit_length()
    if zeros > 15 or len(data) * 8 < 2 * zeros + 1:
        raise ValueError("a parameter set ends early")
    return (value >> (31 - 2 * zeros)) - 1


def _numbers(data: bytes, count: int) -> list[int]:
    """The Exp-Golomb codes (unsigned) that ``data`` begins with."""
    bits = f"{int.from_bytes(data):0{8 * len(data)}b}"
    found = []
    for _ in range(count):
        zeros = bits.find("1")
        if zeros < 0 or len(bits) < 2 * zeros + 1:
            raise ValueError("a slice ends early")
        found.append(int(bits[zeros : 2 * zeros + 1], 2) - 1)
        bits = bits[2 * zeros + 1 :]
    return found
