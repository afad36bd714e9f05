"""FFmpeg's names of how pictures store colour, by the code points of ITU-T H.273."""

from __future__ import annotations

from typing import Final

HDR_TRANSFERS: Final = ("smpte2084", "arib-std-b67")
"""Transfer functions of high dynamic range: PQ (HDR10, Dolby Vision) and HLG."""

_RANGES: Final = {1: "tv", 2: "pc"}

_MATRICES: Final = {
    0: "gbr",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    11: "smpte2085",
    12: "chroma-derived-nc",
    13: "chroma-derived-c",
    14: "ictcp",
    15: "ipt-c2",
    16: "ycgco-re",
    17: "ycgco-ro",
}

_PRIMARIES: Final = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}

_TRANSFERS: Final = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}


def range_name(code: int) -> str | None:
    """``tv`` (limited) or ``pc`` (full); None where the stream does not tell."""
    return _RANGES.get(code)


def matrix_name(code: int) -> str | None:
    """The matrix from RGB to YUV, such as ``bt709``; ``gbr`` is none. None where untagged."""
    return _MATRICES.get(code)


def primaries_name(code: int) -> str | None:
    """The colours that red, green and blue stand for, such as ``bt2020``. None where untagged."""
    return _PRIMARIES.get(code)


def transfer_name(code: int) -> str | None:
    """The curve from light to values, such as ``smpte2084``. None where untagged."""
    return _TRANSFERS.get(code)
