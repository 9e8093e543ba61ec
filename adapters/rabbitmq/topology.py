"""Which queues, streams and exchanges there are, and with which arguments. All are durable.

A broker compares the arguments with those that are there, so they must never change from one version to the next.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.commands import Queue

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link
from adapters.rabbitmq.errors import DRIVER_ERRORS, refusal, within
from bus.errors import Misconfigured
from bus.topic import Kind, Topic
from bus.transport import Lag

__all__ = ["Topology", "group_stream", "look"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 50_000_000  # a stream is trimmed by whole segments, and keeps the last one
GROUP_BYTES = 1_000_000
GROUP_SEGMENT_BYTES = 100_000
UNLIMITED = -1
MAX_NAME_BYTES = 255

Arguments = dict[str, Any]


class Topology:
    """Declares topics and finds those that others have declared. Each on a channel of its own: a refusal closes it."""

    def __init__(self, link: Link, address: Address, version: tuple[int, ...]) -> None:
        self._link, self._address, self._version = link, address, version
        self._known: dict[str, Topic] = {}

    async def declare(self, *topics: Topic) -> None:
        """Targets before the bands that lead to them. Raises `Misconfigured` where one exists as another kind."""
        fresh = [topic for topic in topics if self._known.get(topic.name) != topic]
        for topic in sorted(fresh, key=lambda topic: topic.hold_s is not None):
            if len(topic.name.encode()) > MAX_NAME_BYTES:
                raise Misconfigured(f"topic {topic.name[:40]!r}… is longer than 255 bytes: choose a shorter ?prefix=")
            await self._declare(topic)
            self._known[topic.name] = topic

    async def find(self, name: str) -> Topic:
        """What a topic is, whoever declared it."""
        topic = self._known.get(name)
        if topic is None:
            topic = self._known[name] = await self._discover(name)
        return topic

    def forget(self, name: str) -> None:
        """It may have been deleted."""
        self._known.pop(name, None)

    async def declare_group(self, topic: str, group: str) -> None:
        """The stream that holds the positions of a group."""
        name = group_stream(topic, group)
        if name not in self._known:
            await self._make_queue(name, _stream(GROUP_SEGMENT_BYTES) | {"x-max-length-bytes": GROUP_BYTES})
            self._known[name] = Topic(name, Kind.LOG)

    async def lag(self, topic: str) -> Lag:
        """Of a QUEUE. How much of it is unacknowledged only the management plugin could tell."""
        found = await look(self._link, self._address, topic)
        return Lag(found.message_count or 0, None, 0, exact=True, readers=found.consumer_count or 0)

    async def _declare(self, topic: Topic) -> None:
        if topic.hold_s is not None:
            await self._make_band(topic.name, topic.hold_s)
        elif topic.kind is Kind.QUEUE:
            await self._make_queue(topic.name, self._quorum())
        else:
            await self._make_queue(topic.name, _log(topic))

    def _quorum(self) -> Arguments:
        """Deliveries without limit. RabbitMQ 4 would drop a message after 20; -1 on 3 means none at all."""
        arguments: Arguments = {"x-queue-type": "quorum"}
        return arguments | {"x-delivery-limit": UNLIMITED} if self._version >= (4,) else arguments

    async def _make_queue(self, name: str, arguments: Arguments) -> None:
        try:
            async with self._link.channel() as channel:
                await within(channel.queue_declare(name, durable=True, arguments=arguments))
        except ChannelPreconditionFailed as error:
            if "'x-max-age'" not in str(error):
                raise refusal(error, name, self._address) from None
            logger.warning("log %r keeps the retention it was made with: delete it to choose another", name)
        except DRIVER_ERRORS as error:
            raise refusal(error, name, self._address) from None

    async def _make_band(self, name: str, hold_s: int) -> None:
        """A fanout exchange keeps the routing key, which is where the message goes when its time in the queue is up.

        Without both at-least-once and reject-publish, what meets a missing or a full queue there is dropped.
        """
        hold: Arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": hold_s * 1000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        await self._make_queue(name, hold)
        try:
            async with self._link.channel() as channel:
                await within(channel.exchange_declare(name, exchange_type="fanout", durable=True))
                await within(channel.queue_bind(name, name))
        except DRIVER_ERRORS as error:
            raise refusal(error, name, self._address) from None

    async def _discover(self, name: str) -> Topic:
        await look(self._link, self._address, name)
        try:
            async with self._link.channel() as channel:
                await within(channel.exchange_declare(name, passive=True))
            return Topic(name, Kind.QUEUE, hold_s=1)
        except ChannelNotFoundEntity:
            pass
        except DRIVER_ERRORS as error:
            raise refusal(error, name, self._address) from None
        return Topic(name, await self._kind(name))

    async def _kind(self, name: str) -> Kind:
        """Only the refusal of another declaration tells what a queue is."""
        try:
            async with self._link.channel() as channel:
                await within(channel.queue_declare(name, durable=True, arguments=self._quorum()))
            return Kind.QUEUE
        except ChannelPreconditionFailed as error:
            if "'stream'" in str(error):
                return Kind.LOG
            raise refusal(error, name, self._address) from None
        except DRIVER_ERRORS as error:
            raise refusal(error, name, self._address) from None


def group_stream(topic: str, group: str) -> str:
    return f"{topic}.group.{group}"


async def look(link: Link, address: Address, name: str) -> Queue.DeclareOk:
    """How many messages are ready in a queue that exists, and how many consumers it has; of a stream it is a hint."""
    try:
        async with link.channel() as channel:
            return await _passive(channel, name)
    except DRIVER_ERRORS as error:
        raise refusal(error, name, address) from None


async def _passive(channel: Channel, name: str) -> Queue.DeclareOk:
    return await within(channel.queue_declare(name, passive=True))


def _stream(segment_bytes: int) -> Arguments:
    return {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": segment_bytes}


def _log(topic: Topic) -> Arguments:
    arguments = _stream(SEGMENT_BYTES)
    if topic.retention_s is not None:
        arguments["x-max-age"] = f"{max(1, math.ceil(topic.retention_s))}s"
    return arguments
