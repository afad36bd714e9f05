"""Where files can be fetched from: one source for each way, by name."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from itertools import groupby
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self, TypeAlias, runtime_checkable

from reelmill.errors import StageError
from reelmill.fetch.patterns import Match, matcher
from reelmill.fetch.rules import SITE
from reelmill.fetch.transfer import FetchPolicy, Transfer


class Source(Protocol):
    """One way to fetch files."""

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt to bring ``transfer`` to its end, from where it stands.

        Raises:
            AttemptError: The attempt failed.
            Rejected: The file is there, and is not wanted.
            StageError: Something outside the data failed.
        """


class OpenSource:
    """What sources share that open what they need when they need it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what was opened."""


@runtime_checkable
class RangeSource(Source, Protocol):
    """A source that can read a part of a file while the whole is on its way."""

    async def read_range(self, transfer: Transfer, start: int, end: int) -> bytes | None:
        """Return the bytes from ``start`` to ``end``; None: they cannot be had like this."""


@runtime_checkable
class BusySource(Source, Protocol):
    """A source with room for a few files at a time. Waiting for room is no part of their time."""

    def turn(self, url: str) -> AbstractAsyncContextManager[None]:
        """Return a context in which there is room for the file of a normalised URL."""


@runtime_checkable
class PoliteSource(Source, Protocol):
    """A source that knows what those who serve files ask of those who fetch them."""

    async def admit(self, url: str) -> None:
        """See whether a normalised URL may be asked for.

        Raises:
            AttemptError: It may not, or nobody can tell.
        """


Opener: TypeAlias = Callable[[FetchPolicy], AbstractAsyncContextManager[Source]]

SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "http": "reelmill.fetch.http:HTTPSource",
        "s3": "reelmill.fetch.objects:S3Source",
        "fsspec": "reelmill.fetch.drivers:FsspecSource",
        "file": "reelmill.fetch.files:FileSource",
        SITE: "reelmill.fetch.sites:SiteSource",
    }
)
"""The sources' names, and the `Opener` of each, as ``module:name``."""

_BY_SCHEME: Final = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "gs": "fsspec",
    "az": "fsspec",
    "abfs": "fsspec",
    "hf": "fsspec",
    "file": "file",
}


class Sources:
    """The sources of a policy, each opened when it is first needed."""

    def __init__(self, policy: FetchPolicy, stack: AsyncExitStack) -> None:
        self._policy = policy
        self._stack = stack
        self._open: dict[str, Source] = {}
        self._busy: dict[str, BusySource] = {}
        self._opening = asyncio.Lock()
        self._rules: list[tuple[Match, str]] = []
        for name, rules in groupby(policy.rules, lambda rule: rule[1]):
            patterns = [pattern for pattern, _ in rules]
            if name not in SOURCES:
                raise StageError(
                    f"{patterns[0]}: no source is called {name!r}; choose from {', '.join(SOURCES)}"
                )
            self._rules.append((matcher(patterns), name))

    def name(self, url: str) -> str:
        """Return the name of the source for a normalised URL: a rule's, for a web address, or that
        of its scheme."""
        own = _BY_SCHEME[url.partition(":")[0]]
        if own == "http":
            return next((name for matches, name in self._rules if matches(url)), own)
        return own

    def turn(self, name: str, url: str) -> AbstractAsyncContextManager[None]:
        """Return the context in which the source of this name, which is open, has room."""
        busy = self._busy.get(name)
        return nullcontext() if busy is None else busy.turn(url)

    async def get(self, name: str) -> Source:
        """Return the source of this name."""
        if name not in self._open:
            async with self._opening:
                if name not in self._open:
                    await self._open_source(name)
        return self._open[name]

    async def _open_source(self, name: str) -> None:
        # Some cost half a second of imports, for only few datasets.
        module, _, attribute = SOURCES[name].partition(":")
        opener: Opener = getattr(importlib.import_module(module), attribute)
        source = await self._stack.enter_async_context(opener(self._policy))
        if isinstance(source, BusySource):
            self._busy[name] = source
        self._open[name] = source
