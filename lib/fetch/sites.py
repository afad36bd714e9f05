"""Videos of sites that only yt-dlp finds, each fetched by a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ffmpeg
import rfc8785

from reelmill.errors import StageError
from reelmill.fetch.site_errors import NO_SPACE
from reelmill.fetch.site_options import SiteOptions
from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer
from reelmill.media.ffmpeg import FfmpegError, run
from reelmill.media.probe import FORMATS, MAX_PIXELS

_BLOCK_BYTES: Final = 1 << 20
_MAX_REPLY: Final = 16 << 20
_MAX_TEXT: Final = 16 << 20
_REMUX_TIMEOUT_S: Final = 3600.0
_NAME = re.compile(r"[a-z0-9]+\.[a-z0-9]+")
_MP4: Final = frozenset({"mp4", "m4v", "mov", "m4a"})
_KEPT: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


class SiteSource(OpenSource):
    """A few processes of yt-dlp, each started when it is first needed and used for many videos.

    One that hangs or dies takes down the attempt at its video, and the next one gets another.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._options = policy.sites
        self._idle: list[_Worker] = []
        self._room = asyncio.Semaphore(min(policy.concurrency, self._options.processes))

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def turn(self, _url: str) -> AsyncIterator[None]:
        """Wait until a process has time for one more video, of whatever site."""
        async with self._room:
            yield

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt at the video that the URL of ``transfer`` shows.

        Raises:
            AttemptError: The attempt failed.
            StageError: The scratch directory cannot be written, or a file of the options be read.
        """
        if importlib.util.find_spec("yt_dlp") is None:
            raise AttemptError(
                "no_driver", "the address needs yt-dlp: pip install 'reelmill[sites]'"
            )
        transfer.restart()
        worker = self._idle.pop() if self._idle else await _start(self._policy, transfer.scratch)
        try:
            with worker.folder() as folder:
                proxy = _proxy(self._options, transfer.key)
                request = {"url": transfer.url, "folder": str(folder), "proxy": proxy}
                reply = await worker.ask(request)
                if "files" in reply:
                    await asyncio.get_running_loop().run_in_executor(
                        None, _receive, transfer, folder, reply, self._options
                    )
        except BaseException:
            await worker.close()
            raise
        self._idle.append(worker)
        if "files" in reply:
            return
        if reply["reason"] == NO_SPACE:
            raise StageError(f"{transfer.scratch}: {reply['message']}")
        raise AttemptError(reply["reason"], reply["message"], transient=reply["transient"])


class _Worker:
    """A process of yt-dlp with a folder of its own, in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path) -> None:
        self._process = process
        self._home = home

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for one video."""
        return tempfile.TemporaryDirectory(dir=self._home, ignore_cleanup_errors=True)

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Hand over one line and return the one that answers it."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
            reply = json.loads(line)
        except (OSError, ValueError) as error:
            raise _crash("broke off") from error
        if not isinstance(reply, dict):
            raise _crash("gave no answer")
        return reply

    async def close(self) -> None:
        """Kill it, with all that it started, and delete its folder."""
        try:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)


async def _start(policy: FetchPolicy, scratch: Path) -> _Worker:
    """Start a process, tell it what it may do, and wait until it can begin."""
    try:
        home = Path(tempfile.mkdtemp(prefix="sites-", dir=scratch)).resolve()
    except OSError as error:
        raise StageError(f"{scratch}: {error.strerror}") from error
    try:
        config = _config(policy, home)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "reelmill.fetch.site_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_REPLY,
            cwd=home,
            env=_environment(policy.sites, home),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        shutil.rmtree(home, ignore_errors=True)
        raise StageError(f"the process of yt-dlp cannot be started: {error}") from error
    worker = _Worker(process, home)
    try:
        await worker.ask(config)
    except BaseException:
        await worker.close()
        raise
    return worker


def _config(policy: FetchPolicy, home: Path) -> dict[str, Any]:
    """What a process is told once; ``site_worker`` reads it."""
    options = policy.sites
    cookies = None
    if options.cookies is not None:
        # yt-dlp writes what sites set back to the file that it reads.
        cookies = str(home / "cookies.txt")
        Path(cookies).touch(mode=0o600)
        Path(cookies).write_bytes(Path(options.cookies).read_bytes())
    archive = []
    if options.archive is not None:
        archive = Path(options.archive).read_text(encoding="utf-8").split("\n")
    return {
        "folder": str(home),
        "allow_private": policy.allow_private,
        "max_bytes": policy.max_bytes,
        "idle_timeout_s": policy.idle_timeout_s,
        "attempts": policy.attempts,
        "programs": [path] if (path := _deno()) else [],
        "proxies": list(options.proxies),
        "cookies": cookies,
        "cookies_from_browser": options.cookies_from_browser,
        "archive": [line.strip() for line in archive],
        "allowed_extractors": list(options.allowed_extractors),
        "max_height": options.max_height,
        "codec": options.codec,
        "audio": options.audio,
        "subtitles": list(options.subtitles),
        "automatic_captions": options.automatic_captions,
        "metadata": options.metadata,
        "rate_limit": options.rate_limit,
        "sleep_s": options.sleep_s,
    }


def _deno() -> str | None:
    """The runtime, without rights of its own, for the scripts that YouTube sends."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("deno", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def _environment(options: SiteOptions, home: Path) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = str(home)
    # A browser's cookies lie in its user's home.
    at = os.environ.get("HOME", own) if options.cookies_from_browser else own
    return environment | {
        "HOME": at,
        "TMPDIR": own,
        "DENO_DIR": own,
        "LANG": "C.UTF-8",
        # The same modules as here, though its home and its folder are others.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "YTDLP_NO_PLUGINS": "1",
    }


def _proxy(options: SiteOptions, key: str) -> str:
    """The proxy for a video, the same whenever it is asked for; empty for none."""
    if not options.proxies:
        return ""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return options.proxies[number % len(options.proxies)]


def _receive(
    transfer: Transfer, folder: str, reply: Mapping[str, Any], options: SiteOptions
) -> None:
    """Take over the files that a process left in ``folder``."""
    home = Path(folder)
    body = _remuxed(home, reply["files"], options)
    transfer.check(body.stat().st_size)
    with body.open("rb", buffering=0) as file:
        while data := file.read(_BLOCK_BYTES):
            transfer.append(data)
    for field, name in reply["texts"].items():
        transfer.attach(field.lower(), _text(_own(home, name)))
    if reply["info"] is not None:
        transfer.attach("info.json", rfc8785.dumps(reply["info"]))


def _remuxed(folder: Path, files: list[dict[str, Any]], options: SiteOptions) -> Path:
    """One file with the streams that are wanted; not copied where it came as just that."""
    first = files[0]
    unwanted = {"with": False, "none": first["audio"], "only": first["video"]}[options.audio]
    paths = [_own(folder, file["name"]) for file in files]
    if len(files) == 1 and not (unwanted or first["pieces"]):
        return paths[0]
    sources = [
        ffmpeg.input(
            f"file:{path}",
            max_pixels=MAX_PIXELS,
            format_whitelist=FORMATS,
            protocol_whitelist="file",
        )
        for path in paths
    ]
    streams = []
    if options.audio != "only":
        streams.append(sources[0]["v:0"])
    if options.audio != "none":
        streams.append(sources[-1]["a:0?" if len(files) == 1 and streams else "a:0"])
    ending = _container({path.suffix[1:] for path in paths}, sound=options.audio == "only")
    fixed = {"c": "copy", "fflags": "+bitexact", "map_metadata": -1, "map_chapters": -1}
    if ending in _MP4:
        fixed["movflags"] = "+faststart"
    out = folder / f"whole.{ending}"
    try:
        run(
            ffmpeg.output(*streams, f"file:{out}", **fixed).global_args("-nostdin"),
            timeout_s=_REMUX_TIMEOUT_S,
        )
    except FfmpegError as error:
        raise AttemptError("remux_failed", str(error)) from error
    return out


def _container(endings: set[str], *, sound: bool) -> str:
    if endings <= _MP4:
        return "m4a" if sound else "mp4"
    if endings == {"webm"}:
        return "webm"
    return "mka" if sound else "mkv"


def _crash(what: str) -> AttemptError:
    return AttemptError("crash", f"the process of yt-dlp {what}", transient=True)


def _own(folder: Path, name: object) -> Path:
    """The path of a file in ``folder``; a process that took a page's orders names no other."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise _crash("names a file that is not its own")
    path = folder / name
    with suppress(OSError):
        if stat.S_ISREG(path.lstat().st_mode):
            return path
    raise _crash("names a file that is not its own")


def _text(path: Path) -> bytes:
    if path.stat().st_size > _MAX_TEXT:
        raise AttemptError("too_large", f"subtitles of more than {_MAX_TEXT} bytes")
    return path.read_bytes()
