"""What is particular to the bus on RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiormq
import pytest
from aiormq.channel import Channel
from aiormq.connection import Connection

from adapters.rabbitmq import publisher, reader, topology
from adapters.rabbitmq.address import Address
from adapters.rabbitmq.errors import Undeclared, within
from adapters.rabbitmq.log import WINDOW, LogSubscription
from adapters.rabbitmq.queue import QueueSubscription
from adapters.rabbitmq.transport import RabbitTransport
from bus.errors import (
    BusError,
    ConnectionLost,
    Misconfigured,
    OverLimit,
    PositionExpired,
    PublishUnconfirmed,
    StaleDelivery,
    TransportError,
    Unsupported,
)
from bus.message import Delivery, Message, Position, new_id
from bus.testing.checks import no_loss
from bus.testing.transport_scene import ids, insist, until
from bus.topic import Kind, Topic
from bus.transport import Subscription
from tests.servers import Server, free_port, kinds, server

every_version = pytest.mark.parametrize("server_url", kinds("rabbitmq"), indirect=True)
one_version = pytest.mark.parametrize("server_url", kinds("rabbitmq")[:1], indirect=True)
LIMIT_BYTES = 1_000_000


def work() -> Topic:
    return Topic(f"check.{new_id()}", Kind.QUEUE)


def record() -> Topic:
    return Topic(f"check.{new_id()}", Kind.LOG, 1.0)


def play(url: str, check: Callable[[RabbitTransport], Awaitable[None]], *, lease_s: float = 30.0) -> None:
    async def run() -> None:
        transport = await RabbitTransport.connect(url, lease_s=lease_s)
        try:
            await check(transport)
        finally:
            await transport.aclose()

    asyncio.run(run())


async def taken(reader: Subscription, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        found.extend(await reader.receive(max_messages=count, timeout_s=5))
    return found


async def raw(url: str) -> aiormq.abc.AbstractConnection:
    return await aiormq.connect(url)


def refusal(url: str, error: type[BusError]) -> str:
    async def connect() -> None:
        await (await RabbitTransport.connect(url)).aclose()

    with pytest.raises(error) as found:
        asyncio.run(connect())
    assert "\n" not in str(found.value) and "hush" not in str(found.value)
    return str(found.value)


# what a user may get wrong


@every_version
def test_refusals_name_what_to_mend(server_url: str) -> None:
    assert "name or the password" in refusal(server_url.replace("guest:guest", "guest:hush"), Misconfigured)
    assert "virtual host 'nowhere'" in refusal(server_url + "nowhere", Misconfigured)
    assert "TLS" in refusal(server_url.replace("amqp:", "amqps:"), Misconfigured)
    assert "not reachable" in refusal(f"amqp://guest:hush@127.0.0.1:{free_port()}/", ConnectionLost)
    assert "not reachable" in refusal("amqp://guest:hush@nowhere.invalid/", ConnectionLost)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("amqp://u:hush@h/?colour=red", "'colour'"),
        ("amqp://u:hush@h/?heartbeat=1", "heartbeat='1'"),
        ("amqp://u:hush@h/?ca=ca.pem", "ca="),
        ("amqps://u:hush@h/?ca=/nowhere/ca.pem", "ca=/nowhere/ca.pem"),
        ("amqps://u:hush@h/?key=key.pem", "cert="),
        ("amqps://u:hush@h/?verify=maybe", "verify='maybe'"),
        ("amqp://u:hush@/", "names no host"),
        ("amqp://u:hush@h:70000/", "port 70000"),
    ],
)
def test_urls_that_are_refused(url: str, named: str) -> None:
    with pytest.raises(Misconfigured) as found:
        Address.parse(url, 60.0)
    assert named in str(found.value) and "hush" not in str(found.value)


def test_what_a_url_says() -> None:
    address = Address.parse("amqp://me:a%40b@h1,h2:5673,[::1]/a%2Fb?heartbeat=7", 60.0)
    assert address.hosts == ("h1:5672", "h2:5673", "[::1]:5672")
    assert (address.user, address.vhost, address.heartbeat_s, address.lease_s) == ("me", "a/b", 7, 21.0)
    assert address.urls[1] == "amqp://me:a%40b@h2:5673/a%2Fb?heartbeat=7"
    for url in ("amqp://h", "amqp://h/", "amqp://h/%2F"):
        assert Address.parse(url, 60.0).vhost == "/"


@one_version
def test_hosts_are_tried_in_turn(server_url: str) -> None:
    url = server_url.replace("@", f"@127.0.0.1:{free_port()},")

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        await transport.publish(topic.name, [Message(new_id(), b"")])

    play(url.rstrip("/"), check)


@every_version
def test_a_queue_with_other_arguments(server_url: str) -> None:
    async def check(transport: RabbitTransport) -> None:
        topic = work()
        connection = await raw(server_url)
        await (await connection.channel()).queue_declare(topic.name, durable=True)
        with pytest.raises(Misconfigured, match="other arguments"):
            await transport.declare(topic)
        with pytest.raises(Misconfigured, match="no rights"):
            await transport.declare(Topic("amq.mine", Kind.QUEUE))
        await (await connection.channel()).queue_delete(topic.name)
        await connection.close()

    play(server_url, check)


@every_version
def test_another_retention_is_said_and_left(server_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(transport: RabbitTransport) -> None:
        topic = record()
        await transport.declare(topic)
        await transport.declare(topic._replace(retention_s=3600.0))

    play(server_url, check)
    assert [r.levelname for r in caplog.records if "retention" in r.message] == ["WARNING"]


def test_the_drivers_log_is_quiet_for_us_alone(caplog: pytest.LogCaptureFixture) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    driver = logging.getLogger("aiormq")
    before = driver.level
    try:
        for level, others in ((logging.NOTSET, {"ERROR"}), (logging.DEBUG, {"DEBUG", "ERROR"})):
            driver.setLevel(level)
            with caplog.at_level(logging.DEBUG):
                refusal(url, ConnectionLost)
                assert {r.levelname for r in caplog.records if r.name.startswith("aiormq")} == others - {"ERROR"}
                caplog.clear()
                with pytest.raises(ConnectionError):
                    asyncio.run(raw(url))
                assert {r.levelname for r in caplog.records if r.name.startswith("aiormq")} == others
                caplog.clear()
    finally:
        driver.setLevel(before)


# what others do to a queue


@every_version
def test_a_message_of_somebody_else_is_a_body(server_url: str) -> None:
    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        connection = await raw(server_url)
        channel = await connection.channel()
        for body in (b"", b"\xc1", b"\xc1\x00\x00\x00\x01\xc1", b"\xc1\xff\xff\xff\xff{}", b'{"a": 1}'):
            await channel.basic_publish(body, routing_key=topic.name)
        await connection.close()
        got = await (await transport.subscribe(topic.name)).receive(max_messages=9, timeout_s=5)
        assert [d.message.body for d in got][-1:] == [b'{"a": 1}'] and len(got) == 5
        assert not any(d.message.headers for d in got)

    play(server_url, check)


@every_version
def test_a_deleted_queue_fails_alone(server_url: str) -> None:
    async def check(transport: RabbitTransport) -> None:
        gone, there = work(), work()
        await transport.declare(gone, there)
        connection = await raw(server_url)
        await (await connection.channel()).queue_delete(gone.name)
        await connection.close()
        messages = [Message(new_id(), b"") for _ in range(50)]
        results = await asyncio.gather(
            *(transport.publish(name, messages) for name in (there.name, gone.name, there.name)), return_exceptions=True
        )
        assert results[0] is results[2] is None
        assert isinstance(results[1], BusError) and "not declared" in str(results[1])
        assert (await transport.lag(there.name)).ready == 100

    play(server_url, check)


@every_version
def test_nobody_reads_a_band(server_url: str) -> None:
    async def check(transport: RabbitTransport) -> None:
        target = work()
        band = Topic(f"{target.name}.delay-1", Kind.QUEUE, hold_s=1)
        await transport.declare(band, target)
        with pytest.raises(Unsupported):
            await transport.subscribe(band.name)
        began = time.monotonic()
        await transport.publish(band.name, [Message(new_id(), b"x", {"to": target.name})])
        (got,) = await (await transport.subscribe(target.name)).receive(max_messages=1, timeout_s=10)
        assert got.message.body == b"x" and time.monotonic() - began >= 1.0
        other = await RabbitTransport.connect(server_url)
        with pytest.raises(Unsupported):
            await other.subscribe(band.name)
        await other.aclose()

    play(server_url, check)


@every_version
def test_a_reader_of_a_deleted_queue_ends(server_url: str) -> None:
    """With what a publisher is told; a lost connection it would wait for."""

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        subscription = await transport.subscribe(topic.name)
        connection = await raw(server_url)
        await (await connection.channel()).queue_delete(topic.name)
        await connection.close()
        with pytest.raises(Undeclared, match="not declared"):
            await subscription.receive(max_messages=1, timeout_s=10)

    play(server_url, check)


@one_version
def test_a_password_that_is_changed_meanwhile(server_url: str) -> None:
    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        subscription = await transport.subscribe(topic.name)
        link = transport.links[0]
        link._address = Address.parse(server_url.replace("guest:guest", "guest:hush"), 30.0)
        assert link._dialer is not None
        link._dialer.abort()
        with pytest.raises(Misconfigured, match="password"):
            await insist(partial(subscription.receive, max_messages=1, timeout_s=10))
        with pytest.raises(Misconfigured, match="password"):
            await transport.lag(topic.name)

    play(server_url, check)


# what nobody has foreseen


@one_version
def test_what_nobody_has_foreseen_ends_no_task_that_connects_again(
    server_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = {"connect": 2, "basic_qos": 2}

    def odd(kind: type, name: str) -> None:
        real = getattr(kind, name)

        def call(*args: object, **options: object) -> object:
            if turns[name]:
                turns[name] -= 1
                raise LookupError("odd")
            return real(*args, **options)

        monkeypatch.setattr(kind, name, call)

    async def spent() -> bool:
        return not any(turns.values())

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        message = Message(new_id(), b"")
        await transport.declare(topic)
        await transport.publish(topic.name, [message])
        subscription = await transport.subscribe(topic.name)
        odd(Connection, "connect")
        odd(Channel, "basic_qos")
        dialer = transport.links[0]._dialer
        assert dialer is not None
        dialer.abort()
        await until(spent)
        got = await insist(partial(subscription.receive, max_messages=1, timeout_s=10))
        assert ids(got) == [message.id]

    play(server_url, check)
    told = [record for record in caplog.records if record.exc_info and record.name.startswith("adapters.")]
    assert len(told) == 2, "each task says it once, with its traceback"


# acks and positions


@every_version
def test_acks_in_any_order_reach_their_messages(server_url: str) -> None:
    dice = random.Random(5)

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        sent = [Message(new_id(), b"") for _ in range(400)]
        await transport.publish(topic.name, sent)
        subscription = await transport.subscribe(topic.name, prefetch=400)
        held = await taken(subscription, 400)
        kept = {d.message.id for d in dice.sample(held, 40)}
        done = [d for d in held if d.message.id not in kept]
        dice.shuffle(done)
        shares = [done[i : i + 7] for i in range(0, len(done), 7)]
        await asyncio.gather(*(subscription.ack(share) for share in shares))
        await subscription.aclose()
        again = await transport.subscribe(topic.name, prefetch=400)
        left: list[str] = []
        while some := await again.receive(max_messages=400, timeout_s=0.5):
            left.extend(ids(some))
        assert sorted(left) == sorted(kept)

    play(server_url, check)


@one_version
def test_acks_that_nobody_writes_any_more_come_back(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose writer has ended takes a few frames more; who brings others would wait for ever."""
    monkeypatch.setattr(within, "__defaults__", (1.0,))

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        sent = [Message(new_id(), b"") for _ in range(100)]
        await transport.publish(topic.name, sent)
        reader = await transport.subscribe(topic.name, prefetch=200)
        found = await taken(reader, 100)
        assert isinstance(reader, QueueSubscription) and reader._channel is not None
        for task in asyncio.all_tasks():
            coroutine: Any = task.get_coro()
            if coroutine.__qualname__ == "Connection.__writer" and (
                coroutine.cr_frame.f_locals["self"] is reader._channel.connection
            ):
                task.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(StaleDelivery):
                await reader.ack(found[1::2])  # a frame for each of them
            again: dict[str, Delivery] = {}
            while len(again) < 100:
                again |= {each.message.id: each for each in await reader.receive(max_messages=100, timeout_s=1)}
            await reader.ack(list(again.values()))
        assert (await transport.lag(topic.name)).ready == 0

    play(server_url, check)


@every_version
def test_who_stands_where_a_trimmed_stream_begins_has_missed_nothing(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offset that was left out there is no message that was lost."""
    monkeypatch.setattr(topology, "SEGMENT_BYTES", 100_000)

    async def check(transport: RabbitTransport) -> None:
        topic = record()
        await transport.declare(topic)
        name, seen = topic.name, set[int]()
        reader = await transport.subscribe(name, start="earliest")

        async def trimmed() -> bool:
            await transport.publish(name, [Message(new_id(), b"x" * 20_000) for _ in range(7)])
            all_of_them = len(seen) + 7
            while len(seen) < all_of_them:
                some = await insist(partial(reader.receive, max_messages=100, timeout_s=5))
                seen.update(delivery.offset for delivery in some)
                await reader.ack(some)
            return ((await insist(partial(transport.lag, name))).first or {})[0] > 20

        await until(trimmed)
        first = ((await insist(partial(transport.lag, name))).first or {})[0]
        assert first not in seen and {first - 1, first + 1} <= seen
        late = await transport.subscribe(name, start=[Position(0, first)])
        found = await insist(partial(late.receive, max_messages=1, timeout_s=5))
        assert [delivery.offset for delivery in found] == [first + 1]
        with pytest.raises(PositionExpired):
            await transport.subscribe(name, start=[Position(0, first - 1)])

    play(server_url, check)


@every_version
def test_what_a_stream_has_dropped_is_told(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets are left out where a segment begins; that is no loss. What is past its retention is."""
    monkeypatch.setattr(topology, "SEGMENT_BYTES", 100_000)

    async def check(transport: RabbitTransport) -> None:
        topic = record()
        await transport.declare(topic)
        name = topic.name
        sent = [Message(new_id(), b"x" * 1000) for _ in range(500)]
        await transport.publish(name, sent)
        slow = await transport.subscribe(name, prefetch=10)
        got = list(await slow.receive(max_messages=10, timeout_s=5))
        await slow.ack(got)

        async def trimmed() -> bool:
            await transport.publish(name, [Message(new_id(), b"y" * 20_000) for _ in range(10)])
            return ((await insist(partial(transport.lag, name))).first or {})[0] > 500

        await until(trimmed)
        lag = await insist(partial(transport.lag, name))
        assert lag.first is not None and lag.end is not None
        transport.links[2]._dialer.abort()  # type: ignore[union-attr]  # so that nothing is read ahead any more
        with pytest.raises(PositionExpired) as found:
            while True:
                some = await insist(partial(slow.receive, max_messages=10, timeout_s=5))
                got.extend(some)
                await insist(partial(slow.ack, some))
        assert found.value.asked == Position(0, got[-1].offset + 1)
        assert found.value.first.offset >= lag.first[0]
        for late in (Position(0, 3), Position(0, lag.end[0] + 10_000)):
            with pytest.raises(PositionExpired):
                await transport.subscribe(name, start=[late])
        await slow.seek("earliest")
        (first,) = await slow.receive(max_messages=1, timeout_s=5)
        assert first.offset >= lag.first[0]

    play(server_url, check)


@every_version
def test_a_stream_that_lost_its_end_is_told(server_url: str) -> None:
    """As after a power cut: what comes next gets offsets that the reader has passed."""

    async def check(transport: RabbitTransport) -> None:
        topic = record()
        await transport.declare(topic)
        await transport.publish(topic.name, [Message(new_id(), b"") for _ in range(20)])
        subscription = await transport.subscribe(topic.name)
        got: list[Delivery] = []
        while len(got) < 20:
            got.extend(await subscription.receive(max_messages=20, timeout_s=5))
        connection = await raw(server_url)
        await (await connection.channel()).queue_delete(topic.name)
        await connection.close()
        other = await RabbitTransport.connect(server_url)
        await other.declare(topic)
        sent = [Message(new_id(), b"") for _ in range(5)]
        await other.publish(topic.name, sent)
        await other.aclose()
        for _ in range(2):
            with pytest.raises(PositionExpired) as found:
                await insist(partial(_declared, partial(subscription.receive, max_messages=9, timeout_s=10)))
            assert found.value.asked == Position(0, 20) and found.value.end <= Position(0, 5)
        await subscription.seek("earliest")
        assert (await subscription.receive(max_messages=1, timeout_s=5))[0].message.id == sent[0].id

    play(server_url, check)


async def _declared(call: Callable[[], Awaitable[object]]) -> object:
    try:
        return await call()
    except Undeclared:
        raise ConnectionLost("it is being made anew") from None


@every_version
def test_gaps_in_the_offsets_are_no_loss(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "SEGMENT_BYTES", 100_000)

    async def check(transport: RabbitTransport) -> None:
        topic = record()._replace(retention_s=3600.0)
        await transport.declare(topic)
        sent = [Message(new_id(), b"x" * 1000) for _ in range(600)]
        subscription = await transport.subscribe(topic.name, prefetch=100)
        for i in range(0, 600, 50):
            await transport.publish(topic.name, sent[i : i + 50])
        got: list[Delivery] = []
        while len(got) < 600:
            some = await subscription.receive(max_messages=100, timeout_s=5)
            assert some
            got.extend(some)
            await subscription.ack(some)
        assert ids(got) == ids(sent)
        assert got[-1].offset > 599, "no segment has ended, so that nothing is shown"
        await subscription.seek(datetime(2020, 1, 1, tzinfo=UTC))
        assert (await subscription.receive(max_messages=1, timeout_s=5))[0].offset == 0

    play(server_url, check)


@pytest.mark.parametrize("server_url", kinds("rabbitmq")[1:], indirect=True)  # RabbitMQ 3 sends a chunk to its end
def test_a_backlog_of_large_messages_stays_with_the_server(server_url: str) -> None:
    """Whatever the prefetch; what is handed out and not acked is bounded by it alone."""

    async def check(transport: RabbitTransport) -> None:
        topic = record()
        await transport.declare(topic)
        sent = [Message(new_id(), bytes(256 * 1024)) for _ in range(400)]
        for i in range(0, 400, 40):
            await transport.publish(topic.name, sent[i : i + 40])
        subscription = await transport.subscribe(topic.name, prefetch=390)
        assert isinstance(subscription, LogSubscription)
        got: list[Delivery] = []
        most = 0
        while len(got) < 390:
            some = await subscription.receive(max_messages=50, timeout_s=10)
            assert some
            got.extend(some)
            assert subscription._channel is not None
            await subscription._channel.flow(True)  # what the broker had sent is here
            most = max(most, len(subscription._arrived))
        assert 0 < most <= WINDOW
        assert not await subscription.receive(max_messages=50, timeout_s=0.2), "more than the prefetch"
        await subscription.ack(got)
        while len(got) < 400:
            some = await subscription.receive(max_messages=50, timeout_s=10)
            assert some
            got.extend(some)
        assert ids(got) == ids(sent)

    play(server_url, check)


# a server that dies, freezes, or is full


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with server(kinds("rabbitmq")[0], max_message_size=str(LIMIT_BYTES)) as one:
        yield one


def lines(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records if record.name.startswith("adapters."))


def test_a_message_over_the_servers_limit_fails_alone(own: Server) -> None:
    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        large, small = Message(new_id(), bytes(LIMIT_BYTES + 1)), Message(new_id(), b"")
        for _ in range(2):
            with pytest.raises(OverLimit):
                await transport.publish(topic.name, [large])
            await transport.publish(topic.name, [small])
        assert (await transport.lag(topic.name)).ready == 2

    play(own.url, check)


@pytest.mark.timeout(300)
def test_the_server_is_killed(own: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Publishers and readers go on; nothing confirmed is missing, of the queue and of the log; said once."""
    monkeypatch.setattr(publisher, "CONFIRM_S", 4.0)  # what comes to a server that is starting is not always answered

    async def check(transport: RabbitTransport) -> None:
        queue, log = work(), record()._replace(retention_s=3600.0)
        await transport.declare(queue, log)
        readers = [await transport.subscribe(queue.name), await transport.subscribe(log.name)]
        sent: list[str] = []
        came: list[list[str]] = [[], []]
        ending, published = asyncio.Event(), asyncio.Event()

        async def publish() -> None:
            while not ending.is_set():
                messages = [Message(new_id(), b"x" * 300) for _ in range(20)]
                for topic in (queue, log):
                    await persist(partial(transport.publish, topic.name, messages))
                sent.extend(ids(messages))
            published.set()

        async def read(turn: int) -> None:
            while not published.is_set() or not set(sent) <= set(came[turn]):
                try:
                    some = await readers[turn].receive(max_messages=64, timeout_s=0.2)
                    came[turn].extend(ids(some))
                    await readers[turn].ack(some)
                except BusError:
                    pass

        async def kill() -> None:
            await asyncio.sleep(3)  # RabbitMQ 3.10 may lose a queue that was declared in its last second
            await asyncio.to_thread(own.kill)
            with pytest.raises(TransportError):
                await transport.lag(queue.name)
            await asyncio.to_thread(own.start)
            before = len(sent)
            await until(lambda: _more(sent, before + 100))
            ending.set()

        async with asyncio.timeout(250):
            await asyncio.gather(publish(), read(0), read(1), kill())
        for some in came:
            no_loss(sent, some)
        assert (await transport.lag(queue.name)).ready == 0

    play(own.url, check)
    assert (lines(caplog, "is away"), lines(caplog, "is back")) == (1, 1)


async def persist(call: Callable[[], Awaitable[object]]) -> None:
    """As long as the check lasts: a server takes its time to start."""
    while True:
        try:
            await call()
        except TransportError:
            await asyncio.sleep(0.05)
        else:
            return


async def _more(sent: list[str], count: int) -> bool:
    return len(sent) >= count


def test_the_server_freezes(own: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No call hangs for longer than its deadline; once the server is awake, all go on."""
    monkeypatch.setattr(publisher, "CONFIRM_S", 1.0)

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        message = Message(new_id(), b"")
        await transport.publish(topic.name, [message])
        subscription = await transport.subscribe(topic.name)
        (held,) = await subscription.receive(max_messages=1, timeout_s=5)
        own.freeze()
        try:
            with pytest.raises((PublishUnconfirmed, ConnectionLost)):
                await asyncio.wait_for(transport.publish(topic.name, [message]), 10)
            with pytest.raises(TransportError):
                await asyncio.wait_for(_for_ever(lambda: subscription.receive(max_messages=1, timeout_s=0.5)), 40)
        finally:
            own.thaw()
        await insist(lambda: transport.publish(topic.name, [message]))
        again = await insist(lambda: subscription.receive(max_messages=1, timeout_s=10))
        assert again[0].message.id == held.message.id
        await subscription.ack(again)

    play(own.url, check, lease_s=6.0)
    assert lines(caplog, "is away") == 1


async def _for_ever(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        await call()


def test_closing_a_frozen_server_ends(own: Server) -> None:
    async def run() -> None:
        transport = await RabbitTransport.connect(own.url)
        topic = work()
        await transport.declare(topic)
        await transport.subscribe(topic.name)
        await transport.publish(topic.name, [Message(new_id(), b"")])
        own.freeze()
        try:
            await asyncio.wait_for(transport.aclose(), 20)
        finally:
            own.thaw()

    asyncio.run(run())


def test_an_alarm_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Publishers wait, and are told; readers go on."""
    monkeypatch.setattr(publisher, "CONFIRM_S", 2.0)
    monkeypatch.setattr(reader, "AWAY_S", 1.0)

    async def check(transport: RabbitTransport) -> None:
        topic = work()
        await transport.declare(topic)
        for _ in range(2):
            with pytest.raises(PublishUnconfirmed):
                await transport.publish(topic.name, [Message(new_id(), b"")])
        subscription = await transport.subscribe(topic.name)
        assert not await subscription.receive(max_messages=1, timeout_s=0.2)
        assert (await transport.lag(topic.name)).ready == 0

    with (
        caplog.at_level(logging.WARNING),
        server(kinds("rabbitmq")[0], **{"vm_memory_high_watermark.absolute": "1"}) as full,
    ):
        play(full.url, check)
    assert lines(caplog, "low on memory") == 1
    assert lines(caplog, "is away") == 0
