"""Looking at the beginning of a file while the rest is on its way."""

from __future__ import annotations

import asyncio
from typing import Final

from reelmill.fetch.sources import RangeSource, Source
from reelmill.fetch.transfer import Inspector, Transfer

MAX_TAIL_BYTES: Final = 16 << 20
"""Size in bytes of the largest range that an inspector is given."""


async def inspected(source: Source, transfer: Transfer, inspector: Inspector) -> None:
    """Make an attempt at ``transfer``, which ends at once if ``inspector`` rejects the file.

    A file that is longer than ``inspector.head_bytes`` is always judged, however fast it comes, so
    that what becomes of it is no question of time.

    Raises:
        AttemptError: The attempt failed.
        Rejected: The inspector does not want the file.
        StageError: Something outside the data failed.
    """
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()
    transfer.head_bytes = inspector.head_bytes

    def on_head() -> None:
        loop.call_soon_threadsafe(reached.set)

    transfer.on_head = on_head
    arrival = loop.create_task(source.fetch(transfer))
    verdict = loop.create_task(_judge(source, transfer, inspector, reached))
    try:
        await asyncio.wait((arrival, verdict), return_when=asyncio.FIRST_COMPLETED)
        if verdict.done():
            verdict.result()
        await arrival
        if transfer.size > inspector.head_bytes:
            await verdict
    finally:
        transfer.on_head = None
        for task in (arrival, verdict):
            task.cancel()
        await asyncio.gather(arrival, verdict, return_exceptions=True)


async def _judge(
    source: Source, transfer: Transfer, inspector: Inspector, reached: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    await reached.wait()
    head = transfer.peek(0, inspector.head_bytes)
    size = transfer.total
    wanted = await loop.run_in_executor(None, inspector, head, size, None)
    if wanted is None:
        return
    start, end = max(0, wanted[0]), min(wanted[1], size if size is not None else wanted[1])
    if not 0 < end - start <= MAX_TAIL_BYTES:
        return
    if transfer.size >= end:
        tail: bytes | None = transfer.peek(start, end)
    elif isinstance(source, RangeSource):
        tail = await source.read_range(transfer, start, end)
    else:
        tail = None
    if tail is not None:
        await loop.run_in_executor(None, inspector, head, size, (start, tail))
