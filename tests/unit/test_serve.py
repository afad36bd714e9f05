"""What `reelmill serve` refuses before it starts anything, and the deployments that it makes."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.responses import DeploymentResponse
from rich.console import Console

from reelmill.errors import ReelmillError
from reelmill.flows.serve import Served, _find, _owner, _schedule, deployments, run_serve

RECIPE = """
store: {store}
sources:
  urls: {{path: urls.csv}}
datasets:
  videos: {{stage: download, from: urls}}
"""


def write(folder: Path, name: str, store: str = "./store") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(RECIPE.format(store=store))
    return str(path)


def start(*recipes: str, **changed: Any) -> None:
    values: dict[str, Any] = {
        "store": None,
        "every": None,
        "cron": None,
        "profile": "local",
        "workers": None,
        "metrics": None,
        "port": 4200,
        "limit": 1,
        "console": Console(quiet=True),
    }
    run_serve(recipes, **{**values, **changed})


def test_names_are_those_of_files_and_of_the_ends_of_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = write(tmp_path / "a b", "films.yaml")
    talks = write(tmp_path / "a b", "talks.yaml", "s3://bucket/some/store")
    monkeypatch.chdir(tmp_path)
    recipes, stores = _find(["a b/films.yaml", talks], "other/store")
    assert recipes == {"films": films, "talks": talks}
    assert stores == {
        "other-store": str(tmp_path / "other" / "store"),
        "a-b-store": str(tmp_path / "a b" / "store"),
        "some-store": "s3://bucket/some/store",
    }
    # One deployment for a store that several recipes write to.
    assert len(_find([films, write(tmp_path / "a b", "more.yaml")], None)[1]) == 1


def test_what_would_have_one_name_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", "films.yaml"), write(tmp_path / "two", "films.yaml")
    with pytest.raises(ReelmillError, match=f"{two} and {one} would both be served as 'films'"):
        start(one, two)
    near, far = (
        write(tmp_path / "x", "near.yaml"),
        write(tmp_path / "x", "far.yaml", "s3://x/store"),
    )
    with pytest.raises(ReelmillError, match="would both be served as 'x-store'"):
        start(near, far)


def test_mistakes_are_said_before_anything_starts(tmp_path: Path) -> None:
    recipe = write(tmp_path, "films.yaml")
    with pytest.raises(ReelmillError, match=r"absent\.yaml: cannot be read"):
        start(str(tmp_path / "absent.yaml"))
    with pytest.raises(ReelmillError, match="nothing to serve: give a recipe, or a store"):
        start()
    with pytest.raises(ReelmillError, match=r"no profile 'locla'; .*did you mean local"):
        start(recipe, profile="locla")
    with pytest.raises(ReelmillError, match="give --every or --cron, not both"):
        start(recipe, every=timedelta(days=1), cron="0 3 * * *")
    with pytest.raises(ReelmillError, match=r"--cron '0 25 \* \* \*': "):
        start(recipe, cron="0 25 * * *")
    with pytest.raises(ReelmillError, match="--every 9s: say 10s or more"):
        start(recipe, every=timedelta(seconds=9))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ReelmillError, match=f"port {port} of this machine is taken: .*--port"):
            start(recipe, port=port)
        with pytest.raises(
            ReelmillError, match=f"metrics cannot be had at {port}: Address already"
        ):
            start(recipe, metrics=str(port))


def test_deployments_run_the_installed_package_one_at_a_time() -> None:
    served = Served(
        {"films": "/srv/films.yaml"},
        {"srv": "/srv/store"},
        "local",
        2,
        _schedule(None, "0 3 * * *"),
        1,
    )
    made = {one.full_name: one for one in deployments(served)}
    assert made.keys() == {"build/films", "derive/srv", "maintain/srv"}
    for name, one in made.items():
        flow = name.partition("/")[0]
        assert one.entrypoint == f"reelmill.flows.{flow}.{flow}_flow"
        assert one.concurrency_limit == 1
        assert one.tags == ["reelmill"]
        assert one.parameters["workers"] == 2
    strategies = {name: one.concurrency_options.collision_strategy for name, one in made.items()}
    assert strategies == {
        "build/films": "CANCEL_NEW",
        "derive/srv": "ENQUEUE",
        "maintain/srv": "CANCEL_NEW",
    }
    assert made["derive/srv"].parameters["store"] == "/srv/store"
    (schedule,) = made["build/films"].schedules
    assert json.loads(schedule.schedule.model_dump_json())["cron"] == "0 3 * * *"
    # Where none is asked for, those that somebody made in the UI stay.
    assert "schedules" not in made["maintain/srv"].model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("pool", "there", "owner"),
    [
        (None, {"recipe": "/srv/films.yaml", "workers": 4}, None),
        (None, {"recipe": "/home/films.yaml"}, "/home/films.yaml"),
        ("k8s", {"recipe": "/srv/films.yaml"}, "the work pool k8s"),
    ],
)
def test_a_deployment_of_somebody_else_is_known(
    pool: str | None, there: dict[str, Any], owner: str | None
) -> None:
    found = DeploymentResponse(name="films", flow_id=uuid4(), work_pool_name=pool, parameters=there)
    assert _owner(found, {"recipe": "/srv/films.yaml", "profile": "local"}) == owner
