"""Deriving one dataset from a finished version: what may be asked for, and the recipe it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from reelmill.errors import RecipeError
from reelmill.recipe import Recipe, models_in
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.contract import Params, Stage
from reelmill.tasks.ingest import Source
from reelmill.units import (
    Share,
    canonical,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
    parse_share,
)

FIRST = "frames"
"""The stage that a form offers first."""

Parent = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_-]{0,62}(@[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        examples=["clips@latest", "clips@v1", "clips@3fa9c1d20b7e"],
    ),
]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", examples=["triplets"])]


@cache
def stage_choices() -> Any:
    """A type for forms: the parameters of each stage that reads one dataset, told apart by
    ``stage``."""
    stages = Stages()
    names = sorted(
        (name for name in stages if _can_derive(stages[name])), key=lambda n: (n != FIRST, n)
    )
    models: list[type[BaseModel]] = []
    for name in names:
        params: type[Params] = stages[name].params
        fields: Any = {"stage": (Literal[name], Field(name, description="the kind of work"))}
        models.append(
            create_model(name, __base__=(_Form, params), __doc__=params.__doc__, **fields)
        )
    union: Any = Union[tuple(models)]  # noqa: UP007
    return Annotated[union, Field(discriminator="stage"), _ToldApart()]


def _can_derive(stage: Stage[Any]) -> bool:
    return len(set(stage.roles) - set(stage.optional)) == 1 and stage.takes == "samples"


class _Form(BaseModel):
    """Parameters whose schema makes a form that a person can fill in, with the same meaning."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        model = handler.resolve_ref_schema(schema)
        _tidy_all(model, cls, handler)
        stage = model["properties"]["stage"]
        stage |= {"enum": [stage.pop("const")], "position": -1}
        model["required"] = ["stage"]
        return schema


def _tidy_all(
    schema: JsonSchemaValue, model: type[BaseModel], handler: GetJsonSchemaHandler
) -> None:
    """Tidy the fields of a model, and of the models within them, such as ``video.size``."""
    for name, info in model.model_fields.items():
        shown = schema["properties"][info.alias or name]
        inner = {one.__name__: one for one in models_in(info.annotation)}
        for ref in _refs(shown):
            group = handler.resolve_ref_schema({"$ref": ref})
            if group.get("title") in inner:
                _tidy_all(group, inner[group["title"]], handler)
        _tidy(shown, info)


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for value in schema.values() if isinstance(schema, dict) else ():
        for one in value if isinstance(value, list) else (value,):
            yield from _refs(one)


def _tidy(shown: JsonSchemaValue, info: FieldInfo) -> None:
    if "oneOf" in shown:
        shown["anyOf"] = shown.pop("oneOf")  # as in _ToldApart
    options = [option for option in shown.get("anyOf", []) if option != {"type": "null"}]
    if info.default is None and len(options) == 1:
        # A field that may be left empty, where Prefect would draw a choice of two types.
        del shown["anyOf"], shown["default"]
        shown |= {**options[0], **shown}
    if "default" in shown:
        shown["default"] = _spelled(info, shown["default"])
    elif (examples := shown.get("examples")) and "for example" not in shown["description"]:
        shown["description"] = f"{shown['description']}; for example {examples[0]}"


_SPELLINGS: dict[Any, Callable[[Any], str]] = {
    parse_seconds: format_seconds,
    parse_bytes: format_bytes,
    parse_share: lambda share: f"{canonical(share * 100)}%",
}


def _spelled(info: FieldInfo, default: Any) -> Any:
    """A default as a person would write it: ``5m`` for 300 seconds."""
    for mark in info.metadata:
        if isinstance(mark, BeforeValidator) and mark.func in _SPELLINGS:
            text = _SPELLINGS[mark.func](info.default)
            read: Any = mark.func
            return text if read(text) == info.default else str(default)
    return float(default) if isinstance(info.default, Decimal) else default


class _ToldApart:
    """Makes a union's schema one that Prefect's form can draw, and that names what is wrong."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        models = schema.pop("discriminator")["mapping"]
        # With oneOf the form would keep the values of the choice before.
        schema["anyOf"] = schema.pop("oneOf")
        # Without this, a wrong parameter would only make for a value that fits no choice.
        schema["allOf"] = [
            {
                "if": {"properties": {"stage": {"const": stage}}, "required": ["stage"]},
                "then": {"$ref": model},
            }
            for stage, model in models.items()
        ]
        return schema


def derivation(
    store: str,
    parent: str,
    name: str,
    stage: str,
    params: dict[str, Any],
    *,
    max_rejects: Share = Decimal("0.5"),
    max_holes: Share = Decimal(0),
    overrides: list[str] | None = None,
) -> Recipe:
    """The recipe of one dataset made from one version.

    Args:
        parent: the version, such as ``clips@latest``.
        overrides: more parameters as ``key=value``, with a YAML value.

    Raises:
        RecipeError: the stage or a parameter is not known, or the names are the same.
    """
    source = parent.partition("@")[0]
    if source == name:
        raise RecipeError(f"{name}: give the new dataset another name than that of its parent")
    stages = Stages()
    if stage in stages and not _can_derive(stages[stage]):
        raise RecipeError(
            f"{stage} cannot be derived from {parent}: it needs a table's rows, or several datasets"
        )
    dataset = {
        "stage": stage,
        "from": source,
        "max_rejects": str(max_rejects),
        "max_holes": str(max_holes),
        **params,
    }
    try:
        return Recipe.build(
            store=store,
            sources={source: {"version": parent}},
            datasets={name: dataset},
            stages=stages,
            source_model=Source,
            overrides=[f"{name}.{override}" for override in overrides or ()],
        )
    except RecipeError as error:
        # As it was given.
        raise RecipeError(str(error).replace(f"--set {name}.", "", 1)) from None


def refuse_others_name(recipe: Recipe, store: Store) -> None:
    """Raise ``RecipeError`` if the name of the dataset to derive is that of something else.

    What the same stage made of the same dataset may be derived anew.
    """
    ((name, dataset),) = recipe.datasets.items()
    last = store.latest(name)
    if last is None:
        return
    before = {label.partition("@")[0] for label in last.parents.values()}
    if last.stage != dataset.stage or before != set(dataset.inputs.values()):
        made = f"{last.stage} from {', '.join(sorted(before)) or 'a table'}"
        raise RecipeError(
            f"{name}: the store has a dataset of that name, made by {made}; give the new one "
            "another name"
        )
