"""The schemas that Prefect's UI draws forms from, checked as its server checks what comes back."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prefect import flow
from prefect.utilities.schema_tools.validation import build_error_obj, validate
from pydantic import TypeAdapter

from reelmill.flows.build import build_flow
from reelmill.flows.derivation import choices
from reelmill.flows.derive import Make, derive_flow
from reelmill.tasks import Stages
from reelmill.tasks.contract import Params, key_params
from tests.runs.project import PLUGIN

SCHEMA: dict[str, Any] = derive_flow.parameters.model_dump()
OFFERED = [one["$ref"].rpartition("/")[2] for one in SCHEMA["properties"]["make"]["anyOf"]]
STAGES = [name for name in OFFERED if Stages()[name].__module__.startswith("reelmill.")]
"""Those of Reelmill's own: plugins are offered too."""


def _various() -> type[Params]:
    """Parameters of all shapes, of a plugin that is not installed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGIN)
        params: type[Params] = importlib.import_module("reelmill_test_stages").VariousParams
    return params


VARIOUS = _various()
Various: Any = choices({"various": VARIOUS, "frames": Stages()["frames"].params})


@flow
def various_flow(make: Various) -> None:
    """A form of its own."""


FORMS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(STAGES, SCHEMA),
    "various": various_flow.parameters.model_dump(),
}
PARAMS = {**{stage: Stages()[stage].params for stage in STAGES}, "various": VARIOUS}
MAKES: dict[str, Any] = {**dict.fromkeys(STAGES, Make), "various": Various}


NEEDED: dict[str, dict[str, Any]] = {
    "map": {"function": "mymodule:score"},
    "filter": {"where": "width > 640"},
    "sample": {"share": "10%"},
}
"""What a form cannot fill in by itself."""


def submitted(**make: Any) -> dict[str, Any]:
    return {"parent": "clips@latest", "name": "pairs", "store": "/srv/store", "make": make}


def refused(values: dict[str, Any]) -> dict[str, list[Any]]:
    """What is said beside each field: the stage's ones below ``make``."""
    said: dict[str, list[Any]] = {}
    form = FORMS[values["make"]["stage"]]
    for error in build_error_obj(validate(values, form))["errors"]:
        for one in error["errors"]:
            if isinstance(one, dict) and "property" in one:
                said.setdefault(f"{error['property']}.{one['property']}", []).extend(one["errors"])
            elif "not valid under any" not in one:
                # Of a list, what is said beside one of its items.
                said.setdefault(error["property"], []).append(one)
    return said


def defaults(stage: str) -> dict[str, Any]:
    fields = FORMS[stage]["definitions"][stage]["properties"]
    return {name: field["default"] for name, field in fields.items() if "default" in field}


def test_frames_are_offered_first_and_all_stages_that_read_one_dataset_are() -> None:
    assert OFFERED[0] == "frames"
    assert {"split", "shuffle", "flow"} <= set(STAGES)


def check(name: str, field: dict[str, Any]) -> None:
    """A field is an input that a form can draw, told what it is for, and unset if nobody acts."""
    if "anyOf" in field:
        assert "default" in field, f"{name}: which choice is the first?"
        assert (field["default"] is None) == (field["anyOf"][0].get("type") == "null"), name
    elif "$ref" not in field:
        plain = ("string", "integer", "number", "boolean", "array", "object")
        assert field["type"] in plain, name
        assert field.get("default", "") is not None, name
    assert "oneOf" not in str(field), f"{name}: the form would keep what another choice had"
    assert field["description"], name


@pytest.mark.parametrize("stage", FORMS)
def test_every_field_can_be_drawn_and_says_what_it_is(stage: str) -> None:
    model = FORMS[stage]["definitions"][stage]
    for name, field in model["properties"].items():
        check(name, field)
    needed = {name for name, info in PARAMS[stage].model_fields.items() if info.is_required()}
    assert set(model["required"]) == {"stage", *needed}


def test_fields_within_groups_can_be_drawn_too() -> None:
    groups = SCHEMA["definitions"] | FORMS["various"]["definitions"]
    for group in (
        "Video",
        "Audio",
        "Size",
        "Variant",
        "OutputSize",
        "PictureFormat",
        "Crop",
        "Pad",
    ):
        for name, field in groups[group]["properties"].items():
            check(f"{group}.{name}", field)


def test_what_may_be_left_out_stays_unset_whatever_it_would_hold() -> None:
    fields = FORMS["various"]["definitions"]["various"]["properties"]
    refs = {
        name: [one.get("$ref", one.get("title")) for one in field["anyOf"]]
        for name, field in fields.items()
        if "anyOf" in field
    }
    crop, pad = "#/definitions/Crop", "#/definitions/Pad"
    assert refs == {
        "border": ["not set", pad],
        "fit": [crop, pad],
        "refit": ["not set", crop, pad],
        "level": [None, None],
    }
    assert (fields["with"]["type"], fields["table"]["type"]) == ("object", "object")
    assert fields["steps"]["items"]["anyOf"] == [{"$ref": crop}, {"$ref": pad}]


def test_own_fields_come_before_those_that_stages_share() -> None:
    form = FORMS["various"]["definitions"]
    names = list(form["various"]["properties"])
    assert names[:3] == ["stage", "function", "with"]
    assert names[-1] == "width"
    assert (
        form[form["various"]["properties"]["inner"]["$ref"].rpartition("/")[2]]["title"] == "Sides"
    )


@pytest.mark.parametrize("stage", FORMS)
def test_what_a_form_fills_in_by_itself_means_the_defaults(stage: str) -> None:
    needed = NEEDED.get(stage, {})
    values = {**defaults(stage), **needed}
    assert refused(submitted(**values)) == {}
    filled = TypeAdapter(MAKES[stage]).validate_python(values)
    plain = PARAMS[stage](**needed)
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
        {"stage": "map", "function": "./own.py:f", "with": '{"limit": 0.5}', "keep": ["*.jpg"]},
        {"stage": "various", "with": {"scale": 2, "of": ["a"]}, "table": {"a": 1}},
        {"stage": "various", "fit": {"kind": "pad", "colour": "red"}, "refit": None},
        {"stage": "various", "steps": [{"kind": "crop"}, {"kind": "pad"}], "level": 3},
    ],
)
def test_what_people_write_is_accepted(make: dict[str, Any]) -> None:
    assert refused({**submitted(**make), "max_rejects": "12.5 %"}) == {}
    TypeAdapter(MAKES[make["stage"]]).validate_python(make)


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
        ({"stage": "various", "border": {"colour": 3}}, "make.border"),
        ({"stage": "shuffle", "bytes_per_shard": "-1 MB"}, "make.bytes_per_shard"),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(make: dict[str, Any], field: str) -> None:
    assert set(refused(submitted(**make))) == {field}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parent", "clips latest"),
        ("others", ["flow=flows@"]),
        ("name", "Bad name"),
        ("store", ""),
        ("max_rejects", "much"),
    ],
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
