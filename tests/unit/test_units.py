from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelmill.units import (
    MAX_BYTES,
    Bytes,
    Number,
    Seconds,
    Share,
    canonical,
    format_bytes,
    format_seconds,
    nearest,
    parse_bytes,
    parse_number,
    parse_seconds,
    parse_share,
)


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    length: Annotated[Seconds, Field(gt=0)] = Decimal("8.0")
    size: Bytes = 1024
    share: Share = Decimal("0.50")
    threshold: Number = Decimal(27)
    pause: Seconds | None = None


micros = st.integers(0, 10**17)
exact = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**8)).filter(
    lambda number: abs(number) < 10**17
)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (8, "8"),
        (0, "0"),
        (0.5, "0.5"),
        (0.1, "0.1"),
        (Decimal("2.50"), "2.5"),
        ("8", "8"),
        (" 8.000 ", "8"),
        ("1e1", "10"),
        ("2s", "2"),
        ("2 S", "2"),
        ("500ms", "0.5"),
        ("1m30s", "90"),
        ("1 m 30 s", "90"),
        ("1.5h", "5400"),
        ("250us", "0.00025"),
        ("250µs", "0.00025"),
        ("250μs", "0.00025"),
        (".5s", "0.5"),
        ("7d", "604800"),
        ("1d2h3m4s5ms6us", "93784.005006"),
        ("-0", "0"),
    ],
)
def test_seconds(given: object, seconds: str) -> None:
    assert canonical(parse_seconds(given)) == seconds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("8kg", "'8kg' has an unknown unit kg; units are d, h, m, s, ms, us"),
        ("8sec", "'8sec' has an unknown unit sec, did you mean s? units are d, h, m, s, ms, us"),
        ("8 Minutes", "'8 Minutes' has an unknown unit Minutes, did you mean m? units are "),
        ("8 mins", "did you mean m?"),
        ("1 milisecond", "did you mean ms?"),
        ("8%", "'8%' has an unknown unit %; units are"),
        ("30s1m", "'30s1m' must hold each unit once, the largest first"),
        ("1m1m", "'1m1m' must hold each unit once, the largest first"),
        ("-2s", "'-2s' is below zero"),
        (-2, "-2 is below zero"),
        ("0.0000001", "'0.0000001' is finer than a microsecond"),
        ("0.5us", "'0.5us' is finer than a microsecond"),
        (0.1 + 0.2, "0.30000000000000004 is finer than a microsecond"),
        (float("inf"), "inf is not a finite number"),
        (float("nan"), "nan is not a finite number"),
        ("nan", "'nan' cannot be read; write a duration such as 8, 0.5, 500ms or 1m30s"),
        ("", "'' cannot be read; write a duration"),
        ("1:30", "'1:30' cannot be read"),
        ("1m30", "'1m30' cannot be read"),
        ("s", "'s' cannot be read"),
        ("1_000", "'1_000' cannot be read"),
        ("\N{FULLWIDTH DIGIT EIGHT}", "cannot be read"),
        ("1" * 500, "cannot be read"),
        ("9" * 36 + "d", "has more than 36 digits before or after the decimal point"),
        (True, "True has a wrong type; write a duration"),
        (None, "None has a wrong type"),
        ([1], "[1] has a wrong type"),
    ],
)
def test_bad_seconds(given: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_seconds(given)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (0, 0),
        (4096, 4096),
        (1e9, 10**9),
        ("4096", 4096),
        ("1e9", 10**9),
        ("512B", 512),
        ("512 b", 512),
        ("1kB", 1000),
        ("1 KB", 1000),
        ("1kb", 1000),
        ("500MB", 500 * 10**6),
        ("1 GiB", 2**30),
        ("1gib", 2**30),
        ("1.5GiB", 3 * 2**29),
        ("2 TiB", 2**41),
        ("1PB", 10**15),
        (MAX_BYTES, MAX_BYTES),
    ],
)
def test_bytes(given: object, size: int) -> None:
    parsed = parse_bytes(given)
    assert parsed == size
    assert type(parsed) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "10k",
            "'10k' has an unknown unit k, did you mean kB? units are B, kB, MB, GB, TB, PB, KiB",
        ),
        ("10 Mb", "'10 Mb' has an unknown unit Mb, did you mean MB?"),
        ("10 parsecs", "'10 parsecs' has an unknown unit parsecs; units are B"),
        ("1GB5MB", "'1GB5MB' must be one number and one unit"),
        ("0.1B", "'0.1B' is not a whole number of bytes"),
        (1.5, "1.5 is not a whole number of bytes"),
        (-1, "-1 is below zero"),
        ("9 PiB", f"'9 PiB' is more than {MAX_BYTES} bytes"),
        (MAX_BYTES + 1, f"is more than {MAX_BYTES} bytes"),
        ("big", "'big' cannot be read; write a size such as 4096, 500MB or 1.5GiB"),
        (False, "False has a wrong type"),
    ],
)
def test_bad_bytes(given: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bytes(given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "share"),
    [
        (0, "0"),
        (1, "1"),
        (0.5, "0.5"),
        ("0.25", "0.25"),
        ("50%", "0.5"),
        ("50 %", "0.5"),
        ("12.5%", "0.125"),
        ("0%", "0"),
        ("100%", "1"),
    ],
)
def test_share(given: object, share: str) -> None:
    assert canonical(parse_share(given)) == share


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (50, "50 is not between 0 and 1 (0% and 100%); did you mean 50%?"),
        ("150%", "'150%' is not between 0 and 1 (0% and 100%)"),
        (-0.1, "-0.1 is not between 0 and 1"),
        (101, "101 is not between 0 and 1 (0% and 100%)"),
        ("half", "'half' cannot be read; write a share such as 0.5 or 50%"),
        ("1s", "'1s' cannot be read; write a share"),
        ("5%5%", "'5%5%' cannot be read; write a share"),
    ],
)
def test_bad_share(given: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_share(given)
    assert str(caught.value).startswith(message)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in message)


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (27, "27"),
        (-3, "-3"),
        (27.0, "27"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        ("0.350", "0.35"),
        ("-1e-3", "-0.001"),
        ("+5.", "5"),
        (Decimal("1E+3"), "1000"),
        ("0e999", "0"),
        (-0.0, "0"),
        ("123456789012345678.123456789012345678", "123456789012345678.123456789012345678"),
    ],
)
def test_number(given: object, number: str) -> None:
    assert canonical(parse_number(given)) == number


@pytest.mark.parametrize(
    "given",
    [
        *("", "x", "1,5", "0x10", "1 2", "1e400", "1e-400", "1e36", "1" * 81),
        *(10**36, 1e-37, float("-inf"), Decimal("1e999999999"), Decimal("sNaN")),
        *(True, None, b"1", [1]),
    ],
)
def test_bad_number(given: object) -> None:
    with pytest.raises(ValueError):
        parse_number(given)


@given(exact)
def test_number_round_trip(number: Decimal) -> None:
    text = canonical(number)
    assert parse_number(text) == number
    assert canonical(parse_number(text)) == text
    assert "e" not in text.lower()


@given(st.floats(min_value=1e-3, max_value=1e12))
def test_float_means_its_shortest_spelling(value: float) -> None:
    assert float(parse_number(value)) == value


@given(micros)
def test_seconds_round_trip(us: int) -> None:
    seconds = Decimal(us) / 10**6
    params = Params(pause=seconds)
    text = json.loads(params.model_dump_json())["pause"]
    assert text == canonical(seconds)
    assert Params(pause=text) == params
    assert parse_seconds(f"{us}us") == seconds


@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_terms_add_up(hours: int, minutes: int, seconds: int, ms: int) -> None:
    text = f"{hours}h{minutes}m {seconds} s{ms}ms"
    assert (
        parse_seconds(text) == Decimal(hours * 3600 + minutes * 60 + seconds) + Decimal(ms) / 1000
    )


@given(st.integers(0, MAX_BYTES))
def test_bytes_round_trip(size: int) -> None:
    params = Params(size=size)
    assert json.loads(params.model_dump_json())["size"] == size
    assert parse_bytes(f"{size} B") == size


@given(st.integers(0, 10**9))
def test_share_round_trip(parts: int) -> None:
    share = Decimal(parts) / 10**9
    params = Params(share=f"{canonical(share * 100)}%")
    assert params.share == share
    assert Params.model_validate_json(params.model_dump_json()) == params


@given(st.text(max_size=100) | st.from_regex(r"[-+0-9.eE]{0,12} ?[a-zA-Z%µ]{0,4}", fullmatch=True))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    for parse in (parse_seconds, parse_bytes, parse_share, parse_number):
        message = ""
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 300


@given(st.integers(0, 2**50))
@example(1023)
@example(1024)
@example(1024**2 - 1)
@example(1024**3 - 1)
def test_formatted_bytes_read_back_within_rounding(size: int) -> None:
    text = format_bytes(size)
    number, unit = text.split()
    scale = parse_bytes(f"1 {unit}")
    assert abs(Fraction(number) * scale - size) <= Fraction(scale, 20)
    assert Fraction(number) < 1024


@given(st.integers(0, 10**13))
@example(999_999)
@example(59_970_000)
@example(3_599_900_000)
@example(86_399_999_999)
def test_formatted_seconds_read_back_within_rounding(us: int) -> None:
    seconds = Decimal(us) / 10**6
    read = parse_seconds(format_seconds(seconds))
    steps = {"0.001": "0", "1": "0.001", "60": "0.1", "3600": "1", "86400": "60", "1e12": "3600"}
    step = next(step for limit, step in steps.items() if seconds < Decimal(limit))
    assert abs(read - seconds) <= Decimal(step) / 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.00025, "250us"),
        (0.85, "850ms"),
        (0.9996, "1s"),
        (8.5, "8.5s"),
        (8, "8s"),
        (59.97, "1m"),
        (90, "1m30s"),
        (3599.7, "1h"),
        (7500, "2h5m"),
        (90000, "1d1h"),
        (-90, "-1m30s"),
        (Decimal("1.25"), "1.3s"),
    ],
)
def test_format_seconds(seconds: float | Decimal, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**61, "2048.0 PiB"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_json_holds_no_floats_and_one_spelling() -> None:
    spelt = Params(length="1m30s", size="1 GiB", share="50%", threshold=0.35, pause=2.5)
    assert json.loads(spelt.model_dump_json()) == {
        "length": "90",
        "size": 2**30,
        "share": "0.5",
        "threshold": "0.35",
        "pause": "2.5",
    }
    assert json.loads(Params().model_dump_json()) == {
        "length": "8",
        "size": 1024,
        "share": "0.5",
        "threshold": "27",
        "pause": None,
    }
    assert spelt.model_dump()["length"] == Decimal(90)


def test_bounds_of_a_field_still_hold() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Params(length="0s")


def test_schema_takes_what_people_write_into_a_form() -> None:
    properties = Params.model_json_schema()["properties"]
    written = {
        "length": ["8", "8s", "1m30s", "1.5 H", "500 ms", "20\N{MICRO SIGN}s", " 1d 2h "],
        "size": ["4096", "1 GiB", "1.5gib", "500MB", "2 kB"],
        "share": ["0.5", "50%", "12.5 %", "1"],
    }
    for name, texts in written.items():
        assert properties[name]["type"] == "string"
        for text in [*texts, *properties[name]["examples"]]:
            assert re.search(properties[name]["pattern"], text), text
            Params(**{name: text})
        for text in ["", "-1s", "8 parsecs", "soon"]:
            assert not re.search(properties[name]["pattern"], text), text
    assert properties["threshold"]["type"] == "number"
    assert properties["share"]["default"] == "0.50"
    serialized = Params.model_json_schema(mode="serialization")["properties"]
    assert serialized["length"]["type"] == "string"
    assert serialized["size"]["type"] == "integer"


def test_nearest() -> None:
    assert nearest("max_secondz", ["min_seconds", "max_seconds"]) == "max_seconds"
    assert nearest("zzz", ["download", "split"]) is None
    assert nearest("x" * 10**6, ["download"]) is None
