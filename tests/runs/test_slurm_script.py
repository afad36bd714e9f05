"""The batch script for Slurm, run as Slurm runs it, with local workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from reelmill.store import Store
from tests.runs.compose import INFRA
from tests.runs.project import COMMAND, Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  rows: {stage: rows, from: urls}
  slow: {stage: trouble, from: rows, kind: slow}
"""
SCONTROL = """#!/bin/sh
echo "$@" > "$(dirname "$0")/told"
"""


def start(project: Project, bin_folder: Path, **more: str) -> subprocess.Popen[str]:
    """The script as a job, in a copy, as Slurm keeps one of its own."""
    spooled = shutil.copy(INFRA / "slurm" / "build.sbatch", project.folder / "slurm_script")
    environ = {
        **project.environ,
        "PATH": f"{bin_folder}:{COMMAND.parent}:{os.environ['PATH']}",
        "TMPDIR": str(bin_folder),
        "REELMILL_PROFILE": "local",
        "SLURM_JOB_ID": "7",
        **more,
    }
    return subprocess.Popen(
        ["bash", spooled, "recipe.yaml", "--workers", "2"],
        cwd=project.folder,
        env={name: value for name, value in environ.items() if value},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(
    project: Project, tmp_path: Path
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "scontrol").write_text(SCONTROL)
    (bin_folder / "scontrol").chmod(0o755)
    (bin_folder / "python3").symlink_to(sys.executable)
    project.write(RECIPE, [f"file:///video{number}.mp4" for number in range(12)])

    job = start(project, bin_folder, PREFECT_API_URL="")
    while not project.trace.exists() or len(project.trace.read_text().splitlines()) < 15:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    told, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, told
    assert "Prefect: " in told
    assert (bin_folder / "told").read_text() == "requeue 7\n"
    assert not [one for one in psutil.wait_procs(family, timeout=10)[1] if one.is_running()]
    assert sorted(path.name for path in bin_folder.glob("tmp.*")) == []
    assert Store.open(str(project.folder / "store")).history("slow") == []

    (bin_folder / "told").unlink()
    job = start(project, bin_folder)
    told, _ = job.communicate(timeout=120)
    assert job.returncode == 0, told
    assert not (bin_folder / "told").exists()
    assert max(project.executed().values()) == 1
    store = Store.open(str(project.folder / "store"))
    versions = {name: store.history(name)[0][0].version for name in ("rows", "slow")}
    shutil.rmtree(project.folder / "store")
    assert versions == dict(project.build_here().versions)
