"""`FakeClock`: time that moves only when it is told to."""

from __future__ import annotations

import asyncio
import heapq
import itertools

__all__ = ["FakeClock"]

SETTLE_TURNS = 20  # of the event loop, in which those who woke may act and sleep again


class FakeClock:
    """A `Clock` for tests of one event loop. Sleepers wake in the order of their times."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at each sleeper's time until it has acted; a sleep that begins meanwhile counts, too."""
        end = self._now + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self._now = due
                woken.set_result(None)
                await _settle()
        self._now = end
        await _settle()


async def _settle() -> None:
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)
