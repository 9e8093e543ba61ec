"""Consumers of one name on one log: they share its partitions, and one that slept changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus.registry import connect_transport
from bus.topic import item_log
from bus.url import bus_options, file_path
from consumers import daemon
from consumers.daemon import consume
from consumers.options import ConsumeResult
from consumers.sink import Progress, sink_of
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.lives import OPTIONS, packs
from tests.consumers.places import Place, new_place
from tests.consumers.scene import query
from tests.consumers.verdict import stored_numbers, watch


async def publish(place: Place, numbers: range) -> None:
    prefix = bus_options(place.bus).prefix
    async with aclosing(await connect_transport(place.bus)) as transport:
        await transport.declare(item_log(prefix))
        await transport.publish(f"{prefix}items", packs(numbers))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class Member:
    """One consumer, with connections of its own."""

    def __init__(self, place: Place) -> None:
        self._place, self._stop = place, asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> ConsumeResult:
        sink = sink_of(self._place.sink)
        try:
            async with aclosing(await connect_transport(self._place.bus)) as transport:
                options = replace(OPTIONS, prefix=bus_options(self._place.bus).prefix)
                return await consume(transport, None, sink, options, self._stop)
        finally:
            await sink.aclose()

    async def leave(self) -> int:
        """How many items it has stored."""
        self._stop.set()
        return (await self.task).stored


def shares(place: Place) -> list[int]:
    """How many partitions each member holds, the least first."""
    members = query(file_path(place.sink), "SELECT member FROM sink_members")
    held = Counter(member for (member,) in query(file_path(place.sink), "SELECT member FROM sink_progress"))
    return sorted(held[member] for (member,) in members)


def test_three_share_four_partitions_and_close_the_gap_that_one_leaves(tmp_path: Path) -> None:
    async def main(place: Place) -> None:
        def all_stored(numbers: Iterable[int]) -> Callable[[], bool]:
            return lambda: set(numbers) <= set(stored_numbers(place.sink))

        await publish(place, range(120))
        members = [Member(place) for _ in range(3)]
        await until(lambda: shares(place) == [1, 1, 2])
        await publish(place, range(120, 360))
        await until(all_stored(range(360)))
        stored = [await members.pop().leave()]
        await until(lambda: shares(place) == [2, 2])
        await publish(place, range(360, 480))
        await until(all_stored(range(480)))
        stored += [await member.leave() for member in members]
        assert sum(stored) == 480 and min(stored) > 0, stored
        assert sorted(stored_numbers(place.sink)) == list(range(480))

    with new_place("kafka-4.1", "sqlite", tmp_path) as place:
        watch(place.sink)
        asyncio.run(main(place))


class Fickle(SqliteSink):
    """Holds something else now and then, while it is still storing."""

    asked = 0

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        self.asked += 1
        held = await super().hold(partitions)
        return {} if self.asked % 2 == 0 and self.asked < 12 else held

    def _store(self, *args: Any) -> Any:
        time.sleep(0.05)
        return super()._store(*args)


def test_what_is_stored_while_shares_change_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LEASE_S", 0.25)
    monkeypatch.setattr(daemon, "STANDBY_S", 0.01)

    async def main(place: Place) -> int:
        await publish(place, range(300))
        sink = Fickle.from_url(place.sink)
        async with aclosing(await connect_transport(place.bus)) as transport, aclosing(sink):
            result = await consume(transport, None, sink, replace(OPTIONS, limit=200), asyncio.Event())
            assert sink.asked > 11
            return result.stored

    with new_place("sqlite", "sqlite", tmp_path) as place:
        watch(place.sink)
        assert asyncio.run(main(place)) == 200
        assert sorted(stored_numbers(place.sink)) == list(range(200))


class Overtaken(SqliteSink):
    """Before it holds what it asks for, another consumer stores what has come since."""

    place: Place
    overtaken = False

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        if not self.overtaken:
            self.overtaken = True
            await publish(self.place, range(30, 60))
            await self.consume(SqliteSink.from_url(self.place.sink))
            await publish(self.place, range(60, 90))
        return await super().hold(partitions)

    async def consume(self, sink: SqliteSink) -> None:
        async with aclosing(await connect_transport(self.place.bus)) as transport, aclosing(sink):
            assert (await consume(transport, None, sink, replace(OPTIONS, limit=30), asyncio.Event())).stored == 30


def test_what_another_has_stored_meanwhile_is_no_gap(tmp_path: Path) -> None:
    async def main(place: Place) -> None:
        await publish(place, range(30))
        sink = Overtaken.from_url(place.sink)
        sink.place = place
        await sink.consume(SqliteSink.from_url(place.sink))
        await sink.consume(sink)

    with new_place("sqlite", "sqlite", tmp_path) as place:
        watch(place.sink)
        asyncio.run(main(place))
