"""A build whose scenes are a dataset of their own: another threshold decodes nothing again."""

from __future__ import annotations

from pathlib import Path

import pytest

from reelmill.dataset import open_version
from reelmill.errors import RecipeError
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source
from tests.runs.project import Project
from tests.stages.media_samples import sample

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


def _starts(project: Project, name: str) -> list[float]:
    version = open_version(f"{name}@latest", store=str(project.folder / "store"))
    return sorted(row["start"] for row in version.rows())


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
