"""`reelmill serve` with real servers and processes: schedules, kills, automations, metrics."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reelmill.dataset import open_version
from reelmill.flows.server import free_port
from tests.runs.project import COMMAND, Project, let_pass
from tests.runs.serving import PATIENCE, RECIPE, Serving, call, serving, until

GATED = RECIPE + "  last: {stage: trouble, from: videos, kind: gate, marker: GATE}\n"
"""Goes on when it is let: ``pass_gate``."""

TRIPLETS = "  clip-triplets: {stage: frames, from: clips, count: 3, max_side: 640}\n"
INFRA = Path(__file__).parents[2] / "infra"
METRICS = free_port()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, demo_media: Path, blank_prefect: Path
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("service")
    arguments = ("--every", "1d", "--metrics", str(METRICS))
    recipe = GATED.replace("GATE", str(folder / "gate"))
    with serving(folder, demo_media, blank_prefect, *arguments, recipe=recipe) as it:
        yield it


@pytest.fixture
def expected(tmp_path: Path, demo_media: Path) -> Callable[..., dict[str, str]]:
    """The versions of the recipe as a build in this process makes them."""

    def build(recipe: str = GATED.replace("gate", "none")) -> dict[str, str]:
        project = Project(tmp_path, "")
        project.write(recipe, [f"file://{demo_media}/{n}.mp4" for n in ("dunes", "pond")])
        return dict(project.build_here().versions)

    return build


def versions(store: Path, *names: str) -> dict[str, str]:
    return {name: open_version(str(store), name).digest for name in names}


def metrics() -> dict[str, float]:
    """What Prometheus would see: ``builds_total completed`` and the like."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name.removeprefix("reelmill_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def below(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def wait_for_trace(service: Serving, label: str) -> None:
    trace = service.project.trace
    until(lambda: trace.exists() and label in trace.read_text(), f"{label} in the trace")


def pass_gate(service: Serving) -> None:
    let_pass(service.project.folder / "gate", 2)


def test_a_schedule_builds_at_once_and_does_not_overlap(
    service: Serving, expected: Callable[..., dict[str, str]]
) -> None:
    (first,) = until(lambda: service.runs("build/films"), "the first run of the schedule")
    until(lambda: service.state(first["id"])["type"] == "RUNNING", "the start of the run")
    wait_for_trace(service, "download/videos/")
    second = service.ended(service.run("build/films"))
    assert (second["type"], second["message"]) == (
        "CANCELLED",
        "Deployment concurrency limit reached.",
    )
    until(lambda: metrics().get("shards_total videos made download"), "a shard's count")
    seen = metrics()
    assert seen["builds_running"] == 1
    assert service.state(first["id"])["type"] == "RUNNING"
    pass_gate(service)
    assert service.ended(first["id"])["message"] == "6 shards made, 0 were there already"
    store = service.project.folder / "store"
    # The schedule goes on.
    until(service.scheduled, "the next run of the schedule")
    assert versions(store, "videos", "clips", "last") == expected()
    assert set(service.project.executed().values()) == {1}
    assert "reelmill" in first["tags"]
    after = metrics()
    assert after["builds_running"] == 0
    assert after["builds_total completed"] == 1
    assert after["shard_seconds_count split"] == 2
    assert (
        after[f"dataset_samples clips {store}"] == open_version(str(store), "clips").totals.samples
    )
    assert all(after[name] >= value for name, value in seen.items() if "_total" in name)


def test_automations_are_offered_ways_to_notify_somebody(service: Serving) -> None:
    assert "slack-webhook" in {one["slug"] for one in service.call("block_types/filter")}


def test_a_killed_run_is_marked_and_the_next_one_finishes_it(
    service: Serving, expected: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    store = tmp_path / "killed"
    service.project.executed()
    before = metrics()
    run = service.run("build/films", overrides=[f"store={store}"])
    wait_for_trace(service, "download/videos/")
    (engine,) = (p for p in below(service.process.pid) if "prefect.engine" in p.cmdline())
    family = [engine, *below(engine.pid)]
    engine.kill()
    state = service.ended(run)
    assert state["type"] == "CRASHED"
    assert "SIGKILL" in state["message"]
    until(lambda: not any(p.is_running() for p in family), "the end of the run's workers")
    pass_gate(service)
    again = service.ended(service.run("build/films", overrides=[f"store={store}"]))
    assert again["type"] == "COMPLETED"
    assert versions(store, "videos", "clips", "last") == expected()
    assert set(service.project.executed().values()) == {1}
    only = {"flow_runs": {"id": {"any_": [run]}}}
    states = {task["state"]["type"] for task in service.call("task_runs/filter", only)}
    # The very last word of a process that is killed may not be heard.
    assert {"CRASHED"} <= states <= {"COMPLETED", "CRASHED"}
    after = metrics()
    assert after["builds_total crashed"] == before["builds_total crashed"] + 1
    assert after["builds_total completed"] == before["builds_total completed"] + 1
    assert after["builds_running"] == 0


def test_an_automation_derives_when_a_dataset_moves(
    service: Serving, expected: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    deployment = f"derive/{service.store_name}"
    identity = service.call(f"deployments/name/{deployment}", method="GET")["id"]
    automations = (INFRA / "automations.yaml").read_text()
    file = tmp_path / "automations.yaml"
    file.write_text(automations.replace("DERIVE_DEPLOYMENT", identity))
    service.prefect("automation", "create", "--from-file", str(file))
    store = service.project.folder / "moved"
    build = service.run("build/films", only=["clips"], overrides=[f"store={store}"])
    assert service.ended(build)["type"] == "COMPLETED"
    (derived,) = until(lambda: service.runs(deployment), "the run that the automation starts")
    clips = str(open_version(str(store), "clips"))
    assert derived["parameters"]["parent"] == clips
    # A second run of the deployment waits for the first.
    make = {"stage": "frames", "max_side": 64}
    second = service.run(deployment, parent=clips, name="small", make=make, store=str(store))
    runs = [derived["id"], second]
    assert [service.ended(run)["type"] for run in runs] == ["COMPLETED"] * 2
    first, last = (service.call(f"flow_runs/{run}", method="GET") for run in runs)
    assert first["end_time"] <= last["start_time"]
    assert versions(store, "clip-triplets") == {
        "clip-triplets": expected(RECIPE + TRIPLETS)["clip-triplets"]
    }
    # What is derived sends events too, which start nothing.
    wanted = {"filter": {"event": {"name": ["reelmill.dataset.committed"]}}}
    until(
        lambda: {"clips", "clip-triplets", "small"}.issubset(
            event["payload"]["name"] for event in service.call("events/filter", wanted)["events"]
        ),
        "the events of the derived datasets",
    )
    assert len(service.runs(deployment)) == 2
    for automation in service.call("automations/filter"):
        service.call(f"automations/{automation['id']}", method="DELETE")


def heartbeat(service: Serving, run: str) -> None:
    service.call(
        "events",
        [
            {
                "event": "prefect.flow-run.heartbeat",
                "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": os.urandom(16).hex(),
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
                "related": [
                    {
                        "prefect.resource.id": "prefect.tag.reelmill",
                        "prefect.resource.role": "tag",
                    }
                ],
            }
        ],
    )


def test_a_run_whose_heart_stops_is_marked(service: Serving) -> None:
    (zombies,) = yaml.safe_load((INFRA / "heartbeat.yaml").read_text())["automations"]
    zombies["trigger"]["within"] = 10
    automation = service.call("automations/", zombies)["id"]
    known = service.call("deployments/name/build/films", method="GET")["id"]
    runs = []
    for _ in range(2):
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
        run = service.call(f"deployments/{known}/create_flow_run", {"state": later})["id"]
        running = {"state": {"type": "RUNNING"}, "force": True}
        service.call(f"flow_runs/{run}/set_state", running)
        heartbeat(service, run)
        runs.append(run)
    dead, done = runs
    service.call(f"flow_runs/{done}/set_state", {"state": {"type": "COMPLETED"}, "force": True})
    state = service.ended(dead)
    assert state["type"] == "CRASHED"
    assert "no heartbeat" in state["message"]
    assert service.state(done)["type"] == "COMPLETED"
    # Real runs send a heartbeat less often.
    service.call(f"automations/{automation}", method="DELETE")


def test_a_killed_service_leaves_nothing_and_goes_on(
    service: Serving, expected: Callable[..., dict[str, str]]
) -> None:
    shutil.rmtree(service.project.folder / "store")
    service.project.executed()
    run = service.run("build/films")
    wait_for_trace(service, "download/videos/")
    known = {one["id"] for one in service.runs("build/films")}
    family = below(service.process.pid)
    service.process.kill()
    service.process.wait()
    until(lambda: not any(p.is_running() for p in family), "the end of all that was started")
    service.start()
    state = service.ended(run)
    assert state["type"] == "CRASHED"
    # By its lease, or, on a busy machine, by the heartbeats that the server missed before.
    assert "hat was finished is kept" in state["message"]
    # The place of the dead one is free for the first run of the new service, which goes on.
    (first,) = until(
        lambda: [one for one in service.runs("build/films") if one["id"] not in known],
        "the first run of the new service",
    )
    pass_gate(service)
    assert service.ended(first["id"])["type"] == "COMPLETED"
    assert versions(service.project.folder / "store", "videos", "clips", "last") == expected()
    assert set(service.project.executed().values()) == {1}


def test_a_service_that_is_stopped_stops_its_runs(service: Serving) -> None:
    values = {"only": ["last"], "overrides": ["last.salt=third"]}
    before = service.log.read_text().count("worker threads")
    service.run("build/films", **values)
    until(lambda: service.log.read_text().count("worker threads") > before, "the run's workers")
    family = below(service.process.pid)
    assert service.stop(signal.SIGINT) == 0
    assert [p for p in family if p.is_running()] == []
    log = service.log.read_text()
    assert "Finished in state Cancelled('stopped; 2 finished shards are kept')" in log
    assert "Traceback" not in log


@dataclass
class Proxy:
    """Passes connections on to a port, unless it is to answer requests itself.

    ``answer`` is for all requests, ``refused`` a part of the paths that are answered with 500.
    """

    target: int
    answer: bytes = b""
    refused: bytes = b""
    port: int = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield
            listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                for source, sink, look in ((near, far, True), (far, near, False)):
                    threading.Thread(
                        target=self._carry, args=(source, sink, look), daemon=True
                    ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, look: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                answer = self.answer
                if self.refused and self.refused in data.partition(b"\r\n")[0]:
                    answer = b"500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
                if look and answer:
                    source.sendall(b"HTTP/1.1 " + answer)
                    break
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


SOON = b"200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"


def test_a_proxy_that_answers_anything_is_outlived(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, datasets = "{urls: {path: urls.csv}}", "{rows: {stage: rows, from: urls}}"
    recipe = f"store: ./store\nsources: {sources}\ndatasets: {datasets}\n"
    project.write(recipe, ["https://rows.invalid/1.mp4"])
    # A name that no other try of this test leaves on the server.
    name = f"outlived-{secrets.token_hex(4)}"
    project.recipe.rename(project.folder / f"{name}.yaml")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    proxy = Proxy(int(project.prefect_url.removesuffix("/api").rpartition(":")[2]))
    log = project.folder / "serve.log"

    def said(text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in (all_said := log.read_text()):
            waits = served.poll() is None and time.monotonic() < deadline
            assert waits, f"{text!r} is not in: {all_said}"
            time.sleep(0.1)

    with proxy.open():
        behind = Project(project.folder, f"http://127.0.0.1:{proxy.port}/api")
        with log.open("wb") as output:
            served = subprocess.Popen(
                [sys.executable, str(COMMAND), "serve", f"{name}.yaml", "--workers", "1"],
                cwd=project.folder,
                env=behind.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            said("Ctrl-C stops")
            proxy.answer = SOON
            said("server does not answer")
            # It is back, but not for all.
            proxy.refused = b"/automations"
            proxy.answer = b""
            said("server takes no deployments")
            proxy.refused = b""
            known = call(project.prefect_url, f"deployments/name/build/{name}", method="GET")["id"]
            start = {"state": {"type": "SCHEDULED"}}
            run = call(project.prefect_url, f"deployments/{known}/create_flow_run", start)["id"]

            def is_over() -> bool:
                assert served.poll() is None, log.read_text()
                state = call(project.prefect_url, f"flow_runs/{run}", method="GET")["state"]
                return bool(state["type"] == "COMPLETED")

            until(is_over, "the end of a run")
            # The run's process learns of it later than this one.
            said("Finished in state Completed")
        finally:
            served.terminate()
            served.wait(60)
    assert served.returncode == 0
    assert "Traceback" not in log.read_text()
