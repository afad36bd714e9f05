"""Execution profiles: where the workers are. They change no recipe and no digest."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from reelmill.errors import RecipeError, one_line
from reelmill.recipe import read_document
from reelmill.units import Bytes, Seconds, nearest

Count = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Memory = Annotated[Bytes, Field(ge=1_000_000)]


def _beside_the_profile(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return Path(folder, path.expanduser()).absolute()


Told = Annotated[str, Field(min_length=1)]

File = Annotated[Path, AfterValidator(_beside_the_profile)]
"""A file; one that is not absolute lies beside the profile."""


_NO_OTHERS = "start workers by hand, and use profile address"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Common(_Model):
    window: Count | None = Field(
        None, description="shards in flight; twice the workers' threads if not set"
    )
    cpu_on_gpu: bool = Field(
        False, description="let stages that need no GPU run on workers that have one"
    )
    patience: Seconds = Field(
        Decimal(300),
        description="how long to wait for a lost scheduler, the last fitting worker, or the store",
    )
    runner: Literal["shards", "prefect-dask"] = Field(
        "shards", description="how task runs reach workers"
    )

    @property
    def wait(self) -> float:
        """Seconds to wait for a first worker."""
        return 60

    def in_flight(self, capacity: int) -> int:
        """Shards to have in flight on workers with so many threads together."""
        return self.window or max(2, 2 * capacity)

    def with_workers(self, count: int) -> Self:
        """This profile with another number of workers; ``ValueError`` where that means nothing."""
        return self.model_copy(update={"workers": count})

    def get_resources(self, wanted: str) -> str:
        """What to do about workers that lack a Dask resource, such as ``GPU=1``."""
        return "use profile gpu" if wanted.startswith("GPU") else _NO_OTHERS

    def get_memory(self) -> str:
        """What to do about workers that are too small."""
        return "raise 'memory' in the profile, or start fewer workers"


class _OnThisMachine(_Common):
    workers: Count | None = Field(None, description="worker processes; one per core if not set")
    memory: Memory | None = Field(
        None, description="limit of each worker; an equal share of the machine's if not set"
    )
    dashboard: str = Field("127.0.0.1:0", description="where Dask's dashboard listens")


class LocalProfile(_OnThisMachine):
    """Worker processes on this machine."""

    kind: Literal["local"]


class GpuProfile(_OnThisMachine):
    """Worker processes on this machine, and one more for each of its GPUs."""

    kind: Literal["gpu"]
    gpus: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="numbers of the GPUs to use; all that there are if not set"
    )


class Tls(_Model):
    """Certificates, in PEM files, with which a client and a scheduler know each other."""

    ca: File = Field(description="certificate of the authority that signed the others")
    cert: File = Field(description="our certificate")
    key: File = Field(description="the key of our certificate")


class AddressProfile(_Common):
    """A Dask cluster that runs already."""

    kind: Literal["address"]
    address: Told = Field(description="of the scheduler, such as tcp://10.0.0.1:8786")
    tls: Tls | None = Field(None, description="certificates, for an address with tls://")

    @model_validator(mode="after")
    def _fits_together(self) -> AddressProfile:
        if self.tls and not self.address.startswith("tls://"):
            raise ValueError("tls needs an address that begins with tls://")
        return self

    @model_validator(mode="after")
    def _files_are_there(self) -> AddressProfile:
        for file in (self.tls and (self.tls.ca, self.tls.cert, self.tls.key)) or ():
            if not file.is_file():
                raise ValueError(f"tls: there is no file {file}")
        return self

    def with_workers(self, count: int) -> AddressProfile:
        raise ValueError("--workers is for workers that a build starts; this cluster has its own")

    def get_resources(self, wanted: str) -> str:
        return f'start one: dask worker {self.address} --resources "{wanted}"'

    def get_memory(self) -> str:
        return "start workers with a larger --memory-limit or fewer --nthreads"


class Adapt(_Model):
    """As many workers as there is work for, within bounds."""

    min: Annotated[int, Field(ge=0)] = Field(0, description="workers that are always there")
    max: Count = Field(description="workers that there may be")

    @model_validator(mode="after")
    def _in_order(self) -> Adapt:
        if self.max < self.min:
            raise ValueError("max is less than min")
        return self


class _Elsewhere(_Common):
    """Workers that another system starts on demand."""

    workers: Count | None = Field(None, description="how many to keep; or say adapt")
    adapt: Adapt | None = Field(None, description="bounds, instead of workers")
    start_within: Seconds = Field(
        Decimal(3600), description="how long the first worker may take to start: jobs queue"
    )

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if (self.workers is None) == (self.adapt is None):
            raise ValueError("give one of workers and adapt")
        return self

    def with_workers(self, count: int) -> Self:
        return self.model_copy(update={"workers": count, "adapt": None})

    @property
    def wait(self) -> float:
        return float(self.start_within)


class SlurmProfile(_Elsewhere):
    """Jobs of a Slurm cluster, with one worker process for each of their cores.

    ``workers`` and ``adapt`` count jobs.
    """

    kind: Literal["slurm"]
    queue: str | None = Field(None, description="the partition; Slurm's own choice if not set")
    account: str | None = Field(None, description="who is charged for the jobs")
    cores: Count = Field(description="of each job")
    memory: Memory = Field(description="of each job")
    walltime: Annotated[Seconds, Field(ge=60)] = Field(
        description="of each job, such as 4h; its workers leave in time, and another takes over"
    )
    gpus: Annotated[int, Field(ge=0, le=1)] = Field(
        0, description="1: each job asks for a GPU, and is a single worker that offers it"
    )
    directives: list[str] = Field(
        [], description="more options for sbatch, such as --constraint=a100"
    )
    prologue: list[str] = Field(
        [], description="commands of the job before its workers, such as 'module load cuda'"
    )
    interface: str | None = Field(
        None, description="network interface through which jobs reach the scheduler, such as ib0"
    )
    shared: File | None = Field(
        None,
        description="folder that the jobs see too, for the certificates of a run; where the "
        "command runs if not set",
    )
    logs: File | None = Field(None, description="folder for the jobs' output")
    dashboard: str = Field("127.0.0.1:0", description="where Dask's dashboard listens")

    def get_resources(self, wanted: str) -> str:
        return "say 'gpus: 1' in the profile" if wanted.startswith("GPU") else _NO_OTHERS

    def get_memory(self) -> str:
        return "raise 'memory' in the profile, or lower 'cores'"


class Toleration(_Model):
    """What lets pods onto nodes that keep others away."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class GpuPods(_Model):
    """Pods with a GPU each, beside the others."""

    workers: Count = Field(description="how many")
    cores: Count = Field(1, description="of each pod")
    memory: Memory = Field(description="of each pod")
    image: Told | None = Field(None, description="the others' image if not set")
    resource: str = Field("nvidia.com/gpu", description="what the GPUs' device plugin calls them")
    node_selector: dict[str, str] = Field({}, description="labels of nodes that have GPUs")
    tolerations: list[Toleration] = Field(
        [Toleration(key="nvidia.com/gpu", effect="NoSchedule")],
        description="taints of those nodes",
    )


class KubernetesProfile(_Elsewhere):
    """Pods of a Kubernetes cluster in which the Dask operator runs."""

    kind: Literal["kubernetes"]
    image: Told = Field(description="container image with Reelmill, for scheduler and workers")
    namespace: str | None = Field(None, description="that of the current context if not set")
    cores: Count = Field(1, description="of each pod, which makes one shard at a time")
    memory: Memory = Field(description="of each pod")
    node_selector: dict[str, str] = Field({}, description="labels of nodes to run on")
    env: dict[str, str] = Field({}, description="environment variables of the workers")
    secrets: list[str] = Field(
        [], description="Kubernetes secrets whose entries become environment variables"
    )
    gpu: GpuPods | None = Field(None, description="workers with a GPU, beside the others")

    def get_resources(self, wanted: str) -> str:
        return "say 'gpu:' in the profile" if wanted.startswith("GPU") else _NO_OTHERS

    def get_memory(self) -> str:
        return "raise 'memory' in the profile, or lower 'cores'"


Profile = Annotated[
    LocalProfile | GpuProfile | AddressProfile | SlurmProfile | KubernetesProfile,
    Field(discriminator="kind"),
]

_KINDS: dict[str, type[_Model]] = {
    "local": LocalProfile,
    "gpu": GpuProfile,
    "address": AddressProfile,
    "slurm": SlurmProfile,
    "kubernetes": KubernetesProfile,
}

_PROFILE: TypeAdapter[Profile] = TypeAdapter(Profile)


def known_profiles() -> list[str]:
    """The names of the profiles that come with Reelmill."""
    folder = importlib.resources.files("reelmill.configs") / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name[0] != "_")


def load_profile(name: str, workers: int | None = None) -> Profile:
    """The profile of that name, or in the YAML file of that path.

    Raises:
        RecipeError: there is none, or the file is not a profile.
    """
    folder = Path()
    if name.endswith((".yaml", ".yml")):
        where = name
        try:
            text = Path(name).read_bytes()
        except OSError as error:
            raise RecipeError(f"{name}: {error.strerror}") from None
        except ValueError as error:
            raise RecipeError(one_line(f"{name}: {error}")) from None
        folder = Path(name).parent
    else:
        known = known_profiles()
        if name not in known:
            guess = nearest(name, known)
            meant = f"; did you mean {guess}?" if guess else ""
            raise RecipeError(
                f"no profile '{name}'; there are {', '.join(known)}, or give a YAML file{meant}"
            )
        where = f"profile {name}"
        file = importlib.resources.files("reelmill.configs") / "profiles" / f"{name}.yaml"
        text = file.read_bytes()
    values = read_document(text, where)
    try:
        profile = _PROFILE.validate_python(values, context={"folder": folder})
    except ValidationError as error:
        raise RecipeError(one_line(f"{where}: {_first(error)}")) from None
    try:
        return profile.with_workers(workers) if workers else profile
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _options(kind: str) -> set[str]:
    """The names of all options of a kind of profile, those of its parts included."""
    names: set[str] = set()
    models: list[Any] = [_KINDS[kind]]
    while models:
        fields = models.pop().model_fields
        names |= set(fields)
        inner = [part for info in fields.values() for part in get_args(info.annotation)]
        models += [part for part in inner if isinstance(part, type) and issubclass(part, _Model)]
    return names


def _first(error: ValidationError) -> str:
    """The first thing that is wrong with a profile, in a line."""
    first = error.errors()[0]
    if first["type"] == "union_tag_invalid":
        told: Mapping[str, Any] = first["ctx"]
        return f"kind: there is no '{told['tag']}'; there are {told['expected_tags']}"
    if first["type"] == "union_tag_not_found":
        return "kind: a profile says where its workers are, such as 'kind: local'"
    if not first["loc"]:
        return "a profile is a mapping that begins with 'kind: local' or another kind"
    # What follows the kind is the field.
    field = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        guess = nearest(str(first["loc"][-1]), _options(str(first["loc"][0])))
        message = "there is no such option" + (f"; did you mean {guess}?" if guess else "")
    return f"{field}: {message}" if field else message
