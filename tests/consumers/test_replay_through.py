"""A user's function between the log and the sink."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from consumers.through import Through, ThroughBroken
from tests.consumers.replays import (
    Here,
    numbers,
    on,
)
from tests.consumers.scene import query, record, sqlite_items


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
