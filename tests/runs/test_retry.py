"""Rejects are fetched again, and only they: what is had is a new generation."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reelmill.dataset import open_version
from reelmill.errors import RecipeError
from reelmill.flows import drive
from reelmill.flows.again import MAY_PASS, retry, waiting
from reelmill.flows.cli import app
from reelmill.flows.view import make_view
from reelmill.recipe import load_recipe
from reelmill.rejects import Selection, rejects
from reelmill.shards.removed import RETRIED, Removed
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Ingested, Source, open_source
from tests.runs.conftest import Quiet
from tests.runs.project import Project

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 3}
datasets:
  videos: {stage: download, from: urls, allow_private: true, attempts: 1}
  clips: {stage: split, from: videos, method: fixed, seconds: 2s, cut: copy}
"""


@pytest.fixture
def site(tmp_path: Path, demo_media: Path) -> Iterator[tuple[str, Path]]:
    """A folder that is served, with two of four videos in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    for path in _videos(demo_media)[:2]:
        shutil.copy(path, folder)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


@pytest.fixture
def built(project: Project, site: tuple[str, Path], demo_media: Path) -> Project:
    """Two of four videos were not there when the dataset was built, and one host never was."""
    url, _ = site
    table = [f"{url}/{path.name}" for path in _videos(demo_media)]
    project.write(RECIPE, [*table, "http://127.0.0.1:9/never.mp4"])
    project.build_here("videos.max_rejects=100%")
    project.executed()
    return project


def _videos(demo_media: Path) -> list[Path]:
    return sorted(p for p in demo_media.glob("*.mp4") if p.name != "damaged.mp4")[:4]


def _retry(project: Project, *reasons: str) -> Counter[str]:
    recipe = load_recipe(project.recipe, stages=Stages(), source_model=Source)
    return retry(recipe, Store.open(recipe.store), "videos", Selection(reasons), "retry")


def _cli(project: Project, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--store", str(project.folder / "store")])
    assert done.exit_code == 0, done.output
    return done.output


def test_only_what_was_rejected_is_fetched_again(
    built: Project, site: tuple[str, Path], demo_media: Path
) -> None:
    store = Store.open(str(built.folder / "store"))
    before = open_version(store, "videos")
    for path in _videos(demo_media):
        shutil.copy(path, site[1])
    assert _retry(built, "http_404") == {"http_404": 2}
    build = built.build_here("videos.max_rejects=100%")
    assert built.executed() == {"download/videos/00002": 1, "split/clips/00002": 1}
    after = open_version(store, "videos")
    assert after.manifest.generations[:-1] == before.manifest.generations
    assert {sample.columns["url"] for sample in after.samples()} == {
        f"{site[0]}/{path.name}" for path in _videos(demo_media)
    }
    assert [one.reason for one in rejects(after)] == ["connect"]
    assert after.removed == {
        "000000002": Removed(RETRIED, "000020000"),
        "000010000": Removed(RETRIED, "000020001"),
    }
    assert build.versions["clips"] == open_version(store, "clips").digest


def test_a_table_that_did_not_change_is_not_read_for_a_retry(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _retry(built, "http")
    monkeypatch.setattr("reelmill.flows.drive.ingest", lambda *_a, **_k: pytest.fail("was read"))
    built.build_here("videos.max_rejects=100%")


def test_what_fails_again_counts_once(built: Project) -> None:
    for _ in range(3):
        assert _retry(built, "http_404") == {"http_404": 2}
        # Two of four with a verdict, however often they were tried.
        build = built.build_here("videos.max_rejects=60%")
        assert build.progress["videos"].reasons == {"http_404": 2, "connect": 1}
    version = open_version(str(built.folder / "store"), "videos")
    assert Counter(one.reason for one in rejects(version)) == {"http_404": 2, "connect": 1}
    assert len(list(version.samples())) == 2
    assert (version.totals.samples, version.totals.rejects) == (2, 3)
    again = built.build_here("videos.max_rejects=60%")
    assert (again.grown[0].rows, again.progress["videos"].rejects) == (5, 3)


def test_without_reasons_only_what_may_pass_is_tried_again(built: Project) -> None:
    assert _retry(built, MAY_PASS) == {"connect": 1}


def test_a_second_retry_before_the_build_adds_only_what_the_first_did_not(built: Project) -> None:
    store = Store.open(str(built.folder / "store"))
    _retry(built, "http_404")
    first = store.latest("urls")
    assert _retry(built, "http_404", MAY_PASS) == {"connect": 1}
    assert _retry(built, "http_404") == {}
    second = store.latest("urls")
    assert first is not None
    assert second is not None
    assert (first.counted.samples, second.counted.samples) == (5, 5)
    built.build_here("videos.max_rejects=100%")
    assert open_version(store, "urls").digest == second.version
    built.build_here("videos.max_rejects=100%")
    assert len(store.history("videos")) == 2


def test_a_retry_that_was_not_fetched_yet_is_not_begun_twice(
    built: Project, site: tuple[str, Path], demo_media: Path
) -> None:
    store = Store.open(str(built.folder / "store"))
    recipe = load_recipe(built.recipe, stages=Stages(), source_model=Source)
    assert _retry(built, "http_404") == {"http_404": 2}
    assert _retry(built, "http_404", "connect") == {"connect": 1}
    assert waiting(recipe, store, "videos") == 3
    done = built.run("retry", "videos", "--reason", "http_404", "--set", "videos.max_rejects=100%")
    assert "3 of videos were chosen before" in done.stderr
    assert waiting(recipe, store, "videos") == 0
    found = Counter(one.reason for one in rejects(open_version(store, "videos")))
    assert found == {"http_404": 2, "connect": 1}


def test_growth_after_a_retry_adds_only_new_rows(built: Project, site: tuple[str, Path]) -> None:
    _retry(built, "http_404")
    built.build_here("videos.max_rejects=100%")
    built.executed()
    lines = (built.folder / "urls.csv").read_text()
    (built.folder / "urls.csv").write_text(f"{lines}{site[0]}/new.mp4\n")
    built.build_here("videos.max_rejects=100%")
    assert built.executed() == {"download/videos/00003": 1, "split/clips/00003": 1}


def test_a_table_that_grows_while_rows_are_chosen_has_both(
    built: Project, site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = drive.ingest

    def slow(*arguments: Any) -> Ingested:
        made = ingest(*arguments)
        _retry(built, "http_404")
        return made

    monkeypatch.setattr(drive, "ingest", slow)
    lines = (built.folder / "urls.csv").read_text()
    (built.folder / "urls.csv").write_text(f"{lines}{site[0]}/new.mp4\n")
    built.build_here("videos.max_rejects=100%")
    table = open_version(str(built.folder / "store"), "urls")
    new = [len(shard.rows()) for shard in table.shards()][2:]
    assert new == [2, 1], "what was chosen, and the new row"
    assert set(table.removed) == {"000000002", "000010000"}


def test_a_view_leaves_out_the_samples_of_removed_rows(built: Project, tmp_path: Path) -> None:
    store = Store.open(str(built.folder / "store"))
    taken = next(open_version(store, "videos").samples()).key
    recipe = load_recipe(built.recipe, stages=Stages(), source_model=Source)
    from reelmill.tasks.again import commit_again

    commit_again(store, "urls", [taken], "changed", 3, "test")
    built.build_here("videos.max_rejects=100%")
    assert recipe.store == store.url
    clips = open_version(store, "clips")
    make_view(clips, tmp_path / "view")
    import webdataset as wds

    tars = sorted(str(path) for path in (tmp_path / "view").glob("*.tar"))
    seen = [sample["__key__"] for sample in wds.WebDataset(tars, shardshuffle=False)]
    assert seen == [sample.key for sample in clips.samples()]
    assert seen
    assert not any(key.startswith(taken) for key in seen)


def test_only_what_reads_a_table_can_be_retried(built: Project) -> None:
    recipe = load_recipe(built.recipe, stages=Stages(), source_model=Source)
    store = Store.open(recipe.store)
    with pytest.raises(RecipeError, match=r"clips is made by split; .*: videos"):
        retry(recipe, store, "clips", Selection(), "retry")
    with pytest.raises(RecipeError, match="no dataset 'video'"):
        retry(recipe, store, "video", Selection(), "retry")


def test_rejects_are_counted_by_reason_and_host_and_exported(
    built: Project, tmp_path: Path
) -> None:
    told = _cli(built, "rejects", "videos")
    assert "http_404" in told
    assert "127.0.0.1" in told
    assert told.endswith("3 rejects\n")
    counted = json.loads(_cli(built, "rejects", "videos", "--json"))
    assert counted["reasons"] == {"http_404": {"127.0.0.1": 2}, "connect": {"127.0.0.1": 1}}
    for name in ("rejects.csv", "rejects.tsv", "rejects.jsonl", "rejects.parquet"):
        _cli(built, "rejects", "videos", "--reason", "http", "--export", str(tmp_path / name))
    lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["http_404", "http_404"]
    assert pq.read_table(tmp_path / "rejects.parquet")["last"].null_count == 0
    for name in ("rejects.csv", "rejects.tsv"):
        table = open_source(Source(path=str(tmp_path / name)))
        found = [url for _, batch in table.batches(["url"]) for url in batch["url"].to_pylist()]
        assert len(found) == 2
        assert all(url.startswith("http://127.0.0.1:") for url in found)
    assert json.loads(_cli(built, "rejects", "videos", "--json", "--max-age", "0s"))["rejects"] == 0


def test_a_dataset_that_got_no_version_says_what_its_rejects_are_like(built: Project) -> None:
    done = built.run(
        "build", str(built.recipe), "--only", "videos", "--set", "videos.max_rejects=9%"
    )
    assert done.returncode == 1
    assert "such as videos: http_404: the server answered 404" in done.stdout
    assert "such as videos: connect: cannot connect to 127.0.0.1" in done.stdout


def test_the_command_retries_and_says_what(built: Project) -> None:
    done = built.call("retry", "videos", "--dry-run")
    assert done.stdout == "1 would be fetched again: 1 connect\n", done.stderr
    done = built.call("retry", "videos", "--set", "videos.max_bytes=1GB")
    assert "max_bytes: 4294967296 is now 1000000000), so that all of it would be" in done.stderr
    assert done.returncode == 1
    done = built.call("retry", "videos", "--reason", "dns")
    assert "Nothing of videos is to be fetched again" in done.stdout, done.stderr
    done = built.run("retry", "videos", "--reason", "http_404", "--set", "videos.max_rejects=100%")
    assert done.returncode == 0, done.stderr
    assert "2 of videos are fetched again: 2 http_404" in done.stderr
    assert set(built.executed()) == {"download/videos/00002"}
