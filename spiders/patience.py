"""`insist`: what must not be given up while the other side is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import random
from typing import TypeVar

from bus.errors import ConnectionLost, PublishUnconfirmed

__all__ = ["insist"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

BACKOFF_S = (0.1, 30.0)


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the other side has answered it, with growing pauses; say so once.

    Only for calls that may be repeated: publish with the same ids, ack, and all of the state.
    """
    pause_s, said = BACKOFF_S[0], False
    while True:
        try:
            return await call()
        except (ConnectionLost, PublishUnconfirmed) as error:
            if not said:
                logger.warning("waiting for the bus or the state: %s", error)
                said = True
            await asyncio.sleep(pause_s * (0.5 + random() / 2))
            pause_s = min(pause_s * 2, BACKOFF_S[1])
