"""`Reader`: what the subscriptions of both kinds share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from adapters.redis.connection import Server
from bus.backoff import Backoff
from bus.errors import BusError, Closed, ConnectionLost
from bus.message import Delivery

__all__ = ["LOOK_S", "Reader"]

LOOK_S = 1.0  # a blocked read lasts no longer: then there may be something else to see to
GRACE_S = 5.0  # how much later than it should a blocked read may end
LONGEST_PAUSE_S = 5.0


class Reader(ABC):
    """One task at a time receives. What it waits for is fetched by a task that goes on where a `receive` is cancelled
    or times out, so that nothing is lost, and the next `receive` of a quiet topic costs no round trip."""

    def __init__(self, server: Server, name: str, prefetch: int) -> None:
        self._server, self._name, self._prefetch = server, name, prefetch
        self._line = server.own_line()
        self._arrived: list[Delivery] = []
        self._asked = 0
        self._fetch: asyncio.Task[None] | None = None
        self._quiet = False  # the fetch under way has seen that there is nothing
        self._failure: Exception | None = None
        self._away: ConnectionLost | None = None
        self._backoff = Backoff(longest_s=LONGEST_PAUSE_S)
        self._changed = asyncio.Event()
        self.closed = self._reading = False

    @abstractmethod
    def _room(self) -> int:
        """How many more may be delivered before an ack."""

    @abstractmethod
    async def _fetch_some(self) -> bool:
        """One step of fetching: look and read, at first without waiting. False where there was nothing."""

    async def _leave(self) -> None:
        """What closing means besides."""

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._reading:
            raise BusError(f"two tasks read one subscription of {self._name!r}")
        self._reading = True
        try:
            return await self._receive(max_messages, timeout_s)
        finally:
            self._reading = False

    async def _receive(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._asked = max_messages
        while True:
            self._check_open()
            if self._arrived:
                given, self._arrived = self._arrived[:max_messages], self._arrived[max_messages:]
                return given
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            fetching = self._fetch is not None and not self._fetch.done()
            if not fetching and self._room() > 0:
                self._fetch = asyncio.create_task(self._run())
                self._quiet, fetching = False, True
            left_s = deadline - loop.time()
            looking = fetching and not self._quiet and self._away is None
            if left_s > 0.0 or looking:
                await self._wait(None if looking else left_s)
                continue
            await asyncio.sleep(0)  # a caller that asks without waiting must not keep the fetch from running
            if self._away is not None:
                raise ConnectionLost(str(self._away))
            if not self._arrived:
                return ()

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._changed.set()
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)
        try:
            await self._server.discard(self._line)
            await self._leave()
        except BusError:
            pass  # its lease runs out

    async def _run(self) -> None:
        """Fetch until there is something, or an error."""
        try:
            if self._away is not None:
                await asyncio.sleep(self._backoff.next_s())
            while self._room() > 0 and not self._arrived:
                if not await self._fetch_some() and not self._quiet:
                    self._quiet = True
                    self._changed.set()
                self._away = None
            self._backoff.reset()
        except ConnectionLost as error:
            self._away = error
            self._failure = error if self._reading else None
        except Exception as error:
            self._failure = error
        finally:
            self._changed.set()

    async def _wait(self, timeout_s: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")
