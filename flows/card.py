"""What workers with a GPU do when they start, or when a build first asks for one."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from distributed import WorkerPlugin

from reelmill.flows.workers import GPU
from reelmill.media.gpu import devices

logger = logging.getLogger("distributed.worker")


class TellOfCard(WorkerPlugin):  # type: ignore[misc]
    """Has each worker with a GPU ask what its card can do, and say so in its log, once.

    A worker without a card, or without the packages for it, says that; stages that need them fail
    with the same line.
    """

    name = "reelmill-card"

    async def setup(self, worker: Any) -> None:
        if worker.state.total_resources.get(GPU):
            # The first question sets CUDA up, for seconds in which a worker must be heard of.
            logger.info("%s", await asyncio.to_thread(devices.tell))
