"""The leases of a transport's readers: one key each, which Redis forgets unless it is renewed in time."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from adapters.redis.connection import Server
from bus.errors import BusError
from bus.message import new_id
from bus.process import machine, this_holder

__all__ = ["Owners"]


class Owners:
    """Renews leases each `lease_s / 3` from a thread with a connection of its own, so that they live while the event
    loop is blocked. A key that is gone is never made again: its reader has lost what it held, for good."""

    def __init__(self, server: Server, lease_s: float) -> None:
        self.lease_s = lease_s
        self.machine = machine()
        self._server = server
        self._keys: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    async def add(self, prefix: str) -> str:
        """A new owner. Its name, which ends its key, is random: none is ever taken for another."""
        name = new_id()
        await self._server.call("SET", prefix + name, this_holder(), "PX", self._lease_ms)
        self._keys.add(prefix + name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="crawlbus-leases", daemon=True)
            self._thread.start()
        return name

    def forget(self, key: str) -> None:
        """Renew it no more."""
        self._keys.discard(key)

    async def aclose(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5.0)

    @property
    def _lease_ms(self) -> int:
        return max(1, round(self.lease_s * 1000))

    def _run(self) -> None:
        asyncio.run(self._renew())

    async def _renew(self) -> None:
        server = Server(self._server.address)
        try:
            pause_s = self.lease_s / 3
            while not self._stop.wait(pause_s):  # this thread has nothing else to do
                keys = list(self._keys)
                pause_s = self.lease_s / 10
                with suppress(BusError, TimeoutError):
                    async with asyncio.timeout(max(self.lease_s / 3, 0.5)):
                        replies = await server.pipeline([("PEXPIRE", key, self._lease_ms) for key in keys])
                    self._keys.difference_update(key for key, there in zip(keys, replies, strict=True) if not there)
                    pause_s = self.lease_s / 3
        finally:
            await server.aclose()
