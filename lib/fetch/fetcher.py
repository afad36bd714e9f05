"""Many files at once, from wherever they are: bounded, retried, and never ahead of the consumer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from reelmill.errors import Rejected
from reelmill.fetch.files import fetch_file
from reelmill.fetch.http import HTTPSource
from reelmill.fetch.rules import source_of
from reelmill.fetch.transfer import AttemptError, Fetched, FetchFailure, FetchPolicy, Transfer
from reelmill.fetch.urls import normalise

__all__ = ["FetchFailure", "FetchPolicy", "Fetched", "fetch_all", "fetch_iter"]

_Outcomes: TypeAlias = AsyncGenerator[tuple[str, Fetched | FetchFailure], None]

MAX_PAUSE_S: Final = 60.0
"""Longest pause between two attempts in seconds, even if a server asks for more."""


async def fetch_all(
    requests: Iterable[tuple[str, str]], policy: FetchPolicy, scratch: Path
) -> AsyncGenerator[tuple[str, Fetched | FetchFailure], None]:
    """Fetch the URL of each ``(key, url)`` and yield ``(key, outcome)`` as each one ends.

    At most ``policy.concurrency`` files are on their way, waiting, or in the consumer's hands since
    its last step; so ``requests`` is read no further than that ahead. It is read in the event loop
    and should not block.

    The consumer closes each `Fetched`. Close the generator (``aclose``) to stop early: what it
    holds is cancelled and deleted.

    Args:
        requests: Keys, passed through, and URLs, in any spelling.
        policy: The limits.
        scratch: An existing directory for bodies larger than ``policy.memory_bytes``.

    Raises:
        StageError: Something outside the data failed: the scratch directory, the credentials of an
            object store. A URL that cannot be had is no error but a `FetchFailure`.
    """
    waiting = iter(requests)
    running: set[asyncio.Task[tuple[str, Fetched | FetchFailure]]] = set()
    ended: deque[asyncio.Task[tuple[str, Fetched | FetchFailure]]] = deque()
    async with _Fetcher(policy, scratch) as fetcher:
        try:
            while True:
                free = policy.concurrency - len(running) - len(ended)
                for key, url in islice(waiting, free):
                    running.add(asyncio.create_task(fetcher.fetch(key, url)))
                if not ended:
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    ended.extend(done)
                yield ended.popleft().result()
        finally:
            for task in running:
                task.cancel()
            outcomes = await asyncio.gather(*running, *ended, return_exceptions=True)
            for outcome in outcomes:
                if not isinstance(outcome, BaseException) and isinstance(outcome[1], Fetched):
                    outcome[1].close()


def fetch_iter(
    requests: Iterable[tuple[str, str]], policy: FetchPolicy, scratch: Path
) -> Generator[tuple[str, Fetched | FetchFailure], None, None]:
    """Do `fetch_all` for a consumer that is not asynchronous, in a thread with its own event loop.

    Fetching goes on while the consumer works. The thread ends with the generator, however that
    ends. ``requests`` is read in that thread.
    """
    loop = asyncio.new_event_loop()
    # Beside the files themselves, name resolution waits in these threads.
    executor = ThreadPoolExecutor(2 * policy.concurrency, thread_name_prefix="fetch-io")
    loop.set_default_executor(executor)
    thread = threading.Thread(target=_run, args=(loop, executor), name="fetch", daemon=True)
    thread.start()
    outcomes = fetch_all(requests, policy, scratch)
    try:
        while item := asyncio.run_coroutine_threadsafe(_next(outcomes), loop).result():
            yield item
    finally:
        end = asyncio.run_coroutine_threadsafe(_shut_down(outcomes), loop)
        end.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        # The garbage collector may end a forgotten generator in the very thread to wait for.
        if threading.current_thread() is not thread:
            thread.join()
            end.result()


def _run(loop: asyncio.AbstractEventLoop, executor: ThreadPoolExecutor) -> None:
    try:
        loop.run_forever()
    finally:
        # A resolver or a dead network disk may hold a thread for long; nobody needs its answer.
        executor.shutdown(wait=False, cancel_futures=True)
        loop.close()


async def _next(outcomes: _Outcomes) -> tuple[str, Fetched | FetchFailure] | None:
    return await anext(outcomes, None)


async def _shut_down(outcomes: _Outcomes) -> None:
    # An interrupt of the consumer leaves a step of the generator running.
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await outcomes.aclose()


def _no_turn(url: str) -> AbstractAsyncContextManager[None]:
    return nullcontext()


class _Fetcher:
    """The sources of all schemes, and the attempts at one file."""

    def __init__(self, policy: FetchPolicy, scratch: Path) -> None:
        self._policy = policy
        self._scratch = scratch
        self._stack = AsyncExitStack()
        self._sources: dict[str, Callable[[Transfer], Awaitable[None]]] = {}
        # Waiting for a turn is not part of a file's time.
        self._turns: dict[str, Callable[[str], AbstractAsyncContextManager[None]]] = {}

    async def __aenter__(self) -> Self:
        http = await self._stack.enter_async_context(HTTPSource(self._policy))
        self._sources = {"http": http.fetch, "https": http.fetch}
        if self._policy.allow_file:
            self._sources["file"] = fetch_file
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def fetch(self, key: str, url: str) -> tuple[str, Fetched | FetchFailure]:
        try:
            url = normalise(url)
        except Rejected as rejected:
            return key, FetchFailure(rejected.reason, rejected.message, 0, False)
        name = source_of(url, self._policy.rules)
        source = self._source(name)
        if source is None:
            return key, FetchFailure("denied", "file URLs are not allowed", 0, False)
        transfer = Transfer(key, url, self._policy, self._scratch)
        turn = self._turns.get(name, _no_turn)
        try:
            async with turn(url):
                return key, await self._attempt(source, transfer)
        finally:
            transfer.close()

    def _source(self, scheme: str) -> Callable[[Transfer], Awaitable[None]] | None:
        if scheme == "yt-dlp" and scheme not in self._sources:
            from reelmill.fetch.sites import SiteSource

            sites = SiteSource(self._policy)
            self._stack.push_async_exit(sites)
            self._sources[scheme] = sites.fetch
            self._turns[scheme] = sites.turn
        if scheme == "s3" and scheme not in self._sources:
            # Half a second of imports that only few datasets need.
            from reelmill.fetch.objects import S3Source

            source = S3Source(self._policy)
            self._stack.push_async_exit(source)
            self._sources[scheme] = source.fetch
        return self._sources.get(scheme)

    async def _attempt(
        self, source: Callable[[Transfer], Awaitable[None]], transfer: Transfer
    ) -> Fetched | FetchFailure:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._policy.timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout_at(deadline):
                    await source(transfer)
                return transfer.finish()
            except TimeoutError:
                return FetchFailure("timeout", "the file did not arrive in time", attempt, True)
            except AttemptError as error:
                pause = self._pause(attempt, error)
                if (
                    not error.transient
                    or attempt == self._policy.attempts
                    or clock() + pause >= deadline
                ):
                    return FetchFailure(error.reason, error.message, attempt, error.transient)
            await asyncio.sleep(pause)

    def _pause(self, attempt: int, error: AttemptError) -> float:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        backoff = self._policy.backoff_s * 2.0 ** (attempt - 1) * jitter
        return min(MAX_PAUSE_S, max(backoff, error.retry_after_s))
