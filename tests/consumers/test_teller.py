"""What is stored is told beside the storing: the last word arrives, and nobody waits for who does not listen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

import consumers.teller
from bus.message import Delivery
from bus.registry import connect_state, connect_transport
from bus.state import Job
from bus.testing import Faults, FaultyTransport
from bus.testing.faults import FaultySubscription
from bus.topic import item_log
from bus.transport import Subscription, Transport
from consumers.jobs import JobsTold
from consumers.sink import Batch, Entry
from consumers.teller import Teller
from tests.consumers.replays import packed
from tests.consumers.scene import record

TOPIC, COUNT = item_log("t."), 40


def on_a_slow_log(faults: Faults, work: Callable[[Transport, Subscription, list[Delivery]], Awaitable[None]]) -> None:
    """A log of which all was read, and whose acks take their time."""

    async def main() -> None:
        async with asyncio.timeout(60), aclosing(await connect_transport("memory://")) as transport:
            await transport.declare(TOPIC)
            await transport.publish(TOPIC.name, packed([record(n) for n in range(COUNT)], 1))
            async with aclosing(await transport.subscribe(TOPIC.name, group="g", start="earliest")) as subscription:
                found: list[Delivery] = []
                while len(found) < COUNT:
                    found += await subscription.receive(max_messages=COUNT, timeout_s=1)
                slow = FaultySubscription(FaultyTransport(transport, seed=1, faults=faults), faults, subscription, None)
                await work(transport, slow, [delivery._replace(token=(0, delivery.token)) for delivery in found])

    asyncio.run(main())


def batch(delivery: Delivery, number: int) -> Batch:
    return Batch(entries=[Entry(delivery.position, record(number))], acks={delivery.partition: delivery})


def test_all_is_told_in_the_end() -> None:
    async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
        state = await connect_state("memory://")
        async with aclosing(state):
            await state.join("shop", spider="shop")
            teller = Teller(subscription, JobsTold(state, "default"))
            for number, delivery in enumerate(found):
                teller.stored(batch(delivery, number))
                await asyncio.sleep(0.002)
            await teller.aclose()
            status = await state.status("shop")
        assert status is not None and status.job == Job("shop", 1)
        assert status.counters["items_stored:default"] == COUNT
        assert (await transport.lag(TOPIC.name, group="g")).ready == 0

    on_a_slow_log(Faults(delay=1.0, delay_s=0.05), work)


def test_who_does_not_listen_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.teller, "LEAVE_S", 0.05)

    async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
        teller = Teller(subscription, JobsTold(None, "default"))
        for number, delivery in enumerate(found):
            teller.stored(batch(delivery, number))
        async with asyncio.timeout(30):
            await teller.aclose()

    on_a_slow_log(Faults(delay=1.0, delay_s=3600.0), work)
