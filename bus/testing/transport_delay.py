"""The checks of delay: by itself, or by bands, or refused."""

from __future__ import annotations

import asyncio
import time

from bus.capabilities import Delay, Durability
from bus.errors import Unsupported
from bus.message import Message, new_id
from bus.testing.checks import in_order, once_each
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, refused, staged
from bus.topic import LANES, Kind, Topic

__all__ = ["DelayChecks"]

ROUND_S = 2.3  # longer than one band, and than two


class DelayChecks(Bus):
    """What is promised of `not_before`: never early, and by bands at most about a second late."""

    @staged
    async def test_not_before(self, stage: Stage) -> None:
        """Not delivered early, and then at once, also to a reader that waits; else refused at `publish`."""
        topic = await stage.queue()
        due = time.time() + 0.5
        late = Message(new_id(), b"late", {"page": b"p"}, b"key", not_before=due)
        if not stage.can.delays:
            await refused(Unsupported, stage.one.publish(topic, [late]))
            return
        past = Message(new_id(), b"past", not_before=time.time() - 60)
        now = Message(new_id(), b"now")
        reader = await stage.reader(topic, by=stage.two)
        await stage.one.publish(topic, [late, past, now])
        came = await stage.work(reader, 3)
        assert stage.in_time(due)
        once_each([past.id, now.id], ids(came[:2]))
        assert [one.message for one in came if one.message.id != now.id] == [
            past._replace(not_before=None),
            late._replace(not_before=None),
        ]

    @staged
    async def test_the_delayed_do_not_hold_up_the_ready(self, stage: Stage) -> None:
        topic = await stage.queue()
        if stage.can.delays:
            await stage.publish(topic, 50, not_before=time.time() + 3600)
            sent = await stage.publish(topic, 3)
            in_order(ids(sent), ids(await stage.work(await stage.reader(topic), 3)))

    @staged
    async def test_delayed_work_outlives_all_connections(self, stage: Stage) -> None:
        """Longer than a band, it goes round; each message comes to its own lane, once, and none of them early."""
        if not stage.can.delays:
            return
        topics = [await stage.queue(f"requests.{lane}" if lane else "requests") for lane in LANES]
        due = time.time() + (ROUND_S if stage.can.delay is Delay.BANDS else 0.3)
        sent = [ids(await stage.publish(topic, 2, not_before=due)) for topic in topics]
        await stage.one.aclose()
        if stage.can.queue_durability is not Durability.PROCESS:
            await stage.two.aclose()
        transport = await self.connect()
        try:
            await transport.declare(*(Topic(topic, Kind.QUEUE) for topic in topics))
            readers = [await stage.reader(topic, by=transport) for topic in topics]
            began = time.time()
            for wanted, reader in zip(sent, readers, strict=True):
                in_order(wanted, ids(await stage.work(reader, 2)))
                assert stage.in_time(due, since=began)
            for reader in readers:
                await stage.nothing(reader, 0.05)
        finally:
            await transport.aclose()

    @staged
    async def test_a_reader_that_leaves_takes_no_delayed_work_along(self, stage: Stage) -> None:
        """Readers that come and go may carry it twice, and never lose it."""
        if not stage.can.delays:
            return
        topic = await stage.queue()
        now, step_s = time.time(), 0.04 if stage.can.delay is Delay.BANDS else 0.01
        sent = [Message(new_id(), b"", not_before=now + i * step_s) for i in range(40)]
        await stage.one.publish(topic, sent)
        missing = set(ids(sent))
        for turn in range(8):
            reader = await stage.reader(topic, by=stage.two if turn % 2 else stage.one)
            some = await reader.receive(max_messages=2, timeout_s=0.2)
            missing.difference_update(ids(await stage.acked(reader, some)))
            await reader.aclose()
        reader = await stage.reader(topic)
        async with asyncio.timeout(PATIENCE_S):
            while missing:
                some = await reader.receive(max_messages=self.batch, timeout_s=1)
                missing.difference_update(ids(await stage.acked(reader, some)))

    @staged
    async def test_what_cannot_delay_says_so(self, stage: Stage) -> None:
        """Asked without `bus.bands`: no `not_before`, and no reader where messages are only held."""
        bare = await self.bare()
        try:
            queue, hold = stage.topic(Kind.QUEUE, "work"), stage.topic(Kind.QUEUE, "work.hold")._replace(hold_s=1)
            await bare.declare(queue)
            late = Message(new_id(), b"", not_before=time.time() + 60)
            if not bare.capabilities.delays:
                await refused(Unsupported, bare.publish(queue.name, [late]))
            if bare.capabilities.delay is Delay.HOLDS:
                await bare.declare(hold)
                await refused(Unsupported, bare.subscribe(hold.name))
        finally:
            await bare.aclose()
