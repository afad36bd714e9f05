"""The compose file's own commands on this machine: PostgreSQL, S3, Prefect, Dask and a build.

The programs are the ones that the images hold, except for PostgreSQL, which is the system's, and
the S3 store, for which moto stands in.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.compose import INFRA, Box, Service, box, load_services, read_settings
from tests.runs.project import Project

RECIPE = """
store: {store}
sources:
  urls: {{path: urls.csv, rows_per_shard: 1}}
datasets:
  videos: {{stage: download, from: urls, allow_files: true}}
  clips: {{stage: split, from: videos, method: fixed, seconds: 2s, preset: ultrafast}}
  shuffled: {{stage: shuffle, from: clips, samples_per_shard: 4}}
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")

RUN_SECONDS = 240.0

ROOT = os.geteuid() == 0


@pytest.fixture
def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders = [Path(found).resolve().parent] if found else sorted(debian)
    if not folders:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt install postgresql)")
    return folders[-1]


@pytest.fixture
def database(programs: Path) -> Iterator[Path]:
    """An empty folder of the user who may run PostgreSQL: it refuses root."""
    folder = Path(tempfile.mkdtemp(prefix="reelmill-postgres-"))
    if ROOT:
        shutil.chown(folder, "postgres", "postgres")
    yield folder
    shutil.rmtree(folder)


def _as_postgres() -> dict[str, object]:
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if ROOT else {}


def _use_system_postgres(service: Service, programs: Path, folder: Path, address: str) -> None:
    """Let the system's PostgreSQL do what the image does when it starts."""
    user, password = (service["environment"][f"POSTGRES_{name}"] for name in ("USER", "PASSWORD"))
    secret, data = folder / "password", folder / "data"
    secret.write_text(password)
    secret.chmod(0o644)
    make = [programs / "initdb", "--pgdata", data, "--username", user, "--pwfile", secret]
    subprocess.run(
        [*make, "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"],
        check=True,
        capture_output=True,
        cwd=folder,
        **_as_postgres(),
    )
    single = [programs / "postgres", "--single", "-D", data, "postgres"]
    subprocess.run(
        single,
        input=f"CREATE DATABASE {service['environment']['POSTGRES_DB']}\n".encode(),
        check=True,
        capture_output=True,
        cwd=folder,
        **_as_postgres(),
    )
    settings = (f"listen_addresses={address}", f"unix_socket_directories={folder}", "fsync=off")
    options = [word for setting in settings for word in ("-c", setting)]
    service["command"] = [str(programs / "postgres"), "-D", str(data), *options]
    test = service["healthcheck"]["test"]
    test[1:] = [str(programs / test[1]), *(f.replace("127.0.0.1", address) for f in test[2:])]


def _use_moto(service: Service, address: str) -> None:
    service["command"] = ["python", "-m", "moto.server", "--host", address, "--port", "8333"]
    asks = f"import socket; socket.create_connection(('{address}', 8333), 4)"
    service["healthcheck"]["test"] = ["CMD", "python", "-c", asks]


@pytest.fixture
def one_box(tmp_path: Path, programs: Path, database: Path) -> Iterator[Box]:
    services = load_services(read_settings(INFRA / "compose.env.example"))
    (tmp_path / "recipes").mkdir()
    with box(tmp_path, services, {"/recipes": str(tmp_path / "recipes"), "/scratch": "."}) as made:
        postgres, s3 = (made.addresses[name] for name in ("postgres", "s3"))
        _use_system_postgres(services["postgres"], programs, database, postgres)
        _use_moto(services["s3"], s3)
        yield made


async def _rows(made: Box, query: str) -> list[tuple[object, ...]]:
    import asyncpg

    environment = made.services["postgres"]["environment"]
    connection = await asyncpg.connect(
        host=made.addresses["postgres"],
        user=environment["POSTGRES_USER"],
        password=environment["POSTGRES_PASSWORD"],
        database=environment["POSTGRES_DB"],
    )
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def _wait_for_states(made: Box, flow_runs: int, task_runs: int) -> None:
    """Until Prefect's database says that so many runs have been completed, and of no others."""
    wanted = [("Completed", flow_runs), ("Completed", task_runs)]
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        found = [
            row
            for table in ("flow_run", "task_run")
            for row in asyncio.run(
                _rows(
                    made,
                    f"SELECT state_name, count(*) FROM {table} "
                    "WHERE state_name <> 'Scheduled' GROUP BY 1",
                )
            )
        ]
        if found == wanted:
            return
        bad = {"Failed", "Crashed", "Cancelled"} & {state for state, _ in found}
        assert not bad, made.log("serve")
        assert time.monotonic() < deadline, f"{found}\n{made.log('serve')}"
        time.sleep(0.5)


def _run(made: Box, *command: str) -> str:
    """What a command prints that is run as `docker compose run --rm build COMMAND`."""
    process = made.start("build", command)
    assert process.wait(timeout=RUN_SECONDS) == 0, made.log("build")
    return made.log("build")


def _versions(made: Box) -> dict[str, str]:
    listed = json.loads(_run(made, "reelmill", "ls", "--json"))
    return {one["dataset"]: one["version"] for one in listed if one["dataset"] != "urls"}


@pytest.mark.timeout(600)
def test_what_the_compose_file_starts_builds_by_hand_and_by_schedule(
    one_box: Box, tmp_path: Path, demo_media: Path
) -> None:
    here = Project(tmp_path / "here", "")
    there = Project(tmp_path / "recipes", "")
    here.folder.mkdir()

    def write(*names: str) -> None:
        table = [f"file://{demo_media}/{name}.mp4" for name in names]
        here.write(RECIPE.format(store="./store"), table)
        there.write(RECIPE.format(store="${REELMILL_STORE}"), table)

    def build_here() -> tuple[dict[str, str], int]:
        build = here.build_here()
        return dict(build.versions), sum(progress.made for progress in build.progress.values())

    plain = [name for name, one in one_box.services.items() if "profiles" not in one]
    plain.remove("serve")
    one_box.up(plain, {"postgres": _as_postgres()})
    prefect = f"http://{one_box.addresses['prefect']}:4200"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{prefect}/api/version", timeout=10)
    settings = urllib.request.urlopen(f"{prefect}/ui-settings", timeout=10).read()
    assert json.loads(settings)["api_url"] == "http://127.0.0.1:4200/api"

    write("dunes", "pond")
    expected, first = build_here()
    _run(one_box)
    assert _versions(one_box) == expected
    _wait_for_states(one_box, 1, first)

    write("dunes", "pond", "court")
    expected, second = build_here()
    one_box.up(["serve"], {})
    _wait_for_states(one_box, 2, first + second)
    assert _versions(one_box) == expected
    assert "nothing was made" in _run(one_box)

    for name, addresses in one_box.listening().items():
        assert one_box.addresses[name] in addresses
        assert addresses <= {one_box.addresses[name], "127.0.0.1"}
