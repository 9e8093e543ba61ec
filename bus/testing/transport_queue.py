"""The checks of QUEUE topics."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from bus.errors import StaleDelivery, Unsupported
from bus.message import Delivery, Headers, Message, Position, new_id
from bus.testing.checks import in_order, once_each
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, refused, staged
from bus.transport import Subscription

__all__ = ["QueueChecks"]

HEADERS: Headers = {
    "text": "naïve ☃",
    "bytes": bytes(range(256)),
    "int": -(2**62),
    "float": 0.1,
    "yes": True,
    "none": None,
}


class QueueChecks(Bus):
    """What is promised of a QUEUE."""

    @staged
    async def test_round_trip_bytes_and_headers(self, stage: Stage) -> None:
        """Id, key, headers and body come as they were published, the empty and the large ones, too."""
        topic = await stage.queue()
        bodies = [b"", bytes(range(256)), random.Random(1).randbytes(300_000)]
        messages = [Message(new_id(), body, HEADERS, b"\x00key\xff") for body in bodies] + [Message(new_id(), b"plain")]
        await stage.one.publish(topic, messages)
        came = {one.message.id: one for one in await stage.work(await stage.reader(topic), len(messages))}
        for sent in messages:
            got = came[sent.id]
            assert got.message == sent
            assert {k: type(v) for k, v in got.message.headers.items()} == {k: type(v) for k, v in sent.headers.items()}
            assert got.topic == topic

    @staged
    async def test_order_on_first_delivery(self, stage: Stage) -> None:
        """One reader sees the messages of one key in the order of their publishing, whoever published them."""
        topic = await stage.queue()
        sent = await stage.publish(topic, 70)
        late = [Message(new_id(), b"late") for _ in range(5)]
        await stage.two.publish(topic, late)
        in_order(ids(sent + late), ids(await stage.work(await stage.reader(topic), 75)))

    @staged
    async def test_receive_gives_at_most_what_is_asked(self, stage: Stage) -> None:
        topic = await stage.queue()
        await stage.publish(topic, 5)
        reader = await stage.reader(topic, prefetch=10)
        for _ in range(5):
            assert len(await reader.receive(max_messages=1, timeout_s=5)) == 1
        await stage.nothing(reader)

    @staged
    async def test_receive_returns_with_the_first_message(self, stage: Stage) -> None:
        """It does not wait until `max_messages` are there."""
        topic = await stage.queue()
        reader = await stage.reader(topic, prefetch=10)
        waiting = asyncio.create_task(reader.receive(max_messages=10, timeout_s=15))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await stage.two.publish(topic, [Message(new_id(), b"")])
        assert len(await waiting) == 1
        assert time.monotonic() - began < 5, "an idle reader is not woken"

    @staged
    async def test_receive_times_out_empty(self, stage: Stage) -> None:
        reader = await stage.reader(await stage.queue())
        began = time.monotonic()
        assert len(await reader.receive(max_messages=5, timeout_s=0.2)) == 0
        assert time.monotonic() - began >= 0.15
        assert len(await reader.receive(max_messages=5, timeout_s=0)) == 0

    @staged
    async def test_prefetch_is_a_bound(self, stage: Stage) -> None:
        """Never more unacknowledged; an ack makes room, also for a `receive` that waits already."""
        topic = await stage.queue()
        await stage.publish(topic, 8)
        reader = await stage.reader(topic, prefetch=3)
        held = await stage.take(reader, 3)
        await stage.nothing(reader)
        waiting = asyncio.create_task(reader.receive(max_messages=8, timeout_s=15))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        began = time.monotonic()
        await reader.ack(held[:1])
        assert len(await waiting) == 1
        assert time.monotonic() - began < 5, "an ack does not wake the reader that waits for room"

    @staged
    async def test_cancelled_receive_loses_nothing(self, stage: Stage) -> None:
        """Whenever it is cancelled: what it had taken comes with the next call."""
        topic = await stage.queue()
        reader = await stage.reader(topic, prefetch=200)
        dice = random.Random(7)
        got: list[Delivery] = []
        sent: list[Message] = []
        for _ in range(60):
            receive = asyncio.create_task(reader.receive(max_messages=2, timeout_s=5))
            publish = asyncio.create_task(stage.publish(topic, 2))
            await asyncio.sleep(dice.choice((0, 0, 0.0005, 0.002)))
            receive.cancel()
            try:
                got.extend(await receive)
            except asyncio.CancelledError:
                pass
            sent.extend(await publish)
        got.extend(await stage.take(reader, len(sent) - len(got)))
        once_each(ids(sent), ids(got))
        await reader.ack(got)
        await stage.nothing(reader)

    @staged
    async def test_ack_out_of_order(self, stage: Stage) -> None:
        """Acked in any order, work is gone. A bus that acks a prefix may give again what comes after a gap, acked
        or not, and nothing before it; nothing once the gap is closed."""
        topic = await stage.queue()
        sent = ids(await stage.publish(topic, 6))
        reader = await stage.reader(topic, prefetch=6)
        held = await stage.take(reader, 6)
        for one in (held[4], held[0], held[2]):
            await reader.ack([one])
        await reader.aclose()
        reader = await stage.reader(topic, prefetch=6)
        left = await stage.again(reader, [sent[1], sent[3], sent[5]], sent[1:] if stage.prefix else [])
        for one in reversed(left):
            await reader.ack([one])
        await reader.aclose()
        await stage.nothing(await stage.reader(topic))

    @staged
    async def test_ack_twice_and_of_nothing(self, stage: Stage) -> None:
        """Repeating is harmless, and hits no message that came later."""
        topic = await stage.queue()
        await stage.publish(topic, 2)
        reader = await stage.reader(topic, prefetch=4)
        first = await stage.work(reader, 2)
        await stage.publish(topic, 2)
        second = await stage.take(reader, 2)
        await reader.ack([])
        await reader.ack(first)
        await reader.ack([*first, *first])
        await reader.aclose()
        reader = await stage.reader(topic)
        once_each(ids(second), ids(await stage.work(reader, 2)))
        await stage.nothing(reader)

    @staged
    async def test_acked_work_is_gone_for_all(self, stage: Stage) -> None:
        topic = await stage.queue()
        await stage.publish(topic, 4)
        reader = await stage.reader(topic)
        await stage.work(reader, 4)
        await reader.aclose()
        await stage.nothing(await stage.reader(topic, by=stage.two))

    @staged
    async def test_unacked_after_close_returns(self, stage: Stage) -> None:
        """At once where it is said so, else when the lease has run out; with its count, where there is one."""
        topic = await stage.queue()
        sent = await stage.publish(topic, 3)
        reader = await stage.reader(topic, prefetch=3)
        assert {d.redeliveries for d in await stage.take(reader, 3)} == (
            {0} if stage.can.counts_redeliveries else {None}
        )
        began = time.monotonic()
        await reader.aclose()
        again = await stage.work(await stage.reader(topic, by=stage.two), 3)
        once_each(ids(sent), ids(again))
        if stage.can.releases_on_close:
            assert time.monotonic() - began < 5
        assert {d.redeliveries for d in again} == ({1} if stage.can.counts_redeliveries else {None})

    @staged
    async def test_stale_ack_is_refused(self, stage: Stage) -> None:
        """After its lease is lost, an ack changes nothing and names what was stale; the others are acked."""
        topic = await stage.queue()
        await stage.publish(topic, 3)
        reader = await stage.reader(topic, prefetch=6)
        done, *lost = await stage.take(reader, 3)
        await reader.ack([done])
        try:
            await self.expel(reader)
        except NotImplementedError:
            return
        error = await refused(StaleDelivery, reader.ack([done, *lost]))
        assert list(error.deliveries) == lost, "an ack that was made in time is not stale"
        again = await stage.again(reader, ids(lost), ids([done]) if stage.prefix else [])
        (kept,) = (one for one in again if one.message.id == lost[1].message.id)
        error = await refused(StaleDelivery, reader.ack([lost[0], *(one for one in again if one is not kept)]))
        assert list(error.deliveries) == [lost[0]]
        await reader.aclose()
        reader = await stage.reader(topic, by=stage.two)
        assert ids(await stage.work(reader, 1)) == ids([kept])
        await stage.nothing(reader)

    @staged
    async def test_a_lost_lease_may_show_at_receive(self, stage: Stage) -> None:
        """The reader is given its own work again, has room for it, and only the new deliveries can be acked."""
        topic = await stage.queue()
        sent = ids(await stage.publish(topic, 5))
        reader = await stage.reader(topic, prefetch=3)
        lost = await stage.take(reader, 2)
        try:
            await self.expel(reader)
        except NotImplementedError:
            return
        again: list[Delivery] = []
        while not set(ids(lost)) <= set(ids(again)):  # what it had been sent before may come first, and is lost, too
            again.extend(await stage.take(reader, 1))
        error = await refused(StaleDelivery, reader.ack(lost))
        assert list(error.deliveries) == lost
        assert ids(await stage.acked(reader, again)) == ids(lost)
        assert ids(await stage.work(reader, 3)) == sent[2:]
        await stage.nothing(reader)

    @staged
    async def test_ack_of_anothers_delivery_is_stale(self, stage: Stage) -> None:
        topic = await stage.queue()
        await stage.publish(topic, 1)
        holder = await stage.reader(topic)
        (held,) = await stage.take(holder, 1)
        other = await stage.reader(topic, by=stage.two)
        await refused(StaleDelivery, other.ack([held]))
        await holder.aclose()
        assert ids(await stage.work(other, 1)) == [held.message.id]

    @staged
    async def test_two_topics_do_not_mix(self, stage: Stage) -> None:
        one, two = await stage.queue("one"), await stage.queue("two")
        first, second = await stage.publish(one, 3), await stage.publish(two, 3)
        readers = await stage.reader(one), await stage.reader(two)
        once_each(ids(first), ids(await stage.work(readers[0], 3)))
        once_each(ids(second), ids(await stage.work(readers[1], 3)))
        for reader in readers:
            await stage.nothing(reader, 0.05)

    @staged
    async def test_competing_consumers_share_queue(self, stage: Stage) -> None:
        """Each message goes to one of them, whatever groups they name: a QUEUE has one."""
        topic = await stage.queue()
        sent: list[Message] = []
        done: list[Delivery] = []
        shares: Counter[str] = Counter()
        readers = {
            name: await stage.reader(topic, by=stage.two if name == "b" else stage.one, prefetch=4, group=name)
            for name in "abc"
        }

        async def keep_publishing() -> None:
            while len(shares) < 2:
                sent.extend(await stage.publish(topic, 30, spread=True))
                await asyncio.sleep(0.02)

        async def compete(name: str, reader: Subscription) -> None:
            while not publishing.done() or len(done) < len(sent):
                acked = await stage.acked(reader, await reader.receive(max_messages=4, timeout_s=0.05))
                done.extend(acked)
                if acked:
                    shares[name] += len(acked)

        publishing = asyncio.create_task(keep_publishing())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(publishing, *(compete(name, reader) for name, reader in readers.items()))
        once_each(ids(sent), ids(done))

    @staged
    async def test_no_positions(self, stage: Stage) -> None:
        topic = await stage.queue()
        reader = await stage.reader(topic)
        await refused(Unsupported, reader.seek("earliest"))
        await refused(Unsupported, stage.reader(topic, start="earliest"))
        await refused(Unsupported, stage.reader(topic, start=[Position(0, 0)]))

    @staged
    async def test_growth_is_bounded(self, stage: Stage) -> None:
        """Work that is done leaves nothing behind, on the disk neither."""
        if self.size_bytes() is None:
            return
        topic, sizes = await stage.queue(), []
        reader = await stage.reader(topic, prefetch=50)
        for _ in range(24):
            messages = [Message(new_id(), b"x" * 8000) for _ in range(50)]
            await stage.one.publish(topic, messages)
            await stage.work(reader, 50)
            sizes.append(self.size_bytes() or 0)
        assert max(sizes[16:]) <= 1.25 * max(sizes[:16]), f"the bus grows: {sizes}"

    @staged
    async def test_publish_of_nothing_and_the_same_id_twice(self, stage: Stage) -> None:
        """A transport counts messages, not ids."""
        topic = await stage.queue()
        await stage.one.publish(topic, [])
        message = Message(new_id(), b"")
        await stage.one.publish(topic, [message, message])
        once_each([message.id] * 2, ids(await stage.work(await stage.reader(topic), 2)))

    @staged
    async def test_many_tasks_publish_at_once(self, stage: Stage) -> None:
        topic = await stage.queue()
        calls = await asyncio.gather(*(stage.publish(topic, 5) for _ in range(20)))
        sent = [message for call in calls for message in call]
        once_each(ids(sent), ids(await stage.work(await stage.reader(topic), 100)))
