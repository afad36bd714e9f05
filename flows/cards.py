"""What a flow run's page shows: progress while it runs, and a card of the datasets at its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from PIL import Image
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate as ArtifactRequest
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from reelmill.dataset import open_version
from reelmill.digest import SHORT
from reelmill.errors import ReelmillError
from reelmill.flows.drive import Build, Progress, Stop
from reelmill.flows.events import Courier, courier
from reelmill.flows.prefect_state import (
    cancel_is_asked,
    decoration,
    is_away,
    server_answers,
    server_patience,
    settle_task_runs,
    wait_for_server,
)
from reelmill.flows.report import markdown_link, markdown_report, plain, reasons_text
from reelmill.flows.shards import Outcomes
from reelmill.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from prefect.logging.loggers import LoggingAdapter as LoggerAdapter

REFRESH_SECONDS = 5.0
"""How often the page is brought up to date."""

DELIVERY_SECONDS = 0.2
"""How often Prefect is told what became of task runs."""

AWAY_SECONDS = 1.0
"""How often Prefect is asked whether it is back, while it is away."""

_AWAY = "the Prefect server does not answer; the build goes on"
_LOST = "the Prefect server has lost this run; the build goes on"
_WAITING = "waiting for the Prefect server to come back, to report there"

_SHEET_SAMPLES = 6
_SHEET_WIDTH = 900
_SHEET_QUALITY = 80


log = logging.getLogger(__name__)


class Page:
    """The page of a build's flow run.

    ``dashboard`` is where Dask shows what its workers do, once there are workers.
    """

    def __init__(self, build: Build, flow_run: UUID, stop: Stop, logger: LoggerAdapter) -> None:
        self.dashboard = ""
        self.outcomes: Outcomes = {}
        self._build = build
        self._flow_run = flow_run
        self._stop = stop
        self._log = logger
        self._artifacts: dict[str, UUID] = {}
        self._shown: dict[str, Any] = {}
        self._told: dict[str, int] = {}
        self._patience = server_patience()
        self._noted = ""
        self._away = False
        self._lost = False

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[Page]:
        """Keep the page up to date while the body runs, and put a card of the datasets on it after.

        Stops the build if somebody cancels the flow run.
        """
        with courier() as events:
            async with get_client() as client:
                # Tasks keep the settings that they begin with.
                with _without_retries():
                    at_work = [
                        asyncio.ensure_future(self._keep_fresh(client)),
                        asyncio.ensure_future(self._keep_delivering(client, events)),
                    ]
                try:
                    yield self
                finally:
                    for one in at_work:
                        one.cancel()
                    await asyncio.gather(*at_work, return_exceptions=True)
                    with _without_retries():
                        await self._close(client, events)

    async def _keep_fresh(self, client: PrefectClient) -> None:
        while True:
            if not self._lost:
                with self._noting():
                    if await cancel_is_asked(client, self._flow_run):
                        self._stop.set()
                    await self._refresh(client)
            self._tell()
            await asyncio.sleep(AWAY_SECONDS if self._away else REFRESH_SECONDS)

    async def _keep_delivering(self, client: PrefectClient, events: Courier) -> None:
        while True:
            await asyncio.sleep(DELIVERY_SECONDS)
            # A server that comes back is asked first whether it still knows the flow run.
            if not (self._away or self._lost):
                with self._noting():
                    await events.deliver(client)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Take note of whether the server answers, and still knows the flow run."""
        try:
            yield
            self._away = False
        except ObjectNotFound:
            self._lost = True
        except Exception as error:
            self._away = is_away(error)
            if not self._away:
                log.warning("Prefect could not be brought up to date: %s", error)
        trouble = _LOST if self._lost else _AWAY if self._away else ""
        self._build.notes["server"] = trouble

    async def _refresh(self, client: PrefectClient) -> None:
        for name, progress in self._build.progress.items():
            share = percentage(progress)
            # The run's page shows descriptions only, and the numbers behind a click.
            told = f"{share:.0f} %: {progress_text(progress)}{_inside(self._build, name)}"
            await self._show(client, "progress", progress_key(name), share, told)
        rows = json.dumps(progress_rows(self._build))
        await self._show(client, "table", "shards", rows, "shards by dataset")

    async def _show(
        self, client: PrefectClient, kind: str, key: str, data: Any, description: str
    ) -> None:
        if self._shown.get(key) == (data, description):
            return
        try:
            if key in self._artifacts:
                update = ArtifactUpdate(data=data, description=description)
                await client.update_artifact(self._artifacts[key], update)
                self._shown[key] = data, description
                return
        except ObjectNotFound:
            # Somebody deleted it.
            del self._artifacts[key]
        request = ArtifactRequest(
            type=kind, key=key, data=data, description=description, flow_run_id=self._flow_run
        )
        self._artifacts[key] = (await client.create_artifact(request)).id
        self._shown[key] = data, description

    def _tell(self) -> None:
        for name, progress in self._build.progress.items():
            done = progress.made + progress.failed
            if done != self._told.get(name, 0):
                self._told[name] = done
                self._log.info("%s: %s", name, progress_text(progress))
        if self._build.note != self._noted:
            self._noted = self._build.note
            self._log.warning(self._noted or "the build goes on")

    async def _close(self, client: PrefectClient, events: Courier) -> None:
        if not await server_answers():
            self._build.notes["server"] = _WAITING
            back = await wait_for_server(self._patience, self._stop)
            self._build.notes["server"] = ""
            if not back:
                return
        with contextlib.suppress(ObjectNotFound):
            # What belongs to a flow run that the server has lost would have no place there.
            await client.read_flow_run(self._flow_run)
            with decoration():
                await events.deliver_all(client)
            with decoration():
                await self._refresh(client)
                pages = await _pages(client, self._build)
                card = await asyncio.to_thread(dataset_card, self._build, self.dashboard, pages)
                await self._show(client, "markdown", "datasets", card, "the datasets of this run")
            with decoration():
                await settle_task_runs(client, self._flow_run, self.outcomes)


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Have Prefect's client say at once that the server is away: it is tried again anyway."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def progress_key(dataset: str) -> str:
    """The key of a dataset's progress artifact: Prefect allows letters, digits and dashes."""
    return f"progress-{dataset.replace('_', '-')}"


def percentage(progress: Progress) -> float:
    """How much of a dataset's shards exist; 0 while it is unknown how many there will be."""
    if progress.expected is None:
        return 0.0
    return 100.0 * progress.have / progress.expected if progress.expected else 100.0


def progress_text(progress: Progress) -> str:
    """``3 of 8 shards, 1 failed, 40s left``."""
    failed = f", {progress.failed} failed" if progress.failed else ""
    left = "" if progress.left is None else f", {format_seconds(progress.left)} left"
    return f"{_shards(progress)} shards{failed}{left}"


def _inside(build: Build, dataset: str) -> str:
    """``; in those being made: 41 of 200 samples``, where workers have told."""
    done, total = build.sampled(dataset)
    return f"; in those being made: {done:,} of {total:,} samples" if total else ""


def progress_rows(build: Build) -> list[dict[str, Any]]:
    """A row per dataset: what is done, at which rate, and how long the rest will take."""
    return [_progress_row(progress) for progress in build.progress.values()]


def _progress_row(progress: Progress) -> dict[str, Any]:
    return {
        "dataset": progress.name,
        "shards": _shards(progress),
        "time left": "" if progress.left is None else format_seconds(progress.left),
        "made": progress.made,
        "reused": progress.reused,
        "failed": progress.failed,
        "samples": progress.samples,
        "bytes": format_bytes(progress.bytes),
        "shards a minute": round(60 * progress.rate, 1),
        # Last, since it may be long and the page is narrow.
        "rejects": reasons_text(progress.reasons, progress.stage) or "0",
    }


def _shards(progress: Progress) -> str:
    return f"{progress.have} of {'?' if progress.expected is None else progress.expected}"


async def _pages(client: PrefectClient, build: Build) -> dict[str, str]:
    """Links to the flow runs that committed the versions of a build and those it is made from, by
    the versions' labels, as far as the server knows the runs."""
    made = await asyncio.to_thread(_committed_by, build)
    known = set()
    for run in set(made.values()):
        with contextlib.suppress(ObjectNotFound):
            await client.read_flow_run(run)
            known.add(run)
    # Relative, since people may reach the UI by another address than this process, and below a
    # prefix: an artifact's page lies two levels below that of the UI.
    return {label: f"../../runs/flow-run/{run}" for label, run in made.items() if run in known}


def _committed_by(build: Build) -> dict[str, UUID]:
    made = {}
    for label in build.labels.values():
        with contextlib.suppress(ReelmillError, ValueError):
            _, ref = build.store.resolve(label)
            made[label] = UUID(ref.run)
    return made


def dataset_card(build: Build, dashboard: str, pages: Mapping[str, str]) -> str:
    """Markdown: the table of datasets, their lineage as a graph, and a picture of each new one.

    Args:
        dashboard: where Dask shows what its workers do, if there are workers.
        pages: links for versions, by their labels.
    """
    sources = [build.labels[name] for name in build.recipe.sources if name in build.labels]
    parts = ["## Datasets", markdown_report(build, pages), "## Lineage", _lineage_graph(build)]
    parts.append(f"From {', '.join(markdown_link(label, pages) for label in sources)}.")
    if dashboard:
        where = plain(build.store.url)
        parts.insert(2, f"Store: {where}. Dask's dashboard, while it runs: {dashboard}")
    # The last one first: it is what the others were made for.
    for name, progress in reversed(build.progress.items()):
        if progress.made and progress.version and (picture := _picture(build, name)):
            parts += [f"## {name}@{progress.version[:SHORT]}", picture]
    return "\n\n".join(parts)


def _lineage_graph(build: Build) -> str:
    lines = ["```mermaid", "graph TD"]
    lines += [
        f'  {_node(source)}[("{build.labels[source]}")]'
        for source in build.recipe.sources
        if source in build.labels
    ]
    for name, progress in build.progress.items():
        version = f"@{progress.version[:SHORT]}" if progress.version else " (incomplete)"
        lines.append(f'  {_node(name)}["{name}{version}<br/>{progress.samples:,} samples"]')
    for name in build.names:
        dataset = build.recipe.datasets[name]
        parents = dataset.inputs.values()
        lines += [f"  {_node(parent)} -->|{dataset.stage}| {_node(name)}" for parent in parents]
    return "\n".join([*lines, "```"])


def _node(name: str) -> str:
    # Some names, such as "end", are words of Mermaid's own.
    return f"d_{name.replace('-', '_')}"


def _picture(build: Build, name: str) -> str | None:
    from reelmill.flows.preview import draw_sheet

    try:
        png = draw_sheet(open_version(build.store, name), _SHEET_SAMPLES, _SHEET_WIDTH)
    except ReelmillError:
        return None
    jpeg = io.BytesIO()
    with Image.open(io.BytesIO(png)) as sheet:
        sheet.convert("RGB").save(jpeg, "JPEG", quality=_SHEET_QUALITY)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return f"![{name}](data:image/jpeg;base64,{data})"
