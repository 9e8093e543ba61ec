"""The servers answer, keep their data over `kill -9`, and leave nothing behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import aio_pika
import psycopg
import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.servers import KINDS, kinds, new_database, server, shared_url


async def redis_puts(url: str) -> None:
    async with redis.asyncio.from_url(url) as client:
        await client.set("key", "kept")


async def redis_has(url: str) -> bytes:
    async with redis.asyncio.from_url(url) as client:
        return bytes(await client.get("key"))


async def rabbitmq_puts(url: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.declare_queue("key", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"kept", delivery_mode=2), "key")


async def rabbitmq_has(url: str) -> bytes:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue("key")).get()
        assert message is not None
        return message.body


async def kafka_puts(url: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=url.removeprefix("kafka://")) as producer:
        await producer.send_and_wait("key", b"kept")


async def kafka_has(url: str) -> bytes:
    async with AIOKafkaConsumer(
        "key", bootstrap_servers=url.removeprefix("kafka://"), auto_offset_reset="earliest"
    ) as consumer:
        return bytes((await consumer.getone()).value)


async def postgres_puts(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("CREATE TABLE key AS SELECT 'kept' AS value")


async def postgres_has(url: str) -> bytes:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("SELECT value FROM key")).fetchone()
        assert row is not None
        return str(row[0]).encode()


CLIENTS = {
    "redis": (redis_puts, redis_has),
    "rabbitmq": (rabbitmq_puts, rabbitmq_has),
    "kafka": (kafka_puts, kafka_has),
    "postgres": (postgres_puts, postgres_has),
}
SCHEMES = {"redis": "redis", "amqp": "rabbitmq", "kafka": "kafka", "postgresql": "postgres"}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_its_port_and_its_data(kind: str) -> None:
    puts, has = CLIENTS[kind.partition("-")[0]]
    with server(kind) as one:
        asyncio.run(puts(one.url))
        one.stop()  # RabbitMQ may forget a queue that was declared within a second before a `kill -9`
        assert not listens(one.port)
        one.start()
        one.kill()
        assert not listens(one.port)
        one.start()
        assert asyncio.run(has(one.url)) == b"kept"
        one.freeze()
        assert not one.answers(timeout_s=0.3)
        one.thaw()
        assert one.answers(timeout_s=5)
    until(lambda: not listens(one.port))


@pytest.mark.parametrize("kind", ["redis-7", "redis-8", "postgres-15"])
def test_ends_with_the_tests_however_they_end(kind: str) -> None:
    program = f"""
import time
from tests.servers import server
with server({kind!r}) as one:
    print(one.port, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        port = int(tests.stdout.readline())
        assert listens(port)
        tests.kill()
    until(lambda: not listens(port))


@pytest.mark.parametrize("server_url", KINDS, indirect=True)
def test_is_shared(server_url: str) -> None:
    puts, has = CLIENTS[SCHEMES[server_url.partition(":")[0]]]
    asyncio.run(puts(server_url))
    assert asyncio.run(has(server_url)) == b"kept"


def test_options_are_lines_of_the_configuration() -> None:
    async def policy(url: str) -> str:
        async with redis.asyncio.from_url(url, decode_responses=True) as client:
            return str((await client.config_get("appendfsync"))["appendfsync"])

    with server("redis-7", appendfsync="always") as one:
        assert asyncio.run(policy(one.url)) == "always"


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from tests.servers import shared_url; print(shared_url('rabbitmq-4.3'), shared_url('rabbitmq-3.10'))"
    monkeypatch.setenv("CRAWLBUS_TEST_RABBITMQ_URL", "amqp://any")
    monkeypatch.setenv("CRAWLBUS_TEST_RABBITMQ_43_URL", "amqp://newer")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["amqp://newer", "amqp://any"]


@pytest.mark.parametrize("kind", kinds("postgres"))
def test_a_database_of_ones_own_is_gone_afterwards(kind: str) -> None:
    url = shared_url(kind)
    with new_database(url) as one, new_database(url) as other:
        assert asyncio.run(postgres_puts(one)) == asyncio.run(postgres_puts(other))
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(one)


def test_postgres_dies_with_what_it_is_busy_with() -> None:
    def busy() -> None:
        with pytest.raises(psycopg.OperationalError), psycopg.connect(one.url) as connection:
            connection.execute("DO 'BEGIN LOOP END LOOP; END'")

    with server("postgres-15") as one, psycopg.connect(one.url, autocommit=True) as other:
        query = threading.Thread(target=busy)
        query.start()
        until(lambda: other.execute("SELECT FROM pg_stat_activity WHERE query LIKE 'DO %'").rowcount == 1)
        one.kill()
        query.join(20)
        assert not query.is_alive()
        one.start()
