"""`Teller`: tells the bus and the state what is stored, beside the storing of what comes next."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from operator import itemgetter

from bus.errors import BusError
from bus.message import Delivery
from bus.state import Job
from bus.transport import Subscription
from consumers.jobs import JobsTold
from consumers.sink import Batch

__all__ = ["Teller"]

log = logging.getLogger(__name__)

LEAVE_S = 5.0

_job_and_run = itemgetter(1, 3)  # of an item's record


class Teller:
    """For one subscription. The bus's word is for lag and retention, the state's for display; what counts is the
    sink's, so nothing waits for either."""

    def __init__(self, subscription: Subscription, jobs: JobsTold) -> None:
        self._subscription, self._jobs = subscription, jobs
        self._acks: dict[int, Delivery] = {}
        self._counts = Counter[tuple[str, int]]()
        self._telling: asyncio.Task[None] | None = None

    def stored(self, batch: Batch) -> None:
        """This batch is in the sink. What was not told yet is told together."""
        self._acks |= batch.acks
        self._counts.update(map(_job_and_run, (entry[1] for entry in batch.entries)))
        if self._telling is not None and self._telling.done():
            self._telling.result()
            self._telling = None
        self._telling = self._telling or asyncio.create_task(self._tell())

    async def aclose(self) -> None:
        """Tells the last; who does not listen is not waited for."""
        if self._telling is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._telling, LEAVE_S)

    async def _tell(self) -> None:
        while self._acks or self._counts:
            acks, self._acks = self._acks, {}
            counts, self._counts = self._counts, Counter()
            try:
                if acks:
                    await self._subscription.ack(list(acks.values()))
            except BusError as error:
                log.debug("the bus was not told the progress: %s", error)
            await self._jobs.tell({Job(*key): count for key, count in counts.items()})
