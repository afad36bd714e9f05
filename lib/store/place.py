"""Which processes can be looked up by their numbers: those of this host and this container."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
from pathlib import Path

_NAMESPACE = Path("/proc/self/ns/pid")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DIGITS = 12


@functools.cache
def place() -> str:
    """A name for where process numbers mean what they mean here.

    It holds the host's name, and a digest of the running kernel and its process namespace:
    containers may share a host's name and each have a process 7.
    """
    parts = []
    with contextlib.suppress(OSError):
        parts = [_BOOT.read_text().strip(), str(_NAMESPACE.stat().st_ino)]
    told = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:_DIGITS]
    return f"{re.sub(r'[^A-Za-z0-9.-]', '-', socket.gethostname())}.{told}"


def is_running(pid: int) -> bool:
    """Whether there is a process of that number in this place."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
