"""The checks of a broken connection to a server that goes on: for a bus whose suite can `cut`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from bus.errors import Closed, TransportError
from bus.message import Delivery, Message, new_id
from bus.testing.checks import in_order, no_loss
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, insist, staged
from bus.topic import Kind, Topic
from bus.transport import Subscription, Transport

__all__ = ["CutChecks"]


class CutChecks(Bus):
    """What is promised where the network fails: callers see `TransportError`s, and it goes on by itself."""

    async def _cut(self, transport: Transport) -> bool:
        """Whether there is anything to cut; a bus on another host must be."""
        try:
            await self.cut(transport)
        except NotImplementedError:
            assert not transport.capabilities.shared_between_hosts, "the suite does not say how to cut a connection"
            return False
        return True

    @staged
    async def test_publish_goes_on_after_a_cut(self, stage: Stage) -> None:
        """Repeated until it is confirmed, nothing is missing; what was not confirmed may be there, too."""
        topic = await stage.queue()
        sent: list[Message] = []
        for turn in range(6):
            messages = [Message(new_id(), b"x" * 500) for _ in range(10)]
            publishing = asyncio.create_task(insist(partial(stage.one.publish, topic, messages)))
            await asyncio.sleep(0.001 * turn)
            if turn % 2 and not await self._cut(stage.one):
                await publishing
                return
            await publishing
            sent.extend(messages)
        reader = await stage.reader(topic, by=stage.two)
        came: set[str] = set()
        async with asyncio.timeout(20):
            while not came >= set(ids(sent)):
                some = await reader.receive(max_messages=self.batch, timeout_s=1)
                came.update(ids(some))
                await reader.ack(some)
        no_loss(ids(sent), came)

    @staged
    async def test_a_queue_goes_on_after_a_cut(self, stage: Stage) -> None:
        """Its reader connects again by itself. An ack of what it held is valid, or refused as stale: never is it taken
        for another's. What is not acked comes again."""
        topic = await stage.queue()
        sent = ids(await stage.publish(topic, 12))
        reader = await stage.reader(topic, prefetch=12)
        held = await stage.take(reader, 6)
        await reader.ack(held[:2])
        if not await self._cut(stage.one):
            return
        valid = ids(await stage.acked(reader, held[3:5]))
        await stage.again(reader, sent[6:], sent[:6])
        await stage.one.aclose()
        other = await stage.reader(topic, by=stage.two, prefetch=12)
        # what was acked may come again: an ack may go down with its connection
        await stage.again(other, set(sent[2:]) - set(valid), sent[:5])

    @staged
    async def test_a_log_goes_on_after_a_cut(self, stage: Stage) -> None:
        """With the message after the last one received, for any group: nothing is skipped, and nothing comes twice."""
        for group in ("", "g"):
            topic = await stage.log(f"record{group}")
            sent = await stage.publish(topic, 8)
            reader = await stage.reader(topic, group=group, prefetch=20)
            got = await stage.work(reader, 3)
            if not await self._cut(stage.one):  # while there is something to come
                return
            got.extend(await follow(reader, 5))
            waiting = asyncio.create_task(follow(reader, 4))
            await asyncio.sleep(0.05)
            await self._cut(stage.one)  # while a reader waits for more
            late = [Message(new_id(), b"") for _ in range(8)]
            await stage.two.publish(topic, late)
            got.extend(await waiting)
            got.extend(await follow(reader, 4))
            sent.extend(late)
            in_order(ids(sent), ids(got))
            await reader.aclose()

    @staged
    async def test_only_transport_errors_escape(self, stage: Stage) -> None:
        """From any call, of any task; and all calls work again soon."""
        queue, log = await stage.queue(), await stage.log()
        queue_reader, log_reader = await stage.reader(queue), await stage.reader(log)

        async def come_and_go() -> None:
            await (await stage.reader(queue)).aclose()

        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: stage.one.publish(queue, [Message(new_id(), b"")]),
            lambda: stage.one.lag(queue),
            lambda: stage.one.declare(Topic(queue, Kind.QUEUE), Topic(log, Kind.LOG)),
            come_and_go,
            lambda: queue_reader.receive(max_messages=1, timeout_s=0.02),
            lambda: log_reader.receive(max_messages=1, timeout_s=0.02),
        ]
        ending = False

        async def repeat(call: Callable[[], Awaitable[object]]) -> None:
            while not ending:
                with suppress(TransportError):
                    await call()
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(repeat(call)) for call in calls]
        for _ in range(3):
            await asyncio.sleep(0.05)
            if not await self._cut(stage.one):
                break
        ending = True
        await asyncio.gather(*tasks)
        for call in calls:
            await insist(call)

    @staged
    async def test_close_while_cut(self, stage: Stage) -> None:
        """It closes, and what it held is another's."""
        topic = await stage.queue()
        sent = await stage.publish(topic, 2)
        transport = await self.connect()
        reader = await stage.reader(topic, by=transport, prefetch=3)
        await stage.take(reader, 2)
        waiting = asyncio.create_task(reader.receive(max_messages=1, timeout_s=30))
        await asyncio.sleep(0.02)
        if await self._cut(transport):
            await asyncio.wait_for(reader.aclose(), 10)
        await asyncio.wait_for(transport.aclose(), 10)
        with suppress(Closed, TransportError):
            await asyncio.wait_for(waiting, 10)
        await stage.again(await stage.reader(topic, prefetch=3), ids(sent))


async def follow(reader: Subscription, count: int) -> list[Delivery]:
    """The next ones, acked, however often the bus is away."""
    got: list[Delivery] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(got) < count:
            some = await insist(partial(reader.receive, max_messages=count - len(got), timeout_s=1))
            got.extend(some)
            await insist(partial(reader.ack, some))
    return got
