"""The memory transport keeps the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.memory.transport import MemorySubscription, MemoryTransport
from bus.message import Message
from bus.testing.clock import FakeClock
from bus.testing.transport import Hostile, TransportConformance
from bus.topic import Kind, Topic
from bus.transport import Subscription


class TestMemoryTransport(TransportConformance):
    @pytest.fixture(autouse=True)
    def _bus(self, tmp_path: Path) -> None:
        self.url = f"memory://{tmp_path}"

    async def connect(self) -> MemoryTransport:
        return await MemoryTransport.connect(self.url)

    async def expel(self, subscription: Subscription) -> None:
        assert isinstance(subscription, MemorySubscription)
        subscription._reader.close()


def test_a_group_that_is_long_gone_holds_nothing_back() -> None:
    async def check() -> None:
        clock, day_s = FakeClock(0.0), 86400.0
        transport = await MemoryTransport.connect("memory://groups", clock=clock)
        await transport.declare(Topic("record", Kind.LOG, 60.0))
        await transport.subscribe("record", group="gone")
        here = await transport.subscribe("record", group="here")
        await transport.publish("record", [Message(str(i), b"") for i in range(4)])
        got = await here.receive(max_messages=4, timeout_s=0)
        await clock.advance(6.9 * day_s)
        await here.ack(got[:2])
        assert (await transport.lag("record")).first == {0: 0}
        await clock.advance(0.2 * day_s)
        assert (await transport.lag("record")).first == {0: 2}
        await transport.aclose()

    asyncio.run(check())


class TestHostileMemoryTransport(Hostile, TestMemoryTransport):
    pass
