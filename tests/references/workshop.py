"""Datasets that the reference documents' code is run on: built from recipes, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import reelmill
from reelmill.flows.view import make_view
from tests.runs.project import Project

torch: Any = pytest.importorskip("torch")
torch.set_num_threads(1)


def build(folder: Path, recipe: str, table: str = "url\n", **files: str) -> str:
    """Make all that a recipe says: the address of its store. Every dataset got its version.

    Args:
        table: the text of ``urls.csv`` beside the recipe.
        files: texts of Python files beside it, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder, "")
    project.write(recipe, table)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    built = project.build_here()
    assert built.versions.keys() == set(built.names), built.planner.problems()
    return built.store.url


def shards(store: str, spec: str, folder: Path) -> str:
    """A version's tars as readers of WebDataset have them named: ``folder/{00000..00003}.tar``."""
    return make_view(reelmill.open_version(store, spec), folder).partition("  ")[0]
