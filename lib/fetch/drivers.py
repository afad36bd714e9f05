"""Files in further object stores, through whatever fsspec has a driver for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

import fsspec

from reelmill.errors import StageError
from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer, media_type

_BLOCK_BYTES: Final = 1 << 20
_PACKAGES: Final = {"gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


class FsspecSource(OpenSource):
    """Objects by ``gs``, ``az``, ``abfs`` and ``hf`` URL; the environment names credentials."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._file_systems: dict[str, Any] = {}

    async def close(self) -> None:
        self._file_systems.clear()

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt at the object that the URL of ``transfer`` names, from its start.

        Raises:
            AttemptError: The attempt failed.
            StageError: The scratch directory cannot be written.
        """
        transfer.restart()
        await asyncio.get_running_loop().run_in_executor(None, self._copy, transfer)

    async def read_range(self, transfer: Transfer, start: int, end: int) -> bytes | None:
        """Return bytes of the object; None: they cannot be had."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._read, transfer, start, end)

    def _copy(self, transfer: Transfer) -> None:
        try:
            file_system = self._file_system(transfer.url)
            path = file_system._strip_protocol(transfer.url)
            info = file_system.info(path)
            if info.get("type") == "directory":
                raise AttemptError("not_a_file", "not an object but a folder")
            size = info.get("size")
            transfer.etag = info.get("etag") or info.get("ETag")
            transfer.content_type = media_type(info.get("contentType") or info.get("ContentType"))
            transfer.total = size
            transfer.check(size or 0)
            with file_system.open(
                path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead"
            ) as file:
                while data := file.read(_BLOCK_BYTES):
                    transfer.append(data)
        except Exception as error:
            raise _failure(error) from error
        if size is not None and transfer.size < size:
            message = "the object ended before its announced end"
            raise AttemptError("truncated", message, transient=True)

    def _read(self, transfer: Transfer, start: int, end: int) -> bytes | None:
        try:
            file_system = self._file_system(transfer.url)
            path = file_system._strip_protocol(transfer.url)
            data = bytes(file_system.cat_file(path, start=start, end=end))
        except Exception:
            return None
        return data if len(data) == end - start else None

    def _file_system(self, url: str) -> Any:
        scheme, _, rest = url.partition("://")
        # In Azure the account is in the URL, and a file system is of one account.
        key = f"{scheme}://{rest.partition('/')[0]}"
        with self._lock:
            if key not in self._file_systems:
                self._file_systems[key] = _open(scheme, url)
            return self._file_systems[key]


def _open(scheme: str, url: str) -> Any:
    try:
        options = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(url)
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        message = f"{scheme}: URLs need a driver; pip install {_PACKAGES[scheme]}"
        raise AttemptError("no_driver", message) from error


def _failure(error: Exception) -> Exception:
    """Return what an error of a driver, of which there are many kinds, means to us."""
    match error:
        case AttemptError() | StageError():
            return error
        case FileNotFoundError():
            return AttemptError("object_not_found", "the object store holds no such object")
        case PermissionError():
            return AttemptError("denied", "the object store denies access to the object")
        case IsADirectoryError():
            return AttemptError("not_a_file", "not an object but a folder")
        case TimeoutError():
            message = "the object store sent nothing for too long"
            return AttemptError("timeout", message, transient=True)
        case _:
            message = f"the object cannot be read: {type(error).__name__}"
            return AttemptError("unreadable", message, transient=True)
