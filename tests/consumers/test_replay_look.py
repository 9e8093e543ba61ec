"""`--dry-run`: what a replay would do."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from consumers.replay.look import look
from consumers.sink import Changes, sink_of
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from consumers.through import Through
from tests.consumers.places import new_place
from tests.consumers.replays import (
    Here,
    every_bus,
    execute,
    on,
)
from tests.consumers.scene import record


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
