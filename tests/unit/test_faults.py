"""Under every fault that the contract allows, the work loop of a careful caller loses nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import pytest

from adapters.memory.transport import MemoryTransport
from bus.errors import ConnectionLost, PublishUnconfirmed, StaleDelivery
from bus.message import Message, new_id
from bus.testing.checks import no_loss
from bus.testing.clock import FakeClock
from bus.testing.faults import Faults, FaultyTransport
from bus.topic import Kind, Topic
from bus.transport import Transport
from bus.work import nack

T = TypeVar("T")
ALL = Faults(delay=0.3, short=0.3, doubled=0.1, unconfirmed=0.2, lost=0.1, stale=0.1)
WORK = Topic("work", Kind.QUEUE)


async def stubbornly(troubles: Counter[str], call: Callable[[], Awaitable[T]]) -> T | None:
    """Repeat what may have failed; what is stale is another's."""
    while True:
        try:
            return await call()
        except StaleDelivery:
            troubles["StaleDelivery"] += 1
            return None
        except (PublishUnconfirmed, ConnectionLost) as error:
            troubles[type(error).__name__] += 1


async def work(bus: Transport, done: Counter[str], troubles: Counter[str]) -> None:
    """Each message is retried once, then done, then acked."""
    reader = await bus.subscribe(WORK.name, prefetch=7)
    while True:
        came = await stubbornly(troubles, lambda: reader.receive(max_messages=5, timeout_s=1))
        for delivery in came or ():
            if delivery.message.attempt == 0:
                await stubbornly(troubles, partial(nack, bus, reader, delivery, 0))
            else:
                done[delivery.message.id] += 1
                await stubbornly(troubles, partial(reader.ack, [delivery]))


async def run(seed: int) -> tuple[list[str], Counter[str], Counter[str]]:
    clock = FakeClock()
    inner = await MemoryTransport.connect(f"memory://faults-{seed}", clock=clock)
    bus = FaultyTransport(inner, seed=seed, faults=ALL, clock=clock)
    await bus.declare(WORK)
    sent = [Message(f"{i}", b"") for i in range(60)]
    done: Counter[str] = Counter()
    troubles: Counter[str] = Counter()
    workers = [asyncio.create_task(work(bus, done, troubles)) for _ in range(3)]
    publishing = asyncio.create_task(publish_all(bus, sent, troubles))
    for _ in range(200):
        await clock.advance(1)
        if publishing.done() and len(done) == len(sent):
            break
    for task in workers:
        task.cancel()
    await asyncio.gather(publishing, *workers, return_exceptions=True)
    await bus.aclose()
    return [message.id for message in sent], done, troubles


async def publish_all(bus: Transport, sent: list[Message], troubles: Counter[str]) -> None:
    for i in range(0, len(sent), 4):
        await stubbornly(troubles, partial(bus.publish, WORK.name, sent[i : i + 4]))


@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_lost(seed: int) -> None:
    sent, done, troubles = asyncio.run(run(seed))
    no_loss(sent, done)
    assert set(troubles) == {"ConnectionLost", "StaleDelivery", "PublishUnconfirmed"}


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = asyncio.run(run(3)), asyncio.run(run(3))
    assert first == second
    assert asyncio.run(run(4))[1:] != first[1:]


def test_what_a_lost_lease_held_is_delivered_again_and_its_acks_are_refused() -> None:
    async def play() -> None:
        inner = await MemoryTransport.connect("memory://stale")
        bus = FaultyTransport(inner, seed=0, faults=Faults(stale=1.0))
        await bus.declare(WORK)
        await bus.publish(WORK.name, [Message(new_id(), b"a"), Message(new_id(), b"b")])
        reader = await bus.subscribe(WORK.name)
        held = await reader.receive(max_messages=2, timeout_s=1)
        with pytest.raises(StaleDelivery) as error:
            await reader.ack(held[:1])
        assert error.value.deliveries == tuple(held[:1])
        again = await reader.receive(max_messages=2, timeout_s=1)
        assert [d.message for d in again] == [d.message for d in held]
        assert [d.redeliveries for d in again] == [1, 1]
        await bus.aclose()

    asyncio.run(play())
