"""`Combined`: what many tasks send at once shares round trips."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Combined"]

T = TypeVar("T")


class _Part(NamedTuple, Generic[T]):
    items: Sequence[T]
    cost: int
    done: asyncio.Future[None]


class Combined(Generic[T]):
    """Sends one batch at a time; what is asked for meanwhile goes together in the next one (group commit:
    DeWitt et al., "Implementation techniques for main memory database systems", 1984). The order is kept."""

    def __init__(self, send: Callable[[list[T]], Awaitable[object]], cost: Callable[[T], int], most: int) -> None:
        self._send, self._cost, self._most = send, cost, most
        self._parts: deque[_Part[T]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def add(self, items: Sequence[T]) -> None:
        """Send all, in batches of a cost of at most `most`, or of one item. Raises the first error.

        Who is cancelled does not know what was sent.
        """
        await asyncio.gather(*self._split(items))

    def _split(self, items: Sequence[T]) -> list[asyncio.Future[None]]:
        loop = asyncio.get_running_loop()
        parts: list[_Part[T]] = []
        begin = cost = 0
        for i, item in enumerate(items):
            more = self._cost(item)
            if i > begin and cost + more > self._most:
                parts.append(_Part(items[begin:i], cost, loop.create_future()))
                begin, cost = i, 0
            cost += more
        parts.append(_Part(items[begin:], cost, loop.create_future()))
        self._parts.extend(parts)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return [part.done for part in parts]

    async def _run(self) -> None:
        try:
            while self._parts:
                await self._send_next()
        finally:
            self._task = None

    async def _send_next(self) -> None:
        batch = [self._parts.popleft()]
        cost = batch[0].cost
        while self._parts and cost + self._parts[0].cost <= self._most:
            batch.append(self._parts.popleft())
            cost += batch[-1].cost
        try:
            await self._send([item for part in batch for item in part.items])
        except Exception as error:
            for part in batch:
                if not part.done.done():
                    part.done.set_exception(error)
        else:
            for part in batch:
                if not part.done.done():
                    part.done.set_result(None)
