"""Datasets that the reference documents' code is run on: built from recipes, in this process."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
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
    where, *_ = make_view(reelmill.open_version(store, spec), folder)
    return where.partition("  ")[0]


DOCS = Path(__file__).parents[2] / "docs"


def files_of(page: str) -> dict[str, str]:
    """The files that a page of the documentation shows whole, by the name in their first line."""
    text = (DOCS / page).read_text()
    found = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {name: f"{body.strip()}\n" for name, body in found}


@contextmanager
def modules(folder: Path, *names: str) -> Iterator[list[ModuleType]]:
    """Modules of a folder, imported for as long as this lasts."""
    sys.path.insert(0, str(folder))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in list(sys.modules):
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                del sys.modules[name]
