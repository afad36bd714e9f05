"""One more dataset from a finished version: by command, by recipe, and what Prefect hears of it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reelmill.dataset import open_version
from reelmill.errors import ReelmillError
from reelmill.flows.cli import app
from reelmill.flows.costs import costs
from reelmill.flows.derivation import Asked
from reelmill.flows.drive import prepare
from reelmill.flows.profile import load_profile
from reelmill.flows.save import Saving
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.ingest import Source
from tests.runs.project import Project, wait_for

RECIPE = """
store: ./store
sources:
  urls: {path: urls.csv, rows_per_shard: 1}
datasets:
  rows: {stage: rows, from: urls}
"""
RECIPE_OF_ROWS = """\
store: ./store
datasets:
  again: {stage: rows, from: rows}
"""
PINNED = """
store: ./store
sources:
  old: {version: rows@v1}
datasets:
  mixed: {stage: shuffle, from: old, samples_per_shard: 2}
"""


def _built(project: Project, rows: int = 4) -> Project:
    project.write(RECIPE, [f"https://example.org/{n}.mp4" for n in range(rows)])
    project.build_here()
    return project


@pytest.fixture
def built(project: Project) -> Project:
    return _built(project)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One for commands that make nothing: they run in this process, with no Prefect."""
    return _built(Project(tmp_path_factory.mktemp("kept"), "http://127.0.0.1:9"), 40)


def ask(project: Project, arguments: str) -> Any:
    """Run ``derive`` in this process."""
    words = ["derive", *arguments.split(), "--store", str(project.folder / "store")]
    return CliRunner().invoke(app, words)


def told(project: Project, arguments: str) -> str:
    """The error that ``derive`` ends with, which is one line."""
    error = ask(project, arguments).exception
    assert isinstance(error, ReelmillError)
    assert "\n" not in str(error)
    return str(error)


def derive(project: Project, *arguments: str) -> Any:
    return project.run("derive", *arguments, "--store", "store", "--workers", "1")


async def _committed(url: str, name: str) -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
    from prefect.settings import PREFECT_API_URL, temporary_settings

    only = EventFilter(
        event=EventNameFilter(name=["reelmill.dataset.committed"]),
        resource=EventResourceFilter(id=[f"reelmill.dataset.{name}"]),
    )
    with temporary_settings({PREFECT_API_URL: url}):
        async with get_client() as client:
            content = {"filter": only.model_dump(mode="json", exclude_unset=True)}
            answer = await client.request("POST", "/events/filter", json=content)
            events: list[dict[str, Any]] = answer.json()["events"]
            return events


def command(project: Project, *words: str) -> str:
    """What a command says that runs in this process."""
    done = CliRunner().invoke(app, [*words, "--store", str(project.folder / "store")])
    assert done.exit_code == 0, done.exception
    return done.stdout


def _costs(project: Project) -> None:
    """What more of the same would cost, and like things, by what was made."""
    said = ask(project, "other -f rows --stage shuffle --set samples_per_shard=3 --dry-run --json")
    (other,) = json.loads(said.stdout)
    assert other["cost"]["rests_on"]["same_parameters"] is False
    assert other["cost"]["rests_on"]["of"].startswith("mixed@")
    with (project.folder / "urls.csv").open("a") as table:
        table.write("https://example.org/more.mp4\nhttps://example.org/yet.mp4\n")
    planned = CliRunner().invoke(app, ["plan", str(project.recipe), "--json", "--workers", "2"])
    rows, mixed = (one["cost"] for one in json.loads(planned.stdout))
    assert (rows["shards"], rows["samples"], rows["samples_exact"]) == (2, 2, True)
    assert rows["reads_bytes"] is None, "what a table names is elsewhere"
    assert (rows["rests_on"]["of"], rows["rests_on"]["shards"]) == ("rows", 4)
    assert (mixed["shards"], mixed["samples"], mixed["samples_exact"]) == (1, 2, True)
    assert mixed["reads_bytes"] == rows["writes_bytes"]
    assert (mixed["rests_on"]["of"], mixed["rests_on"]["same_parameters"]) == ("mixed", True)
    for cost in (rows, mixed):
        time = cost["worker_seconds"]
        assert 0 <= time["low"] <= time["likely"] <= time["high"]
        assert cost["workers"] == 2
    shown = CliRunner().invoke(app, ["plan", str(project.recipe)]).stdout
    assert "about 1 to make after rows" in shown
    assert "by 4 shards of rows made on 20" in shown
    project.write(project.recipe.read_text(), [f"https://example.org/{n}.mp4" for n in range(4)])


def test_a_derived_dataset_is_what_a_recipe_on_the_same_version_makes(built: Project) -> None:
    store = Store.open(str(built.folder / "store"))
    parent = open_version(store, "rows")
    wish = ("--stage", "shuffle", "--set", "samples_per_shard=2")
    before = built.recipe.read_text()
    made = derive(built, "mixed", "--from", "rows@latest", *wish, "--json-log", "--save")
    assert made.returncode == 0, made.stderr
    version = open_version(store, "mixed")
    assert version.ref.parents == {"source": str(parent)}
    assert sum(built.executed().values()) == 2 + 4
    events = [json.loads(line) for line in made.stderr.splitlines()]
    assert [event["event"] for event in events] == [
        "started",
        *["shard made"] * 2,
        "committed",
        "ended",
    ]
    assert events[-2]["version"] == version.digest

    entry = "  mixed: {stage: shuffle, from: rows, samples_per_shard: 2}\n"
    assert built.recipe.read_text() == before + entry
    assert built.build_here().versions["mixed"] == version.digest
    assert not built.executed(), "the recipe makes what was derived"
    again = command(built, "show", "mixed", "--command")
    wished = f"--from {parent} --stage shuffle --set samples_per_shard=2"
    assert again == f"reelmill derive mixed {wished}\n"
    assert "shuffle samples_per_shard=2, 20" in command(built, "show", "mixed")

    _costs(built)

    assert built.call("tag", "rows", "v1", "--store", "store").returncode == 0
    (built.folder / "recipe.yaml").write_text(PINNED)
    assert built.build_here().versions == {"mixed": version.digest}
    assert open_version(store, "mixed").ref.parents == {"source": str(parent)}
    assert not built.executed()
    again = derive(built, "--name", "mixed", "--from", "rows@v1", *wish)
    assert "All 2 shards exist; nothing was made." in again.stdout


def test_a_new_version_is_an_event_and_an_old_one_is_none(built: Project) -> None:
    def heard() -> list[dict[str, Any]]:
        return asyncio.run(_committed(built.prefect_url, "heard"))

    for size in ("2", "2", "4"):
        size = f"samples_per_shard={size}"
        done = derive(built, "heard", "--from", "rows", "--stage", "shuffle", "--set", size)
        assert done.returncode == 0, done.stderr
    wait_for(lambda: len(heard()) >= 2)
    newest, oldest = heard()
    version = open_version(str(built.folder / "store"), "heard")
    told = newest["payload"]
    assert (told["name"], told["version"], told["label"]) == ("heard", version.digest, str(version))
    assert (told["shards"], told["samples"], told["rejects"]) == (1, 4, 0)
    assert told["parents"] == list(version.ref.parents.values())
    assert (oldest["payload"]["shards"], oldest["payload"]["samples"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("rows -f rows --stage shuffle", "give the new dataset another name than that of its"),
        ("x -f rows --stage shufle", "unknown stage shufle; did you mean shuffle?"),
        ("x -f rows --stage shuffle --set seeds=1", "unknown parameter of stage shuffle; did you"),
        ("x -f rows --stage shuffle --set seed", "--set seed: write it as path=value"),
        ("x -f rows --stage shuffle --set seed=-1", "--set seed=-1: must be greater than or equal"),
        ("x -f rows --stage shuffle --set max_rejects=0", "of the stage; give --max-rejects"),
        ("x -f rows --stage shuffle --max-rejects much", "--max-rejects much: "),
        ("x -f rose --stage shuffle", "no dataset 'rose' in"),
        ("x -f rows@v9 --stage shuffle", "no version or tag 'v9' in dataset 'rows'"),
        ("x -f rows --stage download", "download cannot be derived from rows"),
        ("x -f urls --stage shuffle", "stage shuffle reads samples, and urls@"),
        ("x -f rows --stage frames", "and these have txt"),
        ("x -f rows --stage motion", "and these have txt"),
        ("x -f rows --stage flow", "needs samples with 000000.image.jpg"),
        ("x -f rows --stage join", "--from: stage join reads source and others; give --from ROLE="),
        ("x -f rows -f rows@latest --stage shuffle", "is this? Say one of source=..."),
        ("x -f more=rows --stage shuffle", "--from more=...: unknown role; stage shuffle reads"),
        ("x -f source=rows -f source=rows@latest --stage shuffle", "source is given twice"),
        ("urls -f rows --stage shuffle", "made by ingest from a table; give the new one another"),
        ("X_y -f rows --stage shuffle", "a name begins with a letter a-z"),
        ("x -f Rows --stage shuffle", "--from Rows: write DATASET, DATASET@VERSION"),
        ("x --name y -f rows --stage shuffle", "two names for one dataset, x and y"),
        ("-f rows --stage shuffle", "what is the new dataset called?"),
        ("x --stage shuffle", "from which version?"),
        ("x -f rows", "what is made of it? --stage with one of frames, "),
        ("x -f rows --stage shuffle --recipe recipe.yaml", "--recipe says where --save"),
    ],
)
def test_what_cannot_be_derived_is_said_in_one_line(
    kept: Project, arguments: str, line: str
) -> None:
    assert line in told(kept, arguments)


def test_columns_of_a_table_may_be_joined(kept: Project) -> None:
    done = ask(kept, "x -f source=rows -f table=urls --stage join --dry-run")
    assert "join: 0 of 40 there" in done.stdout


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    wish = ["derive", "x", "--from", "rows", "--stage", "shuffle", "--store"]
    done = CliRunner().invoke(app, [*wish, str(tmp_path / "none")])
    assert "there is no store at" in str(done.exception)
    assert not (tmp_path / "none").exists()


def test_a_dry_run_tells_the_cost_and_what_a_recipe_would_get(kept: Project) -> None:
    before = kept.recipe.read_text()
    wish = "mixed -f rows --stage shuffle --set samples_per_shard=20 --dry-run"
    done = ask(kept, f"{wish} --save --recipe {kept.recipe}")
    assert done.exit_code == 0, done.exception
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[:2] == ["mixed  shuffle: 0 of 2 there", "2 to make: never built"]
    assert lines[2] == "reads 400.0 KiB, makes 40 samples"
    assert lines[3] == "time unknown: no shard of stage shuffle was made in this store yet"
    assert lines[-1] == "mixed: {stage: shuffle, from: rows, samples_per_shard: 20}"
    (one,) = json.loads(ask(kept, f"{wish} --json").stdout)
    assert (one["cost"]["samples"], one["cost"]["samples_exact"]) == (40, True)
    assert kept.recipe.read_text() == before
    assert Store.open(str(kept.folder / "store")).latest("mixed") is None


def test_a_plan_reads_few_records_however_many_shards_there_are(
    kept: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(kept.folder / "store"))
    where = load_profile("local")
    wanted = Asked("same", ("rows",), "greedy").recipe(store.url)
    build = prepare(wanted, store, run="plan", write=False)
    read: list[str] = []
    record = Store.record

    def counted(self: Store, key: str) -> Any:
        read.append(key)
        return record(self, key)

    monkeypatch.setattr(Store, "record", counted)
    assert costs(build, where)["same"].estimate.shards == 40
    assert len(read) == 0, "the stage made nothing"
    loaded = load_recipe(kept.recipe, stages=Stages(), source_model=Source)
    table = kept.folder / "urls.csv"
    rows = table.read_text()
    table.write_text(rows + "https://example.org/more.mp4\n")
    build = prepare(loaded, store, run="plan", write=False)
    table.write_text(rows)
    read.clear()
    cost = costs(build, where)["rows"]
    assert cost.estimate.evidence is not None
    assert len(cost.estimate.evidence.made) == len(read) == 12


def _saved(project: Project, recipe: str, arguments: str) -> Any:
    path = project.folder / "other.yaml"
    path.write_text(recipe)
    return ask(project, f"{arguments} --dry-run --save --recipe {path}")


def test_what_is_no_dataset_of_the_recipe_is_pinned(kept: Project) -> None:
    rows = open_version(str(kept.folder / "store"), "rows")
    wish = "mixed -f rows --stage shuffle --set samples_per_shard=20"
    recipe = "store: ./store\ndatasets:\n  again: {stage: shuffle, from: x}\n"
    held = f"sources:\n  x: {{version: rows@latest}}\n{recipe}"
    assert "from: x, samples" in _saved(kept, held, wish).stdout, "it is there by another name"
    table = f"sources:\n  rows: {{path: urls.csv}}\n{RECIPE_OF_ROWS}"
    lines = _saved(kept, table, wish).stdout.splitlines()
    named = f"rows-{rows.digest[:8]}"
    assert lines[-2:] == [
        f"  {named}: {{version: {rows}}}",
        f"  mixed: {{stage: shuffle, from: {named}, samples_per_shard: 20}}",
    ]


@pytest.mark.parametrize(
    ("store", "datasets", "source", "line"),
    [
        ("other", "a: {stage: rows, from: b}", "b", "choose another recipe with --recipe"),
        ("store", "mixed: {stage: rows, from: b}", "b", "has a dataset mixed already"),
        ("store", "a: {stage: rows, from: mixed}", "mixed", "has a source mixed already"),
        (
            "store",
            "a:\n    stage: rows\n    from: b\n    salt: |+\n      blank lines count\n\n",
            "b",
            "is laid out in a way in which --save cannot put a dataset; add it by hand: mixed: ",
        ),
        ("store", "? a\n  : {stage: rows, from: b}", "b", "add it by hand: mixed: {'stage': 'sh"),
    ],
)
def test_a_recipe_in_which_it_cannot_be_is_refused(
    kept: Project, store: str, datasets: str, source: str, line: str
) -> None:
    sources = f"sources: {{{source}: {{path: urls.csv}}}}"
    recipe = f"store: ./{store}\n{sources}\ndatasets:\n  {datasets}\n"
    error = _saved(kept, recipe, "mixed -f rows --stage shuffle").exception
    assert line in str(error)


def test_of_several_that_save_at_once_none_is_lost(kept: Project) -> None:
    path = kept.folder / "many.yaml"
    sources = "sources: {x: {version: rows@latest}}"
    path.write_text(f"store: ./store\n{sources}\ndatasets: {{a: {{stage: shuffle, from: x}}}}\n")
    store = Store.open(str(kept.folder / "store"))
    names = [f"d{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        savings = [Saving(path, Asked(name, ("rows",), "shuffle"), store) for name in names]
        assert all(pool.map(Saving.write, savings))
    recipe = load_recipe(path, stages=Stages(), source_model=Source)
    assert set(recipe.datasets) == {"a", *names}


def test_what_is_no_derived_dataset_has_no_command(kept: Project) -> None:
    words = ["show", "urls", "--command", "--store", str(kept.folder / "store")]
    assert "nothing in the store says with which" in str(CliRunner().invoke(app, words).exception)


def test_a_python_recipe_is_told_what_to_add(kept: Project) -> None:
    path = kept.folder / "recipe.py"
    path.write_text("recipe = {}")
    error = told(
        kept,
        f"mixed -f rows --stage shuffle --dry-run --save --recipe {path}",
    )
    assert "'mixed': {'stage': 'shuffle', 'from': 'rows'}" in error
