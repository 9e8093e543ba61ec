"""`Teller`: tells the bus and the state what is stored, beside the storing of what comes next."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from operator import itemgetter

from bus.errors import BusError, ConnectionLost, StaleDelivery
from bus.message import Delivery
from bus.state import Job
from bus.transport import Subscription
from consumers.jobs import JobsTold
from consumers.sink import Batch

__all__ = ["Teller"]

log = logging.getLogger(__name__)

AGAIN_S = 1.0
LEAVE_S = 2.0

_job_and_run = itemgetter(1, 3)  # of an item's record


class Teller:
    """For one subscription. What the bus hears is for retention, and for how much may be read ahead; what the state
    hears is for display; what counts is in the sink. So storing waits for neither, and neither for the other."""

    def __init__(self, subscription: Subscription, jobs: JobsTold) -> None:
        self._subscription, self._jobs = subscription, jobs
        self._acks: dict[int, Delivery] = {}
        self._counts = Counter[tuple[str, int]]()
        self._away = False
        self._bus, self._state = _Aside(self._tell_bus), _Aside(self._tell_state)

    def stored(self, batch: Batch) -> None:
        """This batch is in the sink. What was not told yet is told together."""
        self._acks |= batch.acks
        self._counts.update(map(_job_and_run, (entry[1] for entry in batch.entries)))
        self._bus.wake()
        self._state.wake()

    async def aclose(self) -> None:
        """Tells the last; who does not listen is not waited for."""
        await asyncio.gather(self._bus.aclose(), self._state.aclose())

    async def _tell_bus(self) -> None:
        """Until it has heard: it hands out only so much that is not acknowledged."""
        while self._acks:
            acks, self._acks = self._acks, {}
            try:
                await self._subscription.ack(list(acks.values()))
            except StaleDelivery as error:  # a subscription that was made anew has room again
                log.debug("the bus was not told what is stored: %s", error)
            except BusError as error:
                self._acks = acks | self._acks
                if not self._away and not isinstance(error, ConnectionLost):  # of that, who reads will say so
                    log.warning("the bus cannot be told what is stored, trying on: %s", error)
                    self._away = True
                await asyncio.sleep(AGAIN_S)
            else:
                if self._away:
                    log.warning("the bus is told again what is stored")
                self._away = False

    async def _tell_state(self) -> None:
        while self._counts:
            counts, self._counts = self._counts, Counter()
            await self._jobs.tell({Job(*key): count for key, count in counts.items()})


class _Aside:
    """A task that is there while there is something to do."""

    def __init__(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        self._task = self._task or asyncio.create_task(self._work())

    async def aclose(self) -> None:
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._task, LEAVE_S)
