"""Real Dask schedulers and workers for tests: processes to be killed, frozen or cut off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from reelmill.flows.server import free_port
from tests.runs.project import PATHS

LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")


class DaskProcesses:
    """A scheduler's address, and processes that end with the body.

    Args:
        folder: where they run, and where each writes its log.
        options: of scheduler and workers alike.
    """

    def __init__(self, folder: Path, *options: str, protocol: str = "tcp") -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"{protocol}://127.0.0.1:{self.port}"
        self._options = (*LOOPBACK, "--protocol", protocol, *options)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._started:
            kill(process)

    def scheduler(self, **environ: str) -> subprocess.Popen[bytes]:
        command = ["-m", "distributed.cli.dask_scheduler", "--port", str(self.port)]
        return self._start("scheduler", [sys.executable, *command, *self._options], environ)

    def worker(
        self, name: str, *options: str, to: str = "", forever: bool = False
    ) -> subprocess.Popen[bytes]:
        """A worker with one thread, whose work finds its name in ``WORKER``.

        Args:
            to: the scheduler's address, if it is another one.
            forever: start it again whenever it ends, as a service manager does.
        """
        command = [sys.executable, "-m", "distributed.cli.dask_worker", to or self.address]
        command += ["--nthreads", "1", "--local-directory", str(self.folder), *self._options]
        command += options
        if forever:
            command = ["sh", "-c", 'while :; do "$@"; sleep 0.2; done', "sh", *command]
        return self._start(name, command, {"WORKER": name})

    def _start(
        self, name: str, command: list[str], environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": PATHS, **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self._started.append(process)
        return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


async def pid_in(marker: Path) -> int:
    """The number that ``reelmill_cluster_work.stay`` leaves once it has begun."""
    await until(lambda: marker.exists() and bool(marker.read_text()))
    return int(marker.read_text())


class Wire:
    """A line to a port of this machine, which can be cut: then nothing comes through any more, and
    neither side is told."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._target = port
        self._cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._cut.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._carry(source, sink))
            self._tasks.add(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if self._cut.is_set():
                await asyncio.Event().wait()
            sink.write(data)
            await sink.drain()
        sink.close()
