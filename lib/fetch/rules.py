"""Which source fetches an address: by rules, the site's or the user's, before its scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Final, Literal, TypeAlias

Extractor: TypeAlias = Literal["auto", "http", "yt-dlp"]

Rules: TypeAlias = tuple[tuple[str, str], ...]
"""Patterns and the sources that fetch what they match; the first that matches counts."""

HOSTS: Final = (
    "bilibili.com",
    "b23.tv",
    "dailymotion.com",
    "dai.ly",
    "facebook.com",
    "fb.watch",
    "instagram.com",
    "nicovideo.jp",
    "odysee.com",
    "ok.ru",
    "pinterest.com",
    "reddit.com",
    "rumble.com",
    "rutube.ru",
    "soundcloud.com",
    "streamable.com",
    "ted.com",
    "tiktok.com",
    "twitch.tv",
    "twitter.com",
    "vimeo.com",
    "vk.com",
    "vkvideo.ru",
    "x.com",
    "youku.com",
    "youtube-nocookie.com",
    "youtube.com",
    "youtu.be",
)
"""Sites whose addresses show a page, and that yt-dlp finds the video of."""

SITES: Final[Rules] = tuple((host, "yt-dlp") for host in HOSTS)

_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def rules_of(extractor: Extractor, extractors: Mapping[str, str]) -> Rules:
    """Rules in the order in which they count.

    The longest pattern of ``extractors`` comes first, so that their order says nothing: a mapping
    has none that would survive. Then comes ``extractor`` for all other addresses, which for
    ``auto`` means yt-dlp for ``HOSTS`` and http for the rest.
    """
    own = sorted(extractors.items(), key=lambda rule: (-len(rule[0]), rule[0]))
    return (*own, *(SITES if extractor == "auto" else [("*", extractor)]))


def source_of(url: str, rules: Rules) -> str:
    """The name of the source for a normalised URL: a rule's, for a web address, or its scheme."""
    scheme = url.partition(":")[0]
    if scheme not in ("http", "https"):
        return scheme
    return next((name for pattern, name in rules if matches(url, pattern)), scheme)


def matches(url: str, pattern: str) -> bool:
    """Whether a pattern means a normalised URL.

    A domain (``example.org``) stands for itself and all domains below it; anything else is a glob
    of the whole URL (``https://*.example.org/watch/*``), in which ``*`` also matches slashes.
    """
    return _compiled(pattern).fullmatch(url) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    if _DOMAIN.fullmatch(pattern):
        return re.compile(rf"https?://([^/?]*\.)?{re.escape(pattern.lower())}\.?(:[0-9]+)?[/?].*")
    return re.compile(translate(pattern))
