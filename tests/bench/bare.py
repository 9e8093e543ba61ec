"""The drivers by themselves, as a program would use them that needs just this: the measure of our transports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

import aio_pika
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from bus.message import Message

__all__ = ["BARE", "AioKafka", "AioPika", "RedisPy", "Side"]

PARTITIONS = 16  # of a topic, as crawlbus gives a queue
COMMIT_EACH_S = 0.5  # as crawlbus does


class Side(Protocol):
    """One of the two that are compared, on a queue of its own."""

    async def open(self, url: str, queue: str, in_flight: int) -> None: ...

    async def publish(self, batch: Sequence[Message]) -> None:
        """Returns when all are confirmed."""
        ...

    async def read(self) -> None:
        """From now on, `receive` is used."""
        ...

    async def receive(self, at_most: int) -> Sequence[Any]: ...

    async def ack(self, batch: Sequence[Any]) -> None: ...

    async def aclose(self) -> None: ...


class AioPika:
    """A durable quorum queue; publisher confirms and mandatory; one ack for a batch."""

    async def open(self, url: str, queue: str, in_flight: int) -> None:
        self._connection = await aio_pika.connect(url)
        self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        await self._channel.set_qos(in_flight)
        quorum: Any = {"x-queue-type": "quorum"}
        self._queue = await self._channel.declare_queue(queue, durable=True, arguments=quorum)
        self._exchange = self._channel.default_exchange
        self._tag: str | None = None
        self._arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()

    async def publish(self, batch: Sequence[Message]) -> None:
        await asyncio.gather(*(self._publish(message) for message in batch))

    async def _publish(self, message: Message) -> None:
        sent = aio_pika.Message(message.body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=message.id)
        await self._exchange.publish(sent, self._queue.name, mandatory=True)

    async def read(self) -> None:
        self._tag = await self._queue.consume(self._arrived.put)

    async def receive(self, at_most: int) -> Sequence[Any]:
        batch = [await self._arrived.get()]
        while len(batch) < at_most and not self._arrived.empty():
            batch.append(self._arrived.get_nowait())
        return batch

    async def ack(self, batch: Sequence[Any]) -> None:
        await batch[-1].ack(multiple=True)

    async def aclose(self) -> None:
        if self._tag is not None:
            await self._queue.cancel(self._tag)
        await self._queue.delete(if_empty=False, if_unused=False)
        await self._connection.close()


class AioKafka:
    """`acks=all` and idempotence, as many partitions as ours; what was read is committed as often as ours."""

    async def open(self, url: str, queue: str, in_flight: int) -> None:
        self._servers, self._queue = url.removeprefix("kafka://"), queue
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await self._admin.start()
        await self._admin.create_topics([NewTopic(queue, PARTITIONS, 1)])
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers, enable_idempotence=True)
        await self._producer.start()
        self._consumer: AIOKafkaConsumer | None = None
        self._ends: dict[TopicPartition, int] = {}
        self._commit_at = 0.0

    async def publish(self, batch: Sequence[Message]) -> None:
        sent = [await self._producer.send(self._queue, message.body, key=message.key) for message in batch]
        await asyncio.gather(*sent)

    async def read(self) -> None:
        self._consumer = AIOKafkaConsumer(
            self._queue, bootstrap_servers=self._servers, group_id=self._queue, auto_offset_reset="earliest",
            enable_auto_commit=False,
        )  # fmt: skip
        await self._consumer.start()

    async def receive(self, at_most: int) -> Sequence[Any]:
        assert self._consumer is not None
        found = await self._consumer.getmany(timeout_ms=1000, max_records=at_most)
        return [record for records in found.values() for record in records]

    async def ack(self, batch: Sequence[Any]) -> None:
        assert self._consumer is not None
        for record in batch:
            self._ends[TopicPartition(record.topic, record.partition)] = record.offset + 1
        if time.monotonic() >= self._commit_at:
            self._commit_at = time.monotonic() + COMMIT_EACH_S
            await self._consumer.commit(self._ends)

    async def aclose(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()
        await self._producer.stop()
        await self._admin.delete_topics([self._queue])
        await self._admin.close()


class RedisPy:
    """A stream with one group; what is acknowledged is deleted."""

    async def open(self, url: str, queue: str, in_flight: int) -> None:
        self._client: Redis = Redis.from_url(url)
        self._reader: Redis = Redis.from_url(url)
        self._queue = queue
        await self._client.xgroup_create(queue, "bench", id="0", mkstream=True)

    async def publish(self, batch: Sequence[Message]) -> None:
        pipe = self._client.pipeline(transaction=False)
        for message in batch:
            pipe.xadd(self._queue, {b"b": message.body})
        await pipe.execute()

    async def read(self) -> None:
        pass

    async def receive(self, at_most: int) -> Sequence[Any]:
        found: Any = await self._reader.xreadgroup("bench", "one", {self._queue: ">"}, count=at_most, block=1000)
        return [entry for _, entries in found for entry in entries]

    async def ack(self, batch: Sequence[Any]) -> None:
        ids = [identity for identity, _ in batch]
        pipe = self._client.pipeline(transaction=False)
        pipe.xack(self._queue, "bench", *ids)
        pipe.xdel(self._queue, *ids)
        await pipe.execute()

    async def aclose(self) -> None:
        await self._client.delete(self._queue)
        await self._client.aclose()
        await self._reader.aclose()


BARE: dict[str, type[Side]] = {"amqp": AioPika, "kafka": AioKafka, "redis": RedisPy}
