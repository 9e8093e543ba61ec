"""What an operator, or time, may do to the item log: by the means of each bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from secrets import token_hex
from typing import Any

import aiormq
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from adapters.rabbitmq import topology
from bus.errors import ConnectionLost
from bus.items import item_messages, pack_item
from bus.message import Message
from bus.registry import connect_transport
from bus.topic import item_log
from bus.transport import Transport
from bus.url import bus_options, without_bus_options
from tests.consumers.scene import record

__all__ = ["Log", "open_log"]

PATIENCE_S = 60.0
PADDING = "x" * 20_000  # a stream is trimmed by segments


class Log:
    """An item log of its own. Messages have one item each, and the n-th published always goes to the same partition."""

    def __init__(self, url: str) -> None:
        self.url, self.prefix = url, bus_options(url).prefix
        self.topic = f"{self.prefix}items"
        self._transport: Transport

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Transport]:
        """A connection that knows nothing of what was before."""
        async with aclosing(await connect_transport(self.url)) as transport:
            await transport.declare(item_log(self.prefix))
            yield transport

    async def publish(self, numbers: Sequence[int], *, large: bool = False) -> None:
        batch: list[Message] = []
        for place, number in enumerate(numbers):
            item = record(number, {"number": number, "padding": PADDING if large else ""})
            (message,) = item_messages("shop", "shop", 1, [pack_item(item.id, item.url, item.scraped_at, item.data)])
            batch.append(message._replace(key=b"%d" % (place % 20)))
        async with self.connected() as transport:
            await transport.publish(self.topic, batch)

    async def delete(self) -> None:
        raise NotImplementedError

    async def trim(self) -> None:
        """All that is there now goes, but for the last message of each partition."""
        raise NotImplementedError

    async def end(self) -> Mapping[int, int]:
        async with self.connected() as transport:
            end = (await transport.lag(self.topic)).end
        assert end is not None
        return end


class KafkaLog(Log):
    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        host = without_bus_options(self.url).removeprefix("kafka://")
        admin = AIOKafkaAdminClient(bootstrap_servers=host)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def delete(self) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([self.topic])
            async with asyncio.timeout(PATIENCE_S):
                while self.topic in await admin.list_topics():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def trim(self) -> None:
        end = await self.end()
        wanted = {TopicPartition(self.topic, number): RecordsToDelete(offset - 1) for number, offset in end.items()}
        async with self._admin() as admin:
            await admin.delete_records(wanted)


USUAL_BYTES = topology.SEGMENT_BYTES


class RabbitLog(Log):
    """Its broker trims whole segments, of what is older than the retention."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Transport]:
        topology.SEGMENT_BYTES = 100_000
        try:
            async with aclosing(await connect_transport(self.url)) as transport:
                await transport.declare(item_log(self.prefix, 1.0))
                yield transport
        finally:
            topology.SEGMENT_BYTES = USUAL_BYTES  # two of these may be open, and end in any order

    async def delete(self) -> None:
        connection = await aiormq.connect(without_bus_options(self.url))
        channel = await connection.channel()
        await channel.queue_delete(self.topic)
        await connection.close()

    async def trim(self) -> None:
        end = (await self.end())[0]
        async with asyncio.timeout(PATIENCE_S), self.connected() as transport:
            first = 0
            while first < end - 1:
                await self.publish([-1] * 10, large=True)
                await asyncio.sleep(0.2)
                with suppress(ConnectionLost):  # RabbitMQ 3.10 may drop who reads the segment that it trims
                    first = ((await transport.lag(self.topic)).first or {0: 0})[0]


class RedisLog(Log):
    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        from redis.asyncio import Redis

        async with Redis.from_url(without_bus_options(self.url)) as client:
            yield client

    async def delete(self) -> None:
        async with self._client() as client:
            await client.delete(*[key async for key in client.scan_iter(f"crawlbus:bus:{{{self.topic}}}*")])

    async def trim(self) -> None:
        end = (await self.end())[0]
        async with self._client() as client:
            await client.xtrim(f"crawlbus:bus:{{{self.topic}}}:stream", minid=f"{end - 1}-0", approximate=False)


def open_log(kind: str, server: str) -> Log:
    classes = {"kafka": KafkaLog, "rabbitmq": RabbitLog, "redis": RedisLog}
    return classes[kind.partition("-")[0]](f"{server}?prefix=t{token_hex(4)}.")
