"""What a flow run's page shows: progress while it runs, and a card of the datasets at its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from reelmill.dataset import open_version
from reelmill.digest import SHORT
from reelmill.errors import ReelmillError
from reelmill.flows.drive import Build, Progress
from reelmill.flows.report import markdown_report, reasons_text
from reelmill.units import format_bytes, format_seconds

REFRESH_SECONDS = 5.0
"""How often the page is brought up to date."""

log = logging.getLogger(__name__)

_SHEET_SAMPLES = 6
_SHEET_WIDTH = 900
_SHEET_QUALITY = 80


@contextlib.asynccontextmanager
async def shown_in_prefect(build: Build) -> AsyncIterator[None]:
    """A progress and a table artifact while the body runs, and a card of the datasets after it."""
    name = Path(build.recipe.store).name
    shards = await acreate_progress_artifact(
        progress=0.0, key="progress", description=f"shards of {', '.join(build.names)} in {name}"
    )
    table = await acreate_table_artifact(progress_rows(build), key="shards")
    over = asyncio.Event()

    async def refresh() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), REFRESH_SECONDS)
            with _decoration():
                await aupdate_progress_artifact(shards, share_done(build))
                await _update_table(table, progress_rows(build))

    refreshing = asyncio.ensure_future(refresh())
    try:
        yield
    finally:
        over.set()
        await refreshing
        with _decoration():
            card = await asyncio.to_thread(dataset_card, build)
            await acreate_markdown_artifact(card, key="datasets")


@contextlib.contextmanager
def _decoration() -> Iterator[None]:
    """What goes wrong with the page must not change what becomes of the build."""
    try:
        yield
    except Exception:
        log.warning("the run's page could not be brought up to date", exc_info=True)


async def _update_table(artifact: UUID, rows: list[dict[str, Any]]) -> None:
    async with get_client() as client:
        await client.update_artifact(artifact, ArtifactUpdate(data=json.dumps(rows)))


def share_done(build: Build) -> float:
    """Percentage of the shards known to be wanted that exist."""
    progress = build.progress.values()
    have = sum(p.have for p in progress)
    wanted = max(have, sum(p.expected or 0 for p in progress))
    return 100.0 * have / wanted if wanted else 100.0


def progress_rows(build: Build) -> list[dict[str, Any]]:
    """A row per dataset: what is done, at which rate, and how long the rest will take."""
    return [_progress_row(progress) for progress in build.progress.values()]


def _progress_row(progress: Progress) -> dict[str, Any]:
    return {
        "dataset": progress.name,
        "shards": f"{progress.have} of {'?' if progress.expected is None else progress.expected}",
        "made": progress.made,
        "reused": progress.reused,
        "failed": progress.failed,
        "samples": progress.samples,
        "rejects": reasons_text(progress.reasons) or "0",
        "bytes": format_bytes(progress.bytes),
        "shards a minute": round(60 * progress.rate, 1),
        "time left": "" if progress.left is None else format_seconds(progress.left),
    }


def dataset_card(build: Build) -> str:
    """Markdown: the table of datasets, their lineage as a graph, and a picture of each new one."""
    parts = ["## Datasets", markdown_report(build), "## Lineage", _lineage_graph(build)]
    for name, progress in build.progress.items():
        if progress.made and progress.version and (picture := _picture(build, name)):
            parts += [f"## {name}@{progress.version[:SHORT]}", picture]
    return "\n\n".join(parts)


def _lineage_graph(build: Build) -> str:
    lines = ["```mermaid", "graph LR"]
    for source, version in build.sources.items():
        lines.append(f'  {_node(source)}[("{source}@{version[:SHORT]}")]')
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
