"""What yt-dlp says, by the classes of reasons it is counted under."""

from __future__ import annotations

import errno
import io
import socket
import ssl

import pytest
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import (
    HTTPError,
    IncompleteRead,
    ProxyError,
    TransportError,
)
from yt_dlp.utils import (
    DownloadError,
    ExistingVideoReached,
    ExtractorError,
    GeoRestrictedError,
    UnsupportedError,
    UserNotLive,
)

from reelmill.fetch.site_errors import by_error, by_status, by_text, plain


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The uploader has not made this video available in your country", "geo"),
        ("This video is not available from your location due to geo restriction", "geo"),
        ("Private video. Sign in if you've been granted access to this video", "private"),
        ("Sign in to confirm your age. This video may be inappropriate", "login"),
        ("Join this channel to get access to members-only content", "login"),
        ("This video is only available for registered users. Use --cookies", "login"),
        ("Video unavailable. This video has been removed by the uploader", "removed"),
        ("This account has been terminated", "removed"),
        ("The page does not exist", "removed"),
        ("This live event will begin in 3 hours.", "live"),
        ("Premieres in 4 days", "live"),
        ("Requested format is not available. Use --list-formats", "no_format"),
        ("No video formats found!", "no_format"),
        ("This video is DRM protected", "drm"),
        ("Unable to download: Too Many Requests", "http_429"),
        ("Unsupported URL: https://a.example/", "unsupported_url"),
        ("unable to write data: [Errno 28] No space left on device", "no_space"),
        ("Read timed out.", "timeout"),
        ("Got error: HTTP Error 404: Not Found. Giving up after 3 retries", "http_404"),
        ("Got error: 5 bytes read, 50 more expected", "truncated"),
        ("Got error: [Errno 111] Connection refused", "connect"),
        ("Got error: ('Connection aborted.', RemoteDisconnected())", "reset"),
        ("Unable to extract player data", "site_error"),
    ],
)
def test_messages(text: str, reason: str) -> None:
    assert by_text(text).reason == reason
    assert by_error(DownloadError(f"ERROR: [site] x1: {text}")).reason == reason


def test_a_message_is_one_plain_line() -> None:
    text = (
        "\x1b[0;31mERROR:\x1b[0m [youtube] abc: Unable to\nread /home/me/.cache/x.json\x07 "
        "(caused by KeyError('x')); please report this issue on https://github.com"
    )
    assert plain(text) == "abc: Unable to read <path>\\x07"
    assert plain("See https://a.example/b/c for more") == "See https://a.example/b/c for more"
    failed = "<urllib3.connection.HTTPSConnection object at 0x7f3a>: Failed to resolve 'a.example'"
    assert plain(f"Unable to open: {failed}") == "Unable to open: Failed to resolve 'a.example'"
    assert len(plain("x" * 10_000)) == 300
    assert plain("") == plain("[site] ") == "no reason was given"


def refused(status: int) -> HTTPError:
    return HTTPError(Response(io.BytesIO(), "https://a.example/", {}, status=status))


@pytest.mark.parametrize(
    ("error", "reason", "transient"),
    [
        (refused(404), "http_404", False),
        (refused(403), "http_403", False),
        (refused(429), "http_429", True),
        (refused(503), "http_503", True),
        (refused(451), "geo", False),
        (IncompleteRead(1, 2), "truncated", True),
        (ProxyError("no"), "connect", True),
        (TransportError(cause=ConnectionRefusedError()), "connect", True),
        (TransportError(cause=ConnectionResetError()), "reset", True),
        (TransportError(cause=TimeoutError("timed out")), "timeout", True),
        (TransportError(cause=socket.gaierror(socket.EAI_NONAME, "?")), "dns", False),
        (TransportError(cause=socket.gaierror(socket.EAI_AGAIN, "?")), "dns", True),
        (TransportError(cause=ssl.SSLCertVerificationError()), "tls", False),
        (TransportError("odd"), "connect", True),
        (GeoRestrictedError("Nope"), "geo", False),
        (UnsupportedError("https://a.example/"), "unsupported_url", False),
        (UserNotLive(), "live", False),
        (ExistingVideoReached(), "archived", False),
        (OSError(errno.ENOSPC, "full"), "no_space", False),
        (OSError(errno.EFBIG, "large"), "too_large", False),
        (MemoryError(), "too_large", False),
        (KeyError("x"), "site_error", False),
    ],
)
def test_errors_however_deep_they_lie(error: Exception, reason: str, transient: bool) -> None:
    assert by_error(error)[::2] == (reason, transient)
    wrapped = ExtractorError("Unable to download webpage", cause=error)
    outer = DownloadError("ERROR: " + str(wrapped), (type(wrapped), wrapped, None))
    if reason != "site_error":
        assert by_error(outer)[::2] == (reason, transient)
        assert "please report" not in by_error(outer).message


def test_what_an_extractor_says_of_a_status_counts_more_than_the_status() -> None:
    assert by_error(ExtractorError("This video is private", cause=refused(403))).reason == "private"
    said = ExtractorError("Unable to download JSON: HTTP Error 403: Forbidden", cause=refused(403))
    assert by_error(said) == by_status(403)
