"""The parameters of a shuffle: what may be said, and what of it an action's key holds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from reelmill.tasks.contract import key_params
from reelmill.tasks.shuffle import ShuffleParams

SPLITS = {"train": "90%", "val": "5%", "test": "5%"}


def key(**params: Any) -> dict[str, Any]:
    return key_params(ShuffleParams.model_validate(params))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"samples_per_shard": 1, "bytes_per_shard": 1}, "not both"),
        ({"bytes_per_shard": 0}, "more than 0"),
        ({"splits": {"train": "90%"}, "part": "train"}, "splits come to 90% instead of 100%"),
        ({"splits": {"a": "99.9%", "b": "0.2%"}, "part": "a"}, "come to 100.1% instead"),
        ({"splits": SPLITS}, "part must be one of splits: test, train, val"),
        ({"splits": SPLITS, "part": "dev"}, "part must be one of splits"),
        ({"splits": {"Train": "100%"}, "part": "Train"}, "should match pattern"),
        ({"splits": ["train"], "part": "train"}, "write parts as name=share"),
        ({"splits": ["a=50%", "a=50%"], "part": "a"}, "two parts have the same name"),
        ({"part": "train"}, "part needs splits"),
        ({"split_seed": 1}, "split_seed needs splits"),
        ({"split_column": "channel"}, "split_column needs splits"),
        ({"split_by": "sample"}, "split_by needs splits"),
        (
            {"splits": SPLITS, "part": "val", "split_by": "sample", "split_column": "channel"},
            "split_by or split_column, not both",
        ),
        ({"compact": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShuffleParams.model_validate(params)


def test_what_has_no_effect_is_in_no_key() -> None:
    plain = {"samples_per_shard": 1000, "bytes_per_shard": None, "seed": 0}
    assert key() == key(samples_per_shard=1000) == key(compact=7) == plain


def test_a_key_holds_where_a_part_lies_and_nothing_of_the_others() -> None:
    found = key(splits=SPLITS, part="train")
    assert found["splits"] == {"from": "0.05", "to": "0.95"}
    assert "part" not in found
    assert key(splits={"train": "90%", "tune": "5%", "a": "5%"}, part="train") == found
    assert key(splits=["test=5%", "val = 0.05", "train=90%"], part="train") == found
    assert key(splits=SPLITS, part="val")["splits"] == {"from": "0.95", "to": "1"}
    by_column = key(splits=SPLITS, part="val", split_column="channel")
    assert "split_by" not in by_column
    assert by_column["split_column"] == "channel"


def test_what_travels_to_a_worker_means_the_same_there() -> None:
    for params in (
        {"splits": SPLITS, "part": "val", "split_column": "channel", "split_seed": 3},
        {"splits": {"a": "33.333333333%", "b": "66.666666667%"}, "part": "b"},
        {"bytes_per_shard": "1 GiB", "compact": 3, "seed": 2**53 - 1},
    ):
        here = ShuffleParams.model_validate(params)
        there = ShuffleParams.model_validate(here.model_dump(mode="json"))
        assert there == here
        assert (there.share, key_params(there)) == (here.share, key_params(here))
