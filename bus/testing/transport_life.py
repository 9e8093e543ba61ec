"""The checks of opening, declaring, closing and refusing."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import FrozenInstanceError

from bus.capabilities import Durability
from bus.errors import BusError, Closed, Misconfigured
from bus.message import Message, new_id
from bus.testing.checks import in_order
from bus.testing.transport_scene import Bus, Stage, ids, refused, staged
from bus.topic import Kind, Topic

__all__ = ["LifeChecks"]

EMPTY_RECEIVES = 1000


class LifeChecks(Bus):
    """What is promised of transports and subscriptions themselves."""

    @staged
    async def test_capabilities_are_a_fixed_value(self, stage: Stage) -> None:
        """The same for each connection, and nobody can change it."""
        assert stage.one.capabilities == stage.two.capabilities
        try:
            stage.one.capabilities.exact_lag = False  # type: ignore[misc]
        except FrozenInstanceError:
            return
        raise AssertionError("capabilities can be changed")

    @staged
    async def test_declare_twice(self, stage: Stage) -> None:
        """Idempotent: it keeps what is there."""
        topic = await stage.queue()
        sent = await stage.publish(topic, 2)
        await stage.one.declare(Topic(topic, Kind.QUEUE), Topic(topic, Kind.QUEUE))
        await stage.two.declare(Topic(topic, Kind.QUEUE))
        in_order(ids(sent), ids(await stage.work(await stage.reader(topic), 2)))

    @staged
    async def test_declare_conflict(self, stage: Stage) -> None:
        queue, log = await stage.queue(), await stage.log()
        for transport in (stage.one, stage.two):
            await refused(Misconfigured, transport.declare(Topic(queue, Kind.LOG)))
            await refused(Misconfigured, transport.declare(Topic(log, Kind.QUEUE)))

    @staged
    async def test_a_topic_that_was_not_declared(self, stage: Stage) -> None:
        name = f"nobody.{new_id()}"
        await refused(BusError, stage.one.publish(name, [Message(new_id(), b"")]))
        await refused(BusError, stage.one.subscribe(name))
        await refused(BusError, stage.one.lag(name))

    @staged
    async def test_a_topic_that_another_declared(self, stage: Stage) -> None:
        topic = Topic(f"check.{new_id()}", Kind.QUEUE)
        await stage.one.declare(topic)
        await stage.two.publish(topic.name, [Message(new_id(), b"")])
        assert len(await stage.work(await stage.reader(topic.name), 1)) == 1

    @staged
    async def test_a_reader_with_a_name(self, stage: Stage) -> None:
        """`member` is accepted everywhere, and its successor goes on."""
        topic = await stage.queue()
        sent = await stage.publish(topic, 4)
        for number in range(2):
            reader = await stage.one.subscribe(topic, prefetch=2, member="slot-7")
            in_order(ids(sent[2 * number :][:2]), ids(await stage.work(reader, 2)))
            await reader.aclose()
        reader = await stage.one.subscribe(await stage.log(), group="g", member="slot-7")
        await stage.nothing(reader, 0)

    @staged
    async def test_confirmed_survives_a_restart(self, stage: Stage) -> None:
        """What was confirmed is there after all have closed and one has come back; also groups' positions."""
        if stage.can.queue_durability is Durability.PROCESS:
            return
        queue, log = await stage.queue(), await stage.log()
        sent, record = await stage.publish(queue, 5), await stage.publish(log, 5)
        await stage.work(await stage.reader(log, group="g"), 2)
        await stage.one.aclose()
        await stage.two.aclose()
        stage.one = await self.connect()
        try:
            in_order(ids(sent), ids(await stage.work(await stage.reader(queue), 5)))
            in_order(ids(record[2:]), ids(await stage.work(await stage.reader(log, group="g"), 3)))
        finally:
            await stage.one.aclose()

    @staged
    async def test_two_tasks_may_not_read_one_subscription(self, stage: Stage) -> None:
        for topic in (await stage.queue(), await stage.log()):
            reader = await stage.reader(topic)
            first = asyncio.create_task(reader.receive(max_messages=1, timeout_s=0.15))
            await asyncio.sleep(0.05)
            await refused(BusError, reader.receive(max_messages=1, timeout_s=0))
            assert len(await first) == 0
            assert len(await reader.receive(max_messages=1, timeout_s=0)) == 0

    @staged
    async def test_close_twice(self, stage: Stage) -> None:
        reader = await stage.reader(await stage.queue())
        for _ in range(2):
            await reader.aclose()
        for _ in range(2):
            await stage.two.aclose()

    @staged
    async def test_close_while_receive_blocks(self, stage: Stage) -> None:
        """The `receive` ends with `Closed`, whether its subscription or its transport is closed."""
        for topic in (await stage.queue(), await stage.log()):
            reader = await stage.reader(topic)
            waiting = asyncio.create_task(reader.receive(max_messages=1, timeout_s=30))
            await asyncio.sleep(0.05)
            await reader.aclose()
            await refused(Closed, asyncio.wait_for(waiting, 10))
        transport = await self.connect()
        reader = await transport.subscribe(topic)
        waiting = asyncio.create_task(reader.receive(max_messages=1, timeout_s=30))
        await asyncio.sleep(0.05)
        await transport.aclose()
        await refused(Closed, asyncio.wait_for(waiting, 10))

    @staged
    async def test_closed_is_closed(self, stage: Stage) -> None:
        """Every call after `aclose` raises `Closed`; closing a transport closes its subscriptions."""
        queue, log = await stage.queue(), await stage.log()
        readers = [await stage.reader(queue), await stage.reader(log)]
        await readers[0].aclose()
        await stage.one.aclose()
        for reader in readers:
            await refused(Closed, reader.receive(max_messages=1, timeout_s=0))
            await refused(Closed, reader.ack([]))
        await refused(Closed, readers[1].seek("earliest"))
        await refused(Closed, stage.one.publish(queue, [Message(new_id(), b"")]))
        await refused(Closed, stage.one.subscribe(queue))
        await refused(Closed, stage.one.lag(queue))
        await refused(Closed, stage.one.declare(Topic(queue, Kind.QUEUE)))

    @staged
    async def test_close_of_one_does_not_close_another(self, stage: Stage) -> None:
        topic = await stage.queue()
        sent = await stage.publish(topic, 1)
        await stage.one.aclose()
        reader = await stage.reader(topic, by=stage.two)
        in_order(ids(sent), ids(await stage.work(reader, 1)))

    @staged
    async def test_empty_receives_keep_memory_bounded(self, stage: Stage) -> None:
        readers = [await stage.reader(await stage.queue()), await stage.reader(await stage.log())]

        async def spin(times: int) -> None:
            for _ in range(times):
                for reader in readers:
                    await reader.receive(max_messages=1, timeout_s=0)

        await spin(200)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await spin(EMPTY_RECEIVES)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 100 * EMPTY_RECEIVES, f"{grown} bytes more after {EMPTY_RECEIVES} empty receives"
