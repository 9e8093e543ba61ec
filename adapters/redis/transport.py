"""The bus in one Redis server, on Streams: for one machine or many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from adapters.redis import log, queue
from adapters.redis.combined import Combined
from adapters.redis.connection import Server
from adapters.redis.examine import examine
from adapters.redis.owners import Owners
from adapters.redis.topics import TopicRow, declare, find
from bus.capabilities import Acks, Capabilities, Delay, SeekBy
from bus.errors import Closed, ConnectionLost, PublishUnconfirmed, Unsupported
from bus.findings import Finding
from bus.message import Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Start, Subscription

__all__ = ["RedisTransport"]

LEASE_S = 30.0
BATCH_BYTES = 1024 * 1024  # of one call: Redis does nothing else meanwhile
MESSAGE_BYTES = 200  # what a message costs there besides its bytes


class RedisTransport:
    """`redis://`, `rediss://`. A queue's entry is deleted by its ack; Redis frees memory by nodes of about 100 entries,
    so that one which is never acked keeps as much as a hundred."""

    def __init__(self, server: Server, lease_s: float) -> None:
        self.capabilities = Capabilities(
            queue_durability=server.durability,
            log_durability=server.durability,
            acks=Acks.INDIVIDUAL,
            lease_s=lease_s,
            counts_redeliveries=True,
            releases_on_close=True,
            delay=Delay.NATIVE,
            seek_by=frozenset(SeekBy),
            exact_lag=True,
            shared_between_processes=True,
            shared_between_hosts=True,
        )
        self._server = server
        self._owners = Owners(server, lease_s)
        self._topics: dict[str, TopicRow] = {}
        self._senders: dict[str, Combined[Any]] = {}
        self._subscriptions: list[queue.QueueSubscription | log.LogSubscription] = []
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, lease_s: float = LEASE_S) -> Self:
        """A lease is renewed each `lease_s / 3`. Of a reader whose process has ended, others on its machine notice
        within about a second."""
        return cls(await Server.connect(url, setting="bus"), lease_s)

    async def declare(self, *topics: Topic) -> None:
        self._check_open()
        for topic in topics:
            row = self._topics.get(topic.name)
            if row is None or row.topic != topic:
                self._topics[topic.name] = await declare(self._server, topic)
                self._senders.pop(topic.name, None)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        row = await self._find(topic)
        if not messages:
            return
        items: Sequence[Any]
        items = queue.prepare(messages) if row.topic.kind is Kind.QUEUE else log.prepare(topic, messages)
        try:
            await self._sender(row).add(items)
        except ConnectionLost as error:
            raise PublishUnconfirmed(str(error)) from None

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        row = await self._find(topic)
        subscription: queue.QueueSubscription | log.LogSubscription
        if row.topic.kind is Kind.QUEUE:
            if start != "committed":
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
            subscription = queue.QueueSubscription(self._server, self._owners, row, prefetch)
            beginning = subscription.begin()
        else:
            subscription = reader = log.LogSubscription(self._server, row, group, prefetch)
            beginning = reader.begin(start)
        try:
            await beginning
        except BaseException:
            await subscription.aclose()
            raise
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        row = await self._find(topic)
        if row.topic.kind is Kind.QUEUE:
            return await queue.queue_lag(self._server, row)
        return await log.log_lag(self._server, row, group)

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """What the doctor wants to know of the server. Rights are on keys, which all begin alike."""
        self._check_open()
        return await examine(self._server, "bus")

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.gather(*(subscription.aclose() for subscription in self._subscriptions))
        finally:
            await self._owners.aclose()
            await self._server.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"this connection to {self._server.address} is closed")

    async def _find(self, name: str) -> TopicRow:
        self._check_open()
        row = self._topics.get(name)
        if row is None:
            row = self._topics[name] = await find(self._server, name)
        return row

    def _sender(self, row: TopicRow) -> Combined[Any]:
        name, kind = row.topic.name, row.topic.kind
        if name not in self._senders:
            send = partial(queue.put if kind is Kind.QUEUE else log.append, self._server, row)
            self._senders[name] = Combined(send, _cost, BATCH_BYTES)
        return self._senders[name]


def _cost(item: queue.Put | log.Append) -> int:
    return MESSAGE_BYTES + len(item.packed) + len(item.body)
