"""Execution profiles: what they accept, what they say is wrong, and what they have started."""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import dask
import jsonschema
import pytest
import yaml

from reelmill.errors import MissingDependencyError, RecipeError, ReelmillError
from reelmill.flows import workers
from reelmill.flows.cluster import ALLOWED_FAILURES, _settings
from reelmill.flows.profile import (
    AddressProfile,
    GpuProfile,
    KubernetesProfile,
    LocalProfile,
    Profile,
    SlurmProfile,
    known_profiles,
    load_profile,
)

SLURM = {"kind": "slurm", "cores": 8, "memory": "32 GiB", "walltime": "4h", "workers": 2}
KUBERNETES = {"kind": "kubernetes", "image": "films/reelmill:1", "memory": "8 GiB", "workers": 3}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Loads a profile from a file with these values."""

    def load(values: Any, workers: int | None = None) -> Profile:
        path = tmp_path / "mine.yaml"
        text = values if isinstance(values, str) else yaml.safe_dump(values)
        path.write_text(text, errors="surrogateescape")
        return load_profile(str(path), workers)

    return load


def test_every_profile_that_is_shipped_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://10.0.0.1:8786")
    monkeypatch.setenv("REELMILL_IMAGE", "films/reelmill:1")
    assert known_profiles() == ["address", "gpu", "kubernetes", "local", "slurm"]
    assert {name: load_profile(name).kind for name in known_profiles()} == {
        name: name for name in known_profiles()
    }


@pytest.mark.parametrize("name", known_profiles())
def test_what_a_shipped_profile_suggests_in_comments_is_accepted(
    name: str, written: Any, tmp_path: Path
) -> None:
    shipped = importlib.resources.files("reelmill.configs") / "profiles" / f"{name}.yaml"
    lines = []
    for line in shipped.read_text().splitlines():
        # Prose has no colon after its first word; workers and adapt exclude each other.
        suggested = line.removeprefix("# ")
        if line.startswith("# ") and suggested.partition(":")[0].strip().isidentifier():
            lines.append(suggested)
        elif not line.startswith("#"):
            lines.append(line)
    for file in ("ca.pem", "client.pem", "client-key.pem"):
        (tmp_path / file).touch()
    text = "\n".join(lines).replace("${DASK_SCHEDULER_ADDRESS}", "tls://10.0.0.1:8786")
    profile = written(text.replace("${REELMILL_IMAGE}", "films/reelmill:1"))
    assert profile.kind == name
    assert len(profile.model_fields_set) > 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "locl"}, "kind: there is no 'locl'; there are 'local', 'gpu', 'address', "),
        ({"workers": 3}, "kind: a profile says where its workers are"),
        ("", "a profile is a mapping"),
        ("kind: [local", "not valid YAML"),
        ({"kind": "local", "worker": 3}, "worker: there is no such option; did you mean workers?"),
        ({"kind": "local", "workers": 0}, "workers: Input should be greater than or equal to 1"),
        ({"kind": "local", "memory": "3 GBit"}, "memory: '3 GBit' has an unknown unit"),
        ({"kind": "gpu", "gpus": []}, "gpus: List should have at least 1 item"),
        ({"kind": "address"}, "address: Field required"),
        ({"kind": "address", "address": ""}, "address: String should have at least 1 character"),
        ({"kind": "address", "address": "${NOT_SET}"}, "address: environment variable NOT_SET is"),
        (
            {
                "kind": "address",
                "address": "tcp://h:1",
                "tls": {"ca": "ca", "cert": "c", "key": "k"},
            },
            "tls needs an address that begins with tls://",
        ),
        ({**SLURM, "adapt": {"max": 3}}, "give one of workers and adapt"),
        ({**SLURM, "workers": None}, "give one of workers and adapt"),
        ({**SLURM, "workers": None, "adapt": {"min": 3, "max": 2}}, "adapt: max is less than min"),
        ({**SLURM, "gpus": 2}, "gpus: Input should be less than or equal to 1"),
        ({**SLURM, "walltime": "30s"}, "walltime: Input should be greater than or equal to 60"),
        ({**KUBERNETES, "image": "${NOT_SET}"}, "image: environment variable NOT_SET is not set"),
        ({**KUBERNETES, "gpu": {"workers": 1}}, "gpu.memory: Field required"),
        ({"kind": "local", "window": True}, "window: Input should be a valid integer"),
        ({"kind": "local", "workers": 10**30}, "workers: Input should be less than or equal to"),
        ({"kind": "local", "memory": 0}, "memory: Input should be greater than or equal to"),
        ("kind: local\nwindow: 2024-13-45", "window: Input should be a valid integer"),
        ("kind: local\nwindow: " + "9" * 5000, "window: the number is out of range"),
        ("", "a profile is a mapping that begins with"),
        ("[" * 3000, "nested too deeply"),
        ("kind: local\ndashboard: caf\udce9", "not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(values: Any, told: str, written: Any) -> None:
    with pytest.raises(RecipeError) as error:
        written(values)
    message = str(error.value)
    assert message.partition("mine.yaml: ")[2].startswith(told) or told in message
    assert "\n" not in message
    assert "Value error" not in message


def test_what_a_variable_holds_stays_in_its_place(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", "tcp://x\nrunner: prefect-dask")
    profile = written("kind: address\naddress: ${EVIL}\n")
    assert profile.runner == "shards"
    assert profile.address == "tcp://x\nrunner: prefect-dask"


def test_a_profile_that_is_not_there_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean slurm"):
        load_profile("slrum")
    with pytest.raises(RecipeError, match=r"absent\.yaml: No such file"):
        load_profile(str(tmp_path / "absent.yaml"))


def test_a_name_that_cannot_be_one_is_refused_in_a_line() -> None:
    with pytest.raises(RecipeError, match="embedded null byte"):
        load_profile("a\0.yaml")


def test_the_number_of_workers_can_be_given_where_a_build_starts_them(written: Any) -> None:
    assert load_profile("local", 3).workers == 3
    assert load_profile("gpu", 3).workers == 3
    asked = written({**SLURM, "workers": None, "adapt": {"max": 9}}, 3)
    assert (asked.workers, asked.adapt) == (3, None)
    with pytest.raises(RecipeError, match="--workers is for workers that a build starts"):
        written({"kind": "address", "address": "tcp://10.0.0.1:8786"}, 3)


def test_certificates_lie_beside_their_profile_and_must_be_there(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, etc = tmp_path / "home", tmp_path / "etc"
    monkeypatch.setenv("HOME", str(home))
    values = {
        "kind": "address",
        "address": "tls://10.0.0.1:8786",
        "tls": {"ca": "ca.pem", "cert": f"{etc}/ours.pem", "key": "~/ours.key"},
    }
    for file in (tmp_path / "ca.pem", etc / "ours.pem", home / "ours.key"):
        with pytest.raises(RecipeError, match=f"tls: there is no file {file}"):
            written(values)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    tls = written(values).tls
    assert [tls.ca, tls.cert, tls.key] == [
        tmp_path / "ca.pem",
        etc / "ours.pem",
        home / "ours.key",
    ]


def test_profiles_are_loaded_without_dask() -> None:
    # The command line reads a profile long before it needs a cluster, or without ever needing one.
    code = "import sys, reelmill.flows.profile; print('dask' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def job_script(profile: SlurmProfile, folder: Path) -> str:
    jobqueue = workers._optional("dask_jobqueue", "slurm")

    async def render() -> str:
        options = workers._slurm_options(profile)
        with workers._certificates(folder) as security:
            cluster = jobqueue.SLURMCluster(asynchronous=True, security=security, **options)
            return str(cluster.job_script())

    return asyncio.run(render())


def test_a_slurm_job_holds_a_worker_for_each_core(written: Any, tmp_path: Path) -> None:
    profile = written(
        {
            **SLURM,
            "queue": "cpu",
            "account": "films",
            "directives": ["--constraint=avx2"],
            "prologue": ["module load python"],
            "interface": "lo",
        }
    )
    script = job_script(profile, tmp_path)
    header = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert header == [
        "#SBATCH -J reelmill",
        "#SBATCH -p cpu",
        "#SBATCH -A films",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=32G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --constraint=avx2",
    ]
    prologue, command = script.splitlines()[-2:]
    assert prologue == "module load python"
    assert "--nworkers 8 " in command
    assert "--nthreads 1 --memory-limit 4.00GiB " in command
    assert "--resources 'CPU=1'" in command
    assert "--interface lo" in command
    # They leave well before Slurm kills them.
    assert "--lifetime 12960s --lifetime-stagger 648s" in command
    assert f"--protocol tls:// --tls-ca-file {tmp_path}/.reelmill-" in command
    assert "--dashboard-address 127.0.0.1:0" in command
    assert [worker.threads for worker in workers._slurm_workers(profile)] == [1] * 8


def test_a_slurm_job_with_a_gpu_is_one_worker(written: Any, tmp_path: Path) -> None:
    profile = written({**SLURM, "gpus": 1})
    script = job_script(profile, tmp_path)
    assert "#SBATCH --gpus-per-node=1\n" in script
    assert "#SBATCH --cpus-per-task=8\n" in script
    assert "--nworkers" not in script
    assert "--nthreads 1 --memory-limit 32.00GiB " in script
    assert "--resources 'GPU=1'" in script
    [worker] = workers._slurm_workers(profile)
    assert (worker.threads, worker.resources) == (1, {"GPU": 1})


def test_slurm_is_told_long_times_in_hours() -> None:
    assert workers._hours(Decimal(90)) == "00:01:30"
    assert workers._hours(Decimal(3 * 86400 + 61)) == "72:01:01"


def schema(kind: str) -> Any:
    """What the Dask operator lets Kubernetes accept."""
    crds = importlib.resources.files("dask_kubernetes.operator.deployment")
    text = (crds / "helm" / "dask-kubernetes-operator" / "crds" / f"{kind}.yaml").read_text()
    [version] = yaml.safe_load(text)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def closed(node: Any) -> Any:
    """The schema with every object closed to what it does not name: Kubernetes would drop it."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {name: closed(value) for name, value in node.items()}
    if "properties" in node and node.get("type") == "object":
        node.setdefault("additionalProperties", False)
    return node


def check(kind: str, spec: Any) -> None:
    whole = closed(schema(kind))
    jsonschema.validate(spec, whole["properties"]["spec"])


def test_the_pods_of_kubernetes_are_what_the_operator_takes(written: Any) -> None:
    profile = written(
        {
            **KUBERNETES,
            "cores": 2,
            "node_selector": {"pool": "cpu"},
            "env": {"AWS_DEFAULT_REGION": "eu-central-1"},
            "secrets": ["store"],
        }
    )
    cluster = workers.kubernetes_cluster(profile, "reelmill-1")
    check("daskcluster", cluster["spec"])
    worker = cluster["spec"]["worker"]
    [container] = worker["spec"]["containers"]
    assert worker["replicas"] == 3
    assert worker["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert container["image"] == "films/reelmill:1"
    assert container["resources"]["limits"] == {"cpu": "2", "memory": str(8 << 30)}
    assert container["env"] == [{"name": "AWS_DEFAULT_REGION", "value": "eu-central-1"}]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    said = " ".join(container["args"])
    assert f"--nthreads 1 --memory-limit {8 << 30} --resources CPU=1" in said
    [scheduler] = cluster["spec"]["scheduler"]["spec"]["containers"]
    assert scheduler["image"] == "films/reelmill:1"
    assert scheduler["args"][:2] == ["dask", "scheduler"]
    assert container["args"][:2] == ["dask", "worker"]


def test_gpu_pods_of_kubernetes_go_to_nodes_that_have_gpus(written: Any) -> None:
    gpu = {
        "workers": 2,
        "cores": 4,
        "memory": "32 GiB",
        "image": "films/reelmill-cuda:1",
        "node_selector": {"nvidia.com/gpu.present": "true"},
    }
    profile = written({**KUBERNETES, "gpu": gpu})
    group = workers._gpu_pods(profile, profile.gpu)
    check("daskworkergroup", {"cluster": "reelmill-1", "worker": group})
    [container] = group["spec"]["containers"]
    assert group["replicas"] == 2
    assert group["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert group["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert container["image"] == "films/reelmill-cuda:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--nthreads 1 " in " ".join(container["args"])
    assert container["args"][-2:] == ["--resources", "GPU=1"]


def test_the_check_against_the_operator_sees_a_misspelled_field(written: Any) -> None:
    cluster = workers.kubernetes_cluster(written(KUBERNETES), "reelmill-1")
    cluster["spec"]["worker"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelektor"):
        check("daskcluster", cluster["spec"])


@pytest.mark.parametrize(
    ("module", "extra"), [("dask_jobqueue", "slurm"), ("dask_kubernetes.operator", "kubernetes")]
)
def test_a_missing_package_is_said_with_its_pip_line(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'reelmill\[{extra}\]'"):
        workers._optional(module, extra)


def test_no_package_takes_ctrl_c_away() -> None:
    code = (
        "import signal; from reelmill.flows import workers;"
        "before = signal.getsignal(signal.SIGINT); workers._optional('dask_jobqueue', 'slurm');"
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a driver's tool in the place of this machine's, if it has one."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_that_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "GPU 0: NVIDIA H200 (UUID: GPU-1b)",
        "  MIG 1g.18gb     Device  0: (UUID: MIG-2c)",
        "GPU 1: NVIDIA H200 (UUID: GPU-3d)",
    ]
    nvidia_smi(tmp_path, monkeypatch, "\n".join(f"echo '{line}'" for line in lines))
    assert workers._gpus(None) == ["0", "1"]
    assert workers._gpus([3]) == ["3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-3d")
    assert workers._gpus(None) == ["1", "GPU-3d"]


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_a_machine_without_a_gpu_says_so(
    visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ReelmillError, match="there is no GPU here") as error:
        workers._gpus(None)
    why = "nvidia-smi lists none" if visible is None else "CUDA_VISIBLE_DEVICES hides them all"
    assert why in str(error.value)


def test_kinds_are_of_their_own_class(written: Any, tmp_path: Path) -> None:
    address = {"kind": "address", "address": "tcp://10.0.0.1:8786"}
    classes = [LocalProfile, GpuProfile, AddressProfile, SlurmProfile, KubernetesProfile]
    given = [{"kind": "local"}, {"kind": "gpu"}, address, SLURM, KUBERNETES]
    assert [type(written(values)) for values in given] == classes
    assert written({**address, "patience": "10m"}).patience == 600


def test_what_somebody_chose_of_dask_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    local, far = LocalProfile(kind="local"), KubernetesProfile(**KUBERNETES)
    failures = "distributed.scheduler.allowed-failures"
    connect = "distributed.comm.timeouts.connect"
    assert _settings(local)[failures] == ALLOWED_FAILURES
    assert failures not in _settings(far)
    assert connect in _settings(far)
    assert not any("ttl" in name for name in _settings(local))
    # Chosen in a variable or a file, even if it is what Dask has anyhow; or in the program.
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "3")
    with dask.config.set({connect: "7s"}):
        assert not {failures, connect} & set(_settings(local))
