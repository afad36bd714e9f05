"""The process in which yt-dlp runs: ``python -m reelmill.fetch.site_worker``.

It reads JSON lines: first its `Config`, then one request for each video; and it answers each with
one JSON line. It is never imported by the process that starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import resource
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from reelmill.fetch.site_errors import Trouble, by_error
from reelmill.fetch.site_guard import Guard

_MEMORY_BYTES: Final = 1 << 30
"""Of data in memory: yt-dlp keeps whole pages there, however long they are."""
_CODECS: Final = {"h264": "h264", "vp9": "vp9", "av1": "av01"}
# What stays true of a video whoever looks and whenever: no counts, no URLs that expire.
_INFO: Final = (
    "id",
    "extractor_key",
    "webpage_url",
    "title",
    "description",
    "uploader",
    "uploader_id",
    "channel",
    "channel_id",
    "upload_date",
    "release_date",
    "duration",
    "language",
    "license",
    "location",
    "artist",
    "track",
    "album",
    "series",
    "season_number",
    "episode_number",
    "age_limit",
    "categories",
    "tags",
    "format_id",
    "width",
    "height",
    "fps",
    "vcodec",
    "acodec",
)
_CHAPTER: Final = ("start_time", "end_time", "title")
_SRT_TIME = re.compile(r"^(\d+:\d{2}:\d{2}),(\d{3}) --> (\d+:\d{2}:\d{2}),(\d{3})", re.MULTILINE)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever is printed here is no answer.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    lines = _lines(sys.stdin.buffer)
    config = json.loads(next(lines))
    guard = _guard(config)
    _limit(config)
    guard.install()
    # No module: it would open connections that Python does not see.
    sys.modules["curl_cffi"] = None  # type: ignore[assignment]
    import yt_dlp

    _answer(answers, {"ready": yt_dlp.version.__version__})
    for line in lines:
        _answer(answers, _reply(config, guard, json.loads(line)))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines as they come; the process ends with the one that writes them, even in mid-video."""
    found: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            found.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield found.get()


def _answer(stream: BinaryIO, value: Mapping[str, Any]) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def _guard(config: Mapping[str, Any]) -> Guard:
    allowed: set[tuple[str, int]] = set()
    for proxy in config["proxies"]:
        parts = urlsplit(proxy)
        port = parts.port or {"https": 443, "socks5": 1080, "socks5h": 1080}.get(parts.scheme, 80)
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            allowed |= {(str(address[0]), port) for *_, address in found}
    return Guard(
        Path(config["folder"]),
        allow_private=config["allow_private"],
        allowed=allowed,
        programs=config["programs"],
    )


def _limit(config: Mapping[str, Any]) -> None:
    # A file that grows past the limit fails to be written; a fragment lies beside its file.
    limits = {
        resource.RLIMIT_FSIZE: config["max_bytes"] + (1 << 20),
        resource.RLIMIT_CORE: 0,
        # Not of addresses: V8, in Deno, reserves far more than it uses.
        resource.RLIMIT_DATA: _MEMORY_BYTES,
    }
    for kind, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _reply(config: Mapping[str, Any], guard: Guard, request: Mapping[str, Any]) -> dict[str, Any]:
    guard.private = False
    try:
        return _take(config, request)
    except _TroubleError as error:
        trouble = error.trouble
    except Exception as error:
        # An extractor may stumble over anything a page holds, and not every error is yt-dlp's.
        trouble = by_error(error)
    if guard.private:
        trouble = Trouble("private_address", "the site leads to an address that is not public")
    return trouble._asdict()


class _TroubleError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.trouble = Trouble(reason, message)


def _take(config: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Download one video into its folder; return the names of its files and what they are."""
    from yt_dlp import YoutubeDL

    folder = Path(request["folder"])
    size = 0

    def watch(progress: Mapping[str, Any]) -> None:
        done = size + (progress.get("downloaded_bytes") or 0)
        told = size + (progress.get("total_bytes") or 0)
        if max(done, told) > config["max_bytes"]:
            raise _TroubleError("too_large", f"larger than {config['max_bytes']} bytes")

    with YoutubeDL(_params(config, request)) as ydl:
        info = ydl.extract_info(request["url"], download=False)
        formats = _chosen(info)
        ydl.add_progress_hook(watch)
        files = []
        for number, chosen in enumerate(formats):
            name = f"{number}.{_ending(chosen)}"
            _download(ydl, folder / name, {**info, **chosen})
            size += (folder / name).stat().st_size
            files.append(
                {
                    "name": name,
                    "video": chosen.get("vcodec") != "none",
                    "audio": chosen.get("acodec") != "none",
                    # Joined end to end, which is no file of one kind.
                    "pieces": chosen.get("protocol") not in ("http", "https"),
                }
            )
        texts = dict(_texts(ydl, folder, config, info))
    about = _about(info) if config["metadata"] else None
    return {"files": files, "texts": texts, "info": about}


def _params(config: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    browser = config["cookies_from_browser"]
    deno = next(iter(config["programs"]), None)
    return {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _Silence(),
        "color": {"stdout": "never", "stderr": "never"},
        "cachedir": False,
        "paths": {"home": request["folder"], "temp": request["folder"]},
        "restrictfilenames": True,
        # One video, and no page of a playlist more than tells that it is one.
        "noplaylist": True,
        "extract_flat": "in_playlist",
        "playlist_items": "1:2",
        "lazy_playlist": True,
        "allowed_extractors": config["allowed_extractors"] or ["default"],
        "enable_file_urls": False,
        "usenetrc": False,
        "format": _format(config),
        "format_sort": [f"vcodec:{_CODECS[config['codec']]}"] if config["codec"] != "any" else [],
        "ignoreerrors": False,
        "fixup": "never",
        "updatetime": False,
        "nopart": True,
        "continuedl": False,
        "overwrites": True,
        "hls_prefer_native": True,
        "external_downloader": {"default": "native"},
        "skip_unavailable_fragments": False,
        # Whoever asks tries again; but a long video is not begun anew for one lost piece.
        "retries": 0,
        "extractor_retries": 0,
        "file_access_retries": 0,
        "fragment_retries": config["attempts"] - 1,
        "socket_timeout": config["idle_timeout_s"],
        "ratelimit": config["rate_limit"],
        "sleep_interval_requests": config["sleep_s"] or None,
        "sleep_interval": config["sleep_s"] or None,
        "proxy": request["proxy"],
        "cookiefile": config["cookies"],
        "cookiesfrombrowser": _browser(browser) if browser else None,
        "download_archive": set(config["archive"]),
        "break_on_existing": True,
        "writesubtitles": bool(config["subtitles"]),
        "writeautomaticsub": bool(config["subtitles"]) and config["automatic_captions"],
        "js_runtimes": {"deno": {"path": deno}} if deno else {},
        "remote_components": [],
        "geo_bypass": False,
    }


def _browser(text: str) -> tuple[str, str | None, None, None]:
    name, _, profile = text.partition(":")
    return name, profile or None, None, None


def _format(config: Mapping[str, Any]) -> str:
    tall = f"[height<=?{config['max_height']}]" if config["max_height"] else ""
    match config["audio"]:
        case "only":
            return f"ba/b{tall}"
        case "none":
            return f"bv{tall}/bv*{tall}"
    # Sound of its own where there is some; a video that has none is taken as it is.
    return f"bv*{tall}+ba/b{tall}/bv*{tall}"


def _chosen(info: Any) -> list[dict[str, Any]]:
    """The formats to download: one, or the video's and the sound's."""
    if info is None:
        raise _TroubleError("unsupported_url", "yt-dlp finds no video there")
    if info.get("_type", "video") != "video":
        raise _TroubleError("playlist", "the address means several videos")
    if info.get("live_status") in ("is_live", "is_upcoming", "post_live") or info.get("is_live"):
        raise _TroubleError("live", "the video is live, or yet to be")
    formats = info.get("requested_formats") or [info]
    if any(chosen.get("has_drm") for chosen in formats):
        raise _TroubleError("drm", "the video is DRM protected")
    return list(formats)


def _ending(chosen: Mapping[str, Any]) -> str:
    found = re.sub(r"[^a-z0-9]", "", str(chosen.get("ext")).lower())
    return found[:8] or "video"


def _download(ydl: Any, path: Path, info: Mapping[str, Any], *, subtitle: bool = False) -> None:
    done, _ = ydl.dl(str(path), {**info, "filepath": str(path)}, subtitle=subtitle)
    if not (done and path.is_file()):
        raise _TroubleError("site_error", "yt-dlp downloaded nothing")


def _texts(
    ydl: Any, folder: Path, config: Mapping[str, Any], info: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Field and file of each language that is asked for and there."""
    written = info.get("subtitles") or {}
    spoken = (info.get("automatic_captions") or {}) if config["automatic_captions"] else {}
    for number, language in enumerate(config["subtitles"]):
        for tracks, field in ((written, f"{language}.vtt"), (spoken, f"{language}.auto.vtt")):
            track = _track(tracks, language)
            if track is None:
                continue
            path = folder / f"text{number}.{track['ext']}"
            if track.get("data") is not None:
                path.write_text(track["data"], encoding="utf-8")
            else:
                headers = {"http_headers": info.get("http_headers")}
                _download(ydl, path, {"id": info["id"], **headers, **track}, subtitle=True)
            if track["ext"] == "srt":
                text = path.read_text(encoding="utf-8-sig", errors="replace")
                path.write_text(
                    "WEBVTT\n\n" + _SRT_TIME.sub(r"\1.\2 --> \3.\4", text), encoding="utf-8"
                )
            yield field, path.name
            break


def _track(tracks: Mapping[str, Any], language: str) -> dict[str, Any] | None:
    """A track in the language (``en`` means ``en-GB`` too, where there is no other), as WebVTT."""
    names = [language, *sorted(name for name in tracks if name.startswith(f"{language}-"))]
    for name in names:
        for ext in ("vtt", "srt"):
            for track in tracks.get(name) or ():
                if track.get("ext") == ext:
                    return dict(track)
    return None


def _about(info: Mapping[str, Any]) -> dict[str, Any]:
    about = _plain(info, _INFO)
    chapters = info.get("chapters")
    if isinstance(chapters, list):
        about["chapters"] = [_plain(chapter, _CHAPTER) for chapter in chapters]
    return about


def _plain(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the named values that canonical JSON can carry, and that say something."""
    plain: dict[str, Any] = {}
    for name in names:
        match values.get(name):
            case str(text) if text:
                plain[name] = _utf8(text)
            case bool() | int() | float() as value if abs(value) < 2**53:
                plain[name] = value
            case list(items):
                plain[name] = [_utf8(item) for item in items if isinstance(item, str)]
    return plain


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


class _Silence:
    """Takes what yt-dlp would print. Errors are raised as well."""

    def debug(self, message: str) -> None:
        pass

    info = warning = error = debug


if __name__ == "__main__":
    main()
