"""``reelmill bench readers``, once for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch")

import reelmill.flows.cli  # noqa: F401  (it registers all commands)
from reelmill.errors import MissingDependencyError
from reelmill.flows.cli_shared import app
from reelmill.loading import readers
from reelmill.loading.readers import Availability
from tests.stages.media_samples import sample


def test_readers_are_measured_as_a_table_as_json_and_as_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "new" / "readers.png"
    command = ["bench", "readers", str(sample("silent.mp4")), "-b", "pyav", "--frames", "20"]
    command += ["--singles", "3", "--clips", "1", "-t", "4", "--rounds", "1"]
    shown = CliRunner().invoke(app, [*command, "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "silent.mp4, at most 20 frames, 1 round" in shown.output
    for title in ("one frame after the other", "one frame in 10", "1 clip of 4 frames"):
        assert title in shown.output
    assert Image.open(plot).size[0] == 1600

    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    rows = {(row["backend"], row["mode"], row["pattern"]): row for row in told["rows"]}
    assert set(rows) == {("ffmpeg", "", "sequential")} | {
        ("pyav", mode, pattern)
        for mode in ("seek", "stream")
        for pattern in ("sequential", "every_nth", "random", "clips")
    }
    assert all(row["frames_per_second"] > 0 and row["cpu_by_ffmpeg"] > 0 for row in rows.values())
    frames = {(one["backend"], one["pattern"]): one["frames"] for one in told["by_file"]}
    assert frames == {
        ("ffmpeg", "sequential"): 20,
        ("pyav", "sequential"): 20,
        ("pyav", "every_nth"): 2,
        ("pyav", "random"): 3,
        ("pyav", "clips"): 4,
    }


def test_what_is_not_here_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = "backend vali needs a package: pip install python-vali"
    there = {
        "pyav": Availability("pyav", "reelmill", {"cpu": ""}),
        "vali": Availability("vali", "python-vali", {"cuda": needed}),
    }
    monkeypatch.setattr(readers, "backends", lambda: there)
    command = ["bench", "readers", str(sample("silent.mp4")), "--frames", "2", "--singles", "1"]
    shown = CliRunner().invoke(app, [*command, "--clips", "1", "-t", "1", "-r", "1"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1] == f"not here: vali on cuda: {needed}"
    alone = CliRunner().invoke(app, [*command, "--backend", "vali"])
    assert isinstance(alone.exception, MissingDependencyError)
    assert str(alone.exception) == needed
