"""The recipe: a store, sources, and datasets with the stage that makes each from others.

A recipe is YAML, or a Python file that defines ``recipe`` as a mapping of the same shape::

    store: ./store                 # relative to the recipe's folder; or s3://bucket/prefix
    sources:
      urls: {path: urls.csv, url: url}
      films: {version: films@v1}   # or a version that the store holds
    datasets:
      videos: {stage: download, from: urls, max_rejects: 50%}
      clips:
        stage: split
        from: videos
        max_seconds: 10            # every other key is a parameter of the stage

Scalars follow YAML 1.2's core schema: ``yes``, ``12:30`` and ``2024-01-01`` are strings.
In a string ``${NAME}`` stands for an environment variable, and ``${NAME:-default}`` says what to
use where it is unset or empty; ``$${`` is a literal ``${``. A value that is one such reference and
nothing else is read again as YAML, so that it may be a number; in single quotes it stays a string.

Whoever writes a recipe chooses which variables it reads. Load a stranger's recipe with
``environ={}``, and never load a stranger's Python file: loading it runs it. So does loading a
recipe that names a function in a file beside it, which is run to see what the function declares.
"""

from __future__ import annotations

import graphlib
import heapq
import math
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from reelmill.errors import RecipeError, one_line
from reelmill.units import Share, format_bytes, nearest

__all__ = ["Dataset", "Pinned", "Recipe", "StageSpec", "load_recipe", "parse_recipe", "recipe_name"]

BASE: Final = "base"
"""In the context of a model's validation: the recipe's folder, where its paths begin."""

_Keys: TypeAlias = tuple[str | int, ...]
"""Where a value is in a recipe: ``("datasets", "clips", "max_seconds")``."""

_M = TypeVar("_M", bound=BaseModel)

_MAX_FILE: Final = 1024 * 1024
# Aliases let a small file stand for a huge value. Every use of a value is charged to a budget.
_MAX_EXPANDED: Final = 4 * 1024 * 1024
_COST: Final = 16
_MAX_DEPTH: Final = 32

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_VARIABLE: Final = re.compile(
    r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\})?", re.ASCII
)
_SEVERAL: Final = "two or more"
_TOP: Final = ("store", "sources", "datasets")

Kind: TypeAlias = Literal["samples", "rows"]
"""What fills a stage's role: a dataset's samples, or the rows of a table, which have no tar."""


class StageSpec(Protocol):
    """What a recipe needs to know of a stage. The short ``from: clips`` fills a stage's only role,
    or the only one that is not ``optional``; one that is ``open`` has further roles, by names of
    the recipe's own, and none of its own may be given as a list of datasets."""

    @property
    def name(self) -> str: ...
    @property
    def params(self) -> type[BaseModel]: ...
    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def optional(self) -> tuple[str, ...]: ...
    @property
    def open(self) -> bool: ...
    def takes_of(self, role: str) -> Collection[Kind]: ...


def unfit(stage: StageSpec, role: str, parent: str, kind: Kind) -> str | None:
    """Why ``parent`` cannot fill a role of a stage, and what to do, or None if it can."""
    if kind in stage.takes_of(role):
        return None
    if kind == "rows":
        return (
            f"stage {stage.name} reads samples, and {parent} is a table, whose rows are none; make "
            "samples of them first, by a stage such as download"
        )
    return (
        f"stage {stage.name} reads the rows of a table, and {parent} holds samples; give it a "
        "source"
    )


class _Common(BaseModel):
    """The keys that every dataset may have, whatever its stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    max_rejects: Share = Decimal("0.5")
    max_holes: Share = Decimal(0)
    salt: str = ""


class Dataset(_Common):
    """One dataset of a recipe.

    ``inputs`` (in YAML, ``from``) maps each role of the stage to the name of a dataset or source;
    ``params`` is an instance of the stage's own model. More than ``max_rejects`` of the samples
    rejected, or more than ``max_holes`` of the shards that could not be made, and no version is
    committed; ``salt`` goes into every action key, so that changing it makes the dataset anew.
    """

    stage: str
    inputs: Mapping[str, str] = Field(default={}, alias="from")
    params: SerializeAsAny[BaseModel]


_COMMON: Final = ("stage", "from", *_Common.model_fields)


class Pinned(BaseModel):
    """A source that is a version the store holds, instead of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str


class Recipe(BaseModel):
    """A valid recipe, in the order of its file; ``load_recipe`` and ``build`` make one.

    ``store`` is an absolute path or an fsspec URL; ``sources`` are instances of the source model,
    or ``Pinned``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    sources: Mapping[str, SerializeAsAny[BaseModel]]
    datasets: Mapping[str, Dataset]

    @classmethod
    def build(
        cls,
        *,
        store: str | os.PathLike[str],
        datasets: Mapping[str, Mapping[str, Any]],
        stages: Mapping[str, StageSpec],
        source_model: type[BaseModel],
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        base: Path | None = None,
        overrides: Sequence[str] = (),
    ) -> Recipe:
        """A recipe from Python values in the shape of the YAML.

        Relative paths are resolved against ``base``, or the working directory; ``overrides`` are
        those of ``load_recipe``. Raises RecipeError, whose text begins with the path of the field.
        """
        data = _plain({"store": store, "sources": sources or {}, "datasets": datasets})
        report = _Report()
        _override(data, overrides, report, {})
        return _Checker(report, stages, source_model, base or Path()).recipe(data)

    def order(self) -> list[str]:
        """The datasets, each after those it reads, else in the order of the file."""
        rank = {name: index for index, name in enumerate(self.datasets)}
        sorter = graphlib.TopologicalSorter(
            {name: _parents(dataset.inputs, rank) for name, dataset in self.datasets.items()}
        )
        sorter.prepare()
        ready: list[tuple[int, str]] = []
        order: list[str] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, (rank[name], name))
            name = heapq.heappop(ready)[1]
            order.append(name)
            sorter.done(name)
        return order

    def ancestors(self, name: str) -> list[str]:
        """The datasets that ``name`` is made from, directly or not, in build order.

        Raises RecipeError for an unknown name.
        """
        return [other for other in self.select([name]) if other != name]

    def select(self, only: Sequence[str]) -> list[str]:
        """The datasets ``only`` and all they are made from, in build order.

        Raises RecipeError for an unknown name.
        """
        needed: set[str] = set()
        pending = list(only)
        while pending:
            name = pending.pop()
            if name not in self.datasets:
                raise RecipeError(f"no dataset is named {name}{_hint(name, self.datasets)}")
            if name not in needed:
                needed.add(name)
                pending.extend(_parents(self.datasets[name].inputs, self.datasets))
        return [name for name in self.order() if name in needed]


def _parents(inputs: Mapping[str, str], datasets: Container[str]) -> list[str]:
    """The inputs that are datasets; the rest are sources."""
    return [name for name in inputs.values() if name in datasets]


def load_recipe(
    path: str | os.PathLike[str],
    *,
    stages: Mapping[str, StageSpec],
    source_model: type[BaseModel],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Recipe:
    """The recipe in a YAML file, or in a file whose name ends in ``.py``, which is run.

    ``overrides`` are ``clips.max_seconds=8`` (a dataset's or source's key) or
    ``store=s3://bucket/prefix``, with a YAML value. Relative paths, theirs too, are resolved
    against the recipe's folder. Raises RecipeError with one line that cites the file and line.
    """
    path = Path(path)
    name = str(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
    if path.suffix != ".py":
        return parse_recipe(
            text,
            stages=stages,
            source_model=source_model,
            name=name,
            base=path.parent,
            overrides=overrides,
            environ=environ,
        )
    report = _Report(name)
    data = _plain(_run(path))
    report.expect_mapping(data)
    _override(data, overrides, report, environ)
    return _Checker(report, stages, source_model, path.parent).recipe(data)


def recipe_name(path: str | os.PathLike[str]) -> str:
    """What people call a recipe: its file, or its folder where the file is just ``recipe.yaml``."""
    path = Path(path).absolute()
    return path.parent.name if path.stem == "recipe" and path.parent.name else path.stem


def read_document(text: str | bytes, name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """The value of one YAML document, by the rules of recipes: JSON's types, ``${NAME}`` filled in.

    Raises:
        RecipeError: in one line that cites ``name`` and the line.
    """
    report = _Report(name)
    node = compose(text, name)
    value = None if node is None else _Reader(report, environ, report.lines).read(node)
    report.check()
    return value


def parse_recipe(
    text: str | bytes,
    *,
    stages: Mapping[str, StageSpec],
    source_model: type[BaseModel],
    name: str = "recipe.yaml",
    base: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Recipe:
    """The recipe in YAML text; ``name`` is what errors call it, ``base`` the recipe's folder.

    Otherwise as ``load_recipe``.
    """
    report = _Report(name)
    node = compose(text, name)
    if node is None:
        raise RecipeError(f"{name}:1: the recipe is empty; it needs store and datasets")
    data = _Reader(report, environ, report.lines).read(node)
    report.expect_mapping(data)
    report.check()
    _override(data, overrides, report, environ)
    return _Checker(report, stages, source_model, base or Path()).recipe(data)


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping that ``path=value`` mean, with YAML values: ``video.codec=av1``.

    Raises RecipeError for the first that is none.
    """
    data: dict[str, Any] = {"datasets": {"_": {}}}
    _override(data, [f"_.{override}" for override in overrides], _Report(), {})
    read: dict[str, Any] = data["datasets"]["_"]
    return read


def _run(path: Path) -> Any:
    try:
        module = runpy.run_path(str(path))
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        place = f"{path}:{lines[-1]}" if lines else str(path)
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError(one_line(f"{place}: {type(error).__name__}: {text}")) from error
    if "recipe" not in module:
        raise RecipeError(f"{path}: a Python recipe defines recipe = {{...}}")
    return module["recipe"]


def _plain(value: Any) -> Any:
    """A copy that overrides may change, in the types that YAML would have given."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Report:
    """The errors found so far, and where each value was written, so that an error can cite it."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.lines: dict[_Keys, int] = {}
        self.overrides: dict[_Keys, str] = {}
        self._found: list[tuple[int, str, str, Iterable[str]]] = []

    def add(self, keys: _Keys, message: str, word: str = "", choices: Iterable[str] = ()) -> None:
        """An error in the value at ``keys``; ``word`` was written where ``choices`` would do."""
        line, place = self._cite(keys)
        self._found.append((line, f"{place}{_short(message, 400)}", word, choices))

    def check(self) -> None:
        """Raises RecipeError for the first error of the file, if there is one."""
        if not self._found:
            return
        _, text, word, choices = min(self._found, key=lambda found: found[0])
        more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
        # Only one hint is ever made: a search for each of many errors could take very long.
        raise RecipeError(one_line(f"{text}{_hint(word, choices) if word else ''}{more}"))

    def expect_mapping(self, data: Any) -> None:
        """Raises RecipeError where a recipe is not a mapping at all."""
        if not isinstance(data, dict):
            self.add((), "a recipe is a mapping with store, sources and datasets")
            self.check()

    def _cite(self, keys: _Keys) -> tuple[int, str]:
        shown = f"{_field(keys)}: " if keys else ""
        prefixes = [keys[:size] for size in range(len(keys), -1, -1)]
        for prefix in prefixes:
            if prefix in self.overrides:
                override = _short(self.overrides[prefix], 100)
                return sys.maxsize, f"--set {override}: {shown if prefix != keys else ''}"
        for prefix in prefixes:
            if prefix in self.lines:
                return self.lines[prefix], f"{self.name}:{self.lines[prefix]}: {shown}"
        return 0, f"{self.name}: {shown}" if self.name else shown


def _field(keys: _Keys) -> str:
    if keys[0] == "datasets" and len(keys) > 1:
        keys = keys[1:]
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return _short(text.removeprefix("."), 120)


def _hint(word: str, choices: Iterable[str]) -> str:
    names = list(choices)
    near = nearest(word, names)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; choose from {_short(', '.join(names), 200)}" if names else ""


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


_STR: Final = "tag:yaml.org,2002:str"
_SCALARS: Final[Mapping[str, tuple[re.Pattern[str], Callable[[str], Any]]]] = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    "tag:yaml.org,2002:bool": (
        re.compile(r"true|True|TRUE|false|False|FALSE"),
        lambda text: text.lower() == "true",
    ),
    # Longer runs of digits read as floats, and so are found to be out of range.
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]{1,400}"), int),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
        float,
    ),
    _STR: (re.compile(r".*", re.DOTALL), str),
}


def _resolve(text: str) -> str:
    """The tag of a plain scalar in YAML 1.2's core schema."""
    return next(tag for tag, (pattern, _) in _SCALARS.items() if pattern.fullmatch(text))


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _resolve(value)
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def is_plain_string(text: str) -> bool:
    """Whether a recipe reads ``text`` as a string where it stands without quotes."""
    return _resolve(text) == _STR


def compose(text: str | bytes, name: str, *, numbered: bool = True) -> yaml.Node | None:
    """The nodes of one YAML document; nothing is constructed from them.

    Raises RecipeError, citing ``name`` and, where ``numbered``, the line.
    """

    def refuse(line: int, message: str) -> RecipeError:
        place = f"{name}:{line}" if numbered else name
        return RecipeError(one_line(f"{place}: {_short(message, 200)}"))

    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > _MAX_FILE:
        raise refuse(1, f"the file holds more than {format_bytes(_MAX_FILE)}")
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(raw.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from error
    try:
        loader = _Loader(decoded)
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise refuse(line, "not valid YAML: holds a control character") from error
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = error.problem or "cannot be read"
        if "'\\t'" in problem:
            problem = "a tab cannot indent or separate values; use spaces"
        elif "another document" in problem:
            problem = "only one document is read; remove the ---"
        elif "got '{'" in problem and "${" in decoded:
            problem += "; inside { } and [ ] put ${NAME} in quotes"
        raise refuse(mark.line + 1 if mark else 1, f"not valid YAML: {problem}") from error
    except RecursionError as error:
        raise refuse(loader.line + 1, "nested too deeply") from error
    except (ValueError, OverflowError) as error:  # chr() of an escape such as "\UFFFFFFFF"
        raise refuse(loader.line + 1, f"not valid YAML: {error}") from error


class _Reader:
    """Values from YAML nodes: no object but those of JSON can come out, whatever the tags."""

    def __init__(
        self, report: _Report, environ: Mapping[str, str], lines: dict[_Keys, int] | None = None
    ) -> None:
        self._report = report
        self._environ = environ
        self._lines = lines
        self._budget = _MAX_EXPANDED

    def read(self, node: yaml.Node, keys: _Keys = ()) -> Any:
        """The value of ``node``, which is at ``keys``; errors go to the report.

        Raises RecipeError where the value is nested too deeply or expands to too much.
        """
        if self._lines is not None:
            self._lines.setdefault(keys, node.start_mark.line + 1)
        self._spend(_COST, keys)
        if len(keys) > _MAX_DEPTH:
            self._stop("nested too deeply", keys)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.read(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, keys)
        return self._unknown_tag(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: _Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _SCALARS:
                self._report.add(keys, "a key must be plain text")
                continue
            name = self._text(key.value, keys)
            here = (*keys, name)
            line = key.start_mark.line + 1
            self._spend(len(name), keys)
            if name in values:
                self._report.add(here, f"appears again in line {line}")
                continue
            if self._lines is not None:
                self._lines[here] = line
            if name == "<<":
                self._report.add(here, "merge keys are not part of YAML 1.2; write the keys out")
            values[name] = self.read(value, here)
        return values

    def _scalar(self, node: yaml.ScalarNode, keys: _Keys) -> Any:
        tag, text = node.tag, node.value
        if tag == _STR:
            text = _VARIABLE.sub(lambda match: self._variable(match, keys), text)
            if node.style != "'" and (whole := _VARIABLE.fullmatch(node.value)) and whole[1]:
                tag = _resolve(text)
        elif tag != _resolve(text):
            return self._unknown_tag(node, keys)
        self._spend(len(text), keys)
        value = _SCALARS[tag][1](self._text(text, keys))
        if isinstance(value, float) and not math.isfinite(value):
            self._report.add(keys, "the number is out of range")
        return value

    def _variable(self, match: re.Match[str], keys: _Keys) -> str:
        name, default = match.groups()
        if match[0] == "$${":
            return "${"
        if name is None:
            self._report.add(keys, "${ begins no ${NAME}; write $${ where ${ itself is meant")
            return ""
        value = self._environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            self._report.add(
                keys,
                f"environment variable {name} is not set; set it or write ${{{name}:-default}}",
            )
        return value or ""

    def _text(self, text: str, keys: _Keys) -> str:
        # JSON escapes a character beyond U+FFFF as two surrogates; this joins them.
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._report.add(keys, "holds a lone surrogate, which is not a character")
            return text

    def _unknown_tag(self, node: yaml.Node, keys: _Keys) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self._report.add(keys, f"tag {_short(tag, 80)} is not allowed")

    def _spend(self, cost: int, keys: _Keys) -> None:
        self._budget -= cost
        if self._budget < 0:
            self._stop("the aliases and variables expand to too much", keys)

    def _stop(self, message: str, keys: _Keys) -> None:
        self._report.add(keys, message)
        self._report.check()


def _override(
    data: dict[str, Any], overrides: Sequence[str], report: _Report, environ: Mapping[str, str]
) -> None:
    """Put each ``path=value`` into ``data``; raises RecipeError for the first that does not fit."""
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = tuple(path.strip().split("."))
        if keys[0] not in _TOP:
            keys = (_section(data, keys[0]), *keys)
        for earlier in [other for other in report.overrides if other[: len(keys)] == keys]:
            del report.overrides[earlier]
        report.overrides[keys] = override
        if not equals or not all(keys):
            report.add(keys, "write it as path=value")
            report.check()
        node = compose(text, f"--set {_short(override, 100)}", numbered=False)
        value = None if node is None else _Reader(report, environ).read(node, keys)
        report.check()
        _put(data, keys, value, report)


def _section(data: Mapping[str, Any], name: str) -> str:
    """Where a name belongs that is said without its section."""
    for section in ("datasets", "sources"):
        names = data.get(section)
        if isinstance(names, dict) and name in names:
            return section
    return "datasets"


def _put(data: dict[str, Any], keys: tuple[str, ...], value: Any, report: _Report) -> None:
    section, name = keys[0], keys[1] if len(keys) > 1 else None
    names = data.get(section)
    if name is not None and not (isinstance(names, dict) and name in names):
        known = [*names, *_TOP] if isinstance(names, dict) else _TOP
        report.add(keys, f"nothing in {section} is named {_short(name, 80)}", name, known)
        report.check()
    target: Any = data
    for depth, key in enumerate(keys[:-1], 1):
        # A parameter that holds others may be absent from the file, since it has a default.
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            report.add(keys, f"{_field(keys[:depth])} is not a mapping")
            report.check()
    target[keys[-1]] = value


class _Checker:
    """Turns plain values into a recipe, reporting every error it can tell apart."""

    def __init__(
        self,
        report: _Report,
        stages: Mapping[str, StageSpec],
        source_model: type[BaseModel],
        base: Path,
    ) -> None:
        self._report = report
        self._stages = stages
        self._source_model = source_model
        self._base = base.absolute()

    def recipe(self, data: Mapping[str, Any]) -> Recipe:
        """The recipe. Raises RecipeError for the first error by line."""
        for key in data:
            if key not in _TOP:
                self._report.add((key,), "unknown key of a recipe", key, _TOP)
        store = self._store(data)
        if not data.get("datasets"):
            self._report.add(("datasets",), "a recipe needs at least one dataset")
        sources = self._section(data, "sources")
        datasets = self._section(data, "datasets")
        for name in datasets:
            if name in sources:
                self._report.add(("datasets", name), "a source has the same name")
        names = {**sources, **datasets}
        inputs = {name: self._inputs(name, raw, names) for name, raw in datasets.items()}
        self._refuse_cycle({name: inputs[name] for name in datasets if name not in sources})
        self._refuse_kinds(datasets, sources, inputs)
        checked = {
            "store": store,
            "sources": {name: self._source(name, raw) for name, raw in sources.items()},
            "datasets": {
                name: self._dataset(name, raw, inputs[name]) for name, raw in datasets.items()
            },
        }
        self._report.check()
        return Recipe.model_validate(checked)

    def _store(self, data: Mapping[str, Any]) -> str | None:
        store = data.get("store")
        if isinstance(store, str) and store:
            return self._location(store, ("store",))
        problem = "must be a path or URL" if "store" in data else "missing; a recipe needs it"
        self._report.add(("store",), problem)
        return None

    def _location(self, text: str, keys: _Keys) -> str:
        if _URL.match(text):
            return text
        try:
            return str(self._base / Path(text).expanduser())
        except RuntimeError:
            self._report.add(keys, f"{_short(text, 80)} names a user without a home folder")
            return text

    def _section(self, data: Mapping[str, Any], section: str) -> dict[str, Any]:
        named = data.get(section) or {}
        if not isinstance(named, dict):
            self._report.add((section,), "must be a mapping of names")
            return {}
        for name, raw in named.items():
            if not _NAME.fullmatch(name):
                self._report.add(
                    (section, name),
                    "a name begins with a letter a-z and has at most 63 of a-z, 0-9, - and _",
                )
            if not isinstance(raw, dict):
                self._report.add((section, name), "must be a mapping of keys")
        return named

    def _stage(self, raw: Any) -> StageSpec | None:
        stage = raw.get("stage") if isinstance(raw, dict) else None
        return self._stages.get(stage) if isinstance(stage, str) else None

    def _inputs(self, name: str, raw: Any, names: Mapping[str, Any]) -> dict[str, str]:
        """The parent in each role, as far as it can be told."""
        stage = self._stage(raw)
        if stage is None:
            return {}
        keys: _Keys = ("datasets", name, "from")
        needed = [role for role in stage.roles if role not in stage.optional]
        reads = f"stage {stage.name} reads {' and '.join(needed) or 'nothing'}"
        if stage.open:
            reads = f"stage {stage.name} reads {needed[0] + ' and others' if needed else _SEVERAL}"
        elif stage.optional:
            reads += f", and may read {' and '.join(stage.optional)}"
        given = raw.get("from", {})
        if stage.open and not needed and isinstance(given, list):
            given = {str(name): name for name in given}
        if isinstance(given, str) and len(needed) == 1 and not stage.open:
            parents: dict[str, Any] = {needed[0]: given}
            places: dict[str, _Keys] = {needed[0]: keys}
        elif isinstance(given, dict):
            parents = given
            places = {role: (*keys, role) for role in given}
        elif stage.open:
            self._report.add(keys, f"{reads}; write role: name for each")
            return {}
        else:
            form = "the name of a dataset or source" if len(needed) == 1 else "role: name"
            self._report.add(keys, f"{reads}; write {form}" if stage.roles else reads)
            return {}
        unknown = [role for role in parents if role not in stage.roles and not stage.open]
        missing = [role for role in needed if role not in parents]
        if stage.open:
            for role in parents:
                if not _NAME.fullmatch(role):
                    message = "a role's name is made as those of datasets are"
                    self._report.add(places[role], message)
            if len(parents) < 2:
                self._report.add(keys, f"{reads}; write role: name for each")
        for role in unknown:
            self._report.add(places[role], f"unknown role; {reads}", role, stage.roles)
        if missing and not unknown:
            which = f"role {' and '.join(missing)} " if parents else ""
            self._report.add(keys, f"{which}missing; {reads}")
        for role, parent in parents.items():
            if not isinstance(parent, str):
                self._report.add(places[role], "must be the name of a dataset or source")
            elif parent not in names:
                message = f"no dataset or source is named {_short(parent, 80)}"
                self._report.add(places[role], message, parent, names)
        return {role: parent for role, parent in parents.items() if isinstance(parent, str)}

    def _refuse_cycle(self, inputs: Mapping[str, Mapping[str, str]]) -> None:
        graph = {name: _parents(parents, inputs) for name, parents in inputs.items()}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            cycle: list[str] = error.args[1][:-1]
            first = cycle.index(next(name for name in inputs if name in cycle))
            path = [*cycle[first:], *cycle[: first + 1]]
            self._report.add(
                ("datasets", path[0], "from"), f"a cycle: {_short(' → '.join(path), 300)}"
            )

    def _refuse_kinds(
        self,
        datasets: Mapping[str, Any],
        sources: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Tables where samples are read, and the reverse. What a version holds, which a source may
        be, only the store knows."""
        kinds: dict[str, Kind] = {n: "samples" for n in datasets if n not in sources}
        for name, raw in sources.items():
            if name not in datasets and isinstance(raw, dict) and "version" not in raw:
                kinds[name] = "rows"
        for name, parents in inputs.items():
            stage = self._stage(datasets[name])
            keys: _Keys = ("datasets", name, "from")
            for role, parent in parents.items():
                kind = kinds.get(parent)
                if stage and kind and (problem := unfit(stage, role, parent, kind)):
                    is_short = isinstance(datasets[name]["from"], str)
                    self._report.add(keys if is_short else (*keys, role), problem)

    def _source(self, name: str, raw: Any) -> BaseModel | None:
        if not isinstance(raw, dict):
            return None
        keys: _Keys = ("sources", name)
        if isinstance(path := raw.get("path"), str) and path:
            raw = {**raw, "path": self._location(path, (*keys, "path"))}
        elif isinstance(path, list):
            located = [
                self._location(p, (*keys, "path")) if isinstance(p, str) and p else p for p in path
            ]
            raw = {**raw, "path": located}
        if "version" in raw:
            return self._validate(Pinned, raw, keys, "a source that is a version")
        return self._validate(self._source_model, raw, keys, "a source")

    def _dataset(self, name: str, raw: Any, inputs: Mapping[str, str]) -> dict[str, Any] | None:
        if not isinstance(raw, dict):
            return None
        keys: _Keys = ("datasets", name)
        common = {key: raw[key] for key in _Common.model_fields if key in raw}
        dataset = {
            **dict(self._validate(_Common, common, keys, "a dataset") or {}),
            "stage": raw.get("stage"),
            "from": inputs,
        }
        stage = self._stage(raw)
        if stage is None:
            self._unknown_stage(raw, keys)
            return None
        if clash := _fields(stage.params).keys() & set(_COMMON):
            self._report.add(
                (*keys, "stage"),
                f"stage {stage.name} has a parameter {min(clash)}, which is a key of every dataset",
            )
        params = {key: value for key, value in raw.items() if key not in _COMMON}
        owner = f"stage {stage.name}"
        return {**dataset, "params": self._validate(stage.params, params, keys, owner, _COMMON)}

    def _unknown_stage(self, raw: dict[str, Any], keys: _Keys) -> None:
        stage = raw.get("stage")
        if isinstance(stage, str):
            message = f"unknown stage {_short(stage, 80)}"
            self._report.add((*keys, "stage"), message, stage, self._stages)
        else:
            problem = "must be the name of a stage" if "stage" in raw else "missing"
            self._report.add((*keys, "stage"), f"{problem}; stages are {', '.join(self._stages)}")

    def _validate(
        self,
        model: type[_M],
        raw: dict[str, Any],
        keys: _Keys,
        owner: str,
        others: Sequence[str] = (),
    ) -> _M | None:
        """An instance of ``model``; ``others`` are keys that are known but not the model's."""
        fields = _fields(model)
        # A model that is lax about unknown keys would drop a misspelt parameter without a word.
        strays = [key for key in raw if key not in fields]
        if model.model_config.get("extra") == "allow":
            strays = []
        for key in strays:
            message = f"unknown parameter of {owner}"
            self._report.add((*keys, key), message, key, [*fields, *others])
        try:
            known = {key: raw[key] for key in raw if key not in strays}
            return model.model_validate(known, context={BASE: self._base})
        except ValidationError as error:
            self._explain(error, model, raw, keys, owner)
            return None

    def _explain(
        self,
        error: ValidationError,
        model: type[BaseModel],
        raw: dict[str, Any],
        keys: _Keys,
        owner: str,
    ) -> None:
        messages: dict[_Keys, dict[str, None]] = {}
        given: dict[_Keys, str] = {}
        for details in error.errors(include_url=False):
            loc = details["loc"]
            here = (*keys, *_present(raw, loc))
            if details["type"] == "missing" and isinstance(loc[-1], int):
                messages.setdefault(here, {})["has too few values"] = None
                given[here] = ""
            elif details["type"] == "missing":
                self._report.add((*here, loc[-1]), f"missing; {owner} needs it")
            elif details["type"] == "extra_forbidden":
                fields = _fields(*_models_at(model, loc[:-1]))
                self._report.add(here, f"unknown parameter of {owner}", str(loc[-1]), fields)
            else:
                message, given[here] = _message(details)
                messages.setdefault(here, {})[message] = None
        # Each member of a union reports its own failure; together they are one error.
        for here, alternatives in messages.items():
            self._report.add(here, " or ".join(alternatives) + given[here])


def _present(raw: Any, loc: _Keys) -> Iterator[str | int]:
    """The steps of pydantic's location that lead through the value: not names of union members."""
    for step in loc:
        if isinstance(raw, dict) and step in raw:
            raw = raw[str(step)]
        elif isinstance(raw, list) and isinstance(step, int) and step < len(raw):
            raw = raw[step]
        else:
            continue
        yield step


def _fields(*models: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the keys that fill them."""
    fields: dict[str, FieldInfo] = {}
    for model in models:
        for name, field in model.model_fields.items():
            alias = field.validation_alias
            by_name = model.model_config.get("validate_by_name") or not isinstance(alias, str)
            fields |= {str(key): field for key in (alias, by_name and name) if isinstance(key, str)}
    return fields


def _models_at(model: type[BaseModel], loc: _Keys) -> list[type[BaseModel]]:
    """The models that a value at ``loc`` inside ``model`` may be an instance of."""
    models = [model]
    for step in loc:
        field = _fields(*models).get(str(step))
        if field is not None:
            models = list(models_in(field.annotation))
        else:
            # Between a union's field and its members' there is the tag of the one that was meant.
            models = [one for one in models if _is_tagged(one, step)] or models
    return models


def _is_tagged(model: type[BaseModel], tag: str | int) -> bool:
    return any((tag,) == get_args(field.annotation) for field in model.model_fields.values())


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field of such a type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


_QUOTE = "'"
_MAPPING, _LIST = "must be a mapping", "must be a list"
_YAML_WORDS = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "tuple_type": _LIST,
    "list_type": _LIST,
}
"""By pydantic's types of errors, what it says in Python's words."""


def _message(details: ErrorDetails) -> tuple[str, str]:
    """What is wrong, in our words, and what was given instead, where that is not said yet."""
    message, value = details["msg"], details["input"]
    if details["type"] in ("value_error", "assertion_error"):
        return message.partition(", ")[2], ""
    if details["type"] == "string_type" and isinstance(value, int | float):
        return "must be a string; put it in quotes", ""
    told = details.get("ctx", {})
    if details["type"] == "union_tag_invalid":
        return f"must be one of {told['expected_tags']}, not {told['tag']!r}", ""
    if details["type"] == "union_tag_not_found":
        return f"has no {told['discriminator'].strip(_QUOTE)}, which says what it is", ""
    message = _YAML_WORDS.get(details["type"], message.replace(" after validation", ""))
    message = re.sub(r"^\w+ should ", "must ", message.partition(", unable to")[0])
    shown = "null" if value is None else _short(repr(value), 80)
    said = ", not " in message or not isinstance(value, str | int | float | None)
    return message, "" if said else f", not {shown}"
