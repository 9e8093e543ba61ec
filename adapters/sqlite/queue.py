"""QUEUE topics: rows that are deleted by their ack, and owned by a reader as long as it renews its lease."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from adapters.sqlite.database import Database
from adapters.sqlite.schema import TopicRow, pack, unpack
from adapters.sqlite.watch import Watcher
from bus.errors import BusError, Closed, StaleDelivery, Unsupported
from bus.message import Delivery, Message
from bus.process import is_gone, this_process
from bus.transport import Lag, Seek

__all__ = ["Owners", "QueueSubscription", "insert", "queue_lag"]

FOREVER_S = 3600.0


def insert(topic: TopicRow, messages: Sequence[Message]) -> Callable[[sqlite3.Connection], None]:
    """A write that stores the messages."""
    now = time.time()
    ready, delayed = [], []
    for message in messages:
        if message.not_before is None or message.not_before <= now:
            ready.append((topic.id, *pack(message)))
        else:
            delayed.append((topic.id, message.not_before, *pack(message)))

    def write(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO bus_queue (topic, id, key, headers, body) VALUES (?,?,?,?,?)", ready)
        if delayed:
            connection.executemany(
                "INSERT INTO bus_delayed (topic, due, id, key, headers, body) VALUES (?,?,?,?,?,?)", delayed
            )

    return write


def queue_lag(connection: sqlite3.Connection, topic: int) -> Lag:
    counted = dict(
        connection.execute("SELECT owner <> 0, count(*) FROM bus_queue WHERE topic = ? GROUP BY 1", (topic,))
    )
    waiting = dict(
        connection.execute("SELECT due > ?, count(*) FROM bus_delayed WHERE topic = ? GROUP BY 1", (time.time(), topic))
    )
    return Lag(counted.get(0, 0) + waiting.get(0, 0), counted.get(1, 0), waiting.get(1, 0), exact=True)


class Owners:
    """The leases of the readers of one transport: one row each, so that work itself is not rewritten to renew it.

    Its methods run in the database's thread.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._ids: set[int] = set()

    def add(self, connection: sqlite3.Connection, topic: int) -> int:
        """A new owner. Its number is random: no other is ever taken for it, even where this commit fails.

        What its dead predecessor held is ready before it takes anything, so that the oldest comes first: behind newer
        work it would be begun in each of a row of short lives, finished in none, and be taken for poison.
        """
        self.sweep(connection)
        owner = random.getrandbits(62) + 1
        expires = time.time() + self.lease_s
        connection.execute("INSERT INTO bus_owners VALUES (?, ?, ?, ?)", (owner, topic, expires, this_process()))
        self._ids.add(owner)
        return owner

    def holds(self, connection: sqlite3.Connection, owner: int | None) -> bool:
        """While its row is there, nobody took its work: both go in one transaction."""
        if connection.execute("SELECT 1 FROM bus_owners WHERE id = ?", (owner,)).fetchone():
            return True
        self._ids.discard(owner or 0)
        return False

    def release(self, connection: sqlite3.Connection, owner: int, topic: int) -> None:
        """What it holds is ready again."""
        self._ids.discard(owner)
        connection.execute("DELETE FROM bus_owners WHERE id = ?", (owner,))
        connection.execute("UPDATE bus_queue SET owner = 0 WHERE topic = ? AND owner = ?", (topic, owner))

    def renew(self, connection: sqlite3.Connection) -> None:
        """Renew our leases, and take back the work of those who did not renew theirs."""
        now = time.time()
        connection.executemany(
            "UPDATE bus_owners SET expires = ? WHERE id = ?", [(now + self.lease_s, owner) for owner in self._ids]
        )
        self._take_back(connection, connection.execute("SELECT id, topic FROM bus_owners WHERE expires < ?", (now,)))

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Take back the work of processes that are gone, before their leases run out."""
        for (process,) in connection.execute("SELECT DISTINCT process FROM bus_owners").fetchall():
            if is_gone(process):
                query = "SELECT id, topic FROM bus_owners WHERE process = ?"
                self._take_back(connection, connection.execute(query, (process,)))

    def _take_back(self, connection: sqlite3.Connection, dead: sqlite3.Cursor) -> None:
        for owner, topic in dead.fetchall():
            self.release(connection, owner, topic)


class _Claimed(NamedTuple):
    owner: int
    rows: Sequence[Any]


class QueueSubscription:
    """One reader, which is the owner of what it was given until it acks, closes, or loses its lease."""

    def __init__(self, database: Database, watcher: Watcher, owners: Owners, row: TopicRow, prefetch: int) -> None:
        self._database, self._watcher, self._owners = database, watcher, owners
        self._topic, self._name, self._prefetch = row.id, row.topic.name, prefetch
        self._owner: int | None = None
        self._former: set[int] = set()  # owners that this reader was, and lost
        self._lost: set[tuple[int, int]] = set()  # (owner, seq) that were taken away
        self._made: list[int] = []  # all owners it ever was; of the database's thread
        self._unacked: set[int] = set()
        self._claim: asyncio.Future[_Claimed] | None = None
        self._arrived: list[Delivery] = []  # claimed for a `receive` that was cancelled
        self.closed = self._reading = False

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
            pause_s = FOREVER_S
            if not self._arrived:
                room = min(max_messages, self._prefetch - len(self._unacked))
                if room > 0 or self._claim:
                    due_s = 0.0 if self._claim else self._due_in()
                    if due_s <= 0.0:
                        await self._take(room)
                    else:
                        pause_s = due_s
            if self._arrived:
                given, self._arrived = self._arrived[:max_messages], self._arrived[max_messages:]
                return given
            left_s = deadline - loop.time()
            if left_s <= 0.0:
                return ()
            await self._watcher.wait(self._topic, min(left_s, pause_s))

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")
        owner = self._owner
        done = [d.offset for d in deliveries if d.token == owner and d.offset in self._unacked]
        if done and owner is not None:
            if await self._database.write(partial(self._delete, owner=owner, done=done)):
                self._unacked.difference_update(done)
                self._watcher.wake(self._topic)  # a `receive` may wait for room
            elif owner == self._owner:
                self._lose(None)
        if stale := [d for d in deliveries if self._is_stale(d)]:
            raise StaleDelivery(stale)

    async def seek(self, to: Seek) -> None:
        raise Unsupported(f"{self._name!r} is a QUEUE, which has no positions")

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._watcher.wake(self._topic)
        try:
            await self._database.write(self._hand_back, durable=False)
        except BusError:
            pass  # its lease runs out

    def _is_stale(self, delivery: Delivery) -> bool:
        owner = delivery.token
        if owner == self._owner:
            return False
        return owner not in self._former or (owner, delivery.offset) in self._lost

    def _lose(self, successor: int | None) -> None:
        """The lease ran out and others have the work."""
        if self._owner is not None:
            self._former.add(self._owner)
            self._lost.update((self._owner, seq) for seq in self._unacked)
        self._owner = successor
        self._unacked.clear()
        self._arrived.clear()

    def _due_in(self) -> float:
        """Seconds until there is something to claim."""
        ready, due = self._database.peek(
            lambda connection: connection.execute(
                "SELECT EXISTS (SELECT 1 FROM bus_queue WHERE topic = ?1 AND owner = 0),"
                " (SELECT min(due) FROM bus_delayed WHERE topic = ?1)",
                (self._topic,),
            ).fetchone()
        )
        return 0.0 if ready else FOREVER_S if due is None else due - time.time()

    async def _take(self, room: int) -> None:
        """Claim up to `room` rows. If cancelled, the claim is kept for the next `receive`."""
        if self._claim is None:
            self._claim = self._database.submit(partial(self._claim_rows, room=room), durable=False)
        try:
            owner, rows = await asyncio.shield(self._claim)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._claim = None
            raise
        self._claim = None
        if owner != self._owner:
            self._lose(owner)
        self._unacked.update(row[0] for row in rows)
        self._arrived.extend(
            Delivery(unpack(*row[2:]), self._name, 0, row[0], row[1] - 1, owner) for row in sorted(rows)
        )

    # in the database's thread

    def _claim_rows(self, connection: sqlite3.Connection, room: int) -> _Claimed:
        owner = self._owner
        if owner is None or not self._owners.holds(connection, owner):
            owner = self._owners.add(connection, self._topic)
            self._made.append(owner)
        _ripen(connection, self._topic)
        rows = connection.execute(
            "UPDATE bus_queue SET owner = ?, deliveries = deliveries + 1 WHERE seq IN"
            " (SELECT seq FROM bus_queue WHERE topic = ? AND owner = 0 ORDER BY seq LIMIT ?)"
            " RETURNING seq, deliveries, id, key, headers, body",
            (owner, self._topic, room),
        ).fetchall()
        return _Claimed(owner, rows)

    def _delete(self, connection: sqlite3.Connection, owner: int, done: Sequence[int]) -> bool:
        if not self._owners.holds(connection, owner):
            return False
        connection.executemany("DELETE FROM bus_queue WHERE seq = ? AND owner = ?", [(seq, owner) for seq in done])
        return True

    def _hand_back(self, connection: sqlite3.Connection) -> None:
        for owner in self._made:
            self._owners.release(connection, owner, self._topic)


def _ripen(connection: sqlite3.Connection, topic: int) -> None:
    """What is due goes to the end of the queue, where work published now would stand."""
    due = (topic, time.time())
    if connection.execute("SELECT 1 FROM bus_delayed WHERE topic = ? AND due <= ? LIMIT 1", due).fetchone():
        connection.execute(
            "INSERT INTO bus_queue (topic, id, key, headers, body)"
            " SELECT topic, id, key, headers, body FROM bus_delayed WHERE topic = ? AND due <= ? ORDER BY due, seq",
            due,
        )
        connection.execute("DELETE FROM bus_delayed WHERE topic = ? AND due <= ?", due)
