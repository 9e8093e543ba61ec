"""A replay: all once, disturbing nobody; filters, sinks, stops and its rate."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from bus.errors import StorageFailed
from bus.message import Message
from bus.testing import Faults, FaultyTransport
from consumers.daemon import consume
from consumers.options import ConsumeOptions
from consumers.sink import Batch, Changes, Fenced, SinkUnavailable, Written, sink_of
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.places import SINKS, new_place
from tests.consumers.replays import (
    Here,
    every_bus,
    numbers,
    on,
    packed,
    progress,
)
from tests.consumers.scene import record
from tests.consumers.verdict import stored_numbers, watch


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
