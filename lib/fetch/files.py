"""Files on local disks, where a policy allows them."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer

_BLOCK_BYTES: Final = 1 << 20


class FileSource(OpenSource):
    """Regular files by ``file`` URL."""

    def __init__(self, policy: FetchPolicy) -> None:
        assert policy.allow_file

    async def fetch(self, transfer: Transfer) -> None:
        """Copy the file that the URL of ``transfer`` names.

        Raises:
            AttemptError: It cannot be read.
            StageError: The scratch directory cannot be written.
        """
        transfer.restart()
        await asyncio.get_running_loop().run_in_executor(None, _copy, transfer)


def _copy(transfer: Transfer) -> None:
    path = unquote_to_bytes(urlsplit(transfer.url).path)
    try:
        # Non-blocking, or opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AttemptError("not_a_file", "not a regular file")
            transfer.check(status.st_size)
            transfer.total = status.st_size
            while data := os.read(descriptor, _BLOCK_BYTES):
                transfer.append(data)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AttemptError("file_not_found", "no such file") from error
    except PermissionError as error:
        raise AttemptError("denied", "the file may not be read") from error
    except OSError as error:
        why = (error.strerror or "unknown error").lower()
        raise AttemptError(
            "unreadable", f"the file cannot be read: {why}", transient=True
        ) from error
