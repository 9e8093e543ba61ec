"""`Watcher`: wakes a reader when the file may hold something new for it, whoever wrote it."""

from __future__ import annotations

import asyncio
import sqlite3

from adapters.sqlite.database import Database
from bus.errors import BusError

__all__ = ["Watcher"]

POLL_S = 0.01


class Watcher:
    """Writers of this process call `wake`; of other processes SQLite tells only that there was a commit.

    So `PRAGMA data_version` is polled, about 3 µs each 10 ms, and only while somebody waits.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._version = -1
        self._polling = False

    async def wait(self, topic: int, timeout_s: float) -> None:
        """Return after a wake, a commit of another connection since the last poll, or the time."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _set, woken)
        self._waiting.setdefault(topic, set()).add(woken)
        if not self._polling:
            self._polling = True
            loop.call_soon(self._poll)
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting[topic].discard(woken)

    def wake(self, topic: int) -> None:
        for woken in self._waiting.get(topic, ()):
            _set(woken)

    def _poll(self) -> None:
        if not any(self._waiting.values()):
            self._polling = False
            return
        try:
            version = self._database.peek(_data_version)
        except BusError:
            version = -1  # those who wait will meet the error themselves
        if version != self._version or version == -1:
            self._version = version
            for topic in self._waiting:
                self.wake(topic)
        asyncio.get_running_loop().call_later(POLL_S, self._poll)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
