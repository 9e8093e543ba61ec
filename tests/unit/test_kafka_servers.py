"""The Kafka transport at servers of its own: killed, or one that refuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, UnknownError

from adapters.kafka import cluster, group, log, publisher, queue
from adapters.kafka.publisher import Publisher
from adapters.kafka.transport import KafkaTransport
from bus.errors import BusError, ConnectionLost, Misconfigured, PublishUnconfirmed, StaleDelivery
from bus.message import Delivery, Message, new_id
from bus.registry import connect_transport
from bus.testing import transport_scene as scene
from bus.testing.checks import no_loss
from bus.topic import Kind, Topic
from bus.transport import Subscription, Transport
from bus.watermark import Watermark
from tests.servers import Server, free_port, kinds, server

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
LOCKED = {
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": f'{PLAIN} username="boss" password="sesame" '
    'user_boss="sesame" user_nobody="hush";',
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:boss;User:ANONYMOUS",
    "offsets.topic.replication.factor": "3",
    "min.insync.replicas": "2",
}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """One broker that knows two users, one of them without any rights; it wants three for the offsets of groups."""
    with server("kafka-4.1", **LOCKED) as one:
        yield one


def url(one: Server, login: str) -> str:
    return one.url.replace("kafka://", f"kafka://{login}@")


def refusal(call: Awaitable[Any]) -> str:
    """The sentence that a user reads."""

    async def make() -> None:
        await call

    with pytest.raises(Misconfigured) as refused:
        asyncio.run(make())
    text = str(refused.value)
    assert "sesame" not in text and "hush" not in text and "\n" not in text
    return text


async def with_bus(url: str, call: Any) -> None:
    async with aclosing(await KafkaTransport.connect(url)) as bus:
        await call(bus)


@pytest.mark.parametrize("login", ["boss:wrong", "stranger:hush", "boss:sesame"])
def test_a_wrong_login_is_refused(locked: Server, login: str) -> None:
    option = "?mechanism=SCRAM-SHA-256" if login == "boss:sesame" else ""
    assert "--bus" in refusal(connect_transport(url(locked, login) + option))


def test_without_a_login_nobody_answers_as_kafka_does(locked: Server) -> None:
    with pytest.raises(ConnectionLost, match="a user and a password"):
        asyncio.run(KafkaTransport.connect(locked.url))


def test_topics_without_rights_are_named(locked: Server) -> None:
    async def make(bus: Transport) -> None:
        await bus.declare(Topic("there", Kind.QUEUE), Topic("log", Kind.LOG))

    asyncio.run(with_bus(url(locked, "boss:sesame"), make))

    async def declare(bus: Transport) -> None:
        await bus.declare(Topic("other", Kind.QUEUE))

    async def subscribe(bus: Transport) -> None:
        await bus.subscribe("there")

    async def publish(bus: Transport) -> None:
        await bus.publish("there", [Message(new_id(), b"")])

    for call in (declare, subscribe, publish):
        text = refusal(with_bus(url(locked, "nobody:hush"), call))
        assert "ACL" in text and ("there" in text or "other" in text or "topics" in text)


def test_too_few_brokers_for_the_offsets_of_groups(locked: Server) -> None:
    async def subscribe(bus: Transport) -> None:
        await bus.declare(Topic("there", Kind.QUEUE))
        await bus.subscribe("there")

    assert "offsets.topic.replication.factor" in refusal(with_bus(url(locked, "boss:sesame"), subscribe))


def test_a_topic_that_never_has_enough_replicas(locked: Server) -> None:
    """As made by somebody else, with the broker's own min.insync.replicas."""

    async def declare(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        async with admin_of(bus) as admin:
            await admin.create_topics([NewTopic("thin", 1, 1, topic_configs={"retention.ms": "-1"})])
        await bus.declare(Topic("thin", Kind.QUEUE))

    assert "min.insync.replicas" in refusal(with_bus(url(locked, "boss:sesame"), declare))


def test_nobody_listens() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="--bus"):
        asyncio.run(KafkaTransport.connect(f"kafka://127.0.0.1:{free_port()}"))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_window_that_is_full_stops_its_partition_only(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is done behind an open message, little comes again after a crash; the rest waits in Kafka."""
    monkeypatch.setattr(group, "Watermark", partial(Watermark, window=8))

    async def check(bus: Transport) -> None:
        topic = Topic(f"check.{new_id()}", Kind.QUEUE)
        await bus.declare(topic)
        await bus.publish(topic.name, [Message(f"{i}", b"", key=b"one") for i in range(40)])
        reader = await bus.subscribe(topic.name, prefetch=4)
        (first,) = await take(reader, 1)
        came = [first.message.id]
        while some := await reader.receive(max_messages=4, timeout_s=1):
            came.extend(one.message.id for one in some)
            await reader.ack(some)
        assert 8 <= len(came) <= 8 + 4
        await bus.publish(topic.name, [Message("other", b"")])
        (other,) = await take(reader, 1)
        await reader.ack([other, first])
        while len(came) < 40:
            some = await take(reader, 1)
            came.extend(one.message.id for one in some)
            await reader.ack(some)
        assert came == [f"{i}" for i in range(40)]

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_who_stays_keeps_its_deliveries(server_url: str) -> None:
    """Another reader comes: it is given half of the partitions, and only what was unacknowledged of these."""

    async def check(bus: Transport) -> None:
        topic = Topic(f"check.{new_id()}", Kind.QUEUE)
        await bus.declare(topic)
        messages = [Message(id := new_id(), b"", key=id.encode()) for _ in range(64)]
        await bus.publish(topic.name, messages)
        old = await bus.subscribe(topic.name)
        held = await take(old, 64)
        new = await bus.subscribe(topic.name)
        with pytest.raises(StaleDelivery) as refused:
            await old.ack(held)
        stale = {one.message.id for one in refused.value.deliveries}
        assert {one.partition for one in held if one.message.id in stale}.isdisjoint(
            one.partition for one in held if one.message.id not in stale
        )
        again = await take(new, len(stale))
        assert {one.message.id for one in again} == stale
        await new.ack(again)
        assert not await new.receive(max_messages=9, timeout_s=0.2)
        assert not await old.receive(max_messages=9, timeout_s=0.2)

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_what_is_done_leaves_the_disk(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TIDY_EACH_S", 0.2)

    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        topic = Topic(f"check.{new_id()}", Kind.QUEUE)
        await bus.declare(topic)
        await bus.publish(topic.name, [Message(new := new_id(), b"", key=new.encode()) for _ in range(200)])
        reader = await bus.subscribe(topic.name)
        kept, *done = await take(reader, 200)
        await reader.ack(done)

        async def removed() -> bool:
            first, end = await bus._cluster.bounds(topic.name)
            assert first[kept.partition] <= kept.offset, "what is open is still there"
            return all(first[number] == end[number] for number in end if number != kept.partition)

        await scene.until(removed)

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
@pytest.mark.parametrize("kind", Kind)
def test_a_task_that_fails_ends_its_reader(server_url: str, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loudly: who waits for messages hears of it, and the log says what it was."""

    async def fail(*args: object, **options: object) -> None:
        raise ValueError("out of order")

    async def check(bus: Transport) -> None:
        topic = Topic(f"check.{new_id()}", kind)
        await bus.declare(topic)
        monkeypatch.setattr(AIOKafkaConsumer, "getmany", fail)
        reader = await bus.subscribe(topic.name)
        for _ in range(2):
            with pytest.raises(BusError, match="out of order") as failed:
                await reader.receive(max_messages=1, timeout_s=10)
            assert topic.name in str(failed.value)

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_an_error_of_the_group_is_heard_while_much_waits(server_url: str) -> None:
    """The driver keeps it until it is asked, and does nothing till then."""

    async def refuse(*args: object) -> None:
        raise UnknownError("the group is not to be had for a moment")

    async def check(bus: Transport) -> None:
        topic = Topic(new_id(), Kind.QUEUE)
        await bus.declare(topic)
        await bus.publish(topic.name, [Message(f"{i}", b"") for i in range(20)])
        reader = await bus.subscribe(topic.name, prefetch=4)
        assert isinstance(reader, queue.QueueSubscription)
        await until(lambda: reader._buffered >= 4)
        coordinator = reader._member.consumer._coordinator
        coordinator._do_rejoin_group = refuse
        coordinator.request_rejoin()
        await until(lambda: coordinator is not reader._member.consumer._coordinator)
        for _ in range(5):
            await reader.ack(await take(reader, 4))

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_coordinator_that_is_away_is_an_outage(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while brokers answer: neither silence, nor a fault of the cluster's setting."""
    monkeypatch.setattr(cluster, "ASK_S", 1.0)
    monkeypatch.setattr(queue, "PATIENT_LEASES", 1)

    async def nowhere(*args: object) -> None:
        raise GroupCoordinatorNotAvailableError

    async def check() -> None:
        async with aclosing(await KafkaTransport.connect(server_url, lease_s=2.0)) as bus:
            topic = Topic(new_id(), Kind.QUEUE)
            await bus.declare(topic)
            reader = await bus.subscribe(topic.name)
            assert isinstance(reader, queue.QueueSubscription)
            consumer = reader._member.consumer
            with monkeypatch.context() as patch:
                for client in (bus._cluster._client, consumer._client):
                    patch.setattr(client, "coordinator_lookup", nowhere)
                consumer._coordinator.coordinator_dead()
                bus._cluster._coordinators.clear()
                for call in (bus.lag, bus.subscribe):
                    with pytest.raises(ConnectionLost):
                        await call(topic.name)
                with pytest.raises(ConnectionLost, match="coordinator"):
                    await take(reader, 1)
            await bus.publish(topic.name, [Message(new_id(), b"")])
            async with asyncio.timeout(20):
                while True:
                    with suppress(ConnectionLost):
                        if await reader.receive(max_messages=1, timeout_s=1):
                            return
                    await asyncio.sleep(0.1)

    asyncio.run(check())


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_partitions_that_cannot_be_taken_over(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loudly, and once more. One of which the leader was not yet known is begun a moment later."""
    tries = list[str]()
    take_over = queue.QueueSubscription.take_over

    async def stumble(self: queue.QueueSubscription, *args: Any, **options: Any) -> None:
        tries.append("take over")
        if len(tries) == 1:
            raise ValueError("out of order")
        await take_over(self, *args, **options)

    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        topic = Topic(new_id(), Kind.QUEUE)
        await bus.declare(topic)
        await bus.publish(topic.name, [Message("one", b"")])
        bounds = bus._cluster.bounds

        async def without_the_first(name: str) -> Any:
            tries.append("bounds")
            first, end = await bounds(name)
            if tries.count("bounds") == 1:
                del first[0], end[0]
            return first, end

        monkeypatch.setattr(bus._cluster, "bounds", without_the_first)
        monkeypatch.setattr(queue.QueueSubscription, "take_over", stumble)
        reader = await bus.subscribe(topic.name)
        with pytest.raises(BusError, match="out of order") as failed:
            await take(reader, 1)
        assert topic.name in str(failed.value)
        await until(lambda: tries.count("take over") > 1)
        (one,) = await take(reader, 1)
        await reader.ack([one])
        assert tries.count("bounds") > 1

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_pulse_that_fails_ends_its_readers(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        topic = Topic(f"check.{new_id()}", Kind.QUEUE)
        await bus.declare(topic)
        reader = await bus.subscribe(topic.name)
        monkeypatch.setattr(bus._cluster, "_answers", None)
        with pytest.raises(BusError, match="pulse") as failed:
            await reader.receive(max_messages=1, timeout_s=10)
        assert not isinstance(failed.value, ConnectionLost), "nobody waits for its return"

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_topic_that_is_deleted_stays_deleted(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither readers nor writers make it anew, as Kafka would, as a log of seven days: they say that it is gone."""
    monkeypatch.setattr(log, "WAIT_MS", 500)
    monkeypatch.setattr(queue, "WAIT_MS", 500)

    async def gone(call: Callable[[], Awaitable[Any]], name: str) -> None:
        async with asyncio.timeout(60):
            with pytest.raises(BusError, match="deleted") as failed:
                while True:
                    with suppress(PublishUnconfirmed):
                        await call()
        assert name in str(failed.value)

    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        kept, work, notes = Topic(new_id(), Kind.QUEUE), Topic(new_id(), Kind.QUEUE), Topic(new_id(), Kind.LOG)
        await bus.declare(kept, work, notes)
        readers = [await bus.subscribe(work.name), await bus.subscribe(notes.name)]
        for reader in readers:
            await bus.publish(reader._name, [Message(new_id(), b"")])  # type: ignore[attr-defined]
            await take(reader, 1)
        async with admin_of(bus) as admin:
            await admin.delete_topics([work.name, notes.name])
        calls: list[Callable[[], Awaitable[Any]]]
        calls = [partial(reader.receive, max_messages=1, timeout_s=1) for reader in readers]
        calls += [partial(bus.publish, topic.name, [Message(new_id(), b"")]) for topic in (work, notes)]
        await asyncio.gather(*(gone(call, name) for call, name in zip(calls, [work.name, notes.name] * 2, strict=True)))
        for name in (work.name, notes.name):
            (found,) = (await bus._cluster.metadata([name]))["topics"]
            assert found["error_code"] == 3, "nobody has made it"
        await bus.publish(kept.name, [Message(new_id(), b"")])
        await bus.declare(work)
        await bus.publish(work.name, [Message(new_id(), b"")])

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_partitions_may_be_added(server_url: str) -> None:
    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        topic = Topic(new_id(), Kind.QUEUE)
        await bus.declare(topic)
        await bus.publish(topic.name, [Message(f"{i}", b"", key=f"{i}".encode()) for i in range(50)])
        async with admin_of(bus) as admin:
            await admin.create_partitions({topic.name: NewPartitions(32)})

        async def all_there() -> bool:
            return len((await bus._cluster.bounds(topic.name))[1]) == 32

        await scene.until(all_there)
        async with aclosing(await KafkaTransport.connect(server_url)) as new:
            await new.publish(topic.name, [Message(f"{i}", b"", key=f"{i}".encode()) for i in range(50, 300)])
        assert (await bus.lag(topic.name)).ready == 300
        reader = await bus.subscribe(topic.name, prefetch=300)
        taken = await take(reader, 300)
        assert max(one.partition for one in taken) > 15
        await reader.ack(taken)

        async def done() -> bool:
            return (await bus.lag(topic.name)).ready == 0

        await scene.until(done)

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_log_that_was_made_anew_has_no_negative_lag(server_url: str) -> None:
    async def check(bus: Transport) -> None:
        assert isinstance(bus, KafkaTransport)
        topic = Topic(new_id(), Kind.LOG)
        await bus.declare(topic)
        await bus._cluster.commit(f"{topic.name}.readers", topic.name, {0: 5})
        assert (await bus.lag(topic.name, group="readers")).ready == 0

    asyncio.run(with_bus(server_url, check))


@pytest.mark.parametrize("server_url", kinds("kafka"), indirect=True)
def test_a_reader_of_a_log_holds_few_bytes(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages wait in Kafka, whatever the prefetch; and all come."""
    monkeypatch.setattr(log, "HAND_BYTES", 1_000_000)

    async def check(bus: Transport) -> None:
        topic = Topic(new_id(), Kind.LOG)
        await bus.declare(topic)
        for _ in range(6):
            await bus.publish(topic.name, [Message(new_id(), b"x" * 100_000) for _ in range(10)])
        reader = await bus.subscribe(topic.name, prefetch=100, start="earliest")
        assert isinstance(reader, log.LogSubscription)
        taken = await take(reader, 1)

        async def has_enough() -> bool:
            return len(reader._buffer) >= 10 and not reader._drained.is_set()

        await scene.until(has_enough)
        assert len(reader._buffer) < 10 + 11, "one more answer of Kafka at most"
        taken += await take(reader, 59)
        assert [one.offset for one in taken] == list(range(60))
        assert reader._size_bytes == 0

    asyncio.run(with_bus(server_url, check))


@asynccontextmanager
async def admin_of(bus: KafkaTransport) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**bus._cluster.servers.driver)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def take(reader: Subscription, count: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            taken.extend(await reader.receive(max_messages=count - len(taken), timeout_s=1))
    return taken


def test_killed_while_all_is_busy(caplog: pytest.LogCaptureFixture) -> None:
    """Work goes on where it was, with nothing lost; each side is told while it is away, the log says it twice. Closing
    while it is away ends, too."""
    with server("kafka-4.1") as broker:
        asyncio.run(go_on(broker))
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum(line.endswith("is back") for line in lines) == 1
    assert sum("does not answer" in line for line in lines) == 2  # the second time it stays away


async def go_on(broker: Server) -> None:
    sent: list[str] = []
    done: list[str] = []
    noted: list[str] = []
    logged: list[str] = []
    ending = False
    async with AsyncExitStack() as stack:
        bus = await KafkaTransport.connect(broker.url)
        stack.push_async_callback(bus.aclose)
        await bus.declare(Topic("work", Kind.QUEUE), Topic("early", Kind.QUEUE), Topic("log", Kind.LOG))
        late = Publisher(bus._cluster)
        stack.push_async_callback(late.aclose)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publisher, "REQUEST_S", 1.0)
            await late.publish("early", [Message(new_id(), b"")])
        await bus.declare(Topic("late", Kind.QUEUE))  # the driver has not heard of it
        reader, follower = await bus.subscribe("work", member="slot-0"), await bus.subscribe("log", group="g")
        troubles: set[type[BusError]] = set()

        async def publish() -> None:
            while not ending:
                messages = [Message(new := new_id(), b"x" * 300, key=new.encode()) for _ in range(20)]
                await insist(partial(bus.publish, "work", messages))
                sent.extend(message.id for message in messages)
                await insist(partial(bus.publish, "log", messages[:1]))
                noted.append(messages[0].id)

        async def read(one: Subscription, into: list[str]) -> None:
            while True:
                some = await insist(partial(one.receive, max_messages=50, timeout_s=1))
                with suppress(StaleDelivery):  # was it away for longer than the lease? then they come again
                    await insist(partial(one.ack, some))
                    into.extend(delivery.message.id for delivery in some)

        async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
            while True:
                try:
                    return await call()
                except (ConnectionLost, PublishUnconfirmed) as error:
                    troubles.add(type(error))
                    await asyncio.sleep(0.1)

        publishing = asyncio.create_task(publish())
        reading = [asyncio.create_task(read(reader, done)), asyncio.create_task(read(follower, logged))]
        await until(lambda: len(done) > 200)
        await asyncio.to_thread(broker.kill)
        with pytest.raises(ConnectionLost):  # a topic that it did not use before is not taken for a deleted one
            await late.publish("late", [Message(new_id(), b"")])
        await until(lambda: ConnectionLost in troubles)
        await asyncio.to_thread(broker.start)
        await insist(partial(late.publish, "late", [Message(new_id(), b"")]))
        before = len(sent)
        await until(lambda: len(sent) > before + 200)
        ending = True
        await publishing
        await until(lambda: set(done) >= set(sent) and set(logged) >= set(noted))
        no_loss(sent, done)
        assert len(logged) == len(set(logged)), "the next message of a log is the one after the last"
        await asyncio.to_thread(broker.kill)
        for task in reading:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        began = time.monotonic()
        await bus.aclose()
        assert time.monotonic() - began < 15


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
