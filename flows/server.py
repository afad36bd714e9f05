"""The Prefect server of a run: the one that is configured, or one of our own on loopback."""

from __future__ import annotations

import contextlib
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

_EMBEDDED = {
    # Nothing leaves the machine, and services that only deployments need stay off.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    # Batches cut the server's CPU per task run by more than half.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_LEVEL": "ERROR",
}


@contextlib.contextmanager
def prefect_api() -> Iterator[str]:
    """Yield the address of a Prefect API for the time of a run.

    The configured one (``PREFECT_API_URL`` in the environment or the active Prefect profile) is
    used as it is; without one a server is started on a free loopback port, with Prefect's usual
    database so that ``prefect server start`` shows its runs later, and stopped again.

    Raises:
        ReelmillError: the server does not start, or the configured one does not answer.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        if not _answers(configured):
            raise ReelmillError(
                f"the Prefect server at {configured} does not answer; start it, or unset "
                "PREFECT_API_URL to let Reelmill start one for the run"
            )
        yield configured
        return
    with own_server() as url, temporary_settings({PREFECT_API_URL: url}):
        yield url


@contextlib.contextmanager
def own_server() -> Iterator[str]:
    """Start a server on a free loopback port and stop it again; yields its API's address."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    descriptor, name = tempfile.mkstemp(prefix="reelmill-server-", suffix=".log")
    log = Path(name)
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "reelmill.flows.server", str(port)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal is for the run; the server must outlive its last report.
            start_new_session=True,
            env={**os.environ, **_EMBEDDED, "PREFECT_SERVER_API_HOST": "127.0.0.1"},
        )
    try:
        _wait_until_up(process, url, log)
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


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"no answer in {START_SECONDS:.0f} seconds"
            raise ReelmillError(f"the Prefect server did not start: {reason}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def serve(port: int) -> None:
    """Run a Prefect server in this process until standard input ends.

    The pipe ends when the parent does, however it dies: no server is ever left behind.
    """
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(
        uvicorn.Config(create_app(), host="127.0.0.1", port=port, log_level="error")
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
