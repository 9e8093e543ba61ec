"""`Presence`: a worker tells how it stands, hears what the job wants, and finds the job's end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from bus.errors import ConnectionLost
from bus.state import LEASE_S, JobState, JobStatus, WorkerReport
from spiders.patience import OUTAGE

if TYPE_CHECKING:
    from spiders.worker import Worker

__all__ = ["FORGOTTEN", "Presence"]

logger = logging.getLogger(__name__)

IDLE_LOOK_S, BUSY_LOOK_S = 0.1, 0.2
REPORT_S = 2.0
BUS_LOOK_S = 5.0
FORGOTTEN = "forgotten"  # why a worker has left


class Presence:
    """Looks at the job every 0.1 s while idle and every 0.2 s while busy; reports every 2 s."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._now = asyncio.Event()
        self._reported_s = float("-inf")
        self._slow_end = SlowEnd(worker)

    def look(self) -> None:
        """Look at once."""
        self._now.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
                OUTAGE.end(self)
            except ConnectionLost as error:
                OUTAGE.begin(self, error)
            pause_s = IDLE_LOOK_S if self._worker.idle else BUSY_LOOK_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()

    async def report(self) -> JobStatus | None:
        """Tell how this worker stands."""
        worker, away = self._worker, OUTAGE.holds_others(self)
        report = WorkerReport(worker.id, worker.in_flight.begun, len(worker.ready), bus_away=away)
        return await worker.state.report(worker.job, report)

    async def _look(self) -> None:
        worker, now_s = self._worker, asyncio.get_running_loop().time()
        if now_s - self._reported_s >= REPORT_S:
            status = await self.report()
            self._reported_s = now_s
        else:
            status = await worker.state.status(worker.job.name)
        if status is None:
            logger.critical("job %r is not in the state any more: it was forgotten, or its server has lost data",
                            worker.job.name)  # fmt: skip
            worker.leave(FORGOTTEN)
            return
        if status.job != worker.job:
            worker.leave("restarted")
            return
        worker.heard(status)
        if status.state is JobState.RUNNING and worker.idle and not worker.forever:
            state = JobState.RUNNING
            if status.drained and not status.suspect:
                state = await worker.state.end(worker.job)
            elif status.open or status.suspect:
                state = await self._slow_end.look(status, now_s)
            if state is JobState.FINISHED:
                worker.end()
        else:
            self._slow_end.begin_anew()


class SlowEnd:
    """The end of a job whose `open` does not empty though there is nothing left to do, because the store lost writes
    or a message could not be read: the bus is empty at two looks two leases apart, and every worker idle. Where the bus
    may hide a retry for longer, so much longer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._since_s: float | None = None
        self._next_s = float("-inf")  # a fleet that is idle need not ask its bus ten times a second

    def begin_anew(self) -> None:
        """This worker has something to do: what was seen before is of no use."""
        self._since_s = None

    async def look(self, status: JobStatus, now_s: float) -> JobState:
        """End the job if it is time; returns its state."""
        idle = all(not (report.in_flight or report.ready) for report in status.workers)
        if not (idle and status.start_ended and not status.loading and not status.forever):
            self._since_s = None
        elif self._since_s is None:
            if now_s >= self._next_s:
                self._next_s = now_s + BUS_LOOK_S
                self._since_s = now_s if await self._empty(len(status.workers)) else None
        elif now_s - self._since_s > self._long_enough_s(status):
            if not await self._empty(len(status.workers)):
                self._since_s = None
            elif self._worker.idle:
                level = logging.WARNING if status.open else logging.INFO
                logger.log(level, "the job ends with %d pages that nothing is known of", status.open)
                return await self._worker.state.end(self._worker.job, unaccounted=status.open)
        return JobState.RUNNING

    def _long_enough_s(self, status: JobStatus) -> float:
        hidden_s = self._worker.transport.capabilities.hides_s if status.counters.get("retries") else 0.0
        return max(2 * LEASE_S, hidden_s)

    async def _empty(self, workers: int) -> bool:
        """No lane or band has anything left; what is not known exactly is not nothing. Where the bus cannot tell what
        is unacknowledged, all its readers must be workers that are known, and idle."""
        for topic in self._worker.lane_topics:
            lag = await self._worker.transport.lag(topic)
            held = lag.unacked or (lag.unacked is None and lag.readers is not None and lag.readers > workers)
            if not lag.exact or lag.ready != 0 or held or lag.delayed != 0:
                return False
        return True
