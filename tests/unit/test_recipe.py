# ruff: noqa: E501 - a table of errors reads best with one case a line
from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reelmill.errors import RecipeError
from reelmill.recipe import Kind, Recipe, StageSpec, load_recipe, parse_recipe
from reelmill.units import Bytes, Seconds


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Frozen):
    path: str
    url: str = "url"
    rows_per_shard: Annotated[int, Field(ge=1)] = 100


class DownloadParams(Frozen):
    timeout: Seconds = Decimal(30)


class ImageParams(Frozen):
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 90


class SplitParams(Frozen):
    max_seconds: Seconds = Decimal(10)
    min_seconds: Seconds = Decimal(1)
    max_size: Bytes = 2**30
    image: ImageParams | None = None
    count: int | Literal["all"] = "all"
    sizes: list[int] = []
    note: str = ""
    chosen: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> SplitParams:
        if self.min_seconds > self.max_seconds:
            raise ValueError("min_seconds is above max_seconds")
        return self


class PairParams(BaseModel):  # lax about unknown keys, as pydantic is when not told otherwise
    step: Annotated[int, Field(validation_alias="every")]


class OpenParams(BaseModel):
    model_config = ConfigDict(extra="allow")


class ClashParams(Frozen):
    salt: str = ""


@dataclass(frozen=True)
class Stage:
    name: str
    params: type[BaseModel]
    roles: tuple[str, ...] = ("samples",)
    optional: tuple[str, ...] = ()
    open: bool = False
    takes: tuple[Kind, ...] = ("samples",)

    def takes_of(self, role: str) -> tuple[Kind, ...]:
        return self.takes


STAGES: Mapping[str, StageSpec] = {
    stage.name: stage
    for stage in (
        Stage("download", DownloadParams, ("source",), takes=("rows",)),
        Stage("split", SplitParams),
        Stage("pair", PairParams, ("frames", "flow")),
        Stage("map", OpenParams),
        Stage("noise", Frozen, ()),
        Stage("join", Frozen, ("source",), open=True),
        Stage("concat", Frozen, (), open=True),
        Stage("clash", ClashParams),
    )
}

GOOD = """\
# What the tests vary.
store: ./store
sources:
  urls:
    path: urls.csv
    rows_per_shard: 10
datasets:
  videos: {stage: download, from: urls, max_rejects: 20%, timeout: 5s}
  clips:
    stage: split
    from: videos
    max_seconds: 8
"""


def parse(text: str | bytes, *overrides: str, environ: Mapping[str, str] | None = None) -> Recipe:
    return parse_recipe(
        text,
        stages=STAGES,
        source_model=Source,
        base=Path("/recipes"),
        overrides=overrides,
        environ=environ or {},
    )


def error_of(text: str | bytes, *overrides: str, **kwargs: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, *overrides, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def clip(text: str, **environ: str) -> SplitParams:
    """The parameters of a dataset whose last lines are ``text``."""
    params = parse(GOOD.replace("    max_seconds: 8\n", text), environ=environ)
    clips = params.datasets["clips"].params
    assert isinstance(clips, SplitParams)
    return clips


def test_good() -> None:
    recipe = parse(GOOD)
    assert recipe.store == "/recipes/store"
    assert recipe.sources == {"urls": Source(path="/recipes/urls.csv", rows_per_shard=10)}
    assert list(recipe.datasets) == ["videos", "clips"]
    videos, clips = recipe.datasets.values()
    assert (videos.stage, videos.inputs) == ("download", {"source": "urls"})
    assert videos.max_rejects == Decimal("0.2")
    assert videos.params == DownloadParams(timeout=Decimal(5))
    assert (clips.max_rejects, clips.salt) == (Decimal("0.5"), "")
    assert clips.params == SplitParams(max_seconds=Decimal(8))


def test_json_has_every_parameter_spelt_canonically() -> None:
    clips = parse(GOOD).model_dump(mode="json", by_alias=True)["datasets"]["clips"]
    assert clips["from"] == {"samples": "videos"}
    assert clips["max_rejects"] == "0.5"
    assert clips["params"]["max_seconds"] == "8"
    assert clips["params"]["max_size"] == 2**30


def test_a_recipe_is_frozen_and_travels_to_workers() -> None:
    recipe = parse(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.store = "elsewhere"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.datasets["clips"].salt = "1"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(recipe)) == recipe


BAD = [
    # top
    ("store: ./store\n", "", "2: store: missing; a recipe needs it"),
    ("./store", "", "2: store: must be a path or URL"),
    ("./store", "[a]", "2: store: must be a path or URL"),
    ("./store", "~nobody-of-that-name/x", "2: store: ~nobody-of-that-name/x names a user without a home folder"),
    ("store:", "name: x\nstore:", "2: name: unknown key of a recipe; choose from store, sources, datasets"),
    ("store:", "stores: x\nstore:", "2: stores: unknown key of a recipe; did you mean store?"),
    ("store:", "store: x\nstore:", "2: store: appears again in line 3"),
    ("store: ./", "- ./", "3: not valid YAML: expected <block end>, but found '?'"),
    # names
    ("  clips:", "  urls:", "9: urls: a source has the same name"),
    ("  clips:", "  Clips:", "9: Clips: a name begins with a letter a-z and has at most 63 of a-z, 0-9, - and _"),
    ("  clips:", "  7:", "9: 7: a name begins with a letter a-z and has at most 63 of a-z, 0-9, - and _"),
    ("  clips:", f"  c{'x' * 63}:", f"9: c{'x' * 63}: a name begins with a letter a-z and has at most 63 of a-z, 0-9, - and _"),
    ("  clips:", "  videos:", "8: videos: appears again in line 9"),
    ("  clips:", "  ? [a]\n  :", "7: datasets: a key must be plain text"),
    ("  clips:", "  !x clips:", "7: datasets: a key must be plain text"),
    # stages
    ("stage: split", "stage: spilt", "10: clips.stage: unknown stage spilt; did you mean split?"),
    ("stage: split", "stage: zzz", "10: clips.stage: unknown stage zzz; choose from download, split, pair, map, noise, join, concat, clash"),
    ("stage: split", "salt: x", "9: clips.stage: missing; stages are download, split, pair, map, noise, join, concat, clash"),
    ("stage: split", "stage: 3", "10: clips.stage: must be the name of a stage; stages are download, split, pair, map, noise, join, concat, clash"),
    ("stage: split", "stage: {split: 1}", "10: clips.stage: must be the name of a stage; stages are download, split, pair, map, noise, join, concat, clash"),
    # parameters
    ("max_seconds", "max_secondz", "12: clips.max_secondz: unknown parameter of stage split; did you mean max_seconds?"),
    ("max_seconds", "max_reject", "12: clips.max_reject: unknown parameter of stage split; did you mean max_rejects?"),
    ("max_seconds: 8", "max_seconds: 8kg", "12: clips.max_seconds: '8kg' has an unknown unit kg; units are d, h, m, s, ms, us"),
    ("max_seconds: 8", "max_seconds: 8sec", "12: clips.max_seconds: '8sec' has an unknown unit sec, did you mean s? units are d, h, m, s, ms, us"),
    ("max_seconds: 8", "max_seconds: -1", "12: clips.max_seconds: -1 is below zero"),
    ("max_seconds: 8", "max_seconds:\n      - 8", "12: clips.max_seconds: [8] has a wrong type; write a duration such as 8, 0.5, 500ms or 1m30s"),
    ("max_seconds: 8", "max_seconds: 1:30", "12: clips.max_seconds: '1:30' cannot be read; write a duration such as 8, 0.5, 500ms or 1m30s"),
    ("max_seconds: 8", "max_size: 10k", "12: clips.max_size: '10k' has an unknown unit k, did you mean kB? units are B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"),
    ("max_seconds: 8", "count: some", "12: clips.count: must be a valid integer or must be 'all', not 'some'"),
    ("max_seconds: 8", "sizes:\n      - 1\n      - a", "14: clips.sizes[1]: must be a valid integer, not 'a'"),
    ("max_seconds: 8", "sizes: null", "12: clips.sizes: must be a list, not null"),
    ("max_seconds: 8", "note: 007", "12: clips.note: must be a string; put it in quotes"),
    ("max_seconds: 8", "note: true", "12: clips.note: must be a string; put it in quotes"),
    ("max_seconds: 8", "salt: 1.10", "12: clips.salt: must be a string; put it in quotes"),
    ("max_seconds: 8", "max_rejects: 50", "12: clips.max_rejects: 50 is not between 0 and 1 (0% and 100%); did you mean 50%?"),
    ("max_seconds: 8", "image:\n      qualty: 3", "13: clips.image.qualty: unknown parameter of stage split; did you mean quality?"),
    ("max_seconds: 8", "image: {format: jpg}", "12: clips.image.format: must be 'jpeg' or 'png', not 'jpg'"),
    ("max_seconds: 8", "image: 3", "12: clips.image: must be a mapping, not 3"),
    ("max_seconds: 8", "min_seconds: 11", "9: clips: min_seconds is above max_seconds"),
    ("max_seconds: 8", "max_seconds: 8\n    max_seconds: 9", "12: clips.max_seconds: appears again in line 13"),
    ("max_seconds: 8", "<<: {max_seconds: 9}", "12: clips.<<: merge keys are not part of YAML 1.2; write the keys out"),
    ("max_seconds: 8", "note: !!python/object/apply:os.system [ls]", "12: clips.note: tag !!python/object/apply:os.system is not allowed"),
    ("max_seconds: 8", "note: !secret x", "12: clips.note: tag !secret is not allowed"),
    ("max_seconds: 8", "note: !!int x", "12: clips.note: tag !!int is not allowed"),
    ("max_seconds: 8", "note: !!set {a}", "12: clips.note: tag !!set is not allowed"),
    ("max_seconds: 8", "count: 1e999", "12: clips.count: the number is out of range"),
    ("max_seconds: 8", f"count: {'9' * 5000}", "12: clips.count: the number is out of range"),
    ("max_seconds: 8", 'note: "\\ud800"', "12: clips.note: holds a lone surrogate, which is not a character"),
    ("max_seconds: 8", '"a\\nb": 1', "12: clips.a\\nb: unknown parameter of stage split; choose from max_seconds, min_seconds, max_size, image, count, sizes, note, chosen, stage, from, max_rejects, max_holes, salt"),
    ("stage: split", "stage: clash", "10: clips.stage: stage clash has a parameter salt, which is a key of every dataset (and 1 more)"),
    # datasets
    ("  clips:\n    stage: split\n    from: videos\n    max_seconds: 8\n", "  clips: split\n", "9: clips: must be a mapping of keys"),
    ("  clips:\n    stage: split\n    from: videos\n    max_seconds: 8\n", "  clips:\n", "9: clips: must be a mapping of keys"),
    # inputs
    ("    from: videos\n", "", "9: clips.from: missing; stage split reads samples"),
    ("from: videos", "from: videoz", "11: clips.from: no dataset or source is named videoz; did you mean videos?"),
    ("from: videos", "from: xyz", "11: clips.from: no dataset or source is named xyz; choose from urls, videos, clips"),
    ("from: videos", "from: [videos]", "11: clips.from: stage split reads samples; write the name of a dataset or source"),
    ("from: videos", "from: {samples: [videos]}", "11: clips.from.samples: must be the name of a dataset or source"),
    ("from: videos", "from: {sample: videos}", "11: clips.from.sample: unknown role; stage split reads samples; did you mean samples?"),
    ("from: videos", "from:\n      samples: videoz", "12: clips.from.samples: no dataset or source is named videoz; did you mean videos?"),
    ("from: videos", "from: clips", "11: clips.from: a cycle: clips → clips"),
    ("from: urls", "from: clips", "8: videos.from: a cycle: videos → clips → videos (and 1 more)"),
    ("from: videos", "from: urls", "11: clips.from: stage split reads samples, and urls is a table, whose rows are none; make samples of them first, by a stage such as download"),
    ("stage: split\n    from: videos\n    max_seconds: 8", "stage: join\n    from:\n      source: videos\n      more: urls", "13: clips.from.more: stage join reads samples, and urls is a table, whose rows are none; make samples of them first, by a stage such as download"),
    ("stage: split\n    from: videos\n    max_seconds: 8", "stage: download\n    from: videos", "11: clips.from: stage download reads the rows of a table, and videos holds samples; give it a source"),
    # sources
    ("path: urls.csv", "url: url", "4: sources.urls.path: missing; a source needs it"),
    ("path: urls.csv", "path: 3", "5: sources.urls.path: must be a string; put it in quotes"),
    ("rows_per_shard: 10", "rows_per_shard: 0", "6: sources.urls.rows_per_shard: must be greater than or equal to 1, not 0"),
    ("rows_per_shard", "rows_per_shards", "6: sources.urls.rows_per_shards: unknown parameter of a source; did you mean rows_per_shard?"),
    ("\n    path: urls.csv\n    rows_per_shard: 10", " urls.csv", "4: sources.urls: must be a mapping of keys"),
    # YAML
    ("    max_seconds", "\tmax_seconds", "12: not valid YAML: a tab cannot indent or separate values; use spaces"),
    ("max_seconds: 8", "max_seconds: [8", "13: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("max_seconds: 8", "max_seconds: *x", "12: not valid YAML: found undefined alias 'x'"),
    ("max_seconds: 8", 'note: "\\UFFFFFFFF"', "12: not valid YAML: Python int too large to convert to C int"),
    ("max_seconds: 8", "note: x\x07", "12: not valid YAML: holds a control character"),
    ("max_seconds: 8\n", "max_seconds: 8\n---\na: 1\n", "13: not valid YAML: only one document is read; remove the ---"),
    # environment
    ("max_seconds: 8", "note: a ${NOPE}", "12: clips.note: environment variable NOPE is not set; set it or write ${NOPE:-default}"),
    ("max_seconds: 8", "max_seconds: ${N}", "12: clips.max_seconds: '8kg' has an unknown unit kg; units are d, h, m, s, ms, us"),
    ("max_seconds: 8", "note: ${1X}", "12: clips.note: ${ begins no ${NAME}; write $${ where ${ itself is meant"),
    ("max_seconds: 8", "note: ${X", "12: clips.note: ${ begins no ${NAME}; write $${ where ${ itself is meant"),
    ("timeout: 5s", "timeout: ${T}", "8: not valid YAML: expected ',' or '}', but got '{'; inside { } and [ ] put ${NAME} in quotes"),
    # several
    ("from: videos\n    max_seconds: 8", "form: videos\n    max_secondz: 8", "9: clips.from: missing; stage split reads samples (and 2 more)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), BAD, ids=[line for _, _, line in BAD])
def test_bad(old: str, new: str, line: str) -> None:
    assert old in GOOD
    assert error_of(GOOD.replace(old, new), environ={"N": "8kg"}) == f"recipe.yaml:{line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "1: the recipe is empty; it needs store and datasets"),
        ("# only a comment\n", "1: the recipe is empty; it needs store and datasets"),
        ("- a\n", "1: a recipe is a mapping with store, sources and datasets"),
        ("just text", "1: a recipe is a mapping with store, sources and datasets"),
        (b"store: a\nx: \xff\n", "2: not UTF-8 text"),
        ("store: a".encode("utf-16"), "1: not UTF-8 text"),
        ("store: \ud800", "1: not UTF-8 text"),
        ("store: x\n", "1: datasets: a recipe needs at least one dataset"),
        ("store: x\ndatasets: {}\n", "2: datasets: a recipe needs at least one dataset"),
        ("store: x\ndatasets: [a]\n", "2: datasets: must be a mapping of names"),
        ("a: " + "[" * 5000, "1: nested too deeply"),
        ("store: " + "x" * 1024 * 1024, "1: the file holds more than 1.0 MiB"),
    ],
)
def test_bad_files(text: str | bytes, line: str) -> None:
    assert error_of(text) == f"recipe.yaml:{line}"


PAIR = """\
store: s
datasets:
  frames: {stage: noise}
  flow: {stage: noise}
  triplets:
    stage: pair
    every: 3
    from: %s
"""


OPEN = """\
store: s
datasets:
  a: {stage: noise}
  b:
    stage: map
    from: a
"""


def test_roles() -> None:
    recipe = parse(PAIR % "{flow: flow, frames: frames}")
    assert recipe.datasets["frames"].inputs == {}
    assert recipe.datasets["triplets"].inputs == {"frames": "frames", "flow": "flow"}
    assert recipe.datasets["triplets"].params == PairParams(every=3)
    assert recipe.sources == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("frames", "from: stage pair reads frames and flow; write role: name"),
        ("{frames: frames}", "from: role flow missing; stage pair reads frames and flow"),
        ("{}", "from: missing; stage pair reads frames and flow"),
        (
            "{frames: frames, flo: flow}",
            "from.flo: unknown role; stage pair reads frames and flow; did you mean flow?",
        ),
    ],
)
def test_bad_roles(given: str, message: str) -> None:
    assert error_of(PAIR % given) == f"recipe.yaml:8: triplets.{message}"


JOINED = """\
store: s
datasets:
  a: {stage: noise}
  b: {stage: noise}
  c: {stage: %s, from: %s}
"""


@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        ("join", "{source: a, more: b}", {"source": "a", "more": "b"}),
        ("concat", "{one: a, two: b}", {"one": "a", "two": "b"}),
        ("concat", "[a, b]", {"a": "a", "b": "b"}),
    ],
)
def test_roles_of_the_recipes_own(stage: str, given: str, expected: dict[str, str]) -> None:
    assert parse(JOINED % (stage, given)).datasets["c"].inputs == expected


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("join", "a", "from: stage join reads source and others; write role: name for each"),
        ("join", "[a, b]", "from: stage join reads source and others; write role: name for each"),
        ("join", "{more: b, less: a}", "from: role source missing; stage join reads source and"),
        ("concat", "[a]", "from: stage concat reads two or more; write role: name for each"),
        ("concat", "[a, c1]", "from.c1: no dataset or source is named c1"),
        ("concat", "[a, {b: c}]", "from.{'b': 'c'}: a role's name is made as those of datasets"),
        ("concat", "{A: a, b: b}", "from.A: a role's name is made as those of datasets are"),
    ],
)
def test_bad_roles_of_the_recipes_own(stage: str, given: str, message: str) -> None:
    assert error_of(JOINED % (stage, given)).startswith(f"recipe.yaml:5: c.{message}")


def test_a_stage_without_inputs_takes_none() -> None:
    text = (PAIR % "{frames: frames, flow: flow}").replace("noise}", "noise, from: flow}", 1)
    assert error_of(text) == "recipe.yaml:3: frames.from: stage noise reads nothing"


def test_a_lax_model_does_not_swallow_a_misspelt_parameter() -> None:
    text = (PAIR % "{frames: frames, flow: flow}").replace("every", "evry")
    assert error_of(text) == (
        "recipe.yaml:5: triplets.every: missing; stage pair needs it (and 1 more)"
    )


def test_an_open_model_takes_any_parameter() -> None:
    text = f"{OPEN}    any: {{x: [1]}}\n"
    assert parse(text).datasets["b"].params.model_dump() == {"any": {"x": [1]}}


# Values


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        (".nan", ".nan"),
        ("1_000", "1_000"),
        ("'8'", "8"),
        ("!!str 8", "8"),
        ("|\n      two\n      lines", "two\nlines\n"),
        ("é", "é"),
    ],
)
def test_strings_that_yaml_1_1_would_change(written: str, value: str) -> None:
    assert clip(f"    note: {written}\n").note == value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-5", -5),
        ("010", 10),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("!!int '7'", 7),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
    ],
)
def test_core_schema(written: str, value: Any) -> None:
    text = f"{OPEN}    x: {written}\n"
    read = parse(text).datasets["b"].params.model_dump()["x"]
    assert read == value
    assert type(read) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8", exclude_characters="$")),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)  # fmt: skip
def test_json_is_read_as_json(value: Any) -> None:
    written = json.dumps(value)
    if "<<" in written:  # a merge key, which JSON does not have
        return
    read = parse(f"{OPEN}    x: {written}\n").datasets["b"].params.model_dump()["x"]
    assert read == value


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_refused_in_one_line(text: str | bytes) -> None:
    assert error_of(text).startswith("recipe.yaml:")


@given(st.data())
def test_any_mutation_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD)))
    to = data.draw(st.integers(at, min(len(GOOD), at + 10)))
    middle = data.draw(st.text("[]{}&*!|>'\"%@`:,#-? \n\tabc019${}~", max_size=8))
    message = ""
    try:
        parse(GOOD[:at] + middle + GOOD[to:])
    except RecipeError as error:
        message = str(error)
    assert "\n" not in message
    assert message.startswith("recipe.yaml:") or not message


def test_byte_order_mark_and_windows_line_ends() -> None:
    raw = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert parse(raw) == parse(GOOD)
    assert error_of(raw.replace(b"seconds: 8", b"seconds: 8kg")).startswith("recipe.yaml:12: ")


# Aliases


def test_aliases_share_values_but_not_overrides() -> None:
    text = GOOD.replace("    max_seconds: 8\n", "    image: &image {quality: 5}\n")
    text += "  more: {stage: split, from: clips, image: *image}\n"
    recipe = parse(text, "clips.image.quality=7")
    clips, more = recipe.datasets["clips"].params, recipe.datasets["more"].params
    assert isinstance(clips, SplitParams)
    assert isinstance(more, SplitParams)
    assert (clips.image, more.image) == (ImageParams(quality=7), ImageParams(quality=5))


def test_billion_laughs() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "the aliases and variables expand to too much" in error_of("\n".join(lines))


def test_long_laughs() -> None:
    text = f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
    assert "the aliases and variables expand to too much" in error_of(text)


def test_a_value_inside_itself() -> None:
    assert error_of("a: &a [*a]\n").endswith(": nested too deeply")


def test_a_chain_of_aliases() -> None:
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [[[[*a{i - 1}]]]]" for i in range(1, 500)]
    assert error_of("\n".join(lines)).endswith(": nested too deeply")


# Environment


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${A}", "text"),
        ("a ${A}-${B:-x} z", "a text-x z"),
        ("${UNSET:-}", ""),
        ("'${EMPTY:-x}'", "x"),
        ("'${EMPTY}'", ""),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A ${A}", "$A text"),
        ("'${N}'", "7"),
        ("n${N}", "n7"),
        ("${NESTED}", "${A}"),
        ('"${A}"', "text"),
    ],
)
def test_variables(written: str, value: str) -> None:
    environ = {"A": "text", "N": "7", "EMPTY": "", "NESTED": "${A}"}
    if written == "${UNSET:-}":
        written = f"'{written}'"
    assert clip(f"    note: {written}\n", **environ).note == value


def test_a_value_that_is_one_variable_is_read_again() -> None:
    assert clip("    count: ${N}\n", N="7").count == 7
    assert clip('    count: "${N}"\n', N="7").count == 7
    assert clip("    count: ${N:-3}\n").count == 3
    assert clip("    chosen: ${T}\n", T="true").chosen is True
    assert clip("    image: ${I:-null}\n").image is None


def test_variables_come_from_the_given_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELMILL_SECRET", "hidden")
    text = GOOD.replace("./store", "${REELMILL_SECRET}")
    assert "REELMILL_SECRET is not set" in error_of(text)
    assert parse_recipe(text, stages=STAGES, source_model=Source).store.endswith("/hidden")


def test_undecodable_variables() -> None:
    text = GOOD.replace("max_seconds: 8", "note: ${A}")
    assert "lone surrogate" in error_of(text, environ={"A": "\udcff"})


def test_variables_do_not_expand_without_bound() -> None:
    text = GOOD.replace("max_seconds: 8", f"note: {'${A}' * 100_000}")
    assert "expand to too much" in error_of(text, environ={"A": "x" * 100})


# Overrides


def test_overrides() -> None:
    recipe = parse(
        GOOD,
        "clips.max_seconds=9.5s",
        "clips.sizes=[1, 2]",
        "clips.image.quality=5",
        "clips.note='a=b'",
        "datasets.clips.salt=x",
        "sources.urls.path=s3://bucket/urls.csv",
        "urls.rows_per_shard=${ROWS}",
        "store=s3://bucket/store",
        "videos={stage: download, from: urls}",
        "videos.timeout=1m",
        environ={"ROWS": "77"},
    )
    clips = recipe.datasets["clips"]
    assert clips.params == SplitParams(
        max_seconds=Decimal("9.5"), sizes=[1, 2], image=ImageParams(quality=5), note="a=b"
    )
    assert clips.salt == "x"
    assert recipe.sources["urls"] == Source(path="s3://bucket/urls.csv", rows_per_shard=77)
    assert recipe.store == "s3://bucket/store"
    assert recipe.datasets["videos"].params == DownloadParams(timeout=Decimal(60))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clips.max_secondz=8", "unknown parameter of stage split; did you mean max_seconds?"),
        ("clips.max_seconds=8kg", "'8kg' has an unknown unit kg; units are d, h, m, s, ms, us"),
        ("clipz.max_seconds=8", "nothing in datasets is named clipz; did you mean clips?"),
        ("stor=x", "nothing in datasets is named stor; did you mean store?"),
        ("sources.url.path=x", "nothing in sources is named url; did you mean urls?"),
        (
            "sources.urls.pth=x",
            "unknown parameter of a source; did you mean path?",
        ),
        ("store.x=1", "nothing in store is named x; choose from store, sources, datasets"),
        ("store=", "must be a path or URL"),
        ("clips.max_seconds", "write it as path=value"),
        ("clips.=1", "write it as path=value"),
        ("=1", "write it as path=value"),
        ("clips.max_seconds.x=1", "clips.max_seconds is not a mapping"),
        ("clips.sizes=[1, a]", "clips.sizes[1]: must be a valid integer, not 'a'"),
        ("clips.sizes=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("clips.note=!!python/name:os.system", "tag !!python/name:os.system is not allowed"),
        (
            "clips.note=${NOPE}",
            "environment variable NOPE is not set; set it or write ${NOPE:-default}",
        ),
        ("clips.image={quality: x}", "clips.image.quality: must be a valid integer, not 'x'"),
        ("clips.from=videoz", "no dataset or source is named videoz; did you mean videos?"),
        ("clips={stage: split}", "clips.from: missing; stage split reads samples"),
        ("datasets={}", "a recipe needs at least one dataset"),
        ("datasets=3", "must be a mapping of names"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    assert error_of(GOOD, override) == f"--set {override}: {message}"


def test_an_error_cites_the_last_override_of_its_value() -> None:
    message = error_of(GOOD, "clips.max_seconds=8kg", "clips={stage: split, from: x}")
    assert message.startswith("--set clips={stage: split, from: x}: clips.from: ")


def test_errors_of_the_file_come_before_those_of_overrides() -> None:
    text = GOOD.replace("max_seconds", "max_secondz")
    assert error_of(text, "videos.timeout=1kg") == (
        "recipe.yaml:12: clips.max_secondz: unknown parameter of stage split; "
        "did you mean max_seconds? (and 1 more)"
    )


def test_long_errors_stay_short() -> None:
    assert len(error_of(GOOD, f"clips.{'x' * 10_000}={'y' * 10_000}")) < 1000
    assert len(error_of(GOOD.replace("max_seconds", "x" * 1000))) < 1000


# Places


@pytest.mark.parametrize(
    ("written", "store"),
    [
        ("./store", "/recipes/store"),
        ("../store", "/recipes/../store"),
        ("/abs/store", "/abs/store"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("memory://x", "memory://x"),
        ("simplecache::s3://bucket", "simplecache::s3://bucket"),
        ("~/store", "/home/someone/store"),
    ],
)
def test_store(written: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse(GOOD.replace("./store", written)).store == store
    source = parse(GOOD.replace("urls.csv", written)).sources["urls"]
    assert isinstance(source, Source)
    assert source.path == store


# The graph


def graph(edges: Mapping[str, str]) -> Recipe:
    return Recipe.build(
        store="s",
        stages=STAGES,
        source_model=Source,
        sources={"urls": {"version": "urls"}},
        datasets={name: {"stage": "split", "from": parent} for name, parent in edges.items()},
    )


def test_order_is_that_of_the_file_among_what_is_ready() -> None:
    recipe = graph({"d": "c", "a": "urls", "c": "b", "b": "a", "e": "urls"})
    assert recipe.order() == ["a", "b", "c", "d", "e"]
    assert recipe.ancestors("c") == ["a", "b"]
    assert recipe.ancestors("a") == []
    assert recipe.select(["e", "b"]) == ["a", "b", "e"]
    assert recipe.select([]) == []


def test_unknown_names() -> None:
    recipe = graph({"clips": "urls"})
    with pytest.raises(RecipeError, match=r"^no dataset is named clipz; did you mean clips\?$"):
        recipe.ancestors("clipz")
    with pytest.raises(RecipeError, match=r"^no dataset is named urls; choose from clips$"):
        recipe.select(["clips", "urls"])


def test_cycles_are_named_in_the_direction_of_the_data() -> None:
    with pytest.raises(RecipeError) as caught:
        graph({"z": "urls", "a": "c", "b": "a", "c": "b"})
    assert str(caught.value) == "a.from: a cycle: a → b → c → a"


@given(st.lists(st.integers(0, 100), max_size=30), st.randoms())
def test_order_is_topological(picks: list[int], random: Any) -> None:
    parents = {f"d{i}": f"d{pick % i}" if i else "urls" for i, pick in enumerate([0, *picks])}
    names = list(parents)
    random.shuffle(names)
    recipe = graph({name: parents[name] for name in names})
    order = recipe.order()
    assert sorted(order) == sorted(names)
    for name in names:
        before = recipe.ancestors(name)
        assert before == [other for other in order if other in before]
        assert parents[name] in [*before, "urls"]
        assert order.index(name) >= len(before)


def test_a_long_chain_needs_no_recursion() -> None:
    recipe = graph({f"d{i}": f"d{i - 1}" if i else "urls" for i in range(3000)})
    assert len(recipe.ancestors("d2999")) == 2999


# From Python


def test_build() -> None:
    built = Recipe.build(
        store=Path("store"),
        sources={"urls": {"path": Path("urls.csv"), "rows_per_shard": 10}},
        datasets={
            "videos": {
                "stage": "download",
                "from": "urls",
                "max_rejects": Decimal("0.2"),
                "timeout": "5s",
            },
            "clips": {"stage": "split", "from": "videos", "max_seconds": 8},
        },
        stages=STAGES,
        source_model=Source,
        base=Path("/recipes"),
    )
    assert built == parse(GOOD)


def test_build_resolves_against_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = Recipe.build(
        store="store", datasets={"a": {"stage": "noise"}}, stages=STAGES, source_model=Source
    )
    assert built.store == str(tmp_path / "store")


def test_build_errors_cite_the_field() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.build(
            store="s",
            datasets={
                "a": {"stage": "noise"},
                "b": {"stage": "split", "from": "a", "sizes": ["x"]},
            },
            stages=STAGES,
            source_model=Source,
        )
    assert str(caught.value) == "b.sizes[0]: must be a valid integer, not 'x'"


def test_build_leaves_its_arguments_alone() -> None:
    source = {"path": "x"}
    Recipe.build(
        store="s",
        sources={"urls": source},
        datasets={"a": {"stage": "noise"}},
        stages=STAGES,
        source_model=Source,
    )
    assert source == {"path": "x"}


# Files


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, stages=STAGES, source_model=Source, overrides=overrides, environ={})


def test_load_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    assert load(path).store == str(tmp_path / "store")
    path.write_text(GOOD.replace("8\n", "8kg\n"))
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:12: clips.max_seconds: ")


def test_load_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"nope\.yaml: cannot be read: No such file or directory$"
    ):
        load(tmp_path / "nope.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory$"):
        load(tmp_path)
    with pytest.raises(RecipeError, match=r"nope\.py: cannot be read: No such file or directory$"):
        load(tmp_path / "nope.py")


def test_load_reads_no_more_than_the_limit() -> None:
    with pytest.raises(RecipeError, match=r"^/dev/zero:1: the file holds more than 1\.0 MiB$"):
        load(Path("/dev/zero"))


def test_load_python(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(
        "sizes = [2**i for i in range(3)]\n"
        "recipe = {'store': 'store', 'datasets': {\n"
        "    'a': {'stage': 'noise'},\n"
        "    'b': {'stage': 'split', 'from': 'a', 'sizes': sizes, 'note': '${A}'}}}\n"
    )
    recipe = load(path, "b.max_seconds=9")
    assert recipe.store == str(tmp_path / "store")
    assert recipe.datasets["b"].params == SplitParams(
        max_seconds=Decimal(9), sizes=[1, 2, 4], note="${A}"
    )
    with pytest.raises(RecipeError, match=r"^--set b\.max_secondz=9: unknown parameter"):
        load(path, "b.max_secondz=9")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", ": a Python recipe defines recipe = {...}"),
        ("recipe = [1]\n", ": a recipe is a mapping with store, sources and datasets"),
        ("recipe = {}\n", ": store: missing; a recipe needs it (and 1 more)"),
        ("x = 1\nrecipe = {\n", ":2: SyntaxError: '{' was never closed"),
        ("\n\n1 / 0\n", ":3: ZeroDivisionError: division by zero"),
        ("import json\n\njson.loads('a\\n')\n", ":3: JSONDecodeError: Expecting value"),
        ("raise ValueError('two\\nlines')\n", ":1: ValueError: two\\nlines"),
    ],
)
def test_bad_python(code: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(code)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_python_text_is_never_run_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("recipe = {}\n")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load(path)
