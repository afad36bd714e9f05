"""Which source fetches an address: by rules, the site's or the user's, before its scheme."""

from __future__ import annotations

from collections.abc import Mapping
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

SITE: Final = "yt-dlp"
"""The name of the source that fetches the videos of sites."""

SITES: Final[Rules] = tuple((host, SITE) for host in HOSTS)


def rules_of(extractor: Extractor, extractors: Mapping[str, str]) -> Rules:
    """Rules in the order in which they count.

    The longest pattern of ``extractors`` comes first, so that their order says nothing: a mapping
    has none that would survive. Then comes ``extractor`` for all other addresses, which for
    ``auto`` means yt-dlp for ``HOSTS`` and http for the rest.
    """
    own = sorted(extractors.items(), key=lambda rule: (-len(rule[0]), rule[0]))
    return (*own, *(SITES if extractor == "auto" else [("*", extractor)]))
