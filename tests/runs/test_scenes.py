"""A build whose scenes are a dataset of their own: another threshold decodes nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import reelmill.flows.cli  # noqa: F401  (it registers all commands)
from reelmill.errors import RecipeError
from reelmill.flows.cli_shared import app
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source
from tests.runs.project import Project
from tests.stages.media_samples import CUTS, UNEVEN, sample

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  scores: {stage: scores, from: videos}
  scenes: {stage: scenes, from: scores, threshold: 27}
  clips:
    stage: split
    from: {source: videos, scenes: scenes}
    min_seconds: 100ms
    preset: ultrafast
"""


@pytest.fixture
def built(project: Project) -> Project:
    urls = [f"file://{sample(name)}" for name in ("scenes.mkv", "silent.mp4")]
    project.write(RECIPE, urls)
    project.build_here()
    return project


def test_another_threshold_with_the_same_cuts_cuts_nothing_again(built: Project) -> None:
    first = built.executed()
    assert sum(label.startswith("split/") for label in first) == 2
    again = built.build_here("datasets.scenes.threshold=20")
    assert set(built.executed()) == {"scenes/scenes/00000", "scenes/scenes/00001"}
    assert again.versions["clips"] == built.build_here().versions["clips"]


def test_another_threshold_with_other_cuts_decodes_nothing_for_scores(built: Project) -> None:
    built.executed()
    clips = built.build_here().versions["clips"]
    fewer = built.build_here("datasets.scenes.threshold=255").versions["clips"]
    made = set(built.executed())
    assert {label for label in made if not label.startswith("scenes/")} == {"split/clips/00000"}
    assert fewer != clips


def test_clips_are_those_of_a_split_that_searches_itself(built: Project) -> None:
    along = built.build_here().versions["clips"]
    recipe = built.recipe.read_text()
    built.recipe.write_text(
        recipe.replace("from: {source: videos, scenes: scenes}", "from: videos")
    )
    itself = built.build_here().versions["clips"]
    store = Store.open(str(built.folder / "store"))
    tars = [
        [shard.tar.digest for shard in store.manifest(digest).shards if shard.tar]
        for digest in (along, itself)
    ]
    assert tars[0] == tars[1]


def test_a_recipe_must_fill_the_roles_that_are_not_optional(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("{source: videos, scenes: scenes}", "{scenes: scenes}"))
    with pytest.raises(RecipeError, match="role source missing; stage split reads source, and may"):
        load_recipe(recipe, stages=Stages(), source_model=Source)


def test_the_command_shows_scenes_and_why(project: Project) -> None:
    path = str(sample("scenes.mkv"))
    shown = project.run("scenes", path, "--plot", "made/scenes.png", "-d", "content", "-d", "hash")
    assert shown.returncode == 0, shown.stderr
    assert Image.open(project.folder / "made" / "scenes.png").format == "PNG"
    found = json.loads(project.run("scenes", path, "--json").stdout)["scenes"]
    assert [scene["start"] for scene in found] == [UNEVEN[i] / 1000 for i in (0, *CUTS)]
    assert sum(scene["frames"] for scene in found) == len(UNEVEN)
    for scene in found:
        assert f"{scene['end']:.3f}" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-d", "sharp"), "no detector sharp; there are content"),
        (("-d", "hash", "-t", "27"), "--threshold: it must be less than or equal to 1"),
        (("-d", "hash", "-d", "content", "-t", "1"), "--threshold is for one detector"),
        (("-d", "adaptive", "--fast"), "leave out --fast"),
        (("-m", "soon"), "--min-scene"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["scenes", str(sample("scenes.mkv")), *arguments])
    assert message in str(done.exception)


def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>")
    for name, message in (("page.mp4", "not_video"), ("none.mp4", "No such file")):
        done = CliRunner().invoke(app, ["scenes", str(tmp_path / name)])
        assert message in str(done.exception)
