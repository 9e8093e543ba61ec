"""What is stored is told beside the storing: the last word arrives, and nobody waits for who does not listen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from secrets import token_hex

import pytest
import redis

import consumers.teller
from bus.message import Delivery
from bus.registry import connect_state, connect_transport
from bus.state import Job
from bus.testing import Faults, FaultyTransport
from bus.testing.faults import FaultySubscription
from bus.topic import item_log
from bus.transport import Subscription, Transport
from consumers.daemon import consume
from consumers.jobs import JobsTold
from consumers.options import ConsumeOptions
from consumers.sink import Batch, Entry, sink_of
from consumers.teller import Teller
from tests.consumers.replays import packed
from tests.consumers.scene import jsonl_items, record
from tests.servers import server

COUNT = 40


def on_a_slow_log(faults: Faults, work: Callable[[Transport, Subscription, list[Delivery]], Awaitable[None]]) -> None:
    """A log of which all was read, and whose acks take their time."""

    topic = item_log(f"t{token_hex(4)}.")

    async def main() -> None:
        async with asyncio.timeout(60), aclosing(await connect_transport("memory://")) as transport:
            await transport.declare(topic)
            await transport.publish(topic.name, packed([record(n) for n in range(COUNT)], 1))
            async with aclosing(await transport.subscribe(topic.name, group="g", start="earliest")) as subscription:
                found: list[Delivery] = []
                while len(found) < COUNT:
                    found += await subscription.receive(max_messages=COUNT, timeout_s=1)
                slow = FaultySubscription(FaultyTransport(transport, seed=1, faults=faults), faults, subscription, None)
                await work(transport, slow, [delivery._replace(token=(0, delivery.token)) for delivery in found])

    asyncio.run(main())


def batch(delivery: Delivery, number: int) -> Batch:
    return Batch(entries=[Entry(delivery.position, record(number))], acks={delivery.partition: delivery})


async def store(teller: Teller, found: list[Delivery], pause_s: float = 0.0) -> None:
    """As a consumer does: a batch for each."""
    for number, delivery in enumerate(found):
        teller.stored(batch(delivery, number))
        if pause_s:
            await asyncio.sleep(pause_s)


def test_all_is_told_in_the_end() -> None:
    async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
        state = await connect_state("memory://")
        async with aclosing(state):
            await state.join("shop", spider="shop")
            teller = Teller(subscription, JobsTold(state, "default"))
            await store(teller, found, 0.002)
            await teller.aclose()
            status = await state.status("shop")
        assert status is not None and status.job == Job("shop", 1)
        assert status.counters["items_stored:default"] == COUNT
        assert (await transport.lag(found[0].topic, group="g")).ready == 0

    on_a_slow_log(Faults(delay=1.0, delay_s=0.05), work)


def test_what_was_not_heard_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus hands out only so much that is not acknowledged: a word that is lost would be missing for ever."""
    monkeypatch.setattr(consumers.teller, "AGAIN_S", 0.01)

    async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
        teller = Teller(subscription, JobsTold(None, "default"))
        await store(teller, found)
        while (await transport.lag(found[0].topic, group="g")).ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await teller.aclose()

    on_a_slow_log(Faults(lost=0.9), work)


def test_a_bus_without_memory_stops_nobody_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses acks, and hands out no more than what it hands out without them."""
    monkeypatch.setattr(consumers.teller, "AGAIN_S", 0.1)
    count, stop, path = 5000, asyncio.Event(), tmp_path / "items.jsonl"

    async def main(url: str) -> None:
        async with asyncio.timeout(60), aclosing(await connect_transport(url)) as transport:
            topic = item_log("crawlbus.")
            await transport.declare(topic)
            await transport.publish(topic.name, packed([record(n) for n in range(count)], 1))
            with redis.Redis.from_url(url) as admin:
                sink = sink_of(f"jsonl:///{path}")
                options = ConsumeOptions(batch_items=64, limit=count)
                consuming = asyncio.create_task(consume(transport, None, sink, options, stop))
                while not (path.exists() and path.stat().st_size):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                admin.config_set("maxmemory", 1)
                while "the bus cannot be told what is stored" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.sleep(1)  # until all that was handed out is stored, and no ack is left to come
                admin.config_set("maxmemory", 0)
            assert (await consuming).stored == count
            await sink.aclose()

    with server("redis-7") as own:
        asyncio.run(main(own.url))
    assert len(jsonl_items(path)) == count
    said = [each.getMessage() for each in caplog.records if each.name == "consumers.teller"]
    assert len(said) == 2 and "out of memory" in said[0] and said[1] == "the bus is told again what is stored"


def test_a_state_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.teller, "LEAVE_S", 0.05)
    with server("redis-7") as frozen:

        async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
            async with aclosing(await connect_state(frozen.url)) as state:
                await state.join("shop", spider="shop")
                frozen.freeze()
                teller = Teller(subscription, JobsTold(state, "default"))
                await store(teller, found, 0.01)
                assert (await transport.lag(found[0].topic, group="g")).ready == 0
                await teller.aclose()
                frozen.thaw()

        on_a_slow_log(Faults(), work)


def test_who_does_not_listen_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.teller, "LEAVE_S", 0.05)

    async def work(transport: Transport, subscription: Subscription, found: list[Delivery]) -> None:
        teller = Teller(subscription, JobsTold(None, "default"))
        await store(teller, found)
        async with asyncio.timeout(30):
            await teller.aclose()

    on_a_slow_log(Faults(delay=1.0, delay_s=3600.0), work)
