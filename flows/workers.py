"""Where Dask workers come from: a way to find or to start them for each kind of profile."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reelmill.errors import MissingDependencyError, ReelmillError, told
from reelmill.flows.profile import (
    Adapt,
    AddressProfile,
    GpuPods,
    GpuProfile,
    KubernetesProfile,
    LocalProfile,
    Profile,
    SlurmProfile,
)

if TYPE_CHECKING:
    from distributed import Client, Security

CONNECT_SECONDS = 10
GRACE_SECONDS = 5.0
IDLE_SECONDS = 60
LOST_JOB_SECONDS = 60.0
"""A job whose workers were there, and have been away for so long, is asked for again."""

GPU, CPU = "GPU", "CPU"
"""Dask resources of workers: a GPU each; and a thread each for work that needs no GPU."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """A worker as the scheduler knows it, or one that a profile may start."""

    threads: int
    memory: int
    resources: Mapping[str, float]
    address: str = ""

    def has(self, resources: Mapping[str, float]) -> bool:
        return all(self.resources.get(name, 0) >= count for name, count in resources.items())

    @property
    def share(self) -> float:
        """Bytes for each thread."""
        return self.memory / self.threads if self.memory else float("inf")


def refuse_unreachable(profile: Profile) -> None:
    """Raise ``ReelmillError`` if nobody listens where a profile says that the scheduler is.

    It takes a moment, where a client of Dask tries for long, and a Prefect server may have been
    started before.
    """
    if not isinstance(profile, AddressProfile):
        return
    found = re.fullmatch(r"(?:tcp|tls)://\[?([^/\[\]]+)\]?:(\d+)/?", profile.address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ReelmillError(no_scheduler(profile.address, error)) from None


def no_scheduler(address: str, error: BaseException) -> str:
    """What to say of a scheduler that cannot be reached, and what to do."""
    why = told(error) if not isinstance(error, OSError) else error.strerror or told(error)
    return f"no Dask scheduler answers at {address}: {why}; start it, or mend the address"


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Found:
    """A cluster, for as long as it lasts.

    Attributes:
        connect: makes a new client, within so many seconds; ``OSError`` if nobody answers.
        promised: workers that there may be once there is work for them.
        on_demand: no worker comes before there is work.
        grace: seconds to wait for fitting workers, which somebody may be starting right now.
        tend: called every few seconds.
    """

    connect: Callable[[float], Awaitable[Client]]
    promised: tuple[Worker, ...] = ()
    on_demand: bool = False
    grace: float = 0.0
    tend: Callable[[], Awaitable[None]] = _nothing


def find_workers(
    profile: Profile, limit: int | None
) -> contextlib.AbstractAsyncContextManager[Found]:
    """The cluster of a profile.

    Args:
        limit: start no more workers of a kind on this machine than this.

    Raises:
        ReelmillError: there is none, or it cannot be started.
    """
    match profile:
        case LocalProfile():
            return _on_this_machine(profile, limit, gpus=())
        case GpuProfile():
            return _on_this_machine(profile, limit, gpus=_gpus(profile.gpus)[:limit])
        case AddressProfile():
            return _at_address(profile)
        case SlurmProfile():
            return _slurm(profile)
        case KubernetesProfile():
            return _kubernetes(profile)


async def _client(target: Any, seconds: float, **more: Any) -> Client:
    from distributed import Client

    client = Client(
        target, asynchronous=True, timeout=seconds, name="reelmill", set_as_default=False, **more
    )
    try:
        return await client
    except BaseException:
        with contextlib.suppress(Exception):
            await client.close(timeout=seconds)
        raise


@asynccontextmanager
async def _on_this_machine(
    profile: LocalProfile | GpuProfile, limit: int | None, gpus: Sequence[str]
) -> AsyncIterator[Found]:
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.worker_memory import parse_memory_limit

    cores = os.cpu_count() or 1
    count = profile.workers or min(cores, limit or cores)
    share = parse_memory_limit("auto", 1, count + len(gpus), logger=logger)
    common = {
        "host": "127.0.0.1",
        "nthreads": 1,
        "memory_limit": profile.memory or share,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }

    def worker(resource: str, **more: Any) -> dict[str, Any]:
        return {"cls": Nanny, "options": {**common, "resources": {resource: 1}, **more}}

    workers = {f"cpu-{number}": worker(CPU) for number in range(count)}
    for gpu in gpus:
        workers[f"gpu-{gpu}"] = worker(GPU, env={"CUDA_VISIBLE_DEVICES": gpu})
    options = {
        "host": "127.0.0.1",
        "port": 0,
        "dashboard": True,
        "dashboard_address": profile.dashboard,
    }
    cluster = SpecCluster(
        workers=workers,
        scheduler={"cls": Scheduler, "options": options},
        name="reelmill",
        silence_logs=logging.CRITICAL,
        asynchronous=True,
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(cluster)
        except (RuntimeError, OSError) as error:
            raise ReelmillError(
                f"profile {profile.kind}: the workers on this machine cannot be started: "
                f"{told(error)}"
            ) from error

        async def tend() -> None:
            # Dask gives a worker up that takes too long to start again after it died.
            if len(cluster.workers) < len(workers):
                logger.warning("a worker did not come back, another one is started")
                cluster.scale(len(workers))

        yield Found(lambda seconds: _client(cluster, seconds), tend=tend)


def _gpus(numbers: Sequence[int] | None) -> list[str]:
    """What to set ``CUDA_VISIBLE_DEVICES`` to for each GPU."""
    if numbers is not None:
        return [str(number) for number in numbers]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
        why = "CUDA_VISIBLE_DEVICES hides them all"
    else:
        found, why = _installed_gpus()
    if not found:
        raise ReelmillError(
            f"profile gpu: there is no GPU here ({why}); use another profile, or name them in one "
            "of your own: 'gpus: [0]'"
        )
    return found


def _installed_gpus() -> tuple[list[str], str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - wherever the driver has put it
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return [], "nvidia-smi cannot be run"
    return re.findall(r"^GPU (\d+):", done.stdout, re.MULTILINE), "nvidia-smi lists none"


@asynccontextmanager
async def _at_address(profile: AddressProfile) -> AsyncIterator[Found]:
    from distributed import Security

    security = None
    if profile.tls:
        security = Security(
            require_encryption=True,
            tls_ca_file=str(profile.tls.ca),
            tls_client_cert=str(profile.tls.cert),
            tls_client_key=str(profile.tls.key),
        )
    yield Found(
        connect=lambda seconds: _client(profile.address, seconds, security=security),
        grace=GRACE_SECONDS,
    )


@asynccontextmanager
async def _slurm(profile: SlurmProfile) -> AsyncIterator[Found]:
    jobqueue = _optional("dask_jobqueue", "slurm")
    bounds = profile.adapt
    jobs = bounds.max if bounds else profile.workers or 1
    async with contextlib.AsyncExitStack() as stack:
        try:
            security = stack.enter_context(_certificates(profile.shared or Path.cwd()))
            options = _slurm_options(profile)
            made = jobqueue.SLURMCluster(asynchronous=True, security=security, **options)
            cluster = await stack.enter_async_context(made)
        except (OSError, ValueError, RuntimeError) as error:
            raise ReelmillError(f"profile slurm: {told(error)}") from error
        workers = _slurm_workers(profile)
        if bounds:
            _adapt_by_job(cluster, bounds, len(workers))
        else:
            cluster.scale(jobs=jobs)
        gone: dict[str, float] = {}

        async def tend() -> None:
            await _drop_lost_jobs(cluster, gone)
            if not bounds:
                cluster.scale(jobs=jobs)

        yield Found(
            connect=lambda seconds: _client(cluster, seconds),
            promised=workers * jobs,
            on_demand=bounds is not None and not bounds.min,
            tend=tend,
        )


@contextlib.contextmanager
def _certificates(folder: Path) -> Iterator[Security]:
    """Certificates for one run, in a folder that jobs see.

    Who reaches an open scheduler can run what he likes in its workers, and the network of a Slurm
    cluster is everybody's.
    """
    from distributed import Security

    made = Security.temporary()
    with tempfile.TemporaryDirectory(prefix=".reelmill-", dir=folder) as home:
        cert, key = Path(home, "cert.pem"), Path(home, "key.pem")
        cert.write_text(made.tls_worker_cert)
        key.write_text(made.tls_worker_key)
        files = {f"tls_{role}_cert": str(cert) for role in ("client", "scheduler", "worker")}
        files |= {f"tls_{role}_key": str(key) for role in ("client", "scheduler", "worker")}
        yield Security(require_encryption=True, tls_ca_file=str(cert), **files)


def _slurm_options(profile: SlurmProfile) -> dict[str, Any]:
    """What dask-jobqueue is to be told: a process for each core, or one with the GPU."""
    workers = _slurm_workers(profile)
    resources = " ".join(f"{name}={count:g}" for name, count in workers[0].resources.items())
    # Workers leave before Slurm kills them, not all at once, and not with work in their hands.
    lifetime = int(profile.walltime * Decimal("0.9"))
    return {
        "queue": profile.queue,
        "account": profile.account,
        "cores": len(workers),
        "processes": len(workers),
        "memory": f"{profile.memory}B",
        "job_cpu": profile.cores,
        "walltime": _hours(profile.walltime),
        "worker_extra_args": [
            *("--resources", f"'{resources}'"),
            *("--dashboard-address", "127.0.0.1:0"),
            *("--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{lifetime // 20}s"),
        ],
        "job_extra_directives": [
            *([f"--gpus-per-node={profile.gpus}"] if profile.gpus else []),
            *profile.directives,
        ],
        "job_script_prologue": profile.prologue,
        "job_name": "reelmill",
        "interface": profile.interface,
        "log_directory": str(profile.logs) if profile.logs else None,
        "scheduler_options": {"dashboard_address": profile.dashboard},
        "silence_logs": logging.CRITICAL,
    }


def _slurm_workers(profile: SlurmProfile) -> tuple[Worker, ...]:
    """The workers of a job."""
    if profile.gpus:
        return (Worker(1, profile.memory, {GPU: 1}),)
    return (Worker(1, profile.memory // profile.cores, {CPU: 1}),) * profile.cores


def _adapt_by_job(cluster: Any, bounds: Adapt, size: int) -> None:
    """Let Dask ask for as many jobs as there is work for.

    It counts workers, and would end a job to be rid of one of its workers: so it is to want whole
    jobs, and to end those whose workers are all idle.
    """
    from distributed.deploy.adaptive import Adaptive

    class ByJob(Adaptive):  # type: ignore[misc]
        async def safe_target(self) -> int:
            wanted: int = await super().safe_target()
            return -(-wanted // size) * size

    def job(worker: Any) -> str:
        return str(worker.name).rpartition("-")[0] if size > 1 else str(worker.name)

    cluster.adapt(
        Adaptive=ByJob,
        minimum_jobs=bounds.min,
        maximum_jobs=bounds.max,
        worker_key=job,
        wait_count=IDLE_SECONDS,
    )


def _hours(seconds: Decimal) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


async def _drop_lost_jobs(cluster: Any, gone: dict[str, float]) -> None:
    """Drop jobs whose workers went away for good, which dask-jobqueue keeps counting as there.

    Args:
        gone: when the workers of each job were last there.
    """
    names = {str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()}
    now = time.monotonic()
    for job in list(cluster.workers):
        if any(name == job or name.startswith(f"{job}-") for name in names):
            gone[job] = now
        elif job in gone and now - gone[job] > LOST_JOB_SECONDS:
            del gone[job]
            cluster.worker_spec.pop(job, None)
            await cluster.workers.pop(job).close()


@asynccontextmanager
async def _kubernetes(profile: KubernetesProfile) -> AsyncIterator[Found]:
    operator = _optional("dask_kubernetes.operator", "kubernetes")
    from tornado.ioloop import IOLoop

    name = f"reelmill-{secrets.token_hex(4)}"
    bounds = profile.adapt
    cluster = operator.KubeCluster(
        custom_cluster_spec=kubernetes_cluster(profile, name),
        namespace=profile.namespace,
        resource_timeout=int(profile.start_within),
        shutdown_on_close=True,
        quiet=True,
        asynchronous=True,
        loop=IOLoop.current(),
    )
    try:
        await cluster
        if profile.gpu:
            await cluster.add_worker_group("gpu", custom_spec=_gpu_pods(profile, profile.gpu))
        if bounds:
            await cluster.adapt(minimum=bounds.min, maximum=bounds.max)
    except Exception as error:
        with contextlib.suppress(Exception):
            await cluster.close(timeout=CONNECT_SECONDS)
        raise ReelmillError(
            f"profile kubernetes: {told(error)}; is the Dask operator installed, and may "
            "you create daskclusters?"
        ) from error
    async with cluster:
        pods = bounds.max if bounds else profile.workers or 1
        promised = [Worker(1, profile.memory, {CPU: 1})] * pods
        if profile.gpu:
            promised += [Worker(1, profile.gpu.memory, {GPU: 1})] * profile.gpu.workers
        yield Found(
            connect=lambda seconds: _client(cluster, seconds),
            promised=tuple(promised),
            on_demand=bounds is not None and not bounds.min and not profile.gpu,
        )


def kubernetes_cluster(profile: KubernetesProfile, name: str) -> dict[str, Any]:
    """The ``DaskCluster`` resource of a profile: the scheduler, and the pods without a GPU."""
    operator = _optional("dask_kubernetes.operator", "kubernetes")
    spec: dict[str, Any] = operator.make_cluster_spec(
        name=name, image=profile.image, resources={}, env={}
    )
    # The commands `dask-scheduler` and `dask-worker` are no more.
    [scheduler] = spec["spec"]["scheduler"]["spec"]["containers"]
    scheduler["args"] = ["dask", "scheduler", *scheduler["args"][1:]]
    count = profile.adapt.min if profile.adapt else profile.workers
    spec["spec"]["worker"] = _pods(
        profile,
        image=profile.image,
        count=count or 0,
        cores=profile.cores,
        memory=profile.memory,
        resource=CPU,
        node_selector=profile.node_selector,
    )
    return spec


def _gpu_pods(profile: KubernetesProfile, gpu: GpuPods) -> dict[str, Any]:
    """The worker group of the pods with a GPU."""
    worker = _pods(
        profile,
        image=gpu.image or profile.image,
        count=gpu.workers,
        cores=gpu.cores,
        memory=gpu.memory,
        resource=GPU,
        node_selector=gpu.node_selector,
    )
    pod = worker["spec"]
    pod["containers"][0]["resources"]["limits"][gpu.resource] = "1"
    pod["tolerations"] = [one.model_dump(exclude_none=True) for one in gpu.tolerations]
    return worker


def _pods(
    profile: KubernetesProfile,
    *,
    image: str,
    count: int,
    cores: int,
    memory: int,
    resource: str,
    node_selector: Mapping[str, str],
) -> dict[str, Any]:
    operator = _optional("dask_kubernetes.operator", "kubernetes")
    worker: dict[str, Any] = operator.make_worker_spec(
        image=image, n_workers=count, env=profile.env, worker_command=["dask", "worker"]
    )
    pod = worker["spec"]
    [container] = pod["containers"]
    container["args"] += ["--nthreads", "1", "--memory-limit", str(memory)]
    container["args"] += ["--resources", f"{resource}=1"]
    given = {"cpu": str(cores), "memory": str(memory)}
    container["resources"] = {"requests": given, "limits": dict(given)}
    container["envFrom"] = [{"secretRef": {"name": secret}} for secret in profile.secrets]
    pod["nodeSelector"] = dict(node_selector)
    return worker


def _optional(module: str, extra: str) -> Any:
    """A module of an optional package."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"profile {extra} needs a package that is not installed ({error.name}): "
            f"pip install 'reelmill[{extra}]'"
        ) from error
    finally:
        # dask-jobqueue takes Ctrl-C over when it is imported; a build has its own way to stop.
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
