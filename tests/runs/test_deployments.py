"""Deployments for work pools: `infra/prefect.yaml`, deployed and run by Prefect's own commands."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from reelmill.dataset import open_version
from reelmill.flows.server import own_server
from tests.runs.project import Project
from tests.runs.serving import RECIPE, call, prefect

INFRA = Path(__file__).parents[2] / "infra"
POOL = INFRA / "kubernetes" / "work-pool.json"
IMAGE = "registry.example/reelmill:0.1.0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, blank_prefect: Path) -> Iterator[str]:
    home = shutil.copytree(blank_prefect, tmp_path_factory.mktemp("deployments") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        with own_server(schedules=True) as url:
            yield url


def test_the_file_deploys_and_a_worker_builds(
    server: str, tmp_path: Path, demo_media: Path
) -> None:
    project = Project(tmp_path / "films", server)
    project.folder.mkdir()
    project.write(RECIPE, [f"file://{demo_media}/{name}.mp4" for name in ("dunes", "pond")])
    prefect(server, "work-pool", "create", "reelmill", "--type", "process")
    pool = ("work-pool", "create", "reelmill-kubernetes", "--type", "kubernetes")
    prefect(server, *pool, "--base-job-template", str(POOL))
    store = project.folder / "store"
    prefect(
        server,
        *("deploy", "--all", "--prefect-file", str(INFRA / "prefect.yaml")),
        REELMILL_RECIPE=str(project.recipe),
        REELMILL_STORE=str(store),
        REELMILL_IMAGE=IMAGE,
    )
    found = {
        (one["entrypoint"].rpartition(".")[2], one["name"]): one
        for one in call(server, "deployments/filter")
    }
    assert found.keys() == {
        (f"{flow}_flow", name)
        for flow in ("build", "derive", "maintain")
        for name in ("films", "films-kubernetes")
    }
    for (flow, name), one in found.items():
        assert one["pull_steps"] == []
        assert one["tags"] == ["reelmill"]
        assert one["global_concurrency_limit"]["limit"] == 1
        assert one["parameters"]["profile"] == ("address" if "kubernetes" in name else "local")
        assert len(one["schedules"]) == (0 if flow == "derive_flow" else 1)
        assert one["job_variables"]["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    build = found["build_flow", "films"]["id"]
    run = call(server, f"deployments/{build}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    prefect(server, "worker", "start", "--pool", "reelmill", "--run-once")
    state = call(server, f"flow_runs/{run['id']}", method="GET")["state"]
    assert (state["type"], state["message"]) == ("COMPLETED", "4 shards made, 0 were there already")
    expected = Project(tmp_path / "here", "")
    expected.folder.mkdir()
    shutil.copy(project.folder / "urls.csv", expected.folder)
    shutil.copy(project.recipe, expected.folder)
    made = expected.build_here().versions
    assert {name: open_version(str(store), name).digest for name in made} == made


def test_a_job_on_kubernetes_is_one(server: str) -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    pool = yaml.safe_load((INFRA / "prefect.yaml").read_text())["x-kubernetes"]
    values = {**pool["job_variables"], "image": IMAGE}
    template = json.loads(POOL.read_text())
    with temporary_settings({PREFECT_API_URL: server}):
        made = KubernetesWorkerJobConfiguration.from_template_and_values(template, values)
        job: Any = asyncio.run(made)
        job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="films"))
    assert values.keys() <= template["variables"]["properties"].keys()
    pod = job.job_manifest["spec"]["template"]
    for misplaced in ("parallelism", "completions"):
        # Prefect's worker insists on them where Kubernetes knows of none.
        del pod["spec"][misplaced]
    kubernetes_validate.validate(job.job_manifest, "1.29", strict=True)
    # The network policies let builders in by this label.
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "builder"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {"name": "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "value": "30"} in container["env"]
    sources = {one.popitem()[1]["name"] for one in container["envFrom"]}
    assert sources == {"reelmill", "reelmill-store"}


def test_serve_makes_the_automation_that_is_shipped() -> None:
    from prefect.events.schemas.automations import AutomationCore

    from reelmill.flows.serve import ZOMBIES

    (shipped,) = yaml.safe_load((INFRA / "heartbeat.yaml").read_text())["automations"]
    zombies = AutomationCore.model_validate(shipped)
    exclude = {"trigger": {"id"}}
    assert zombies.model_dump(exclude=exclude) == ZOMBIES.model_dump(exclude=exclude)
