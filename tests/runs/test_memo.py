"""Nothing is made twice: every test counts executions."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reelmill.dataset import open_version
from reelmill.errors import RecipeError
from reelmill.flows import drive
from reelmill.flows.drive import Build
from reelmill.tasks import get_stage
from reelmill.tasks.ingest import ingest
from tests.runs.project import Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 2}
datasets:
  videos: {stage: download, from: urls, allow_private: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
  shuffled: {stage: shuffle, from: clips, samples_per_shard: 4}
  triplets: {stage: frames, from: shuffled, max_side: 160, max_samples: 2}
  flow: {stage: flow, from: triplets, preset: ultrafast}
"""


@pytest.fixture
def table(web: str, demo_media: Path) -> list[str]:
    listed = sorted(path.name for path in demo_media.glob("*.mp4") if path.name != "damaged.mp4")
    return [f"{web}/{name}" for name in listed[:6]]


@pytest.fixture
def built(project: Project, table: list[str]) -> Project:
    project.write(RECIPE, table[:4])
    first = project.build_here()
    made = project.executed()
    assert made.total() == sum(progress.have for progress in first.progress.values())
    assert set(made.values()) == {1}
    return project


def stages(executed: Counter[str]) -> set[str]:
    return {label.split("/")[1] for label in executed}


def versions(build: Build) -> dict[str, str]:
    return dict(build.versions)


def test_a_second_build_executes_nothing_and_adds_nothing_to_the_store(built: Project) -> None:
    def listing() -> dict[str, int]:
        store = built.folder / "store"
        return {str(p): p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}

    before = listing()
    build = built.build_here()
    assert built.executed() == Counter()
    assert listing() == before
    assert build.is_complete


def test_a_changed_parameter_makes_that_stage_and_what_derives_from_it(built: Project) -> None:
    built.build_here("triplets.stride=2")
    assert stages(built.executed()) == {"triplets", "flow"}
    built.build_here()
    assert built.executed() == Counter(), "the former parameters' shards are still known"


def test_a_parameter_that_changes_no_byte_makes_nothing(built: Project) -> None:
    built.build_here("videos.timeout=77s", "videos.concurrency=3")
    assert built.executed() == Counter()


def test_touching_the_table_makes_nothing(built: Project) -> None:
    os.utime(built.folder / "urls.csv")
    built.build_here()
    assert built.executed() == Counter()


def test_reordering_the_table_makes_nothing(built: Project, table: list[str]) -> None:
    built.write(RECIPE, table[:4][::-1])
    build = built.build_here()
    assert built.executed() == Counter()
    assert build.grown[0].new == 0


def test_a_stage_whose_new_version_gives_equal_bytes_stops_at_itself(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions(built.build_here())
    monkeypatch.setattr(type(get_stage("split")), "version", 99)
    after = versions(built.build_here())
    assert stages(built.executed()) == {"clips"}
    assert after == before


def test_a_stage_whose_new_version_gives_other_bytes_goes_on(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions(built.build_here())
    after = versions(built.build_here("clips.seconds=5s"))
    changed = {name for name in before if before[name] != after[name]}
    assert stages(built.executed()) == {"clips", "shuffled", "triplets", "flow"} == changed


def test_added_rows_make_only_the_shards_of_a_new_generation(
    built: Project, table: list[str]
) -> None:
    old = open_version(str(built.folder / "store"), "flow")
    built.write(RECIPE, table)
    build = built.build_here()
    executed = built.executed()
    assert {label for label in executed if "/videos/" in label} == {"download/videos/00002"}
    assert {label for label in executed if "/clips/" in label} == {"split/clips/00002"}
    new = open_version(str(built.folder / "store"), "flow")
    assert new.manifest.generations[0] == old.manifest.generations[0]
    assert len(new.manifest.generations) == 2
    assert {label.split("/")[2] for label in executed if "/flow/" in label} == {
        shard.id for shard in new.manifest.generations[1].shards
    }
    keys = [sample.key for sample in new.samples(["json"])]
    assert len(keys) == len(set(keys)) == build.progress["flow"].samples


def test_removed_rows_stay_and_are_reported(built: Project, table: list[str]) -> None:
    built.write(RECIPE, table[:3])
    build = built.build_here()
    assert built.executed() == Counter()
    assert build.grown[0].gone == 1


def test_another_name_for_the_same_work_makes_nothing(built: Project) -> None:
    built.recipe.write_text(RECIPE.replace("clips", "pieces").replace("triplets", "threes"))
    build = built.build_here()
    assert built.executed() == Counter()
    assert set(build.versions) == {"videos", "pieces", "shuffled", "threes", "flow"}


def test_two_names_for_the_same_work_in_one_recipe_make_it_once(
    project: Project, table: list[str]
) -> None:
    split = "{stage: split, from: videos, method: fixed, seconds: 2s, cut: copy, max_rejects: 100%}"
    project.write(f"{RECIPE}  pieces: {split}\n  twins: {split}\n", table[:2])
    found = versions(project.build_here(only=["pieces", "twins"]))
    assert found["pieces"] == found["twins"]
    made = [label for label in project.executed().elements() if label.startswith("split/")]
    assert len(made) == 1


def test_a_table_that_changes_while_it_is_read_is_not_taken_in(
    project: Project, table: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(RECIPE, table[:2])

    def read_meanwhile(*given: Any) -> Any:
        found = ingest(*given)
        project.write(RECIPE, table[:3])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(drive, "ingest", read_meanwhile)
        with pytest.raises(RecipeError, match=r"urls\.csv changed while it was read"):
            project.build_here(only=["videos"])
    assert project.build_here(only=["videos"]).grown[0].new == 3


def test_a_shard_whose_bytes_are_gone_is_made_anew_and_nothing_else(built: Project) -> None:
    before = versions(built.build_here())
    victim = open_version(str(built.folder / "store"), "shuffled").urls()[0]
    Path(victim).unlink()
    after = versions(built.build_here())
    assert built.executed() == Counter({"shuffle/shuffled/00000": 1})
    assert after == before


def test_an_interrupted_dataset_is_made_only_once(built: Project) -> None:
    built.build_here("triplets.count=2", only=["triplets"])
    assert stages(built.executed()) == {"triplets"}
    built.build_here("triplets.count=2")
    assert stages(built.executed()) == {"flow"}


def test_plan_says_why_without_writing(built: Project) -> None:
    def refs() -> list[Path]:
        return sorted((built.folder / "store").rglob("*.json"))

    before = refs()
    done = built.call("plan", "recipe.yaml", "--json", "--set", "triplets.stride=2")
    plan = {one["dataset"]: one for one in json.loads(done.stdout)}
    assert plan["shuffled"]["to_make"] == 0
    assert plan["triplets"]["reasons"] == {
        "step: 3 is now 6; stride: 1 is now 2": plan["triplets"]["shards"],
    }
    assert plan["flow"]["waits_for"] == ["triplets"]
    assert refs() == before


def test_plan_says_which_version_would_become_the_latest(built: Project) -> None:
    before = versions(built.build_here())
    built.build_here("triplets.count=2")
    done = built.call("plan", "recipe.yaml", "--json")
    plan = {one["dataset"]: one for one in json.loads(done.stdout)}
    assert {one["to_make"] for one in plan.values()} == {0}
    moves = {name: one["moves_to"] for name, one in plan.items() if one["moves_to"]}
    assert moves == {name: before[name] for name in ("triplets", "flow")}
    told = built.call("plan", "recipe.yaml").stdout
    assert f"triplets@latest would be triplets@{before['triplets'][:12]}" in told
    assert versions(built.build_here()) == before
    assert all(
        one["moves_to"] is None
        for one in json.loads(built.call("plan", "recipe.yaml", "--json").stdout)
    )
