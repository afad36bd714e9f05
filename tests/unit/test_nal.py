"""NAL units: packets and headers of H.264 that are split, joined and, from strangers, broken."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.media.cut import nal
from reelmill.media.cut.nal import Sets

SEQUENCE = bytes([0x67, 100, 0, 10, 0x80, 0x55])  # number 0
OWN = bytes([0x67, 77, 0x40, 30, 0x60, 0x55])  # number 2
PICTURE = bytes([0x68, 0x80])  # number 0
UNITS = st.lists(st.binary(min_size=1, max_size=9).map(lambda unit: b"\x41" + unit + b"\x80"))


def _is_plain(unit: bytes) -> bool:
    """Whether a unit has no start code in it, as emulation prevention sees to."""
    return b"\0\0\0" not in unit and b"\0\0\1" not in unit


@given(UNITS.map(lambda units: [unit for unit in units if _is_plain(unit)]), st.integers(1, 4))
def test_units_come_back_from_both_ways_to_part_them(units: list[bytes], prefix: int) -> None:
    lengths = b"".join(len(unit).to_bytes(prefix) + unit for unit in units)
    codes = b"".join(b"\0\0\0\1" + unit for unit in units)
    assert list(nal.units(lengths, prefix)) == units
    assert list(nal.units(codes, 0)) == units
    assert nal.framed(codes, 0) == b"".join(len(unit).to_bytes(4) + unit for unit in units)


def test_a_header_comes_back_with_the_sets_of_both() -> None:
    both = [Sets((SEQUENCE,), (PICTURE,)), Sets((OWN,), (b"\x68\x60",))]
    header = nal.compose_header(both, 1, 8)
    assert nal.parse_sets(header) == Sets((SEQUENCE, OWN), (PICTURE, b"\x68\x60"))
    assert nal.prefix_of(header, "h264") == 4
    # The highest profile and level, and the constraints that all keep to.
    assert header[:4] == bytes([1, 100, 0, 30])
    assert header[-4:] == bytes([0xFD, 0xF8, 0xF8, 0])


def test_sets_in_start_codes_are_the_same() -> None:
    codes = b"".join(b"\0\0\0\1" + unit for unit in (SEQUENCE, PICTURE))
    assert nal.parse_sets(codes) == Sets((SEQUENCE,), (PICTURE,))
    assert nal.parse_sets(codes).ids == {0}
    assert Sets((OWN,), (b"\x68\x60",)).ids == {2}


def test_sets_in_front_of_a_picture_are_found_and_no_others() -> None:
    header = nal.compose_header([Sets((SEQUENCE,), (PICTURE,))], 1, 8)
    packet = [b"\x09\xf0", OWN, PICTURE, b"\x65\x88", SEQUENCE]
    data = b"".join(len(unit).to_bytes(4) + unit for unit in packet)
    assert list(nal.sequence_sets(data, header, "h264")) == [OWN]
    assert nal.is_idr(data, 4)
    assert not nal.is_idr(b"\0\0\0\2\x41\x88", 4)
    # Parameter sets and delimiters are left out of what is written.
    assert nal.framed(data, 4) == b"\0\0\0\2\x65\x88"


@pytest.mark.parametrize("header", [b"", b"\1", bytes(5), bytes(300), b"\0\0\1\x67", b"\0\0\1\x68"])
def test_headers_without_sets_are_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        nal.parse_sets(header)


@given(st.binary(max_size=80), st.binary(max_size=80), st.sampled_from(["h264", "hevc"]))
def test_whatever_strangers_send_is_a_value_error_at_most(
    header: bytes, data: bytes, codec: str
) -> None:
    with suppress(ValueError):
        list(nal.sequence_sets(data, header, codec))
    with suppress(ValueError):
        sets = nal.parse_sets(header)
        assert all(number >= 0 for number in sets.ids)
        assert nal.parse_sets(nal.compose_header([sets], 1, 8)) == sets
