"""Arrows go one way: configs, flows, tasks, lib. And what is heavy is imported when it is used."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"lib": "reelmill", "tasks": "reelmill.tasks", "flows": "reelmill.flows"}
ORCHESTRATION = {"prefect", "prefect_dask", "dask", "distributed"}

FORBIDDEN = {
    "lib": {"reelmill.tasks", "reelmill.flows", "reelmill.configs", *ORCHESTRATION},
    "tasks": {"reelmill.flows", "reelmill.configs", *ORCHESTRATION},
    "lib/store": {"reelmill.media", "reelmill.fetch", "reelmill.report", "reelmill.shards"},
    "lib/shards": {"reelmill.media", "reelmill.fetch", "reelmill.report", "reelmill.loading"},
    "lib/media": {"reelmill.loading"},
}


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


ALL = [path for folder in PACKAGES for path in sources(folder)]


def module_name(path: Path) -> str:
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[top], *(part for part in rest if part != "__init__")])


def imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every module that a source imports, wherever in it, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                keep = len(module.split(".")) - node.level + is_package
                base = ".".join([*module.split(".")[:keep], *filter(None, [node.module])])
            yield node.lineno, base
            # "from reelmill import tasks" imports a module, too.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_arrow_goes_up(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(folder)
        for line, name in imported(parsed(path), module_name(path), path.name == "__init__.py")
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN[folder])
    ]
    assert wrong == []


def test_the_check_sees_all_kinds_of_imports() -> None:
    source = """
import dask.array as da
from reelmill import flows
from .. import tasks
from ..flows.cli import main
def later():
    from prefect import flow
    importlib.import_module("distributed.client")
"""
    found = {name for _, name in imported(ast.parse(source), "reelmill.store.local", False)}
    assert {
        "dask.array",
        "reelmill.flows",
        "reelmill.tasks",
        "reelmill.flows.cli",
        "prefect",
        "distributed.client",
    } <= found
    package = {name for _, name in imported(ast.parse("from . import x"), "reelmill.store", True)}
    assert "reelmill.store.x" in package


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_uses_what_runs_strangers_code(path: Path) -> None:
    tree = parsed(path)
    module = module_name(path)
    names = {name for _, name in imported(tree, module, path.name == "__init__.py")}
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert not {name.split(".")[0] for name in names} & unsafe
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        shell = keywords.get("shell")
        allow = keywords.get("allow_pickle")
        if (
            called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            or called in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput")
            or (shell is not None and not _is_false(shell))
            or (allow is not None and not _is_false(allow))
        ):
            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {called}")
    assert wrong == []


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("reelmill", {"torch", "cv2", "av", "pyarrow", "yaml", "pydantic", *ORCHESTRATION}),
        ("reelmill.store", {"torch", "cv2", "av", "pyarrow", "fsspec", *ORCHESTRATION}),
        ("reelmill.shards.writer", {"torch", "cv2", "av", *ORCHESTRATION}),
        ("reelmill.dataset", {"torch", "cv2", "av", *ORCHESTRATION}),
        ("reelmill.loading", {"torch", "cv2", "av", "webdataset", *ORCHESTRATION}),
        ("reelmill.loading.readers", {"torch", "cv2", "torchcodec", "torchvision", *ORCHESTRATION}),
        ("reelmill.flows.view", {"torch", "cv2", "av", "webdataset", *ORCHESTRATION}),
        ("reelmill.recipe", {"torch", "cv2", "av", *ORCHESTRATION}),
        ("reelmill.tasks.download", {"torch", "cv2", *ORCHESTRATION}),
        ("reelmill.tasks.split", {"torch", "cv2", *ORCHESTRATION}),
        ("reelmill.flows.cli", {"torch", *ORCHESTRATION}),
    ],
)
def test_an_import_loads_nothing_that_it_does_not_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(done.stdout.split()) & absent == set()


def test_what_workers_are_sent_is_a_name_and_not_code() -> None:
    import pickle

    import cloudpickle

    from reelmill.flows.at_worker import make
    from reelmill.tasks.frame import execute

    # By value it would bring the globals it touches along, and no cache of a module would ever hit.
    for function, module in (
        (execute, b"reelmill.tasks.frame"),
        (make, b"reelmill.flows.at_worker"),
    ):
        sent = cloudpickle.dumps(function)
        assert sent == cloudpickle.dumps(pickle.loads(sent))
        assert len(sent) < 200
        assert module in sent
