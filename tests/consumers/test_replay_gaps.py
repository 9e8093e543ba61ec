"""What a log no longer holds, and a log that is another one."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from pathlib import Path
from secrets import token_hex

import pytest

import consumers.identity
import consumers.replay.bounds
from bus.errors import BusError
from bus.registry import connect_transport
from consumers.replay.replay import Dropped
from consumers.sink import Batch, Written
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.logs import open_log
from tests.consumers.replays import (
    Here,
    at,
    every_bus,
    execute,
    new_bus,
    numbers,
    on,
)
from tests.consumers.scene import query
from tests.servers import shared_url


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
