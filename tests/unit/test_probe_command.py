"""``reelmill probe``, in this process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from reelmill.flows.cli import app
from tests.stages.damaged import damaged
from tests.stages.media_samples import sample


def _probe(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


def test_each_file_is_summed_up() -> None:
    done = _probe(sample("hidden.mp4"), sample("uneven.mkv"))
    assert done.exit_code == 0, done.output
    first, second = done.output.split(str(sample("uneven.mkv")))
    assert "75, 30 a second, constant rate, 15 more are hidden" in first
    assert "h264 (High), 128x96" in first
    assert "variable rate" in second
    assert "5 (5 of closed GOPs), frames in the longest GOP: 20" in second


def test_json_is_one_line_a_file() -> None:
    done = _probe("--json", sample("plain.mp4"), sample("plain.ts"))
    assert done.exit_code == 0, done.output
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["file"] == str(sample("plain.mp4"))
    assert first["timing"]["keyframes"] == [0, 0.666667, 1.333333, 2, 2.666667]
    assert (first["timing"]["source"], second["timing"]["source"]) == ("index", "packets")
    assert second["video"]["container"] == "mpegts"
    assert [stream["kind"] for stream in second["streams"]] == ["video", "audio"]


def test_damage_is_one_line_and_ends_with_a_code(tmp_path: Path) -> None:
    bad, missing = damaged("no_index.mp4"), tmp_path / "missing.mp4"
    done = _probe(bad, sample("silent.mp4"), missing)
    assert done.exit_code == 1
    assert str(done.exception) == "2 of 3 files cannot be used"
    lines = done.output.splitlines()
    assert f"{bad}: truncated: an MP4 file without its index (no moov box)" in lines
    assert f"{missing}: unreadable: No such file or directory" in lines
    assert str(sample("silent.mp4")) in lines

    done = _probe("--json", bad)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["reason"] == "truncated"
