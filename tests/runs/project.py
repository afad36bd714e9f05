"""A recipe in a folder, and the ways to build it that tests compare."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from reelmill.flows.cli import main
from reelmill.flows.drive import Build, Stop, drive, prepare
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.frame import TRACE, execute
from reelmill.tasks.ingest import Source

COMMAND = Path(sysconfig.get_path("scripts"), "reelmill")
PLUGIN = Path(__file__).parent / "plugin"
PATHS = os.pathsep.join(str(path) for path in (PLUGIN, PLUGIN.with_name("absent")))
"""``PYTHONPATH`` of the processes that tests start: with their stages, without pandas."""


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until ``condition`` holds; fail if it does not for so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.05)


def let_pass(gate: Path, count: int) -> None:
    """Let so many shards through the gate of a stage ``trouble`` of the kind ``gate``."""
    gate.mkdir(exist_ok=True)
    for _ in range(count):
        (gate / secrets.token_hex(8)).touch()


@dataclass(frozen=True)
class Project:
    """A folder with a recipe, its table and its store, and ways to build it."""

    folder: Path
    prefect_url: str

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            TRACE: str(self.trace),
            "PREFECT_API_URL": self.prefect_url,
            "PYTHONPATH": PATHS,
        }

    def write(self, recipe: str, table: Sequence[str] | str) -> None:
        """The recipe, and its table as a list of addresses or as CSV."""
        self.recipe.write_text(recipe)
        text = table if isinstance(table, str) else "\n".join(["url", *table]) + "\n"
        (self.folder / "urls.csv").write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, COMMAND, *arguments],
            cwd=self.folder,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that starts no flow, in this process, which has imported what it needs."""
        out, err = io.StringIO(), io.StringIO()
        before = signal.getsignal(signal.SIGTERM)
        code = 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(self.folder)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            try:
                main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def build(self, *arguments: str) -> dict[str, str]:
        """Build with the command; the versions."""
        done = self.run("build", str(self.recipe), "--json", *arguments)
        assert done.returncode == 0, done.stderr
        datasets = json.loads(done.stdout)["datasets"]
        return {name: progress["version"] for name, progress in datasets.items()}

    def build_here(self, *overrides: str, only: Sequence[str] = ()) -> Build:
        """Build in this process: the same planner, driver and frame, no Prefect and no Dask."""
        loaded = load_recipe(self.recipe, stages=Stages(), source_model=Source, overrides=overrides)
        store = Store.open(loaded.store, create=True)
        build = prepare(loaded, store, only=only, run="here")

        async def submit(todo: object, order: str) -> str:
            return await asyncio.to_thread(execute, order)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TRACE, str(self.trace))
            asyncio.run(drive(build, submit, window=lambda: 2, run="here", stop=Stop()))
        return build

    def executed(self) -> Counter[str]:
        """How often each action was executed, by label, since the last call."""
        if not self.trace.exists():
            return Counter()
        lines = [json.loads(line) for line in self.trace.read_text().splitlines()]
        self.trace.unlink()
        return Counter(line["label"] for line in lines)
