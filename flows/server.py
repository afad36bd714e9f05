"""The Prefect server of a run: the one that is configured, or one of our own on loopback."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from reelmill.errors import ReelmillError

START_SECONDS = 120.0
"""How long a first start may take: it creates the database."""

PATIENCE = "REELMILL_SERVER_PATIENCE"
"""Environment variable: how long a finished run waits for a server that went away, such as ``10m``,
to report there."""

_EMBEDDED = {
    # Nothing leaves the machine, and services that only deployments need stay off.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    # To offer all kinds of blocks a server imports each collection there is: a quarter of its
    # start, and of no use to a build. A server that people start themselves still does.
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    # Batches cut the server's CPU per task run by more than half.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    # Seconds until a batch that is not full is taken in: people watch, and a build's end waits.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_LEVEL": "ERROR",
}

_SCHEDULING = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "true",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "true",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "true",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "true",
    # In memory, where they are else, the place that a run takes in its deployment is lost with the
    # server, and no other run would ever get it.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
}


@contextlib.contextmanager
def prefect_api(port: int | None = None, *, schedules: bool = False) -> Iterator[str]:
    """Yield the address of a Prefect API for the time of a run.

    The configured one (``PREFECT_API_URL`` in the environment or the active Prefect profile) is
    used as it is; without one a server is started on a free loopback port, with Prefect's usual
    database so that ``prefect server start`` shows its runs later, and stopped again.

    Args:
        port: where a server of our own listens, instead of on a free port.
        schedules: whether a server of our own starts the runs that schedules ask for.

    Raises:
        ReelmillError: the server does not start, or the configured one does not answer.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        if not answers(configured):
            raise ReelmillError(
                f"the Prefect server at {configured} does not answer; start it, or unset "
                "PREFECT_API_URL to let Reelmill start one for the run"
            )
        yield configured
        return
    own = own_server(port, schedules=schedules)
    with own as url, temporary_settings({PREFECT_API_URL: url}):
        # Should it die, nobody starts it again.
        os.environ.setdefault(PATIENCE, "0")
        yield url


@contextlib.contextmanager
def own_server(port: int | None = None, *, schedules: bool = False) -> Iterator[str]:
    """Start a server on a loopback port and stop it again; yields its API's address."""
    if port is None:
        port = free_port()
    elif not _is_free(port):
        raise ReelmillError(
            f"port {port} of this machine is taken: choose another one with --port, or, if a "
            f"Prefect server listens there, set PREFECT_API_URL=http://127.0.0.1:{port}/api"
        )
    url = f"http://127.0.0.1:{port}/api"
    descriptor, name = tempfile.mkstemp(prefix="reelmill-server-", suffix=".log")
    log = Path(name)
    process = start_server(port, log, schedules=schedules)
    os.close(descriptor)
    try:
        wait_until_up(process, url, log)
        yield url
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.unlink(missing_ok=True)


def start_server(
    port: int, log: Path, *, stdin: int = subprocess.PIPE, schedules: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process that serves on a loopback port and writes to ``log``, until ``stdin``
    ends."""
    settings = {**_EMBEDDED, **(_SCHEDULING if schedules else {})}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "reelmill.flows.server", str(port)],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal is for the run; the server must outlive its last report.
            start_new_session=True,
            env={**os.environ, **settings, "PREFECT_SERVER_API_HOST": "127.0.0.1"},
        )


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server that was started answers.

    Raises:
        ReelmillError: it ended, or takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"no answer in {START_SECONDS:.0f} seconds"
            raise ReelmillError(f"the Prefect server did not start: {reason}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a Prefect API answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """A port of the loopback interface at which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def serve(port: int) -> None:
    """Run a Prefect server in this process until standard input ends.

    The pipe ends when the parent does, however it dies: no server is ever left behind.
    """
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    # What is imported stays: to look for garbage in it, now and at each later turn, is in vain.
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app

    gc.freeze()
    gc.enable()

    # The UI asks a host of its makers how to count visits, even where visits are not counted.
    here = f"127.0.0.1:{port}"
    policy = f"connect-src 'self' http://{here} ws://{here} blob: data:"
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(),
            host="127.0.0.1",
            port=port,
            log_level="error",
            headers=[("Content-Security-Policy", policy)],
        )
    )

    def stop_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True
        # Open event streams can hold a graceful exit for long; nobody is left to read them.
        time.sleep(5)
        os._exit(0)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
