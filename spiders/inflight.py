"""`InFlight`: the requests that a worker has begun, until the bus knows that they are done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spiders.fetch import Fetch

if TYPE_CHECKING:
    from scrapy import Request
    from scrapy.core.engine import ExecutionEngine

__all__ = ["InFlight"]


class InFlight:
    """`begun`: handed to the downloader, or to the outbox at once, and not yet acknowledged; bounded by `limit`.
    Of these the engine holds some, by their Request."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.begun = 0
        self._held: dict[Request, Fetch] = {}
        self._less = asyncio.Event()

    @property
    def full(self) -> bool:
        return self.begun >= self.limit

    def __bool__(self) -> bool:
        return bool(self.begun or self._held)

    def hand_out(self, request: Request, fetch: Fetch) -> None:
        """The engine has it from now on."""
        self._held[request] = fetch
        self.begun += 1

    def take_back(self, request: Request) -> Fetch | None:
        """The engine is done with it. None: it is none of ours, or was taken back before."""
        return self._held.pop(request, None)

    def ended(self, count: int) -> None:
        """So many are acknowledged."""
        self.begun -= count
        self._less.set()

    async def less(self) -> None:
        """Wait until one more is acknowledged."""
        self._less.clear()
        await self._less.wait()

    def held(self) -> list[Fetch]:
        """What the engine has not finished."""
        return list(self._held.values())

    def strays(self, engine: ExecutionEngine) -> set[Request]:
        """What the engine should have, and does not have any more."""
        scraping = engine.scraper.slot.active if engine.scraper.slot is not None else set()
        return {request for request in self._held if request not in engine.downloader.active | scraping}
