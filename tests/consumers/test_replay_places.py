"""From where to where: positions, times, jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import consumers.identity
import consumers.replay.bounds
from adapters.rabbitmq import topology
from bus.errors import BusError, Misconfigured
from bus.message import Delivery
from consumers.replay.bounds import OfJob, find_part
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.replays import (
    Here,
    at,
    every_bus,
    numbers,
    on,
)


@every_bus
def test_between_positions(bus: str, tmp_path: Path) -> None:
    """What stands at --from is in, what stands at --to is not; partitions that are not named are left out."""

    async def work(here: Here) -> None:
        await here.publish(range(300))
        content = await here.content()
        partition = max(content)[0]
        there = sorted(position for position in content if position.partition == partition)
        cases = [(0, len(there) - 1), (3, 20), (7, 14), (8, 9), (len(there) // 2, len(there) // 2)]
        for number, (first, last) in enumerate(cases):
            start, end = (str(there[index]) for index in (first, last))
            path = tmp_path / f"{number}.sqlite"
            result = await here.replay(SqliteSink(path), start, end)
            assert result.complete and result.stored == last - first
            expected = [content[position] for position in there[first:last]]
            assert sorted(numbers(path)) == sorted(expected)
            if expected:
                assert (await here.replay(SqliteSink(path), start, end)).idle

    on(bus, tmp_path, work)


def test_up_to_an_offset_that_a_stream_has_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ does so where a segment begins."""
    monkeypatch.setattr(topology, "SEGMENT_BYTES", 100_000)

    async def work(here: Here) -> None:
        for number in range(20):
            await here.publish([number], data={"number": number, "padding": "x" * 20_000})
        content = await here.content()
        offsets = [position.offset for position in content]
        hole = max(set(range(offsets[-1])) - set(offsets))
        path = tmp_path / "items.sqlite"
        result = await here.replay(SqliteSink(path), "earliest", f"0/{hole + 1}")
        assert result.complete and result.stored == len([offset for offset in offsets if offset < hole])
        result = await here.replay(SqliteSink(path), "earliest", f"0/{hole + 1}")
        assert result.idle and result.complete

    on("rabbitmq-4.3", tmp_path, work)


@every_bus
def test_the_broker_finds_times(bus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a margin the part begins and ends where the time of publishing does. RabbitMQ's own index is too rough
    for that, and its adapter looks at each message."""
    monkeypatch.setattr(consumers.replay.bounds, "EARLY_S", 0.0)
    monkeypatch.setattr(consumers.replay.bounds, "LATE_S", 0.0)

    async def work(here: Here) -> None:
        times = []
        for number in range(3):
            times.append(datetime.now(UTC))
            await asyncio.sleep(0.05)
            await here.publish([number], scraped_at=time.time())
            await asyncio.sleep(0.05)
        places = {number: position for position, number in (await here.content()).items()}
        part = await find_part(here.transport, here.topic, times[1], times[2])
        of_1, of_2 = places[1], places[2]
        assert part.start[of_1.partition] == of_1
        assert part.end[of_2.partition] == of_2
        result = await here.replay(SqliteSink(tmp_path / "items.sqlite"), *(time.isoformat() for time in times[1:]))
        assert result.complete and numbers(tmp_path / "items.sqlite") == [1]

    on(bus, tmp_path, work)


def test_a_time_is_that_of_scraping(tmp_path: Path) -> None:
    """Items that were published in another order than scraped, and hours later. It is asked for as it is stored."""
    now = int(time.time()) + 0.1234567

    async def work(here: Here) -> None:
        for number in (5, 3, 4, 1, 2, 0):
            await here.publish([number], scraped_at=now - 5 * 3600 + number * 60)
        start, end = now - 5 * 3600 + 60, now - 5 * 3600 + 4 * 60
        result = await here.replay(SqliteSink(tmp_path / "items.sqlite"), at(start), at(end))
        assert result.complete and result.stored == 3
        assert (await here.replay(SqliteSink(tmp_path / "later.sqlite"), at(now + 3600))).stored == 0

    on("sqlite", tmp_path, work)
    assert numbers(tmp_path / "items.sqlite") == [1, 2, 3]


@pytest.mark.parametrize("bus", ["sqlite", "kafka-4.1"])
def test_a_job_from_its_first_item_to_its_last(bus: str, tmp_path: Path) -> None:
    async def work(here: Here) -> None:
        for first, job in ((0, "one"), (10, "two"), (20, "one"), (30, "three")):
            await here.publish(range(first, first + 10), job=job, pack=1)
        path = tmp_path / "two.sqlite"
        assert (await here.replay(SqliteSink(path), "job:two", "job:two")).complete
        found = numbers(path)
        assert set(range(10, 20)) <= set(found) and not set(found) & set(range(30, 40))
        if bus == "sqlite":
            assert found == list(range(10, 20))
        path = tmp_path / "one.sqlite"
        assert (await here.replay(SqliteSink(path), "earliest", "job:one", job="one")).complete
        assert sorted(numbers(path)) == [*range(10), *range(20, 30)]
        with pytest.raises(BusError, match="no item of job 'four'"):
            await here.replay(SqliteSink(tmp_path / "none.sqlite"), "job:four")
        assert not (tmp_path / "none.sqlite").exists()

    on(bus, tmp_path, work)


@pytest.mark.parametrize("bus", ["sqlite", "redis-7", "rabbitmq-3.10"])  # Kafka gives one partition after another
def test_to_find_the_first_item_of_a_job_the_rest_is_not_read(
    bus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, found = consumers.replay.bounds._read, list[Delivery]()

    async def noted(*arguments: Any) -> AsyncGenerator[Delivery, None]:
        async with aclosing(read(*arguments)) as deliveries:
            async for delivery in deliveries:
                found.append(delivery)
                yield delivery

    monkeypatch.setattr(consumers.replay.bounds, "_read", noted)

    async def work(here: Here) -> None:
        await here.publish(range(20), pack=1, job="one")
        await here.publish(range(20, 2000), pack=1, job="two")
        part = await find_part(here.transport, here.topic, OfJob("two"), "latest")
        assert len(found) < 1500 and sum(map(part.size, part.end)) == 1980
        found.clear()
        part = await find_part(here.transport, here.topic, OfJob("one"), OfJob("two"))
        assert len(found) >= 2000 and sum(map(part.size, part.end)) == 2000

    on(bus, tmp_path, work)


@every_bus
def test_for_ever_and_from_the_beginning_of_time(bus: str, tmp_path: Path) -> None:
    async def work(here: Here) -> None:
        await here.publish(range(20))
        for number, (start, end) in enumerate((("0001-01-01", "9999-12-31"), ("1969-12-31T23:59", "latest"))):
            result = await here.replay(SqliteSink(tmp_path / f"{number}.sqlite"), start, end)
            assert result.complete and sorted(numbers(tmp_path / f"{number}.sqlite")) == list(range(20))
        assert (await here.replay(SqliteSink(tmp_path / "none.sqlite"), "earliest", "0001-01-01")).stored == 0

    on(bus, tmp_path, work)


@pytest.mark.parametrize(
    ("start", "end", "same"),
    [
        ("2026-11-21", "latest", ("2026-11-21T00:00:00Z", "latest")),
        ("2026-11-21T01:00+01:00", "latest", ("2026-11-21", "latest")),
        ("1/2,0/3.0", "earliest", ("0/3,1/2", "earliest")),
    ],
)
def test_the_same_place_makes_the_same_replay(start: str, end: str, same: tuple[str, str]) -> None:
    here = Here.__new__(Here)
    here.topic = "crawlbus.items"
    name = here.options(start, end).name
    assert name == here.options(*same).name == here.options(start, end, rate=3.0, restart=True).name
    others = [here.options(start, end, **{what: "x"}).name for what in ("job", "spider", "url", "through")]
    assert len({name, *others, here.options("0/1", end).name, replace(here.options(start, end), topic="t").name}) == 7


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        ("yesterday", "latest", "--from 'yesterday' is no place in the log"),
        ("0/1,0/2", "latest", "one position for each partition"),
        ("earliest", "job:A B", "--to 'job:A B' is no place"),
        ("2026-11-21", "2026-11-20", "--from is later than --to"),
        ("0/5.1", "0/5", "--from is behind --to"),
    ],
)
def test_places_that_make_no_sense(start: str, end: str, why: str) -> None:
    here = Here.__new__(Here)
    here.topic = "crawlbus.items"
    with pytest.raises(Misconfigured, match=why):
        here.options(start, end)
