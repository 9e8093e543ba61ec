"""Replays in one process: what is read, what is stored, and where the next run goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

import consumers.identity
import consumers.replay.bounds
from adapters.rabbitmq import topology
from bus.errors import BusError, Misconfigured, StorageFailed
from bus.message import Delivery, Message
from bus.registry import connect_transport
from bus.testing import Faults, FaultyTransport
from consumers.daemon import consume
from consumers.options import ConsumeOptions
from consumers.replay.bounds import OfJob, find_part
from consumers.replay.look import look
from consumers.replay.replay import Dropped
from consumers.sink import Batch, Changes, Fenced, SinkUnavailable, Written, sink_of
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from consumers.through import Through, ThroughBroken
from tests.consumers.logs import open_log
from tests.consumers.places import SINKS, new_place
from tests.consumers.replays import ONE_OF_EACH, Here, log_on, new_bus, packed
from tests.consumers.scene import jsonl_items, query, record, sqlite_items
from tests.consumers.verdict import stored_numbers, watch
from tests.servers import shared_url

every_bus = pytest.mark.parametrize("bus", ONE_OF_EACH)


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


@every_bus
def test_a_replay_stores_all_once_and_disturbs_nobody(bus: str, tmp_path: Path) -> None:
    """Into another table of the database that a consumer fills."""
    path = tmp_path / "items.sqlite"

    async def work(here: Here) -> None:
        await here.publish(range(600), pack=1)  # more messages than a subscription holds unacknowledged
        sink = SqliteSink(path)
        options = ConsumeOptions(prefix=here.topic.removesuffix("items"), limit=100, batch_items=50)
        await consume(here.transport, None, sink, options, asyncio.Event())
        await sink.aclose()
        before = await here.transport.lag(here.topic, group="default"), progress(path, "default")
        assert len(numbers(path)) == 100
        result = await here.replay(SqliteSink(path, "again"))
        assert (result.stored, result.complete, result.resumed, result.idle) == (600, True, False, False)
        assert sorted(numbers(path, "again")) == list(range(600))
        assert (await here.transport.lag(here.topic, group="default"), progress(path, "default")) == before
        result = await here.replay(SqliteSink(path, "again"))
        assert (result.stored, result.complete, result.resumed, result.idle) == (0, True, True, True)
        await here.publish(range(600, 620))
        result = await here.replay(SqliteSink(path, "again"))
        assert (result.stored, result.complete, result.resumed, result.idle) == (20, True, True, False)
        assert sorted(numbers(path, "again")) == list(range(620)) and len(numbers(path)) == 100

    on(bus, tmp_path, work)


def progress(path: Path, consumer: str) -> list[Any]:
    return query(path, f"SELECT * FROM sink_progress WHERE consumer = '{consumer}' AND target = 'items'")


@every_bus
def test_stopped_again_and_again_it_stores_each_item_once(bus: str, tmp_path: Path) -> None:
    """A file, in which what is written twice is there twice; batches that end inside of messages."""
    path = tmp_path / "items.jsonl"

    async def work(here: Here) -> None:
        await here.publish(range(300))
        result, runs = await here.replay(JsonlSink(path), stop_at=1, batch=10), 1
        while not result.complete:
            assert result.stored > 0 and not result.idle
            result, runs = await here.replay(JsonlSink(path), stop_at=1, batch=10), runs + 1
            assert result.resumed
        assert runs > 3

    on(bus, tmp_path, work)
    assert sorted(numbers(path)) == list(range(300))


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


def test_filters_hold_all_at_once(tmp_path: Path) -> None:
    async def work(here: Here) -> None:
        items = [
            record(0, job="one"), record(1, job="two"), record(2, job="one")._replace(spider="other"),
            record(3, job="one")._replace(url=None), record(4, job="one")._replace(url="https://shop.example/[a]?x=1"),
        ]  # fmt: skip
        await here.transport.publish(here.topic, [packed([item])[0] for item in items])
        await here.transport.publish(here.topic, [Message("x", b"?", {"job": "none"})])
        cases: dict[str, tuple[dict[str, Any], list[int]]] = {
            "job": ({"job": "two"}, [1]),
            "spider": ({"spider": "other"}, [2]),
            "both": ({"spider": "shop", "job": "one"}, [0, 3, 4]),
            "star": ({"url": "https://*/?", "job": "one"}, [0, 2]),
            "whole": ({"url": "shop.example/0", "job": "one"}, []),
            "brackets": ({"url": "*/[a]?x=*", "job": "one"}, [4]),
        }
        for name, (more, expected) in cases.items():
            result = await here.replay(SqliteSink(tmp_path / f"{name}.sqlite"), **more)
            assert numbers(tmp_path / f"{name}.sqlite") == expected, name
            assert result.quarantined == 0
        assert (await here.replay(SqliteSink(tmp_path / "all.sqlite"))).quarantined == 1  # it cannot be read

    on("sqlite", tmp_path, work)


@pytest.mark.parametrize("kind", SINKS)
def test_into_every_sink(kind: str, tmp_path: Path) -> None:
    """Stopped, gone on with, and then looked at: what is there is as it would be."""
    with new_place("sqlite", kind, tmp_path) as place:
        watch(place.sink)

        async def work(here: Here) -> None:
            await here.publish(range(300))
            first = await here.replay(sink_of(place.sink), stop_at=1, batch=10)
            second = await here.replay(sink_of(place.sink))
            assert first.stored + second.stored == 300 and second.complete
            assert sorted(stored_numbers(place.sink)) == list(range(300))
            found = await here.look(sink := sink_of(place.sink))
            await sink.aclose()
            assert found.changes == (None if kind in ("jsonl", "parquet") else Changes(0, 0, 300))
            assert (await here.replay(sink_of(place.sink), restart=True)).stored == 300
            assert set(stored_numbers(place.sink)) == set(range(300))

        on("sqlite", tmp_path, work)


def test_restart_does_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"

    async def work(here: Here) -> None:
        await here.publish(range(200))
        assert (await here.replay(JsonlSink(path), stop_at=1, batch=10)).stored < 200
        result = await here.replay(JsonlSink(path), restart=True)
        assert (result.stored, result.resumed) == (200, False)
        assert (await here.replay(JsonlSink(path))).idle

    on("sqlite", tmp_path, work)
    assert set(numbers(path)) == set(range(200)) and len(numbers(path)) > 200


def test_a_restart_that_fails_goes_on_as_such(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"

    class Full(JsonlSink):
        async def write(self, batch: Batch) -> Written:
            if batch.entries:
                raise StorageFailed("no space left")
            return await super().write(batch)

    async def work(here: Here) -> None:
        await here.publish(range(20))
        await here.replay(JsonlSink(path))
        with pytest.raises(StorageFailed):
            await here.replay(Full(path), restart=True)
        assert (await here.replay(JsonlSink(path))).stored == 20

    on("sqlite", tmp_path, work)


def test_what_the_log_has_dropped_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def work(here: Here) -> None:
        await here.publish(range(200), pack=1)
        assert (await here.replay(SqliteSink(tmp_path / "begun.sqlite"), "0/0", stop_at=1, batch=3)).stored < 200
        await here.trimmed_to({0: 200})
        await here.publish(range(200, 210), pack=1)
        asked = r"0/150 was asked for, and the item log has dropped 50 messages of it: it holds 0/200 to 0/210"
        with pytest.raises(Dropped, match=asked):
            await here.replay(SqliteSink(tmp_path / "x.sqlite"), "0/150")
        goes_on = r"this replay goes on at 0/\d+, and the item log has dropped \d+ messages .* earliest --restart` "
        with pytest.raises(Dropped, match=goes_on):
            await here.replay(SqliteSink(tmp_path / "begun.sqlite"), "0/0")
        with pytest.raises(BusError, match="--to 0/999 is not in the item log yet, which ends at 0/210"):
            await here.replay(SqliteSink(tmp_path / "x.sqlite"), "earliest", "0/999")
        assert not (tmp_path / "x.sqlite").exists() or numbers(tmp_path / "x.sqlite") == []

    on("sqlite", tmp_path, work, retention_s=0.5)


def test_what_was_dropped_after_it_was_stored_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    async def work(here: Here) -> None:
        await here.publish(range(35))
        assert (await here.replay(SqliteSink(path), "earliest", "0/2.3")).stored == 17
        await here.trimmed_to({0: 5})
        await here.publish(range(35, 42))
        result = await here.replay(SqliteSink(path), "earliest", "0/2.3")
        assert (result.stored, result.complete, result.resumed, result.idle) == (0, True, True, True)

    on("sqlite", tmp_path, work, retention_s=0.5)


def test_what_is_dropped_while_it_replays_is_told(tmp_path: Path) -> None:
    """The first batch waits in the sink until the log is trimmed."""

    async def work(here: Here) -> None:
        class Slow(SqliteSink):
            async def write(self, batch: Batch) -> Written:
                await here.trimmed_to({0: 400})
                return await super().write(batch)

        await here.publish(range(400), pack=1)
        with pytest.raises(Dropped, match="this replay goes on at"):
            await here.replay(Slow(tmp_path / "items.sqlite"), batch=2)
        assert 0 < len(numbers(tmp_path / "items.sqlite")) < 400

    on("sqlite", tmp_path, work, retention_s=1.0)


def test_a_time_before_the_log_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()

    async def work(here: Here) -> None:
        await here.publish(range(10), pack=1, scraped_at=now)
        await here.trimmed_to({0: 10})
        await here.publish(range(10, 20), pack=1, scraped_at=now)
        assert (await here.replay(SqliteSink(tmp_path / "items.sqlite"), at(now - 60))).stored == 10
        assert "the log begins at 0/10: what it has dropped before that is not replayed" in caplog.text

    on("sqlite", tmp_path, work, retention_s=0.5)


@every_bus
def test_where_there_is_no_log_none_is_made(bus: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with aclosing(await connect_transport(new_bus(bus, tmp_path))) as transport:
            here = Here(transport, f"t{token_hex(4)}.items")
            for attempt in (here.replay(SqliteSink(tmp_path / "x.sqlite")), here.look(None)):
                with pytest.raises(BusError, match=r"the bus has no item log 't\w+\.items': nothing was crawled there"):
                    await attempt
            assert not (tmp_path / "x.sqlite").exists()

    asyncio.run(main())


def test_another_log_is_noticed(tmp_path: Path) -> None:
    async def first(here: Here) -> None:
        await here.publish(range(50), pack=1)
        await here.replay(SqliteSink(tmp_path / "items.sqlite"))

    on("sqlite", tmp_path, first)
    (tmp_path / "bus.db").unlink()

    async def second(here: Here) -> None:
        await here.publish(range(1000, 1050), pack=1)
        with pytest.raises(BusError, match="not the one that an earlier run of this replay has read: --restart"):
            await here.replay(SqliteSink(tmp_path / "items.sqlite"))
        assert (await here.replay(SqliteSink(tmp_path / "items.sqlite"), restart=True)).stored == 50

    on("sqlite", tmp_path, second)


def test_a_log_that_is_made_anew_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what was stored last, even where the subscription goes on as if nothing had happened."""
    monkeypatch.setattr(consumers.identity, "CHECK_S", 0.0)
    path = tmp_path / "items.sqlite"

    async def main() -> None:
        log = open_log("redis-7", shared_url("redis-7"))

        class Late(SqliteSink):
            async def write(self, batch: Batch) -> Written:
                written = await super().write(batch)
                if not query(path, "SELECT 1 FROM items WHERE id = 'changed'"):
                    execute(path, "UPDATE items SET id = 'changed' WHERE rowid = 1")
                    await log.delete()
                    await log.publish(range(1000, 1300))
                return written

        await log.publish(range(300))
        async with log.connected() as transport:
            here = Here(transport, log.topic)
            for _ in range(2):  # also the next run sees it
                with pytest.raises(BusError, match="not the one that an earlier run of this replay has read"):
                    await here.replay(Late(path), batch=5)

    asyncio.run(main())
    assert max(numbers(path)) < 300


@pytest.mark.parametrize("bus", ["sqlite", "kafka-4.1"])
def test_two_at_once_share_the_work(bus: str, tmp_path: Path) -> None:
    """Where there is one partition, one stands by."""
    path = tmp_path / "items.jsonl"

    async def work(here: Here) -> None:
        await here.publish(range(400))

        async def run(rate: float) -> int:
            result = await here.replay(JsonlSink(path), batch=20, rate=rate)
            assert result.complete and len(numbers(path)) == 400  # by both
            return result.stored

        assert sum(await asyncio.gather(run(500), run(150))) == 400

    on(bus, tmp_path, work)
    assert sorted(numbers(path)) == list(range(400))


def test_the_rate_is_kept(tmp_path: Path) -> None:
    async def work(here: Here) -> None:
        await here.publish(range(300))
        began = time.monotonic()
        await here.replay(SqliteSink(tmp_path / "items.sqlite"), rate=150)
        assert time.monotonic() - began >= 0.9  # the second half waits for the first one's second

    on("sqlite", tmp_path, work)
    assert len(numbers(tmp_path / "items.sqlite")) == 300


def test_whatever_is_away_is_waited_for(tmp_path: Path) -> None:
    """A bus that loses connections, a sink that is locked, and one that another process has taken over."""
    troubles = [SinkUnavailable("locked"), Fenced("taken over")]
    path = tmp_path / "items.jsonl"

    class Troubled(JsonlSink):
        async def write(self, batch: Batch) -> Written:
            if troubles:
                raise troubles.pop(0)
            return await super().write(batch)

    async def work(here: Here) -> None:
        await here.publish(range(200), pack=1)
        here.transport = FaultyTransport(here.transport, seed=3, faults=Faults(lost=0.05, short=0.5))
        result = await here.replay(Troubled(path), batch=20)
        assert (result.stored, result.complete) == (200, True) and not troubles

    on("sqlite", tmp_path, work)
    assert numbers(path) == list(range(200))


def test_into_the_file_of_the_bus(tmp_path: Path) -> None:
    async def work(here: Here) -> None:
        await here.publish(range(20))
        assert (await here.replay(SqliteSink(tmp_path / "bus.db", "again"))).stored == 20

    on("sqlite", tmp_path, work)
    assert numbers(tmp_path / "bus.db", "again") == list(range(20))


# through a function


def changed(item: dict[str, Any]) -> Any:
    """As a user writes it."""
    number = item["data"]["number"]
    item["data"]["seen"] = item["scraped_at"].isoformat()
    match number % 5:
        case 0:
            return None
        case 1:
            return {**item, "data": {"number": number + 1000}}
        case 2:
            return {"data": {"number": number}, "url": None}
        case 3:
            return [{**item, "data": {"number": number}}, {**item, "data": {"number": -number}}]
    raise LookupError(f"no {number}")


def test_through_a_function(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    async def work(here: Here) -> None:
        await here.publish(range(10), pack=10)
        for _ in range(2):  # what it makes has the same ids each time
            result = await here.replay(SqliteSink(path), through=Through("x:changed", changed), restart=True)
            assert (result.stored, result.quarantined, result.failed, result.complete) == (8, 2, 2, True)

    on("sqlite", tmp_path, work)
    assert sorted(numbers(path)) == [-8, -3, 2, 3, 7, 8, 1001, 1006]
    originals = {record(number).id for number in (1, 2, 3, 6, 7, 8)}
    assert originals < {item["id"] for item in sqlite_items(path)}
    assert [item["url"] for item in sqlite_items(path) if item["data"]["number"] == 2] == [None]
    rows = query(path, "SELECT reason, item, message, content FROM sink_quarantine ORDER BY item")
    assert [row[:3] for row in rows] == [
        ("--through x:changed: LookupError: no 4", 4, record(4).id),
        ("--through x:changed: LookupError: no 9", 9, record(9).id),
    ]
    assert all(b"seen" not in row[3] for row in rows)  # as it was in the log


def test_a_row_that_was_made_of_another_goes_to_quarantine_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    async def work(here: Here) -> None:
        await here.publish([1])
        await here.replay(SqliteSink(path), "latest")  # makes the table
        query(
            path,
            "CREATE TRIGGER t BEFORE INSERT ON items WHEN new.data LIKE '%-1%' BEGIN SELECT raise(ABORT, 'no'); END",
        )
        double = Through("x:y", lambda item: [item, {"data": {"number": -1}}, {"data": {"number": 7}}])
        assert (await here.replay(SqliteSink(path), through=double)).stored == 2

    on("sqlite", tmp_path, work)
    assert sorted(numbers(path)) == [1, 7]
    ((content,),) = query(path, "SELECT content FROM sink_quarantine")
    assert b"number\xff" in content


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (1, "it returned a int"),
        ([1], "a list with a int in it"),
        ([{}] * 1001, "1,001 dicts for one item, and 1,000 are the most"),
        ({"title": 1}, "it returned 'title' beside id"),
        ({"data": 1}, "another type"),
        ({"id": ""}, "another type"),
        ({"scraped_at": "now"}, "scraped_at is no datetime"),
        ({"scraped_at": float("nan")}, "NaN"),
        ({"scraped_at": 1e300}, "OverflowError"),
    ],
)
def test_what_a_function_may_not_return(made: Any, why: str) -> None:
    found = Through("x:y", lambda _: made)(record(1))
    assert isinstance(found, str) and why in found


def test_a_function_that_ends_the_process_fails_for_that_item(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    def leaves(item: dict[str, Any]) -> dict[str, Any]:
        return sys.exit("enough") if item["data"]["number"] == 3 else item

    async def work(here: Here) -> None:
        await here.publish(range(10))
        result = await here.replay(SqliteSink(path), through=Through("x:y", leaves))
        assert (result.stored, result.failed, result.complete) == (9, 1, True)

    on("sqlite", tmp_path, work)
    assert query(path, "SELECT reason FROM sink_quarantine") == [("--through x:y: SystemExit: enough",)]


def test_a_function_may_make_a_thousand_of_one() -> None:
    many = Through("x:y", lambda _: [{}] * 1000)(record(1))
    assert isinstance(many, list) and len({item.id for item in many}) == 1000


def test_a_broken_function_ends_the_replay(tmp_path: Path) -> None:
    def broken(item: dict[str, Any]) -> None:
        raise KeyError("price")

    async def work(here: Here) -> None:
        await here.publish(range(300))
        with pytest.raises(ThroughBroken, match=r"x:y: KeyError: 'price'; so it was for each of the first 100 items"):
            await here.replay(SqliteSink(tmp_path / "items.sqlite"), through=Through("x:y", broken))

    on("sqlite", tmp_path, work)
    assert query(tmp_path / "items.sqlite", "SELECT count(*) FROM sink_quarantine") == [(0,)]


@pytest.mark.parametrize("pack", [60, 20])
def test_a_slow_function_is_stopped_between_items(pack: int, tmp_path: Path) -> None:
    """In the middle of a message or between two, and the next run goes on right there."""
    path, seen = tmp_path / "items.jsonl", list[int]()

    async def work(here: Here) -> None:
        await here.publish(range(60), pack=pack)

        def slow(item: dict[str, Any]) -> dict[str, Any]:
            seen.append(item["data"]["number"])
            if len(seen) == 20:
                stop.set()
            return item

        from consumers.replay.replay import replay

        stop, sink = asyncio.Event(), JsonlSink(path)
        result = await replay(here.transport, sink, here.options(), stop, through=Through("x:y", slow))
        assert result.stored == 20 and not result.complete
        stop.clear()
        assert (await replay(here.transport, sink, here.options(), stop, through=Through("x:y", slow))).stored == 40
        await sink.aclose()

    on("sqlite", tmp_path, work)
    assert seen == numbers(path) == list(range(60))


# before


@every_bus
def test_a_look_tells_what_a_replay_would_do_and_leaves_nothing(bus: str, tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    async def work(here: Here) -> None:
        await here.publish(range(100), job="one")
        await here.publish(range(100, 150), job="two")
        before = sorted(os.listdir(tmp_path))
        found = await here.look(SqliteSink(path))
        assert sorted(os.listdir(tmp_path)) == before
        assert (found.items, found.messages, found.refused, found.complete) == (150, 15 + 8, 0, True)
        assert found.jobs == {("one", "shop"): 100, ("two", "shop"): 50}
        assert (found.oldest_s, found.newest_s) == (record(0).scraped_at, record(149).scraped_at)
        assert found.changes == Changes(150, 0, 0) and found.size_bytes > 150 and found.margin == 0
        await here.replay(SqliteSink(path), job="one")
        execute(path, "UPDATE items SET url = 'x' WHERE job = 'one' AND json_extract(data, '$.number') < 10")
        found = await here.look(SqliteSink(path))
        assert found.changes == Changes(50, 10, 90)
        assert (await here.look(JsonlSink(path))).changes is None
        assert (await here.look(None, job="two")).items == 50

    on(bus, tmp_path, work)


@pytest.mark.parametrize("kind", ["sqlite", "postgres-15", "jsonl"])
def test_a_look_counts_what_would_be_refused(kind: str, tmp_path: Path) -> None:
    """By the function, by any sink, and by this one; and ids by the batch."""
    with new_place("sqlite", kind, tmp_path) as place:
        url = place.sink + ("&" if "?" in place.sink else "?") + "nul=reject" if kind == "postgres-15" else place.sink

        def fails(item: dict[str, Any]) -> dict[str, Any]:
            return {} if item["data"]["number"] else sys.exit()

        async def work(here: Here) -> None:
            await here.publish(range(4))
            await here.publish([4], data={"number": 4, "text": "a\0"})
            await here.publish([1, 2, 3])
            for number, scraped_at in ((5, 1e300), (6, float("nan"))):
                await here.publish([number], scraped_at=scraped_at)
            sink = sink_of(url)
            found = await look(
                here.transport, sink, here.options(), asyncio.Event(), through=Through("x:y", fails)
            )  # fmt: skip
            stored = await here.replay(sink_of(url), through=Through("x:y", fails))
            assert (found.items, found.refused) == (stored.stored, stored.quarantined)
            assert found.refused == (4 if kind == "postgres-15" else 3)
            if kind != "jsonl":
                assert found.changes is not None and found.changes.new == {"sqlite": 4, "postgres-15": 3}[kind]
            plain = await here.look(sink)
            await sink.aclose()
            assert plain.refused == (3 if kind == "postgres-15" else 2) and plain.newest_s == record(4).scraped_at

        on("sqlite", tmp_path, work)


# what is asked for


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
