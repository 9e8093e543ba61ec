"""What is particular to the bus in an SQLite file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from time import time

import pytest

from adapters.sqlite.log import TRIM_MESSAGES, trim
from adapters.sqlite.schema import find_topic
from adapters.sqlite.transport import SqliteTransport
from bus.errors import CodecError, Misconfigured, StorageFailed
from bus.message import Message, new_id
from bus.testing.transport_scene import until
from bus.topic import Kind, Topic

DAY_S = 86400.0
WORK, RECORD = Topic("work", Kind.QUEUE), Topic("record", Kind.LOG, 3600.0)


def play(path: Path, check: Callable[[SqliteTransport], Awaitable[None]]) -> None:
    async def run() -> None:
        transport = await SqliteTransport.connect(f"sqlite:///{path}")
        try:
            await transport.declare(WORK, RECORD)
            await check(transport)
        finally:
            await transport.aclose()

    asyncio.run(run())


def refusal(url: str) -> Exception:
    async def connect() -> None:
        transport = await SqliteTransport.connect(url)
        await transport.aclose()

    with pytest.raises((Misconfigured, StorageFailed)) as error:
        asyncio.run(connect())
    assert "\n" not in str(error.value)
    return error.value


def test_its_tables_leave_room_for_a_sink_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE items (id TEXT PRIMARY KEY)")
        file.execute("INSERT INTO items VALUES ('kept')")

    async def check(transport: SqliteTransport) -> None:
        await transport.publish("record", [Message(new_id(), b"")])

    play(path, check)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT * FROM items").fetchall() == [("kept",)]
        names = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert all(name.startswith(("bus_", "sqlite_")) for name in names - {"items"})


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None: ...

    path = tmp_path / "old.db"
    play(path, check)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE bus_meta SET value = '99'")
    assert "layout 99" in str(refusal(f"sqlite:///{path}"))


def test_bad_urls_are_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "colour" in str(refusal(f"sqlite:///{tmp_path}/a.db?colour=red"))
    assert "make its directory" in str(refusal(f"sqlite:///{tmp_path}/missing/a.db"))
    (tmp_path / "text.db").write_text("no database at all, " * 1000)
    assert "not an SQLite database" in str(refusal(f"sqlite:///{tmp_path}/text.db"))
    assert not os.path.exists(tmp_path / "missing")


def test_nothing_is_left_open_or_beside_the_file(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        reader = await transport.subscribe("work")
        await transport.publish("work", [Message(new_id(), b"")])
        await reader.receive(max_messages=1, timeout_s=1)

    play(tmp_path / "a.db", check)
    assert os.listdir(tmp_path) == ["a.db"]
    with closing(sqlite3.connect(tmp_path / "a.db")) as file:
        assert file.execute("SELECT count(*) FROM bus_owners").fetchone() == (0,)
        assert file.execute("SELECT owner FROM bus_queue").fetchall() == [(0,)]


def test_a_header_that_cannot_travel_is_named(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        for value in (2**70, {1, 2}, object()):
            with pytest.raises(CodecError, match="header"):
                await transport.publish("work", [Message(new_id(), b"", {"bad": value})])  # type: ignore[dict-item]
        assert (await transport.lag("work")).ready == 0

    play(tmp_path / "a.db", check)


def test_trimming_a_long_log_goes_on_in_steps(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        count = 2 * TRIM_MESSAGES + 10
        await transport.publish("record", [Message(new_id(), b"") for _ in range(count)])
        await transport.declare(RECORD._replace(retention_s=0.05))

        async def trimmed() -> bool:
            return (await transport.lag("record")).first == {0: count}

        await until(trimmed)

    play(tmp_path / "a.db", check)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        await transport.publish("work", [Message("first", b"")])
        database = transport._database
        pages = await database.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        await database.read(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(StorageFailed, match="disk is full"):
            await transport.publish("work", [Message("second", b"x" * 100_000)])
        await database.read(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
        reader = await transport.subscribe("work")
        assert [d.message.id for d in await reader.receive(max_messages=9, timeout_s=1)] == ["first"]

    play(tmp_path / "a.db", check)


def test_a_group_that_is_long_gone_holds_nothing_back(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        gone = await transport.subscribe("record", group="gone")
        here = await transport.subscribe("record", group="here")
        await transport.publish("record", [Message(new_id(), b"") for _ in range(4)])
        await here.ack((await here.receive(max_messages=4, timeout_s=5))[:2])

        async def first_kept(days: float, retention_s: float) -> object:
            def trim_now(connection: sqlite3.Connection) -> None:
                connection.execute("UPDATE bus_log SET at = 0")
                connection.execute("UPDATE bus_groups SET seen_at = ? WHERE name = 'gone'", (time() - days * DAY_S,))
                trim(connection, find_topic(connection, "record").id, retention_s)

            await transport._database.write(trim_now)
            return (await transport.lag("record")).first

        assert await first_kept(6.9, 60) == {0: 0}
        assert await first_kept(29, 30 * DAY_S) == {0: 0}
        assert await first_kept(7.1, 60) == {0: 2}, "the other group still holds its own"
        await gone.aclose()

    play(tmp_path / "a.db", check)


def test_subscribing_and_acking_is_being_there(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        def age(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE bus_groups SET seen_at = 0")

        async def is_there() -> bool:
            query = "SELECT seen_at FROM bus_groups"
            (at,) = await transport._database.read(lambda connection: connection.execute(query).fetchone())
            return time() - DAY_S < at

        await transport.publish("record", [Message(new_id(), b"")])
        reader = await transport.subscribe("record", group="here")
        assert await is_there()
        await transport._database.write(age)
        await reader.ack(await reader.receive(max_messages=1, timeout_s=5))
        assert await is_there()
        await transport._database.write(age)
        await transport.subscribe("record", group="here")
        assert await is_there()

    play(tmp_path / "a.db", check)


DIES = """
import asyncio, os, sys
from adapters.sqlite.transport import SqliteTransport

async def die():
    reader = await (await SqliteTransport.connect(sys.argv[1])).subscribe("work")
    assert len(await reader.receive(max_messages=2, timeout_s=10)) == 2
    os._exit(9)

asyncio.run(die())
"""


def test_what_a_dead_reader_held_comes_before_newer_work(tmp_path: Path) -> None:
    async def check(transport: SqliteTransport) -> None:
        messages = [Message(new_id(), b"") for _ in range(4)]
        await transport.publish("work", messages)
        command = [sys.executable, "-c", DIES, f"sqlite:///{tmp_path / 'bus.db'}"]
        assert await asyncio.to_thread(subprocess.call, command) == 9
        reader = await transport.subscribe("work")
        received = await reader.receive(max_messages=4, timeout_s=10)
        assert [delivery.message.id for delivery in received] == [message.id for message in messages]

    play(tmp_path / "bus.db", check)
