"""The bus on Kafka: replicated, shared by the processes of many hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from adapters.kafka.cluster import Cluster
from adapters.kafka.errors import quieten
from adapters.kafka.examine import examine
from adapters.kafka.log import LogSubscription, log_lag
from adapters.kafka.publisher import Publisher
from adapters.kafka.queue import QueueSubscription, queue_lag
from adapters.kafka.topics import Place, declare, find
from adapters.kafka.url import parse
from bus.capabilities import Acks, Capabilities, Delay, Durability, SeekBy
from bus.errors import Closed, Unsupported
from bus.findings import Finding
from bus.message import Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Start, Subscription

__all__ = ["KafkaTransport"]

LEASE_S = 10.0


class KafkaTransport:
    """`kafka://` and `kafka+ssl://`. A lease is the session of a member of a consumer group."""

    def __init__(self, cluster: Cluster, lease_s: float) -> None:
        self.capabilities = Capabilities(
            queue_durability=Durability.REPLICATED,
            log_durability=Durability.REPLICATED,
            acks=Acks.PREFIX,
            lease_s=lease_s,
            counts_redeliveries=False,
            releases_on_close=True,
            delay=Delay.NONE,
            seek_by=frozenset(SeekBy),
            exact_lag=True,
            shared_between_processes=True,
            shared_between_hosts=True,
        )
        self._cluster, self._lease_s = cluster, lease_s
        self._publisher = Publisher(cluster)
        self._places: dict[str, Place] = {}
        self._subscriptions: list[QueueSubscription | LogSubscription] = []
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, lease_s: float = LEASE_S) -> Self:
        """A lease is within group.min.session.timeout.ms (6 s, unless the broker was told otherwise) and its max."""
        quieten()
        cluster = Cluster(parse(url))
        await cluster.start()
        return cls(cluster, lease_s)

    async def declare(self, *topics: Topic) -> None:
        self._check_open()
        missing = [t for t in topics if (place := self._places.get(t.name)) is None or place.topic != t]
        if missing:
            for place in await declare(self._cluster, missing):
                self._places[place.topic.name] = place

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        place = await self._find(topic)
        if any(message.not_before is not None for message in messages):
            raise Unsupported(f"{topic!r} is on Kafka, which cannot delay: bands do (bus.bands)")
        if messages:
            await self._publisher.publish(place, messages)

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        place = await self._find(topic)
        subscription: QueueSubscription | LogSubscription
        if place.topic.kind is Kind.QUEUE:
            if start != "committed":
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
            subscription = queue = QueueSubscription(self._cluster, place, prefetch, self._lease_s, member)
            await queue.begin()
        else:
            subscription = log = LogSubscription(self._cluster, place, group, prefetch)
            await log.begin(start)
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        place = await self._find(topic)
        if place.topic.kind is Kind.QUEUE:
            return await queue_lag(self._cluster, place)
        return await log_lag(self._cluster, place, group)

    async def examine(self) -> Sequence[Finding]:
        """Brokers, and whether the offsets of groups can be kept."""
        self._check_open()
        return await examine(self._cluster)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.gather(*(subscription.aclose() for subscription in self._subscriptions))
        finally:
            await self._publisher.aclose()
            await self._cluster.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the bus on Kafka at {self._cluster.servers} is closed")

    async def _find(self, name: str) -> Place:
        self._check_open()
        if (place := self._places.get(name)) is None:
            place = self._places[name] = await find(self._cluster, name)
        return place
