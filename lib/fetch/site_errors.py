"""What yt-dlp's errors mean: a class of reasons, one line, and whether it may pass."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from reelmill.errors import one_line

NO_SPACE: Final = "no_space"
"""The reason that is no fault of the video: the disk is full."""

_LONGEST: Final = 300


class Trouble(NamedTuple):
    """Why a video could not be had; see ``reelmill.fetch.transfer.FetchFailure``."""

    reason: str
    message: str
    transient: bool = False


# What sites and yt-dlp's extractors say, most telling first. It is English throughout.
_SAYINGS: Final = tuple(
    (reason, re.compile(pattern, re.IGNORECASE))
    for reason, pattern in (
        (NO_SPACE, r"no space left on device|disk quota exceeded"),
        ("too_large", r"\[Errno 27\]|file too large"),
        ("no_format", r"requested format is not available|no video formats|no formats"),
        ("unsupported_url", r"unsupported url|no suitable extractor|is not a valid url"),
        ("http_429", r"too many requests|rate.?limit|try again later"),
        (
            "geo",
            r"geo.?restrict|(not|n't) (available|made .{0,40} available) (in|from) your "
            r"(country|location|region)|blocked .{0,40} (in|from) your (country|location)",
        ),
        ("drm", r"\bDRM\b"),
        ("private", r"\bprivate\b"),
        (
            "login",
            r"sign in|log ?in|logged.?in|registered users|members?.?only|subscri(be|ption)|"
            r"authenticat|password|--cookies|confirm your age|age.?restrict|purchase|premium",
        ),
        (
            "live",
            r"live event|live ?stream|is live|not (currently )?live|premieres?\b|"
            r"will begin|has not (yet )?(started|aired)|upcoming|is offline",
        ),
        (
            "removed",
            r"\bremoved\b|\bdeleted\b|terminated|no longer|does(n't| not) exist|"
            r"\bunavailable\b|not available|not found|taken down|has been closed",
        ),
        ("timeout", r"timed? ?out"),
        ("truncated", r"bytes read, \d+ more expected"),
        ("reset", r"connection (reset|aborted)|remote end closed"),
        ("connect", r"connection refused|network is unreachable|no route to host"),
    )
)
_PASSING: Final = frozenset({"http_429", "timeout", "connect", "dns", "reset", "truncated"})
_FULL: Final = "no space left for the files of yt-dlp: free the disk"
_STATUS = re.compile(r"HTTP Error ([1-5][0-9]{2})\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HEAD = re.compile(r"^(ERROR: *)?(\[[\w:+. -]+\] *)?(Got error: *)?")
_TAIL = re.compile(
    r"(;? *please report this issue|\(caused by|\.? *Use --|\. *See +https?://|; *Confirm you).*",
    re.IGNORECASE | re.DOTALL,
)
_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>:? *")
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")


def by_text(text: str) -> Trouble:
    """The trouble that a message of yt-dlp's tells of."""
    message = plain(text)
    text = text.partition("(caused by")[0]
    if status := _STATUS.search(text):
        return by_status(int(status[1]))
    for reason, pattern in _SAYINGS:
        if pattern.search(text):
            return Trouble(reason, message, reason in _PASSING)
    return Trouble("site_error", message)


def plain(text: str) -> str:
    """A message of yt-dlp's as one line: no colours, no advice on its options, no local path or
    address in memory."""
    text = _OBJECT.sub("", _HEAD.sub("", _COLOURS.sub("", text)))
    text = " ".join(_PATH.sub("<path>", _TAIL.sub("", text)).split())
    text = one_line(text).rstrip(" ;:") or "no reason was given"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def by_status(status: int) -> Trouble:
    """The trouble that an HTTP status means."""
    phrase = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
    message = f"the server answered {status}{phrase}"
    if status == 451:
        return Trouble("geo", message)
    passing = status in (408, 425, 429) or 500 <= status < 600
    return Trouble(f"http_{status}", message, passing)


def by_error(error: BaseException) -> Trouble:
    """The trouble that an exception of yt-dlp's stands for, by what caused it and what it says."""
    from yt_dlp.networking import exceptions as net
    from yt_dlp.utils import (
        ContentTooShortError,
        ExistingVideoReached,
        GeoRestrictedError,
        UnsupportedError,
        UserNotLive,
    )

    causes = list(_causes(error))
    # An extractor's own words, before what else was said of them on the way here.
    told = next(filter(None, (getattr(cause, "orig_msg", None) for cause in causes)), str(error))
    for cause in causes:
        match cause:
            case ExistingVideoReached():
                return Trouble("archived", "the video is in the archive")
            case GeoRestrictedError():
                return Trouble("geo", plain(told))
            case UserNotLive():
                return Trouble("live", plain(told))
            case UnsupportedError():
                return Trouble("unsupported_url", "yt-dlp finds no video there")
            case net.HTTPError():
                return _by_reply(cause, told)
            case net.IncompleteRead() | ContentTooShortError():
                return Trouble("truncated", "the body ended before its announced end", True)
            case net.ProxyError():
                return Trouble("connect", "the proxy did not connect", True)
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return Trouble(NO_SPACE, _FULL)
            case OSError(errno=errno.EFBIG):
                return Trouble("too_large", "larger than it may be")
            case MemoryError():
                return Trouble("too_large", "a page or a piece that memory has no room for")
            case ssl.SSLCertVerificationError() | net.CertificateVerifyError():
                return Trouble("tls", "the certificate is not valid")
            case ssl.SSLError() | net.SSLError():
                return Trouble("tls", "the server does not speak TLS as it should")
            case socket.gaierror():
                again = cause.errno == socket.EAI_AGAIN
                return Trouble("dns", "a host of the site does not resolve", again)
            case TimeoutError():
                return Trouble("timeout", "the site sent nothing for too long", True)
            case ConnectionResetError() | BrokenPipeError():
                return Trouble("reset", "the site closed the connection", True)
            case ConnectionError():
                return Trouble("connect", "the site was not reached", True)
    if any(isinstance(cause, net.TransportError) for cause in causes):
        trouble = by_text(told)
        return trouble if trouble.transient else Trouble("connect", trouble.message, True)
    return by_text(told)


def _by_reply(error: Any, told: str) -> Trouble:
    """A status, or what it means where the site's extractor says more of it."""
    trouble = by_text(told)
    says_more = trouble.reason in ("geo", "private", "login", "removed", "live")
    return trouble if says_more else by_status(error.status)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from, each once, nearest first."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        info = getattr(found, "exc_info", None)
        waiting += [
            info[1] if isinstance(info, tuple) and len(info) > 1 else None,
            getattr(found, "cause", None),
            getattr(found, "reason", None),
            found.__cause__,
            found.__context__,
        ]
