"""What is told of a log by a RabbitMQ that takes its time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from adapters.rabbitmq.transport import RabbitTransport
from bus.message import Message, new_id
from bus.topic import Kind, Topic
from tests.servers import kinds

DELIVER = struct.pack(">HH", 60, 60)
METHOD = 1


@asynccontextmanager
async def slow(url: str, delay_s: float) -> AsyncIterator[str]:
    """The URL of a way to the server on which every delivery takes that long, and what comes behind it waits."""
    parts = urlsplit(url)
    ways: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def delay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(7)
            rest = await reader.readexactly(int.from_bytes(head[3:]) + 1)
            if head[0] == METHOD and rest.startswith(DELIVER):
                await asyncio.sleep(delay_s)
            writer.write(head + rest)
            await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ways.add(task)
        there, to = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            await asyncio.gather(forward(reader, to), delay(there, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            to.close()
            writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
    finally:
        server.close()
        await asyncio.wait(ways, timeout=10)


@pytest.mark.parametrize("server_url", kinds("rabbitmq"), indirect=True)
def test_a_log_is_not_empty_because_it_is_slow(server_url: str) -> None:
    """Right after publishing, while the broker still counts no message."""

    async def run() -> None:
        near = await RabbitTransport.connect(server_url)
        topic = Topic(f"check.{new_id()}", Kind.LOG, 3600.0)
        await near.declare(topic)
        await near.publish(topic.name, [Message(new_id(), b"") for _ in range(5)])
        async with slow(server_url, 0.8) as url:
            far = await RabbitTransport.connect(url)
            lag = await far.lag(topic.name)
            await far.aclose()
        await near.aclose()
        assert lag.end == {0: 5} and lag.ready == 5

    asyncio.run(run())
