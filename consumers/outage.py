"""`Outage`: longer and longer waits while something is not reachable, and one line at each end of it."""

from __future__ import annotations

import asyncio
import logging

from bus.backoff import Backoff
from bus.errors import BusError

__all__ = ["Outage"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0


class Outage:
    """Of one thing. `since` is when it began, on the loop's clock; None while there is none."""

    def __init__(self, stop: asyncio.Event, deadline: float) -> None:
        self._stop, self._deadline = stop, deadline
        self._time = asyncio.get_running_loop().time
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        self.since: float | None = None

    async def wait(self, error: BusError) -> bool:
        """False: told to end meanwhile."""
        self.say(error)
        timeout_s = min(self._backoff.next_s(), self._deadline - self._time())
        try:
            await asyncio.wait_for(self._stop.wait(), max(0.0, timeout_s))
        except TimeoutError:
            return self._time() < self._deadline
        return False

    def say(self, error: BusError) -> None:
        """It has begun, if it had not."""
        if self.since is None:
            self.since = self._time()
            log.warning("waiting, and going on when it is back: %s", error)

    def over(self) -> None:
        """It has answered."""
        if self.since is not None:
            log.warning("going on after %.0f s", self._time() - self.since)
            self.since = None
            self._backoff.reset()
