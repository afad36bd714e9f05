"""What those who serve files ask of those who fetch them: robots.txt, opt-outs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from protego import Protego

from reelmill.fetch.patterns import matcher
from reelmill.fetch.transfer import AttemptError, FetchPolicy

MAX_ROBOTS_BYTES: Final = 4 << 20
"""Size in bytes of the largest ``robots.txt`` that is read."""

# What stands behind this is not heeded (RFC 9309: 500 KiB at least are). Rules take twenty times
# the room of their text.
_HEEDED_BYTES: Final = 512 << 10
# Of all rules that are remembered, with something for each site; others are asked for again.
_KNOWN_BYTES: Final = 4 << 20
_SITE_BYTES: Final = 1 << 10
_AGENT: Final = re.compile(r"\s*user(?:-|\s*)agent(?:\s*:|\s|$)([^#]*)", re.IGNORECASE)
_OTHERS: Final = "User-agent: -"
_MAX_AGENTS: Final = 64

OPTED_OUT: Final = "the policy opts this URL out"

_OPT_OUTS: Final = frozenset({"noai", "noimageai", "none"})
# Directives of X-Robots-Tag that have a value behind a colon, where other tags name an agent.
_WITH_VALUE: Final = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)
# A site whose robots.txt could not be had is asked for it again no sooner than this.
_RETRY_S: Final = 30.0
_LONGEST_S: Final = 60.0
# Answers that say there is no robots.txt; so do all others of 400 to 499.
_NO_ROBOTS: Final = frozenset({"geo", "login", "removed", "redirect_loop"})


class Manners:
    """The rules of a policy, and those of the sites, each of which is asked once.

    Args:
        policy: Says which rules are heeded.
        read: Fetches a ``robots.txt``.
    """

    def __init__(self, policy: FetchPolicy, read: Callable[[str], Awaitable[bytes]]) -> None:
        self._policy = policy
        self._read = read
        self._is_out = matcher(policy.opt_out) if policy.opt_out else None
        self._agent = policy.user_agent.partition("/")[0].strip().lower()
        self._robots: dict[str, asyncio.Task[Protego | AttemptError | None]] = {}
        self._sizes: dict[str, int] = {}
        self._known = 0
        self._stale: dict[str, float] = {}

    async def close(self) -> None:
        """Stop asking."""
        for task in self._robots.values():
            task.cancel()
        await asyncio.gather(*self._robots.values(), return_exceptions=True)

    async def admit(self, url: str) -> None:
        """See whether a normalised URL may be asked for.

        Raises:
            AttemptError: ``opted_out``, ``robots``, ``robots_unreachable``; or what keeps the
                site's ``robots.txt``, and so the site, from being asked for.
        """
        if self._is_out is not None and self._is_out(url):
            raise AttemptError("opted_out", OPTED_OUT)
        if not self._policy.robots:
            return
        parts = urlsplit(url)
        robots = await self._robots_of(f"{parts.scheme}://{parts.netloc}")
        if isinstance(robots, AttemptError):
            raise robots
        if robots is not None and not robots.can_fetch(url, self._policy.user_agent):
            raise AttemptError("robots", "the site's robots.txt disallows it")

    def judge(self, headers: Mapping[str, str]) -> None:
        """See whether the headers of a reply opt out of such use.

        Raises:
            AttemptError: ``opted_out``.
        """
        if self._policy.noai and opts_out(headers.get("x-robots-tag", ""), self._agent):
            raise AttemptError("opted_out", "the server's X-Robots-Tag opts out")

    async def _robots_of(self, origin: str) -> Protego | AttemptError | None:
        asked = self._robots.get(origin)
        if asked is None or self._stale.get(origin, float("inf")) < monotonic():
            self._stale.pop(origin, None)
            asked = self._robots[origin] = asyncio.create_task(self._ask(origin))
        # Others may wait for the same answer.
        return await asyncio.shield(asked)

    async def _ask(self, origin: str) -> Protego | AttemptError | None:
        try:
            async with asyncio.timeout(min(_LONGEST_S, self._policy.timeout_s)):
                data = await self._read(f"{origin}/robots.txt")
            self._remember(origin, len(data))
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, _rules, data, self._policy.user_agent)
        except TimeoutError:
            why = "it did not arrive in time"
        except AttemptError as error:
            if error.reason == "private_address":
                return error
            if error.reason in _NO_ROBOTS or error.reason.startswith("http_4"):
                return None
            why = error.message
        self._stale[origin] = monotonic() + _RETRY_S
        message = f"the site's robots.txt could not be had: {why}"
        return AttemptError("robots_unreachable", message, transient=True)

    def _remember(self, origin: str, size: int) -> None:
        """Make room for the rules of a site, of which so many bytes came; the oldest go."""
        self._known -= self._sizes.pop(origin, 0)
        self._sizes[origin] = min(size, _HEEDED_BYTES) + _SITE_BYTES
        self._known += self._sizes[origin]
        while self._known > _KNOWN_BYTES:
            oldest = next(iter(self._sizes))
            self._known -= self._sizes.pop(oldest)
            del self._robots[oldest]


def _rules(data: bytes, agent: str) -> Protego:
    """The rules for ``agent`` in a ``robots.txt``, in about a second at most."""
    return Protego.parse(_ours(data[:_HEEDED_BYTES].decode("utf-8-sig", "replace"), agent))


def _ours(text: str, agent: str) -> str:
    """The text with one agent in place of all that cannot be ``agent``: each rule would be kept for
    each agent of its group, and a text of 50 kB has room for a thousand of both."""
    agent = agent.lower()
    lines: list[str] = []
    named: set[str] = set()
    for line in text.splitlines():
        if (match := _AGENT.match(line)) is not None:
            name = match[1].strip().lower().replace("*", "")
            if name not in agent or (len(named) >= _MAX_AGENTS and name not in named):
                line = _OTHERS
            else:
                named.add(name)
            if lines and lines[-1] == line:
                continue
        lines.append(line)
    return "\n".join(lines)


def opts_out(header: str, agent: str) -> bool:
    """Whether the joined ``X-Robots-Tag`` headers opt ``agent`` (lower case) out.

    A name before a colon limits the directives behind it, up to the next name, to that agent.
    """
    ours = True
    for part in header.lower().split(","):
        name, colon, directive = part.strip().partition(":")
        if colon and name.strip() in _WITH_VALUE:
            continue
        if colon:
            ours = name.strip() == agent
            part = directive
        if ours and part.strip() in _OPT_OUTS:
            return True
    return False
