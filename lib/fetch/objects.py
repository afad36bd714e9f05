"""Files in object stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import format_datetime
from typing import Any, Final

import aiohttp
import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from reelmill.errors import StageError
from reelmill.fetch.sources import OpenSource
from reelmill.fetch.transfer import AttemptError, FetchPolicy, Transfer, media_type
from reelmill.fetch.urls import s3_location

_BLOCK_BYTES: Final = 1 << 20
_TRUNCATED: Final = "the object ended before its announced end"
# The store refuses us, not this object: every further one would fail the same way.
_NOT_OUR_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)


class S3Source(OpenSource):
    """Objects by ``s3`` URL, as they are stored; the environment names endpoint and credentials."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._file_system: Any = None

    async def close(self) -> None:
        if self._file_system is not None:
            client = await self._file_system.set_session()
            await client.close()

    async def fetch(self, transfer: Transfer) -> None:
        """Make one attempt to bring ``transfer`` to its end, from where it stands.

        Raises:
            AttemptError: The attempt failed.
            StageError: The credentials are missing or refused, or the scratch directory cannot be
                written.
        """
        bucket, key = s3_location(transfer.url)
        request = {"Bucket": bucket, "Key": key}
        if transfer.size and transfer.validator:
            request |= {"Range": f"bytes={transfer.size}-", "IfMatch": transfer.validator}
        else:
            transfer.restart()
        with _errors(bucket, transfer, "reset", "the object store closed the connection"):
            client = await self._client()
            reply = await client.get_object(**request)
        transfer.etag = transfer.validator = reply.get("ETag")
        transfer.content_type = media_type(reply.get("ContentType"))
        if "LastModified" in reply:
            transfer.last_modified = format_datetime(
                reply["LastModified"].astimezone(UTC), usegmt=True
            )
        if "ContentLength" not in reply:
            raise AttemptError("bad_response", "the object store does not tell the object's size")
        total = transfer.total = transfer.size + reply["ContentLength"]
        with _errors(bucket, transfer, "truncated", _TRUNCATED):
            async with reply["Body"] as body:
                transfer.check(total)
                while data := await body.read(_BLOCK_BYTES):
                    await transfer.receive(data)
        if transfer.size < total:
            raise AttemptError("truncated", _TRUNCATED, transient=True)

    async def read_range(self, transfer: Transfer, start: int, end: int) -> bytes | None:
        """Return bytes of the object; None: they cannot be had."""
        bucket, key = s3_location(transfer.url)
        request = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
        if transfer.validator:
            request["IfMatch"] = transfer.validator
        try:
            client = await self._client()
            reply = await client.get_object(**request)
            async with reply["Body"] as body:
                data: bytes = await body.read(end - start)
        except (BotoCoreError, ClientError, aiohttp.ClientError):
            return None
        return data if len(data) == end - start else None

    async def _client(self) -> Any:
        if self._file_system is None:
            # One client in this event loop, and no retries of its own: they would multiply ours.
            self._file_system = fsspec.filesystem(
                "s3",
                asynchronous=True,
                loop=asyncio.get_running_loop(),
                skip_instance_cache=True,
                config_kwargs={
                    "connect_timeout": self._policy.connect_timeout_s,
                    "read_timeout": self._policy.idle_timeout_s,
                    "max_pool_connections": self._policy.concurrency,
                    "retries": {"total_max_attempts": 1},
                },
            )
        return await self._file_system.set_session()


@contextmanager
def _errors(bucket: str, transfer: Transfer, broken: str, message: str) -> Iterator[None]:
    """Turn errors of the client into ours; ``broken`` is what a lost connection means here."""
    try:
        yield
    except ClientError as error:
        raise _refusal(error, bucket, transfer) from error
    except (EndpointConnectionError, ConnectTimeoutError, SSLError) as error:
        raise AttemptError("connect", "the object store was not reached", transient=True) from error
    except (ReadTimeoutError, aiohttp.SocketTimeoutError) as error:
        raise AttemptError(
            "timeout", "the object store sent nothing for too long", transient=True
        ) from error
    except (
        ConnectionClosedError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
        aiohttp.ClientError,
    ) as error:
        raise AttemptError(broken, message, transient=True) from error
    except BotoCoreError as error:
        raise StageError(f"s3://{bucket}: {error}") from error


def _refusal(error: Any, bucket: str, transfer: Transfer) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _NOT_OUR_CREDENTIALS:
        return StageError(f"s3://{bucket}: the object store refuses the credentials: {code}")
    if status in (412, 416):
        transfer.restart()
        return AttemptError("truncated", "the object changed while it was read", transient=True)
    if status == 404:
        return AttemptError("object_not_found", f"bucket {bucket} holds no such object")
    if status in (401, 403):
        return AttemptError("denied", f"bucket {bucket} denies access to the object")
    return AttemptError(
        f"http_{status}",
        f"the object store answered {status} {code}".rstrip(),
        transient=status in (408, 429) or 500 <= status < 600,
    )
