"""The Kafka transport, with delay bands, keeps the contract."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from adapters.kafka.queue import QueueSubscription
from adapters.kafka.transport import KafkaTransport
from bus.bands import Banded
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.testing.transport_scene import until
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
    pass


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
class TestHostileKafkaTransport(Hostile, OnKafka):
    pass
