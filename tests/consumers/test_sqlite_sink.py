"""The sqlite sink keeps the contract; and what is its own."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import consumers.sinks.sqlite
from bus.errors import Misconfigured, StorageFailed
from bus.message import Position
from consumers.sink import Written
from consumers.sinks.sqlite import SqliteSink
from consumers.testing import SinkConformance, batch_of, record
from tests.consumers.scene import query, sqlite_items
from tests.consumers.sinks import failure, fill, positions


class TestSqliteSink(SinkConformance):
    sink_class = SqliteSink

    @pytest.fixture(autouse=True)
    def _target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "items.sqlite"
        self.url = f"sqlite:///{self.path}"
        monkeypatch.setattr(consumers.sinks.sqlite, "BUSY_TIMEOUT_S", 0.5)

    def rows(self) -> list[dict[str, Any]]:
        return sqlite_items(self.path)

    def untouched(self) -> bool:
        return not self.path.exists()

    def gaps(self) -> list[tuple[str, str, str]]:
        return [row[:3] for row in query(self.path, 'SELECT asked, first, "end" FROM sink_gaps ORDER BY at, rowid')]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def broken(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.path)) as db:
            db.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON sink_quarantine BEGIN SELECT RAISE(ABORT, 'broken'); END"
            )
            yield
            db.execute("DROP TRIGGER broken")


def test_what_a_users_index_cannot_compute_is_quarantined_alone(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path / "items.sqlite")
    asyncio.run(fill(sink))
    with closing(sqlite3.connect(tmp_path / "items.sqlite")) as db:
        db.execute("CREATE INDEX x ON items (json_extract(json_extract(data, '$.raw'), '$.x'))")
    batch = batch_of([record(1), record(2, {"raw": "not json"}), record(3)])
    written = asyncio.run(fill(SqliteSink(tmp_path / "items.sqlite"), batch))
    assert written == [Written(2, 1)]


def test_a_trigger_that_ends_the_transaction_is_named(tmp_path: Path) -> None:
    asyncio.run(fill(SqliteSink(tmp_path / "items.sqlite")))
    with closing(sqlite3.connect(tmp_path / "items.sqlite")) as db:
        db.execute("CREATE TRIGGER t BEFORE INSERT ON items BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
    error = failure(fill(SqliteSink(tmp_path / "items.sqlite"), batch_of([record(1)])))
    assert isinstance(error, StorageFailed) and "RAISE(ABORT" in str(error)


def test_what_a_users_constraint_refuses_is_quarantined_alone(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"
    asyncio.run(fill(SqliteSink(path)))
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER no_sevens BEFORE INSERT ON items WHEN new.data ->> 'number' % 7 = 0"
            " BEGIN SELECT RAISE(ABORT, 'no sevens'); END"
        )
        db.execute("CREATE TABLE audit (id TEXT)")
        db.execute("CREATE TRIGGER audited AFTER UPDATE ON items BEGIN INSERT INTO audit VALUES (new.id); END")
    (written,) = asyncio.run(fill(SqliteSink(path), batch_of(map(record, range(1, 101)))))
    assert written == Written(86, 14)
    assert len(sqlite_items(path)) == 86
    assert query(path, "SELECT DISTINCT reason FROM sink_quarantine") == [("no sevens",)]
    assert query(path, "SELECT * FROM audit") == []  # no row was written, and then written again
    assert asyncio.run(positions(SqliteSink(path)))[0].next == Position(0, 100)


def test_two_tables_of_one_file_have_progress_each(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    asyncio.run(fill(SqliteSink(path, "a"), batch_of([record(1)])))
    assert asyncio.run(positions(SqliteSink(path, "b"))) == []
    assert len(sqlite_items(path, "a")) == 1 and sqlite_items(path, "b") == []


def test_the_table_is_as_documented_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"
    asyncio.run(fill(SqliteSink(path), batch_of([record(1)])))
    columns = [row[1:3] for row in query(path, "PRAGMA table_info(items)")]
    text = [(name, "TEXT") for name in ("id", "job", "spider", "url", "scraped_at")]
    assert columns == [*text, ("data", "JSON")]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "SELECT json_valid(data), typeof(data) FROM items") == [(1, "text")]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://host/items", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///x.db?tabel=a", "no option 'tabel'; it has: table"),
        ("sqlite:///x.db?table=a b", "is no name"),
        ("sqlite:///x.db?table=sink_progress", "neither sink_ nor sqlite_"),
        ("sqlite:///x.db?table=", "is no name"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        SqliteSink.from_url(url)


def test_a_file_that_is_no_database_and_a_table_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "items.sqlite").write_text("hello " * 1000)
    assert "is not a database" in str(failure(fill(SqliteSink(tmp_path / "items.sqlite"))))
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE items (name TEXT)")
    error = failure(fill(SqliteSink(path)))
    assert isinstance(error, Misconfigured) and "?table=" in str(error)
    assert query(path, "SELECT name FROM sqlite_master") == [("items",)]  # nothing was made beside it


def test_a_database_without_a_sink_has_no_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE messages (name TEXT)")
    before = path.read_bytes()

    async def look() -> tuple[int, int]:
        sink = SqliteSink(path)
        try:
            return len(await sink.quarantined()), await sink.drop(["0123456789abcdef"])
        finally:
            await sink.aclose()

    assert asyncio.run(look()) == (0, 0) and path.read_bytes() == before


def test_a_database_that_is_replaced_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"

    async def run() -> None:
        sink = SqliteSink(path)
        await sink.open("default", "crawlbus.items")
        await sink.hold({0})
        await sink.write(batch_of([record(1)]))
        shutil.move(path, tmp_path / "away.sqlite")
        try:
            await sink.write(batch_of([record(2)], start=1))
        finally:
            await sink.aclose()

    assert "was moved, deleted or replaced" in str(failure(run()))
