"""Deriving one dataset from a finished version: what may be asked for, and the recipe it means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from reelmill.dataset import Version, open_version
from reelmill.errors import RecipeError
from reelmill.recipe import Dataset, Pinned, Recipe, models_in, unfit
from reelmill.store import Store
from reelmill.tasks import Stages, get_stage
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

MAX_REJECTS: Share = Dataset.model_fields["max_rejects"].default
MAX_HOLES: Share = Dataset.model_fields["max_holes"].default

_NAME = "[a-z][a-z0-9_-]{0,62}"
_SPEC = rf"{_NAME}(?:@[A-Za-z0-9][A-Za-z0-9._-]*)?"
_FROM = re.compile(rf"(?:(?P<role>{_NAME})=)?(?P<spec>(?P<dataset>{_NAME})(?:@.+)?)")

Parent = Annotated[
    str,
    Field(pattern=rf"^{_SPEC}$", examples=["clips@latest", "clips@v1", "clips@3fa9c1d20b7e"]),
]
Input = Annotated[
    str,
    Field(
        pattern=rf"^(?:{_NAME}=)?{_SPEC}$",
        examples=["clips@latest", "clips@v1", "clips@3fa9c1d20b7e", "flow=flows@latest"],
    ),
]
"""A version, with the role that it fills where the stage reads several."""
Name = Annotated[str, Field(pattern=rf"^{_NAME}$", examples=["triplets"])]


@cache
def stage_choices() -> Any:
    """A type for forms: the parameters of each stage that reads datasets, told apart by
    ``stage``."""
    stages = Stages()
    return choices({name: stages[name].params for name in derivable()})


def choices(params: Mapping[str, type[Params]]) -> Any:
    """A type for forms: parameters of stages by their names, told apart by ``stage``."""
    models: list[type[BaseModel]] = []
    for name, model in params.items():
        fields: Any = {"stage": (Literal[name], Field(name, description="the kind of work"))}
        models.append(create_model(name, __base__=(_Form, model), __doc__=model.__doc__, **fields))
    union: Any = Union[tuple(models)]  # noqa: UP007
    return Annotated[union, Field(discriminator="stage"), _ToldApart()]


def derivable() -> list[str]:
    """The stages by which a dataset can be derived, in the order of a form."""
    stages = Stages()
    names = (name for name in stages if _can_derive(stages[name]))
    return sorted(names, key=lambda name: (name != FIRST, name))


def _can_derive(stage: Stage[Any]) -> bool:
    return bool(stage.roles or stage.open) and stage.takes == "samples"


class _Form(BaseModel):
    """Parameters whose schema makes a form that a person can fill in, with the same meaning."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        model = handler.resolve_ref_schema(schema)
        _tidy_all(model, cls, handler)
        required = [key for key in model.get("required", ()) if key != "stage"]
        model["required"] = ["stage", *required]
        return schema


def _tidy_all(
    schema: JsonSchemaValue,
    model: type[BaseModel],
    handler: GetJsonSchemaHandler,
    within: tuple[type[BaseModel], ...] = (),
) -> None:
    """Tidy the fields of a model, and of the models within them, such as ``video.size``."""
    fields = {name: field_key(name, info) for name, info in model.model_fields.items()}
    order = sorted(fields, key=lambda name: _depth(model, name))
    schema["properties"] = {fields[name]: schema["properties"][fields[name]] for name in order}
    for name, info in model.model_fields.items():
        key = field_key(name, info)
        shown = schema["properties"][key]
        shown.setdefault("title", key.replace("_", " ").title())
        inner = {one.__name__: one for one in models_in(info.annotation)}
        for ref in _refs(shown):
            group = handler.resolve_ref_schema({"$ref": ref})
            one = inner.get(group.get("title", ""))
            if one is not None and one not in within:
                group["title"] = one.__name__.partition("[")[0]
                _tidy_all(group, one, handler, (*within, model, one))
        _tidy(shown, info, handler)


def _depth(model: type[BaseModel], name: str) -> int:
    """How far up a field was defined: what is a model's own comes before what it shares."""
    owners = (n for n, one in enumerate(model.__mro__) if name in inspect.get_annotations(one))
    return next(owners, len(model.__mro__))


def field_key(name: str, info: FieldInfo) -> str:
    """What a field is called outside of Python."""
    alias = info.validation_alias
    return alias if isinstance(alias, str) else name


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for value in schema.values() if isinstance(schema, dict) else ():
        for one in value if isinstance(value, list) else (value,):
            yield from _refs(one)


def _tidy(shown: JsonSchemaValue, info: FieldInfo, handler: GetJsonSchemaHandler) -> None:
    _any_of(shown)
    if "const" in shown:
        # What tells a model from others: no text to type.
        shown |= {"enum": [shown.pop("const")], "position": -1}
    options = [option for option in shown.get("anyOf", []) if option.get("type") != "null"]
    if info.default is None and len(options) == 1 and not _fills_in(options[0], handler):
        # A field that may be left empty, where Prefect would draw a choice of two types.
        del shown["anyOf"], shown["default"]
        shown |= {**options[0], **shown}
    elif info.default is None and options:
        # First what it is if nobody chooses.
        shown["anyOf"] = [_UNSET, *(one for o in options for one in o.get("anyOf", [o]))]
    if "default" in shown:
        shown["default"] = _spelled(info, shown["default"])
    elif (examples := shown.get("examples")) and "for example" not in shown.get("description", ""):
        said = (shown.get("description"), f"for example {examples[0]}")
        shown["description"] = "; ".join(filter(None, said))


_UNSET = {"type": "null", "title": "not set"}


def _any_of(schema: Any) -> None:
    """Say ``anyOf`` for ``oneOf`` wherever it is, as in _ToldApart."""
    if isinstance(schema, dict):
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
        for value in schema.values():
            _any_of(value)
    elif isinstance(schema, list):
        for value in schema:
            _any_of(value)


def _fills_in(option: JsonSchemaValue, handler: GetJsonSchemaHandler) -> bool:
    """Whether a form that draws a model fills it in by itself, so that it cannot stay unset."""
    if "anyOf" in option:
        return any(_fills_in(one, handler) for one in option["anyOf"])
    if "$ref" not in option:
        return False
    fields = handler.resolve_ref_schema(option).get("properties", {}).values()
    return any(field.get("default") is not None or _fills_in(field, handler) for field in fields)


def _percent(share: Decimal) -> str:
    return f"{canonical(share * 100)}%"


_SPELLINGS: dict[Any, Callable[[Any], str]] = {
    parse_seconds: format_seconds,
    parse_bytes: format_bytes,
    parse_share: _percent,
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


@dataclass(frozen=True, slots=True)
class From:
    """A version to derive from as it was asked for: ``clips@v1``, or ``source=clips@v1``."""

    role: str | None
    dataset: str
    spec: str

    @classmethod
    def parse(cls, given: str) -> From:
        """Raises ``RecipeError`` for what is neither."""
        found = _FROM.fullmatch(given)
        if found is None:
            raise RecipeError(
                f"--from {given}: write DATASET, DATASET@VERSION or DATASET@TAG, for a stage that "
                "reads several datasets ROLE=DATASET@TAG; a name has a-z, 0-9, - and _"
            )
        return cls(found["role"], found["dataset"], found["spec"])


@dataclass(frozen=True, slots=True)
class Asked:
    """A dataset to derive, as a command asks for it; ``overrides`` are the stage's parameters."""

    name: str
    parents: tuple[str, ...]
    stage: str
    overrides: tuple[str, ...] = ()
    max_rejects: Share = MAX_REJECTS
    max_holes: Share = MAX_HOLES

    def recipe(self, store: str) -> Recipe:
        """Raises ``RecipeError`` as ``derivation``."""
        return derivation(
            store,
            self.parents,
            self.name,
            self.stage,
            {},
            max_rejects=self.max_rejects,
            max_holes=self.max_holes,
            overrides=self.overrides,
        )

    @property
    def command(self) -> list[str]:
        """The command that asks for it."""
        shares = {
            "--max-rejects": self.max_rejects != MAX_REJECTS and self.max_rejects,
            "--max-holes": self.max_holes != MAX_HOLES and self.max_holes,
        }
        return [
            *("reelmill", "derive", self.name),
            *(word for parent in self.parents for word in ("--from", parent)),
            *("--stage", self.stage),
            *(word for override in self.overrides for word in ("--set", override)),
            *(
                word
                for option, share in shares.items()
                if share is not False
                for word in (option, _percent(share))
            ),
        ]


def derivation(
    store: str,
    parents: Sequence[str],
    name: str,
    stage: str,
    params: dict[str, Any],
    *,
    max_rejects: Share = MAX_REJECTS,
    max_holes: Share = MAX_HOLES,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of one dataset made from versions.

    Args:
        parents: the versions, such as ``clips@latest``; for a stage that reads several, each with
            its role, such as ``flow=flows@v1``. One without a role fills the one that the stage
            needs; more of them get the names of their datasets, where roles have names of the
            recipe's own.
        overrides: more parameters as ``key=value``, with a YAML value.

    Raises:
        RecipeError: the stage or a parameter is not known, or the names are the same.
    """
    given = [From.parse(parent) for parent in parents]
    sources = _sources(given)
    if name in sources:
        raise RecipeError(f"{name}: give the new dataset another name than that of its parent")
    for override in overrides:
        _refuse_common(override)
    stages = Stages()
    if stage in stages and not _can_derive(stages[stage]):
        raise RecipeError(f"{stage} cannot be derived from {parents[0]}: it reads a table's rows")
    dataset = {
        "stage": stage,
        "from": _inputs(stages[stage], given, sources) if stage in stages else "",
        "max_rejects": str(max_rejects),
        "max_holes": str(max_holes),
        **params,
    }
    try:
        return Recipe.build(
            store=store,
            sources={source: {"version": spec} for source, spec in sources.items()},
            datasets={name: dataset},
            stages=stages,
            source_model=Source,
            overrides=[f"{name}.{override}" for override in overrides],
        )
    except RecipeError as error:
        raise RecipeError(_as_given(str(error), name)) from None


def _as_given(message: str, name: str) -> str:
    """What is wrong with a recipe of one dataset, in the words of a command that derives it."""
    message = message.replace(f"--set {name}.", "--set ", 1)
    message = re.sub(rf"^{name}\.from\.([^:]*):", r"--from \1=...:", message)
    message = re.sub(rf"^{name}\.from:", "--from:", message)
    return message.replace("write role: name for each", "give --from ROLE=DATASET for each")


def _sources(given: Sequence[From]) -> dict[str, str]:
    """What a recipe calls the versions: as their datasets, with a number where one gives two."""
    sources: dict[str, str] = {}
    for one in given:
        if one.spec not in sources.values():
            names = (one.dataset, *(f"{one.dataset}-{n}" for n in range(2, len(given) + 1)))
            sources[next(name for name in names if name not in sources)] = one.spec
    return sources


def _inputs(
    stage: Stage[Any], given: Sequence[From], sources: Mapping[str, str]
) -> str | list[str] | dict[str, str]:
    """What a recipe says after ``from``."""
    names = {spec: source for source, spec in sources.items()}
    needed = [role for role in stage.roles if role not in stage.optional]
    if not any(one.role for one in given):
        if not stage.roles:
            return [names[one.spec] for one in given]
        if len(given) == 1 and len(needed) == 1 and not stage.open:
            return names[given[0].spec]
    free = [role for role in needed if role not in {one.role for one in given}]
    inputs: dict[str, str] = {}
    for one in given:
        role = one.role
        if role is None and len(free) == 1:
            role = free.pop()
        elif role is None and not free and stage.open:
            role = names[one.spec]
        if role is None:
            roles = "=..., ".join(stage.roles)
            raise RecipeError(
                f"--from {one.spec}: which input of stage {stage.name} is this? Say one of "
                f"{roles}=..., as in --from {(free or list(stage.roles))[0]}={one.spec}"
            )
        if role in inputs:
            raise RecipeError(f"--from {role}={one.spec}: {role} is given twice")
        inputs[role] = names[one.spec]
    return inputs


def _refuse_common(override: str) -> None:
    """Refuse what is a key of every dataset of a recipe, and no parameter of a stage."""
    key = override.partition("=")[0].partition(".")[0].strip()
    if key in Dataset.model_fields or key == "from":
        option = {"from": "--from", "stage": "--stage"}.get(key, f"--{key.replace('_', '-')}")
        advice = "; it is for recipes" if key == "salt" else f"; give {option}"
        raise RecipeError(f"--set {override}: {key} is no parameter of the stage{advice}")


def refuse_misfit(recipe: Recipe, store: Store) -> None:
    """Look at the parents of the dataset to derive before anything starts.

    Raises:
        NotFoundError: a version is not there.
        RecipeError: the stage cannot read a version, or the name of the dataset is that of
            something else.
    """
    ((name, dataset),) = recipe.datasets.items()
    stage = get_stage(dataset.stage)
    parents = {}
    for role, source in dataset.inputs.items():
        pinned = recipe.sources[source]
        assert isinstance(pinned, Pinned)
        parents[role] = open_version(store, pinned.version)
    _refuse_others_name(name, dataset.stage, {parent.name for parent in parents.values()}, store)
    for role, parent in parents.items():
        _refuse_fields(stage, role, parent)


def _refuse_fields(stage: Stage[Any], role: str, parent: Version) -> None:
    if parent.ref.stage == "ingest":
        if problem := unfit(stage, role, str(parent), "rows"):
            raise RecipeError(problem)
        return
    if role not in stage.roles[:1]:
        return
    wanted = stage.works_on or tuple(field for field in stage.reads or () if field != "json")
    fields = parent.manifest.fields
    if wanted and fields and not any(_is_one(field, wanted) for field in fields):
        raise RecipeError(
            f"stage {stage.name} cannot read {parent}: it needs samples with {_some(wanted, 'or')},"
            f" and these have {_some(fields, 'and')}"
        )


def _some(fields: Sequence[str], word: str) -> str:
    """The first of some fields, in words."""
    shown = [*fields[:4], *(["others"] if len(fields) > 4 else [])]
    return f" {word} ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _is_one(field: str, endings: Sequence[str]) -> bool:
    return any(field == ending or field.endswith(f".{ending}") for ending in endings)


def _refuse_others_name(name: str, stage: str, parents: set[str], store: Store) -> None:
    """Raise ``RecipeError`` if the name of the dataset to derive is that of something else.

    What the same stage made of the same datasets may be derived anew.
    """
    last = store.latest(name)
    if last is None:
        return
    before = {label.partition("@")[0] for label in last.parents.values()}
    if last.stage != stage or before != parents:
        made = f"{last.stage} from {', '.join(sorted(before)) or 'a table'}"
        raise RecipeError(
            f"{name}: the store has a dataset of that name, made by {made}; give the new one "
            "another name"
        )
