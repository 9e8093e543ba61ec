"""`LeaseKeeper`: renews this process's leases from a thread of its own, so that a blocked event loop loses none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from bus.errors import BusError
from bus.state import Job

__all__ = ["Lease", "LeaseKeeper"]

AGAIN_S = 1.0  # after a renewal that did not reach the server


class Lease(NamedTuple):
    job: Job
    name: str
    owner: str


class LeaseKeeper:
    """`renew(lease, lease_s)` and `close()` are run in the thread, on an event loop that nothing else uses."""

    def __init__(
        self, renew: Callable[[Lease, float], Awaitable[object]], close: Callable[[], Awaitable[object]]
    ) -> None:
        self._renew = renew
        self._close = close
        self._changed = threading.Condition()
        self._held: dict[Lease, float] = {}  # -> lease_s
        self._due: dict[Lease, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, lease: Lease, lease_s: float) -> None:
        with self._changed:
            if self._closed:
                return
            self._held[lease] = lease_s
            self._due[lease] = time.monotonic() + lease_s / 3
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="redis-leases", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self, lease: Lease) -> None:
        with self._changed:
            self._held.pop(lease, None)
            self._due.pop(lease, None)

    def holds(self, lease: Lease) -> bool:
        with self._changed:
            return lease in self._held

    async def aclose(self) -> list[Lease]:
        """End the thread; returns what was still held."""
        with self._changed:
            self._closed = True
            held = list(self._held)
            self._held.clear()
            self._due.clear()
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        return held

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (due := self._wait()) is not None:
                runner.run(self._renew_all(due))
            runner.run(_awaited(self._close))

    def _wait(self) -> list[Lease] | None:
        """What is due, as soon as something is; None once closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if due := [lease for lease, at in self._due.items() if at <= now]:
                    return due
                self._changed.wait(min(self._due.values()) - now if self._due else None)
            return None

    async def _renew_all(self, leases: list[Lease]) -> None:
        for lease in leases:
            with self._changed:
                lease_s = self._held.get(lease)
            if lease_s is None:
                continue
            try:
                await self._renew(lease, lease_s)
                pause_s = lease_s / 3
            except BusError:
                pause_s = min(AGAIN_S, lease_s / 3)
            with self._changed:
                if lease in self._held:
                    self._due[lease] = time.monotonic() + pause_s


async def _awaited(call: Callable[[], Awaitable[object]]) -> None:
    await call()
