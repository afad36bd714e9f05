"""Bad input gets one clear line and a code that is not 0, or is a reject with its reason."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from reelmill.dataset import open_version
from reelmill.flows.drive import BuildFailedError
from tests.runs.project import Project

RECIPE = """
store: {store}
sources:
  urls: {{path: {table}}}
datasets:
  videos: {{stage: download, from: urls, allow_files: true, max_rejects: {most}, attempts: 1}}
"""


def recipe(table: str = "urls.csv", *, store: str = "./store", most: str = "100%") -> str:
    return RECIPE.format(table=table, store=store, most=most)


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The error: the one line on standard error."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0].removeprefix("error: ")


def silent_video(path: Path) -> None:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_every_kind_of_bad_file_is_a_reject_with_its_reason(
    project: Project, demo_media: Path
) -> None:
    whole = (demo_media / "dunes.mp4").read_bytes()
    files = {
        "zero.mp4": b"",
        "page.mp4": b"<!doctype html><html><body>Not found</body></html>",
        "cut.mp4": whole[: len(whole) // 2],
        "noise.mp4": np.random.default_rng(1).bytes(50_000),
        "good.mp4": whole,
    }
    for name, data in files.items():
        (project.folder / name).write_bytes(data)
    silent_video(project.folder / "sound.mp4")
    names = [*files, "sound.mp4", "missing.mp4"]
    project.write(recipe(), [f"file://{project.folder}/{name}" for name in names])
    project.build_here()
    version = open_version(str(project.folder / "store"), "videos")
    reasons = {row["url"].rpartition("/")[2]: row["reason"] for row in version.rejects()}
    assert reasons == {
        "zero.mp4": "empty",
        "page.mp4": "not_video",
        "cut.mp4": "truncated",
        "noise.mp4": "not_video",
        "sound.mp4": "no_video_stream",
        "missing.mp4": "file_not_found",
    }
    assert all(row["message"] for row in version.rejects())
    assert version.totals.samples == 1


def test_dead_and_refused_addresses_are_rejects_with_their_reasons(
    project: Project, web: str
) -> None:
    rows = {
        f"{web}/gone.mp4": "private_address",
        "ftp://example.org/a.mp4": "bad_url",
        "not an address": "bad_url",
        "http://no-such-host.invalid/a.mp4": "dns",
        "http://169.254.169.254/latest/meta-data": "private_address",
    }
    project.write(recipe(), [*rows, f"file://{project.folder}/gone.mp4"])
    build = project.build_here()
    store = str(project.folder / "store")
    rejects = [*open_version(store, "urls").rejects(), *open_version(store, "videos").rejects()]
    found = {row["url"]: row["reason"] for row in rejects}
    assert {url: found[url] for url in rows} == rows
    assert build.progress["videos"].samples == 0


def test_duplicate_addresses_are_fetched_once(project: Project, demo_media: Path) -> None:
    url = f"file://{demo_media}/dunes.mp4"
    spellings = [url, f" {url} ", url.replace("file", "FILE"), url.replace("dunes", "%64unes")]
    project.write(recipe(), spellings)
    build = project.build_here()
    assert build.progress["videos"].samples == 1
    (row,) = next(open_version(str(project.folder / "store"), "urls").shards()).rows()
    assert row["duplicates"] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no rows"),
        ("url\n", "no rows"),
        ("link\nhttp://a.example/a.mp4\n", "url"),
        ("url\nnot an address\n", "no row can be used"),
    ],
)
def test_a_table_that_is_of_no_use_is_refused_in_one_line(
    project: Project, text: str, expected: str
) -> None:
    project.write(recipe(), text)
    problem = line(project.call("build", "recipe.yaml"))
    assert "urls.csv" in problem
    assert expected in problem
    assert not (project.folder / "store" / "refs").exists()


def test_a_missing_table_is_named(project: Project) -> None:
    project.write(recipe("nowhere.csv"), [])
    assert "nowhere.csv" in line(project.call("plan", "recipe.yaml"))


def test_a_recipe_with_a_slip_is_refused_with_file_line_and_the_nearest_name(
    project: Project,
) -> None:
    project.write(recipe().replace("attempts", "atempts"), ["http://a.example/a.mp4"])
    problem = line(project.run("build", "recipe.yaml"))
    assert problem.startswith("recipe.yaml:6: videos.atempts: ")
    assert problem.endswith("did you mean attempts?")


def test_too_many_rejects_fail_the_build_and_commit_nothing(
    project: Project, demo_media: Path
) -> None:
    urls = [f"file://{demo_media}/{name}" for name in ("dunes.mp4", "no.mp4", "nor.mp4")]
    project.write(recipe(most="50%"), urls)
    problem = line(project.run("build", "recipe.yaml"))
    assert "videos: 2 of 3 samples were rejected (file_not_found 2)" in problem
    assert not (project.folder / "store" / "refs" / "videos").exists()
    assert "videos: 2 of 3 samples" in line(project.call("build", "recipe.yaml")), "and again"


def test_failures_that_may_pass_are_tried_again_by_the_next_build(
    project: Project, demo_media: Path
) -> None:
    url = "http://127.0.0.1:9/dunes.mp4"
    text = recipe(most="0%").replace("allow_files: true", "allow_private: true")
    project.write(text, [url])
    assert "connect 1" in line(project.run("build", "recipe.yaml"))
    project.executed()
    assert "connect 1" in line(project.run("build", "recipe.yaml"))
    assert project.executed() == {"download/videos/00000": 1}


def test_a_store_that_cannot_be_written_is_named(project: Project) -> None:
    (project.folder / "occupied").write_text("a file")
    project.write(recipe(store="./occupied"), ["http://a.example/a.mp4"])
    assert "occupied" in line(project.call("build", "recipe.yaml"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_half_made(
    project: Project, demo_media: Path, small_disk: Path
) -> None:
    urls = [f"file://{path}" for path in sorted(demo_media.glob("*.mp4"))]
    project.write(recipe(store=str(small_disk / "store")), urls)
    problem = line(project.run("build", "recipe.yaml", "--workers", "1"))
    assert "download/videos/00000" in problem
    assert "No space left" in problem or "disk is full" in problem
    assert list((small_disk / "store" / "blobs").rglob("*.tar")) == []
    assert list((small_disk / "store" / "tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert project.build("--workers", "1")["videos"]


def test_a_resource_that_no_worker_has_is_said_at_once(project: Project, demo_media: Path) -> None:
    text = recipe() + "  t: {stage: needy, from: videos}\n"
    project.write(text, [f"file://{demo_media}/dunes.mp4"])
    problem = line(project.run("build", "recipe.yaml", "--workers", "1"))
    assert problem.startswith("needy (t) needs a worker with MOON=1, and none has it")
    assert project.executed() == {}


def test_a_card_that_no_worker_has_is_said_at_once(project: Project, demo_media: Path) -> None:
    text = recipe() + "  t: {stage: split, from: videos, device: cuda}\n"
    project.write(text, [f"file://{demo_media}/dunes.mp4"])
    problem = line(project.run("build", "recipe.yaml", "--workers", "1"))
    assert problem == "split (t) needs a worker with GPU=1, and none has it; use profile gpu"
    assert project.executed() == {}


def test_failures_that_may_pass_are_tried_again_even_if_a_version_holds_them(
    project: Project,
) -> None:
    text = recipe(most="100%").replace("allow_files: true", "allow_private: true")
    project.write(text, ["http://127.0.0.1:9/dunes.mp4"])
    project.build_here()
    project.executed()
    with pytest.raises(BuildFailedError, match="connect 1"):
        project.build_here("videos.max_rejects=0%")
    with pytest.raises(BuildFailedError, match="connect 1"):
        project.build_here("videos.max_rejects=0%")
    assert project.executed() == {"download/videos/00000": 1}


def test_one_name_for_two_tables_or_for_a_table_and_a_dataset_is_refused(
    project: Project, demo_media: Path
) -> None:
    project.write(recipe(), [f"file://{demo_media}/dunes.mp4"])
    project.build_here()
    project.write(recipe(), [f"file://{demo_media}/pond.mp4"])
    problem = line(project.call("build", "recipe.yaml"))
    assert "the store knows another table by that name" in problem
    swapped = recipe().replace("urls:", "videos:").replace("from: urls", "from: videos")
    project.write(swapped.replace("  videos: {stage", "  urls: {stage"), ["file:///a.mp4"])
    problem = line(project.call("build", "recipe.yaml"))
    assert "source videos: the store has a dataset of that name" in problem
