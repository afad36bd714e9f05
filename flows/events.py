"""The events that Reelmill sends to Prefect, and how they get there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator

from prefect.client.orchestration import PrefectClient
from prefect.events import Event, emit_event
from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
from prefect.exceptions import PrefectHTTPStatusError

from reelmill.errors import told
from reelmill.flows.drive import Build
from reelmill.store.model import Result
from reelmill.tasks.planner import Todo

COMMITTED = "reelmill.dataset.committed"
"""A dataset has another version than before. The resource is ``reelmill.dataset.<name>``."""

_BATCH = 200
_REFUSALS = frozenset({400, 413, 422})
_HANDOVER_SECONDS = 5.0

log = logging.getLogger(__name__)


class Courier:
    """Takes all events of this process to Prefect's server, many at once, and keeps them while the
    server is away.

    Prefect's own client tries one event for seconds before the next has its turn, and a process
    would wait at its end for as long as there are events left.
    """

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()

    def put(self, item: tuple[str, Event]) -> None:
        """Take over an event from Prefect, in whatever thread."""
        self._waiting.append(item[1])

    async def deliver(self, client: PrefectClient) -> None:
        """Send what is there. If that raises, the events are kept."""
        size = _BATCH
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(size, len(self._waiting)))]
            try:
                content = [event.model_dump(mode="json") for event in batch]
                await client.request("POST", "/events", json=content)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                if len(batch) > 1:
                    # Not all for the sake of one.
                    size = 1
                    continue
                log.warning("Prefect refused the event %s: %s", batch[0].event, told(error))
            for _ in batch:
                self._waiting.popleft()

    async def deliver_all(self, client: PrefectClient) -> None:
        """Send what is there, with what Prefect has not handed over yet; as ``deliver``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(EventsWorker.instance().drain(), _HANDOVER_SECONDS)
        await self.deliver(client)


def _is_refusal(error: BaseException) -> bool:
    """Whether events will never be taken: there are too many, or one cannot be told or read."""
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code in _REFUSALS
    return isinstance(error, ValueError)


@contextlib.contextmanager
def courier() -> Iterator[Courier]:
    """Have a courier take the events that are sent while the body runs."""
    one = Courier()
    EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=one)
    try:
        yield one
    finally:
        EventsWorker.set_client_override(None)


class Announcer:
    """Sends an event for every dataset that a build gives another version."""

    def shard_ended(self, build: Build, todo: Todo, seconds: float, outcome: Result | str) -> None:
        """Shards are told of by their task runs."""

    def committed(self, build: Build, name: str) -> None:
        progress = build.progress[name]
        if not progress.moved:
            return
        totals = build.planner.manifest(name).totals()
        emit_event(
            COMMITTED,
            resource={
                "prefect.resource.id": f"reelmill.dataset.{name}",
                "prefect.resource.name": build.labels[name],
                "reelmill.store": build.store.url,
                "reelmill.stage": progress.stage,
            },
            payload={
                "name": name,
                "version": progress.version,
                "label": build.labels[name],
                "store": build.store.url,
                "parents": [
                    build.labels[parent] for parent in build.recipe.datasets[name].inputs.values()
                ],
                "shards": totals.shards,
                "samples": progress.samples,
                "rejects": progress.rejects,
                "bytes": totals.bytes,
                "holes": list(build.planner.holes(name)),
            },
        )
