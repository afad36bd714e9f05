"""infra/ by the linters and schemas of its formats, and by rules of our own.

No image is built and no cluster is started here; what the compose file starts is started by
tests/runs/test_compose.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reelmill.flows.cli import app
from reelmill.recipe import load_recipe
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source
from tests.runs.compose import INFRA, load_services, read_settings

ROOT = INFRA.parent
GUIDE = INFRA / "README.md"
IMAGES = INFRA / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
KUBERNETES = INFRA / "kubernetes"
KUSTOMIZATIONS = sorted(KUBERNETES.rglob("kustomization.yaml"))
OVERLAYS = sorted((KUBERNETES / "overlays").iterdir())
SCRIPTS = [*INFRA.rglob("*.sbatch"), *INFRA.rglob("*.sh"), ROOT / ".ci" / "run"]
KUBERNETES_VERSIONS = ("1.29", "1.37")
KUBECTL_MINOR = 29

SETTINGS = read_settings(INFRA / "compose.env.example")
SERVICES = load_services(SETTINGS)
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("reelmill")}


def run(program: str, *arguments: object) -> None:
    """Run a linter of this environment; what it says is the failure."""
    found = Path(sysconfig.get_path("scripts"), program)
    if not found.exists():
        pytest.skip(f"there is no {program} for this platform")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every resource of every file that a kustomization names."""
    for path in KUSTOMIZATIONS:
        for name in yaml.safe_load(path.read_text())["resources"]:
            if name.endswith(".yaml"):
                file = path.parent / name
                yield from ((file, one) for one in yaml.safe_load_all(file.read_text()))


MANIFESTS = list(manifests())
PODS = {
    one["metadata"]["name"]: one["spec"]["template"]
    for _, one in MANIFESTS
    if "template" in one.get("spec", {})
}
CONTAINERS = {
    f"{name}/{container['name']}": container
    for name, pod in PODS.items()
    for container in pod["spec"]["containers"]
}


# The formats


def test_the_compose_file_is_one() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", INFRA / "compose.yaml")


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_takes_the_manifests(version: str) -> None:
    for file, manifest in MANIFESTS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{file.name}: {error.message}")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_kustomize_builds_the_overlays(overlay: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    told = subprocess.run([kubectl, "version", "--client", "-o=json"], capture_output=True)
    if int(json.loads(told.stdout)["clientVersion"]["minor"].rstrip("+")) < KUBECTL_MINOR:
        pytest.skip(f"kubectl is older than 1.{KUBECTL_MINOR}")
    done = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for manifest in built:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[-1], strict=True)
    deployments = {one["metadata"]["name"] for one in built if one["kind"] == "Deployment"}
    assert ("dask-worker-gpu" in deployments) == (overlay.name == "gpu")
    assert {one["metadata"].get("namespace", "reelmill") for one in built} == {"reelmill"}


def test_dockerfiles_pass_their_linter() -> None:
    run("hadolint", *DOCKERFILES)


def test_shell_scripts_pass_their_linter() -> None:
    run("shellcheck", *SCRIPTS)


def test_yaml_passes_its_linter() -> None:
    run("yamllint", "--strict", "--config-file", INFRA / ".yamllint.yaml", INFRA)


# What is started


def parses(command: Sequence[str]) -> None:
    """Parse a command with the parser of its own program."""
    from distributed.cli import dask_scheduler, dask_worker
    from prefect.cli._app import _app as prefect

    program, *words = command
    match program:
        case "python":
            option, code = words
            assert option == "-c"
            compile(code, "<command>", "exec")
        case "dask":
            part = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[words[0]]
            part.make_context("dask", words[1:])
        case "prefect":
            prefect.parse_args(words, exit_on_error=False, print_error=False)
        case "reelmill":
            part = typer.main.get_command(app).commands[words[0]]
            part.make_context("reelmill", words[1:])
        case _:
            pytest.fail(f"nobody knows {program}")


@pytest.mark.parametrize("name", OURS)
def test_compose_starts_commands_that_exist(name: str) -> None:
    parses(OURS[name]["command"])
    test = OURS[name].get("healthcheck", {}).get("test")
    if test:
        assert test[0] == "CMD"
        parses(test[1:])


@pytest.mark.parametrize("name", [n for n, c in CONTAINERS.items() if "reelmill" in c["image"]])
def test_kubernetes_starts_commands_that_exist(name: str) -> None:
    parses(CONTAINERS[name]["command"])


def test_the_guide_gives_commands_that_exist() -> None:
    found = set()
    for block in re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command = line.partition("run --rm build ")[2] or line
            if command.startswith(("dask ", "prefect ", "reelmill ")):
                words = shlex.split(command, comments=True)
                parses(words)
                found.add(words[0])
    assert found == {"dask", "prefect", "reelmill"}


def test_a_command_that_does_not_exist_does_not_parse() -> None:
    for wrong in (
        ["dask", "worker", "tcp://scheduler:8786", "--cores", "1"],
        ["prefect", "server", "start", "--address", "here"],
        ["reelmill", "build", "recipe.yaml", "--cluster", "address"],
    ):
        with pytest.raises(Exception, match=wrong[-2]):
            parses(wrong)


def test_every_setting_is_one() -> None:
    import dask
    import distributed  # noqa: F401  its defaults
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known = _get_settings_fields(Settings)
    given = [key for one in SERVICES.values() for key in one.get("environment", {})]
    given += [one["name"] for container in CONTAINERS.values() for one in container.get("env", ())]
    given += [key for _, one in MANIFESTS if one["kind"] == "ConfigMap" for key in one["data"]]
    for file in DOCKERFILES:
        given += re.findall(r"^(?:ENV| +)\s*([A-Z_]+)=", file.read_text(), re.MULTILINE)
    assert {name for name in given if name.startswith("PREFECT_")} - set(known) == set()
    for name in given:
        if name.startswith("DASK_") and "__" in name:
            key = name.removeprefix("DASK_").lower().replace("__", ".")
            assert dask.config.get(key, None) is not None, name


def test_the_server_is_set_as_a_server_of_our_own_is() -> None:
    from reelmill.flows.server import _EMBEDDED

    kubernetes = {one["name"]: one.get("value") for one in CONTAINERS["prefect/prefect"]["env"]}
    batching = {name: value for name, value in _EMBEDDED.items() if name.endswith("BATCH_SIZE")}
    assert batching
    for environment in (SERVICES["prefect"]["environment"], kubernetes):
        assert environment.items() >= batching.items()


def test_a_scheduler_gives_up_shards_as_one_of_our_own_does() -> None:
    from reelmill.flows.cluster import ALLOWED_FAILURES

    key = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"
    kubernetes = {
        one["name"]: one["value"] for one in CONTAINERS["dask-scheduler/scheduler"]["env"]
    }
    assert SERVICES["scheduler"]["environment"][key] == str(ALLOWED_FAILURES)
    assert kubernetes[key] == str(ALLOWED_FAILURES)


def test_a_recipe_of_the_overlays_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (settings,) = (one for _, one in MANIFESTS if one["kind"] == "ConfigMap")
    for name, value in settings["data"].items():
        monkeypatch.setenv(name, value)
    for path in KUBERNETES.rglob("recipe.yaml"):
        recipe = load_recipe(path, stages=Stages(), source_model=Source)
        assert recipe.store == settings["data"]["REELMILL_STORE"]


# What must hold of images


def test_images_are_pinned() -> None:
    images = [one["image"] for one in SERVICES.values()]
    images += [container["image"] for container in CONTAINERS.values()]
    for file in DOCKERFILES:
        images += re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)
    for image in images:
        name, _, tag = image.partition(":")
        assert re.search(r"\d+\.\d+", tag), image
        assert "." not in name, f"{image} names a registry"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_small_and_its_user_is_not_root(file: Path) -> None:
    text = file.read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    last = stages[-1]
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert last.index("USER") > last.rindex("RUN")
    for tool in ("pip", "build-essential", "python3-dev", "COPY . "):
        assert tool not in last
    for label in ("title", "description", "licenses"):
        assert f"org.opencontainers.image.{label}=" in last


def test_images_are_built_from_what_the_package_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    files = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert kept == folders | files | {"infra/images/*.txt"}
    assert "*" in ignored


def pins(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (IMAGES / name).read_text().splitlines()]
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_images_hold_versions_that_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = pins("constraints.txt")
    for text in project["project"]["dependencies"]:
        wanted = Requirement(text)
        version = found.get(canonicalize_name(wanted.name))
        assert version, f"{text}: run `make constraints`"
        assert version in wanted.specifier, f"{text}: run `make constraints`"
    extras = project["project"]["optional-dependencies"]
    for text in (text for name in extras.keys() - {"dev"} for text in extras[name]):
        wanted = Requirement(text)
        version = found.get(canonicalize_name(wanted.name))
        assert version is None or version in wanted.specifier, f"{text}: run `make constraints`"
    for text in project["build-system"]["requires"]:
        wanted = Requirement(text)
        for file in DOCKERFILES:
            version = re.search(rf'"{wanted.name}==([\d.]+)"', file.read_text())
            assert version
            assert version[1] in wanted.specifier
    assert not found.keys() & pins("cuda.txt", "dashboard.txt").keys()
    assert not found.keys() & {"pytest", "mypy", "ruff", "moto", "torch"}


def test_constraints_are_what_is_installed(tmp_path: Path) -> None:
    script = tmp_path / "constraints.py"
    shutil.copy(IMAGES / "constraints.py", script)
    subprocess.run([sys.executable, script], check=True)
    written = (tmp_path / "constraints.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in written[1:]}
    assert {"prefect", "distributed", "numpy", "av", "asyncpg"} <= names
    assert not names & {"reelmill", "pytest", "mypy", "moto", "torch"}


# What must hold of the compose file


def test_nothing_is_open_to_the_world() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), name
        assert service.get("network_mode") is None
        assert service.get("privileged") is None
    text = re.sub(r"#.*", "", (INFRA / "compose.yaml").read_text())
    assert "0.0.0.0" not in text
    assert "docker.sock" not in text


def test_a_command_listens_at_the_name_of_its_own_service() -> None:
    for name, service in OURS.items():
        command = service["command"]
        for option in ("--host", "--dashboard-address", "--metrics"):
            if option in command:
                assert command[command.index(option) + 1].partition(":")[0] == name
                assert service["hostname"] == name


def test_our_services_are_locked_and_limited() -> None:
    for service in OURS.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "/scratch" in service["volumes"]
        assert "user" not in service
    for name, service in SERVICES.items():
        assert service["restart"] == {"bucket": "on-failure", "build": "no"}.get(
            name, "unless-stopped"
        )
        if name != "bucket":
            assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_services_wait_for_what_they_need() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            if SERVICES[needed]["restart"] == "on-failure":
                assert how["condition"] == "service_completed_successfully"
            else:
                assert how["condition"] == "service_healthy"
                assert "test" in SERVICES[needed]["healthcheck"]


def test_secrets_come_from_the_example_and_nowhere_else() -> None:
    text = (INFRA / "compose.yaml").read_text()
    used = dict(re.findall(r"\$\{(\w+)(:[-?])", text))
    assert used.keys() == SETTINGS.keys()
    required = {name for name, operator in used.items() if operator == ":?"}
    assert required == {"PREFECT_AUTH", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert "/infra/.env" in (ROOT / ".gitignore").read_text().splitlines()
    with pytest.raises(AssertionError, match=r"copy infra/compose\.env\.example"):
        load_services({})


# What must hold of the manifests


def test_every_manifest_is_used() -> None:
    named = {file for file, _ in MANIFESTS}
    for path in KUSTOMIZATIONS:
        generators = yaml.safe_load(path.read_text()).get("configMapGenerator", ())
        named |= {path.parent / file for one in generators for file in one["files"]}
    assert {*named, *KUSTOMIZATIONS} == set(KUBERNETES.rglob("*.yaml"))


@pytest.mark.parametrize("name", PODS)
def test_pods_are_locked_and_limited(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    # Kubernetes would put variables of its own where Prefect and Dask look for their settings.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in mounts
        if container["image"].startswith("reelmill"):
            assert "/scratch" in mounts
            assert spec["securityContext"]["runAsUser"] == 10001


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return labels.items() >= selector.get("matchLabels", {}).items() and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def test_selectors_find_pods() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    for file, one in MANIFESTS:
        spec = one.get("spec", {})
        name = one["metadata"]["name"]
        if one["kind"] == "Service":
            (target,) = (n for n, has in labels.items() if has.items() >= spec["selector"].items())
            ports = {
                p["containerPort"] for c in PODS[target]["spec"]["containers"] for p in c["ports"]
            }
            assert {port["port"] for port in spec["ports"]} <= ports
        elif "template" in spec:
            assert [n for n, has in labels.items() if matches(spec["selector"], has)] == [name]
        elif one["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = spec.get("podSelector", spec.get("selector"))
            assert any(matches(selector, has) for has in labels.values()), file
            for rule in spec.get("ingress", ()):
                for peer in rule["from"]:
                    if "podSelector" in peer:
                        assert any(matches(peer["podSelector"], has) for has in labels.values())


def test_gpu_workers_go_where_gpus_are_and_say_so() -> None:
    spec = PODS["dask-worker-gpu"]["spec"]
    (container,) = spec["containers"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for command, wanted in (
        (container["command"], "GPU=1"),
        (SERVICES["worker-gpu"]["command"], "GPU=1"),
        (CONTAINERS["dask-worker/worker"]["command"], "CPU=1"),
        (SERVICES["worker"]["command"], "CPU=1"),
    ):
        assert command[command.index("--resources") + 1] == wanted
    image = (IMAGES / "cuda.Dockerfile").read_text()
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in image


def test_the_guide_says_how_to_make_the_secret() -> None:
    wanted = {
        one["valueFrom"]["secretKeyRef"]["key"]
        for container in CONTAINERS.values()
        for one in container.get("env", ())
        if "valueFrom" in one
    }
    assert set(re.findall(r"--from-literal (\w+)=", GUIDE.read_text())) == wanted


def test_links_of_the_guide_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text()):
        assert (INFRA / target).exists(), target
