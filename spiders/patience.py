"""`insist`: what must not be given up while the other side is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bus.backoff import Backoff
from bus.errors import BusError, ConnectionLost, PublishUnconfirmed

__all__ = ["OUTAGE", "Outage", "insist"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Outage:
    """Everything of this process that waits for the bus or the state. Many calls wait; one line says so, and one says
    that the last of them goes on."""

    def __init__(self) -> None:
        self._waiting: set[object] = set()
        self._began_s = 0.0

    def begin(self, who: object, error: BusError) -> None:
        """`who` waits, if it did not already."""
        if not self._waiting:
            self._began_s = time.monotonic()
            logger.warning("waiting, and going on when it is back: %s", error)
        self._waiting.add(who)

    def end(self, who: object) -> None:
        """`who` goes on, if it did wait."""
        if who in self._waiting:
            self._waiting.remove(who)
            if not self._waiting:
                logger.warning("going on after %.0f s", time.monotonic() - self._began_s)

    def holds_others(self, who: object) -> bool:
        """Does anybody else wait? Asked by one who reaches the state: they wait for the bus then."""
        return bool(self._waiting - {who})


OUTAGE = Outage()


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the other side has answered it, with growing pauses.

    Only for calls that may be repeated: publish with the same ids, ack, and all of the state.
    """
    backoff = Backoff()
    try:
        while True:
            try:
                return await call()
            except (ConnectionLost, PublishUnconfirmed) as error:
                OUTAGE.begin(backoff, error)
                await asyncio.sleep(backoff.next_s())
    finally:
        OUTAGE.end(backoff)
