"""Many files at once, from wherever they are: bounded, retried, and never ahead of the consumer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from reelmill.errors import Rejected
from reelmill.fetch.inspection import inspected
from reelmill.fetch.manners import OPTED_OUT
from reelmill.fetch.patterns import matcher
from reelmill.fetch.rules import SITE
from reelmill.fetch.schedule import Limits, Schedule
from reelmill.fetch.sources import PoliteSource, Sources
from reelmill.fetch.transfer import (
    AttemptError,
    Fetched,
    FetchFailure,
    FetchPolicy,
    Outcome,
    Request,
    Transfer,
    Unchanged,
)
from reelmill.fetch.urls import normalise

__all__ = [
    "FetchFailure",
    "FetchPolicy",
    "Fetched",
    "Outcome",
    "Request",
    "Unchanged",
    "fetch_all",
    "fetch_iter",
]

MAX_PAUSE_S: Final = 60.0
"""Longest pause between two attempts in seconds, even if a server asks for more."""

_UNREACHED: Final = frozenset(
    {"connect", "dns", "proxy", "reset", "robots_unreachable", "timeout", "tls"}
)
# Of these the host may not know: they tell nothing of it.
_UNASKED: Final = frozenset({"no_driver", "opted_out", "private_address", "robots"})
_WEB: Final = ("http://", "https://")

_Requests: TypeAlias = Iterable[Request | tuple[str, str]]
_Item: TypeAlias = tuple[str, Outcome] | None


async def fetch_all(
    requests: _Requests, policy: FetchPolicy, scratch: Path
) -> AsyncGenerator[tuple[str, Outcome], None]:
    """Fetch what each of ``requests`` names and yield ``(key, outcome)`` as each one ends.

    All of ``requests`` are read at once, so that no slow host holds up another. At most
    ``policy.concurrency`` files are on their way, or in the consumer's hands since its last step;
    one that waits for its host or for another attempt is none of them.

    The consumer closes each `Fetched`. Close the generator (``aclose``) to stop early: what it
    holds is cancelled and deleted.

    Args:
        requests: Or pairs of a key and a URL.
        policy: The limits.
        scratch: An existing directory for bodies larger than ``policy.memory_bytes``.

    Raises:
        StageError: Something outside the data failed: the scratch directory, the credentials of an
            object store. A URL that cannot be had is no error but a `FetchFailure`.
    """
    items: asyncio.Queue[_Item] = asyncio.Queue()
    run = _Run(policy, scratch, items.put_nowait)
    task = asyncio.create_task(run.run(requests))
    try:
        while item := await items.get():
            yield item
            run.taken += 1
            run.step()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while not items.empty():
            _close(items.get_nowait())


def fetch_iter(
    requests: _Requests, policy: FetchPolicy, scratch: Path
) -> Generator[tuple[str, Outcome], None, None]:
    """Do `fetch_all` for a consumer that is not asynchronous, in a thread with its own event loop.

    Fetching goes on while the consumer works. The thread ends with the generator, however that
    ends. ``requests`` is read in that thread.
    """
    loop = asyncio.new_event_loop()
    # Beside the files themselves, name resolution and inspection wait in these threads.
    executor = ThreadPoolExecutor(2 * policy.concurrency, thread_name_prefix="fetch-io")
    loop.set_default_executor(executor)
    thread = threading.Thread(target=_serve, args=(loop, executor), name="fetch", daemon=True)
    thread.start()
    items: SimpleQueue[_Item] = SimpleQueue()
    lot = max(1, policy.concurrency // 4)
    run = _Run(policy, scratch, items.put)
    end = asyncio.run_coroutine_threadsafe(run.run(requests), loop)
    try:
        while item := items.get():
            yield item
            run.taken += 1
            # To wake the loop costs as much as a small file: room is told of in lots, and at the
            # latest when there is nothing else to do.
            if not run.nudged and (items.empty() or run.taken % lot == 0):
                run.nudged = True
                loop.call_soon_threadsafe(run.step)
        end.result()
    finally:
        stop = asyncio.run_coroutine_threadsafe(_shut_down(run, items), loop)
        stop.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        # The garbage collector may end a forgotten generator in the very thread to wait for.
        if threading.current_thread() is not thread:
            thread.join()
            stop.result()


def _serve(loop: asyncio.AbstractEventLoop, executor: ThreadPoolExecutor) -> None:
    try:
        loop.run_forever()
    finally:
        # A resolver or a dead network disk may hold a thread for long; nobody needs its answer.
        executor.shutdown(wait=False, cancel_futures=True)
        loop.close()


async def _shut_down(run: _Run, items: SimpleQueue[_Item]) -> None:
    # It cancels its own tasks, and once: a second time would cut off what they clean up.
    if run.task is not None and not run.task.done():
        run.task.cancel()
        await asyncio.wait([run.task])
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    while True:
        try:
            _close(items.get_nowait())
        except Empty:
            return


def _close(item: _Item) -> None:
    if item is not None and isinstance(item[1], Fetched):
        item[1].close()


@dataclass(slots=True, eq=False)
class _Row:
    """A request that is under way."""

    request: Request
    url: str
    host: str
    source: str
    transfer: Transfer | None = None
    """From the first attempt on."""
    until: float | None = None
    """When the time for all attempts is up, once the first one has begun."""
    failure: FetchFailure | None = None
    """Of the last attempt."""


class _Run:
    """One set of requests, from the first attempt to the last outcome.

    All but ``taken`` and ``nudged``, which a consumer in another thread sets, belongs to the loop.

    Args:
        deliver: Is given each key and outcome, and at the very end, however that comes, None.
    """

    def __init__(
        self, policy: FetchPolicy, scratch: Path, deliver: Callable[[_Item], object]
    ) -> None:
        self.taken = 0
        """Outcomes that the consumer is done with."""
        self.nudged = False
        """Whether a `step` is on its way already."""
        self.task: asyncio.Task[Any] | None = None
        """That of `run`, once it has begun."""
        self._policy = policy
        self._scratch = scratch
        self._deliver = deliver
        self._delivered = 0
        self._schedule: Schedule[_Row] = Schedule(self._limits)
        self._tasks: dict[asyncio.Task[Outcome | AttemptError], _Row] = {}
        self._open: set[_Row] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    async def run(self, requests: _Requests) -> None:
        """Bring all to their ends.

        Raises:
            StageError: Something outside the data failed.
        """
        self._loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        self._done = self._loop.create_future()
        try:
            async with AsyncExitStack() as stack:
                self._is_out = matcher(self._policy.opt_out)
                self._sources = Sources(self._policy, stack)
                try:
                    if self._policy.deadline_s is not None:
                        expiry = self._loop.call_later(self._policy.deadline_s, self._expire)
                        stack.callback(expiry.cancel)
                    for request in requests:
                        self._add(Request(*request))
                    self.step()
                    await self._done
                finally:
                    await self._stop()
        finally:
            self._deliver(None)

    def step(self) -> None:
        """Begin what may begin, or see that all has ended."""
        self.nudged = False
        if self._done.done():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        free = self._policy.concurrency - len(self._tasks) - (self._delivered - self.taken)
        while free > 0 and (row := self._schedule.take(now)) is not None:
            free -= 1
            self._begin(row, now)
        if not self._tasks and not self._schedule.waiting:
            self._done.set_result(None)
        elif free > 0 and (when := self._schedule.wake()) is not None:
            self._timer = self._loop.call_at(when, self.step)

    async def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for row in self._open:
            assert row.transfer is not None
            row.transfer.close()

    def _limits(self, host: str) -> Limits:
        policy = self._policy
        web = host.startswith(_WEB)
        per_host = policy.per_host if web else policy.concurrency
        return Limits(
            per_host=policy.sites.per_site if host.startswith(SITE) else per_host,
            rate=policy.rate if web else None,
            host_failures=policy.host_failures,
            host_pause_s=policy.host_pause_s,
            host_trials=policy.host_trials,
        )

    def _add(self, request: Request) -> None:
        try:
            url = normalise(request.url)
        except Rejected as rejected:
            failure = FetchFailure(rejected.reason, rejected.message, 0, False)
            self._hand_over(request.key, failure)
            return
        if url.startswith("file:") and not self._policy.allow_file:
            failure = FetchFailure("denied", "file URLs are not allowed (allow_files)", 0, False)
            self._hand_over(request.key, failure)
            return
        if self._is_out(url):
            self._hand_over(request.key, FetchFailure("opted_out", OPTED_OUT, 0, False))
            return
        source = self._sources.name(url)
        host = "/".join(url.split("/", 3)[:3])
        # A site's pages have limits of their own beside those of its files.
        host = f"{SITE}+{host}" if source == SITE else host
        row = _Row(request, url, host, source)
        self._schedule.add(host, row, self._loop.time())

    def _begin(self, row: _Row, now: float) -> None:
        """Begin an attempt, unless it would be too late."""
        if row.transfer is None:
            known = (row.request.etag, row.request.last_modified)
            row.transfer = Transfer(row.request.key, row.url, self._policy, self._scratch, known)
            row.transfer.extractor = row.source
            self._open.add(row)
        elif row.failure is not None and row.until is not None and now >= row.until:
            self._schedule.ended(row.host, row, now)
            self._end(row, row.failure)
            return
        task = self._loop.create_task(self._attempt(row, row.transfer))
        self._tasks[task] = row
        task.add_done_callback(self._attempted)

    async def _attempt(self, row: _Row, transfer: Transfer) -> Outcome | AttemptError:
        transfer.attempts += 1
        try:
            source = await self._sources.get(row.source)
            async with self._sources.turn(row.source, row.url):
                if row.until is None:
                    row.until = self._loop.time() + self._policy.timeout_s
                async with asyncio.timeout_at(row.until):
                    if row.source == SITE and self._policy.robots:
                        # yt-dlp has no manners of its own.
                        await self._admit(row.url)
                    if self._policy.inspector is None:
                        await source.fetch(transfer)
                    else:
                        await inspected(source, transfer, self._policy.inspector)
        except TimeoutError:
            return AttemptError("timeout", "the file did not arrive in time")
        except AttemptError as error:
            return error
        except Rejected as rejected:
            return transfer.fail(rejected.reason, rejected.message)
        return transfer.finish()

    async def _admit(self, url: str) -> None:
        polite = await self._sources.get("http")
        assert isinstance(polite, PoliteSource)
        await polite.admit(url)

    def _attempted(self, task: asyncio.Task[Outcome | AttemptError]) -> None:
        row = self._tasks.pop(task)
        if task.cancelled():
            if self._expired:
                self._schedule.ended(row.host, row, self._loop.time())
                self._end(row, _fail(row, "deadline", "the time for all files was up"))
                self.step()
            return
        error = task.exception()
        if error is not None:
            if not self._done.done():
                self._done.set_exception(error)
            return
        result = task.result()
        if isinstance(result, AttemptError):
            self._failed(row, result)
        else:
            self._schedule.reached(row.host, self._loop.time())
            self._end(row, result)
        self.step()

    def _failed(self, row: _Row, error: AttemptError) -> None:
        assert row.transfer is not None
        now = self._loop.time()
        given_up = False
        if error.reason in _UNREACHED:
            given_up = self._schedule.missed(row.host, row, now)
        elif error.reason in _UNASKED:
            self._schedule.ended(row.host, row, now)
        else:
            self._schedule.reached(row.host, now)
        if error.retry_after_s:
            self._schedule.pause(row.host, now + min(MAX_PAUSE_S, error.retry_after_s))
        transient = error.transient or error.reason == "timeout"
        row.failure = row.transfer.fail(error.reason, error.message, transient=transient)
        again = now + self._pause(row.transfer.attempts, error)
        in_time = row.until is not None and again < row.until
        left = row.transfer.attempts < self._policy.attempts and in_time
        if error.transient and left and not self._expired:
            self._schedule.put_off(row.host, row, again, now)
        else:
            self._end(row, row.failure)
        if given_up:
            # What the last of them failed of depends on the moment, and a message must not.
            message = f"{row.host.partition('://')[2]} is given up: request after request failed"
            for other in self._schedule.give_up(row.host):
                self._end(other, _fail(other, "host_down", message))

    def _pause(self, attempts: int, error: AttemptError) -> float:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        backoff = self._policy.backoff_s * 2.0 ** (attempts - 1) * jitter
        return min(MAX_PAUSE_S, max(backoff, error.retry_after_s))

    def _expire(self) -> None:
        self._expired = True
        for row in self._schedule.give_up():
            self._end(row, _fail(row, "deadline", "the time for all files was up"))
        for task in self._tasks:
            task.cancel()
        self.step()

    def _end(self, row: _Row, outcome: Outcome) -> None:
        if row.transfer is not None:
            self._open.discard(row)
            row.transfer.close()
        self._hand_over(row.request.key, outcome)

    def _hand_over(self, key: str, outcome: Outcome) -> None:
        self._delivered += 1
        self._deliver((key, outcome))


def _fail(row: _Row, reason: str, message: str) -> FetchFailure:
    """Return the failure of a row, whether it has begun or not."""
    if row.transfer is None:
        return FetchFailure(reason, message, 0, True)
    return row.transfer.fail(reason, message, transient=True)
