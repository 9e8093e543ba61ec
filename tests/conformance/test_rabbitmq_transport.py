"""The RabbitMQ transport keeps the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import aiormq
import pytest

from adapters.rabbitmq.transport import RabbitTransport
from bus.bands import Banded
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.testing.transport_scene import until
from bus.transport import Subscription, Transport
from tests.servers import kinds

MADE: list[RabbitTransport] = []  # by the check of now


async def delete(url: str, topics: Iterable[str]) -> None:
    async with aiormq.connect(url) as connection:
        channel = await connection.channel()
        for name in topics:
            await channel.queue_delete(name)
            await channel.exchange_delete(name)


class OnRabbitMQ(SharedTransportConformance):
    holds_back = False  # a stream drops its segments by their age alone

    @pytest.fixture(autouse=True)
    def _bus(self, server_url: str) -> Iterator[None]:
        self.url = server_url
        MADE.clear()
        yield
        topics = {name for transport in MADE for name in transport._topology._known}
        asyncio.run(delete(server_url, topics))  # a broker with thousands of quorum queues is slow

    async def connect(self) -> Banded:
        MADE.append(await RabbitTransport.connect(self.url, lease_s=self.lease_s))
        return Banded(MADE[-1])

    async def expel(self, subscription: Subscription) -> None:
        """The broker closes the channel that acks what it was never given."""
        reader: Any = subscription._inner  # type: ignore[attr-defined]
        life = reader._life
        await reader._channel.basic_ack(1_000_000)

        async def gone() -> bool:
            return bool(reader._life != life)

        await until(gone)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, Banded) and isinstance(transport.inner, RabbitTransport)
        for link in transport.inner.links:
            if link._dialer is not None:
                link._dialer.abort()

    async def trim(self, transport: Transport, topic: str) -> None:
        raise NotImplementedError  # only what is published later drops a segment: see tests/unit/test_rabbitmq.py


@pytest.mark.parametrize("server_url", kinds("rabbitmq"), indirect=True)
class TestRabbitTransport(OnRabbitMQ):
    pass


@pytest.mark.parametrize("server_url", kinds("rabbitmq")[:1], indirect=True)
class TestHostileRabbitTransport(Hostile, OnRabbitMQ):
    pass
