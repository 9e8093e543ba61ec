"""`start()` runs in one worker of the fleet, and counts as ended only when all it published is marked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from scrapy import Request
from scrapy.exceptions import CloseSpider

from bus.state import JobState, JobStatus
from spiders.addon import worker_of
from spiders.patience import insist

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from spiders.worker import Worker

__all__ = ["StartItems", "StartMiddleware"]

POLL_S = 0.5


class StartItems:
    """Items from `start()` itself: their ordinals, and how many are in the pipelines."""

    def __init__(self) -> None:
        self._given = 0
        self._ended = 0
        self._yielded = 0
        self._change = asyncio.Event()

    def reset(self) -> None:
        self._given = self._ended = self._yielded = 0

    def yielded(self) -> None:
        """The engine has got one."""
        self._yielded += 1

    def begin(self) -> int:
        self._given += 1
        return self._given - 1

    def end(self) -> None:
        self._ended += 1
        self._change.set()

    async def settled(self) -> None:
        """Wait until each has passed the pipelines, or was dropped."""
        while self._ended < self._yielded:
            self._change.clear()
            await self._change.wait()


class StartMiddleware:
    """Outermost of the spider middlewares: lets `start()` run under the lease, from its beginning, and records its
    end. Where another worker holds the lease, it waits to take over."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> StartMiddleware:
        return cls(crawler)

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        worker = worker_of(self._crawler)
        if not await self._claim(worker):
            return
        worker.pages.forget_starts()
        worker.start_items.reset()
        try:
            async for output in start:
                await worker.outbox.room()
                if not isinstance(output, Request):
                    worker.start_items.yielded()
                yield output
        except CloseSpider as error:
            worker.stop_job(error.reason or "cancelled")
            raise
        except Exception:
            worker.outbox.count("start-errors")
            await self._end(worker)
            raise
        await self._end(worker)

    async def _claim(self, worker: Worker) -> bool:
        """True with the lease; False when there is nothing to run: `start()` has ended, or this worker is leaving."""
        while not worker.leaving:
            status = await self._to_run(worker)
            if status is None:
                return False
            if status.state is JobState.RUNNING and await self._acquire(worker):
                return await self._to_run(worker) is not None
            await asyncio.sleep(POLL_S)
        return False

    async def _to_run(self, worker: Worker) -> JobStatus | None:
        """How the job stands; None where `start()` has ended for it."""
        status = await insist(lambda: worker.state.status(worker.job.name))
        return None if status is None or status.start_ended or status.job != worker.job else status

    async def _acquire(self, worker: Worker) -> bool:
        return await insist(lambda: worker.state.acquire(worker.job, "start", worker.id))

    async def _end(self, worker: Worker) -> None:
        await worker.start_items.settled()
        await worker.outbox.flush()
        while not await insist(lambda: worker.state.end_start(worker.job, worker.id)):
            # the lease has run out, in an outage or a sleep: whoever has it now runs `start()` once more
            if await self._to_run(worker) is None or not await self._acquire(worker):
                return
        worker.look()
