"""The RabbitMQ transport keeps the contract."""

from __future__ import annotations

import os
from typing import Any

from adapters.rabbitmq.transport import RabbitTransport
from bus.bands import Banded
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.transport import Subscription, Transport


class TestRabbit310Transport(SharedTransportConformance):
    url = os.environ.get("CRAWLBUS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:17672/")

    async def connect(self) -> Banded:
        return Banded(await RabbitTransport.connect(self.url, lease_s=self.lease_s))

    async def expel(self, subscription: Subscription) -> None:
        """An ack of what was never delivered: the broker closes the channel."""
        reader: Any = subscription
        channel = reader._inner._channel
        await channel.basic_ack(1_000_000)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, Banded) and isinstance(transport.inner, RabbitTransport)
        for link in transport.inner.links:
            if link._dialer is not None:
                link._dialer.abort()


class TestRabbit43Transport(TestRabbit310Transport):
    url = os.environ.get("CRAWLBUS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:17643/")


class TestHostileRabbit310Transport(Hostile, TestRabbit310Transport):
    pass
