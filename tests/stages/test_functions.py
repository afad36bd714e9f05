"""Functions of users on samples: maps and filters, and what becomes of their mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import reelmill
from reelmill.digest import plain_json, sha256
from reelmill.errors import MissingDependencyError, RecipeError, StageError
from reelmill.functions import Declared, declared_of, function
from reelmill.store.model import blob_name
from reelmill.tasks import get_stage
from reelmill.tasks.contract import key_params

from .datasets import World, keys

COLUMNS = {"motion": "float64", "codec": "string"}
OWN = """
import reelmill

@reelmill.function(reads=("txt",), writes=("out.txt",), columns={"length": "int32"})
def shout(sample, *, mark="!"):
    text = sample.fields["txt"].decode().upper() + mark
    return {"out.txt": text, "length": len(text)}

@reelmill.function(reads=(), writes=(), columns={"fast": "bool"})
def rate(sample, limit=0.5):
    return {"fast": sample.columns["motion"] > limit}

def plain(sample):
    return {"json": {"fields": sorted(sample.fields), "motion": sample.columns["motion"]}}

def letters(sample):
    for letter in sample.fields["txt"].decode():
        yield {"letter": letter}

def parts(sample):
    return [reelmill.Sample(f"{sample.key}_a", {"txt": b"a"}, {}),
            reelmill.Sample(f"{sample.key}_b", {"txt": b"b"}, {})]

def choosy(sample):
    if sample.key.endswith("1"):
        raise reelmill.Rejected("too_dark", "luma 3 is below 16")
    return None if sample.key.endswith("2") else {"x": b"1"}

def fails(sample):
    if sample.key.endswith("1"):
        raise ValueError(f"cannot do {object()}")
    return {"x": b"1"}

class Model:
    made = 0
    def __init__(self, weights):
        type(self).made += 1
        self.weights = weights
    def __call__(self, sample):
        return {"out": f"{self.weights} {self.made}"}

sizes = []

@reelmill.function(batch=2)
def pairs(samples):
    sizes.append(len(samples))
    if any(sample.key.endswith("3") for sample in samples):
        raise KeyError("three")
    return [{"n": str(len(samples))} for _ in samples]

@reelmill.function(reads=("txt",))
def keeps(sample):
    text = sample.fields["txt"].decode()
    return {"t0": True, "t1": False}.get(text, f"it is {text}")
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "own.py").write_text(OWN)
    world = World(tmp_path)
    world.grow("clips", COLUMNS, shard(0, 4), shard(1, 2))
    return world


def shard(number: int, count: int) -> dict[str, dict[str, Any]]:
    return {
        key: {
            "txt": b"t%d" % place,
            "mp4": b"video %d " % place * 50,
            "motion": place / 4,
            "codec": "h264" if place % 2 else None,
        }
        for place, key in enumerate(keys(number, count))
    }


# Maps


def test_what_a_function_returns_is_added_to_the_sample_and_to_its_columns(world: World) -> None:
    made = world.one("map", "clips", function="./own.py:shout", **{"with": {"mark": "?"}})
    samples, before = world.samples(made), world.samples(world.given["clips"])
    assert samples.keys() == before.keys()
    for key, one in samples.items():
        text = before[key].fields["txt"].upper() + b"?"
        assert one.fields == {**before[key].fields, "out.txt": text}
        assert one.columns == {**before[key].columns, "length": 3}
    assert world.columns(made) == {"motion": "double", "codec": "string", "length": "int32"}


def test_what_stays_of_a_sample_is_what_the_recipe_says(world: World) -> None:
    def fields(keep: Any) -> set[str]:
        made = world.one("map", "clips", function="./own.py:shout", keep=keep)
        return {name for one in world.samples(made).values() for name in one.fields}

    assert fields(True) == {"txt", "mp4", "out.txt"}
    assert fields(False) == {"out.txt"}
    assert fields(["m*"]) == {"mp4", "out.txt"}


def test_a_function_of_columns_leaves_the_tar_and_reads_nothing_of_it(world: World) -> None:
    before = list(world.given["clips"].shards)
    for one in before:
        assert one.tar is not None
        # Whoever read or copied these would notice.
        world.store.backend.put(blob_name(one.tar.digest, "tar"), bytes(one.tar.size))
    made = world.one("map", "clips", function="./own.py:rate", **{"with": {"limit": 0.3}})
    assert [one.tar for one in made.shards] == [one.tar for one in before]
    assert world.columns(made)["fast"] == "bool"
    again = world.one("filter", "clips", where="motion >= 0")
    assert [one.tar for one in again.shards] == [one.tar for one in before]


def test_an_undecorated_function_is_given_everything(world: World) -> None:
    made = world.samples(world.one("map", "clips", function="./own.py:plain"))
    told = json.loads(made["000000002"].fields["json"])
    assert told == {"fields": ["mp4", "txt"], "motion": 0.5}


def test_several_samples_of_one_are_numbered_or_named(world: World) -> None:
    made = world.samples(world.one("map", "clips", function="./own.py:letters", keep=False))
    assert sorted(made)[:4] == [
        "000000000_000",
        "000000000_001",
        "000000001_000",
        "000000001_001",
    ]
    assert made["000000001_001"].fields == {"letter": b"1"}
    named = world.samples(world.one("map", "clips", function="./own.py:parts"))
    assert named["000000000_b"].fields == {"txt": b"b"}
    assert named["000000000_b"].columns["motion"] == 0


def test_samples_that_a_function_refuses_say_why(world: World) -> None:
    made = world.one("map", "clips", function="./own.py:choosy")
    assert world.rejects(made) == {
        "000000001": ("too_dark", "luma 3 is below 16"),
        "000000002": ("no_result", "choosy returned nothing"),
        "000010001": ("too_dark", "luma 3 is below 16"),
    }


def test_a_failure_is_told_with_its_line_or_rejected(world: World) -> None:
    line = OWN.splitlines().index('        raise ValueError(f"cannot do {object()}")') + 1
    said = rf"own.py:{line}: ValueError: cannot do <object object at 0x…> \(sample 000000001\)"
    with pytest.raises(StageError, match=said):
        world.one("map", "clips", function="./own.py:fails")
    made = world.one("map", "clips", function="./own.py:fails", on_error="reject")
    assert world.rejects(made)["000010001"] == (
        "function_failed",
        f"own.py:{line}: ValueError: cannot do <object object at 0x…>",
    )
    again = World(world.folder / "again")
    (again.folder / "own.py").write_text(OWN)
    again.grow("clips", COLUMNS, shard(0, 4), shard(1, 2))
    assert again.one("map", "clips", function="./own.py:fails", on_error="reject") == made


def test_a_class_is_set_up_once_in_a_process(world: World) -> None:
    made = world.one("map", "clips", function="./own.py:Model", **{"with": {"weights": "w1"}})
    assert {one.fields["out"] for one in world.samples(made).values()} == {b"w1 1"}


def test_batches_stay_within_a_shard_and_a_bad_one_is_told_apart(world: World) -> None:
    made = world.one("map", "clips", function="./own.py:pairs", on_error="reject")
    samples = world.samples(made)
    assert world.rejects(made) == {
        "000000003": ("function_failed", f"own.py:{_line('three')}: KeyError: 'three'")
    }
    assert len(samples) == 5
    counts = sorted(one.fields["n"] for one in samples.values())
    # The bad one's neighbour was called by itself.
    assert counts == [b"1", b"2", b"2", b"2", b"2"]


def _line(text: str) -> int:
    return next(n for n, line in enumerate(OWN.splitlines(), 1) if text in line)


def test_a_function_changes_nothing_but_by_what_it_returns(world: World) -> None:
    (world.folder / "rough.py").write_text(
        "def rough(sample):\n"
        "    sample.fields['txt'] = b'other'\n"
        "    del sample.fields['mp4']\n"
        "    sample.columns['motion'] = 'much'\n"
        "    return {'n': '1'}\n"
    )
    before = world.samples(world.given["clips"])
    made = world.samples(world.one("map", "clips", function="./rough.py:rough"))
    assert {k: (one.fields, one.columns) for k, one in made.items()} == {
        k: ({**one.fields, "n": b"1"}, one.columns) for k, one in before.items()
    }


def test_a_function_that_would_end_the_worker_fails_as_others_do(world: World) -> None:
    (world.folder / "ends.py").write_text("def ends(sample):\n    raise SystemExit('no GPU')\n")
    with pytest.raises(StageError, match=r"ends.py:2: SystemExit: no GPU \(sample 0"):
        world.one("map", "clips", function="./ends.py:ends")
    more: dict[str, Any] = {"on_error": "reject", "max_rejects": "100%"}
    made = world.one("filter", "clips", function="./ends.py:ends", **more)
    assert made.totals().rejects == 6


def test_an_error_that_cannot_be_told_is_a_failure_too(world: World) -> None:
    text = "class Mute(Exception):\n    def __str__(self):\n        raise self\n"
    (world.folder / "mute.py").write_text(f"{text}def f(sample):\n    raise Mute\n")
    with pytest.raises(StageError, match=r"mute.py:5: Mute \(sample 0"):
        world.one("map", "clips", function="./mute.py:f")


def test_memory_that_is_short_is_no_fault_of_a_sample(world: World) -> None:
    (world.folder / "own.py").write_text("def f(sample):\n    raise MemoryError\n")
    with pytest.raises(StageError, match=r"own.py:2: MemoryError"):
        world.one("map", "clips", function="own.py:f", on_error="reject")


WRONG = {
    "return 3": "returned a value of type int for sample 000000002; a function returns a mapping",
    "return {'x': 3}": "returned a value of type int as x for sample",
    "return {'a b': b''}": "returned a field 'a b' for sample",
    "return {'other': b''}": "returned a field other for sample .*; it declares what it writes",
    "return {'score': 'high'}": "returned 'high' as column score for sample .*; .* double",
    "return [{'out': b''}, 7]": "returned a value of type int for",
    "raise reelmill.Rejected('No Good', 'x')": "for the reason 'No Good'; a reason is a word",
    "return reelmill.Sample('else', {'out': b''}, {})": "one with the key 'else'",
    "return reelmill.Sample(sample.key, {}, {})": "returned no field",
    "return reelmill.Sample(sample.key, b'', {})": "whose fields or columns are no mapping",
    "return {'out': sample.fields['nothing']}": "own.py:4: KeyError: 'nothing' .sample 000000002",
}


@pytest.mark.parametrize("body", WRONG)
def test_what_a_function_may_not_return_is_told_in_a_line(world: World, body: str) -> None:
    declared = "@reelmill.function(writes=('out', 'x', 'a b'), columns={'score': 'float64'})"
    text = f"import reelmill\n{declared}\ndef f(sample):\n    {body}\n"
    (world.folder / "own.py").write_text(text)
    with pytest.raises(StageError, match=WRONG[body]):
        world.one("map", "clips", function="own.py:f")


def test_a_sample_without_a_declared_field_is_rejected(world: World) -> None:
    text = "import reelmill\n@reelmill.function(reads=('*.srt',))\ndef f(sample): return {}\n"
    (world.folder / "own.py").write_text(text)
    made = world.one("map", "clips", function="own.py:f", max_rejects="100%")
    assert world.rejects(made)["000000000"] == ("no_field", "has no field *.srt")


# What a shard is made anew for


def test_a_changed_source_makes_shards_anew_unless_it_states_a_version(world: World) -> None:
    datasets = {"out": {"stage": "map", "from": "clips", "function": "./own.py:plain"}}
    datasets["then"] = {"stage": "filter", "from": "out", "where": "motion < 0.6"}
    first = world.build(datasets)
    assert len(world.made) == 4
    (world.folder / "own.py").write_text(OWN + "# Read by people only.\n")
    assert world.build(datasets) == first
    assert sorted(world.made) == ["map/out/00000", "map/out/00001"], "nothing further down"
    (world.folder / "sub").mkdir()
    (world.folder / "sub" / "moved.py").write_text(OWN + "# Read by people only.\n")
    datasets["out"]["function"] = "sub/moved.py:plain"
    assert (world.build(datasets), world.made) == (first, [])

    stated = "import reelmill\n@reelmill.function(version=1)\ndef f(sample): return {'x': 'X'}\n"
    (world.folder / "v.py").write_text(stated)
    before = world.one("map", "clips", function="v.py:f")
    (world.folder / "v.py").write_text(stated.replace("'X'", "'Y'"))
    assert (world.one("map", "clips", function="v.py:f"), world.made) == (before, [])
    (world.folder / "v.py").write_text(stated.replace("1", "2").replace("'X'", "'Y'"))
    assert world.one("map", "clips", function="v.py:f") != before


def test_keys_hold_what_arguments_mean_and_no_runtime_setting(world: World) -> None:
    def key(**params: Any) -> Any:
        one = {"stage": "map", "from": "clips", "function": "./own.py:rate", **params}
        return key_params(world.recipe({"out": one}).datasets["out"].params)  # type: ignore[arg-type]

    same = [{"with": {"limit": 1}}, {"with": {"limit": 1.0}}, {"with": '{"limit": 1}'}]
    assert key(**same[0]) == key(**same[1]) == key(**same[2])
    assert key(keep=["b", "a"]) == key(keep=["a", "b", "a"]) != key(keep=True)
    source = sha256(plain_json({"python": OWN}))
    assert key()["function"] == {"name": "rate", "source": source}


def test_functions_of_an_installed_module_have_its_source_as_a_tool(
    world: World, module: Path
) -> None:
    datasets = {"out": {"stage": "map", "from": "clips", "function": "installed_things:twice"}}
    made = world.build(datasets)["out"]
    assert world.samples(made)["000000001"].fields["two"] == b"t1t1"
    stage, params = get_stage("map"), world.recipe(datasets).datasets["out"].params
    tools = stage.tools(params)
    assert tools == {
        "numpy": version("numpy"),
        "source of installed_things:twice": sha256(module.read_bytes()),
    }
    assert stage.needs(params) == {"GPU": 1.0}
    assert stage.memory_of(params) == 2_000_000_000

    recipe = world.recipe({"out": {**datasets["out"], "keep": False}})
    (first, *_) = world.planner(recipe).start()
    module.write_text(module.read_text() + "# other on this worker\n")
    with pytest.raises(StageError, match=r"this worker on \S+ has source of installed_things:twi"):
        world.execute(recipe, first)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    path = folder / "installed_things.py"
    path.write_text(
        "import reelmill\n"
        "@reelmill.function(packages=('numpy',), resources={'GPU': 1}, memory='2 GB')\n"
        "def twice(sample): return {'two': sample.fields['txt'] * 2}\n"
        "@reelmill.function(packages=('no-such-package',))\n"
        "def needy(sample): return {}\n"
        "def unmarked(sample): return {}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield path
    sys.modules.pop("installed_things", None)


def test_a_function_object_of_a_python_recipe_travels_with_the_recipe(world: World) -> None:
    from reelmill.recipe import load_recipe
    from reelmill.tasks import Stages
    from reelmill.tasks.ingest import Source

    path = world.folder / "recipe.py"
    path.write_text(
        "def tag(sample, *, word='a'):\n    return {'tag': word}\n"
        "recipe = {'store': 'store', 'sources': {'clips': {'version': 'clips@v1'}}, 'datasets': {\n"
        "  'out': {'stage': 'map', 'from': 'clips', 'function': tag, 'with': {'word': 'b'}}}}\n"
    )
    recipe = load_recipe(path, stages=Stages(), source_model=Source)
    (first, *_) = world.planner(recipe).start()
    assert list(first.slot.documents) == [first.action.params["function"]["source"]]  # type: ignore[index, call-overload]
    result = world.execute(recipe, first)
    assert (result.samples, result.fields) == (4, ("mp4", "tag", "txt"))


# What is refused before anything runs

REFUSED = {
    "./own.py:shoot": "out.function: own.py has no function shoot; did you mean shout?",
    "./none.py:f": "out.function: ./none.py cannot be read: No such file or directory",
    "../own.py:f": "out.function: ../own.py is not in the recipe's folder",
    "os:system": "out.function: os has no function system",
    "subprocess:Popen": "is not marked as a function of samples; decorate it with @reelmill",
    "installed_things:unmarked": "is not marked as a function of samples",
    "no_such_module:f": "cannot import no_such_module: ModuleNotFoundError",
    "./broken.py:f": "out.function: broken.py:2: ZeroDivisionError: division by zero",
    "./syntax.py:f": "out.function: syntax.py:1: SyntaxError",
    "just a name": "'just a name' is no function's address; write module:function or",
}


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_without_a_function_are_refused(world: World, module: Path, address: str) -> None:
    (world.folder / "broken.py").write_text("x = 1\n1 / 0\n")
    (world.folder / "syntax.py").write_text("def f(:\n")
    with pytest.raises(RecipeError) as caught:
        world.recipe({"out": {"stage": "map", "from": "clips", "function": address}})
    assert REFUSED[address] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_are_held_against_the_signature(world: World) -> None:
    def refusal(**more: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            world.recipe({"out": {"stage": "map", "from": "clips", **more}})
        return str(caught.value)

    shout = {"function": "./own.py:shout"}
    assert "unexpected keyword argument 'marc'" in refusal(**shout, **{"with": {"marc": "?"}})
    assert "multiple values for argument 'sample'" in refusal(**shout, **{"with": {"sample": 1}})
    assert "missing a required argument: 'weights'" in refusal(function="./own.py:Model")
    assert "out.with: must be a mapping" in refusal(**shout, **{"with": [1]})
    assert "out.function: must be" in refusal(function=[1])
    assert "missing; stage map needs it" in refusal()


def test_a_package_that_is_not_installed_is_named(world: World, module: Path) -> None:
    said = "out: installed_things:needy needs the package no-such-package"
    with pytest.raises(MissingDependencyError, match=said):
        world.one("map", "clips", function="installed_things:needy")


def test_declarations_are_checked_where_they_stand() -> None:
    for wrong, said in [
        ({"columns": {"x": "float99"}}, "column x: Arrow has no type 'float99'"),
        ({"reads": "mp4"}, "reads is a list of names"),
        ({"batch": 0}, "batch"),
        ({"columns": {"size": "int64"}}, "column size: every index has one of that name"),
        ({"writes": ("x",), "columns": {"x": "int32"}}, "x is declared as a field and as a column"),
    ]:
        with pytest.raises(ValueError, match=said):
            function(**wrong)  # type: ignore[arg-type]

    @reelmill.function(version=3, memory="1 GiB")
    def f(sample: reelmill.Sample) -> None:
        return None

    assert declared_of(f) == Declared(version="3", memory=2**30)
    assert f(reelmill.Sample("k", {}, {})) is None


# Filters


def test_a_condition_says_of_each_sample_why_it_went(world: World) -> None:
    made = world.one("filter", "clips", where="motion > 0.2 and codec == 'h264'")
    assert world.rejects(made) == {
        "000000000": ("filtered", "motion 0.0 is not > 0.2"),
        "000000002": ("filtered", "codec null is not == 'h264'"),
        "000010000": ("filtered", "motion 0.0 is not > 0.2"),
    }
    before, after = world.samples(world.given["clips"]), world.samples(made)
    assert after == {key: before[key] for key in ("000000001", "000000003", "000010001")}
    assert world.columns(made) == world.columns(world.given["clips"])


def test_what_a_filter_leaves_out_is_no_mishap(world: World) -> None:
    made = world.one("filter", "clips", where="motion > 7", max_rejects="0%")
    assert (made.totals().samples, made.totals().rejects) == (0, 6)


def test_a_function_says_yes_no_or_why(world: World) -> None:
    made = world.one("filter", "clips", function="./own.py:keeps", where="motion != 0.5")
    assert sorted(world.samples(made)) == ["000000000", "000010000"]
    assert world.rejects(made) == {
        "000000001": ("filtered", "keeps says no"),
        "000000002": ("filtered", "motion 0.5 is not != 0.5"),
        "000000003": ("filtered", "it is t3"),
        "000010001": ("filtered", "keeps says no"),
    }
    with pytest.raises(StageError, match=r"type dict for sample .*; a filter says true"):
        world.one("filter", "clips", function="./own.py:plain")


def test_a_condition_must_fit_the_columns(world: World) -> None:
    with pytest.raises(StageError, match="where: no column is named motions; did you mean motion"):
        world.one("filter", "clips", where="motions > 1")
    with pytest.raises(StageError, match=r"codec is a text and 3 is a number: they cannot be"):
        world.one("filter", "clips", where="codec == 3")
    with pytest.raises(RecipeError, match=r"out.where: 'motion >' is no condition"):
        world.one("filter", "clips", where="motion >")
    with pytest.raises(RecipeError, match="give where, or function, or both"):
        world.one("filter", "clips")
    with pytest.raises(RecipeError, match="with is for a function"):
        world.one("filter", "clips", where="motion > 1", **{"with": {"a": 1}})


def test_spellings_of_a_condition_are_one(world: World) -> None:
    first = world.one("filter", "clips", where="motion>.5  and codec is not null")
    second = world.one("filter", "clips", where="(motion > 0.5) and (codec is not null)")
    assert (first, world.made) == (second, [])


def test_what_an_action_tells_of_its_function_asks_for_it_again(world: World, module: Path) -> None:
    def told(function: Any) -> Any:
        out = {"stage": "map", "from": "clips", "function": function}
        return key_params(world.recipe({"out": out}).datasets["out"].params)["function"]  # type: ignore[arg-type]

    installed = told("installed_things:twice")
    assert installed == {"address": "installed_things:twice", "name": "twice"}
    assert told(installed) == installed
    with pytest.raises(RecipeError, match=r"is in a file; say which, such as \./own\.py:rate"):
        told(told("./own.py:rate"))
