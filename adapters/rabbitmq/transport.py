"""The bus on RabbitMQ 3.10 to 4.x: work in quorum queues, records in streams, delays in queues that pass on by time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Self

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link, Outage
from adapters.rabbitmq.envelope import seal
from adapters.rabbitmq.errors import Undeclared
from adapters.rabbitmq.examine import examine
from adapters.rabbitmq.log import Logs, LogSubscription
from adapters.rabbitmq.publisher import Outgoing, Publisher
from adapters.rabbitmq.queue import QueueSubscription
from adapters.rabbitmq.topology import Topology
from bus.capabilities import Acks, Capabilities, Delay, Durability, SeekBy
from bus.errors import BusError, Closed, Misconfigured, PublishUnconfirmed, Unsupported
from bus.findings import Finding
from bus.message import Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Start, Subscription

__all__ = ["RabbitTransport"]

logger = logging.getLogger(__name__)

LEASE_S = 60.0
OLDEST = (3, 10)


class RabbitTransport:
    """`amqp://HOST/VHOST`, `amqps://…`: see `Address`. It delays by `bus.bands.Banded` only.

    Of a queue, `publish` returns when a majority of its nodes has it on the disk; of a log, in the page cache.
    """

    def __init__(self, address: Address, work: Link, version: str, outage: Outage) -> None:
        self.version = version
        self.capabilities = Capabilities(
            queue_durability=Durability.FSYNC,
            log_durability=Durability.PAGE_CACHE,
            acks=Acks.INDIVIDUAL,
            lease_s=address.lease_s,
            counts_redeliveries=True,
            releases_on_close=True,
            delay=Delay.HOLDS,
            seek_by=frozenset(SeekBy),
            exact_lag=True,
            shared_between_processes=True,
            shared_between_hosts=True,
            hides_s=200.0,  # what has no queue to go to is tried again after three minutes
        )
        self._address = address
        publishing, streams = (Link(address, purpose, outage) for purpose in ("publisher", "logs"))
        self.links = (work, publishing, streams)
        self._work, self._streams = work, streams
        self._publisher = Publisher(publishing, address)
        self._topology = Topology(work, address, _numbers(version))
        self._logs = Logs(streams, address, self._publisher)
        self._subscriptions: list[QueueSubscription | LogSubscription] = []
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, lease_s: float = LEASE_S) -> Self:
        """Heartbeats keep a lease, each third of `lease_s` or as `?heartbeat=` says; it ends with the connection."""
        address = Address.parse(url, lease_s)
        outage = Outage(address)
        work = Link(address, "worker", outage)
        properties = (await work.get()).server_properties
        shown = str(properties.get("version", "0"))
        if _numbers(shown) < OLDEST:
            await work.aclose()
            raise Misconfigured(f"RabbitMQ at {address} is version {shown}: 3.10 or later is needed")
        limits = "without limit" if _numbers(shown) >= (4,) else "by default"
        logger.info("RabbitMQ %s at %s: quorum queues with deliveries %s, streams", shown, address, limits)
        return cls(address, work, shown, outage)

    async def declare(self, *topics: Topic) -> None:
        self._check_open()
        await self._topology.declare(*topics)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        found = await self._find(topic)
        if not messages:
            return
        if any(message.not_before is not None for message in messages):
            raise Unsupported(f"{topic!r} delays nothing by itself: only a QUEUE with delay bands knows not_before")
        try:
            await self._publisher.publish(topic, _outgoing(found, messages))
        except Undeclared:
            self._topology.forget(topic)
            await self._topology.lag(topic)  # deleted? Or is a broker that has just started not ready for it yet?
            raise PublishUnconfirmed(f"RabbitMQ cannot reach queue {topic!r} now") from None

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        found = await self._find(topic)
        if found.hold_s is not None:
            raise Unsupported(f"{topic!r} is a delay band, which RabbitMQ empties by itself")
        subscription: QueueSubscription | LogSubscription
        if found.kind is Kind.QUEUE:
            if start != "committed":
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
            subscription = QueueSubscription(self._work, self._address, topic, prefetch)
            await subscription.open()
        else:
            subscription = LogSubscription(self._streams, self._address, self._logs, topic, group, prefetch)
            await subscription.begin(start)
            if group:
                await self._topology.declare_group(topic, group)
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        found = await self._find(topic)
        if found.kind is Kind.QUEUE:
            return await self._topology.lag(topic)
        return await self._logs.lag(topic, group)

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """Version, rights, alarms."""
        self._check_open()
        return await examine(self._work, self._address, self._publisher, self.version, prefix)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.gather(*(subscription.aclose() for subscription in self._subscriptions))
        finally:
            await asyncio.gather(*(link.aclose() for link in self.links))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the bus at {self._address} is closed")

    async def _find(self, topic: str) -> Topic:
        self._check_open()
        return await self._topology.find(topic)


def _numbers(version: str) -> tuple[int, ...]:
    """(4, 3, 6) of `4.3.6-rc.1`."""
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdecimal())


def _outgoing(topic: Topic, messages: Sequence[Message]) -> list[Outgoing]:
    if topic.hold_s is not None:
        return [Outgoing(topic.name, _target(topic, message), seal(message)) for message in messages]
    at = time.time() if topic.kind is Kind.LOG else None
    return [Outgoing("", topic.name, seal(message, at)) for message in messages]


def _target(band: Topic, message: Message) -> str:
    to = message.headers.get("to")
    if not isinstance(to, str):
        raise BusError(f"a message for the delay band {band.name!r} has no header 'to'")
    return to
