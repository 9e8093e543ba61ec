"""`Ending`: when a consumer has done what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from bus.state import JobState
from bus.transport import Lag
from consumers.jobs import JobsTold
from consumers.options import ConsumeOptions, Ended
from consumers.sink import Progress

__all__ = ["LOOK_S", "Ending", "Read"]

LOOK_S = 0.1  # how often the state is asked whether the jobs have ended
_OVER = {JobState.FINISHED, JobState.STOPPED}


class Read(Protocol):
    """How far this process itself has read."""

    def has_read(self, partition: int, offset: int) -> bool | None:
        """All below `offset`? None: the partition is not ours to read."""
        ...


class Ending:
    """Asked again and again. `positions` tells how far all members of the consumer have stored, `log_end` where the
    log ends now."""

    def __init__(
        self,
        options: ConsumeOptions,
        jobs: JobsTold,
        stop: asyncio.Event,
        positions: Callable[[], Awaitable[Sequence[Progress]]],
        log_end: Callable[[], Awaitable[Lag]],
    ) -> None:
        self._options, self._jobs, self._stop = options, jobs, stop
        self._positions, self._log_end = positions, log_end
        self._time = asyncio.get_running_loop().time
        self._began = self._next_look = self._time()
        self._end: Lag | None = None  # the log's end, taken after all jobs had ended

    @property
    def deadline(self) -> float:
        """When the time limit is reached, on the loop's clock."""
        limit_s = self._options.time_limit_s
        return float("inf") if limit_s is None else self._began + limit_s

    def told(self) -> Ended | None:
        """By a signal, or by the clock."""
        if self._stop.is_set():
            return Ended.STOPPED
        return Ended.TIME if self._time() >= self.deadline else None

    async def reached(self, read: Read) -> Ended | None:
        """Why to end now, if it is time."""
        if (told := self.told()) is not None:
            return told
        if not self._options.until_drained or self._time() < self._next_look:
            return None
        self._next_look = self._time() + LOOK_S
        if self._end is None:
            jobs = await self._jobs.ask(self._options.job)
            if jobs is not None and not jobs and self._time() - self._began >= self._options.wait_s:
                return Ended.NO_JOB
            if jobs and all(job.state in _OVER for job in jobs):
                self._end = await self._log_end()
        return Ended.DRAINED if self._end is not None and await self._is_stored(self._end, read) else None

    async def _is_stored(self, log: Lag, read: Read) -> bool:
        """What others hold is looked up in the sink."""
        first = log.first or {}
        left = {p: end for p, end in (log.end or {}).items() if end > first.get(p, 0)}
        ours = {partition: read.has_read(partition, end) for partition, end in left.items()}
        if False in ours.values():
            return False
        others = {partition for partition, done in ours.items() if done is None}
        if not others:
            return True
        stored = {progress.next.partition: progress.next.offset for progress in await self._positions()}
        return all(stored.get(partition, 0) >= left[partition] for partition in others)
