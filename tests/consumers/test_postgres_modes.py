"""The history of items in PostgreSQL, and every item of the log as a row."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import groupby
from typing import Any

import pytest

from bus.errors import StorageFailed, Unsupported
from bus.items import ItemRecord
from bus.message import Position
from consumers.sink import Batch, Changes, Entry, Written
from consumers.testing import batch_of, record
from tests.consumers.postgres import ask, fill, member
from tests.consumers.test_postgres_sink import database, on_postgres

__all__ = ["database"]

T0 = 1_800_000_000


def seen(number: int, at: int, content: str) -> ItemRecord:
    return record(number, {"v": content})._replace(scraped_at=float(T0 + at))


def history(items: Iterable[ItemRecord]) -> list[tuple[str, str, int, int]]:
    """Id, content, and when it was seen first and last: what a history of these items is."""
    by_time = {(item.id, item.scraped_at): item for item in items}
    ordered = [by_time[key] for key in sorted(by_time)]
    found = []
    for (id, v), group in groupby(ordered, key=lambda item: (item.id, item.data["v"])):
        times = [int(item.scraped_at) - T0 for item in group]
        found.append((id, v, times[0], times[-1]))
    return found


def stored(url: str, source: str = "items") -> list[tuple[Any, ...]]:
    at = "extract(epoch FROM {})::bigint - " + str(T0)
    return ask(
        url,
        f"SELECT id, data->>'v', {at.format('scraped_at')}, {at.format('last_seen')} FROM {source}"
        " ORDER BY id, scraped_at",
    )


def batches(items: list[ItemRecord], chance: random.Random) -> Iterable[Batch]:
    while items:
        count = chance.choice([1, 5, 30, 90])
        yield batch_of(items[:count])
        items = items[count:]


@on_postgres
@pytest.mark.parametrize("seed", range(3))
def test_a_history_has_a_row_for_each_run_of_times_with_one_content(seed: int, database: str) -> None:
    """Whatever the batches are, and whatever part of it is written again."""
    chance = random.Random(seed)
    log = [seen(chance.randrange(9), at, chance.choice("aab")) for at in range(300)]
    url = f"{database}?mode=versions"
    asyncio.run(fill(url, *batches(log, chance)))
    assert stored(database) == history(log)
    rows = ask(database, "SELECT xmin::text, * FROM items ORDER BY id, scraped_at")
    start = chance.randrange(200)
    replay = [log[100:], log[start : start + 90], random.Random(seed).sample(log, 300)]
    asyncio.run(fill(url, *(batch for part in replay for batch in batches(part, chance))))
    assert stored(database) == history(log)
    assert ask(database, "SELECT xmin::text, * FROM items ORDER BY id, scraped_at") == rows, "and nothing is rewritten"
    for moment in (-1, 0, chance.randrange(300), 299, 1000):
        known = {item.id: item.data["v"] for item in log if item.scraped_at <= T0 + moment}
        assert dict(ask(database, f"SELECT id, data->>'v' FROM items_as_of(to_timestamp({T0 + moment}))")) == known
    assert dict(ask(database, "SELECT id, data->>'v' FROM items_latest")) == {i.id: i.data["v"] for i in log}


@on_postgres
def test_a_late_item_takes_its_place_in_the_history(database: str) -> None:
    url = f"{database}?mode=versions"
    asyncio.run(fill(url, batch_of([seen(1, 10, "a"), seen(1, 20, "a"), seen(1, 30, "b"), seen(1, 40, "b")])))
    late = [seen(1, 5, "a"), seen(1, 25, "b"), seen(1, 35, "c"), seen(1, 36, "b"), seen(1, 15, "a"), seen(1, 45, "b")]
    asyncio.run(fill(url, *(batch_of([item]) for item in late)))
    id = record(1).id
    assert stored(database) == [(id, "a", 5, 20), (id, "b", 25, 25), (id, "c", 35, 35), (id, "b", 36, 45)]


@on_postgres
def test_of_two_contents_at_one_time_the_one_written_last_counts(database: str) -> None:
    """So a replay through a function replaces what it mends."""
    one, two = seen(1, 5, "a"), seen(1, 5, "b")
    for n, order in enumerate([[[one, two]], [[two, one]], [[one], [two]], [[two], [one]], [[one], [two], [one]]]):
        asyncio.run(fill(f"{database}?mode=versions&table=t{n}", *(batch_of(items) for items in order)))
        asyncio.run(fill(f"{database}?mode=versions&table=last{n}", batch_of([order[-1][-1]])))
        assert stored(database, f"t{n}") == stored(database, f"last{n}") and len(stored(database, f"t{n}")) == 1


@on_postgres
def test_a_history_keeps_its_view_when_columns_are_added(database: str) -> None:
    url = f"{database}?mode=versions&table=shop.items"
    asyncio.run(fill(url, batch_of([seen(1, 1, "a")])))
    asyncio.run(fill(f"{url}&columns=v:text", batch_of([seen(1, 2, "b"), seen(2, 2, "a")], start=1)))
    for source in ("items_latest", f"items_as_of(to_timestamp({T0 + 2}))"):
        assert ask(database, f"SELECT v FROM shop.{source} ORDER BY v") == [("a",), ("b",)]
    assert ask(database, f"SELECT v FROM shop.items_as_of(to_timestamp({T0 + 1}))") == [(None,)]


@on_postgres
def test_what_a_history_would_gain(database: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, f"{database}?mode=versions")
            await sink.write(batch_of([seen(1, 10, "a"), seen(1, 20, "b"), seen(2, 10, "a")]))
            entries = batch_of([seen(1, 15, "a"), seen(1, 30, "b"), seen(2, 20, "b"), seen(3, 1, "a")]).entries
            assert await sink.compare(entries) == Changes(1, 1, 1)

    asyncio.run(run())


@on_postgres
def test_each_item_of_the_log_is_a_row_once(database: str) -> None:
    log = [record(n % 7) for n in range(120)]
    url = f"{database}?mode=append"
    places = 'SELECT topic, "partition", "offset", item, id FROM items ORDER BY 3, 4'
    asyncio.run(fill(url, batch_of(log)))
    rows = ask(database, places)
    assert rows == [("crawlbus.items", 0, n, 0, item.id) for n, item in enumerate(log)]
    assert asyncio.run(fill(url, batch_of(log), batch_of(log[50:60], start=50))) == [Written(120, 0), Written(10, 0)]
    pack = Batch([Entry(Position(0, 120, n), record(n)) for n in range(3)])
    assert asyncio.run(fill(url, pack, pack)) == [Written(3, 0)] * 2
    assert len(ask(database, places)) == 123


@on_postgres
@pytest.mark.parametrize("count", [10, 100])
def test_other_items_at_the_same_places_are_not_passed_over_in_silence(count: int, database: str) -> None:
    """As when the log was made anew."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, f"{database}?mode=append")
            await sink.write(batch_of(map(record, range(count))))
            with pytest.raises(StorageFailed, match=r"other items at these places of the log .*\?table="):
                await sink.write(batch_of(map(record, range(5, count + 5))))
            assert len(ask(database, "SELECT 1 FROM items")) == count
            with pytest.raises(Unsupported):
                await sink.compare(batch_of([record(1)]).entries)

    asyncio.run(run())


@on_postgres
def test_a_time_without_a_zone_is_utc_whatever_the_server_thinks(database: str) -> None:
    ask(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET TimeZone = 'Asia/Tokyo'")
    batch = batch_of([record(1, {"seen": datetime(2026, 1, 1, 12)})])
    asyncio.run(fill(f"{database}?columns=seen:timestamptz", batch))
    assert ask(database, "SELECT seen = '2026-01-01 12:00Z' FROM items") == [(True,)]


@on_postgres
def test_what_takes_the_server_too_long_is_stored_by_halves(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.sinks.postgres.link.STATEMENT_TIMEOUT_S", 1.0)
    asyncio.run(fill(database))
    ask(database, "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                  "'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END'")  # fmt: skip
    ask(database, "CREATE TRIGGER slow BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION slow()")
    assert asyncio.run(fill(database, batch_of(map(record, range(80))))) == [Written(80, 0)]
    assert ask(database, "SELECT count(*) FROM items") == [(80,)]
