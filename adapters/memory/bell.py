"""`Bell`: wakes the readers of a topic."""

from __future__ import annotations

import asyncio

from bus.clock import Clock

__all__ = ["Bell"]


class Bell:
    """Readers may wait in any event loop of any thread. The bus's lock is held for all but `wait`."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def listen(self) -> asyncio.Future[None]:
        """What `wait` needs, taken while the lock is still held, so that no ring is missed."""
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[None] = loop.create_future()
        self._waiting[rung] = loop
        return rung

    def ring(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for rung, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(_set, rung)
            except RuntimeError:
                pass  # that loop has ended: nobody waits there

    async def wait(self, rung: asyncio.Future[None], clock: Clock, timeout_s: float) -> None:
        """Until it rings, or the time is over."""
        sleeper = asyncio.ensure_future(clock.sleep(timeout_s))
        try:
            await asyncio.wait((rung, sleeper), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            self._waiting.pop(rung, None)


def _set(rung: asyncio.Future[None]) -> None:
    if not rung.done():
        rung.set_result(None)
