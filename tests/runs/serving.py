"""A project that `reelmill serve` serves, on a Prefect server of its own, and ways to use it."""

from __future__ import annotations

import contextlib
import http
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelmill.flows.server import free_port
from tests.runs.project import COMMAND, Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy, max_rejects: 100%}
"""
"""Makes two shards of each dataset from two of the demonstration's videos."""

STOP_SECONDS = 60
PATIENCE = 120.0


def until(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What ``check`` gives, as soon as that is something."""
    deadline = time.monotonic() + patience
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def call(url: str, path: str, body: Any = None, method: str = "POST") -> Any:
    """What Prefect's API at ``url`` answers."""
    data = None if method == "GET" else json.dumps(body if body is not None else {}).encode()
    request = urllib.request.Request(
        f"{url}/{path}",
        data=data,
        headers={"Content-Type": "application/json"},
        method=method,
    )

    def answer() -> list[Any] | None:
        try:
            with urllib.request.urlopen(request, timeout=30) as got:
                return [json.loads(got.read() or "null")]
        except urllib.error.HTTPError as error:
            # What a server of Prefect says while its database is busy.
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
                return None
            raise

    return until(answer, f"an answer to {path}")[0]


@dataclass
class Serving:
    """``reelmill serve`` of a project's recipe, as a process, with its own Prefect server.

    ``url`` is where the UI is; the API is below it at ``/api``. The recipe's deployment is
    ``build/films``, the store's ones are ``derive/<name>`` and ``maintain/<name>``.
    """

    project: Project
    port: int
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store_name(self) -> str:
        """What the deployments of the project's store are called."""
        return f"{self.project.folder.name}-store"

    @property
    def log(self) -> Path:
        return self.project.folder / "serve.log"

    def start(self) -> None:
        environ = {
            **self.project.environ,
            "PREFECT_HOME": str(self.project.folder / "prefect"),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        }
        del environ["PREFECT_API_URL"]
        command = [sys.executable, str(COMMAND), "serve", str(self.project.folder / "films.yaml")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--workers", "1", *self.arguments],
                # Not the project's folder: what is served must run in any.
                cwd="/",
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self.is_up, f"serve: {self.log.read_text()}")

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Ctrl-C stops" in self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """What the Prefect server answers."""
        return call(f"{self.url}/api", path, body, method)

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment, such as ``build/films``; the flow run's ID."""
        known = self.call(f"deployments/name/{deployment}", method="GET")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.call(f"deployments/{known['id']}/create_flow_run", body)["id"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment that have begun, the newest first."""
        known = self.call(f"deployments/name/{deployment}", method="GET")
        begun = {"state": {"type": {"not_any_": ["SCHEDULED"]}}}
        only = {"deployments": {"id": {"any_": [known["id"]]}}, "sort": "START_TIME_DESC"}
        return list(self.call("flow_runs/filter", {**only, "flow_runs": begun}))

    def scheduled(self) -> list[dict[str, Any]]:
        """The flow runs that the schedule has still to start."""
        due = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        found = self.call("flow_runs/filter", {"flow_runs": due})
        return [run for run in found if run["auto_scheduled"]]

    def prefect(self, *arguments: str) -> str:
        """Run Prefect's command; what it prints."""
        return prefect(f"{self.url}/api", *arguments)

    def state(self, flow_run: str) -> dict[str, Any]:
        return dict(self.call(f"flow_runs/{flow_run}", method="GET")["state"])

    def ended(self, flow_run: str) -> dict[str, Any]:
        """The state that a flow run ended with."""

        def end() -> dict[str, Any] | None:
            state = self.state(flow_run)
            over = state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            return state if over else None

        found: dict[str, Any] = until(end, f"the end of the run: {self.log.read_text()}")
        return found


def prefect(url: str, *arguments: str, **environ: str) -> str:
    """Run Prefect's command on the API at ``url``, in no particular folder; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd="/",
        env={**os.environ, "PREFECT_API_URL": url, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def serving(
    folder: Path, media: Path, home: Path, *arguments: str, recipe: str = RECIPE
) -> Iterator[Serving]:
    """Serve a recipe of two videos in ``folder`` until the body ends, with a copy of Prefect's
    ``home``."""
    shutil.copytree(home, folder / "prefect")
    project = Project(folder, "")
    project.write(recipe, [f"file://{media}/{name}.mp4" for name in ("dunes", "pond")])
    project.recipe.rename(folder / "films.yaml")
    served = Serving(project, free_port(), arguments)
    served.start()
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.terminate()
            try:
                served.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                served.process.kill()
                served.process.wait()
