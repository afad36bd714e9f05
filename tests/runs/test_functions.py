"""Functions of users in a build by workers that have never seen their file."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

import reelmill.flows.cli  # noqa: F401  (it registers all commands)
from reelmill.dataset import open_version
from reelmill.flows.cli_shared import app
from reelmill.flows.drive import BuildFailedError
from tests.runs.project import Project
from tests.stages.media_samples import sample

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  measured: {stage: map, from: videos, function: ./own.py:measure}
  large: {stage: filter, from: measured, where: size_of > 10000, max_rejects: 0%}
  notes:
    stage: map
    from: videos
    function: ./own.py:Notes
    with: {word: seen, limit: 0.5}
    keep: false
  both: {stage: join, from: {source: large, notes: notes}, missing: keep}
  more: {stage: sample, from: notes, count: 1}
  rest: {stage: concat, from: [large, more], prefix: true}
"""
OWN = """
import os
import reelmill

@reelmill.function(writes=(), columns={"size_of": "int64"})
def measure(sample):
    return {"size_of": sum(map(len, sample.fields.values()))}

@reelmill.function(reads=(), writes=("txt", "json"), packages=("numpy",))
class Notes:
    def __init__(self, word, limit):
        self.word = f"{word} {limit}"
    def __call__(self, sample):
        return {"txt": self.word, "json": {"width": sample.columns["width"]}}
"""


def set_up(project: Project) -> Project:
    project.write(RECIPE, [f"file://{sample(name)}" for name in ("scenes.mkv", "silent.mp4")])
    (project.folder / "own.py").write_text(OWN)
    return project


def test_workers_of_a_cluster_make_what_one_process_makes(
    make_project: Callable[[], Project],
) -> None:
    cluster, here = set_up(make_project()), set_up(make_project())
    versions = cluster.build("--workers", "2")
    assert versions == here.build_here().versions
    store = str(cluster.folder / "store")
    (joined,) = open_version(store, "both").samples()
    assert joined.fields["txt"] == b"seen 0.5"
    about = json.loads(joined.fields["json"])
    assert about["notes"] == {"width": joined.columns["width"]}
    assert [one.key[:6] for one in open_version(store, "rest").samples()] == ["large-", "more-0"]

    line = next(n for n, text in enumerate(OWN.splitlines(), 1) if "sum(map" in text)
    (here.folder / "own.py").write_text(OWN.replace("sum(map", "sun(map"))
    said = rf"own.py:{line}: NameError: name 'sun' is not defined \(sample 0000"
    with pytest.raises(BuildFailedError, match=said):
        here.build_here()


def test_a_summary_tells_what_was_left_out_on_purpose(project: Project) -> None:
    set_up(project)
    (project.folder / "recipe.yaml").write_text(RECIPE.replace("> 10000", "> 2000000000"))
    project.build_here(only=["large"])
    command = ["show", "large", "--store", str(project.folder / "store")]
    assert "2 (2 filtered as asked)" in CliRunner().invoke(app, command).stdout
    listed = CliRunner().invoke(app, [*command, "--rejects"]).stdout
    assert "is not > 2000000000" in listed.splitlines()[1]
