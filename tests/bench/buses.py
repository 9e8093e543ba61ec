"""The buses that can be measured, and a place of one's own on each."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aio_pika
import redis
from aiokafka.admin import AIOKafkaAdminClient

from bus.bands import bands
from bus.topic import LANES, dead_log, item_log, request_queue
from bus.url import bus_options, scheme
from tests.servers import KINDS, kinds, shared_url

__all__ = ["BUSES", "STATE", "Place", "place"]

BUSES = ("memory", "sqlite", *(kind for kind in KINDS if kind not in kinds("postgres")))
STATE = "redis-7"  # of the buses that have none


class Place(NamedTuple):
    """URLs of a bus and its state, a job that nobody else has, and a folder for its time."""

    bus: str
    state: str
    job: str
    folder: Path


@contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    """An empty place on the bus of that name; what was put there is removed. Raises `Unavailable`."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        job = f"bench-{os.urandom(6).hex()}"
        prefix = f"?prefix={job}."
        if name in KINDS:
            bus = shared_url(name)
            state = bus if scheme(bus) == "redis" else shared_url(STATE)
        else:
            bus = state = {"memory": f"memory://{job}", "sqlite": f"sqlite:///{own}/bus.db"}[name]
        where = Place(bus + prefix, state, job, Path(own))
        try:
            yield where
        finally:
            if name in KINDS:
                asyncio.run(_clear(where))


async def _clear(where: Place) -> None:
    _clear_redis(where)
    if scheme(where.bus) == "amqp":
        await _clear_rabbitmq(where)
    elif scheme(where.bus) == "kafka":
        await _clear_kafka(where)


def _clear_redis(where: Place) -> None:
    with redis.Redis.from_url(where.state) as client:
        for key in client.scan_iter(f"*{where.job}*", count=1000):
            client.unlink(key)


async def _clear_rabbitmq(where: Place) -> None:
    prefix = bus_options(where.bus).prefix
    topics = [request_queue(prefix, where.job, lane) for lane in LANES]
    topics += [*bands(topics[1].name), item_log(prefix), dead_log(prefix)]
    async with await aio_pika.connect(where.bus.partition("?")[0]) as connection, connection.channel() as channel:
        for topic in topics:
            await channel.queue_delete(topic.name)


async def _clear_kafka(where: Place) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=where.bus.partition("?")[0].removeprefix("kafka://"))
    await client.start()
    try:
        await client.delete_topics([topic for topic in await client.list_topics() if where.job in topic])
    finally:
        await client.close()
