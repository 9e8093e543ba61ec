"""The Kafka transport, with delay bands, keeps the contract."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from adapters.kafka.queue import QueueSubscription
from adapters.kafka.transport import KafkaTransport
from bus.bands import Banded
from bus.message import Message, Position, new_id
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.testing.transport_scene import Stage, staged, until
from bus.transport import Subscription, Transport
from tests.servers import kinds

SHORTEST_LEASE_S = 2.0


class OnKafka(SharedTransportConformance):
    holds_back = False

    @pytest.fixture(autouse=True)
    def _bus(self, server_url: str) -> None:
        self.url = server_url

    async def connect(self) -> Banded:
        return Banded(await KafkaTransport.connect(self.url, lease_s=max(SHORTEST_LEASE_S, self.lease_s)))

    async def expel(self, subscription: Subscription) -> None:
        """Take it out of its group, and wait until it has heard of it."""
        queue = getattr(subscription, "_inner", subscription)
        assert isinstance(queue, QueueSubscription)
        life = queue._member.life
        await asyncio.sleep(0.1)  # acks are committed
        await queue._cluster.leave(queue._name, life[0])

        async def heard() -> bool:
            return queue._member.life != life and queue._member.settled.is_set()

        await until(heard)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, Banded) and isinstance(transport.inner, KafkaTransport)
        for client in clients(transport.inner):
            for connection in list(client._conns.values()):
                if connection.connected():
                    connection._writer.get_extra_info("socket")._sock.shutdown(socket.SHUT_RDWR)


def clients(transport: KafkaTransport) -> Iterator[Any]:
    yield transport._cluster._client
    if transport._publisher._producer is not None:
        yield transport._publisher._producer.client
    for subscription in transport._subscriptions:
        consumer = (
            subscription._member.consumer if isinstance(subscription, QueueSubscription) else subscription._consumer
        )
        if consumer is not None:
            yield consumer._client


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
class TestKafkaTransport(OnKafka):
    @staged
    async def test_only_the_partitions_named_are_read(self, stage: Stage) -> None:
        """From the start, after a `seek`, and after the connection was lost; what is acked of them is committed."""
        topic = await stage.log()
        await stage.publish(topic, 80, spread=True)
        end = (await stage.one.lag(topic)).end or {}
        assert len(end) == 4 and all(offset > 2 for offset in end.values())
        reader = await stage.reader(topic, start=[Position(1, 2), Position(3, 0)], group="some")
        first = await stage.take(reader, end[1] - 2 + end[3], ack=True)
        assert Counter(found.partition for found in first) == {1: end[1] - 2, 3: end[3]}
        await stage.nothing(reader)
        assert (await stage.one.lag(topic, group="some")).ready == end[0] + end[2]

        await reader.seek([Position(2, 1)])
        second = await stage.take(reader, end[2] - 1, ack=True)
        assert {found.partition for found in second} == {2}
        await self.cut(stage.one)
        await stage.two.publish(topic, [Message(new_id(), b"more", key=b"%d" % number) for number in range(40)])
        more = (await stage.one.lag(topic)).end or {}
        third = await stage.take(reader, more[2] - end[2], ack=True)
        assert [found.position for found in third] == [Position(2, offset) for offset in range(end[2], more[2])]
        await stage.nothing(reader)


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
class TestHostileKafkaTransport(Hostile, OnKafka):
    pass
