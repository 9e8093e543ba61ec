"""`nack` and `delay`: what is published, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from adapters.memory.transport import MemoryTransport
from bus.errors import BusError
from bus.message import Message
from bus.testing.clock import FakeClock
from bus.topic import Kind, Topic
from bus.work import delay, nack

WORK = Topic("work", Kind.QUEUE)
SENT = Message("one", b"body", {"attempt": 4, "page": b"p"}, b"key")


@pytest.mark.parametrize(("verb", "attempt"), [(nack, 5), (delay, 4)])
def test_it_comes_again_when_it_is_due(verb: object, attempt: int) -> None:
    async def play() -> None:
        clock = FakeClock()
        bus = await MemoryTransport.connect("memory://work", clock=clock)
        await bus.declare(WORK)
        await bus.publish(WORK.name, [SENT])
        reader = await bus.subscribe(WORK.name)
        (got,) = await reader.receive(max_messages=9, timeout_s=0)
        await verb(bus, reader, got, 60.0, now=clock.time())  # type: ignore[operator]
        assert (await bus.lag(WORK.name)).delayed == 1
        waiting = asyncio.create_task(reader.receive(max_messages=9, timeout_s=1000))
        await clock.advance(59.9)
        assert not waiting.done()
        await clock.advance(0.2)
        (again,) = waiting.result()
        assert again.message == SENT._replace(headers={"attempt": attempt, "page": b"p"})
        assert (await bus.lag(WORK.name)).unacked == 1, "the original is acked"
        await bus.aclose()

    asyncio.run(play())


def test_the_original_stays_where_the_copy_cannot_be_published() -> None:
    class Full:
        capabilities = MemoryTransport.capabilities

        async def publish(self, topic: str, messages: object) -> None:
            raise BusError("no room")

    class Acks:
        async def ack(self, deliveries: object) -> None:
            raise AssertionError("acked before it was published")

    async def play() -> None:
        bus = await MemoryTransport.connect("memory://work")
        await bus.declare(WORK)
        await bus.publish(WORK.name, [SENT])
        (got,) = await (await bus.subscribe(WORK.name)).receive(max_messages=1, timeout_s=0)
        with pytest.raises(BusError, match="no room"):
            await nack(Full(), Acks(), got, 1.0)  # type: ignore[arg-type]
        await bus.aclose()

    asyncio.run(play())
