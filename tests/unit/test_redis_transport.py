"""What is particular to the bus in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import redis

from adapters.redis import queue, wire
from adapters.redis.transport import RedisTransport
from bus.errors import CodecError, ConnectionLost, PositionExpired, PublishUnconfirmed, StaleDelivery, TransportError
from bus.message import Delivery, Message, Position, new_id
from bus.testing.checks import in_order, no_loss, once_each
from bus.testing.transport_scene import PATIENCE_S, ids, insist, until
from bus.topic import Kind, Topic
from bus.transport import Subscription
from tests.servers import Server, kinds, server

KIND = kinds("redis")[0]
on_redis = pytest.mark.parametrize("server_url", [KIND], indirect=True)
DAY_S = 86400.0
LATE_S = 2.0  # how long Redis may put a write off, with everysec, while the disk is busy


def play(url: str, check: Callable[[RedisTransport, Topic, redis.Redis], Awaitable[None]], kind: Kind) -> None:
    """With one connection, one topic that no other test has, and a client that does what nobody should."""

    async def run() -> None:
        transport = await RedisTransport.connect(url, lease_s=3600)
        topic = Topic(f"particular.{new_id()}", kind, None if kind is Kind.QUEUE else 60.0)
        try:
            with redis.Redis.from_url(url) as meddler:
                await transport.declare(topic)
                async with asyncio.timeout(60):
                    await check(transport, topic, meddler)
        finally:
            await transport.aclose()

    asyncio.run(run())


def messages(count: int, body: bytes = b"") -> list[Message]:
    return [Message(new_id(), body) for _ in range(count)]


async def drain(reader: Subscription, count: int) -> list[str]:
    got: list[str] = []
    while len(got) < count:
        some = await insist(partial(reader.receive, max_messages=100, timeout_s=1))
        await reader.ack(some)
        got.extend(ids(some))
    return got


@on_redis
def test_a_waiting_reader_is_woken_by_all_that_is_not_new_work(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it looked by itself only once an hour."""
    monkeypatch.setattr(queue, "LOOK_S", 3600.0)

    async def check(transport: RedisTransport, topic: Topic, _: redis.Redis) -> None:
        first = await transport.subscribe(topic.name, prefetch=5)
        await transport.publish(topic.name, sent := messages(3))
        held = await first.receive(max_messages=5, timeout_s=5)
        second = await transport.subscribe(topic.name, prefetch=2)
        waiting = asyncio.create_task(second.receive(max_messages=5, timeout_s=20))
        await asyncio.sleep(0.1)
        third = await transport.subscribe(topic.name, prefetch=5)
        last = asyncio.create_task(third.receive(max_messages=5, timeout_s=20))
        await asyncio.sleep(0.1)
        await first.aclose()
        got = [*await waiting, *await last]  # what has no room in one reader wakes the next
        once_each(ids(sent), ids(got))
        assert len(held) == 3 and {one.redeliveries for one in got} == {1}
        await second.aclose()
        await third.aclose()

        fourth = await transport.subscribe(topic.name)
        await drain(fourth, 3)
        waiting = asyncio.create_task(fourth.receive(max_messages=5, timeout_s=20))
        await asyncio.sleep(0.1)
        now = time.time()
        late = [
            one._replace(not_before=now + wait_s) for one, wait_s in zip(messages(3), (3600, 0.6, 0.3), strict=True)
        ]
        for one in late:
            await transport.publish(topic.name, [one])
        in_order([late[2].id], ids(await waiting))
        assert 0.3 <= time.time() - now < 3
        in_order([late[1].id], ids(await fourth.receive(max_messages=5, timeout_s=20)))
        assert 0.6 <= time.time() - now < 3
        assert (await transport.lag(topic.name)).delayed == 1

    play(server_url, check, Kind.QUEUE)


@on_redis
def test_work_leaves_nothing_behind(server_url: str) -> None:
    """Acked entries, and readers that have left, are gone from Redis; readers whose leases ran out, after a look."""

    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        keys = transport._topics[topic.name].keys
        readers = [await transport.subscribe(topic.name) for _ in range(3)]
        for reader in readers:
            await transport.publish(topic.name, messages(5))
            await drain(reader, 5)
        await readers[0].aclose()
        assert meddler.delete(keys.owner + str(readers[1]._owner)) == 1  # type: ignore[attr-defined]

        async def alone() -> bool:
            await readers[2].receive(max_messages=1, timeout_s=0.2)
            return len(meddler.xinfo_consumers(keys.stream, "crawlbus")) == 1

        await until(alone)
        assert meddler.xlen(keys.stream) == 0

    play(server_url, check, Kind.QUEUE)


@on_redis
@pytest.mark.parametrize("lost", ["reply", "acks"])
def test_what_a_reader_was_given_without_its_knowledge_comes(server_url: str, lost: str) -> None:
    """The reply to its read was lost with the connection; or the server lost its acks with its newest writes."""

    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        keys = transport._topics[topic.name].keys
        reader = await transport.subscribe(topic.name, prefetch=4)
        assert isinstance(reader, queue.QueueSubscription)
        await transport.publish(topic.name, known := messages(2))
        held = await reader.receive(max_messages=2, timeout_s=5)
        waiting = asyncio.create_task(insist(partial(reader.receive, max_messages=2, timeout_s=20)))
        await asyncio.sleep(0.1)
        unknown = messages(1)[0]
        with meddler.pipeline() as given:  # in one step, so that the read that waits does not get it
            given.xadd(keys.stream, {"m": wire.pack(unknown), "b": b""})
            given.xreadgroup("crawlbus", str(reader._owner), {keys.stream: ">"})
            given.execute()
        if lost == "reply":
            assert reader._line._connection is not None and reader._line._connection._writer is not None
            reader._line._connection._writer.transport.abort()
        else:
            transport._server.run_id = "of a server that was started again"
            await transport.publish(topic.name, more := messages(1))  # ends the read that waits
            in_order(ids(more), ids(await waiting))
            waiting = asyncio.create_task(insist(partial(reader.receive, max_messages=2, timeout_s=20)))
        got = await waiting
        in_order([unknown.id], ids(got))
        await reader.ack([*held, *got])
        assert ids(held) == ids(known)

    play(server_url, check, Kind.QUEUE)


@on_redis
@pytest.mark.parametrize("lost", ["stream", "group", "all"])
def test_a_queue_whose_keys_are_lost_goes_on(server_url: str, lost: str) -> None:
    """As after a failover that lost them, while a reader waits, and while nobody does."""

    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        keys = transport._topics[topic.name].keys
        reader = await transport.subscribe(topic.name)

        def lose() -> None:
            if lost == "stream":
                meddler.delete(keys.stream)
            elif lost == "group":
                meddler.xgroup_destroy(keys.stream, "crawlbus")
            else:
                meddler.delete(*meddler.keys(f"crawlbus:bus:{{{topic.name}}}*"))

        for _ in range(2):
            lose()
            await transport.publish(topic.name, sent := messages(3))
            in_order(ids(sent), await drain(reader, 3))
            waiting = asyncio.create_task(drain(reader, 3))
            await asyncio.sleep(0.1)
            lose()
            await transport.publish(topic.name, sent := messages(3))
            in_order(ids(sent), await waiting)

    play(server_url, check, Kind.QUEUE)


@on_redis
def test_a_log_that_lost_its_end_says_so(server_url: str) -> None:
    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        reader = await transport.subscribe(topic.name, group="g")
        await transport.publish(topic.name, messages(5))
        await drain(reader, 5)
        meddler.delete(*meddler.keys(f"crawlbus:bus:{{{topic.name}}}*"))
        await transport.publish(topic.name, sent := messages(2))
        with pytest.raises(PositionExpired, match="0/5 is outside"):
            await reader.receive(max_messages=5, timeout_s=5)
        await reader.seek("earliest")
        in_order(ids(sent), await drain(reader, 2))

    play(server_url, check, Kind.LOG)


@pytest.mark.parametrize("kept", [5, 10], ids=["newest lost", "nothing lost"])
def test_a_log_whose_offsets_are_given_again_says_so(kept: int) -> None:
    """A server that comes back without its last entries gives their offsets to others."""
    with server(KIND, appendfsync="always") as one:

        async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
            reader = await transport.subscribe(topic.name, group="g", start="earliest")
            first, last = messages(5), messages(5)
            await transport.publish(topic.name, first)
            before = {key: meddler.dump(key) or b"" for key in meddler.keys("crawlbus:*")}
            await transport.publish(topic.name, last)
            in_order(ids(first + last), await drain(reader, 10))
            if kept == 5:
                for key, value in before.items():
                    meddler.restore(key, 0, value, replace=True)
            one.kill()
            one.start()
            other = await RedisTransport.connect(one.url)
            await other.publish(topic.name, more := messages(7))
            await other.aclose()
            if kept == 10:
                in_order(ids(more), await drain(reader, 7))
                return
            for _ in range(2):
                with pytest.raises(PositionExpired, match=r"0/10 .* 0/0 to 0/12"):
                    await drain(reader, 1)
            await reader.seek([Position(0, 5)])
            in_order(ids(more), await drain(reader, 7))

        play(one.url, check, Kind.LOG)


@on_redis
def test_a_quiet_log_that_was_trimmed_goes_on_after_a_restart(server_url: str) -> None:
    """What was read last is gone because it is old: nobody can compare it, and nothing is wrong."""

    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        await transport.declare(topic._replace(retention_s=0.2))
        reader = await transport.subscribe(topic.name, group="g", start="earliest")
        await transport.publish(topic.name, messages(3))
        await drain(reader, 3)

        async def trimmed() -> bool:
            return (await transport.lag(topic.name)).first == {0: 3}

        await until(trimmed)
        transport._server.run_id = "of a server that was started again"
        await transport.publish(topic.name, more := messages(2))
        in_order(ids(more), await drain(reader, 2))

    play(server_url, check, Kind.LOG)


@on_redis
def test_a_group_that_is_long_gone_holds_nothing_back(server_url: str) -> None:
    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        keys = transport._topics[topic.name].keys
        await transport.declare(topic._replace(retention_s=0.2))
        await transport.subscribe(topic.name, group="gone")
        await transport.publish(topic.name, messages(4))
        for days, first in ((6.9, 0), (7.1, 4)):
            seen_us = (time.time() - days * DAY_S) * 1e6
            meddler.hset(keys.groups, "gone", f"0 {seen_us:.0f}")
            await asyncio.sleep(0.3)

            async def trimmed(first: int = first) -> bool:
                return (await transport.lag(topic.name)).first == {0: first}

            await until(trimmed)
        assert meddler.xlen(keys.stream) == 0

    play(server_url, check, Kind.LOG)


@on_redis
def test_what_is_no_message_does_not_stop_a_reader(server_url: str) -> None:
    async def check(transport: RedisTransport, topic: Topic, meddler: redis.Redis) -> None:
        keys = transport._topics[topic.name].keys
        meddler.xadd(keys.stream, {"strange": "one"})
        meddler.xadd(keys.stream, {"m": b"\xc1", "b": b"body"})
        await transport.publish(topic.name, sent := messages(1))
        with pytest.raises(CodecError):
            await transport.publish(topic.name, [Message(new_id(), b"", {"n": 2**70})])
        in_order(["", "", *ids(sent)], await drain(await transport.subscribe(topic.name), 3))

    play(server_url, check, Kind.QUEUE)


@on_redis
@pytest.mark.parametrize("kind", Kind)
def test_more_than_goes_in_one_call(server_url: str, kind: Kind) -> None:
    async def check(transport: RedisTransport, topic: Topic, _: redis.Redis) -> None:
        sent = [*messages(3000, b"x" * 1000), *messages(1, bytes(8 * 1024 * 1024)), *messages(3)]
        await transport.publish(topic.name, sent)
        reader = await transport.subscribe(topic.name, prefetch=5000)
        got: list[Delivery] = []
        while len(got) < len(sent):
            got.extend(await reader.receive(max_messages=5000, timeout_s=5))
        await reader.ack(got)
        assert [one.message for one in got] == sent
        assert (await transport.lag(topic.name)).ready == (0 if kind is Kind.QUEUE else len(sent))

    play(server_url, check, kind)


class Crew:
    """Publishers and readers that go on while their server is killed; what they know, with the time."""

    def __init__(self) -> None:
        self.confirmed: dict[str, float] = {}
        self.acked: dict[str, float] = {}
        self.again: list[str] = []  # came after an ack had returned
        self.publishing = True
        self.drained = False

    async def publish(self, transport: RedisTransport, topic: str) -> None:
        while self.publishing:
            batch = messages(5, b"x" * 300)
            try:
                await transport.publish(topic, batch)
            except (PublishUnconfirmed, ConnectionLost):
                await asyncio.sleep(0.02)
            else:
                self.confirmed.update(dict.fromkeys(ids(batch), time.monotonic()))

    async def read(self, transport: RedisTransport, topic: str) -> None:
        reader = await transport.subscribe(topic, prefetch=20)
        while not self.drained:
            try:
                some = await reader.receive(max_messages=10, timeout_s=0.2)
                self.again.extend(id_ for id_ in ids(some) if id_ in self.acked)
                await insist(partial(reader.ack, some))
            except StaleDelivery as error:
                some = [one for one in some if one not in error.deliveries]
            except TransportError:
                await asyncio.sleep(0.02)
                continue
            self.acked.update(dict.fromkeys(ids(some), time.monotonic()))


@pytest.mark.parametrize(("appendfsync", "late_s"), [("always", 0.0), ("everysec", LATE_S)])
def test_a_server_killed_in_the_middle_loses_nothing(appendfsync: str, late_s: float) -> None:
    """Of what was confirmed, and of acks; with everysec but for what was still to be written."""
    with server(KIND, appendfsync=appendfsync) as one:
        crew, killed = asyncio.run(_kill_thrice(one))

    def just_before(at: float) -> bool:
        return any(0 <= kill - at < late_s for kill in killed)

    no_loss((id_ for id_, at in crew.confirmed.items() if not just_before(at)), crew.acked)
    assert not [id_ for id_ in crew.again if not just_before(crew.acked[id_])]
    assert len(crew.confirmed) > 300


async def _kill_thrice(one: Server) -> tuple[Crew, list[float]]:
    crew, killed = Crew(), []
    topic = Topic("killed", Kind.QUEUE)
    transports = [await RedisTransport.connect(one.url) for _ in range(2)]
    for transport in transports:
        await transport.declare(topic)
    publishers = [asyncio.create_task(crew.publish(transport, topic.name)) for transport in transports]
    readers = [asyncio.create_task(crew.read(transport, topic.name)) for transport in transports]
    for _ in range(3):
        known = len(crew.confirmed)
        deadline = time.monotonic() + PATIENCE_S
        while len(crew.confirmed) < known + 100 or time.monotonic() < deadline - PATIENCE_S + 0.5:
            assert time.monotonic() < deadline, "publishers do not go on"
            await asyncio.sleep(0.02)
        killed.append(time.monotonic())
        await asyncio.to_thread(one.kill)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(one.start)
    crew.publishing = False
    await asyncio.gather(*publishers)

    async def empty() -> bool:
        lag = await insist(partial(transports[0].lag, topic.name))
        return (lag.ready, lag.unacked) == (0, 0)

    await until(empty)
    crew.drained = True
    await asyncio.gather(*readers)
    for transport in transports:
        await transport.aclose()
    return crew, killed
