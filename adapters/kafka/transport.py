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
from adapters.kafka.topics import declare, find
from adapters.kafka.url import parse
from bus.capabilities import Acks, Capabilities, Delay, Durability, SeekBy
from bus.errors import BusError, Closed, ConnectionLost, Misconfigured, Unsupported
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
        self._topics: dict[str, Topic] = {}  # as declared, or found
        self._doubted: set[str] = set()  # those that took no messages: they may have been deleted
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
        missing = [topic for topic in topics if self._topics.get(topic.name) != topic or topic.name in self._doubted]
        if missing:
            await declare(self._cluster, missing)
            self._topics |= {topic.name: topic for topic in missing}
            self._doubted -= {topic.name for topic in missing}

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        await self._find(topic)
        if any(message.not_before is not None for message in messages):
            raise Unsupported(f"{topic!r} is on Kafka, which cannot delay: bands do (bus.bands)")
        if not messages:
            return
        try:
            await self._publisher.publish(topic, messages)
        except ConnectionLost:
            raise
        except BusError:
            self._doubted.add(topic)
            raise

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        there = await self._find(topic)
        subscription: QueueSubscription | LogSubscription
        if there.kind is Kind.QUEUE:
            if start != "committed":
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
            subscription = queue = QueueSubscription(self._cluster, there, prefetch, self._lease_s, member)
            await queue.begin()
        else:
            subscription = log = LogSubscription(self._cluster, there, group, prefetch)
            await log.begin(start)
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        there = await self._find(topic)
        if there.kind is Kind.QUEUE:
            return await queue_lag(self._cluster, there)
        return await log_lag(self._cluster, there, group)

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """Version, brokers, rights, clock."""
        self._check_open()
        return await examine(self._cluster, prefix)

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

    async def _find(self, name: str) -> Topic:
        self._check_open()
        known = self._topics.get(name)
        if known is not None and name not in self._doubted:
            return known
        found = await find(self._cluster, name)
        if known is not None and found.kind is not known.kind:
            raise Misconfigured(f"topic {name!r} was a {known.kind.name}, and is a {found.kind.name} now: delete it")
        self._doubted.discard(name)
        return self._topics.setdefault(name, found)
