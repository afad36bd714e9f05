"""Dask: finding or starting workers, and having work done on them whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from reelmill.errors import PoisonError, ReelmillError, told
from reelmill.flows import at_worker
from reelmill.flows.profile import GpuProfile, LocalProfile, Profile
from reelmill.flows.workers import (
    CONNECT_SECONDS,
    CPU,
    GPU,
    Found,
    Worker,
    find_workers,
    no_scheduler,
)
from reelmill.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from distributed import Client, Future

ALLOWED_FAILURES = 1
"""Workers of this machine that may die under one shard, among others that wait there, before it is
suspect. A suspect is tried as often again by itself."""

RECONNECT_SECONDS = 0.5
REFRESH_SECONDS = 2.0
MAX_ARGUMENTS = 1 << 20
"""Bytes that a call may send through the scheduler; what is larger belongs into the store."""


logger = logging.getLogger(__name__)

_UNREACHABLE = (OSError, ValueError, TypeError, ImportError)


@dataclass(frozen=True)
class Need:
    """What a stage wants of a worker.

    Attributes:
        label: the stage and its dataset, for people: ``split/clips``.
        resources: Dask resources that the worker must have.
        memory: bytes that making one shard may take, if known.
    """

    label: str
    resources: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None


class _LostError(Exception):
    """The scheduler, or the connection to it, went away while a task was with it."""


class _MovedError(Exception):
    """The workers that a task was meant for went away, and there are others."""


@dataclass(eq=False)
class _Flight:
    """A task on its way: where it may go, since when there is no such place, and the verdict."""

    future: Future[Any]
    need: Need
    placement: Mapping[str, Any]
    homeless: float | None = None
    verdict: Exception | None = None


class Cluster:
    """Workers that take on calls. Made by ``open_cluster``.

    Attributes:
        dashboard: link of Dask's dashboard, for people.
        address: of the scheduler.
        security: what another client of this cluster needs to connect, as Dask's ``Security``.
    """

    dashboard: str
    address: str
    security: Any

    def __init__(self, profile: Profile, found: Found) -> None:
        self._profile = profile
        self._found = found
        self._patience = float(profile.patience)
        self._workers: list[Worker] = []
        self._pattern: list[Worker] = []
        self._flights: set[_Flight] = set()
        self._connecting = asyncio.Lock()
        self._suspects = asyncio.Lock()
        self._gone: str | None = None
        self._heard = 0.0
        self._handlers: dict[str, Callable[[Any], object]] = {}
        self._client: Client
        self._watching: asyncio.Task[None]

    @property
    def threads(self) -> int:
        """Threads of all workers now."""
        return sum(worker.threads for worker in self._workers)

    @property
    def capacity(self) -> int:
        """Threads of all workers now, or as many as there may be once there is work for them."""
        return max(self.threads, sum(worker.threads for worker in self._found.promised))

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        key: str,
        need: Need,
        priority: int = 0,
        avoid: str | None = None,
    ) -> Any:
        """Have a function of an imported module called on a worker; what it returned.

        The call is made again if its worker dies, and if the scheduler goes away and comes back.

        Args:
            args: small: they travel through the scheduler.
            key: names the task, such as ``split/clips/00012-1f0c``; a cluster knows it once.
            priority: the largest goes first.
            avoid: the address of a worker that it shall not go to if there is another.

        Raises:
            PoisonError: workers died under it, again and again.
            ReelmillError: the scheduler, or any worker that fits, stayed away for too long.
        """
        size = sum(len(arg) for arg in args if isinstance(arg, str | bytes))
        if size > MAX_ARGUMENTS:
            raise ReelmillError(
                f"{key}: its arguments take {format_bytes(size)}, more than a scheduler should "
                f"carry ({format_bytes(MAX_ARGUMENTS)}); put them into the store"
            )
        from distributed.scheduler import KilledWorker

        # Dask keeps figures of tasks whose names are equal up to the first dash, for ever.
        name = "-".join(key.rsplit("/", 1))
        call = (function, args, need, priority, avoid)
        with contextlib.suppress(KilledWorker):
            return await self._persist(name, *call)
        # All tasks that wait on a worker when it dies count as suspects: by itself each shows
        # whether it is the cause.
        async with self._suspects:
            try:
                return await self._persist(f"{name}-alone", *call)
            except KilledWorker as error:
                deaths = 2 * (error.allowed_failures + 1)
                raise PoisonError(
                    f"{deaths} workers died while making it (out of memory, or a crash); nothing "
                    "of it was committed"
                ) from None

    def listen(self, topic: str, handler: Callable[[Any], object]) -> None:
        """Have ``handler`` called, in the event loop, with what workers tell on a topic of Dask's
        from now on. What is told while the scheduler is away is lost."""
        self._handlers[topic] = handler
        self._subscribe()

    def _subscribe(self) -> None:
        for topic, handler in self._handlers.items():
            self._client.subscribe_topic(topic, lambda event, tell=handler: tell(event[1]))

    async def _persist(self, name: str, *call: Any) -> Any:
        """Submit a call until it comes to an end of its own."""
        for attempt in itertools.count():
            client = self._client
            try:
                return await self._submit(client, f"{name}-{attempt}" if attempt else name, *call)
            except _LostError:
                await self._reconnect(client)
            except _MovedError:
                continue
        raise AssertionError("unreachable")

    async def _submit(
        self,
        client: Client,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        need: Need,
        priority: int,
        avoid: str | None,
    ) -> Any:
        if self._gone or client.status == "closed":
            raise _LostError
        placement = self._elsewhere(self._placement(need), avoid)
        future = client.submit(
            at_worker.call, function, *args, key=name, pure=False, priority=priority, **placement
        )
        flight = _Flight(future, need, placement)
        self._flights.add(flight)
        try:
            error = await future.exception()
            if flight.verdict is not None:
                raise flight.verdict
            if future.cancelled():
                raise _LostError
            if error is not None:
                raise error
            try:
                return await future
            except (OSError, FutureCancelled):
                raise _LostError from None
        finally:
            self._flights.discard(flight)
            # Cancels what is not done. A result that is not released stays on a worker, and would
            # be made again if that worker died.
            future.release()

    def _placement(self, need: Need) -> dict[str, Any]:
        """Where a task may go, as arguments of ``submit``, by the workers there are."""
        if need.resources:
            return {"resources": dict(need.resources)}
        if self._profile.cpu_on_gpu or not self._pattern:
            return {}
        plain = [w for w in self._pattern if not w.has({GPU: 1}) and not w.has({CPU: 1})]
        if not plain:
            return {"resources": {CPU: 1}}
        if not any(worker.has({GPU: 1}) for worker in self._pattern):
            return {}
        if any(worker.has({CPU: 1}) for worker in self._pattern):
            return {"resources": {CPU: 1}}
        return {"workers": [worker.address for worker in plain]}

    def _elsewhere(self, placement: dict[str, Any], avoid: str | None) -> dict[str, Any]:
        """``placement`` without a worker, if others are left."""
        others = [
            worker.address
            for worker in self._workers
            if worker.address != avoid
            and worker.has(placement.get("resources", {}))
            and worker.address in placement.get("workers", [worker.address])
        ]
        return {**placement, "workers": others} if avoid and others else placement

    def _has_place(self, placement: Mapping[str, Any]) -> bool:
        if "workers" in placement:
            return any(worker.address in placement["workers"] for worker in self._workers)
        wanted = placement.get("resources", {})
        return any(worker.has(wanted) for worker in [*self._workers, *self._found.promised])

    async def _reconnect(self, lost: Client) -> None:
        """Get the connection back, for all who wait for it."""
        async with self._connecting:
            if self._gone:
                raise ReelmillError(self._gone)
            await asyncio.sleep(RECONNECT_SECONDS)
            if self._client is not lost:
                return
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._patience
            # The client tries by itself for a while.
            while lost.status == "connecting" and loop.time() < deadline:
                await asyncio.sleep(RECONNECT_SECONDS)
            while lost.status != "running":
                left = max(1.0, deadline - loop.time())
                try:
                    self._client = await self._found.connect(min(left, CONNECT_SECONDS))
                    break
                except _UNREACHABLE:
                    if loop.time() >= deadline:
                        self._gone = self._lost_for_good()
                        raise ReelmillError(self._gone) from None
                    await asyncio.sleep(RECONNECT_SECONDS)
            self._heard = loop.time()
            self._subscribe()
            if self._client is not lost:
                with contextlib.suppress(Exception):
                    await lost.close(timeout=RECONNECT_SECONDS)
            with contextlib.suppress(OSError):
                await self._refresh()

    def _lost_for_good(self) -> str:
        waited = format_seconds(self._patience)
        return (
            f"the Dask scheduler at {self.address} went away and did not come back for {waited}; "
            "start it again, and its workers"
        )

    async def __aenter__(self) -> Self:
        try:
            self._client = await self._found.connect(CONNECT_SECONDS)
        except _UNREACHABLE as error:
            where = getattr(self._profile, "address", "its address")
            raise ReelmillError(no_scheduler(where, error)) from error
        self.address = self._client.scheduler.address
        self.dashboard = self._client.dashboard_link
        self.security = self._client.security
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._client.close(timeout=CONNECT_SECONDS)

    async def wait_for_workers(self, needs: Sequence[Need]) -> None:
        """Wait until there are workers, unless none of them will be able to do what is needed.

        Dask lets a task that no worker can take wait for ever without a word.

        Raises:
            ReelmillError: no worker came, or none that meets a need.
        """
        if not self._found.promised:
            await self._wait_for_one()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._found.grace
        await self._refresh()
        while unmet := next(filter(None, map(self._unmet, needs)), None):
            if loop.time() >= deadline:
                raise ReelmillError(unmet)
            await asyncio.sleep(RECONNECT_SECONDS)
            await self._refresh()
        if not self._workers and not self._found.on_demand:
            await self._wait_for_one()
            await self._refresh()
        if any(GPU in need.resources for need in needs):
            from reelmill.flows.card import TellOfCard

            await self._client.register_plugin(TellOfCard())

    async def _wait_for_one(self) -> None:
        seconds = self._profile.wait
        try:
            await self._client.wait_for_workers(1, timeout=seconds)
        except OSError:
            raise ReelmillError(
                f"the Dask scheduler has had no worker for {format_seconds(seconds)}; start some"
            ) from None

    async def _refresh(self) -> None:
        """Take in which workers there are."""
        told = await self._client.scheduler.identity(n_workers=-1)
        self._workers = [
            Worker(w["nthreads"], w["memory_limit"] or 0, w["resources"], address)
            for address, w in told["workers"].items()
        ]
        # While a cluster starts again, its workers will most likely be as they were.
        self._pattern = [*self._workers, *self._found.promised] or self._pattern
        self._heard = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """Follow which workers there are, and end the waiting that has become hopeless."""
        while True:
            # Telling of a thousand workers costs a scheduler something.
            await asyncio.sleep(REFRESH_SECONDS + len(self._workers) / 50)
            try:
                if self._client.status == "running":
                    with contextlib.suppress(OSError, FutureCancelled):
                        await asyncio.wait_for(self._refresh(), CONNECT_SECONDS)
                    await self._judge()
                await self._found.tend()
            except Exception as error:
                logger.warning("looking after the workers failed: %s", told(error))

    async def _judge(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._heard > self._patience:
            # One that froze keeps its connections, and would hold up each shard for as long.
            self._gone = self._lost_for_good()
        for flight in list(self._flights):
            if self._gone:
                flight.verdict = ReelmillError(self._gone)
            elif self._has_place(flight.placement):
                flight.homeless = None
            elif self._has_place(self._placement(flight.need)):
                flight.verdict = _MovedError()
            elif flight.homeless is None:
                flight.homeless = now
            elif now - flight.homeless > self._patience:
                waited = format_seconds(self._patience)
                flight.verdict = ReelmillError(
                    f"no worker that {flight.need.label} can run on has been there for {waited}"
                )
            if flight.verdict is not None:
                await flight.future.cancel()

    def _unmet(self, need: Need) -> str | None:
        """Why no worker can do what is needed, and what to do."""
        workers = [*self._workers, *self._found.promised]
        able = [worker for worker in workers if self._takes(worker, need)]
        if not able and not need.resources:
            return (
                f"{need.label} needs a worker without a GPU, and all have one; "
                f"{self._profile.get_resources('CPU=1')}, or say cpu_on_gpu: true in the profile"
            )
        if not able:
            wanted = ", ".join(f"{name}={count:g}" for name, count in need.resources.items())
            return (
                f"{need.label} needs a worker with {wanted}, and none has it; "
                f"{self._profile.get_resources(wanted)}"
            )
        largest = max(worker.share for worker in able)
        if need.memory is not None and need.memory > largest:
            return (
                f"{need.label} needs {format_bytes(need.memory)} for a shard, and the largest "
                f"worker has {format_bytes(int(largest))} for each thread; "
                f"{self._profile.get_memory()}"
            )
        return None

    def _takes(self, worker: Worker, need: Need) -> bool:
        if need.resources or self._profile.cpu_on_gpu:
            return worker.has(need.resources)
        return worker.has({CPU: 1}) or not worker.has({GPU: 1})


@asynccontextmanager
async def open_cluster(
    profile: Profile, limit: int | None = None, needs: Sequence[Need] = ()
) -> AsyncIterator[Cluster]:
    """The cluster of a profile; what was started for it lives as long as the body.

    Args:
        limit: start no more workers on this machine than this, however many cores there are.
        needs: what will be asked of the workers.

    Raises:
        ReelmillError: there is no scheduler, no worker, or none that meets a need.
    """
    import dask

    with dask.config.set(_settings(profile)):
        async with find_workers(profile, limit) as found:
            cluster = Cluster(profile, found)
            async with cluster:
                try:
                    await cluster.wait_for_workers(needs)
                except OSError as error:
                    raise ReelmillError(
                        f"the Dask scheduler at {cluster.address} went away: {told(error)}"
                    ) from error
                yield cluster


def _settings(profile: Profile) -> dict[str, Any]:
    """Dask's settings as they suit us, but for those that somebody has chosen."""
    import dask
    from distributed.config import defaults

    ours: dict[str, Any] = {
        "distributed.admin.tick.limit": "30s",
        "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    }
    # Elsewhere workers die for other reasons too: nodes that are needed back, or fail.
    if isinstance(profile, LocalProfile | GpuProfile):
        ours["distributed.scheduler.allowed-failures"] = ALLOWED_FAILURES
    chosen = dask.config.collect()
    return {
        name: value
        for name, value in ours.items()
        if dask.config.get(name, None, config=chosen) is None
        and dask.config.get(name) == dask.config.get(name, config=defaults)
    }
