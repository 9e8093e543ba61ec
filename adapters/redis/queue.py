"""QUEUE topics: a stream and its one consumer group. Each reader is a consumer of its own, which holds what it was
given as long as its lease lives; an ack deletes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from adapters.redis.combined import Combined
from adapters.redis.connection import Command, Server
from adapters.redis.owners import Owners
from adapters.redis.queue_scripts import ACK, COUNT, LOOK, PUT, RELEASE
from adapters.redis.reader import GRACE_S, LOOK_S, Reader
from adapters.redis.topics import GROUP, TopicRow
from adapters.redis.wire import pack, unpack
from bus.errors import StaleDelivery, TransportError, Unsupported
from bus.message import Delivery, Message
from bus.process import is_gone
from bus.transport import Lag, Seek

__all__ = ["Put", "QueueSubscription", "prepare", "put", "queue_lag"]

ACKS = 1000  # in one call: Lua's stack takes no more than some thousands


class Put(NamedTuple):
    """What is sent of a message."""

    due_ms: int
    packed: bytes
    body: bytes


class _Token(NamedTuple):
    owner: str
    id: bytes


def prepare(messages: Sequence[Message]) -> list[Put]:
    return [Put(math.ceil((m.not_before or 0) * 1000), pack(m), m.body) for m in messages]


async def put(server: Server, row: TopicRow, batch: Sequence[Put]) -> None:
    """Store them: what is not due yet is kept aside."""
    keys = row.keys
    arguments = [field for one in batch for field in one]
    await server.run(PUT, (keys.record, keys.stream, keys.delayed, keys.bell), arguments)


async def queue_lag(server: Server, row: TopicRow) -> Lag:
    keys = row.keys
    ready, unacked, delayed = await server.run(COUNT, (keys.stream, keys.delayed), (GROUP, keys.owner))
    return Lag(ready, unacked, delayed, exact=True)


class QueueSubscription(Reader):
    """One reader. Its deliveries live as long as the key of its lease, connections come and go."""

    def __init__(self, server: Server, owners: Owners, row: TopicRow, prefetch: int) -> None:
        super().__init__(server, row.topic.name, prefetch)
        self._owners, self._keys = owners, row.keys
        self._owner: str | None = None
        self._former: dict[str, set[bytes]] = {}  # owners that this reader was, and what each has lost
        self._unacked: set[bytes] = set()
        self._acks = self._combine("")
        self._rung: list[bytes] = []  # what it read from the bell
        self._unsure = False  # something may have been delivered that it did not hear of
        self._look_at = 0.0
        self._run_id = server.run_id

    async def begin(self) -> None:
        """Take a lease."""
        self._owner = owner = await self._owners.add(self._keys.owner)
        self._acks = self._combine(owner)
        self._look_at = 0.0

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        done = [token.id for d in deliveries if (token := d.token) and self._holds(token)]
        if done:
            await self._acks.add(done)
        if stale := [d for d in deliveries if self._is_stale(d.token)]:
            raise StaleDelivery(stale)

    async def seek(self, to: Seek) -> None:
        raise Unsupported(f"{self._name!r} is a QUEUE, which has no positions")

    def _room(self) -> int:
        return self._prefetch - len(self._unacked)

    def _holds(self, token: _Token) -> bool:
        return token.owner == self._owner and token.id in self._unacked

    def _is_stale(self, token: _Token | None) -> bool:
        if token is None:
            return True
        if token.owner == self._owner:
            return False
        return token.owner not in self._former or token.id in self._former[token.owner]

    def _combine(self, owner: str) -> Combined[bytes]:
        return Combined(partial(self._send_acks, owner), lambda _: 1, ACKS)

    async def _send_acks(self, owner: str, ids: list[bytes]) -> None:
        keys = (self._keys.owner + owner, self._keys.stream)
        if await self._server.run(ACK, keys, (GROUP, *ids)):
            self._unacked.difference_update(ids)
            self._changed.set()  # a `receive` may wait for room
        else:
            self._lose(owner)

    def _lose(self, owner: str) -> None:
        """Its lease ran out, and others have the work or will have it."""
        self._owners.forget(self._keys.owner + owner)
        if owner == self._owner:
            self._former[owner], self._unacked = self._unacked, set()
            self._owner = None
            self._arrived.clear()
            self._changed.set()

    async def _fetch_some(self) -> bool:
        """Handed-back work comes before new work."""
        if self._run_id != self._server.run_id:
            self._run_id = self._server.run_id
            self._unsure = True  # the server may have lost our newest acks
        if self._owner is None:
            await self.begin()
        if self._rung or self._unsure or asyncio.get_running_loop().time() >= self._look_at:
            await self._look()
        return bool(self._arrived) or self._owner is None or await self._read()

    async def _read(self) -> bool:
        """New work. The lease is asked for after it: if it lived then, what was read is ours."""
        owner, keys = self._owner, self._keys
        assert owner is not None
        command: Command = ("XREADGROUP", "GROUP", GROUP, owner, "COUNT", min(self._asked, self._room()))
        block_s = 0.0
        if self._quiet:
            block_s = max(0.001, self._look_at - asyncio.get_running_loop().time())
            command += ("BLOCK", math.ceil(block_s * 1000))
        command += ("STREAMS", keys.bell, keys.stream, ">", ">")
        self._unsure = True
        try:
            reply, lives = await self._line.pipeline(
                (command, ("EXISTS", keys.owner + owner)), timeout_s=block_s + GRACE_S
            )
        except TransportError as error:
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            return True  # the group has been lost with the newest writes: a look makes it again
        self._unsure = False
        if not lives:
            self._lose(owner)
            return True
        for stream, entries in reply or ():
            if stream == keys.bell.encode():
                self._rung = [id_ for id_, _ in entries]
            elif owner == self._owner:
                self._deliver(owner, ((id_, fields, 0) for id_, fields in entries))
        return reply is not None

    async def _look(self) -> None:
        """See to all but new work: what is due, what dead readers held, what this one was given and did not hear of."""
        owner, keys = self._owner, self._keys
        assert owner is not None
        gone: list[bytes] = []
        while True:
            known: Sequence[bytes | int] = (len(self._unacked), *self._unacked) if self._unsure else (-1,)
            self._unsure = True
            reply = await self._line.run(
                LOOK,
                (keys.stream, keys.bell, keys.delayed),
                (
                    *(GROUP, owner, keys.owner, self._owners.machine, min(self._asked, self._room())),
                    *(len(self._rung), *self._rung, len(gone), *gone, *known),
                ),
            )
            if not reply:
                self._lose(owner)
                return
            due_ms, entries, others = reply
            self._rung, self._unsure = [], False
            if owner == self._owner:
                self._deliver(owner, entries)
            gone = [name for name, process in others if is_gone(process.decode())]
            if not gone or self._room() <= 0:
                break
        pause_s = min(LOOK_S, self._owners.lease_s)
        if due_ms >= 0:
            pause_s = min(pause_s, due_ms / 1000)
        self._look_at = asyncio.get_running_loop().time() + pause_s

    def _deliver(self, owner: str, entries: Any) -> None:
        for id_, fields, redeliveries in entries:
            self._unacked.add(id_)
            token = _Token(owner, id_)
            self._arrived.append(Delivery(unpack(fields), self._name, 0, _number(id_), redeliveries, token))

    async def _leave(self) -> None:
        if self._owner is not None:
            keys, owner = self._keys, self._owner
            self._owners.forget(keys.owner + owner)
            await self._server.run(RELEASE, (keys.owner + owner, keys.stream, keys.bell), (GROUP, owner))


def _number(id_: bytes) -> int:
    """One number of an entry's id: its milliseconds and its count within them."""
    milliseconds, _, count = id_.partition(b"-")
    return (int(milliseconds) << 20) + int(count)
