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
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import IO, Any

import ffmpeg

from reelmill.errors import MissingDependencyError, ReelmillError, StageError

TAIL_BYTES = 16_384
"""How much of a process's log is kept: its end."""

_KILLED = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_SHORT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_SHORT_OF_OTHERS = (errno.ENOMEM, errno.EAGAIN)
_IN_MEDIA = re.compile(rb"demux|decod|input|packet", re.IGNORECASE)
"""A line of log that holds such is about what is read, which may ask for any amount of memory."""

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

    Raises :class:`FfmpegError`, or :class:`~reelmill.errors.StageError` as :func:`run_each` does.
    """
    for _, error in run_each([stream], timeout_s=timeout_s):
        if error is not None:
            raise error


def run_each(
    streams: Iterable[Any],
    *,
    timeout_s: float,
    jobs: int = 1,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, FfmpegError | None]]:
    """Run composed ffmpeg-python output ``streams``, ``jobs`` at a time, within ``timeout_s``
    seconds together: the place in ``streams`` of each as it ends, and why it failed, if it did.

    The processes have no shell, no standard input and process groups of their own, which are killed
    whole on time-out, on any exception here, and when the caller stops early. ``progress`` is told
    how many more video frames were encoded, by all of them.

    Raises :class:`~reelmill.errors.StageError` where the disk is full or a process was killed: no
    fault of the media.
    """
    deadline = time.monotonic() + timeout_s
    late = FfmpegError(f"ffmpeg was stopped after {timeout_s:g} seconds", timed_out=True)
    waiting = iter(enumerate(streams))
    with selectors.DefaultSelector() as selector:
        running: set[_Process] = set()
        try:
            while True:
                for place, stream in islice(waiting, max(0, jobs - len(running))):
                    running.add(_Process(place, stream, selector, progress))
                if not running:
                    return
                left = max(0.0, deadline - time.monotonic())
                for key, _ in selector.select(left):
                    key.data.read(key.fileobj)
                for process in [one for one in running if not one.pipes]:
                    running.remove(process)
                    yield process.place, process.end(deadline, late)
                if time.monotonic() >= deadline:
                    break
        finally:
            for process in running:
                process.kill()
    # No more is begun once the time is over.
    for place in (*sorted(process.place for process in running), *(place for place, _ in waiting)):
        yield place, late


class _Process:
    """One ffmpeg process, until its ``pipes`` are closed: it keeps the end of the log."""

    def __init__(
        self,
        place: int,
        stream: Any,
        selector: selectors.BaseSelector,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.place = place
        self._args = ffmpeg.compile(stream, cmd=ffmpeg_exe())
        if progress is not None:
            # One line for each frame of each output; `-progress` knows of the first output alone.
            self._args[1:1] = ["-vstats_file", "/dev/stdout"]
        self._progress = progress
        self._selector = selector
        self._tail = bytearray()
        self._popen = subprocess.Popen(
            self._args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if progress is not None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pipes = {pipe for pipe in (self._popen.stdout, self._popen.stderr) if pipe is not None}
        for pipe in self.pipes:
            selector.register(pipe, selectors.EVENT_READ, self)

    def read(self, pipe: IO[bytes]) -> None:
        """Take what waits in ``pipe``; forget the pipe at its end."""
        chunk = os.read(pipe.fileno(), TAIL_BYTES)
        if not chunk:
            self._selector.unregister(pipe)
            self.pipes.remove(pipe)
            pipe.close()
        elif pipe is self._popen.stderr:
            self._tail += chunk
            del self._tail[:-TAIL_BYTES]
        elif self._progress is not None:
            self._progress(chunk.count(b"\n"))

    def end(self, deadline: float, late: FfmpegError) -> FfmpegError | None:
        """Wait for the process, whose pipes are closed; why it failed, if it did."""
        try:
            status = self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return late
        finally:
            self.kill()
        tail = self._tail
        if os.strerror(errno.ENOSPC).encode() in tail:
            raise StageError(
                "ffmpeg found no space left for its output: free the disk it writes to"
            )
        # A crash may be the media's fault; being killed, or short of memory or files, is not.
        if -status in _KILLED or _is_short(tail):
            raise StageError(f"ffmpeg was killed or found no resources (status {status})")
        if status:
            return FfmpegError(
                f"ffmpeg failed with status {status}: {_last_line(tail, self._args)}"
            )
        return None

    def kill(self) -> None:
        """Kill the process group if it still runs, and close what is open."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        for pipe in self.pipes:
            pipe.close()


def _is_short(tail: bytearray) -> bool:
    """Whether a log tells that the host lacks something, for which no media are to blame."""
    own = b"\n".join(line for line in tail.splitlines() if not _IN_MEDIA.search(line))
    return _names(tail, _SHORT_OF_FILES) or _names(own, _SHORT_OF_OTHERS)


def _names(log: bytes | bytearray, errors: Iterable[int]) -> bool:
    return any(os.strerror(number).encode() in log for number in errors)


def _last_line(tail: bytearray, args: list[str]) -> str:
    text = tail.decode(errors="replace")
    for path in sorted((a for a in args[1:] if "/" in a), key=len, reverse=True):
        text = text.replace(path, "<file>")
    lines = [_CONTEXT.sub("", line).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "it gave no reason")
