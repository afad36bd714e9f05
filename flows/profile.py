"""Execution profiles: where the workers are. They change no recipe and no digest."""

from __future__ import annotations

import importlib.resources
import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelmill.errors import RecipeError, ReelmillError
from reelmill.units import Bytes, nearest

if TYPE_CHECKING:
    from distributed import Client

ALLOWED_FAILURES = 2
"""Workers that may die under one shard before it is given up as the cause."""

CONNECT_SECONDS = 10
WORKER_SECONDS = 60


class Profile(BaseModel):
    """Where the workers are and how many shards are in flight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "address"]
    address: str | None = Field(None, description="of the scheduler, for kind 'address'")
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="worker processes, for kind 'local'; one per core if not set"
    )
    memory: Bytes | None = Field(None, description="limit of each local worker")
    window: Annotated[int, Field(ge=1)] | None = Field(
        None, description="shards in flight; twice the workers' threads if not set"
    )
    dashboard: str = Field("127.0.0.1:0", description="where a local cluster's dashboard listens")


def known_profiles() -> list[str]:
    """The names of the profiles that come with Reelmill."""
    folder = importlib.resources.files("reelmill.configs") / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name[0] != "_")


def load_profile(name: str, workers: int | None = None) -> Profile:
    """The profile of that name, or in the YAML file of that path.

    Raises:
        RecipeError: there is none, or the file is not a profile.
    """
    if name.endswith((".yaml", ".yml")):
        where = name
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{name}: {error.strerror}") from None
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
        text = file.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(os.path.expandvars(text))
        profile = Profile.model_validate(values)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{where}: {field}: {first['msg']}") from None
    if profile.kind == "address" and (not profile.address or "$" in profile.address):
        unset = (profile.address or "address").strip("${}")
        raise RecipeError(f"{where}: set {unset} to the scheduler's address")
    if workers and profile.kind != "local":
        raise RecipeError(f"{where}: --workers is for local workers; this cluster has its own")
    return profile.model_copy(update={"workers": workers}) if workers else profile


@asynccontextmanager
async def dask_client(profile: Profile, limit: int | None = None) -> AsyncIterator[Client]:
    """An asynchronous Dask client for a profile; a local cluster lives as long as the body.

    Args:
        limit: start no more local workers than this, however many cores there are.

    Raises:
        ReelmillError: the scheduler does not answer.
    """
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set(
        {
            "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
            "distributed.admin.tick.limit": "30s",
            "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
        }
    ):
        if profile.kind == "local":
            count = profile.workers or min(os.cpu_count() or 1, limit or 1_000_000)
            async with (
                LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    memory_limit=profile.memory or "auto",
                    host="127.0.0.1",
                    dashboard_address=profile.dashboard,
                    silence_logs=logging.CRITICAL,
                    asynchronous=True,
                ) as cluster,
                Client(cluster, asynchronous=True) as client,
            ):
                yield client
        else:
            assert profile.address is not None
            try:
                client = await Client(profile.address, asynchronous=True, timeout=CONNECT_SECONDS)
            except (OSError, ValueError) as error:
                raise ReelmillError(
                    f"no Dask scheduler answers at {profile.address}: {error}"
                ) from error
            try:
                yield client
            finally:
                await client.close()


async def check_resources(client: Client, wanted: Iterable[tuple[str, Mapping[str, float]]]) -> int:
    """Threads of all workers, after a check that each stage's resources are to be had.

    Dask lets a task whose resources no worker has wait for ever without a word.

    Raises:
        ReelmillError: there is no worker, or none has what a stage needs.
    """
    try:
        await client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        raise ReelmillError(
            f"the Dask scheduler has had no worker for {WORKER_SECONDS} seconds; start some"
        ) from None
    workers = (await client.scheduler.identity(n_workers=-1))["workers"].values()
    for label, resources in wanted:
        if not any(
            all(worker["resources"].get(name, 0) >= count for name, count in resources.items())
            for worker in workers
        ):
            needs = ", ".join(f"{name}={count:g}" for name, count in resources.items())
            raise ReelmillError(
                f"{label} needs a worker with {needs}, and none has it; "
                f"start one with 'dask worker --resources \"{needs}\"'"
            )
    return sum(worker["nthreads"] for worker in workers)
