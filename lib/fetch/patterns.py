"""Which URLs are meant: by domain, or by a glob."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import TypeAlias
from urllib.parse import urlsplit

from reelmill.errors import Rejected, StageError
from reelmill.fetch.urls import host_of

Match: TypeAlias = Callable[[str], bool]
"""Says of a normalised URL whether it is meant."""

_GLOB = re.compile(r"[*?/:\[\]]")


def matcher(patterns: Iterable[str]) -> Match:
    """Return a function that says whether a URL matches any of ``patterns``.

    A pattern is a domain, which stands for all below it too (``example.com``), or, if it holds one
    of ``*?/:[]``, a glob of the whole URL (``https://example.com/private/*``).

    Raises:
        StageError: A pattern is neither.
    """
    domains: set[str] = set()
    globs: list[str] = []
    for pattern in patterns:
        if _GLOB.search(pattern):
            globs.append(fnmatch.translate(pattern))
        else:
            domains.add(_domain(pattern))
    glob = re.compile("|".join(globs)) if globs else None

    def matches(url: str) -> bool:
        if domains:
            host = (urlsplit(url).hostname or "").rstrip(".")
            while host:
                if host in domains:
                    return True
                host = host.partition(".")[2]
        return glob is not None and glob.match(url) is not None

    return matches


def _domain(pattern: str) -> str:
    try:
        return host_of(f"http://{pattern.strip('.')}/")
    except Rejected:
        message = f"{pattern!r} is neither a domain nor a glob of URLs; write example.com"
        raise StageError(message) from None
