"""What a request to derive means as a recipe: which version fills which role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reelmill import tasks
from reelmill.errors import RecipeError
from reelmill.flows.derivation import Asked, derivable, derivation
from reelmill.recipe import Pinned
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Params, SampleStage


class Blend(SampleStage[Params]):
    """Reads one dataset, and any number of others."""

    name = "blend"
    params = Params
    open = True

    def each(self, job: Job[Params], sample: InputSample) -> Iterator[Output]:
        raise NotImplementedError


class Pile(Blend):
    """Reads any number of datasets."""

    name = "pile"
    roles = ()


class Pair(Blend):
    """Reads two."""

    name = "pair"
    roles = ("left", "right")
    open = False


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {stage.name: stage() for stage in (Blend, Pile, Pair)}
    get = tasks.get_stage
    addresses = {**tasks._addresses(), **dict.fromkeys(stages, "")}
    monkeypatch.setattr(tasks, "_addresses", lambda: addresses)
    monkeypatch.setattr(tasks, "get_stage", lambda name: stages.get(name) or get(name))


def inputs(stage: str, *parents: str) -> dict[str, str]:
    """The version in each role."""
    recipe = derivation("./store", parents, "new", stage, {})
    versions: dict[str, str] = {}
    for role, source in recipe.datasets["new"].inputs.items():
        pinned = recipe.sources[source]
        assert isinstance(pinned, Pinned)
        versions[role] = pinned.version
    return versions


@pytest.mark.parametrize(
    ("stage", "parents", "roles"),
    [
        ("frames", ["clips"], {"source": "clips"}),
        ("frames", ["source=clips@v1"], {"source": "clips@v1"}),
        ("split", ["videos", "scenes=cuts@v1"], {"source": "videos", "scenes": "cuts@v1"}),
        ("split", ["scenes=cuts", "videos"], {"scenes": "cuts", "source": "videos"}),
        ("pair", ["left=a@v1", "right=a@v2"], {"left": "a@v1", "right": "a@v2"}),
        ("pair", ["left=a", "b"], {"left": "a", "right": "b"}),
        ("pair", ["left=a", "right=a"], {"left": "a", "right": "a"}),
        ("blend", ["a", "b@v1", "more=c"], {"source": "a", "b": "b@v1", "more": "c"}),
        ("pile", ["a", "b@v2"], {"a": "a", "b": "b@v2"}),
        ("pile", ["a@v1", "a@v2"], {"a": "a@v1", "a-2": "a@v2"}),
        ("pile", ["x=a", "b"], {"x": "a", "b": "b"}),
    ],
)
def test_versions_fill_roles(stage: str, parents: list[str], roles: dict[str, str]) -> None:
    assert inputs(stage, *parents) == roles


@pytest.mark.parametrize(
    ("stage", "parents", "line"),
    [
        ("pair", ["a", "b"], "--from a: which input of stage pair is this? Say one of left=..., "),
        ("pair", ["left=a"], "role right missing; stage pair reads left and right"),
        ("split", ["videos", "cuts"], "--from cuts: which input of stage split is this?"),
        ("split", ["videos", "scene=cuts"], "did you mean scenes?"),
        ("pair", ["left=a", "left=b", "c"], "--from left=b: left is given twice"),
        ("pile", ["a"], "stage pile reads two or more"),
        ("frames", ["Clips"], "--from Clips: write DATASET, DATASET@VERSION"),
    ],
)
def test_what_does_not_fit_is_said(stage: str, parents: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        inputs(stage, *parents)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["counts=3"], "--set counts=3: unknown parameter of stage frames; did you mean count?"),
        (["count=many"], "--set count=many: must be a valid integer"),
        (["from=clips"], "from is no parameter of the stage; give --from"),
        (["max_holes=1%"], "max_holes is no parameter of the stage; give --max-holes"),
        (["salt=x"], "salt is no parameter of the stage; it is for recipes"),
    ],
)
def test_a_wrong_parameter_is_cited_as_it_was_given(overrides: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Asked("new", ("clips",), "frames", tuple(overrides)).recipe("./store")
    assert line in str(caught.value)


def test_nested_values_and_yaml() -> None:
    overrides = ("video.codec=av1", "video.size={width: 640}", "detectors=[content]")
    params: Any = Asked("new", ("videos",), "split", overrides).recipe("./store").datasets["new"]
    shown = params.params.model_dump(mode="json", exclude_unset=True)
    assert (shown["video"]["codec"], shown["video"]["size"]["width"]) == ("av1", 640)


def test_stages_that_read_a_tables_rows_are_not_offered() -> None:
    offered = derivable()
    assert offered[0] == "frames"
    assert {"pair", "blend", "pile", "shuffle"} <= set(offered)
    assert "download" not in offered
