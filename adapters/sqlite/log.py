"""LOG topics: rows with offsets that count from 0 without gaps, trimmed from the front."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from adapters.sqlite.database import Database
from adapters.sqlite.schema import TopicRow, pack, unpack
from adapters.sqlite.watch import Watcher
from bus.errors import BusError, Closed, PositionExpired, Unsupported
from bus.message import Delivery, Message, Position
from bus.transport import GROUP_S, Lag, Seek, Start

__all__ = ["LogSubscription", "append", "log_lag", "trim"]

TRIM_MESSAGES = 1000  # in one transaction
TRIM_BYTES = 16 * 1024 * 1024


class _Bounds(NamedTuple):
    first: int
    next: int


def append(topic: TopicRow, messages: Sequence[Message]) -> Callable[[sqlite3.Connection], None]:
    """A write that stores the messages."""
    if any(message.not_before is not None for message in messages):
        raise Unsupported(f"{topic.topic.name!r} is a LOG, which delays nothing: only a QUEUE knows not_before")
    packed = [pack(message) for message in messages]

    def write(connection: sqlite3.Connection) -> None:
        end, at = connection.execute(
            "UPDATE bus_topics SET next = next + ?, last_at = max(last_at, ?) WHERE id = ? RETURNING next, last_at",
            (len(packed), time.time(), topic.id),
        ).fetchone()
        place = _place(topic.id, end - len(packed))
        connection.executemany(
            "INSERT INTO bus_log VALUES (?,?,?,?,?,?)",
            [(place + i, at, *columns) for i, columns in enumerate(packed)],
        )

    return write


def trim(connection: sqlite3.Connection, topic: int, retention_s: float) -> None:
    """Remove from the front, in one bounded step, what is older and what every group not long gone has acked."""
    bounds = _bounds(connection, topic)
    (held,) = connection.execute(
        "SELECT min(next) FROM bus_groups WHERE topic = ? AND seen_at > ?",
        (topic, time.time() - max(GROUP_S, retention_s)),
    ).fetchone()
    end = bounds.next if held is None else min(held, bounds.next)
    before, size_bytes = _place(topic, bounds.first), 0
    cutoff = time.time() - retention_s
    for place, at, length in connection.execute(
        "SELECT place, at, length(body) FROM bus_log WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
        (before, _place(topic, end), TRIM_MESSAGES),
    ):
        if at >= cutoff or size_bytes > TRIM_BYTES:
            break
        before, size_bytes = place + 1, size_bytes + length
    first = before - _place(topic, 0)
    if first > bounds.first:
        connection.execute("DELETE FROM bus_log WHERE place >= ? AND place < ?", (_place(topic, bounds.first), before))
        connection.execute("UPDATE bus_topics SET first = ? WHERE id = ?", (first, topic))


def log_lag(connection: sqlite3.Connection, topic: int, group: str) -> Lag:
    """`ready` is what the group has not acked; nobody knows here which of it a reader has in hand."""
    first, end = _bounds(connection, topic)
    committed = _committed(connection, topic, group)
    ready = end - max(first, committed or 0)
    return Lag(ready, 0, 0, exact=True, first={0: first}, end={0: end})


class LogSubscription:
    """One reader of a log, with a place of its own; the readers of one group share only the committed position."""

    def __init__(self, database: Database, watcher: Watcher, row: TopicRow, group: str, prefetch: int) -> None:
        self._database, self._watcher = database, watcher
        self._topic, self._name, self._group, self._prefetch = row.id, row.topic.name, group, prefetch
        self._next = 0
        self._floor = 0  # all below is acked, or was passed over by a seek
        self.closed = self._reading = False

    async def begin(self, start: Start) -> None:
        """Register the group, and go to the start."""
        position = await self._database.write(lambda connection: self._register(connection, start))
        self._next = self._floor = position

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
        while True:
            if self.closed:
                raise Closed(f"the subscription of {self._name!r} is closed")
            room = min(max_messages, self._prefetch - (self._next - self._floor))
            if room > 0 and self._has_more():
                wanted = self._next
                rows = await self._database.read(partial(self._fetch, room=room))
                if rows and wanted == self._next and not self.closed:  # nobody has sought meanwhile
                    self._next += len(rows)
                    return [
                        Delivery(unpack(*columns), self._name, 0, wanted + i, None) for i, columns in enumerate(rows)
                    ]
                continue
            left_s = deadline - loop.time()
            if left_s <= 0.0:
                return ()
            await self._watcher.wait(self._topic, left_s)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")
        if not deliveries:
            return
        done = max(delivery.offset for delivery in deliveries) + 1
        if self._group:
            await self._database.write(
                lambda connection: connection.execute(
                    "UPDATE bus_groups SET next = max(next, ?), seen_at = max(seen_at, ?) WHERE topic = ? AND name = ?",
                    (done, time.time(), self._topic, self._group),
                )
            )
        self._floor = max(self._floor, min(done, self._next))
        self._watcher.wake(self._topic)  # a `receive` may wait for room

    async def seek(self, to: Seek) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")
        position = await self._database.read(lambda connection: _resolve(connection, self._topic, to))
        self._next = self._floor = position
        self._watcher.wake(self._topic)

    async def aclose(self) -> None:
        self.closed = True
        self._watcher.wake(self._topic)

    def _has_more(self) -> bool:
        first, end = self._database.peek(lambda connection: _bounds(connection, self._topic))
        return end > self._next or first > self._next

    # in the database's thread

    def _register(self, connection: sqlite3.Connection, start: Start) -> int:
        if self._group:
            connection.execute(
                "INSERT INTO bus_groups (topic, name, next, seen_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET seen_at = max(seen_at, excluded.seen_at)",
                (self._topic, self._group, _bounds(connection, self._topic).first, time.time()),
            )
        if start != "committed":
            return _resolve(connection, self._topic, start)
        committed = _committed(connection, self._topic, self._group)
        return _bounds(connection, self._topic).first if committed is None else committed

    def _fetch(self, connection: sqlite3.Connection, room: int) -> list[Any]:
        first, end = _bounds(connection, self._topic)
        if self._next < first:
            raise _expired(self._next, _Bounds(first, end))
        place = _place(self._topic, self._next)
        return connection.execute(
            "SELECT id, key, headers, body FROM bus_log WHERE place >= ? AND place < ? ORDER BY place",
            (place, place + min(room, end - self._next)),
        ).fetchall()


def _place(topic: int, offset: int) -> int:
    return (topic << 40) + offset


def _bounds(connection: sqlite3.Connection, topic: int) -> _Bounds:
    return _Bounds(*connection.execute("SELECT first, next FROM bus_topics WHERE id = ?", (topic,)).fetchone())


def _committed(connection: sqlite3.Connection, topic: int, group: str) -> int | None:
    row = connection.execute("SELECT next FROM bus_groups WHERE topic = ? AND name = ?", (topic, group)).fetchone()
    return row[0] if row else None


def _expired(offset: int, bounds: _Bounds) -> PositionExpired:
    return PositionExpired(Position(0, offset), Position(0, bounds.first), Position(0, bounds.next))


def _resolve(connection: sqlite3.Connection, topic: int, to: Seek | Start) -> int:
    """The offset that `to` means."""
    bounds = _bounds(connection, topic)
    if to == "earliest":
        return bounds.first
    if to == "latest":
        return bounds.next
    if isinstance(to, datetime):
        at = (to if to.tzinfo else to.replace(tzinfo=UTC)).timestamp()
        return _first_at(connection, topic, bounds, at)
    offset = bounds.first
    for position in to:
        assert isinstance(position, Position)
        offset = position.offset
        if position.partition != 0 or not bounds.first <= offset <= bounds.next:
            raise PositionExpired(position, Position(0, bounds.first), Position(0, bounds.next))
    return offset


def _first_at(connection: sqlite3.Connection, topic: int, bounds: _Bounds, at: float) -> int:
    """By halving: offsets have no gaps, and times never go back."""
    low, high = bounds
    while low < high:
        middle = (low + high) // 2
        (found,) = connection.execute("SELECT at FROM bus_log WHERE place = ?", (_place(topic, middle),)).fetchone()
        low, high = (low, middle) if found >= at else (middle + 1, high)
    return low
