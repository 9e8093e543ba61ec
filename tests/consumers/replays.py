"""What the tests of replays share: a log of numbered items on any bus, and what stands where in it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from bus.items import ItemRecord, item_messages, pack_item, read_items
from bus.message import Message, Position
from bus.registry import connect_transport
from bus.topic import item_log
from bus.transport import Transport
from bus.url import bus_options
from consumers.replay.bounds import parse_place
from consumers.replay.course import Course
from consumers.replay.look import Look, look
from consumers.replay.options import ReplayOptions, ReplayResult
from consumers.replay.replay import replay
from consumers.sink import Limits, Sink
from consumers.through import Through
from tests.consumers.scene import jsonl_items, query, record, sqlite_items
from tests.servers import shared_url

__all__ = [
    "ONE_OF_EACH",
    "Here",
    "at",
    "every_bus",
    "execute",
    "log_on",
    "new_bus",
    "numbers",
    "on",
    "packed",
    "progress",
]

ONE_OF_EACH = ("sqlite", "redis-7", "rabbitmq-3.10", "kafka-4.1")
every_bus = pytest.mark.parametrize("bus", ONE_OF_EACH)


def new_bus(kind: str, directory: Path) -> str:
    """The URL of a bus that nobody else has."""
    return f"sqlite:///{directory / 'bus.db'}" if kind == "sqlite" else f"{shared_url(kind)}?prefix=t{token_hex(4)}."


def packed(items: Sequence[ItemRecord], pack: int = 7) -> list[Message]:
    """So many items in each message, all of the job and the spider of the first; with keys that spread them."""
    found = []
    for start in range(0, len(items), pack):
        few = items[start : start + pack]
        bodies = [pack_item(item.id, item.url, item.scraped_at, item.data) for item in few]
        (message,) = item_messages(few[0].job, few[0].spider, 1, bodies)
        found.append(message._replace(key=message.id.encode()))
    return found


class Here:
    """An item log."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self.transport, self.topic = transport, topic

    async def publish(self, numbers: Iterable[int], *, pack: int = 7, job: str = "shop", **more: Any) -> None:
        items = [record(number, job=job)._replace(**more) for number in numbers]
        await self.transport.publish(self.topic, packed(items, pack))

    async def content(self) -> dict[Position, int]:
        """The numbers of the items, by position."""
        lag = await self.transport.lag(self.topic)
        assert lag.first is not None and lag.end is not None
        found: dict[Position, int] = {}
        left = {partition for partition, end in lag.end.items() if end > lag.first[partition]}
        async with asyncio.timeout(60), aclosing(await self.transport.subscribe(self.topic, start="earliest")) as log:
            while left:
                for delivery in await log.receive(max_messages=100, timeout_s=1):
                    items = read_items(delivery.message)
                    found |= {delivery.position._replace(index=i): r.data["number"] for i, r in enumerate(items)}
                    if delivery.offset + 1 == lag.end[delivery.partition]:
                        left.discard(delivery.partition)
                    await log.ack([delivery])
        return found

    def options(self, start: str = "earliest", end: str = "latest", **more: Any) -> ReplayOptions:
        return ReplayOptions(self.topic, parse_place("--from", start), parse_place("--to", end), **more)

    async def replay(
        self, sink: Sink, start: str = "earliest", end: str = "latest", *, stop_at: int | None = None,
        batch: int | None = None, through: Through | None = None, **more: Any,
    ) -> ReplayResult:  # fmt: skip
        """Closes the sink. `stop_at`: told to end when so many items are stored."""
        stop, course = asyncio.Event(), Course()
        if batch is not None:
            sink.limits = Limits(items=batch)
        watching = asyncio.create_task(_stop_at(stop_at, course, stop))
        try:
            async with asyncio.timeout(90):
                options = self.options(start, end, **more)
                return await replay(self.transport, sink, options, stop, through=through, course=course)
        finally:
            watching.cancel()
            await sink.aclose()

    async def look(self, sink: Sink | None, start: str = "earliest", end: str = "latest", **more: Any) -> Look:
        async with asyncio.timeout(90):
            return await look(self.transport, sink, self.options(start, end, **more), asyncio.Event())

    async def trimmed_to(self, first: Mapping[int, int]) -> None:
        async with asyncio.timeout(60):
            while (await self.transport.lag(self.topic)).first != first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def _stop_at(count: int | None, course: Course, stop: asyncio.Event) -> None:
    while count is not None and course.items_stored < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    if count is not None:
        stop.set()


@asynccontextmanager
async def log_on(url: str, retention_s: float = 3600.0) -> AsyncIterator[Here]:
    """The item log of a bus, made if need be."""
    topic = item_log(bus_options(url).prefix, retention_s)
    async with aclosing(await connect_transport(url)) as transport:
        await transport.declare(topic)
        yield Here(transport, topic.name)


def on(bus: str, directory: Path, work: Callable[[Here], Awaitable[None]], retention_s: float = 3600.0) -> None:
    async def main() -> None:
        async with log_on(new_bus(bus, directory), retention_s) as here:
            await work(here)

    asyncio.run(main())


def numbers(path: Path, table: str = "items") -> list[int]:
    items = jsonl_items(path) if path.suffix == ".jsonl" else sqlite_items(path, table)
    return [item["data"]["number"] for item in items]


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def progress(path: Path, consumer: str) -> list[Any]:
    return query(path, f"SELECT * FROM sink_progress WHERE consumer = '{consumer}' AND target = 'items'")
