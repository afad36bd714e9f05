"""What is taken from a video site, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """What to take of a video, and what to tell its site. Sizes in bytes, times in seconds."""

    max_height: int | None = None
    """Of the video in pixels; formats whose height the site does not tell are taken too."""
    codec: Literal["any", "h264", "vp9", "av1"] = "any"
    """The video codec that is preferred among formats that are allowed."""
    audio: Literal["with", "only", "none"] = "with"
    subtitles: tuple[str, ...] = ()
    """Languages; each becomes a field such as ``en.vtt`` where the site has it."""
    automatic_captions: bool = False
    """Whether speech recognition fills in (``en.auto.vtt``) where people wrote no subtitles."""
    metadata: bool = False
    """Whether what the site says of the video becomes the field ``info.json``."""
    allowed_extractors: tuple[str, ...] = ()
    """Names or regular expressions of yt-dlp's extractors; without any, all but none by plugin."""
    processes: int = 4
    """Processes of yt-dlp at once, at most: each fetches one video at a time."""
    per_site: int = 2
    """Videos under way from one host, at most."""
    cookies: str | None = None
    """Path of cookies in Netscape's format. It is read only."""
    cookies_from_browser: str | None = None
    """A browser on the worker, such as ``firefox`` or ``firefox:profile``."""
    rate_limit: int | None = None
    """Bytes a second for each video."""
    proxies: tuple[str, ...] = ()
    """URLs of proxies, one of which is chosen by each video's key."""
    sleep_s: float = 0.0
    """Seconds between two requests for one video."""
    archive: str | None = None
    """Path of a download archive of yt-dlp's: the videos in it are not taken."""
