"""What the checks of a sink share: the storage they fill, items to fill it with, and members that are closed behind
them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Set
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any, NamedTuple, TypeVar, cast

from bus.errors import BusError
from bus.items import ItemRecord, item_id
from bus.message import Position
from consumers.sink import Batch, Entry, Progress, Quarantined, Sink

__all__ = ["PATIENCE_S", "TOPIC", "Everything", "Scene", "Target", "batch_of", "raises", "record", "scene"]

E = TypeVar("E", bound=BusError)

TOPIC = "crawlbus.items"
PATIENCE_S = 60.0  # what must happen has this long; a check that passes never waits for it


class Target:
    """The storage of one check, and what a suite cannot learn about it through the contract.

    `sink_class` has `from_url`, and is importable by another process; `url` leads to storage that no other check has
    seen. Where a method but `rows` raises `NotImplementedError`, its checks are left out.
    """

    sink_class: type[Any]
    url: str
    once_each = True  # a table, in which an id stands once; False: a file, in which it may repeat
    compares = True  # False: `compare` raises `Unsupported`

    def rows(self) -> list[dict[str, Any]]:
        """All that is stored, in any order, by `consumers.rows.COLUMNS`: `scraped_at` as `utc_text` writes it, `data`
        as `json.loads` gives it."""
        raise NotImplementedError

    def untouched(self) -> bool:
        """Nothing of a sink is in the storage yet: no file, no table."""
        raise NotImplementedError

    def gaps(self) -> list[tuple[str, str, str]]:
        """The record of gaps, oldest first: asked, first, end, each as the text of its position."""
        raise NotImplementedError

    def blocked(self) -> AbstractContextManager[None]:
        """While it lasts, the storage is there but cannot be written, as when another process has locked it. A call
        should give up within a second."""
        raise NotImplementedError

    def broken(self) -> AbstractContextManager[None]:
        """While it lasts, a write of rows and rejects fails after its rows were written."""
        raise NotImplementedError

    def as_stored(self, value: Any) -> Any:
        """What becomes of a value, as JSON has it, that the storage does not take as it is."""
        return value


def record(number: int, data: dict[str, Any] | None = None, *, job: str = "shop") -> ItemRecord:
    """The `number`-th item of a job."""
    url = f"https://shop.example/{number}"
    data = {"number": number} if data is None else data
    return ItemRecord(item_id(job, b"page", number), job, "shop", 1, url, 1.8e9 + number, data)


def batch_of(records: Iterable[ItemRecord], *, start: int = 0, partition: int = 0) -> Batch:
    """Items that came one in a message, the first at offset `start`."""
    batch = Batch()
    for offset, item in enumerate(records, start):
        batch.entries.append(Entry(Position(partition, offset), item))
        batch.progress[partition] = Progress(Position(partition, offset + 1), f"m{offset}")
    return batch


class Everything(NamedTuple):
    rows: list[str]
    positions: list[Progress]
    quarantined: list[Quarantined]


class Scene:
    """One check's storage, and sinks on it."""

    def __init__(self, target: Target, stack: AsyncExitStack) -> None:
        self._target, self._stack = target, stack

    def sink(self) -> Sink:
        """One more, not open."""
        sink = cast(Sink, self._target.sink_class.from_url(self._target.url))
        self._stack.push_async_callback(sink.aclose)
        return sink

    async def opened(self, consumer: str = "default", topic: str = TOPIC) -> Sink:
        sink = self.sink()
        await sink.open(consumer, topic)
        return sink

    async def member(self, partitions: Set[int] = frozenset({0}), consumer: str = "default") -> Sink:
        """One that has asked for its share of these partitions."""
        sink = await self.opened(consumer)
        await sink.hold(partitions)
        return sink

    async def positions(self, consumer: str = "default", topic: str = TOPIC) -> list[Progress]:
        """As one who comes later sees them."""
        sink = await self.opened(consumer, topic)
        found = sorted(await sink.positions())
        await sink.aclose()
        return found

    async def quarantined(self) -> list[Quarantined]:
        sink = self.sink()
        found = list(await sink.quarantined())
        await sink.aclose()
        return found

    def numbers(self) -> list[int]:
        """Of the rows that are stored."""
        return sorted(row["data"]["number"] for row in self._target.rows())

    async def everything(self) -> Everything:
        """All that can be seen of the storage, to compare; a sink has been opened before the rows are read."""
        positions = await self.positions()
        return Everything(sorted(map(repr, self._target.rows())), positions, await self.quarantined())


def scene(check: Callable[[Any, Scene], Awaitable[None]]) -> Callable[[Target], None]:
    """Make a plain method of a check: it gets its scene, and every sink is closed behind it."""

    async def play(target: Target) -> None:
        async with AsyncExitStack() as stack:
            await check(target, Scene(target, stack))

    def method(self: Target) -> None:
        asyncio.run(play(self))

    method.__name__, method.__doc__ = getattr(check, "__name__", "check"), check.__doc__
    return method


async def raises(error: type[E], call: Coroutine[Any, Any, object]) -> E:
    try:
        await call
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")
