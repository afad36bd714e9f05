"""The schemas that Prefect's UI draws forms from, checked as its server checks what comes back."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import build_error_obj, validate
from pydantic import TypeAdapter

from reelmill.flows.build import build_flow
from reelmill.flows.derive import Make, derive_flow
from reelmill.tasks import Stages
from reelmill.tasks.contract import key_params

SCHEMA: dict[str, Any] = derive_flow.parameters.model_dump()
OFFERED = [one["$ref"].rpartition("/")[2] for one in SCHEMA["properties"]["make"]["anyOf"]]
STAGES = [name for name in OFFERED if Stages()[name].__module__.startswith("reelmill.")]
"""Those of Reelmill's own: plugins are offered too."""

GROUPS = {"video", "audio", "variants", "output", "pictures"}
"""Fields of ``split`` and ``flow`` that are models of their own."""


def submitted(**make: Any) -> dict[str, Any]:
    return {"parent": "clips@latest", "name": "pairs", "store": "/srv/store", "make": make}


def refused(values: dict[str, Any]) -> dict[str, list[Any]]:
    """What is said beside each field: the stage's ones below ``make``."""
    said: dict[str, list[Any]] = {}
    for error in build_error_obj(validate(values, SCHEMA))["errors"]:
        for one in error["errors"]:
            if isinstance(one, dict):
                said.setdefault(f"{error['property']}.{one['property']}", []).extend(one["errors"])
            elif "not valid under any" not in one:
                said.setdefault(error["property"], []).append(one)
    return said


def defaults(stage: str) -> dict[str, Any]:
    fields = SCHEMA["definitions"][stage]["properties"]
    return {name: field["default"] for name, field in fields.items() if "default" in field}


def test_frames_are_offered_first_and_all_stages_that_read_one_dataset_are() -> None:
    assert OFFERED[0] == "frames"
    assert {"split", "shuffle", "flow"} <= set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_is_one_plain_input_or_a_group_of_them_with_a_description(stage: str) -> None:
    model = SCHEMA["definitions"][stage]
    plain = ("string", "integer", "number", "boolean", "array")
    for name, field in model["properties"].items():
        if name in GROUPS:
            assert "#/definitions/" in str(field)
        else:
            assert field["type"] in plain
        assert field["description"]
        assert field.get("default", "") is not None
    assert model["required"] == ["stage"]


def test_fields_within_groups_are_plain_too() -> None:
    for group in ("Video", "Audio", "Size", "Variant", "OutputSize", "PictureFormat"):
        fields = SCHEMA["definitions"][group]["properties"]
        chosen = {name for name, field in fields.items() if {"anyOf", "oneOf"} & set(field)}
        assert chosen == ({"audio"} if group == "Variant" else set())
        assert all(field["description"] for field in fields.values())
        assert all(field.get("default", "") is not None for field in fields.values())
        assert "oneOf" not in str(fields), "the form would keep the values of the choice before"


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_form_fills_in_by_itself_means_the_defaults(stage: str) -> None:
    values = defaults(stage)
    assert refused(submitted(**values)) == {}
    filled = TypeAdapter(Make).validate_python(values)
    plain = Stages()[stage].params()
    assert key_params(filled) == {**key_params(plain), "stage": stage}


def test_defaults_are_spelled_as_people_would() -> None:
    assert defaults("split")["timeout"] == "1h"
    assert defaults("split")["min_scene"] == "600ms"
    assert SCHEMA["properties"]["max_rejects"]["default"] == "50%"


@pytest.mark.parametrize(
    "make",
    [
        {"stage": "frames", "count": 2, "max_side": None},
        {"stage": "frames", "size": [640, 360]},
        {"stage": "split", "method": "fixed", "seconds": "8s", "stride": "1m30s"},
        {"stage": "split", "threshold": 27.5, "audio": False},
        {"stage": "split", "video": {"bit_rate": "2M", "fps": "23.976", "size": {"width": 640}}},
        {"stage": "split", "detectors": ["content", {"kind": "hash"}], "audio": {"rate": 16000}},
        {"stage": "split", "variants": {"small": {"crf": 30, "audio": {"bit_rate": "96k"}}}},
        {"stage": "shuffle", "bytes_per_shard": "1 GiB"},
        {"stage": "flow", "preset": "medium"},
    ],
)
def test_what_people_write_is_accepted(make: dict[str, Any]) -> None:
    assert refused({**submitted(**make), "max_rejects": "12.5 %"}) == {}
    TypeAdapter(Make).validate_python(make)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        ({"stage": "frames", "count": 0}, "make.count"),
        ({"stage": "frames", "format": "gif"}, "make.format"),
        ({"stage": "frames", "size": [640]}, "make.size"),
        ({"stage": "split", "max_seconds": "8 parsecs"}, "make.max_seconds"),
        ({"stage": "split", "crf": 99}, "make.crf"),
        ({"stage": "split", "video": {"codec": "mpeg2"}}, "make.video"),
        ({"stage": "split", "video": {"size": {"mode": "stretch"}}}, "make.video"),
        ({"stage": "shuffle", "bytes_per_shard": "-1 MB"}, "make.bytes_per_shard"),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(make: dict[str, Any], field: str) -> None:
    assert set(refused(submitted(**make))) == {field}


@pytest.mark.parametrize(
    ("field", "value"),
    [("parent", "clips latest"), ("name", "Bad name"), ("store", ""), ("max_rejects", "much")],
)
def test_a_wrong_text_is_refused_at_its_field(field: str, value: str) -> None:
    assert set(refused({**submitted(stage="flow"), field: value})) == {field}


def test_an_unknown_stage_and_a_missing_one_are_refused() -> None:
    for make in ({"stage": "dream"}, {}):
        errors = build_error_obj(validate(submitted(**make), SCHEMA))["errors"]
        assert [error["property"] for error in errors] == ["make"]


def test_the_form_of_a_build() -> None:
    schema = build_flow.parameters.model_dump()
    assert schema["properties"]["only"]["type"] == "array"
    assert validate({"recipe": "films.yaml", "only": ["clips"], "workers": None}, schema) == []
    assert validate({"recipe": "films.yaml", "only": "clips"}, schema)
