"""`sqlite:///FILE?table=items`: items, progress and quarantine in one file, a batch in one transaction."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

from bus.errors import BusError, Closed, Misconfigured, StorageFailed
from bus.message import Position
from bus.url import file_path, query
from consumers.rows import COLUMNS, Row, make_rows, reject_item
from consumers.sink import (
    Batch,
    Changes,
    Entry,
    Limits,
    Progress,
    Quarantined,
    SinkUnavailable,
    Written,
    refuse_unknown,
)
from consumers.sql_ledger import SqlLedger
from consumers.thread import OwnThread

__all__ = ["SqliteSink"]

P = ParamSpec("P")
R = TypeVar("R")

BUSY_TIMEOUT_S = 10.0
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# ERROR is what an index, a generated column or a trigger raises whose expression cannot be computed
_DATA = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}

_TABLE_OF_ITEMS = """CREATE TABLE IF NOT EXISTS "{table}" (
    id TEXT PRIMARY KEY, job TEXT NOT NULL, spider TEXT NOT NULL, url TEXT, scraped_at TEXT NOT NULL,
    data JSON NOT NULL
)"""
_UPSERT = """INSERT INTO "{table}" (id, job, spider, url, scraped_at, data) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET job = excluded.job, spider = excluded.spider, url = excluded.url,
scraped_at = excluded.scraped_at, data = excluded.data WHERE excluded.scraped_at >= "{table}".scraped_at"""


class SqliteSink:
    """A table of items, upserted by id. Its file may be the bus's own: all other tables are named `sink_…`.

    WAL with `synchronous=FULL`: what `write` returned survives a power cut. It runs in a thread of its own.
    """

    limits = Limits()

    def __init__(self, path: Path, table: str = "items") -> None:
        if _TABLE.fullmatch(table) is None or table.lower().startswith(("sink_", "sqlite_")):
            raise Misconfigured(
                f"?table={table} of the sqlite sink is no name: use letters, digits and _,"
                " and neither sink_ nor sqlite_ in front"
            )
        self._path, self._table = path, table
        self._upsert = _UPSERT.format(table=table)
        self._thread = OwnThread("sqlite-sink")
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] = (0, 0)
        self._ledger = SqlLedger("", table, "")

    @classmethod
    def from_url(cls, url: str) -> SqliteSink:
        """`sqlite:///FILE?table=items`."""
        options = query(url)
        refuse_unknown(url, options, {"table"})
        return cls(file_path(url), options.get("table", "items"))

    async def open(self, consumer: str, topic: str) -> None:
        await self._run(self._open, SqlLedger(consumer, self._table, topic))

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        return await self._transact(lambda db: self._ledger.hold(db, partitions, time.time()))

    async def positions(self) -> Sequence[Progress]:
        return await self._transact(self._ledger.positions)

    async def write(self, batch: Batch) -> Written:
        return await self._transact(lambda db: self._store(db, batch))

    async def compare(self, entries: Sequence[Entry]) -> Changes:
        return await self._run(self._compare, entries)

    async def quarantined(self) -> Sequence[Quarantined]:
        return await self._run(self._quarantined)

    async def drop(self, ids: Sequence[str]) -> int:
        return await self._run(self._drop, ids)

    async def aclose(self) -> None:
        await self._thread.aclose(self._close)

    async def _transact(self, work: Callable[[sqlite3.Connection], R]) -> R:
        return await self._run(self._transaction, work)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.call(function, *args, **kwargs)
        except sqlite3.Error as error:
            raise self._translate(error) from None

    def _translate(self, error: sqlite3.Error) -> BusError:
        if _code(error) in _BUSY:
            return SinkUnavailable(f"the sink {self._path} is locked by another process")
        return StorageFailed(f"the sink {self._path} cannot be written: {error}")

    # what runs in the thread

    def _open(self, ledger: SqlLedger) -> None:
        self._close()
        self._ledger = ledger
        if not self._path.parent.is_dir():
            raise StorageFailed(f"the sink {self._path} cannot be made: there is no directory {self._path.parent}")
        self._connect(create=True)
        self._transaction(self._create)

    def _connect(self, *, create: bool = False) -> None:
        if self._connection is not None:
            return
        if not create and not self._path.exists():
            raise Misconfigured(f"there is no sink {self._path}: give the --sink that the consumer stores to")
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._connection = db
        if create:
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        info = os.stat(self._path)
        self._inode = (info.st_dev, info.st_ino)

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute(_TABLE_OF_ITEMS.format(table=self._table))
        SqlLedger.create(db, "BLOB")
        if not set(COLUMNS) <= set(self._columns(db)):
            raise Misconfigured(
                f"the table {self._table} of {self._path} has other columns than an item: name another by ?table="
            )

    def _columns(self, db: sqlite3.Connection) -> list[str]:
        return [row[1] for row in db.execute(f'PRAGMA table_info("{self._table}")')]

    def _store(self, db: sqlite3.Connection, batch: Batch) -> Written:
        self._ledger.advance(db, batch)
        rows, rejects = make_rows(batch.entries)
        refused = self._insert(db, rows)
        by_position = {entry.position: entry for entry in batch.entries}
        rejects += [reject_item(by_position[position], reason) for position, reason in refused]
        rejects += batch.rejects
        self._ledger.set_aside(db, rejects)
        return Written(len(rows) - len(refused), len(rejects))

    def _compare(self, entries: Sequence[Entry]) -> Changes:
        rows = {row.id: row for _, row in make_rows(entries)[0]}
        there: dict[str, Row] = {}
        if self._path.exists():
            with closing(sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True)) as db:
                if self._columns(db):
                    find = f'SELECT {", ".join(COLUMNS)} FROM "{self._table}" WHERE id = ?'
                    there = {row[0]: Row(*row) for id in rows for row in db.execute(find, (id,))}
        same = sum(there[id] == rows[id] or there[id].scraped_at > rows[id].scraped_at for id in there)
        return Changes(len(rows) - len(there), len(there) - same, same)

    def _quarantined(self) -> list[Quarantined]:
        self._connect()
        return SqlLedger.quarantined(self._db(), self._table) if self._has("sink_quarantine") else []

    def _drop(self, ids: Sequence[str]) -> int:
        self._connect()
        return self._transaction(lambda db: SqlLedger.drop(db, ids)) if self._has("sink_quarantine") else 0

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[Position, Row]]) -> list[tuple[Position, str]]:
        """Insert all that the table takes, halving what it refuses (a CHECK or a trigger of the user's)."""
        if not rows:
            return []
        db.execute("SAVEPOINT rows")
        try:
            db.executemany(self._upsert, [row for _, row in rows])
        except sqlite3.Error as error:
            if not db.in_transaction:
                raise StorageFailed(
                    f"a trigger of the table {self._table} of {self._path} ends the whole transaction ({error}):"
                    " write RAISE(ABORT, …) in it, and the row goes to quarantine"
                ) from None
            if _code(error) not in _DATA:
                raise
            db.execute("ROLLBACK TO rows")
            db.execute(f"EXPLAIN {self._upsert}", [None] * len(COLUMNS))  # raises where it is not for a row
            refused = [(rows[0][0], str(error))] if len(rows) == 1 else self._insert_halves(db, rows)
        else:
            refused = []
        db.execute("RELEASE rows")
        return refused

    def _insert_halves(
        self, db: sqlite3.Connection, rows: Sequence[tuple[Position, Row]]
    ) -> list[tuple[Position, str]]:
        middle = len(rows) // 2
        return self._insert(db, rows[:middle]) + self._insert(db, rows[middle:])

    def _transaction(self, work: Callable[[sqlite3.Connection], R]) -> R:
        db = self._db()
        db.execute("BEGIN IMMEDIATE")
        try:
            self._check_file()
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def _check_file(self) -> None:
        """A file that was moved or deleted would be written to, and be gone when it is closed."""
        try:
            info = os.stat(self._path)
        except OSError:
            info = None
        if info is None or (info.st_dev, info.st_ino) != self._inode:
            raise StorageFailed(f"the sink {self._path} was moved, deleted or replaced while it was written to")

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Closed("the sink is closed")
        return self._connection

    def _close(self) -> None:
        if self._connection is None:
            return
        with suppress(sqlite3.Error, BusError):
            self._transaction(self._leave)
        self._connection.close()
        self._connection = None

    def _leave(self, db: sqlite3.Connection) -> None:
        if self._has("sink_members"):
            self._ledger.leave(db)

    def _has(self, table: str) -> bool:
        return bool(self._db().execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
    return code & 0xFF
