"""The checks of LOG topics."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from bus.capabilities import SeekBy
from bus.errors import PositionExpired, Unsupported
from bus.message import Delivery, Message, Position, new_id
from bus.testing.checks import in_order
from bus.testing.transport_scene import Bus, Stage, ids, refused, staged, until

__all__ = ["LogChecks"]


@contextmanager
def far_from_utc() -> Iterator[None]:
    """The process's local time is nine hours ahead."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC-9"
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


class LogChecks(Bus):
    """What is promised of a LOG."""

    @staged
    async def test_groups_each_see_the_log(self, stage: Stage) -> None:
        """Every group sees every message, in order, also what was published before it came."""
        topic = await stage.log()
        sent = await stage.publish(topic, 10)
        one = await stage.reader(topic, group="one")
        in_order(ids(sent), ids(await stage.work(one, 10)))
        two = await stage.reader(topic, by=stage.two, group="two")
        in_order(ids(sent), ids(await stage.work(two, 10)))
        late = await stage.publish(topic, 3)
        for reader in (one, two):
            in_order(ids(late), ids(await stage.work(reader, 3)))

    @staged
    async def test_round_trip_in_a_log(self, stage: Stage) -> None:
        topic = await stage.log()
        sent = [
            Message(new_id(), bytes(range(256)) * 1200, {"run": 1, "page": b"\xff"}, b"key"),
            Message(new_id(), b""),
        ]
        await stage.one.publish(topic, sent)
        got = {one.message.id: one.message for one in await stage.work(await stage.reader(topic), 2)}
        assert [got[message.id] for message in sent] == sent

    @staged
    async def test_offsets_count_from_nought(self, stage: Stage) -> None:
        """Each partition's offsets begin at 0 and rise; `Lag.end` is the one to come."""
        topic = await stage.log()
        await stage.publish(topic, 7)
        offsets: dict[int, list[int]] = {}
        for delivery in await stage.work(await stage.reader(topic), 7):
            offsets.setdefault(delivery.partition, []).append(delivery.offset)
        for found in offsets.values():
            assert found[0] == 0 and found == sorted(set(found))

        async def told() -> bool:
            lag = await stage.two.lag(topic)
            assert lag.first is None or set(lag.first.values()) == {0}
            ends = None if lag.end is None else {p: end for p, end in lag.end.items() if end}
            return ends in (None, {p: f[-1] + 1 for p, f in offsets.items()})

        await until(told)

    @staged
    async def test_committed_position(self, stage: Stage) -> None:
        """A group goes on after its last ack; what it had not acked comes again; an old ack moves nothing back."""
        topic = await stage.log()
        sent = await stage.publish(topic, 6)
        reader = await stage.reader(topic, group="g", prefetch=6)
        got = await stage.take(reader, 6)
        await reader.ack([got[2], got[1]])  # all up to the furthest
        await reader.ack(got[:1])
        await reader.aclose()
        reader = await stage.reader(topic, by=stage.two, group="g", prefetch=6)
        in_order(ids(sent[3:]), ids(await stage.work(reader, 3)))
        await stage.nothing(reader)

    @staged
    async def test_the_empty_group_commits_nothing(self, stage: Stage) -> None:
        topic = await stage.log()
        sent = await stage.publish(topic, 3)
        for _ in range(2):
            reader = await stage.reader(topic)
            in_order(ids(sent), ids(await stage.work(reader, 3)))
            await reader.aclose()

    @staged
    async def test_prefetch_of_a_log(self, stage: Stage) -> None:
        topic = await stage.log()
        await stage.publish(topic, 6)
        reader = await stage.reader(topic, prefetch=2)
        held = await stage.take(reader, 2)
        waiting = asyncio.create_task(reader.receive(max_messages=6, timeout_s=15))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await reader.ack(held)
        assert 1 <= len(await waiting) <= 2

    @staged
    async def test_seek_to_the_ends(self, stage: Stage) -> None:
        """As often as one likes, and what was passed over does not count as unacked."""
        topic = await stage.log()
        sent = await stage.publish(topic, 4)
        reader = await stage.reader(topic, prefetch=4)
        for _ in range(2):
            in_order(ids(sent), ids(await stage.take(reader, 4)))
            await reader.seek("earliest")
        await reader.seek("latest")
        await stage.nothing(reader)
        late = await stage.publish(topic, 2)
        in_order(ids(late), ids(await stage.work(reader, 2)))

    @staged
    async def test_start_at_the_ends(self, stage: Stage) -> None:
        """`start` goes before the committed position."""
        topic = await stage.log()
        sent = await stage.publish(topic, 4)
        reader = await stage.reader(topic, group="g")
        await stage.work(reader, 4)
        await reader.aclose()
        in_order(ids(sent), ids(await stage.work(await stage.reader(topic, group="g", start="earliest"), 4)))
        reader = await stage.reader(topic, start="latest")
        late = await stage.publish(topic, 1)
        in_order(ids(late), ids(await stage.work(reader, 1)))

    @staged
    async def test_seek_by_position(self, stage: Stage) -> None:
        """To the very message, or just behind the last one; beyond is `PositionExpired`; or all is refused."""
        topic = await stage.log()
        await stage.publish(topic, 5)
        reader = await stage.reader(topic)
        got = await stage.work(reader, 5)
        there = got[2].position
        if SeekBy.POSITION not in stage.can.seek_by:
            await refused(Unsupported, reader.seek([there]))
            await refused(Unsupported, stage.reader(topic, start=[there]))
            return
        await reader.seek([there._replace(index=7)])  # the index is the reader's own
        in_order(ids(got[2:3]), ids(await stage.work(reader, 1)))
        in_order(ids(got[2:3]), ids(await stage.work(await stage.reader(topic, start=[there]), 1)))
        end = got[4].position._replace(offset=got[4].offset + 1)
        await reader.seek([end])
        await stage.nothing(reader)
        beyond = end._replace(offset=end.offset + 1)
        error = await refused(PositionExpired, reader.seek([beyond]))
        assert (error.asked, error.end) == (beyond, end)
        await refused(PositionExpired, stage.reader(topic, start=[beyond]))
        await refused(PositionExpired, reader.seek([Position(99, 0)]))

    @staged
    async def test_seek_by_time(self, stage: Stage) -> None:
        """The first message published at or after it; a time without a zone is UTC; or all is refused."""
        topic = await stage.log()
        before = datetime.now(UTC)
        await stage.publish(topic, 3)
        await asyncio.sleep(0.05)
        between = datetime.now(UTC)
        await asyncio.sleep(0.05)
        late = await stage.publish(topic, 2)
        reader = await stage.reader(topic)
        if SeekBy.TIME not in stage.can.seek_by:
            await refused(Unsupported, reader.seek(between))
            await refused(Unsupported, stage.reader(topic, start=between))
            return
        await reader.seek(between)
        in_order(ids(late), ids(await stage.work(reader, 2)))
        await reader.seek(before)
        assert len(await stage.work(reader, 5)) == 5
        with far_from_utc():
            reader = await stage.reader(topic, start=between.replace(tzinfo=None))
        in_order(ids(late), ids(await stage.work(reader, 2)))
        await reader.seek(datetime(2100, 1, 1, tzinfo=UTC))
        await stage.nothing(reader)

    @staged
    async def test_trimmed_positions_expire(self, stage: Stage) -> None:
        """What is past its retention may go, never to come back under another offset; a reader is told, not moved."""
        topic = await stage.log(retention_s=0.3)
        slow = await stage.reader(topic, prefetch=9)
        sent = await stage.publish(topic, 4)
        try:
            await self.trim(stage.one, topic)
        except NotImplementedError:
            return
        assert await stage.log(retention_s=3600) == topic
        late = await stage.publish(topic, 1)
        came: list[Delivery] = []  # what the reader had been sent before may still come
        try:
            while len(came) < 5:
                came.extend(await slow.receive(max_messages=1, timeout_s=1))
        except PositionExpired as error:
            assert error.asked == Position(0, came[-1].offset + 1 if came else 0)
            assert 4 <= error.first.offset <= error.end.offset
            await refused(PositionExpired, slow.receive(max_messages=1, timeout_s=1))
        in_order(ids(sent + late)[: len(came)], ids(came))
        await refused(PositionExpired, slow.seek([Position(0, 3)]))
        expired = await refused(PositionExpired, stage.reader(topic, start=[Position(0, 0)]))
        assert expired.asked == Position(0, 0)
        await slow.seek("earliest")
        (got,) = await stage.work(slow, 1)
        assert got.position == expired.first and got.offset >= 4
        assert got.message.id not in ids(sent)

    @staged
    async def test_a_log_is_kept_for_its_retention(self, stage: Stage) -> None:
        """Acked or not."""
        topic = await stage.log(retention_s=4)
        await stage.publish(topic, 3)
        await stage.work(await stage.reader(topic, group="g"), 3)
        await asyncio.sleep(0.5)
        await stage.publish(topic, 1)
        await stage.work(await stage.reader(topic, start="earliest"), 4)

    @staged
    async def test_what_a_group_has_not_acked_is_kept(self, stage: Stage) -> None:
        """A registered group holds the log back past its retention, where the log can tell."""
        if not self.holds_back:
            return
        topic = await stage.log(retention_s=0.3)
        reader = await stage.reader(topic, group="sink", prefetch=9)
        sent = await stage.publish(topic, 4)
        got = await stage.take(reader, 4)
        await reader.ack(got[:2])

        async def trimmed() -> bool:
            return ((await stage.two.lag(topic)).first or {}).get(0) == 2

        await until(trimmed)
        await asyncio.sleep(0.5)
        await reader.aclose()
        reader = await stage.reader(topic, by=stage.two, group="sink")
        in_order(ids(sent[2:]), ids(await stage.work(reader, 2)))

    @staged
    async def test_two_logs_do_not_mix(self, stage: Stage) -> None:
        one, two = await stage.log("one"), await stage.log("two")
        first, second = await stage.publish(one, 3), await stage.publish(two, 3)
        reader = await stage.reader(one, group="g")
        in_order(ids(first), ids(await stage.work(reader, 3)))
        await stage.nothing(reader)
        in_order(ids(second), ids(await stage.work(await stage.reader(two, group="g"), 3)))

    @staged
    async def test_a_log_delays_nothing(self, stage: Stage) -> None:
        topic = await stage.log()
        await refused(Unsupported, stage.publish(topic, 1, not_before=time.time() + 1))
        await stage.nothing(await stage.reader(topic))

    @staged
    async def test_a_log_wakes_its_reader(self, stage: Stage) -> None:
        topic = await stage.log()
        reader = await stage.reader(topic, group="g")
        waiting = asyncio.create_task(reader.receive(max_messages=10, timeout_s=15))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await stage.two.publish(topic, [Message(new_id(), b"")])
        assert len(await waiting) == 1
        assert time.monotonic() - began < 5

    @staged
    async def test_cancelled_receive_of_a_log(self, stage: Stage) -> None:
        topic = await stage.log()
        sent = await stage.publish(topic, 20)
        reader = await stage.reader(topic, prefetch=20)
        got: list[Delivery] = []
        for turn in range(40):
            receive = asyncio.create_task(reader.receive(max_messages=1, timeout_s=5))
            await asyncio.sleep(0.0005 * (turn % 3))
            receive.cancel()
            try:
                got.extend(await receive)
            except asyncio.CancelledError:
                pass
            if len(got) == 20:
                break
        got.extend(await stage.take(reader, 20 - len(got)))
        in_order(ids(sent), ids(got))
