"""LOG topics: a stream whose entries have offsets from 0 without gaps, trimmed from the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from adapters.redis.connection import Command, Server
from adapters.redis.log_scripts import APPEND, COMMIT, COUNT, FIND_TIME, REGISTER
from adapters.redis.reader import GRACE_S, LOOK_S, Reader
from adapters.redis.topics import TopicRow
from adapters.redis.wire import pack, unpack
from bus.errors import PositionExpired, Unsupported
from bus.message import Delivery, Message, Position
from bus.transport import Lag, Seek, Start

__all__ = ["Append", "LogSubscription", "append", "log_lag", "prepare"]

MOST = 100  # messages of one read: those of a LOG are large


class Append(NamedTuple):
    """What is sent of a message."""

    packed: bytes
    body: bytes


class _Bounds(NamedTuple):
    first: int
    end: int


def prepare(topic: str, messages: Sequence[Message]) -> list[Append]:
    if any(message.not_before is not None for message in messages):
        raise Unsupported(f"{topic!r} is a LOG, which delays nothing: only a QUEUE knows not_before")
    return [Append(pack(message), message.body) for message in messages]


async def append(server: Server, row: TopicRow, batch: Sequence[Append]) -> None:
    """Store them, under the next offsets; from time to time, trim."""
    arguments = [field for one in batch for field in one]
    await server.run(APPEND, _keys(row), (row.retention, *arguments))


async def log_lag(server: Server, row: TopicRow, group: str) -> Lag:
    """`ready` is what the group has not acked; nobody knows here which of it a reader has in hand."""
    first, end, committed = await server.run(COUNT, _keys(row), (group,))
    return Lag(end - max(first, committed), 0, 0, exact=True, first={0: first}, end={0: end})


class LogSubscription(Reader):
    """One reader, with a place of its own; the readers of one group share only the committed position.

    A server that comes back without its newest entries, after a power cut or a failover, gives their offsets to others.
    Where the server is another process than before, the entry that was read last is read again: if it is not the same,
    `receive` raises `PositionExpired` until a `seek`. Nothing is compared before the first entry is read, nor where
    that entry was trimmed meanwhile.
    """

    def __init__(self, server: Server, row: TopicRow, group: str, prefetch: int) -> None:
        super().__init__(server, row.topic.name, prefetch)
        self._row, self._group = row, group
        self._next = 0
        self._floor = 0  # all below is acked, or was passed over by a seek
        self._last: list[bytes] = []  # of the entry before `_next`, where it was read: time, and all but the body
        self._run_id = server.run_id

    async def begin(self, start: Start) -> None:
        """Register the group, and go to the start."""
        first, end, committed = await self._server.run(REGISTER, _keys(self._row), (self._group,))
        if start == "committed":
            self._next = first if committed < 0 else committed
        else:
            self._next = await self._resolve(start, _Bounds(first, end))
        self._floor = self._next

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        if not deliveries:
            return
        done = max(delivery.offset for delivery in deliveries) + 1
        if self._group:
            await self._server.run(COMMIT, _keys(self._row), (self._group, done))
        self._floor = max(self._floor, min(done, self._next))
        self._changed.set()  # a `receive` may wait for room

    async def seek(self, to: Seek) -> None:
        self._check_open()
        position = await self._resolve(to, await self._bounds())
        if self._fetch is not None:
            self._fetch.cancel()  # what it still brings is not asked for any more
        self._arrived.clear()
        self._failure = None
        self._next = self._floor = position
        self._last = []
        self._changed.set()

    def _room(self) -> int:
        return self._prefetch - (self._next - self._floor)

    async def _fetch_some(self) -> bool:
        if self._run_id != self._server.run_id:
            await self._check_last()
        command: Command = ("XREAD", "COUNT", min(self._asked, self._room(), MOST))
        block_s = LOOK_S if self._quiet else 0.0
        if self._quiet:
            command += ("BLOCK", math.ceil(block_s * 1000))
        command += ("STREAMS", self._row.keys.stream, f"{self._next}-0")
        reply = await self._line.call(*command, timeout_s=block_s + GRACE_S)
        if self._run_id != self._server.run_id:
            return True  # this may be of another server already: to be checked before anything is taken from it
        entries = reply[0][1] if reply else ()
        if entries and _offset(entries[0][0]) == self._next:
            self._arrived.extend(
                Delivery(unpack(fields[2:]), self._name, 0, _offset(id_), None) for id_, fields in entries
            )
            self._next += len(entries)
            self._last = entries[-1][1][:4]
            return True
        bounds = await self._bounds()
        if entries or not bounds.first <= self._next <= bounds.end:
            raise _expired(self._next, bounds)
        return False

    async def _check_last(self) -> None:
        """Is what was read last still what stands there?"""
        run_id = self._server.run_id
        if self._last:
            place = f"{self._next - 1}-1"
            found = await self._line.call("XRANGE", self._row.keys.stream, place, place)
            bounds = await self._bounds()
            if found[0][1][:4] != self._last if found else bounds.first < self._next:
                raise _expired(self._next, bounds)
        self._run_id = run_id

    async def _resolve(self, to: Seek | Start, bounds: _Bounds) -> int:
        """The offset that `to` means."""
        if to == "earliest":
            return bounds.first
        if to == "latest":
            return bounds.end
        if isinstance(to, datetime):
            at = (to if to.tzinfo else to.replace(tzinfo=UTC)).timestamp()
            found: int = await self._server.run(FIND_TIME, _keys(self._row), (round(at * 1e6),))
            return found
        offset = bounds.first
        for position in to:
            assert isinstance(position, Position)
            offset = position.offset
            if position.partition != 0 or not bounds.first <= offset <= bounds.end:
                raise PositionExpired(position, Position(0, bounds.first), Position(0, bounds.end))
        return offset

    async def _bounds(self) -> _Bounds:
        first, end, _ = await self._server.run(COUNT, _keys(self._row), (self._group,))
        return _Bounds(first, end)


def _keys(row: TopicRow) -> tuple[str, str, str]:
    return row.keys.record, row.keys.stream, row.keys.groups


def _offset(id_: bytes) -> int:
    return int(id_.partition(b"-")[0])


def _expired(offset: int, bounds: _Bounds) -> PositionExpired:
    return PositionExpired(Position(0, offset), Position(0, bounds.first), Position(0, bounds.end))
