"""The ffmpeg binary: which one, its identity, and running it on untrusted media."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from functools import cache
from typing import Any

import ffmpeg

from reelmill.errors import MissingDependencyError, ReelmillError, StageError

TAIL_BYTES = 16_384
"""How much of a process's log is kept: its end."""

_KILLED = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_SHORT_OF = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)

_CONTEXT = re.compile(r"\[[^\]]* @ 0x[0-9a-f]+\] *")


class FfmpegError(ReelmillError):
    """ffmpeg failed, or was stopped after its time (``timed_out``).

    The text ends with its last line of log, without the addresses and paths in it.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


def ffmpeg_exe() -> str:
    """Path of the ffmpeg binary: ``REELMILL_FFMPEG``, else the one that pip pins (so that every
    host writes the same bytes), else the one on ``PATH``.

    Raises :class:`~reelmill.errors.MissingDependencyError` where there is none.
    """
    if chosen := os.environ.get("REELMILL_FFMPEG"):
        if path := shutil.which(chosen):
            return path
        raise MissingDependencyError(f"REELMILL_FFMPEG={chosen} is not a program that can be run")
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    if path := shutil.which("ffmpeg"):
        return path
    raise MissingDependencyError("no ffmpeg binary was found: pip install imageio-ffmpeg")


def encoder_id() -> str:
    """Short, stable name of the ffmpeg build, such as ``ffmpeg 7.1``: another build may write
    other bytes, so it belongs in the key of whatever is encoded."""
    return _version(ffmpeg_exe())


@cache
def _version(exe: str) -> str:
    found = subprocess.run(
        [exe, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    words = found.stdout.split(maxsplit=3)
    if words[:2] != ["ffmpeg", "version"]:
        raise MissingDependencyError(f"{exe} is not ffmpeg: `{exe} -version` names no version")
    return f"ffmpeg {words[2]}"


def has_encoder(name: str) -> bool:
    """Whether ffmpeg's encoder ``name`` works here, by encoding a picture: builds list those of
    GPUs wherever they run, and GPUs that only decode have none."""
    return _encodes(ffmpeg_exe(), name)


def gpu_encoder_id(name: str) -> str:
    """GPU and driver, on which the bytes of its encoder ``name`` depend besides ffmpeg's build.

    Raises :class:`~reelmill.errors.StageError` where the encoder does not work here.
    """
    if not has_encoder(name):
        raise StageError(
            f"{name} does not work on this host (it needs an NVIDIA GPU with NVENC, and its "
            f"driver): run on one, or use codec {name.removesuffix('_nvenc')}"
        )
    return _gpu()


@cache
def _encodes(exe: str, name: str) -> bool:
    picture = ("-f", "lavfi", "-i", "color=size=256x256:rate=1:duration=1", "-frames:v", "1")
    command = [exe, "-nostdin", "-v", "quiet", *picture, "-c:v", name, "-f", "null", "-"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@cache
def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown GPU"
    return found.stdout.split("\n")[0].strip() or "unknown GPU"


def run(stream: Any, *, timeout_s: float) -> None:
    """Run a composed ffmpeg-python output ``stream`` to its end, for at most ``timeout_s`` seconds.

    The process has no shell, no standard input and a process group of its own, which is killed
    whole on time-out or on any exception here. Raises :class:`FfmpegError`, or
    :class:`~reelmill.errors.StageError` where the disk is full: no fault of the media.
    """
    args = ffmpeg.compile(stream, cmd=ffmpeg_exe())
    deadline = time.monotonic() + timeout_s
    process = subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    tail = bytearray()
    try:
        _drain(process, tail, deadline)
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise FfmpegError(
            f"ffmpeg was stopped after {timeout_s:g} seconds", timed_out=True
        ) from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    if os.strerror(errno.ENOSPC).encode() in tail:
        raise StageError("ffmpeg found no space left for its output: free the disk it writes to")
    # A crash may be the media's fault; being killed, or short of memory or files, is not.
    if -status in _KILLED or any(os.strerror(number).encode() in tail for number in _SHORT_OF):
        raise StageError(f"ffmpeg was killed or found no resources (status {status})")
    if status:
        raise FfmpegError(f"ffmpeg failed with status {status}: {_last_line(tail, args)}")


def _drain(process: subprocess.Popen[bytes], tail: bytearray, deadline: float) -> None:
    """Keep the end of the process's log in ``tail`` until it closes; raise at the deadline."""
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(process.stderr.fileno(), TAIL_BYTES)
                if not chunk:
                    return
                tail += chunk
                del tail[:-TAIL_BYTES]
    raise subprocess.TimeoutExpired("ffmpeg", 0)


def _last_line(tail: bytearray, args: list[str]) -> str:
    text = tail.decode(errors="replace")
    for path in sorted((a for a in args[1:] if "/" in a), key=len, reverse=True):
        text = text.replace(path, "<file>")
    lines = [_CONTEXT.sub("", line).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "it gave no reason")
