"""`Pump`: reads a log and stores it, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from bus.message import Delivery
from bus.transport import Subscription
from consumers.options import Ended
from consumers.reader import LogReader
from consumers.sink import Batch

__all__ = ["Expiries", "Pump", "while_keeping"]

EXPIRIES = 3  # a log that is being trimmed may drop its first message between the look and the first read
IDLE_S = 0.25  # the longest that one `receive` waits: how soon a stop is noticed
TURN_S = 0.001  # the longest that decoding keeps the loop from all else, as the next batch to store


class Pump:
    """One batch is filled, one waits, one is stored: so memory is bounded, and reading stops while storing does.

    `store` gets each batch in the order of the log; `ended` is asked before each read, `on_read` told after it.
    `idle_s` is the longest that one read waits.
    """

    def __init__(
        self,
        reader: LogReader,
        subscription: Subscription,
        store: Callable[[Batch], Awaitable[None]],
        ended: Callable[[], Awaitable[Ended | None]],
        *,
        on_read: Callable[[Sequence[Delivery]], None] = lambda _: None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._reader, self._subscription, self._store, self._ended = reader, subscription, store, ended
        self._on_read, self._idle_s = on_read, idle_s
        self._batches: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        self._time = asyncio.get_running_loop().time

    async def run(self) -> Ended:
        """Until `ended` says why. If reading fails, what was read is stored first."""
        reading, writing = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            await writing
            return await reading
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self) -> Ended:
        try:
            while (ended := Ended.LIMIT if self._reader.exhausted else await self._ended()) is None:
                await self._read_once()
            await self._batches.put(self._reader.last())
        except Exception:
            await self._batches.put(None)
            raise
        await self._batches.put(None)
        return ended

    async def _read_once(self) -> None:
        due_s = self._reader.due_in(self._time())
        if due_s is not None and due_s <= 0:
            await self._batches.put(self._reader.last())
            due_s = None
        timeout_s = min(self._idle_s, due_s or self._idle_s)
        deliveries = await self._subscription.receive(max_messages=self._reader.fetch, timeout_s=timeout_s)
        self._on_read(deliveries)
        turn_s = self._time() + TURN_S
        for delivery in deliveries:
            for batch in self._reader.take(delivery, self._time()):
                await self._batches.put(batch)
            if self._reader.exhausted:
                return
            if self._time() > turn_s:
                await asyncio.sleep(0)
                turn_s = self._time() + TURN_S

    async def _write(self) -> None:
        while (batch := await self._batches.get()) is not None:
            if batch.progress:
                await self._store(batch)


class Expiries:
    """Positions that the log did not hold, one after another, with nothing stored in between."""

    def __init__(self) -> None:
        self._count, self._batches = 0, -1

    def too_many(self, batches: int) -> bool:
        """One more; so many batches are stored by now."""
        self._count = self._count + 1 if batches == self._batches else 1
        self._batches = batches
        return self._count == EXPIRIES


async def while_keeping(pumping: Coroutine[None, None, Ended], keeping: Coroutine[None, None, None]) -> Ended:
    """Pump for as long as our share of the log is kept: `keeping` ends only by raising, and then so does this."""
    both = asyncio.create_task(pumping), asyncio.create_task(keeping)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if both[1].done():
            both[1].result()
        return await both[0]
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)
