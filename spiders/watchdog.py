"""A request that has left the engine while its worker still holds it open: a hook was missed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scrapy import Request

    from spiders.worker import Worker

__all__ = ["watch"]

LOOK_S = 5.0


async def watch(worker: Worker) -> None:
    """Until cancelled: what was gone at two looks in a row is a dead letter, so that the job can end."""
    suspects: set[Request] = set()
    while True:
        await asyncio.sleep(LOOK_S)
        strays = worker.in_flight.strays(worker.crawler.engine)
        for request in strays & suspects:
            worker.bury(request)
        suspects = strays
