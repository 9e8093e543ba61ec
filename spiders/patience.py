"""`insist`: what must not be given up while the other side is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bus.backoff import Backoff
from bus.errors import ConnectionLost, PublishUnconfirmed

__all__ = ["insist"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the other side has answered it, with growing pauses; say so once.

    Only for calls that may be repeated: publish with the same ids, ack, and all of the state.
    """
    backoff, said = Backoff(), False
    while True:
        try:
            return await call()
        except (ConnectionLost, PublishUnconfirmed) as error:
            if not said:
                logger.warning("waiting for the bus or the state: %s", error)
                said = True
            await asyncio.sleep(backoff.next_s())
