"""Canonical JSON: what the fast way writes is what RFC 8785 asks for."""

from __future__ import annotations

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from reelmill.digest import plain_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1e4, 1e4)
    | st.text(st.characters(exclude_categories=("Cs",)))
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=20
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_document_is_canonical(value: dict[str, Any]) -> None:
    assert plain_json(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, b"0"),
        (-0.0, b"0"),
        (25.0, b"25"),
        (29.97003, b"29.97003"),
        (1e-7, b"1e-7"),
        (1e21, b"1e+21"),
        (1e15, b"1000000000000000"),
        ("\x7f\u2028\n\x01", b'"\x7f\xe2\x80\xa8\\n\\u0001"'),
    ],
)
def test_numbers_and_texts_are_written_as_in_ecmascript(value: Any, text: bytes) -> None:
    assert plain_json({"a": value}) == b'{"a":' + text + b"}"


@pytest.mark.parametrize("value", [float("nan"), 2**60, {1: 2}, "\ud800", {1, 2}])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        plain_json({"a": value})
