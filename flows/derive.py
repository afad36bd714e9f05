"""The flow that derives one dataset from a finished version, for the form in Prefect's UI."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, Field

from reelmill.flows.build import Profiled, Workers, build_recipe
from reelmill.flows.derivation import (
    Input,
    Name,
    derivation,
    refuse_misfit,
    stage_choices,
)
from reelmill.flows.drive import Build
from reelmill.flows.metrics import counted
from reelmill.flows.profile import load_profile
from reelmill.flows.served import served
from reelmill.store import Store
from reelmill.units import Share

Make: Any = stage_choices()


def _run_name() -> str:
    given = flow_run.parameters
    parents = (given["parent"], *given.get("others", ()))
    return f"{given['name']} from {', '.join(parents)}"


@flow(name="derive", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
async def derive_flow(
    parent: Input,
    name: Name,
    make: Make,
    store: Annotated[str, Field(min_length=1, examples=["/srv/films/store", "s3://films/store"])],
    others: tuple[Input, ...] = (),
    max_rejects: Annotated[Share, Field(json_schema_extra={"default": "50%"})] = Decimal("0.5"),
    max_holes: Annotated[Share, Field(json_schema_extra={"default": "0%"})] = Decimal(0),
    profile: Profiled = "local",
    workers: Workers = None,
) -> Build | State[Any]:
    """Derive one more dataset from a finished version: triplets from clips, flow from triplets.

    Args:
        parent: the version to start from: a dataset with a tag or a digest, such as clips@latest.
        name: what the new dataset is called: lower-case letters, digits, - and _.
        make: what is made of each sample: choose a stage; what is left empty stays unset.
        store: where the version lies and the new dataset goes: a folder or s3://bucket/prefix.
        others: further versions, for a stage that reads several datasets, each with its role:
            flow=flows@latest.
        max_rejects: with a larger share of samples rejected than this, no version is committed.
        max_holes: with a larger share of shards that could not be made, no version is committed.
        profile: where the workers are: local, gpu, address, slurm, kubernetes, or the path of a
            YAML file.
        workers: worker processes of a local cluster, instead of one per core.
    """
    asked: BaseModel = make
    values = asked.model_dump(mode="json", exclude_unset=True, by_alias=True)
    stage = values.pop("stage", None) or asked.model_dump()["stage"]
    with served(), counted():
        where = load_profile(profile, workers)
        recipe = derivation(
            store,
            (parent, *others),
            name,
            stage,
            values,
            max_rejects=max_rejects,
            max_holes=max_holes,
        )
        opened = await asyncio.to_thread(Store.open, recipe.store)
        await asyncio.to_thread(refuse_misfit, recipe, opened)
        return await build_recipe(recipe, where)
