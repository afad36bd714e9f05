"""The commands a person types, as they print and exit."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

import reelmill
from tests.runs.project import COMMAND, Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  videos: {stage: download, from: urls, allow_files: true}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, preset: ultrafast}
  shuffled: {stage: shuffle, from: clips, samples_per_shard: 3}
  triplets: {stage: frames, from: shuffled, max_side: 160, max_samples: 2}
  flow: {stage: flow, from: triplets, preset: ultrafast}
"""

NAMES = ("videos", "clips", "shuffled", "triplets", "flow")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, prefect_url: str, demo_media: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("built"), prefect_url)
    project.write(RECIPE, [f"file://{demo_media}/{name}.mp4" for name in ("dunes", "pond")])
    project.build_here()
    return project


def text(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_names_every_command_with_a_line_of_its_own(project: Project) -> None:
    shown = text(project.run("--help"))
    for command in [
        "init",
        "plan",
        "build",
        "demo",
        "ls",
        "show",
        "verify",
        "preview",
        "scenes",
        "urls",
        "view",
        "tag",
    ]:
        assert re.search(rf"{command} +[A-Z]", shown), command


def test_the_starter_recipe_can_be_planned_as_it_is(project: Project) -> None:
    assert "reelmill build" in text(project.run("init", "new"))
    plan = json.loads(text(project.call("plan", "new/recipe.yaml", "--json")))
    assert [one["dataset"] for one in plan] == list(NAMES)
    assert plan[0]["reasons"] == {"never built": 1}
    assert not (project.folder / "new" / "store").exists(), "a plan makes nothing"
    again = project.call("init", "new")
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_building_again_says_so_and_starts_nothing(built: Project) -> None:
    started = time.monotonic()
    shown = text(built.run("build", "recipe.yaml"))
    assert re.search(r"All \d+ shards exist; nothing was made\.", shown)
    assert time.monotonic() - started < 60
    for name in NAMES:
        assert re.search(rf"{name}@[0-9a-f]{{12}}", shown)


def test_ls_and_show_print_versions_tags_and_lineage(built: Project) -> None:
    listed = json.loads(text(built.run("ls", "--json")))
    assert {one["dataset"] for one in listed} == {*NAMES, "urls"}
    clips = next(one for one in listed if one["dataset"] == "clips")
    assert "clips@" in text(built.call("ls", "clips"))
    assert text(built.call("tag", "clips", "v1")).startswith("clips@v1 is clips@")
    shown = text(built.run("show", f"clips@{clips['version'][:8]}"))
    assert clips["version"] in shown
    assert re.search(r"from +videos@[0-9a-f]{12}", shown)
    assert (
        json.loads(text(built.call("show", "clips@v1", "--json")))["ref"]["version"]
        == (clips["version"])
    )


def test_unknown_names_are_answered_with_what_there_is(built: Project) -> None:
    for arguments, expected in {
        ("show", "clip"): "there are: clips, flow",
        ("show", "clips@v9"): "'reelmill ls clips' lists its versions",
        ("build", "recipe.yaml", "--only", "clps"): "clips",
        ("build", "recipe.yaml", "--profile", "locl"): "did you mean local?",
        ("build", "nowhere.yaml"): "nowhere.yaml: cannot be read",
        ("ls", "--store", "nowhere"): "there is no store at",
    }.items():
        done = built.call(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert expected in done.stderr


def test_only_builds_what_a_dataset_needs(project: Project, demo_media: Path) -> None:
    project.write(RECIPE, [f"file://{demo_media}/dunes.mp4"])
    versions = project.build("--only", "clips", "--workers", "1", "--set", "clips.seconds=1s")
    assert set(versions) == {"videos", "clips"}


def test_verify_finds_a_flipped_bit_and_names_the_sample(
    project: Project, demo_media: Path
) -> None:
    project.write(RECIPE, [f"file://{demo_media}/dunes.mp4"])
    project.build_here()
    assert "all bytes are right" in text(project.call("verify", "clips"))
    tar = Path(text(project.call("urls", "clips")).split()[0])
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(data)
    done = project.run("verify", "clips")
    assert done.returncode == 1
    assert "does not match its checksum" in done.stdout
    assert "does not match its digest" in done.stdout
    assert "error: 1 of 1 shards of clips@" in done.stderr


def test_previews_are_pictures(built: Project) -> None:
    for name in ("clips", "triplets", "flow"):
        path = Path(text(built.call("preview", name, "-o", f"{name}.png", "-n", "4")).strip())
        with Image.open(built.folder / path) as picture:
            assert picture.size[0] >= 800
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000
    done = built.call("preview", "urls", "-o", "urls.png")
    assert done.returncode == 1
    assert "holds no video, picture or flow" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_plain_webdataset_reads_every_dataset_by_its_urls(built: Project, name: str) -> None:
    urls = json.loads(text(built.call("urls", name, "--json")))
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    version = reelmill.open_version(str(built.folder / "store"), name)
    expected = {sample.key: set(sample.fields) for sample in version.samples()}
    found = {s["__key__"]: {field for field in s if not field.startswith("__")} for s in samples}
    assert found == expected
    if name == "flow":
        assert {"000000.image.jpg", "000000.flow.png", "000002.image.jpg", "json"} <= set(
            samples[0]
        )


def test_a_view_opens_by_one_brace_pattern_and_cannot_harm_the_store(
    built: Project, tmp_path: Path
) -> None:
    shown = text(built.call("view", "clips", str(tmp_path / "view")))
    pattern = shown.split()[0]
    assert pattern.endswith("{00000..00001}.tar")
    assert len(list(wds.WebDataset(pattern, shardshuffle=False))) > 3
    tar = tmp_path / "view" / "00000.tar"
    assert tar.stat().st_mode & 0o222 == 0
    if os.geteuid() == 0:
        tar.write_bytes(b"scribbled over")
    assert "all bytes are right" in text(built.call("verify", "clips"))
    again = built.call("view", "clips", str(tmp_path / "view"))
    assert again.returncode == 1
    assert "is not empty" in again.stderr


def test_python_opens_a_store_reads_a_version_and_its_samples(built: Project) -> None:
    store = reelmill.open_store(str(built.folder / "store"))
    flow = reelmill.open_version(store, "flow@latest")
    sample = next(flow.samples(fields=["json", "000000.flow.png"]))
    assert set(sample.fields) == {"json", "000000.flow.png"}
    about = json.loads(sample.fields["json"])
    assert about["source"]["url"].startswith("file://"), "lineage from a URL to a flow field"
    assert sample.key == about["key"]


def test_a_recipe_object_is_built_in_python(built: Project) -> None:
    code = (
        "import reelmill\n"
        "from reelmill.tasks import Stages\n"
        "from reelmill.tasks.ingest import Source\n"
        "recipe = reelmill.Recipe.build(store='s', sources={'urls': {'path': 'u.csv'}},\n"
        "    datasets={'videos': {'stage': 'download', 'from': 'urls', 'timeout': '5s'}},\n"
        "    stages=Stages(), source_model=Source)\n"
        "print(recipe.order(), recipe.datasets['videos'].params.timeout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['videos'] 5\n", done.stderr


def test_a_pipe_that_closes_early_is_no_error(built: Project) -> None:
    process = built.start("urls", "clips")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_the_embedded_server_listens_on_loopback_alone_and_is_gone_afterwards(
    make_project: Callable[[], Project], demo_media: Path, tmp_path: Path
) -> None:
    project = make_project()
    project.write(
        RECIPE.replace("stage: split", "stage: trouble, kind: slow, seconds: 3")
        .replace(", method: fixed, seconds: 2s, preset: ultrafast", "")
        .split("  shuffled")[0],
        [f"file://{demo_media}/dunes.mp4"],
    )
    environ = {**project.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    del environ["PREFECT_API_URL"]
    process = subprocess.Popen(
        [sys.executable, COMMAND, "build", "recipe.yaml", "--workers", "1"],
        cwd=project.folder,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "starting ...\n"
    address = process.stderr.readline().split("//")[1].strip()
    deadline = time.monotonic() + 60
    while not project.trace.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    listening = listeners(family(process.pid))
    assert listening, "nothing listens at all"
    assert {host for host, _ in listening} == {"127.0.0.1"}
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    with pytest.raises(OSError):
        http.client.HTTPConnection(address, timeout=2).request("GET", "/api/health")


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= family(int(child))
    return found


def listeners(pids: set[int]) -> set[tuple[str, int]]:
    """The (host, port) pairs on which some processes listen, over IPv4 and IPv6."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = row.split()
            if cells[3] == "0A" and cells[9] in sockets:
                host, port = cells[1].split(":")
                octets = [str(int(host[i : i + 2], 16)) for i in (6, 4, 2, 0)]
                found.add((".".join(octets) if table == "tcp" else host, int(port, 16)))
    return found
