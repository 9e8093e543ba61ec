"""The checks of what is built over any transport: nack, delay, lanes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from bus.errors import StaleDelivery, Unsupported
from bus.lanes import LaneReader
from bus.message import Delivery, Message, new_id
from bus.testing.checks import no_loss, once_each
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, refused, staged
from bus.topic import LANE_WEIGHTS, LANES
from bus.work import delay, nack

__all__ = ["VerbChecks"]


class Crash(Exception):
    """Where the process would have died."""


class CrashingReader:
    """A reader whose process dies before its ack."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        raise Crash


class VerbChecks(Bus):
    """What holds of publish-then-ack, and of lanes, on every transport."""

    @staged
    async def test_nack_redelivers_with_attempt(self, stage: Stage) -> None:
        """Again, the same message with attempt + 1, and nothing else is left."""
        topic = await stage.queue()
        (sent,) = await stage.publish(topic, 1, headers={"page": b"p"})
        reader = await stage.reader(topic)
        for attempt in range(3):
            (got,) = await stage.take(reader, 1)
            assert (got.message.id, got.message.attempt, got.message.headers["page"]) == (sent.id, attempt, b"p")
            await nack(stage.one, reader, got, 0)
        (got,) = await stage.work(reader, 1)
        assert got.message.attempt == 3
        await stage.nothing(reader)

    @staged
    async def test_nack_delay_not_before(self, stage: Stage) -> None:
        """Not before its time; refused where the transport cannot delay, and then nothing has changed."""
        topic = await stage.queue()
        await stage.publish(topic, 1)
        reader = await stage.reader(topic)
        (got,) = await stage.take(reader, 1)
        due = time.time() + 0.3
        if not stage.can.delays:
            await refused(Unsupported, nack(stage.one, reader, got, 0.3))
            await reader.aclose()
            assert len(await stage.work(await stage.reader(topic), 1)) == 1
            return
        await nack(stage.one, reader, got, 0.3)
        (again,) = await stage.work(reader, 1)
        assert stage.in_time(due)
        assert again.message.attempt == 1

    @staged
    async def test_delay_keeps_the_attempt(self, stage: Stage) -> None:
        topic = await stage.queue()
        (sent,) = await stage.publish(topic, 1, headers={"attempt": 2})
        reader = await stage.reader(topic)
        await delay(stage.one, reader, (await stage.take(reader, 1))[0], 0.1 if stage.can.delays else 0)
        (got,) = await stage.work(reader, 1)
        assert got.message == sent

    @staged
    async def test_crash_between_publish_and_ack_duplicates_never_loses(self, stage: Stage) -> None:
        topic = await stage.queue()
        (sent,) = await stage.publish(topic, 1)
        reader = await stage.reader(topic, by=stage.two)
        (got,) = await stage.take(reader, 1)
        try:
            await nack(stage.two, CrashingReader(), got, 0)
        except Crash:
            pass
        await reader.aclose()
        left = await stage.work(await stage.reader(topic), 2)
        assert [(d.message.id, d.message.attempt) for d in left] in (
            [(sent.id, 0), (sent.id, 1)],
            [(sent.id, 1), (sent.id, 0)],
        )

    @staged
    async def test_nack_of_a_lost_delivery(self, stage: Stage) -> None:
        """The ack is refused; the copy is there, and so is the original: twice, not lost."""
        topic = await stage.queue()
        (sent,) = await stage.publish(topic, 1)
        reader = await stage.reader(topic)
        (got,) = await stage.take(reader, 1)
        try:
            await self.expel(reader)
        except NotImplementedError:
            return
        await refused(StaleDelivery, nack(stage.one, reader, got, 0))
        once_each([sent.id] * 2, ids(await stage.work(reader, 2)))

    async def _lanes(self, stage: Stage, prefetch: int = 64) -> tuple[dict[str, str], LaneReader]:
        topics = {lane: await stage.queue(f"requests.{lane}" if lane else "requests") for lane in LANES}
        return topics, await LaneReader.open(stage.one, topics, prefetch=prefetch)

    @staged
    async def test_bulk_lane_does_not_starve(self, stage: Stage) -> None:
        """Of full lanes each gets its share by weight, whatever the size of a `receive`."""
        topics, reader = await self._lanes(stage)
        for topic in topics.values():
            await stage.publish(topic, 150)

        async def read(got: Counter[str]) -> None:
            some = await reader.receive(max_messages=min(self.batch, 13), timeout_s=5)
            taken = Counter(delivery.topic for delivery in some)
            got.update(taken)
            await reader.ack(some)
            for topic, count in taken.items():  # a lane that is emptied while another fills is not full
                await stage.publish(topic, count)

        first: Counter[str] = Counter()
        while len(first) < len(LANES):  # a server fills them one after the other
            await read(first)
        got: Counter[str] = Counter()
        while got.total() < 117:
            await read(got)
        rounds = got.total() / sum(LANE_WEIGHTS.values())
        for lane, topic in topics.items():
            share = rounds * LANE_WEIGHTS[lane]
            assert abs(got[topic] - share) <= (max(3, share / 2) if stage.can.shared_between_hosts else 3), got
        await reader.aclose()

    @staged
    async def test_lanes_are_one(self, stage: Stage) -> None:
        """Nothing is lost or left over, a wait ends with a message of any lane, and acks find their lane."""
        topics, reader = await self._lanes(stage)
        sent = [message for topic in topics.values() for message in await stage.publish(topic, 20)]
        done: list[Delivery] = []
        while len(done) < 60:
            some = await reader.receive(max_messages=self.batch, timeout_s=5)
            assert 0 < len(some) <= self.batch
            done.extend(some)
            await reader.ack(some)
        once_each(ids(sent), ids(done))
        for topic in topics.values():
            waiting = asyncio.create_task(reader.receive(max_messages=5, timeout_s=15))
            await asyncio.sleep(0.02)
            message = Message(new_id(), b"")
            began = time.monotonic()
            await stage.two.publish(topic, [message])
            (got,) = await waiting
            assert got.message.id == message.id and time.monotonic() - began < 5
            await reader.ack([got])
        assert len(await reader.receive(max_messages=5, timeout_s=0.05)) == 0
        await reader.aclose()
        for topic in topics.values():
            await stage.nothing(await stage.reader(topic), 0.05)

    @staged
    async def test_cancelled_receive_of_lanes(self, stage: Stage) -> None:
        topics, reader = await self._lanes(stage)
        got: list[Delivery] = []
        sent: list[Message] = []
        for turn in range(30):
            receive = asyncio.create_task(reader.receive(max_messages=3, timeout_s=5))
            await asyncio.sleep(0.0005 * (turn % 4))
            sent.extend(await stage.publish(topics[LANES[turn % 3]], 1))
            receive.cancel()
            try:
                got.extend(await receive)
            except asyncio.CancelledError:
                pass
        async with asyncio.timeout(PATIENCE_S):
            while len(got) < len(sent):
                got.extend(await reader.receive(max_messages=3, timeout_s=1))
        once_each(ids(sent), ids(got))
        await reader.ack(got)
        no_loss(ids(sent), ids(got))
        await reader.aclose()

    @staged
    async def test_stale_acks_of_lanes(self, stage: Stage) -> None:
        """Stale ones of several lanes are named together; the others are acked."""
        topics, reader = await self._lanes(stage)
        for topic in topics.values():
            await stage.publish(topic, 1)
        held: list[Delivery] = []
        while len(held) < 3:
            held.extend(await reader.receive(max_messages=3, timeout_s=5))
        strange = [one._replace(token=None) for one in held[:2]]
        error = await refused(StaleDelivery, reader.ack([*strange, held[2]]))
        assert sorted(ids(error.deliveries)) == sorted(ids(strange))
        await reader.aclose()
        for one in held:
            left = await stage.reader(one.topic)
            if one is not held[2]:
                assert ids(await stage.work(left, 1)) == ids([one])
            await stage.nothing(left, 0.05)
